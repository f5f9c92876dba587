"""An explanation: why a meter counts one event, or does not.

Owns the taking apart of a filter into its AND-ed clauses. It counts the event with the query the meter counts with, on
one row, so that an explanation cannot disagree with a count. It refuses to know where the event is from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

import polars as pl
import pyarrow as pa

from tollgate.metering.compiled import compile_meter
from tollgate.metering.counting import OFFSET, PARTITION, Plan
from tollgate.metering.definition import Meter, MeterVersion
from tollgate.metering.errors import DeadReason, InvalidEvent
from tollgate.metering.event import PROPERTY_PREFIX, SCHEMA
from tollgate.metering.expression import Expression
from tollgate.metering.filter import Filter
from tollgate.metering.metric import MetricKind
from tollgate.metering.operand import OPERAND_BOUND
from tollgate.metering.window import assign_window

NOT_CAPTURED = "not captured"
"""Shown for a property the event's record does not carry."""

_BEGINNING_MS = -(2**63)
"""A meter explained is taken to be in force at any time."""


@dataclass(frozen=True, slots=True)
class Clause:
    """One AND-ed condition, what the event has in its columns, and whether it held.

    `held` is None when a column decides that the event's record does not carry. A condition that is NULL did not hold.
    """

    text: str
    values: dict[str, object]
    held: bool | None

    def __str__(self) -> str:
        mark = {True: "yes", False: "no ", None: "?  "}[self.held]
        seen = ", ".join(f"{name}: {_show(value)}" for name, value in sorted(self.values.items()))
        return f"{mark} {self.text}" + (f"   ({seen})" if seen else "")


@dataclass(frozen=True, slots=True)
class Explanation:
    """What one meter makes of one event."""

    meter: str
    clauses: tuple[Clause, ...]
    matched: bool
    """It touches a usage row: with a value, or as unvalued."""
    unvalued: bool
    """It matches, or might have, and adds nothing: no value, or one that is no number, negative or out of bounds."""
    value: Decimal | None
    """What it adds, one for a new value of `unique`; None when nothing."""
    inputs: dict[str, object]
    """What the metric's expression and the dimensions read."""
    window_start_ms: int
    window_end_ms: int
    dimensions: str

    def __str__(self) -> str:
        verdict = "not counted"
        if self.matched:
            verdict = "matches, but adds nothing (unvalued)" if self.value is None else f"adds {self.value:f}"
        lines = [f"{self.meter}: {verdict}", *(f"  {clause}" for clause in self.clauses)]
        lines += [f"  reads {name}: {_show(value)}" for name, value in sorted(self.inputs.items())]
        if self.matched:
            lines.append(
                f"  window [{self.window_start_ms}, {self.window_end_ms}) {self.dimensions}".rstrip()
            )
        return "\n".join(lines)


def explain(meter: Meter, event: Mapping[str, object]) -> Explanation:
    """Why `meter` counts `event`, or does not, by the query it counts with.

    `event` has the columns of contract `events/1`, missing ones null; a property is a key `properties.<name>`, or one
    of a mapping under `properties`, and one that is missing was not captured.
    Raises InvalidMeter, and InvalidEvent when a column has the wrong type or the time is missing.
    """
    compiled = compile_meter(MeterVersion(0, meter, _BEGINNING_MS))
    columns = compiled.columns | {"account", "time_ms"}
    flat = _flatten(event)
    absent = frozenset(name for name in columns if name.startswith(PROPERTY_PREFIX) and name not in flat)
    frame = _one_row(flat, sorted(columns - absent))
    counted = Plan([compiled], absent, OPERAND_BOUND).count(frame)
    usage = counted.usage.to_dicts()
    matched = bool(counted.matched[0])
    value = None
    if matched and usage[0]["events"]:
        value = Decimal(1) if compiled.kind is MetricKind.UNIQUE else usage[0]["quantity"]
    read = compiled.value_columns | frozenset(compiled.group_by) | compiled.weight_columns
    time_ms = frame["time_ms"][0]
    start_ms = assign_window(time_ms, meter.window.size_ms)
    condition = compiled.filter.condition
    return Explanation(
        meter=meter.name,
        clauses=tuple(_clause(clause, frame, flat, absent) for clause in condition.clauses)
        if condition
        else (),
        matched=matched,
        unvalued=matched and value is None,
        value=value,
        inputs=_values(read, flat, absent),
        window_start_ms=start_ms,
        window_end_ms=start_ms + meter.window.size_ms,
        dimensions=usage[0]["dimensions"] if matched else "",
    )


def _clause(
    clause: Expression, frame: pl.DataFrame, flat: Mapping[str, object], absent: frozenset[str]
) -> Clause:
    verdict = Filter(clause).verdict(absent)
    operands = [operand.read(OPERAND_BOUND) for operand in sorted(verdict.operands)]
    possibly = verdict.surely if verdict.possibly is None else verdict.possibly
    row = frame.with_columns(operands).select(surely=verdict.surely, possibly=possibly)
    surely, held = row["surely"][0], None if row["possibly"][0] else False
    return Clause(clause.text, _values(clause.columns, flat, absent), True if surely else held)


def _values(columns: frozenset[str], flat: Mapping[str, object], absent: frozenset[str]) -> dict[str, object]:
    return {name: NOT_CAPTURED if name in absent else flat.get(name) for name in columns}


def _show(value: object) -> str:
    if value == NOT_CAPTURED:
        return NOT_CAPTURED
    return "NULL" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _flatten(event: Mapping[str, object]) -> dict[str, object]:
    """The event with its properties as columns."""
    flat = {name: value for name, value in event.items() if name != "properties"}
    properties = event.get("properties")
    if isinstance(properties, Mapping):
        flat |= {f"{PROPERTY_PREFIX}{name}": value for name, value in properties.items()}
    flat.setdefault("account", "")
    flat.setdefault("weight", 1)
    return flat


def _one_row(flat: Mapping[str, object], columns: list[str]) -> pl.DataFrame:
    arrays = {}
    for name in columns:
        column = pa.field(name, pa.string()) if name.startswith(PROPERTY_PREFIX) else SCHEMA.field(name)
        try:
            arrays[name] = pa.array([flat.get(name)], column.type)
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            raise InvalidEvent(DeadReason.BAD_TYPE, f"{name}: {error}") from error
    if arrays["time_ms"].null_count:
        raise InvalidEvent(DeadReason.NO_TIME, "time_ms is missing")
    arrays |= {PARTITION: pa.array([0], pa.int32()), OFFSET: pa.array([0], pa.int64())}
    frame = pl.from_arrow(pa.table(arrays))
    assert isinstance(frame, pl.DataFrame)
    return frame
