"""Long lists of keys in statements a database takes.

Owns how many keys go in one IN list. It refuses to know any table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from sqlalchemy import tuple_

from tollgate.ledger.plan_rows import (
    Slot,
)

_T = TypeVar("_T")

CHUNK = 400
"""Keys in one IN list: three parameters each stay far below SQLite's limit of 32,766."""


def chunks(values: Iterable[_T]) -> Iterable[list[_T]]:
    ordered = list(values)
    for start in range(0, len(ordered), CHUNK):
        yield ordered[start : start + CHUNK]


def is_slot(table: Any, slots: Sequence[Slot]) -> Any:
    place = tuple_(table.c.meter_id, table.c.window_start_ms, table.c.account)
    return place.in_([(slot.meter_id, slot.window_start_ms, slot.account) for slot in slots])
