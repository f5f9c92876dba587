"""The records of the log, as the fold takes them: events, ticks, amendments, and what nobody can name.

Owns their fields. It refuses to know Kafka's headers (`tollgate.contracts`) and how a value is decoded (`decode`).
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True, slots=True)
class EventsRecord:
    """One record of contract `events/1`; everything but `value` comes from its headers."""

    partition: int
    offset: int
    rows: int
    instance: str
    source: str
    ingest_ms: int
    accept_late: bool
    value: bytes
    misplaced: str = ""
    """Why its events may be in the wrong partition, in words; '' for nearly all."""


@dataclass(frozen=True, slots=True)
class TickRecord:
    """One instance's own count on one partition."""

    partition: int
    offset: int
    instance: str
    wall_ms: int
    rows_acknowledged: int


@dataclass(frozen=True, slots=True)
class UnknownRecord:
    """A record whose headers are not those of any contract we know. `rows` is what they claim, at least 1."""

    partition: int
    offset: int
    rows: int
    value: bytes
    detail: str


@dataclass(frozen=True, slots=True)
class AmendmentRecord:
    """One correction of contract `amendments/1`: `quantity`, signed, for an account in a window of a meter version."""

    partition: int
    offset: int
    id_hash: int
    meter_id: int
    account: str
    window_start_ms: int
    time_ms: int
    quantity: Decimal
    dimensions: str
    written_ms: int
    value: bytes


Record = EventsRecord | TickRecord | AmendmentRecord | UnknownRecord
