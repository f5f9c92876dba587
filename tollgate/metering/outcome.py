"""What became of a flush: the outcome of every event, per partition, and what the ledger must add.

Owns the shapes a fold yields. It refuses to know how they were computed and how they are stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from tollgate.metering.errors import DeadReason, InvariantViolated

Ids = npt.NDArray[np.uint64]
"""Hashed event ids."""


@dataclass(frozen=True, slots=True)
class TimeRules:
    """How old or how far ahead an event may be, judged against its record's ingest time, never a clock."""

    accept_age_ms: int = 72 * 60 * 60 * 1000
    future_ms: int = 300_000


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How many events ended how. `weak_duplicate` are those of `duplicate` whose id was weak.

    Raises InvariantViolated when made with numbers that break the law.
    """

    received: int = 0
    counted: int = 0
    """Matched by one meter or more, with a value or without."""
    unmatched: int = 0
    duplicate: int = 0
    weak_duplicate: int = 0
    late: int = 0
    dead: int = 0

    def __post_init__(self) -> None:
        ended = self.counted + self.unmatched + self.duplicate + self.late + self.dead
        if self.received != ended or self.weak_duplicate > self.duplicate:
            raise InvariantViolated(
                f"received = counted + unmatched + duplicate + late + dead does not hold: {self}"
            )

    def __add__(self, other: Outcomes) -> Outcomes:
        return Outcomes(
            received=self.received + other.received,
            counted=self.counted + other.counted,
            unmatched=self.unmatched + other.unmatched,
            duplicate=self.duplicate + other.duplicate,
            weak_duplicate=self.weak_duplicate + other.weak_duplicate,
            late=self.late + other.late,
            dead=self.dead + other.dead,
        )


@dataclass(frozen=True, slots=True)
class TickSeen:
    """The last tick of one instance in a flush."""

    wall_ms: int
    rows_acknowledged: int
    rows_received_before: int
    """Rows of this instance in this flush at offsets below the tick."""


@dataclass(frozen=True, slots=True)
class InstanceFold:
    """What one ingest instance contributed to one partition in a flush."""

    rows_received: int
    tick: TickSeen | None


@dataclass(frozen=True, slots=True)
class PartitionFold:
    """What a flush did to one partition: `[from_offset, next_offset)` is folded."""

    partition: int
    from_offset: int
    next_offset: int
    outcomes: Outcomes
    instances: dict[str, InstanceFold]
    seen_ids: dict[int, Ids]
    """Per day (epoch days), sorted and unique: ids that make a later copy a duplicate once this is committed."""
    ingest_ms_max: int
    """0 when the flush held no events record."""
    ingest_ms_min: int | None
    last_offset: int


@dataclass(frozen=True, slots=True)
class DeadEvents:
    """Events of one record that share a reason (LATE is one of them), for `gateway.dead`."""

    partition: int
    offset: int
    reason: DeadReason
    detail: str
    rows: int
    source: str
    ingest_ms: int
    account: str
    """Of the first of them, '' when unknown."""
    time_ms: int
    payload: bytes = field(repr=False)
    format: Literal["events/1", "raw"]
    """An Arrow IPC stream of exactly these events, or the value of a record nobody can decode."""


@dataclass(frozen=True, slots=True)
class Fold:
    """The result of folding one flush: everything the ledger's transaction needs."""

    partitions: dict[int, PartitionFold]
    usage: pl.DataFrame
    """One row per (partition, meter_id, window_start_ms, account, dimensions), sorted by them; see `usage`."""
    distinct: pl.DataFrame
    """Values a unique metric met, one row each, sorted."""
    dead: list[DeadEvents]
