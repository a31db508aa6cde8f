//! TPC-H orders into a Delta table and an Iceberg table; both as they were, changes merged into one of
//! them, and the changes read back.
//!
//! `cargo run --example lakehouse --features delta,iceberg`

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Date32Array, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::util::pretty::pretty_format_batches;
use chrono::Utc;
use orbit_etl::connectors::iceberg::PartitionBy;
use orbit_etl::model::Role;
use orbit_etl::prelude::*;
use orbit_etl::{Error, Result, Source};
use tpchgen::csv::OrderCsv;
use tpchgen::dates::TPCHDate;
use tpchgen::generators::OrderGenerator;

/// 15,000 orders, which come in two parts.
const SCALE: f64 = 0.01;
const PARTS: i32 = 2;

const COLUMNS: &str =
    "SELECT o_orderkey, o_custkey, o_orderstatus, o_totalprice, o_orderdate, o_orderpriority FROM input";

const SUMMARY: &str = "
    SELECT o_orderstatus AS status, count(*) AS orders, round(sum(o_totalprice)) AS total
    FROM input GROUP BY o_orderstatus ORDER BY status";

const FEED: &str = "
    SELECT _commit_version AS version, _change_type AS change, count(*) AS orders
    FROM input GROUP BY _commit_version, _change_type ORDER BY version, change";

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir().map_err(|e| Error::resources("no folder").caused_by(e))?;
    let home = folder.path();
    let orders = home.join("delta/orders").display().to_string();
    let catalog = IcebergCatalog::memory(home.join("iceberg").display().to_string());
    let delta = || DeltaSource::new(&orders);
    let iceberg = || IcebergSource::new(catalog.clone(), "shop.orders");

    // One reading of the files fills both tables.
    let load = Pipeline::builder("load")
        .source("files", FilesSource::csv(home.join("input/*.csv").display().to_string()))
        .transform("orders", Sql::new(COLUMNS))
        .sink("delta", DeltaSink::append(&orders).property("delta.enableChangeDataFeed", "true"))
        .inputs(["orders"])
        .sink(
            "iceberg",
            IcebergSink::append(catalog.clone(), "shop.orders")
                .partition_by([PartitionBy::new("o_orderdate", "year")]),
        )
        .inputs(["orders"])
        .delivery(Delivery::ExactlyOnce)
        .checkpoint(home.join("state/load"), Duration::from_secs(10))
        .build()?;
    // What the Iceberg table gets goes on to a copy.
    let copy = MemoryTable::new();
    let forward = Pipeline::builder("forward")
        .source("iceberg", iceberg())
        .sink("copy", MemorySink::new(&copy))
        .checkpoint(home.join("state/forward"), Duration::from_secs(10))
        .build()?;

    write_orders(&home.join("input"), 1)?;
    println!("the first part of the orders\n{}", load.run().await?);
    println!("forwarded: {} rows", forward.run().await?.rows_written());
    let first_part = Utc::now();

    // The second part is read alone, and only what is new in the Iceberg table goes on.
    write_orders(&home.join("input"), 2)?;
    println!("\nthe second part\n{}", load.run().await?);
    println!("forwarded: {} rows, {} in all", forward.run().await?.rows_written(), copy.rows());
    println!("\nboth tables as they were before the second part, and as they are");
    show("Delta, then", query(delta().timestamp(first_part), SUMMARY).await?)?;
    show("Iceberg, then", query(iceberg().timestamp(first_part), SUMMARY).await?)?;
    show("Delta, now", query(delta(), SUMMARY).await?)?;
    show("Iceberg, now", query(iceberg(), SUMMARY).await?)?;

    let changes = changes()?;
    let merge = Pipeline::builder("merge")
        .source("changes", MemorySource::new(changes.schema(), vec![changes]))
        .sink("orders", DeltaSink::merge(&orders, ["o_orderkey"]))
        .delivery(Delivery::ExactlyOnce)
        .checkpoint(home.join("state/merge"), Duration::from_secs(10))
        .build()?;
    println!("\nchanges are merged into the Delta table\n{}", merge.run().await?);
    show("Delta, after the changes", query(delta(), SUMMARY).await?)?;
    show("its change feed", query(delta().changes(), FEED).await?)
}

/// The answer to a query over one table.
async fn query(table: impl Source, sql: &str) -> Result<Vec<RecordBatch>> {
    let answer = MemoryTable::new();
    let pipeline = Pipeline::builder("query")
        .source("table", table)
        .transform("answer", Sql::new(sql))
        .sink("out", MemorySink::new(&answer))
        .checkpoint_in_memory()
        .build()?;
    pipeline.run().await?;
    Ok(answer.streams().iter().flat_map(|stream| answer.batches(stream)).collect())
}

fn show(what: &str, batches: Vec<RecordBatch>) -> Result<()> {
    let table = pretty_format_batches(&batches).map_err(|e| Error::internal("can't print").caused_by(e))?;
    println!("\n{what}\n{table}");
    Ok(())
}

/// Changes of the first orders, as a database's log would tell them: one in ten is gone, one in ten was
/// delivered; and some are new.
fn changes() -> Result<RecordBatch> {
    let mut rows = Vec::new();
    for (i, order) in OrderGenerator::new(SCALE, 1, PARTS).iter().take(2_000).enumerate() {
        match i % 10 {
            0 => rows.push(("delete", order)),
            5 => rows.push(("update", order)),
            _ => {}
        }
    }
    // Of a larger shop, beyond the keys that the tables have.
    let more = OrderGenerator::new(2.0 * SCALE, PARTS, PARTS).iter().take(100);
    rows.extend(more.map(|order| ("insert", order)));
    let status = |(op, order): &(&str, tpchgen::generators::Order<'_>)| match *op {
        "update" => "F".to_owned(),
        _ => order.o_orderstatus.to_string(),
    };
    let date = |days: i32| TPCHDate::UNIX_EPOCH_OFFSET + days;
    let schema = Schema::new(vec![
        Role::Op.mark(Field::new("op", DataType::Utf8, false)),
        Role::Order.mark(Field::new("at", DataType::Int64, false)),
        Field::new("o_orderkey", DataType::Int64, false),
        Field::new("o_custkey", DataType::Int64, false),
        Field::new("o_orderstatus", DataType::Utf8, false),
        Field::new("o_totalprice", DataType::Float64, false),
        Field::new("o_orderdate", DataType::Date32, false),
        Field::new("o_orderpriority", DataType::Utf8, false),
    ]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|(op, _)| op))),
        Arc::new(Int64Array::from_iter_values((1..).take(rows.len()))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|(_, order)| order.o_orderkey))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|(_, order)| order.o_custkey))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(status))),
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|(_, o)| o.o_totalprice.as_f64()))),
        Arc::new(Date32Array::from_iter_values(rows.iter().map(|(_, o)| date(o.o_orderdate.into_inner())))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, order)| order.o_orderpriority))),
    ];
    RecordBatch::try_new(Arc::new(schema), columns)
        .map_err(|e| Error::internal("can't make the changes").caused_by(e))
}

/// One part of the orders as CSV.
fn write_orders(folder: &Path, part: i32) -> Result<()> {
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(folder)?;
        let mut file = BufWriter::new(File::create(folder.join(format!("orders-{part}.csv")))?);
        writeln!(file, "{}", OrderCsv::header())?;
        for order in OrderGenerator::new(SCALE, part, PARTS).iter() {
            writeln!(file, "{}", OrderCsv::new(order))?;
        }
        file.flush()
    };
    write().map_err(|e| Error::resources("can't write the input").caused_by(e))
}
