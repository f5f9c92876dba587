"""The door to the ledger: its transactions, called from the event loop.

Owns that a transaction never blocks the loop. It refuses to know what any of them does.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from tollgate.contracts.journal import JournalEntry
from tollgate.ledger import (
    anomalies,
    completeness,
    due,
    finalizations,
    meter_terms,
    posting_journal,
    prices,
    reconciliations,
    sending,
    urgency,
)
from tollgate.ledger.controls import HALTED, SYNC_NOW, load_controls
from tollgate.ledger.engine import Engine
from tollgate.ledger.leases import Lease
from tollgate.ledger.plan_rules import PlanRules
from tollgate.ledger.planning import PlanReport, plan_postings
from tollgate.ledger.posting_rows import DuePosting, Outcome, Posting, PostingMode, Refusal, SettlementView
from tollgate.ledger.prices import FetchedPrice
from tollgate.ledger.reconciliation_subjects import due_subjects
from tollgate.ledger.reconciliation_views import SubjectView, load_view
from tollgate.metering.completeness import Watermark
from tollgate.metering.finalization import Incomplete
from tollgate.metering.reconciliation import Subject

Ref = tuple[str, int]
"""Posting key and sequence number."""

Lane = tuple[str, str]
"""Customer and event name: at most one call of it is under way."""

T = TypeVar("T")


class SendingBook(Protocol):
    """What the sender needs of the ledger."""

    async def due(self, now_ms: int, limit: int, busy: Collection[Lane]) -> list[DuePosting]: ...

    async def mark_sending(self, refs: Sequence[Ref], now_ms: int) -> frozenset[Ref]: ...

    async def record(self, outcomes: Sequence[Outcome], now_ms: int) -> None: ...

    async def settlement(self, posting: Posting, event_name: str) -> SettlementView: ...

    async def period_settlement(
        self, posting: Posting, event_name: str, start_s: int, end_s: int
    ) -> SettlementView: ...

    async def halted(self) -> dict[str, str]: ...

    async def modes(self) -> dict[str, set[PostingMode]]: ...

    async def halt(self, event_name: str, reason: str | None, now_ms: int) -> None: ...


class Threads:
    """A few threads for blocking calls: as many as the ledger's pool has connections."""

    def __init__(self, size: int) -> None:
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="ledger")

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class ReconciliationLedger:
    """What reconciliation reads and keeps. It needs no lease: nothing of a posting is changed."""

    def __init__(self, engine: Engine, threads: Threads) -> None:
        self._engine = engine
        self._call = threads.call

    async def due(self, now_ms: int, limit: int) -> list[Subject]:
        return await self._call(due_subjects, self._engine, now_ms, limit)

    async def view(self, subject: Subject) -> SubjectView:
        return await self._call(load_view, self._engine, subject)

    async def previous(self, subject: Subject) -> reconciliations.Reconciliation | None:
        return await self._call(reconciliations.load_reconciliation, self._engine, subject)

    async def store(self, found: reconciliations.Reconciliation) -> None:
        await self._call(reconciliations.store_reconciliation, self._engine, found)

    async def take_read(self, now_ms: int, reads_max: int) -> bool:
        return await self._call(reconciliations.take_read, self._engine, now_ms, reads_max)

    async def drift(self) -> reconciliations.DriftSummary:
        return await self._call(reconciliations.summarise_drift, self._engine)


