"""How far an import has got, so that one that was interrupted goes on by itself.

Owns the rows of `imports`. It refuses to know what is imported and what a bookmark says.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, select

from tollgate.ledger.engine import Engine, ledger_transaction, read_snapshot
from tollgate.ledger.insertion import put
from tollgate.ledger.tables import imports


@dataclass(frozen=True, slots=True)
class ImportRow:
    """An import that has begun and not ended."""

    bookmark: str
    """Where it goes on: everything before is in the ledger."""
    customers: int
    subscriptions: int
    updated_ms: int


class ImportShelf:
    """The one unfinished import of a name. Every method is one transaction; raises a LedgerError."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._name = name

    def load(self) -> ImportRow | None:
        """The import that was interrupted; None when there is none."""
        with read_snapshot(self._engine) as connection:
            row = connection.execute(select(imports).where(imports.c.name == self._name)).one_or_none()
        if row is None:
            return None
        return ImportRow(row.bookmark, row.customers, row.subscriptions, row.updated_ms)

    def keep(self, row: ImportRow) -> None:
        """Remember how far it is."""
        with ledger_transaction(self._engine) as connection:
            put(
                connection,
                imports,
                [
                    {
                        "name": self._name,
                        "bookmark": row.bookmark,
                        "customers": row.customers,
                        "subscriptions": row.subscriptions,
                        "updated_ms": row.updated_ms,
                    }
                ],
            )

    def clear(self) -> None:
        """It has ended: the next one begins at the beginning."""
        with ledger_transaction(self._engine) as connection:
            connection.execute(delete(imports).where(imports.c.name == self._name))
