"""Usage deltas: what a fold adds to the ledger's usage rows, as a frame.

Owns the columns and how two deltas of one key become one. It refuses to know how a delta was counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from tollgate.metering.metric import COMBINE_LATEST, COMBINE_MAX, COMBINE_MIN
from tollgate.metering.operand import QUANTITY

USAGE_SCHEMA: dict[str, pl.DataType] = {
    "partition": pl.Int32(),
    "meter_id": pl.Int64(),
    "window_start_ms": pl.Int64(),
    "account": pl.String(),
    "dimensions": pl.String(),
    "combine": pl.Int8(),
    "quantity": QUANTITY,
    "events": pl.Int64(),
    "unvalued": pl.Int64(),
    "latest_event_ms": pl.Int64(),
    "order_ms": pl.Int64(),
    "order_offset": pl.Int64(),
}
"""`events` added to the quantity, `unvalued` matched without adding to it: their sum is how many events matched.

Where `events` is 0 the quantity is 0 and says nothing: a maximum, minimum or latest value must ignore it.
`order_ms` and `order_offset` order `latest` values; NEVER where there is none.
"""

DISTINCT_SCHEMA: dict[str, pl.DataType] = {
    "partition": pl.Int32(),
    "meter_id": pl.Int64(),
    "window_start_ms": pl.Int64(),
    "account": pl.String(),
    "dimensions": pl.String(),
    "value_hash": pl.Int64(),
}

USAGE_KEY = ["partition", "meter_id", "window_start_ms", "account", "dimensions"]

NEVER = -(2**63)
"""Before every event: the order of a `latest` quantity that has no value yet."""


def merge_usage(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Usage deltas as one, one row per key, sorted by it. Associative and commutative."""
    if not frames:
        return pl.DataFrame(schema=USAGE_SCHEMA)
    rows = pl.concat(frames)
    if len(frames) == 1:
        return rows.sort(USAGE_KEY)
    combine, quantity = pl.col("combine").first(), pl.col("quantity")
    valued = quantity.filter(pl.col("events") > 0)
    last = pl.struct("order_ms", "order_offset")
    latest = quantity.sort_by("order_ms", "order_offset").last()
    order = last.sort_by("order_ms", "order_offset").last()
    return (
        rows.lazy()
        .group_by(USAGE_KEY)
        .agg(
            combine.alias("combine"),
            pl.when(combine == COMBINE_MAX)
            .then(valued.max())
            .when(combine == COMBINE_MIN)
            .then(valued.min())
            .when(combine == COMBINE_LATEST)
            .then(latest)
            .otherwise(quantity.sum())
            .fill_null(pl.lit(0, QUANTITY))
            .cast(QUANTITY)
            .alias("quantity"),
            pl.col("events").sum(),
            pl.col("unvalued").sum(),
            pl.col("latest_event_ms").max(),
            order.struct.field("order_ms").alias("order_ms"),
            order.struct.field("order_offset").alias("order_offset"),
        )
        .select(list(USAGE_SCHEMA))
        .sort(USAGE_KEY)
        .collect()
    )


def merge_distinct(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Distinct values as one frame, each once, sorted."""
    if not frames:
        return pl.DataFrame(schema=DISTINCT_SCHEMA)
    return pl.concat(frames).unique().sort(list(DISTINCT_SCHEMA))
