"""One query for all meters: marks per event, one grouping per (window size, dimensions), usage rows.

Owns how a meter's filter and value become columns and aggregates. It refuses to know where events come from.

Per event and meter there are two marks: `touch` (the event matches, or might have matched had its record carried every
property) and `value` (what it adds; NULL when it adds nothing). `events` counts values; `unvalued` is the rest of what
was touched.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import numpy.typing as npt
import polars as pl
import xxhash

from tollgate.metering.definition import MeterVersion
from tollgate.metering.expression import Expression
from tollgate.metering.filter import Filter
from tollgate.metering.metric import COMBINE_LATEST, MetricKind
from tollgate.metering.operand import QUANTITY, Operand
from tollgate.metering.usage import DISTINCT_SCHEMA, NEVER, USAGE_SCHEMA, merge_distinct

PARTITION = "#partition"
OFFSET = "#offset"

_NOTHING = pl.lit(0, QUANTITY)


@dataclass(frozen=True, slots=True)
class CompiledMeter:
    """One meter version, its expressions checked."""

    version: MeterVersion
    filter: Filter
    value: Expression | None
    """None for a count."""
    group_by: tuple[str, ...]
    """Sorted: the order of the keys in the dimensions' JSON."""

    @property
    def kind(self) -> MetricKind:
        """What its metric makes of the values."""
        return self.version.meter.metric.kind

    @property
    def columns(self) -> frozenset[str]:
        """Every event column it reads."""
        return self.filter.columns | self.value_columns | self.weight_columns | frozenset(self.group_by)

    @property
    def weight_columns(self) -> frozenset[str]:
        """`weight`, when it counts that."""
        return frozenset({"weight"} if self.version.meter.metric.weighted else ())

    @property
    def value_columns(self) -> frozenset[str]:
        """The columns its value reads."""
        return self.value.columns if self.value else frozenset()

    @property
    def window_column(self) -> str:
        """The mark that holds the start of its window."""
        return f"window:{self.version.meter.window}"


@dataclass(frozen=True, slots=True)
class Counted:
    """What the meters made of one frame."""

    usage: pl.DataFrame
    distinct: pl.DataFrame
    matched: npt.NDArray[np.bool_]
    """Per row: does it touch a usage row of any meter?"""


