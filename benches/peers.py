"""One run of a peer, as `benches/tpch.rs` asks for it: CONTESTANT CASE INPUT OUTPUT.

Prints the seconds and the highest resident bytes. Needs `duckdb`, `polars` and `deltalake` from PyPI.
"""

import importlib
import os
import resource
import sys
import time

os.environ.setdefault("POLARS_MAX_THREADS", "2")
COLUMNS = ["l_orderkey", "l_partkey", "l_quantity", "l_extendedprice * (1 - l_discount) AS revenue", "l_shipdate"]
WHERE = "l_quantity > 25 AND l_discount < 0.08"


def columns(case):
    return COLUMNS if case == "parquet_to_parquet_numbers" else [*COLUMNS, "l_comment"]


# Two files without an order, as everybody else writes: its fastest way.
def duckdb(db, case, source, target):
    con = db.connect(config={"threads": 2, "preserve_insertion_order": False})
    if case == "csv_to_parquet":
        query = f"SELECT * FROM read_csv('{source}')"
    else:
        query = f"SELECT {', '.join(columns(case))} FROM read_parquet('{source}/*.parquet') WHERE {WHERE}"
    con.execute(
        f"COPY ({query}) TO '{target}' (FORMAT parquet, PER_THREAD_OUTPUT, COMPRESSION zstd, "
        "COMPRESSION_LEVEL 3, ROW_GROUP_SIZE 1048576)"
    )


def polars(pl, case, source, target):
    if case == "csv_to_delta":
        properties = importlib.import_module("deltalake").WriterProperties(compression="ZSTD", compression_level=3)
        rows = pl.scan_csv(source, try_parse_dates=True)
        rows.sink_delta(target, delta_write_options={"writer_properties": properties})
        return
    if case == "csv_to_parquet":
        rows = pl.scan_csv(source, try_parse_dates=True)
    else:
        rows = pl.scan_parquet(f"{source}/*.parquet")
        rows = rows.filter((pl.col("l_quantity") > 25) & (pl.col("l_discount") < 0.08))
        rows = rows.select(pl.sql_expr(list(columns(case))))
    os.mkdir(target)
    target = f"{target}/0.parquet"
    rows.sink_parquet(target, compression="zstd", compression_level=3, row_group_size=1048576)


def main():
    who, case, source, target = sys.argv[1:]
    peer = importlib.import_module(who)
    began = time.perf_counter()
    {"duckdb": duckdb, "polars": polars}[who](peer, case, source, target)
    for folder, _, names in os.walk(target):
        for name in names:
            with open(f"{folder}/{name}", "rb") as written:
                os.fsync(written.fileno())
    seconds = time.perf_counter() - began
    print(f"{seconds:.6f} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}")


main()
