"""What has been counted, whole and of one moment: every partition's progress and every usage row.

Owns that one reading, which a recount of the log is held against while the meter may be running. It refuses to know
how anything is counted again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

from sqlalchemy import Engine, select

from tollgate.ledger.engine import read_snapshot
from tollgate.ledger.retired import RetiredUsage, read_retired
from tollgate.ledger.tables import progress, usage

OUTCOME_NAMES = ("received", "counted", "unmatched", "duplicate", "weak_duplicate", "late", "dead")

UsageKey = tuple[int, int, int, str, str]
"""partition, meter id, window start (ms), account, dimensions."""

_ROWS_A_FETCH = 5_000


@dataclass(frozen=True, slots=True)
class CountedUsage:
    """One usage row's numbers."""

    quantity: Decimal
    events: int
    unvalued: int
    latest_event_ms: int
    changed_offset: int = 0
    """The next offset of the flush that last touched it."""


@dataclass(frozen=True, slots=True)
class Counted:
    """The ledger's side of a recount."""

    next_offsets: dict[int, int]
    """By partition: everything below is counted."""
    outcomes: dict[int, dict[str, int]]
    """By partition and `OUTCOME_NAMES`; as they stand, whether they add up or not."""
    usage: dict[UsageKey, CountedUsage]
    retired: dict[tuple[int, int], RetiredUsage] = field(default_factory=dict)
    """By partition and meter id: the rows that were removed for their age."""


def load_counted(engine: Engine) -> Counted:
    """All of it, of one moment. Raises LedgerNotReady, LedgerUnavailable."""
    with read_snapshot(engine) as connection:
        rows = connection.execute(select(progress).order_by(progress.c.partition)).all()
        counted = connection.execute(
            select(
                usage.c.partition,
                usage.c.meter_id,
                usage.c.window_start_ms,
                usage.c.account,
                usage.c.dimensions,
                usage.c.quantity,
                usage.c.events,
                usage.c.unvalued,
                usage.c.latest_event_ms,
                usage.c.changed_offset,
            ).execution_options(yield_per=_ROWS_A_FETCH)
        )
        return Counted(
            next_offsets={row.partition: row.next_offset for row in rows},
            outcomes={row.partition: {name: getattr(row, name) for name in OUTCOME_NAMES} for row in rows},
            usage={
                tuple(row[:5]): CountedUsage(
                    row.quantity, row.events, row.unvalued, row.latest_event_ms, row.changed_offset
                )
                for row in counted
            },
            retired=read_retired(connection),
        )
