"""The sender: due postings to Stripe, one call in flight per (customer, meter), as fast as the bucket allows.

Owns the order, the lanes and what follows from each answer. It refuses to know how postings came about, SQL, Stripe's
client, when a call may be made at all (`call_gate.py`) and how the doubtful are settled (`settler.py`). What it may do
with an answer is the failure table's (`outcomes.py`).

For each posting: mark `sending` -> wait for a token -> call -> record the outcome. A lane (customer, meter) is free
again once its outcome is in the ledger. One customer's failures delay that customer's postings and nobody else's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from services.stripe_sync.attempt import (
    Pace,
    conclude_customer_gone,
    conclude_delivered,
    conclude_failed,
    conclude_not_tried,
    deadline_ms,
    is_past_horizon,
    must_be_settled,
)
from services.stripe_sync.book import Lane, SendingBook
from services.stripe_sync.bucket import TokenBucket
from services.stripe_sync.call_gate import CallGate
from services.stripe_sync.faults import FaultPoint
from services.stripe_sync.gateway import CallFailed, Delivered, Gateway
from services.stripe_sync.meter_watch import MeterWatch
from services.stripe_sync.metrics import SyncMetrics
from services.stripe_sync.outcomes import Action, Situation
from services.stripe_sync.recorder import Recorder
from services.stripe_sync.settler import Settler
from tollgate.ledger.engine import CommitUnknown, LedgerUnavailable
from tollgate.ledger.posting_rows import DuePosting, Outcome, Posting, PostingMode
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import Clock
from tollgate.runtime.faults import Faults

_log = structlog.get_logger(__name__)

FETCH = 500
"""Lanes whose first due posting is read at once: enough to choose the nearest deadlines among."""

CALL_WITHIN_MS = 10 * 60 * 1000
"""A call is made this soon after its posting was marked, or not at all: a machine that was suspended in between would
call at a time the ledger knows nothing of, and summaries would be believed that cannot have it yet."""

IDLE_SECONDS = 0.5
"""Between looks for due postings when nothing wakes the sender."""


@dataclass(frozen=True, slots=True)
class SenderLimits:
    """What bounds the sender."""

    concurrency: int
    summary_lag_seconds: float
    probe_seconds: float


class Sender:
    """Sends under one lease. `may_send` is asked right before each call: False once the lease may be gone."""

    def __init__(
        self,
        *,
        book: SendingBook,
        gateway: Gateway,
        watch: MeterWatch,
        recorder: Recorder,
        bucket: TokenBucket,
        clock: Clock,
        backoff: Backoff,
        limits: SenderLimits,
        metrics: SyncMetrics,
        may_send: Callable[[], bool],
        faults: Faults[FaultPoint],
        on_stopped: Callable[[str | None], None],
    ) -> None:
        self._book = book
        self._gateway = gateway
        self._watch = watch
        self._recorder = recorder
        self._clock = clock
        self._backoff = backoff
        self._pace = Pace(backoff)
        self._gate = CallGate(
            gateway=gateway,
            bucket=bucket,
            clock=clock,
            metrics=metrics,
            probe_seconds=limits.probe_seconds,
            on_stopped=on_stopped,
        )
        self._settler = Settler(
            book=book,
            gateway=gateway,
            watch=watch,
            gate=self._gate,
            pace=self._pace,
            clock=clock,
            summary_lag_seconds=limits.summary_lag_seconds,
        )
        self._limits = limits
        self._metrics = metrics
        self._may_send = may_send
        self._faults = faults
        self._lanes: set[Lane] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._wake = asyncio.Event()
        self._troubles = 0
        self._look_at_seconds = 0.0
        self._look_failures = 0

    @property
    def stopped(self) -> str | None:
        """Why nothing is sent at all, or None."""
        return self._gate.stopped

    @property
    def in_flight(self) -> int:
        """Lanes that are busy."""
        return len(self._lanes)

    def wake(self) -> None:
        """There may be something to send."""
        self._wake.set()

    async def run(self, draining: asyncio.Event) -> None:
        """Send until `draining` is set and no call is under way. Raises LeaseLost when the lease has gone."""
        try:
            while not draining.is_set():
                started = await self._dispatch_safely()
                if self._failure is not None:
                    raise self._failure
                if not started:
                    await self._rest()
            while self._tasks:
                await asyncio.wait(self._tasks)
            if self._failure is not None:
                raise self._failure
        finally:
            for task in self._tasks:
                task.cancel()

    async def _rest(self) -> None:
        """Until woken, or for a while."""
        self._wake.clear()
        waking = asyncio.ensure_future(self._wake.wait())
        sleeping = asyncio.ensure_future(self._clock.sleep_seconds(IDLE_SECONDS))
        try:
            await asyncio.wait({waking, sleeping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waking.cancel()
            sleeping.cancel()

    async def _dispatch_safely(self) -> int:
        try:
            return await self.dispatch()
        except (LedgerUnavailable, CommitUnknown) as error:
            _log.warning("postings.not_dispatched", error=str(error))
            return 0

    async def dispatch(self) -> int:
        """Start what may start now; returns how many. Raises LeaseLost, LedgerUnavailable, CommitUnknown.

        1. With the key refused, only ask whether it is taken again. 2. Read what is due. 3. See that its meters are
        fit. 4. Choose: nearest deadline first, one per free lane. 5. Mark and start.
        """
        self._gate.show()
        if not await self._gate.is_open():
            return 0
        free = self._limits.concurrency - len(self._lanes)
        if free <= 0:
            return 0
        now_ms = self._clock.now_ms()
        due = await self._book.due(now_ms, FETCH, set(self._lanes))
        if not await self._look_at_meters({(entry.event_name, entry.posting.mode) for entry in due}):
            return 0
        chosen = self._choose(due, free)
        if not chosen:
            return 0
        to_settle = [e for e in chosen if must_be_settled(e.posting, now_ms)]
        to_park = [e for e in chosen if e.customer_deleted and e not in to_settle]
        to_send = [e for e in chosen if e not in to_settle and e not in to_park]
        marked = await self._book.mark_sending([e.posting.ref for e in to_send], now_ms) if to_send else ()
        if to_send:
            self._faults.reach(FaultPoint.AFTER_MARK_SENDING)
        for entry in to_settle:
            self._start(entry, self._settle(entry))
        for entry in to_park:
            self._start(entry, self._park_for_gone_customer(entry.posting))
        for entry in to_send:
            if entry.posting.ref in marked:
                self._start(entry, self._send(entry, now_ms))
        return len(to_settle) + len(to_park) + len(marked)

    async def _look_at_meters(self, wanted: set[tuple[str, PostingMode]]) -> bool:
        """False when Stripe could not be asked and a meter among `wanted` is not known to be fit."""
        now_seconds = self._clock.monotonic_seconds()
        if now_seconds < self._look_at_seconds:
            return False
        try:
            await self._watch.check(wanted)
        except CallFailed as error:
            _log.warning("meters.not_checked", situation=str(error.row.situation))
            if error.row.action is Action.STOP_ALL:
                self._gate.stop(str(error))
                return False
            self._look_at_seconds = now_seconds + self._backoff.delay_seconds(self._look_failures)
            self._look_failures += 1
            return False
        self._look_failures = 0
        self._metrics.show_halted(len(self._watch.halted))
        return True

    def _choose(self, due: list[DuePosting], free: int) -> list[DuePosting]:
        fit = [e for e in due if self._watch.is_fit(e.event_name, e.posting.mode)]
        fit.sort(key=lambda e: (deadline_ms(e.posting, e.period_end_ms), e.posting.ref))
        chosen: dict[Lane, DuePosting] = {}
        for entry in fit:
            lane = (entry.posting.customer_id, entry.event_name)
            if lane not in self._lanes and lane not in chosen:
                chosen[lane] = entry
                if len(chosen) == free:
                    break
        return list(chosen.values())

    def _start(self, entry: DuePosting, work: Coroutine[Any, Any, Outcome | None]) -> None:
        lane = (entry.posting.customer_id, entry.event_name)
        self._lanes.add(lane)

        async def walk() -> None:
            try:
                outcome = await work
                if outcome is not None:
                    await self._recorder.record(outcome)
            except (LedgerUnavailable, CommitUnknown) as error:
                # The posting is as it was, or in `sending`: the next look finds it.
                _log.warning("posting.left", posting_key=entry.posting.posting_key, error=str(error))
            except Exception as error:
                self._failure = error
            finally:
                self._lanes.discard(lane)
                self._wake.set()

        task = asyncio.create_task(walk(), name=f"posting {entry.posting.posting_key}/{entry.posting.seq}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -------------------------------------------------------------------------------------------- one call

    async def _send(self, entry: DuePosting, marked_ms: int) -> Outcome | None:
        """One attempt. None: nothing was tried, and who leads next finds the posting in `sending`.

        `marked_ms`: when it was marked, which the ledger takes for the time of the call.
        """
        posting = entry.posting
        await self._gate.take_token()
        if not self._may_send():
            return None
        if self._gate.stopped is not None:
            return conclude_not_tried(posting, self._gate.stopped)
        if not self._watch.is_fit(entry.event_name, posting.mode):
            return conclude_not_tried(posting, "the meter was halted")
        if abs(self._clock.now_ms() - marked_ms) > CALL_WITHIN_MS:
            return conclude_not_tried(posting, "too long between marking and calling")
        began_seconds = self._clock.monotonic_seconds()
        try:
            delivered = await self._call(posting)
        except CallFailed as error:
            self._faults.reach(FaultPoint.AFTER_SEND)
            self._metrics.called(error.row.situation, self._clock.monotonic_seconds() - began_seconds)
            return await self._after_failure(entry, error)
        self._faults.reach(FaultPoint.AFTER_SEND)
        situation = Situation.DUPLICATE if delivered.duplicate else Situation.DELIVERED
        self._metrics.called(situation, self._clock.monotonic_seconds() - began_seconds)
        if posting.mode is not PostingMode.INVOICE_ITEM:  # its stamp is the period it is for
            self._metrics.delivered(self._clock.now_ms() / 1000 - posting.timestamp_s)
        self._troubles = 0
        if posting.mode is PostingMode.WINDOW_TOTAL and is_past_horizon(posting, self._clock.now_ms()):
            return self._settler.to_be_verified(posting, delivered.request_id)
        return conclude_delivered(posting, delivered.request_id, delivered.duplicate)

    async def _call(self, posting: Posting) -> Delivered:
        if posting.mode is PostingMode.USAGE_RECORD:
            return await self._gateway.record_usage(posting.body, posting.idempotency_key)
        if posting.mode is PostingMode.INVOICE_ITEM:
            return await self._gateway.charge(posting.body, posting.idempotency_key)
        return await self._gateway.send(posting.body, posting.idempotency_key)

    async def _settle(self, entry: DuePosting) -> Outcome | None:
        """Ask about it; what Stripe certainly has not got is marked and sent again, where that is safe."""
        outcome = await self._settler.settle(entry)
        if outcome is not None:
            return outcome
        now_ms = self._clock.now_ms()
        if not await self._book.mark_sending([entry.posting.ref], now_ms):
            return None
        return await self._send(entry, now_ms)

    async def _after_failure(self, entry: DuePosting, error: CallFailed) -> Outcome:
        posting, row = entry.posting, error.row
        outcome = conclude_failed(posting, row, error.failure, self._pace, self._clock.now_ms())
        log = _log.bind(posting_key=posting.posting_key, seq=posting.seq, situation=str(row.situation))
        if row.action is Action.STOP_ALL:
            self._gate.stop(str(error))
        elif row.action is Action.HALT_METER:
            await self._watch.halt(entry.event_name, str(error))
        elif row.action is Action.WAIT_ALL:
            self._gate.slow_down(self._backoff.delay_seconds(min(self._troubles, 6)))
            self._troubles += 1
        if row.action is Action.PARK:
            log.error("posting.parked", error=error.failure.message)
        else:
            log.warning("posting.not_delivered", state=str(outcome.state), attempts=posting.attempts + 1)
        return outcome

    async def _park_for_gone_customer(self, posting: Posting) -> Outcome:
        _log.error(
            "posting.parked", posting_key=posting.posting_key, seq=posting.seq, error="customer deleted"
        )
        return conclude_customer_gone(posting)
