"""An explanation: why a meter counts one event, or does not.

Owns the taking apart of a filter into its AND-ed clauses. It counts the event with the same query as the meter does,
on one row, so that an explanation cannot disagree with a count. It refuses to know where the event is from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import polars as pl
import pyarrow as pa

from tollgate.metering.compiled import CompiledMeters
from tollgate.metering.counting import OFFSET, PARTITION
from tollgate.metering.definition import Meter, MeterSet, MeterVersion
from tollgate.metering.errors import DeadReason, InvalidEvent
from tollgate.metering.event import PROPERTY_PREFIX, SCHEMA
from tollgate.metering.filter import Filter
from tollgate.metering.metric import MetricKind
from tollgate.metering.operand import OPERAND_BOUND
from tollgate.metering.window import assign_window

_ONE = MetricKind.COUNT


@dataclass(frozen=True, slots=True)
class Clause:
    """One AND-ed condition, what the event has in its columns, and whether it held.

    `held` is None when the event lacks a column that decides it. A condition that is NULL did not hold.
    """

    text: str
    values: dict[str, object]
    held: bool | None

    def __str__(self) -> str:
        mark = {True: "yes", False: "no ", None: "?  "}[self.held]
        seen = ", ".join(f"{name} = {_show(value)}" for name, value in sorted(self.values.items()))
        return f"{mark} {self.text}   ({seen})" if seen else f"{mark} {self.text}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """What one meter makes of one event."""

    meter: str
    clauses: tuple[Clause, ...]
    matched: bool
    """It is counted in `window_start_ms`, with a value or as unvalued."""
    unvalued: bool
    """It matches, or may, but adds nothing: its value is missing, no number, negative or out of bounds."""
    value: Decimal | None
    """What it adds; None when it adds nothing, and for `unique`, which adds `unique_value`."""
    unique_value: str | None
    window_start_ms: int
    window_end_ms: int
    dimensions: str

    def __str__(self) -> str:
        if not self.matched:
            verdict = "not counted"
        elif self.unvalued:
            verdict = "unvalued: it matches, but adds nothing"
        elif self.unique_value is not None:
            verdict = f"counted once: {self.unique_value!r}"
        else:
            verdict = f"counted: {self.value:f}"
        lines = [f"{self.meter}: {verdict}", *(f"  {clause}" for clause in self.clauses)]
        if self.matched:
            lines.append(f"  window [{self.window_start_ms}, {self.window_end_ms}) {self.dimensions}".rstrip())
        return "\n".join(lines)