class Plan:
    """How to count records that lack the properties `absent`."""

    def __init__(self, meters: Sequence[CompiledMeter], absent: frozenset[str], operand_bound: int) -> None:
        operands: set[Operand] = set()
        self._bound = operand_bound
        self._marks: dict[str, pl.Expr] = {
            PARTITION: pl.col(PARTITION),
            OFFSET: pl.col(OFFSET),
            "account": pl.col("account"),
            "time_ms": pl.col("time_ms"),
        }
        self._groupings: dict[tuple[str, tuple[str, ...]], list[int]] = {}
        self._touch_names: dict[tuple[str | None, int, int | None], str] = {}
        self._touch_of: list[str] = []
        self._valued: list[bool] = []
        self._meters = tuple(meters)
        for index, meter in enumerate(meters):
            self._mark(index, meter, absent, operands)
            self._groupings.setdefault((meter.window_column, meter.group_by), []).append(index)
        self._matched = pl.any_horizontal(sorted(set(self._touch_of))).alias("matched")
        self._operands = [operand.read(operand_bound) for operand in sorted(operands)]

    def count(self, frame: pl.DataFrame) -> Counted:
        """Count a frame. Raises polars' errors when an expression raises on an event."""
        marks = (
            frame.lazy()
            .with_columns(self._operands)
            .select(mark.alias(name) for name, mark in self._marks.items())
            .with_columns(self._matched)
            .collect()
        )
        usage: list[pl.LazyFrame] = []
        distinct: list[pl.DataFrame] = []
        for (window, group_by), indexes in self._groupings.items():
            keys = [PARTITION, window, "account", *(f"dimension:{name}" for name in group_by)]
            aggregates = [
                *_touch_aggregates(sorted({self._touch_of[index] for index in indexes})),
                *(aggregate for index in indexes for aggregate in self._aggregates(index)),
            ]
            groups = marks.lazy().group_by(keys).agg(aggregates).collect()
            groups = groups.with_columns(_dimensions(groups, group_by))
            usage += [self._usage_of(groups.lazy(), index) for index in indexes]
            distinct += [
                self._distinct_of(marks, index, keys, group_by)
                for index in indexes
                if self._meters[index].kind is MetricKind.UNIQUE
            ]
        return Counted(
            usage=pl.concat(usage).collect(),
            distinct=merge_distinct(distinct),
            matched=marks["matched"].to_numpy(),
        )

    def _mark(self, index: int, meter: CompiledMeter, absent: frozenset[str], operands: set[Operand]) -> None:
        """Add the marks of one meter. Meters with the same filter share its `touch`."""
        size_ms = meter.version.meter.window.size_ms
        self._marks[meter.window_column] = pl.col("time_ms") - pl.col("time_ms") % size_ms
        for name in meter.group_by:
            self._marks[f"dimension:{name}"] = pl.lit(None, pl.String) if name in absent else pl.col(name)
        verdict = meter.filter.verdict(absent)
        operands |= verdict.operands
        valid = pl.col("time_ms") >= meter.version.from_ms
        if meter.version.to_ms is not None:
            valid &= pl.col("time_ms") < meter.version.to_ms
        surely = verdict.surely & valid
        touch = surely if verdict.possibly is None else verdict.possibly & valid
        key = (meter.version.meter.where, meter.version.from_ms, meter.version.to_ms)
        name = self._touch_names.setdefault(key, f"touch:{index}")
        self._marks.setdefault(name, touch)
        self._touch_of.append(name)
        unreadable = bool(absent & (meter.value_columns | frozenset(meter.group_by)))
        counts_touches = meter.kind is MetricKind.COUNT and not meter.version.meter.metric.weighted
        # A plain count over a filter that is always decided needs no value: each touch is one.
        self._valued.append(unreadable or verdict.possibly is not None or not counts_touches)
        if self._valued[index]:
            self._marks[f"value:{index}"] = (
                pl.lit(None, QUANTITY) if unreadable else self._value(meter, surely, operands)
            )

    def _value(self, meter: CompiledMeter, matched: pl.Expr, operands: set[Operand]) -> pl.Expr:
        if meter.kind is MetricKind.UNIQUE:
            assert meter.value is not None
            written = meter.value.value_sql()
            operands |= written.operands
            return pl.when(matched).then(pl.sql_expr(written.sql))
        if meter.value is not None:
            written = meter.value.number_sql()
            operands |= written.operands
            value = pl.sql_expr(written.sql)
        elif meter.version.meter.metric.weighted:
            value = pl.col("weight").cast(QUANTITY)
        else:
            return pl.when(matched).then(pl.lit(True))
        zero, bound = pl.lit(Decimal(0), QUANTITY), pl.lit(Decimal(self._bound), QUANTITY)
        return pl.when(matched & value.is_between(zero, bound)).then(value)

    def _aggregates(self, index: int) -> list[pl.Expr]:
        kind = self._meters[index].kind
        value, time_ms = pl.col(f"value:{index}"), pl.col("time_ms")
        found = []
        if self._valued[index]:
            found.append(value.count().cast(pl.Int64).alias(f"events:{index}"))
        if self._meters[index].value is not None or self._meters[index].version.meter.metric.weighted:
            quantity = {
                MetricKind.COUNT: value.sum,
                MetricKind.SUM: value.sum,
                MetricKind.MAX: value.max,
                MetricKind.MIN: value.min,
            }.get(kind)
            if quantity is not None:
                found.append(quantity().alias(f"quantity:{index}"))
        if kind is MetricKind.LATEST:
            held_ms = pl.when(value.is_not_null()).then(time_ms)
            # Rows of a group keep the log's order, so the last of those with the greatest time is the latest.
            is_last = held_ms == held_ms.max()
            found += [
                value.filter(is_last).last().alias(f"quantity:{index}"),
                held_ms.max().alias(f"order_ms:{index}"),
                pl.col(OFFSET).filter(is_last).last().alias(f"order_offset:{index}"),
            ]
        return found

    def _usage_of(self, groups: pl.LazyFrame, index: int) -> pl.LazyFrame:
        meter = self._meters[index]
        touched = pl.col(f"{self._touch_of[index]}:count")
        events = pl.col(f"events:{index}") if self._valued[index] else touched
        if meter.kind is MetricKind.UNIQUE:
            quantity = _NOTHING
        elif meter.kind is MetricKind.COUNT and not meter.version.meter.metric.weighted:
            quantity = events.cast(QUANTITY)
        else:
            quantity = pl.col(f"quantity:{index}").cast(QUANTITY).fill_null(_NOTHING)
        ordered = meter.kind.combine == COMBINE_LATEST
        columns = {
            "partition": pl.col(PARTITION),
            "meter_id": pl.lit(meter.version.meter_id),
            "window_start_ms": pl.col(meter.window_column),
            "account": pl.col("account"),
            "dimensions": pl.col("dimensions"),
            "combine": pl.lit(meter.kind.combine),
            "quantity": quantity,
            "events": events,
            "unvalued": touched - events,
            "latest_event_ms": pl.col(f"{self._touch_of[index]}:latest"),
            "order_ms": pl.col(f"order_ms:{index}").fill_null(NEVER) if ordered else pl.lit(NEVER),
            "order_offset": pl.col(f"order_offset:{index}").fill_null(NEVER) if ordered else pl.lit(NEVER),
        }
        return groups.filter(touched > 0).select(
            column.cast(USAGE_SCHEMA[name]).alias(name) for name, column in columns.items()
        )

    def _distinct_of(
        self, marks: pl.DataFrame, index: int, keys: list[str], group_by: tuple[str, ...]
    ) -> pl.DataFrame:
        meter = self._meters[index]
        value = f"value:{index}"
        found = marks.lazy().filter(pl.col(value).is_not_null()).select([*keys, value]).unique().collect()
        return found.with_columns(_dimensions(found, group_by), _hashes(found[value])).select(
            column.cast(DISTINCT_SCHEMA[name]).alias(name)
            for name, column in {
                "partition": pl.col(PARTITION),
                "meter_id": pl.lit(meter.version.meter_id),
                "window_start_ms": pl.col(meter.window_column),
                "account": pl.col("account"),
                "dimensions": pl.col("dimensions"),
                "value_hash": pl.col("value_hash"),
            }.items()
        )


