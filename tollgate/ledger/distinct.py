"""What a unique metric has seen: inserting values and counting the new ones.

Owns the table distinct_values. It refuses to know what a value was: a 64-bit hash of it is kept.
"""

from __future__ import annotations

import json
from collections import Counter

import polars as pl
from sqlalchemy import Connection, text

from tollgate.ledger.arrays import CHUNK_ROWS, bind_array, rows_from_arrays

KEY_COLUMNS = {
    "partition": "integer",
    "meter_id": "bigint",
    "window_start_ms": "bigint",
    "account": "text",
    "dimensions": "text",
}

_COLUMNS = {**KEY_COLUMNS, "value_hash": "bigint"}

_KEYS = ", ".join(KEY_COLUMNS)

_INSERT_POSTGRESQL = (
    f"WITH fresh AS (INSERT INTO distinct_values ({', '.join(_COLUMNS)}) {rows_from_arrays(_COLUMNS)} "  # noqa: S608 (names are ours)
    f"ON CONFLICT DO NOTHING RETURNING {_KEYS}) "
    f"SELECT {_KEYS}, count(*) AS new_values FROM fresh GROUP BY {_KEYS}"
)

# JSON carries the rows because only a single statement can return what it inserted. The hash travels as text: as a
# JSON number the smallest 64-bit integer would become a float.
_INSERT_SQLITE = (
    f"INSERT INTO distinct_values ({', '.join(_COLUMNS)}) "  # noqa: S608 (names are ours)
    "SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'), "
    "json_extract(value, '$[3]'), json_extract(value, '$[4]'), CAST(json_extract(value, '$[5]') AS INTEGER) "
    f"FROM json_each(?) WHERE true ON CONFLICT DO NOTHING RETURNING {_KEYS}"
)


def insert_distinct(connection: Connection, distinct: pl.DataFrame) -> pl.DataFrame:
    """Insert values; per key (partition, meter, window, account, dimensions) how many `new_values` there were."""
    counts: Counter[tuple[int, int, int, str, str]] = Counter()
    for chunk in distinct.iter_slices(CHUNK_ROWS):
        if connection.dialect.name == "postgresql":
            arrays = {name: bind_array(chunk[name]) for name in _COLUMNS}
            for *key, new in connection.execute(text(_INSERT_POSTGRESQL), arrays):
                counts[tuple(key)] += new
        else:
            rows = json.dumps(
                chunk.select(*KEY_COLUMNS, pl.col("value_hash").cast(pl.String)).rows(), ensure_ascii=False
            )
            counts.update(tuple(row) for row in connection.exec_driver_sql(_INSERT_SQLITE, (rows,)))
    return pl.DataFrame(
        [(*key, new) for key, new in counts.items()],
        schema={
            **{name: distinct.schema[name] for name in KEY_COLUMNS},
            "new_values": pl.Int64,
        },
        orient="row",
    )
