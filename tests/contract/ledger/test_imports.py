"""An unfinished import is remembered, replaced by its next page, and forgotten at its end."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Engine

from tollgate.ledger.imports import ImportRow, ImportShelf
from tollgate.ledger.migrations import migrate


def test_a_bookmark_is_kept_and_cleared(empty_ledger: Engine) -> None:
    """One row a name; others are left alone."""
    migrate(empty_ledger)
    shelf, other = ImportShelf(empty_ledger, "customers"), ImportShelf(empty_ledger, "other")
    assert shelf.load() is None
    row = ImportRow("customers:cus_1", 100, 0, 1)
    shelf.keep(row)
    other.keep(replace(row, bookmark="x:"))
    shelf.keep(replace(row, bookmark="subscriptions:", customers=150, updated_ms=2))
    assert shelf.load() == ImportRow("subscriptions:", 150, 0, 2)
    shelf.clear()
    assert shelf.load() is None
    assert other.load() == replace(row, bookmark="x:")
