"""What a step of maintenance is given and gives back, and the plainest of them: rows that go by themselves.

Owns those values and that one removal. It refuses to know which rows of which table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, delete, select, tuple_

from tollgate.ledger.chunks import among, key_chunks
from tollgate.ledger.retention import Retention
from tollgate.metering.outcome import TimeRules

After = Any
"""Where a step goes on, made and read by the step alone; None before the first transaction and after the last."""


@dataclass(frozen=True, slots=True)
class Work:
    """One run of maintenance."""

    retention: Retention
    now_ms: int
    batch_rows: int
    rules: TimeRules
    dry_run: bool
    """Count, and write nothing."""

    def before_ms(self, setting: str) -> int:
        """What lies before this (epoch ms) has been kept as long as `setting` says; 0 when it is kept for ever."""
        return self.retention.before_ms(setting, self.now_ms)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction did: rows removed by table, and where the step goes on."""

    rows: Mapping[str, int] = field(default_factory=dict)
    after: After = None
    retired: int = 0
    """Billing periods retired."""


def remove_rows(
    connection: Connection, work: Work, table: Table, condition: ColumnElement[bool], after: After
) -> Batch:
    """Remove up to `batch_rows` rows of `table` that meet `condition`, in the order of its key, beyond `after`."""
    key = list(table.primary_key.columns)
    wanted = select(*key).where(condition).order_by(*key).limit(work.batch_rows)
    if after is not None:
        wanted = wanted.where(key[0] > after[0] if len(key) == 1 else tuple_(*key) > tuple_(*after))
    found = [tuple(row) for row in connection.execute(wanted)]
    removed = len(found) if work.dry_run else delete_keys(connection, table, found)
    return Batch({table.name: removed}, found[-1] if len(found) == work.batch_rows else None)


def delete_keys(connection: Connection, table: Table, keys: list[tuple[Any, ...]]) -> int:
    """Delete the rows with these primary keys; how many there were."""
    columns = list(table.primary_key.columns)
    removed = 0
    for chunk in key_chunks(connection, keys):
        removed += connection.execute(delete(table).where(among(connection, columns, chunk))).rowcount
    return removed
