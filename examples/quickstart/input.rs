//! The input: three TPC-H tables as CSV, with a few lines that no reader can make sense of.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use tpchgen::csv::{CustomerCsv, LineItemCsv, OrderCsv};
use tpchgen::generators::{CustomerGenerator, LineItemGenerator, OrderGenerator};

/// About 100,000 rows of lineitem.
const SCALE: f64 = 0.0167;

/// One of these is planted after every 20,000 lines.
const MALFORMED: [&str; 5] = [
    "these,are,too,few",
    "1,2,3,4,many,5.00,0.00,0.00,N,O,1996-03-13,1996-02-12,1996-03-22,NONE,MAIL,\"quantity isn't a number\"",
    "1,2,3,4,5,6.00,0.00,0.00,N,O,1996-13-99,1996-02-12,1996-03-22,NONE,MAIL,\"there is no such day\"",
    "one,2,3,4,5,6.00,0.00,0.00,N,O,1996-03-13,1996-02-12,1996-03-22,NONE,MAIL,\"the key isn't a number\"",
    "a line that was meant for another file",
];

/// Writes the tables, unless an earlier run has: files that change are not what was read before.
pub(crate) fn generate(folder: &Path) -> io::Result<()> {
    if folder.join("done").exists() {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    let orders = OrderGenerator::new(SCALE, 1, 1);
    write(&folder.join("orders.csv"), OrderCsv::header(), orders.iter().map(OrderCsv::new), &[])?;
    let customers = CustomerGenerator::new(SCALE, 1, 1);
    write(&folder.join("customer.csv"), CustomerCsv::header(), customers.iter().map(CustomerCsv::new), &[])?;
    let lines = LineItemGenerator::new(SCALE, 1, 1);
    let lines = lines.iter().map(LineItemCsv::new);
    write(&folder.join("lineitem.csv"), LineItemCsv::header(), lines, &MALFORMED)?;
    fs::write(folder.join("done"), "")
}

fn write(
    path: &Path,
    header: &str,
    rows: impl Iterator<Item = impl Display>,
    malformed: &[&str],
) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    writeln!(file, "{header}")?;
    let mut malformed = malformed.iter();
    for (i, row) in rows.enumerate() {
        writeln!(file, "{row}")?;
        if i % 20_000 == 10_000
            && let Some(line) = malformed.next()
        {
            writeln!(file, "{line}")?;
        }
    }
    file.flush()
}
