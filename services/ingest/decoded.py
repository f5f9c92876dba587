"""What a gateway's decoder hands on: columns of events, and the entries that are none.

Owns the shapes between a format and the log, and the making of a letter's reason. It refuses to know any format,
HTTP and Kafka.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from tollgate.contracts.events import PROPERTY_PREFIX, SCHEMA
from tollgate.metering.errors import DeadReason

TEXT_CHARACTERS_MAX = 16_384
"""The longest text kept of one field. Twice what nginx lets a request line or a header be, so that no caller of a
gateway can reach it; with every column at this length one event still fits a record."""

NAME_CHARACTERS_MAX = 256
"""The longest name of who pays (user, company, subscription). Accounts are index keys of the ledger, and PostgreSQL
refuses a key past 2,704 bytes; Stripe's ids and e-mail addresses fit in this many characters."""

Columns = dict[str, list[Any]]
"""Column name -> one value a row, for every column of the schema."""

_TEXT_COLUMNS = tuple(
    name for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True) if pa.types.is_string(kind)
)


class BrokenBody(Exception):
    """The body as a whole is not JSON: nothing in it can be told apart. `position` is a byte offset."""

    def __init__(self, position: int, message: str) -> None:
        super().__init__(f"{message} at byte {position}")
        self.position = position
        self.message = message


@dataclass(frozen=True, slots=True)
class Rejected:
    """One entry that is no countable event: its own bytes and why. `payload` may still hold secrets."""

    reason: DeadReason
    detail: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Fault:
    """Row `row` decoded, but cannot be counted."""

    row: int
    reason: DeadReason
    detail: str


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """The events of one body as columns, and what became of its other entries."""

    rows: int
    columns: Columns
    rejected: Sequence[Rejected] = field(default_factory=tuple)


def drop_faults(
    columns: Columns, rows: int, faults: Sequence[Fault], payload_of: Callable[[int], bytes]
) -> tuple[int, Columns, list[Rejected]]:
    """Take the rows with a fault out of `columns`; the first fault of a row is its reason."""
    first: dict[int, Fault] = {}
    for fault in faults:
        first.setdefault(fault.row, fault)
    rejected = [Rejected(fault.reason, fault.detail, payload_of(row)) for row, fault in sorted(first.items())]
    kept = [row for row in range(rows) if row not in first]
    return len(kept), {name: [column[row] for row in kept] for name, column in columns.items()}, rejected


def find_nul(columns: Columns, rows: int) -> list[Fault]:
    """A fault for every row that holds a NUL in a text it keeps: PostgreSQL cannot store one."""
    names = [*_TEXT_COLUMNS, *(name for name in columns if name.startswith(PROPERTY_PREFIX))]
    return [
        Fault(row, DeadReason.BAD_TYPE, f"NUL in {name}")
        for name in names
        for row in range(rows)
        if isinstance(text := columns[name][row], str) and "\0" in text
    ]


def holds_nul(batch: pa.RecordBatch) -> bool:
    """Whether any text of `batch` may hold a NUL. Looks through each column's bytes at once, which costs nothing
    beside `find_nul`."""
    return any(
        b"\0" in data.to_pybytes()
        for column in batch.columns
        if pa.types.is_string(column.type) and (data := column.buffers()[2]) is not None
    )
