//! What a pipeline would do, and what it can promise, before it does anything.
//!
//! `cargo run --example explain`

use std::fs;

use orbit_etl::prelude::*;
use orbit_etl::{Error, Result};

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir().map_err(|e| Error::resources("no folder").caused_by(e))?;
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::write(at("orders.csv"), "id,customer,total,note\n1,ann,17.5,\n2,bob,3.25,gift\n")
        .and_then(|()| fs::write(at("customers.csv"), "name,country\nann,AT\nbob,BE\n"))
        .map_err(|e| Error::resources("can't write the input").caused_by(e))?;

    // Which columns are read, what is filtered where, how often it commits.
    let streaming = Pipeline::builder("streaming")
        .source("orders", FilesSource::csv(at("orders.csv")))
        .transform("large", Sql::new("SELECT id, total * 1.2 AS gross FROM input WHERE total > 10"))
        .sink("lake", FilesSink::parquet(at("lake")))
        .sink("host", FnSink::new(|_, _| async { Ok(()) }))
        .on_error(OnError::dead_letter(FilesSink::json(at("rejected"))))
        .checkpoint(at("state"), std::time::Duration::from_secs(10))
        .build()?;
    println!("{}\n", streaming.explain().await?);

    // A join needs its whole inputs: everything is committed at the end.
    let joined = Pipeline::builder("joined")
        .source("orders", FilesSource::csv(at("orders.csv")))
        .source("customers", FilesSource::csv(at("customers.csv")))
        .transform(
            "by_country",
            Sql::new(
                "SELECT country, sum(total) AS total FROM orders JOIN customers ON customer = name GROUP BY 1",
            ),
        )
        .inputs(["orders", "customers"])
        .sink("lake", FilesSink::parquet(at("countries")).partition_by(["country"]))
        .checkpoint_in_memory()
        .build()?;
    println!("{}\n", joined.explain().await?);

    // More than a sink can promise is refused before the first row.
    let demanding = Pipeline::builder("demanding")
        .source("orders", FilesSource::csv(at("orders.csv")))
        .sink("host", FnSink::new(|_, _| async { Ok(()) }))
        .delivery(Delivery::ExactlyOnce)
        .checkpoint_in_memory()
        .build()?;
    match demanding.explain().await {
        Ok(plan) => println!("{plan}"),
        Err(error) => println!("refused: {error}"),
    }
    Ok(())
}
