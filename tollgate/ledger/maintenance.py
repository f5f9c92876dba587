"""Maintenance: what has been kept long enough leaves the ledger, in small transactions, each by the role that owns it.

Owns the order of the steps, their bounds, and what happens when the ledger is busy. It refuses to know which rows may go
(`retention.py` has the rules; `maintenance_chains.py`, `maintenance_rows.py` and `seen_compaction.py` find the rows)
and any clock: it is told the time, and when to stop.

Every transaction leaves a ledger the law holds in, so it may be killed anywhere, run again, and run twice at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Connection, Engine, text

from tollgate.ledger.controls import read_controls
from tollgate.ledger.engine import ledger_transaction, read_snapshot
from tollgate.ledger.errors import CommitUnknown, LedgerUnavailable
from tollgate.ledger.init import read_rules
from tollgate.ledger.maintenance_chains import (
    mark_periods,
    remove_pins,
    retire_postings,
    retire_unbilled,
    retire_usage,
    waiting_periods,
)
from tollgate.ledger.maintenance_rows import (
    expire_audit,
    expire_days,
    expire_delays,
    expire_evidence,
    expire_holds,
    expire_inbox,
    expire_instances,
    expire_invoices,
    expire_periods,
    expire_rejections,
)
from tollgate.ledger.maintenance_work import After, Batch, Work
from tollgate.ledger.retention import Retention
from tollgate.ledger.roles import ROLES
from tollgate.ledger.seen_compaction import compact_batch

__all__ = ["STEPS", "MaintenanceReport", "Progressed", "maintain"]

BATCH_ROWS = 5_000
"""Rows one transaction removes: some fifty milliseconds, no longer than a flush."""

LOCK_WAIT_MS = 1_000
"""How long a removal waits for a row somebody else is writing. It is in no hurry; they are."""

ATTEMPTS_MAX = 5
"""Times a batch is tried on a busy ledger before its step is left for the next run."""

_CATCHING_UP = ("journal_wait:", "scan:")
"""Controls that say planning has not looked at everything yet: after a restore, or after a meter was switched on."""


@dataclass(frozen=True, slots=True)
class Step:
    """One kind of removal. `chains`: it relies on planning having looked at everything."""

    name: str
    owner: str
    run: Callable[[Connection, Work, After], Batch]
    chains: bool = False
    isolation: Literal["default", "snapshot"] = "default"


STEPS: tuple[Step, ...] = (
    Step("expire seen ids", "meter", expire_days),
    Step("compact seen ids", "meter", compact_batch),
    Step("add up ended ingest instances", "meter", expire_instances),
    # From here on one needs what the one before has done, of the same period.
    Step("retire periods", "stripe_sync", mark_periods, chains=True),
    Step("remove billed usage", "meter", retire_usage, chains=True, isolation="snapshot"),
    Step("remove postings", "stripe_sync", retire_postings, chains=True, isolation="snapshot"),
    Step("remove unbilled usage", "meter", retire_unbilled, chains=True, isolation="snapshot"),
    Step("remove attributions", "stripe_sync", remove_pins, chains=True, isolation="snapshot"),
    Step("remove holds", "stripe_sync", expire_holds, chains=True, isolation="snapshot"),
    Step("remove item periods", "webhooks", expire_periods, chains=True),
    Step("remove invoices", "webhooks", expire_invoices),
    Step("remove webhook events", "webhooks", expire_inbox),
    Step("remove refusals", "webhooks", expire_rejections),
    Step("remove finalization delays", "stripe_sync", expire_delays),
    Step("remove reconciliations", "stripe_sync", expire_evidence),
    Step("remove audit entries", "catalogue", expire_audit),
)
"""In the order they are done."""


@dataclass(frozen=True, slots=True)
class Progressed:
    """One transaction of a step is done: rows removed in it, by table."""

    step: str
    number: int
    """Of the step, from 1 to `len(STEPS)`."""
    rows: Mapping[str, int]


@dataclass(slots=True)
class MaintenanceReport:
    """What a run removed, or would with `dry_run`, and what it left."""

    dry_run: bool
    removed: Counter[str] = field(default_factory=Counter)
    """Rows by table. Of seen ids, rows merged away count as removed; no id of a day still accepted is."""
    retired_periods: int = 0
    waiting_periods: int = 0
    """Periods past their time that are not billed, not reconciled, or drift: nothing of them goes."""
    postponed: dict[str, str] = field(default_factory=dict)
    """Steps that were left, and why: run again."""
    out_of_time: bool = False

    @property
    def finished(self) -> bool:
        """Nothing is left to do."""
        return not self.out_of_time and not self.postponed


def maintain(
    engine: Engine,
    retention: Retention,
    now_ms: int,
    *,
    batch_rows: int = BATCH_ROWS,
    dry_run: bool = False,
    lock_wait_ms: int = LOCK_WAIT_MS,
    out_of_time: Callable[[], bool] = lambda: False,
    sleep_seconds: Callable[[float], None] = lambda _: None,
    on_progress: Callable[[Progressed], None] = lambda _: None,
) -> MaintenanceReport:
    """Remove what `retention` lets go at `now_ms`, at most about `batch_rows` rows a transaction.

    A chain of postings, and the usage of one, are never cut, however long. With `dry_run` nothing is written, and the
    report counts what would go. `out_of_time` is asked between transactions; `sleep_seconds` waits for a busy ledger.

    On PostgreSQL each transaction takes the role of the table's owner where this user may. Raises LedgerNotReady,
    LedgerRefused (a missing privilege); a busy ledger postpones a step and never raises.
    """
    if batch_rows < 1:
        raise ValueError("batch_rows must be at least 1")
    work = Work(retention, now_ms, batch_rows, read_rules(engine), dry_run)
    report = MaintenanceReport(dry_run)
    open_transaction = _Transactions(engine, dry_run, lock_wait_ms, _roles_to_take(engine))
    for number, step in enumerate(STEPS, start=1):
        if step.chains and _is_catching_up(engine):
            report.postponed[step.name] = "planning has not looked at all usage yet"
            continue
        after: After = None
        attempt = 0
        while True:
            if out_of_time():
                report.out_of_time = True
                return report
            try:
                with open_transaction(step) as connection:
                    batch = step.run(connection, work, after)
            except (LedgerUnavailable, CommitUnknown) as error:
                # Doing it again finds what is left, whether it was done or not.
                attempt += 1
                if attempt == ATTEMPTS_MAX:
                    report.postponed[step.name] = str(error)
                    break
                sleep_seconds(0.1 * 2**attempt)
                continue
            attempt = 0
            report.removed.update(batch.rows)
            report.retired_periods += batch.retired
            on_progress(Progressed(step.name, number, batch.rows))
            after = batch.after
            if after is None:
                break
    with read_snapshot(engine) as connection:
        report.waiting_periods = waiting_periods(connection, work)
    return report


@dataclass(frozen=True, slots=True)
class _Transactions:
    """Transactions of the steps' owners, which wait for nobody for long; with `dry_run` ones that cannot write."""

    engine: Engine
    dry_run: bool
    lock_wait_ms: int
    roles: frozenset[str]

    @contextmanager
    def __call__(self, step: Step) -> Iterator[Connection]:
        if self.dry_run:
            with read_snapshot(self.engine) as connection:
                yield connection
            return
        with ledger_transaction(self.engine, isolation=step.isolation) as connection:
            if self.engine.dialect.name == "postgresql":
                connection.execute(text(f"SET LOCAL lock_timeout = {self.lock_wait_ms}"))
                if ROLES[step.owner] in self.roles:
                    connection.execute(text(f"SET LOCAL ROLE {ROLES[step.owner]}"))
            yield connection


def _roles_to_take(engine: Engine) -> frozenset[str]:
    """The owners' roles this user may act as; none on SQLite."""
    if engine.dialect.name != "postgresql":
        return frozenset()
    with read_snapshot(engine) as connection:
        version = int(connection.execute(text("SHOW server_version_num")).scalar_one())
        # Since PostgreSQL 16 membership alone does not let a user act as the role.
        kind = "SET" if version >= 160_000 else "MEMBER"
        found: Any = connection.execute(
            text("SELECT rolname FROM pg_roles WHERE rolname = ANY(:names) AND pg_has_role(oid, :kind)"),
            {"names": list(ROLES.values()), "kind": kind},
        ).scalars()
        return frozenset(found)


def _is_catching_up(engine: Engine) -> bool:
    with read_snapshot(engine) as connection:
        return any(name.startswith(_CATCHING_UP) for name in read_controls(connection))
