"""Reads tables as others do, and writes some: deltalake (delta-rs), Polars and DuckDB.

    readers.py read FOLDER     prints, for each table below it, one JSON object a line: what each
                               reader counts and sums
    readers.py write FOLDER    makes tables there
    readers.py versions        prints what is used

DuckDB reads the Parquet files that the log names, since its own Delta extension isn't on PyPI.
"""

import datetime
import decimal
import json
import os
import sys

import deltalake
import duckdb
import polars
import pyarrow

UTC = datetime.timezone.utc


def read(folder):
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        table = deltalake.DeltaTable(path)
        rows = deltalake.QueryBuilder().register("t", table)
        arrow = pyarrow.table(rows.execute("SELECT id, name, part FROM t ORDER BY id").read_all())
        frame = polars.scan_delta(path).select("id", "name", "part").sort("id").collect()
        files = table.file_uris()
        count = 0
        if files:
            # `part` may stand in the log alone.
            select = "SELECT count(*), coalesce(sum(id), 0) FROM read_parquet(?, hive_partitioning = false)"
            count, total = duckdb.execute(select, [files]).fetchone()
            if int(total) != sum(arrow["id"].to_pylist()):
                raise SystemExit(f"{name}: DuckDB sums {total}")
        found = {
            "table": name,
            "version": table.version(),
            "deltalake": [list(row) for row in zip(*(arrow[c].to_pylist() for c in ("id", "name", "part")))],
            "polars": [list(row) for row in frame.rows()],
            "duckdb": count,
        }
        print(json.dumps(found))


def write(folder):
    columns = {
        "id": pyarrow.array([1, 2, 3, 4], pyarrow.int64()),
        "name": pyarrow.array(["a", None, "ü/=%", ""], pyarrow.string()),
        "part": pyarrow.array(["x", "a/b = c%", None, "x"], pyarrow.string()),
        "small": pyarrow.array([1, -1, None, 127], pyarrow.int8()),
        "share": pyarrow.array([0.5, None, float("inf"), -0.0], pyarrow.float64()),
        "amount": pyarrow.array([decimal.Decimal("1.50"), None, decimal.Decimal("-99999999.99"), decimal.Decimal(0)],
                                pyarrow.decimal128(10, 2)),
        "day": pyarrow.array([datetime.date(2024, 2, 29), None, datetime.date(1, 1, 1), datetime.date(9999, 12, 31)]),
        "at": pyarrow.array([datetime.datetime(2024, 2, 29, 12, 0, 0, 1, UTC), None,
                             datetime.datetime(1969, 12, 31, 23, 59, 59, 999999, UTC),
                             datetime.datetime(2100, 1, 1, tzinfo=UTC)], pyarrow.timestamp("us", "UTC")),
        "raw": pyarrow.array([b"\x00\xff", None, b"", b"x"], pyarrow.binary()),
        "list": pyarrow.array([[1, None], None, [], [3]], pyarrow.list_(pyarrow.int32())),
    }
    rows = pyarrow.table(columns)
    deltalake.write_deltalake(os.path.join(folder, "deltalake"), rows, partition_by=["part"])
    deltalake.write_deltalake(os.path.join(folder, "deltalake"), rows.slice(0, 1), mode="append")
    deltalake.DeltaTable(os.path.join(folder, "deltalake")).delete("id = 4")
    merged = os.path.join(folder, "merged")
    deltalake.write_deltalake(merged, rows)
    changes = pyarrow.table({"id": [2, 9], "name": ["two", "nine"]})
    merge = deltalake.DeltaTable(merged).merge(changes, "t.id = s.id", source_alias="s", target_alias="t")
    merge.when_matched_update({"name": "s.name"}).when_not_matched_insert({"id": "s.id", "name": "s.name"}).execute()
    deltalake.DeltaTable(merged).create_checkpoint()
    polars.from_arrow(rows).write_delta(os.path.join(folder, "polars"))


def main():
    match sys.argv[1:]:
        case ["read", folder]:
            read(folder)
        case ["write", folder]:
            write(folder)
        case ["versions"]:
            print(f"deltalake {deltalake.__version__}, Polars {polars.__version__}, DuckDB {duckdb.__version__}")
        case _:
            raise SystemExit(__doc__)


main()