class Book:
    """The ledger under one lease. Every change raises LeaseLost once the lease has gone to another process."""

    def __init__(self, engine: Engine, lease: Lease, threads: Threads) -> None:
        self._engine = engine
        self._lease = lease
        self._call = threads.call
        self.urgent: tuple[str, ...] = ()
        """Customers whose usage is planned and sent before everybody else's."""
        self._ahead: dict[str, Mapping[int, int]] = {}
        """Of those among them planned ahead of the cursors, up to where."""

    async def plan(self, rules: PlanRules, now_ms: int, rows_max: int) -> PlanReport:
        return await self._call(
            plan_postings, self._engine, self._lease, rules, now_ms, rows_max, self.urgent
        )

    async def plan_urgent(self, rules: PlanRules, now_ms: int, rows_max: int) -> PlanReport:
        """Plan the urgent customers' usage alone, and remember how far it has been."""
        customers = self.urgent
        plan = functools.partial(plan_postings, urgent_only=True)
        report = await self._call(plan, self._engine, self._lease, rules, now_ms, rows_max, customers)
        self._ahead = {name: at for name, at in self._ahead.items() if name in self.urgent}
        if report.urgent_offsets:
            self._ahead |= dict.fromkeys(customers, report.urgent_offsets)
        return report

    async def apply_rejections(self, now_ms: int) -> list[Refusal]:
        return await self._call(sending.apply_rejections, self._engine, self._lease, now_ms)

    async def planned(self, limit: int) -> list[Posting]:
        return await self._call(posting_journal.load_planned, self._engine, limit)

    async def mark_journalled(self, refs: Sequence[Ref], positions: Mapping[int, int], now_ms: int) -> None:
        await self._call(posting_journal.mark_journalled, self._engine, self._lease, refs, positions, now_ms)

    async def journal_positions(self) -> dict[int, int]:
        return await self._call(posting_journal.journal_positions, self._engine)

    async def import_journal(
        self, entries: Sequence[JournalEntry], positions: Mapping[int, int], now_ms: int
    ) -> posting_journal.ImportReport:
        return await self._call(
            posting_journal.import_journal, self._engine, self._lease, entries, positions, now_ms
        )

    async def due(self, now_ms: int, limit: int, busy: Collection[Lane]) -> list[DuePosting]:
        return await self._call(
            due.load_due, self._engine, now_ms, limit, frozenset(busy), frozenset(self.urgent)
        )

    async def mark_sending(self, refs: Sequence[Ref], now_ms: int) -> frozenset[Ref]:
        return await self._call(sending.mark_sending, self._engine, self._lease, refs, now_ms)

    async def record(self, outcomes: Sequence[Outcome], now_ms: int) -> None:
        await self._call(sending.record_outcomes, self._engine, self._lease, outcomes, now_ms)

    async def settlement(self, posting: Posting, event_name: str) -> SettlementView:
        return await self._call(due.load_settlement, self._engine, posting, event_name)

    async def period_settlement(
        self, posting: Posting, event_name: str, start_s: int, end_s: int
    ) -> SettlementView:
        return await self._call(due.load_period_settlement, self._engine, posting, event_name, start_s, end_s)

    async def halted(self) -> dict[str, str]:
        controls = await self._call(load_controls, self._engine)
        return {n.removeprefix(HALTED): why for n, why in controls.items() if n.startswith(HALTED)}

    async def halt(self, event_name: str, reason: str | None, now_ms: int) -> None:
        await self._call(sending.halt_meter, self._engine, event_name, reason, now_ms)

    async def sync_requested(self) -> bool:
        return SYNC_NOW in await self._call(load_controls, self._engine)

    async def modes(self) -> dict[str, set[PostingMode]]:
        return await self._call(meter_terms.load_modes, self._engine)

    async def wanted_prices(self) -> list[str]:
        return await self._call(prices.wanted_prices, self._engine)

    async def store_prices(self, found: Sequence[FetchedPrice], now_ms: int) -> None:
        await self._call(prices.store_prices, self._engine, self._lease, found, now_ms)

    async def anomalies(self) -> int:
        return await self._call(anomalies.count_anomalies, self._engine)

    async def load_urgent(self, now_ms: int, near_ms: int) -> tuple[str, ...]:
        return await self._call(urgency.load_urgent, self._engine, now_ms, near_ms)

    async def has_unplanned(self, customers: Sequence[str]) -> bool:
        return await self._call(urgency.has_unplanned, self._engine, customers, dict(self._ahead))

    async def load_ending(self, now_ms: int, near_ms: int) -> tuple[str, ...]:
        return await self._call(urgency.load_ending, self._engine, now_ms, near_ms)

    async def drafts(
        self, limit: int, after: finalizations.After | None = None, *, delayed_only: bool = False
    ) -> finalizations.DraftPage:
        load = functools.partial(finalizations.load_drafts, delayed_only=delayed_only)
        return await self._call(load, self._engine, limit, after)

    async def watermark(self, now_ms: int, silence_ms: int) -> Watermark:
        return await self._call(completeness.load_watermark, self._engine, now_ms, silence_ms)

    async def unsettled(self, spans: Collection[completeness.Span]) -> dict[completeness.Span, Incomplete]:
        return await self._call(completeness.load_unsettled, self._engine, spans, dict(self._ahead))

    async def delay(self, invoice_id: str) -> finalizations.Delay | None:
        return await self._call(finalizations.load_delay, self._engine, invoice_id)

    async def record_delay(self, delay: finalizations.Delay) -> None:
        await self._call(finalizations.record_delay, self._engine, self._lease, delay)

    async def counts(self) -> tuple[dict[str, int], dict[str, int], int | None]:
        return await self._call(due.count_states, self._engine)
