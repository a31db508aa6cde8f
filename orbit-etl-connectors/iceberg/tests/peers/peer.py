"""Python's own client of Iceberg, on a table that Orbit ETL reads and writes as well.

    peer.py DATABASE WAREHOUSE read TABLE
    peer.py DATABASE WAREHOUSE write TABLE FROM TO
    peer.py DATABASE WAREHOUSE evolve TABLE
    peer.py DATABASE WAREHOUSE delete TABLE ID

Rows have the columns of `schema` below, made from their ids. `read` prints them as lines of JSON, sorted.
"""

import datetime
import decimal
import json
import sys

import pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.expressions import EqualTo
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import LongType

UTC = datetime.timezone.utc
schema = pa.schema([
    ("id", pa.int64()),
    ("name", pa.string()),
    ("day", pa.date32()),
    ("at", pa.timestamp("us", "UTC")),
    ("price", pa.decimal128(12, 2)),
    ("score", pa.float64()),
    ("ok", pa.bool_()),
    ("tags", pa.list_(pa.string())),
])


def made(id):
    return {
        "id": id,
        "name": None if id % 3 == 0 else f"a/b {id % 2}",
        "day": None if id % 5 == 0 else datetime.date(1970, 1, 1) + datetime.timedelta(days=id * 100 - 500),
        "at": datetime.datetime(1970, 1, 1, tzinfo=UTC) + datetime.timedelta(microseconds=id * 10**12 - 1),
        "price": decimal.Decimal(id * 7 - 20).scaleb(-2),
        "score": id / 4,
        "ok": id % 2 == 0,
        "tags": None if id % 4 == 0 else [f"t{id}", "ü"],
    }


def shown(value):
    if isinstance(value, datetime.datetime):
        return (value - datetime.datetime(1970, 1, 1, tzinfo=UTC)) // datetime.timedelta(microseconds=1)
    if isinstance(value, datetime.date):
        return (value - datetime.date(1970, 1, 1)).days
    return str(value) if isinstance(value, decimal.Decimal) else value


def main(database, warehouse, what, name, *rest):
    catalog = SqlCatalog("default", uri=f"sqlite:///{database}", warehouse=warehouse)
    catalog.create_namespace_if_not_exists(name.split(".")[0])
    if what == "write":
        try:
            table = catalog.load_table(name)
        except NoSuchTableError:
            table = catalog.create_table(name, schema)
        rows = [made(id) for id in range(int(rest[0]), int(rest[1]))]
        table.append(pa.Table.from_pylist(rows, schema=schema))
        return
    table = catalog.load_table(name)
    if what == "evolve":
        with table.update_spec() as spec:
            spec.add_field("name", IdentityTransform(), "by_name")
        with table.update_schema() as columns:
            columns.add_column("more", LongType())
    elif what == "delete":
        table.delete(EqualTo("id", int(rest[0])))
    elif what == "read":
        table.inspect.files()
        rows = sorted(table.scan().to_arrow().to_pylist(), key=lambda row: row["id"])
        # What others prune by must not lose rows.
        for row in rows:
            found = table.scan(row_filter=EqualTo("id", row["id"])).to_arrow().num_rows
            if found != 1:
                raise SystemExit(f"row {row['id']} is found {found} times")
        for row in rows:
            print(json.dumps({column: shown(value) for column, value in row.items()}, ensure_ascii=False))
    else:
        raise SystemExit(f"there is no {what}")


main(*sys.argv[1:])
