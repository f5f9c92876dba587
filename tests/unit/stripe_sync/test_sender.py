"""The sender on virtual time, against a ledger and a Stripe in memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.stripe_sync.book import Lane, Ref
from services.stripe_sync.bucket import TokenBucket
from services.stripe_sync.meter_watch import MeterWatch
from services.stripe_sync.metrics import SyncMetrics
from services.stripe_sync.outcomes import Failure
from services.stripe_sync.recorder import Recorder
from services.stripe_sync.sender import Sender, SenderLimits
from tests.unit.stripe_sync.fakes import (
    NO_ANSWER,
    SERVER_ERROR,
    T0_MS,
    FakeBook,
    FakeStripe,
    posting,
)
from tollgate.ledger.posting_rows import DuePosting, Posting, PostingMode, PostingState
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import ManualClock
from tollgate.runtime.faults import Faults

HOUR_MS = 3_600_000


class Bench:
    """A sender with everything around it."""

    def __init__(
        self, calls_per_second: float = 100, concurrency: int = 8, book: FakeBook | None = None
    ) -> None:
        self.clock = ManualClock(T0_MS)
        self.book = book or FakeBook()
        self.stripe = FakeStripe(self.clock)
        self.stopped: list[str | None] = []
        self.leads = True
        self.sender = Sender(
            book=self.book,
            gateway=self.stripe,
            watch=MeterWatch(self.book, self.stripe, self.clock, 60.0),
            recorder=(recorder := Recorder(self.book, self.clock, Faults())),
            bucket=TokenBucket(calls_per_second, max(1, int(calls_per_second)), 0.0),
            clock=self.clock,
            backoff=Backoff(1.0, 60.0, jitter=0.0),
            limits=SenderLimits(concurrency, summary_lag_seconds=3600.0, probe_seconds=30.0),
            metrics=SyncMetrics(CollectorRegistry()),
            may_send=lambda: self.leads,
            faults=Faults(),
            on_stopped=self.stopped.append,
        )
        self.recorder = recorder

    async def run_until(self, done: Callable[[], bool], seconds: float = 600, step_ms: int = 50) -> None:
        """Turn the clock until `done`, at most `seconds` of virtual time; then drain."""
        draining = asyncio.Event()
        tasks = [asyncio.create_task(self.sender.run(draining)), asyncio.create_task(self.recorder.run())]
        try:
            for _ in range(int(seconds * 1000 / step_ms)):
                for _ in range(12):
                    await asyncio.sleep(0)
                if done():
                    break
                for task in tasks:
                    if task.done():
                        task.result()
                self.clock.advance_ms(step_ms)
            assert done(), self.book.states()
        finally:
            draining.set()
            for _ in range(100):
                self.clock.advance_ms(step_ms)
                for _ in range(12):
                    await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def all_delivered(self) -> bool:
        return set(self.book.states().values()) == {PostingState.DELIVERED}


async def test_postings_of_one_lane_go_one_after_the_other() -> None:
    """One customer and meter never has two calls under way; others go at the same time."""
    bench = Bench()
    for number in range(6):
        bench.book.add(posting(f"a{number}", customer="cus_a"), posting(f"b{number}", customer="cus_b"))
    await bench.run_until(bench.all_delivered)
    assert bench.stripe.overlaps == 0
    assert bench.stripe.totals() == {"cus_a": Decimal(30), "cus_b": Decimal(30)}


async def test_two_meter_versions_of_one_billing_meter_are_one_lane() -> None:
    """A ledger that offers several postings of one lane at once still gets them sent one by one."""

    class Generous(FakeBook):
        async def due(self, now_ms: int, limit: int, busy: Collection[Lane]) -> list[DuePosting]:
            ready = (PostingState.JOURNALLED, PostingState.UNKNOWN)
            return [DuePosting(p, "calls", False, None) for p in self.postings.values() if p.state in ready]

    bench = Bench(book=Generous())
    bench.book.add(*(posting(f"k{number}") for number in range(4)))
    await bench.run_until(bench.all_delivered)
    assert bench.stripe.overlaps == 0


async def test_no_answer_after_the_effect_is_asked_again_under_the_same_key() -> None:
    """Lost replies: same identifier, same key, counted once."""
    bench = Bench()
    bench.book.add(posting())
    bench.stripe.after = lambda body, key, number: NO_ANSWER if number < 3 else None
    bench.stripe.before = None
    await bench.run_until(bench.all_delivered)
    assert bench.stripe.totals() == {"cus_1": Decimal(5)}
    assert {key for _, _, key in bench.stripe.calls} == {"tg_k_1:0"}


async def test_a_saved_500_is_asked_under_a_new_key_with_the_same_identifier() -> None:
    """Stripe replays the stored 500 to the old key; under a new one it names the duplicate."""
    bench = Bench()
    bench.book.add(posting())
    bench.stripe.after = lambda body, key, number: SERVER_ERROR if number == 0 else None
    await bench.run_until(bench.all_delivered)
    keys = [key for _, _, key in bench.stripe.calls]
    assert keys[0] == keys[1] == "tg_k_1:0"
    assert len(set(keys)) == 2
    assert bench.stripe.totals() == {"cus_1": Decimal(5)}


async def test_one_broken_customer_delays_nobody() -> None:
    """Calls for one customer fail for ever; the others are done within a second of virtual time."""
    bench = Bench(concurrency=2)
    for number in range(10):
        bench.book.add(posting(f"x{number}", customer="cus_broken"))
        bench.book.add(posting(f"k{number}", customer=f"cus_{number}"))

    def broken(body: dict[str, object], key: str, number: int) -> Failure | None:
        return SERVER_ERROR if "cus_broken" in str(body) else None

    bench.stripe.before = broken
    await bench.run_until(
        lambda: all(
            state is PostingState.DELIVERED
            for (key, _), state in bench.book.states().items()
            if key.startswith("k")
        ),
        seconds=5,
    )


async def test_the_bucket_holds_the_rate() -> None:
    """At ten calls a second, forty postings take at least three seconds after the first ten."""
    bench = Bench(calls_per_second=10, concurrency=40)
    bench.book.add(*(posting(f"k{n}", customer=f"cus_{n}") for n in range(40)))
    await bench.run_until(bench.all_delivered)
    times = sorted(at for at, _, _ in bench.stripe.calls)
    assert times[-1] - times[0] >= 2900
    for second in range(T0_MS, times[-1] + 1000, 100):
        assert sum(second <= at < second + 1000 for at in times) <= 21


async def test_a_refused_key_stops_all_and_burns_nothing() -> None:
    """401: no attempt is counted, no more calls; taken again, all is delivered."""
    bench = Bench()
    bench.stripe.key_refused = True
    bench.book.add(*(posting(f"k{n}", customer=f"cus_{n}") for n in range(4)))
    bench.stripe.active = {"calls"}
    await bench.run_until(lambda: bench.sender.stopped is not None)
    assert {p.attempts for p in bench.book.postings.values()} == {0}
    assert {p.state for p in bench.book.postings.values()} == {PostingState.JOURNALLED}
    assert bench.stopped[-1] is not None
    bench.stripe.key_refused = False
    await bench.run_until(bench.all_delivered)
    assert bench.stopped[-1] is None


async def test_the_nearest_deadline_goes_first() -> None:
    """With one lane at a time, the posting whose period ends first is sent first, a doubtful old one before it."""
    bench = Bench(concurrency=1)
    late, soon = posting("late", customer="cus_l"), posting("soon", customer="cus_s")
    doubtful = posting(
        "old", customer="cus_o", state=PostingState.UNKNOWN, first_sent_ms=T0_MS - 19 * HOUR_MS
    )
    bench.book.add(late, soon, doubtful)
    bench.book.period_ends_ms = {late.ref: T0_MS + 90 * HOUR_MS, soon.ref: T0_MS + 2 * HOUR_MS}
    await bench.run_until(bench.all_delivered)
    assert [customer for _, customer, _ in bench.stripe.calls] == ["cus_o", "cus_s", "cus_l"]


async def test_past_the_horizon_summaries_decide_and_nothing_is_sent() -> None:
    """Unknown for more than 20 hours: in the summary is settled, not in it is void, neither is parked."""
    bench = Bench()
    long_ago_ms = T0_MS - 30 * HOUR_MS
    seconds = long_ago_ms // 1000
    for customer in ("cus_has", "cus_lacks", "cus_odd"):
        bench.book.add(
            posting(
                customer,
                customer=customer,
                state=PostingState.UNKNOWN,
                first_sent_ms=long_ago_ms,
                timestamp_s=seconds,
            ),
            posting(
                f"{customer}_before",
                customer=customer,
                quantity=3,
                state=PostingState.DELIVERED,
                timestamp_s=seconds,
            ),
        )
        bench.stripe.events.append((long_ago_ms, "before", customer, Decimal(3), seconds))
    bench.stripe.events.append((long_ago_ms, "tg_cus_has_1", "cus_has", Decimal(5), seconds))
    bench.stripe.events.append((long_ago_ms, "stranger", "cus_odd", Decimal(1), seconds))
    await bench.run_until(
        lambda: PostingState.UNKNOWN not in bench.book.states().values(),
    )
    assert bench.stripe.calls == []
    states = bench.book.states()
    assert states["cus_has", 1] is PostingState.SETTLED
    assert states["cus_lacks", 1] is PostingState.VOID
    assert states["cus_odd", 1] is PostingState.PARKED


async def test_a_sum_is_not_believed_before_its_lag_is_over() -> None:
    """Stripe has it and its summary does not yet: nothing is concluded for as long as summaries may lag."""
    bench = Bench()
    stamp_s = T0_MS // 1000 - 30 * 3600
    doubtful = posting(
        "late", state=PostingState.UNKNOWN, first_sent_ms=T0_MS - 30 * HOUR_MS, timestamp_s=stamp_s
    )
    bench.book.add(replace(doubtful, last_sent_ms=T0_MS - 1000))

    def show() -> bool:
        if bench.clock.now_ms() >= T0_MS + HOUR_MS // 2 and not bench.stripe.events:
            bench.stripe.events.append((T0_MS - 1000, "tg_late_1", "cus_1", Decimal(5), stamp_s))
        return bench.book.states()["late", 1] is not PostingState.UNKNOWN

    await bench.run_until(show, 2 * 3600, step_ms=30_000)
    assert bench.stripe.calls == []
    assert bench.book.states()["late", 1] is PostingState.SETTLED


async def test_stripe_down_for_26_hours_never_leads_to_a_blind_resend() -> None:
    """Calls whose effect happened and whose answers were lost, then a long outage: the sum is right in the end."""
    bench = Bench()
    bench.book.add(*(posting(f"k{n}", customer=f"cus_{n}") for n in range(3)))
    down_until_ms = T0_MS + 26 * HOUR_MS

    def lost(body: dict[str, object], key: str, number: int) -> Failure | None:
        return NO_ANSWER if bench.clock.now_ms() < down_until_ms else None

    bench.stripe.after = lambda body, key, number: NO_ANSWER
    await bench.run_until(lambda: len(bench.stripe.events) == 3)
    bench.stripe.before = lost
    bench.stripe.after = None
    await bench.run_until(
        lambda: set(bench.book.states().values()) == {PostingState.SETTLED}, 27 * 3600, step_ms=30_000
    )
    assert bench.stripe.totals() == {f"cus_{n}": Decimal(5) for n in range(3)}


async def test_a_leader_that_may_have_lost_its_lease_calls_nobody() -> None:
    """Without a valid lease the posting stays as marked, for the next leader."""
    bench = Bench()
    bench.leads = False
    bench.book.add(posting())
    await bench.run_until(lambda: bench.book.states() == {("k", 1): PostingState.SENDING}, seconds=2)
    assert bench.stripe.calls == []


async def test_an_unknown_meter_is_halted_before_its_first_call() -> None:
    """Stripe answers 2xx for a meter it does not know: so it is asked beforehand, and again later."""
    bench = Bench()
    bench.stripe.active = set()
    bench.book.add(posting())
    await bench.run_until(lambda: "calls" in bench.book.halts, seconds=5)
    assert bench.stripe.calls == []
    bench.stripe.active = {"calls"}
    await bench.run_until(bench.all_delivered, seconds=120)


async def test_a_deleted_customers_posting_is_parked_unsent() -> None:
    """It never reaches Stripe, and its lane is free again."""
    bench = Bench()
    bench.book.gone = {"cus_1"}
    bench.book.add(posting())
    await bench.run_until(lambda: bench.book.states() == {("k", 1): PostingState.PARKED}, seconds=2)
    assert bench.stripe.calls == []


async def test_random_failures_end_in_exact_sums() -> None:
    """Fifty seeds of failures before and after the effect: each unit once, whatever the order."""
    for seed in range(50):
        rng = random.Random(seed)
        bench = Bench(concurrency=3)
        truth: dict[str, Decimal] = {}
        for number in range(6):
            customer = f"cus_{rng.randrange(3)}"
            quantity = rng.randrange(1, 50)
            truth[customer] = truth.get(customer, Decimal(0)) + quantity
            bench.book.add(posting(f"k{number}", customer=customer, quantity=quantity))
        failures = [
            NO_ANSWER,
            SERVER_ERROR,
            Failure(connection="unreachable"),
            Failure(status=429, code="rate_limit"),
            Failure(status=429, code="lock_timeout"),
            Failure(status=409, code="idempotency_key_in_use"),
        ]

        def before(
            body: dict[str, object],
            key: str,
            number: int,
            rng: random.Random = rng,
            failures: list[Failure] = failures,
        ) -> Failure | None:
            return rng.choice(failures) if rng.random() < 0.3 and number < 60 else None

        def after(
            body: dict[str, object],
            key: str,
            number: int,
            rng: random.Random = rng,
            failures: list[Failure] = failures,
        ) -> Failure | None:
            return rng.choice(failures[:2]) if rng.random() < 0.3 and number < 60 else None

        bench.stripe.before, bench.stripe.after = before, after
        await bench.run_until(bench.all_delivered, seconds=1200, step_ms=250)
        assert bench.stripe.totals() == truth, seed
        assert bench.stripe.overlaps == 0


# ---------------------------------------------------------------------------------- totals that replace


def _old_total(bench: Bench, **columns: Any) -> Posting:
    """A total whose first attempt is 30 hours old and whose fate is unknown."""
    long_ago_ms = T0_MS - 30 * HOUR_MS
    bench.stripe.time_window = "hour"
    old = posting(
        state=PostingState.UNKNOWN,
        first_sent_ms=long_ago_ms,
        timestamp_s=long_ago_ms // 1000,
        mode=PostingMode.WINDOW_TOTAL,
    )
    return replace(old, **columns)


async def test_a_total_past_the_horizon_that_stripe_has_is_settled() -> None:
    """Its hour holds it: no call."""
    bench = Bench()
    bench.book.add(old := _old_total(bench))
    bench.stripe.events.append((0, "tg_k_1", "cus_1", Decimal(5), old.timestamp_s))
    await bench.run_until(lambda: bench.book.states() == {old.ref: PostingState.SETTLED}, seconds=5)
    assert bench.stripe.calls == []


async def test_a_total_past_the_horizon_that_stripe_lacks_is_posted_again_and_verified() -> None:
    """Sent once more at once, since it replaces; settled when the summary shows it, an hour later."""
    bench = Bench()
    bench.book.add(old := _old_total(bench))
    bench.stripe.events.append((0, "older", "cus_1", Decimal(3), old.timestamp_s))
    await bench.run_until(lambda: len(bench.stripe.calls) == 1, seconds=5)
    assert bench.book.states() == {old.ref: PostingState.UNKNOWN}
    await bench.run_until(
        lambda: bench.book.states() == {old.ref: PostingState.SETTLED}, seconds=4000, step_ms=10_000
    )
    assert len(bench.stripe.calls) == 1
    assert await bench.stripe.hour_sum("mtr_calls", "cus_1", old.timestamp_s // 3600 * 3600) == 5


async def test_a_total_that_did_not_count_after_all_is_void() -> None:
    """Posted again and still not in the summary: the next link posts the latest total under a new identifier."""
    bench = Bench()
    bench.book.add(old := _old_total(bench))
    await bench.run_until(lambda: len(bench.stripe.events) == 1, seconds=5)
    bench.stripe.events.clear()
    await bench.run_until(
        lambda: bench.book.states() == {old.ref: PostingState.VOID}, seconds=4000, step_ms=10_000
    )


async def test_a_usage_record_is_set_again_for_as_long_as_its_period_lasts() -> None:
    """Setting it twice is setting it once: there is no horizon."""
    bench = Bench()
    long_ago_ms = T0_MS - 30 * HOUR_MS
    bench.book.add(
        posting(state=PostingState.UNKNOWN, first_sent_ms=long_ago_ms, mode=PostingMode.USAGE_RECORD)
    )
    await bench.run_until(bench.all_delivered, seconds=5)
    assert list(bench.stripe.records.values()) == [5]


async def test_a_usage_record_refused_for_its_period_was_never_there() -> None:
    """Void at once, with the word that keeps it from being posted again."""
    bench = Bench()
    bench.stripe.period_end_s = 0
    bench.book.add(late := posting(mode=PostingMode.USAGE_RECORD))
    await bench.run_until(lambda: bench.book.states() == {late.ref: PostingState.VOID}, seconds=5)
    assert str(bench.book.postings[late.ref].error).startswith("rejected:period_over:")


@pytest.mark.parametrize(("arrived", "state"), [(True, PostingState.SETTLED), (False, PostingState.VOID)])
async def test_a_doubtful_usage_record_is_told_by_the_periods_sum(arrived: bool, state: PostingState) -> None:
    """No answer, then the period is over: what is recorded of it says whether the first attempt arrived."""
    bench = Bench()
    doubtful = posting(mode=PostingMode.USAGE_RECORD)
    other = posting(
        "other",
        quantity=7,
        state=PostingState.DELIVERED,
        mode=PostingMode.USAGE_RECORD,
        timestamp_s=T0_MS // 1000 + 9,
    )
    bench.book.add(doubtful, other)
    bench.stripe.records["si_cus_1", other.timestamp_s] = 7
    bench.stripe.period_end_s = T0_MS // 1000 + 100
    lost = lambda body, key, number: NO_ANSWER  # noqa: E731
    bench.stripe.after, bench.stripe.before = (lost, None) if arrived else (None, lost)
    await bench.run_until(lambda: bench.book.states()[doubtful.ref] is state, seconds=2 * 3600, step_ms=1000)


async def test_a_machine_suspended_between_marking_and_calling_marks_anew() -> None:
    """The ledger takes the marking for the time of the call: a call long after it would make summaries believed that
    cannot have it yet."""

    class Suspended(FakeBook):
        sleeps = 1

        async def mark_sending(self, refs: Sequence[Ref], now_ms: int) -> frozenset[Ref]:
            marked = await super().mark_sending(refs, now_ms)
            if self.sleeps:
                self.sleeps -= 1
                bench.clock.set_now_ms(now_ms + 30 * 3_600_000)
            return marked

    bench = Bench(book=Suspended())
    bench.book.add(posting("a"))
    await bench.run_until(bench.all_delivered)
    (called_ms, *_), *others = bench.stripe.calls
    marked_ms = bench.book.postings["a", 1].last_sent_ms
    assert not others
    assert marked_ms is not None
    assert called_ms - marked_ms < 1000