def _touch_aggregates(touches: Sequence[str]) -> list[pl.Expr]:
    """How many events of a group each filter let through, and the time of the latest."""
    return [
        aggregate
        for touch in touches
        for aggregate in (
            pl.col(touch).sum().cast(pl.Int64).alias(f"{touch}:count"),
            pl.when(touch).then("time_ms").max().alias(f"{touch}:latest"),
        )
    ]


DIMENSIONS_BYTES_MAX = 1_200
"""Dimensions are part of an index key, which PostgreSQL refuses past 2,704 bytes: a caller who sends one long value
must not stop the partition."""

_SHORTENED_CHARACTERS = 24


def write_dimensions(names: Collection[str], values: Sequence[object]) -> str:
    """The canonical JSON of one key's dimensions, '' without any.

    Past DIMENSIONS_BYTES_MAX each long text is cut to 24 characters, an ellipsis and the hash of the whole: nothing is
    lost to the count, and different texts stay different.
    """
    if not names:
        return ""
    written = _as_json(names, values)
    if len(written.encode("utf-8", "surrogatepass")) > DIMENSIONS_BYTES_MAX:
        written = _as_json(names, [_shorten(value) for value in values])
    return written


def _as_json(names: Collection[str], values: Sequence[object]) -> str:
    return json.dumps(dict(zip(names, values, strict=True)), ensure_ascii=False, separators=(",", ":"))


def _shorten(value: object) -> object:
    if not isinstance(value, str) or len(value) <= _SHORTENED_CHARACTERS:
        return value
    digest = xxhash.xxh3_64_hexdigest(value.encode("utf-8", "surrogatepass"))
    return f"{value[:_SHORTENED_CHARACTERS]}…{digest}"


def hash_value(text: str) -> int:
    """The signed 64-bit hash by which a unique metric remembers a value."""
    unsigned = xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))
    return unsigned - (1 << 64) if unsigned >> 63 else unsigned


def _dimensions(groups: pl.DataFrame, group_by: tuple[str, ...]) -> pl.Series:
    """The dimensions of each group. One Python step per group, not per event."""
    if not group_by:
        return pl.repeat("", groups.height, dtype=pl.String, eager=True).alias("dimensions")
    rows = groups.select(f"dimension:{name}" for name in group_by).iter_rows()
    return pl.Series("dimensions", [write_dimensions(group_by, row) for row in rows], dtype=pl.String)


def _hashes(values: pl.Series) -> pl.Series:
    """The hash of each value. Polars' own hash changes between versions, so each different text is hashed in Python."""
    texts = values.cast(pl.String)
    different = texts.unique()
    hashes = pl.Series([hash_value(text) for text in different], dtype=pl.Int64)
    return texts.replace_strict(different, hashes, return_dtype=pl.Int64).alias("value_hash")
