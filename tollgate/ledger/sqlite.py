"""SQLite made fit to keep money: pragmas, and exact arithmetic on quantities kept as text.

Owns what is set on each SQLite connection. It refuses to know tables and PostgreSQL.
"""

from __future__ import annotations

import sqlite3
from decimal import Decimal
from typing import Any

from tollgate.ledger.types import EXACT, check_quantity, format_quantity

SYNCHRONOUS_FULL = 2
"""The WAL is flushed to disk at each commit: a power cut loses nothing that was committed."""


def prepare_connection(connection: sqlite3.Connection, busy_timeout_ms: int) -> None:
    """Set durability, lock waiting and the quantity functions on a fresh connection. Raises sqlite3.Error."""
    # The driver must not open transactions by itself: it would begin them deferred, and two deferred writers
    # deadlock where two immediate ones queue.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {int(busy_timeout_ms)}")
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS_FULL}")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.create_function("quantity_add", 2, _add, deterministic=True)
    connection.create_function("quantity_max", 2, _max, deterministic=True)
    connection.create_function("quantity_min", 2, _min, deterministic=True)
    connection.create_aggregate("quantity_sum", 1, _Sum)
    connection.create_aggregate("quantity_largest", 1, _Largest)
    connection.create_aggregate("quantity_smallest", 1, _Smallest)


def _add(left: str | int | None, right: str | int | None) -> str | None:
    if left is None or right is None:
        return None
    return format_quantity(check_quantity(EXACT.add(Decimal(left), Decimal(right))))


def _max(left: str | int | None, right: str | int | None) -> str | None:
    if left is None or right is None:
        return None
    return format_quantity(max(Decimal(left), Decimal(right)))


def _min(left: str | int | None, right: str | int | None) -> str | None:
    if left is None or right is None:
        return None
    return format_quantity(min(Decimal(left), Decimal(right)))


class _Aggregate:
    """SQL's rule for aggregates: NULLs are passed over, and nothing at all is NULL."""

    def __init__(self) -> None:
        self._value: Decimal | None = None

    # The standard library's protocol says int for both; SQLite hands over and takes whatever the column holds.
    def step(self, value: Any, /) -> None:
        if value is not None:
            quantity = Decimal(value)
            self._value = quantity if self._value is None else self.merge(self._value, quantity)

    def merge(self, held: Decimal, quantity: Decimal) -> Decimal:
        raise NotImplementedError

    def finalize(self) -> Any:
        return None if self._value is None else format_quantity(self._value)


class _Sum(_Aggregate):
    def merge(self, held: Decimal, quantity: Decimal) -> Decimal:
        return EXACT.add(held, quantity)


class _Largest(_Aggregate):
    def merge(self, held: Decimal, quantity: Decimal) -> Decimal:
        return max(held, quantity)


class _Smallest(_Aggregate):
    def merge(self, held: Decimal, quantity: Decimal) -> Decimal:
        return min(held, quantity)
