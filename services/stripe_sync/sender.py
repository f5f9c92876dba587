"""The sender: due postings to Stripe, one call in flight per (customer, meter), as fast as the bucket allows.

Owns the order, the lanes and what follows from each answer. It refuses to know how postings came about, SQL, and
Stripe's client. What it may do with an answer is the failure table's (`outcomes.py`).

For each posting: mark `sending` -> wait for a token -> call -> record the outcome. A lane (customer, meter) is free
again once its outcome is in the ledger. One customer's failures delay that customer's postings and nobody else's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import structlog

from services.stripe_sync.attempt import (
    Pace,
    conclude_delivered,
    conclude_failed,
    deadline_ms,
    is_past_horizon,
    may_be_at_stripe,
)
from services.stripe_sync.book import Lane, SendingBook
from services.stripe_sync.bucket import TokenBucket
from services.stripe_sync.faults import FaultPoint
from services.stripe_sync.gateway import CallFailed, Gateway
from services.stripe_sync.meter_watch import MeterWatch
from services.stripe_sync.metrics import SyncMetrics
from services.stripe_sync.outcomes import Action, Situation
from services.stripe_sync.recorder import Recorder
from services.stripe_sync.settlement import Verdict, compare_summary
from tollgate.ledger.engine import CommitUnknown, LedgerUnavailable
from tollgate.ledger.posting_rows import DuePosting, Outcome, Posting, PostingState
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import Clock
from tollgate.runtime.faults import Faults

_log = structlog.get_logger(__name__)

FETCH = 500
"""Lanes whose first due posting is read at once: enough to choose the nearest deadlines among."""

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
        self._bucket = bucket
        self._clock = clock
        self._backoff = backoff
        self._pace = Pace(backoff)
        self._limits = limits
        self._metrics = metrics
        self._may_send = may_send
        self._faults = faults
        self._on_stopped = on_stopped
        self._lanes: set[Lane] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._wake = asyncio.Event()
        self._stopped: str | None = None
        self._probe_at_seconds = 0.0
        self._troubles = 0
        self._look_at_seconds = 0.0
        self._look_failures = 0

    @property
    def stopped(self) -> str | None:
        """Why nothing is sent at all, or None."""
        return self._stopped

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
        self._metrics.show_bucket(self._bucket.available(self._clock.monotonic_seconds()))
        if self._stopped is not None and not await self._is_key_taken_again():
            return 0
        free = self._limits.concurrency - len(self._lanes)
        if free <= 0:
            return 0
        now_ms = self._clock.now_ms()
        due = await self._book.due(now_ms, FETCH, set(self._lanes))
        if not await self._look_at_meters({entry.event_name for entry in due}):
            return 0
        chosen = self._choose(due, free)
        if not chosen:
            return 0
        to_settle = [e for e in chosen if is_past_horizon(e.posting, now_ms)]
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
                self._start(entry, self._send(entry))
        return len(to_settle) + len(to_park) + len(marked)

    async def _look_at_meters(self, event_names: set[str]) -> bool:
        """False when Stripe could not be asked and a meter among `event_names` is not known to be fit."""
        now_seconds = self._clock.monotonic_seconds()
        if now_seconds < self._look_at_seconds:
            return False
        try:
            await self._watch.check(event_names)
        except CallFailed as error:
            _log.warning("meters.not_checked", situation=str(error.row.situation))
            if error.row.action is Action.STOP_ALL:
                self._stop(str(error))
                return False
            self._look_at_seconds = now_seconds + self._backoff.delay_seconds(self._look_failures)
            self._look_failures += 1
            return False
        self._look_failures = 0
        self._metrics.show_halted(len(self._watch.halted))
        return True

    def _choose(self, due: list[DuePosting], free: int) -> list[DuePosting]:
        fit = [e for e in due if self._watch.stripe_meter(e.event_name) is not None]
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

    async def _send(self, entry: DuePosting) -> Outcome | None:
        """One attempt. None: nothing was tried, and who leads next finds the posting in `sending`."""
        posting = entry.posting
        await self._take_token()
        if not self._may_send():
            return None
        if self._stopped is not None:
            return self._not_tried(posting, self._stopped)
        if self._watch.stripe_meter(entry.event_name) is None:
            return self._not_tried(posting, "the meter was halted")
        began_seconds = self._clock.monotonic_seconds()
        try:
            delivered = await self._gateway.send(posting.body, posting.idempotency_key)
        except CallFailed as error:
            self._faults.reach(FaultPoint.AFTER_SEND)
            self._metrics.called(error.row.situation, self._clock.monotonic_seconds() - began_seconds)
            return await self._after_failure(entry, error)
        self._faults.reach(FaultPoint.AFTER_SEND)
        situation = Situation.DUPLICATE if delivered.duplicate else Situation.DELIVERED
        self._metrics.called(situation, self._clock.monotonic_seconds() - began_seconds)
        self._metrics.delivered(self._clock.now_ms() / 1000 - posting.timestamp_s)
        self._troubles = 0
        return conclude_delivered(posting, delivered.request_id, delivered.duplicate)

    async def _take_token(self) -> None:
        """Return when a call may be made. A bucket closed meanwhile is waited for anew."""
        while (wait_seconds := self._bucket.reserve(self._clock.monotonic_seconds())) > 0:
            await self._clock.sleep_seconds(wait_seconds)
            if not self._bucket.is_closed(self._clock.monotonic_seconds()):
                return

    def _not_tried(self, posting: Posting, why: str) -> Outcome:
        doubtful = may_be_at_stripe(posting)
        return Outcome(
            posting.posting_key,
            posting.seq,
            PostingState.UNKNOWN if doubtful else PostingState.JOURNALLED,
            attempted=False,
            certain=not doubtful,
            error=why,
        )

    async def _after_failure(self, entry: DuePosting, error: CallFailed) -> Outcome:
        posting, row = entry.posting, error.row
        outcome = conclude_failed(posting, row, error.failure, self._pace, self._clock.now_ms())
        log = _log.bind(posting_key=posting.posting_key, seq=posting.seq, situation=str(row.situation))
        if row.action is Action.STOP_ALL:
            self._stop(str(error))
        elif row.action is Action.HALT_METER:
            await self._watch.halt(entry.event_name, str(error))
        elif row.action is Action.WAIT_ALL:
            self._bucket.close(
                self._clock.monotonic_seconds(), self._backoff.delay_seconds(min(self._troubles, 6))
            )
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
        doubtful = may_be_at_stripe(posting)
        return Outcome(
            posting.posting_key,
            posting.seq,
            PostingState.PARKED,
            attempted=False,
            certain=not doubtful,
            error=f"{Situation.CUSTOMER_GONE}: the customer was deleted",
        )

    # ------------------------------------------------------------------------------------------ the key

    def _stop(self, reason: str) -> None:
        if self._stopped is None:
            _log.error("sending.stopped", reason=reason)
        self._stopped = reason
        self._probe_at_seconds = self._clock.monotonic_seconds() + self._limits.probe_seconds
        self._metrics.show_stopped(True)
        self._on_stopped(reason)

    async def _is_key_taken_again(self) -> bool:
        if self._clock.monotonic_seconds() < self._probe_at_seconds:
            return False
        try:
            await self._gateway.meters()
        except CallFailed as error:
            if error.row.action is Action.STOP_ALL:
                self._stop(str(error))
            else:
                self._probe_at_seconds = self._clock.monotonic_seconds() + self._limits.probe_seconds
            return False
        self._stopped = None
        self._metrics.show_stopped(False)
        self._on_stopped(None)
        _log.info("sending.resumed")
        return True

    # ------------------------------------------------------------------------------------- the horizon

    async def _settle(self, entry: DuePosting) -> Outcome:
        """Past the horizon: what Stripe's summary of that hour says, and never another call with this identifier."""
        posting = entry.posting
        view = await self._book.settlement(posting, entry.event_name)
        newest_ms = max([view.newest_ms, posting.last_sent_ms or 0])
        now_ms = self._clock.now_ms()
        settled_enough_ms = newest_ms + int(self._limits.summary_lag_seconds * 1000)
        if now_ms < settled_enough_ms:
            return self._still_unknown(posting, settled_enough_ms, "waiting for Stripe's summaries")
        meter = self._watch.stripe_meter(entry.event_name)
        if meter is None:
            return self._still_unknown(posting, self._pace.retry_ms(posting.attempts, now_ms), "meter halted")
        hour_s = posting.timestamp_s - posting.timestamp_s % 3600
        await self._take_token()
        try:
            summary = await self._gateway.hour_sum(meter.stripe_meter_id, posting.customer_id, hour_s)
        except CallFailed as error:
            if error.row.action is Action.STOP_ALL:
                self._stop(str(error))
            return self._still_unknown(posting, self._pace.retry_ms(posting.attempts, now_ms), str(error))
        others = [other.quantity for other in view.unsure if other.ref != posting.ref]
        verdict = compare_summary(summary, view.delivered, posting.quantity, others)
        return self._settled(posting, verdict, summary, view.delivered)

    def _settled(self, posting: Posting, verdict: Verdict, summary: Decimal, delivered: Decimal) -> Outcome:
        said = f"Stripe's hour holds {summary}, delivered before {delivered}, this posting {posting.quantity}"
        state = {
            Verdict.DELIVERED: PostingState.SETTLED,
            Verdict.NOT_DELIVERED: PostingState.VOID,
            Verdict.UNDECIDED: PostingState.PARKED,
        }[verdict]
        log = _log.bind(posting_key=posting.posting_key, seq=posting.seq, verdict=str(verdict), said=said)
        (log.error if verdict is Verdict.UNDECIDED else log.warning)("posting.settled")
        return Outcome(posting.posting_key, posting.seq, state, attempted=False, error=f"{verdict}: {said}")

    def _still_unknown(self, posting: Posting, retry_ms: int, why: str) -> Outcome:
        return Outcome(
            posting.posting_key,
            posting.seq,
            PostingState.UNKNOWN,
            attempted=False,
            retry_ms=retry_ms,
            error=why[:500],
        )
