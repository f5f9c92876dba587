"""Compiled meters: a meter set, checked and ready to count.

Owns the checking of whole meters, by rule and by trial. It refuses to know how a frame is counted (`counting`) and
where its events come from (`fold`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import pyarrow as pa

from tollgate.metering.counting import OFFSET, PARTITION, CompiledMeter, Counted, Plan
from tollgate.metering.definition import Meter, MeterSet, MeterVersion
from tollgate.metering.errors import InvalidMeter
from tollgate.metering.event import PROPERTY_PREFIX, SCHEMA
from tollgate.metering.expression import Expression, check_column, check_expression
from tollgate.metering.filter import check_filter
from tollgate.metering.metric import MetricKind
from tollgate.metering.operand import OPERAND_BOUND
from tollgate.metering.syntax import Kind
from tollgate.metering.usage import merge_distinct, merge_usage

_ALWAYS_READ = frozenset({"account", "time_ms"})


@dataclass(frozen=True, slots=True)
class CompiledMeters:
    """A meter set, ready to count."""

    version: int
    meters: tuple[CompiledMeter, ...]
    operand_bound: int
    columns: frozenset[str]
    """The event columns the meters read."""
    _plans: dict[frozenset[str], Plan] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def compile(cls, meter_set: MeterSet, operand_bound: int = OPERAND_BOUND) -> CompiledMeters:
        """Check and compile every meter.

        `operand_bound`: the largest value an event may have (10^12 at most; ValueError past it).
        Raises InvalidMeter naming all problems.
        """
        if not 0 < operand_bound <= OPERAND_BOUND:
            raise ValueError(f"operand_bound must be in 1..{OPERAND_BOUND}, not {operand_bound}")
        meters: list[CompiledMeter] = []
        problems: list[str] = []
        for version in meter_set.meters:
            try:
                meters.append(compile_meter(version))
            except InvalidMeter as error:
                problems += [f"meter {version.meter.name!r}: {problem}" for problem in error.problems]
        if problems:
            raise InvalidMeter(problems)
        columns = _ALWAYS_READ.union(*(meter.columns for meter in meters))
        return cls(meter_set.version, tuple(meters), operand_bound, columns)

    def count(self, frame: pl.DataFrame, absent: Collection[str] = ()) -> Counted:
        """Count a frame: the columns the meters read plus PARTITION and OFFSET, its rows in the log's order.

        `absent` are properties its records do not carry. Raises polars' errors when an expression raises on an event.
        """
        if not self.meters:
            return Counted(merge_usage([]), merge_distinct([]), np.zeros(frame.height, np.bool_))
        relevant = frozenset(absent) & self.columns
        plan = self._plans.get(relevant)
        if plan is None:
            plan = self._plans[relevant] = Plan(self.meters, relevant, self.operand_bound)
        return plan.count(frame)


def compile_meter(version: MeterVersion, properties: Collection[str] | None = None) -> CompiledMeter:
    """Check one meter by rule, then by running it on no event and on a hostile one.

    `properties` are the captured property names, None for any. Raises InvalidMeter with every problem.
    """
    meter = version.meter
    problems: list[str] = []
    filter_ = value = None
    group_by: list[str] = []
    try:
        filter_ = check_filter(meter.where, properties)
    except InvalidMeter as error:
        problems += [f"where: {problem}" for problem in error.problems]
    try:
        value = _check_value(meter, properties)
    except InvalidMeter as error:
        problems += [f"{meter.metric.kind}: {problem}" for problem in error.problems]
    for column in meter.group_by:
        try:
            group_by.append(check_column(column, properties))
        except InvalidMeter as error:
            problems += [f"group_by: {problem}" for problem in error.problems]
    if len(set(group_by)) != len(group_by):
        problems.append("group_by: a column is named twice")
    if problems or filter_ is None:
        raise InvalidMeter(problems)
    compiled = CompiledMeter(version, filter_, value, tuple(sorted(group_by)))
    _try_out(compiled)
    return compiled


def _check_value(meter: Meter, properties: Collection[str] | None) -> Expression | None:
    text = meter.metric.expression
    if text is None:
        return None
    value = check_expression(text, properties)
    if meter.metric.kind is not MetricKind.UNIQUE and value.kind not in (Kind.NUMBER, Kind.PROPERTY):
        raise InvalidMeter([f"{text} is {value.kind.value}, not a number"])
    return value


def _try_out(meter: CompiledMeter) -> None:
    """Run a meter on no event, then on hostile ones. Raises InvalidMeter when it raises."""
    plan = Plan([meter], frozenset(), OPERAND_BOUND)
    hostile = _hostile_events(meter.columns | _ALWAYS_READ)
    try:
        plan.count(hostile.clear())
        for row in range(hostile.height):
            plan.count(hostile[row : row + 1])
    except pl.exceptions.PolarsError as error:
        raise InvalidMeter([f"does not run: {str(error).partition(chr(10))[0]}"]) from error


_HOSTILE_TEXTS = (None, "-" + "9" * 40 + ".e+-\x00'\"%\\\n", str(OPERAND_BOUND))
_HOSTILE_NUMBERS = (None, -(2**63), OPERAND_BOUND)
"""Of each column: nothing, the worst, and the largest that is still computed with."""


def _hostile_events(columns: Collection[str]) -> pl.DataFrame:
    rows = len(_HOSTILE_TEXTS)
    arrays = {name: _hostile_column(name) for name in sorted(columns)}
    arrays |= {PARTITION: pa.array([0] * rows, pa.int32()), OFFSET: pa.array(range(rows), pa.int64())}
    frame = pl.from_arrow(pa.table(arrays))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _hostile_column(name: str) -> pa.Array:
    column = pa.field(name, pa.string()) if name.startswith(PROPERTY_PREFIX) else SCHEMA.field(name)
    if pa.types.is_integer(column.type):
        unsigned, bits = pa.types.is_unsigned_integer(column.type), column.type.bit_width
        least, most = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        values = [None if number is None else min(max(number, least), most) for number in _HOSTILE_NUMBERS]
    elif pa.types.is_boolean(column.type):
        values = [None, True, False]
    else:
        values = list(_HOSTILE_TEXTS)
    return pa.array(values, column.type)
