"""The door to the ledger: its transactions, called from the event loop.

Owns that a transaction never blocks the loop. It refuses to know what any of them does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from tollgate.contracts.journal import JournalEntry
from tollgate.ledger import sending
from tollgate.ledger.controls import HALTED, SYNC_NOW, load_controls
from tollgate.ledger.engine import Engine
from tollgate.ledger.leases import Lease
from tollgate.ledger.planning import PlanReport, PlanRules, plan_postings
from tollgate.ledger.posting_rows import DuePosting, MeterTerms, Outcome, Posting, Refusal, SettlementView

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

    async def halted(self) -> dict[str, str]: ...

    async def halt(self, event_name: str, reason: str | None, now_ms: int) -> None: ...


class Threads:
    """A few threads for blocking calls: as many as the ledger's pool has connections."""

    def __init__(self, size: int) -> None:
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="ledger")

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class Book:
    """The ledger under one lease. Every change raises LeaseLost once the lease has gone to another process."""

    def __init__(self, engine: Engine, lease: Lease, threads: Threads) -> None:
        self._engine = engine
        self._lease = lease
        self._call = threads.call

    async def plan(self, rules: PlanRules, now_ms: int, rows_max: int) -> PlanReport:
        return await self._call(plan_postings, self._engine, self._lease, rules, now_ms, rows_max)

    async def apply_rejections(self, now_ms: int) -> list[Refusal]:
        return await self._call(sending.apply_rejections, self._engine, self._lease, now_ms)

    async def planned(self, limit: int) -> list[Posting]:
        return await self._call(sending.load_planned, self._engine, limit)

    async def mark_journalled(self, refs: Sequence[Ref], positions: Mapping[int, int], now_ms: int) -> None:
        await self._call(sending.mark_journalled, self._engine, self._lease, refs, positions, now_ms)

    async def journal_positions(self) -> dict[int, int]:
        return await self._call(sending.journal_positions, self._engine)

    async def import_journal(
        self, entries: Sequence[JournalEntry], positions: Mapping[int, int], now_ms: int
    ) -> sending.ImportReport:
        return await self._call(sending.import_journal, self._engine, self._lease, entries, positions, now_ms)

    async def due(self, now_ms: int, limit: int, busy: Collection[Lane]) -> list[DuePosting]:
        return await self._call(sending.load_due, self._engine, now_ms, limit, frozenset(busy))

    async def mark_sending(self, refs: Sequence[Ref], now_ms: int) -> frozenset[Ref]:
        return await self._call(sending.mark_sending, self._engine, self._lease, refs, now_ms)

    async def record(self, outcomes: Sequence[Outcome], now_ms: int) -> None:
        await self._call(sending.record_outcomes, self._engine, self._lease, outcomes, now_ms)

    async def settlement(self, posting: Posting, event_name: str) -> SettlementView:
        return await self._call(sending.load_settlement, self._engine, posting, event_name)

    async def halted(self) -> dict[str, str]:
        controls = await self._call(load_controls, self._engine)
        return {n.removeprefix(HALTED): why for n, why in controls.items() if n.startswith(HALTED)}

    async def halt(self, event_name: str, reason: str | None, now_ms: int) -> None:
        await self._call(sending.halt_meter, self._engine, event_name, reason, now_ms)

    async def sync_requested(self) -> bool:
        return SYNC_NOW in await self._call(load_controls, self._engine)

    async def terms(self) -> dict[int, MeterTerms]:
        return await self._call(sending.load_meter_terms, self._engine)

    async def counts(self) -> tuple[dict[str, int], dict[str, int], int | None]:
        return await self._call(sending.count_states, self._engine)
