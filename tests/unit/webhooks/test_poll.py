"""The poll: what Stripe lists and the inbox lacks is put into the log, oldest first."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass

import pytest
from prometheus_client import CollectorRegistry

from services.webhooks.errors import Transient, TransientReason
from services.webhooks.event import parse_event
from services.webhooks.gateway import Page
from services.webhooks.metrics import Metrics
from services.webhooks.poll import (
    LOOKBACK_SECONDS,
    OVERLAP_SECONDS,
    REACH_SECONDS,
    SETTLING_SECONDS,
    SLICE_SECONDS,
    THIN_EVERY,
    EventPoll,
    PageOf,
)
from services.webhooks.store import StoreUnavailable
from tests.unit.webhooks.fakes import FakeBook, FakeStore, FakeStripe, customer_body, until
from tollgate.runtime.clock import ManualClock

NOW_S = 1_800_000_000


@dataclass
class _Lists:
    """Two lists of somebody's choice."""

    event_page: PageOf
    thin_event_page: PageOf


class Bench:
    """A poll over fakes, in virtual time."""

    def __init__(self) -> None:
        self.clock = ManualClock(NOW_S * 1000)
        self.stripe = FakeStripe(self.clock)
        self.book = FakeBook(newest_s=NOW_S)
        self.store = FakeStore()
        self.poll = EventPoll(
            self.stripe, self.book, self.store, self.clock, Metrics(CollectorRegistry()), 900
        )

    def happen(self, event_type: str = "customer.updated", seconds_later: int = 10) -> str:
        event = self.stripe.put(customer_body(), event_type)
        self.clock.advance_ms(seconds_later * 1000)
        return str(event["id"])

    def stored(self) -> list[str]:
        return [event.event_id for event, _ in self.store.stored]


@pytest.fixture
def bench() -> Bench:
    """A fresh one."""
    return Bench()


async def test_missing_events_are_stored_oldest_first(bench: Bench) -> None:
    """Over several pages, as bodies that parse like a webhook's."""
    happened = [bench.happen() for _ in range(5)]
    bench.clock.advance_ms(SETTLING_SECONDS * 1000)
    bench.book.inbox = {happened[1]: "projected", happened[3]: "failed:not_found"}
    assert await bench.poll.poll_once() == 3
    assert bench.stored() == [happened[0], happened[2], happened[4]]
    assert all(parse_event(body) == event for event, body in bench.store.stored)


async def test_events_of_one_second_keep_their_order(bench: Bench) -> None:
    """Stripe's list is the only order there is within a second."""
    happened = [bench.happen(seconds_later=0) for _ in range(5)]
    bench.clock.advance_ms((SETTLING_SECONDS + 1) * 1000)
    await bench.poll.poll_once()
    assert bench.stored() == happened


async def test_other_types_are_left(bench: Bench) -> None:
    """The log holds what concerns us."""
    bench.happen("charge.succeeded")
    bench.clock.advance_ms(SETTLING_SECONDS * 1000)
    assert await bench.poll.poll_once() == 0


async def test_young_events_are_left_to_their_webhooks(bench: Bench) -> None:
    """They are found by the next poll if they do not come."""
    happened = bench.happen(seconds_later=SETTLING_SECONDS - 1)
    assert await bench.poll.poll_once() == 0
    bench.clock.advance_ms(10_000)
    assert await bench.poll.poll_once() == 1
    assert bench.stored() == [happened]


async def test_three_days_of_silence_are_filled(bench: Bench) -> None:
    """From the newest event known, back by as long as Stripe retries."""
    before = bench.happen()
    bench.book.newest_s = NOW_S
    happened = [bench.happen(seconds_later=12 * 3600) for _ in range(6)]
    assert await bench.poll.poll_once() == 7
    assert bench.stored() == [before, *happened]
    first = int(bench.stripe.reads[0].split()[1].partition("..")[0])
    assert first == NOW_S - LOOKBACK_SECONDS


@pytest.mark.parametrize("newest_s", [None, NOW_S - 400 * 86_400])
async def test_never_further_back_than_stripe_lists(bench: Bench, newest_s: int | None) -> None:
    """Thirty days, in slices that keep memory flat."""
    bench.book.newest_s = newest_s
    await bench.poll.poll_once()
    bounds = [tuple(map(int, read.split()[1].split(".."))) for read in bench.stripe.reads]
    assert bounds[0][0] == NOW_S - REACH_SECONDS
    assert bounds[-1][1] == NOW_S - SETTLING_SECONDS
    assert all(end - begin <= SLICE_SECONDS for begin, end in bounds)
    assert all(left[1] == right[0] for left, right in itertools.pairwise(bounds))


async def test_a_second_poll_looks_at_what_is_new(bench: Bench) -> None:
    """With an overlap, since a list may lag."""
    await bench.poll.poll_once()
    bench.stripe.reads.clear()
    bench.clock.advance_ms(900_000)
    await bench.poll.poll_once()
    begin = NOW_S - SETTLING_SECONDS - OVERLAP_SECONDS
    assert bench.stripe.reads == [f"events {begin}..{NOW_S + 900 - SETTLING_SECONDS} after None"]


async def test_meter_error_reports_are_polled_too(bench: Bench) -> None:
    """Thin events no webhook brought, over pages, oldest first, from as far back as the classic ones."""
    happened = []
    for _ in range(5):
        happened.append(str(bench.stripe.report_meter_errors()["id"]))
        bench.clock.advance_ms(10_000)
    bench.clock.advance_ms(SETTLING_SECONDS * 1000)
    bench.book.inbox = {happened[2]: "projected"}
    assert await bench.poll.poll_thin_once() == 4
    assert bench.stored() == [happened[0], happened[1], happened[3], happened[4]]
    assert all(parse_event(body) == event for event, body in bench.store.stored)
    assert bench.stripe.reads[0].startswith(f"thin {NOW_S - LOOKBACK_SECONDS}..")


async def test_what_the_classic_poll_brings_does_not_narrow_the_thin_one(bench: Bench) -> None:
    """After an outage the inbox' newest event is suddenly young; thin events are still looked for from before it."""
    report = str(bench.stripe.report_meter_errors()["id"])
    bench.clock.advance_ms(10 * 86_400_000)
    bench.book.newest_s = NOW_S
    await bench.poll.poll_once()
    bench.book.newest_s = NOW_S + 10 * 86_400
    await bench.poll.poll_thin_once()
    assert bench.stored() == [report]


async def test_a_list_that_may_not_be_read_keeps_no_other_from_being_read(bench: Bench) -> None:
    """The key has no right to thin events: the classic ones are filled, poll after poll; the thin ones asked again."""
    happened = [bench.happen()]
    bench.clock.advance_ms(SETTLING_SECONDS * 1000)
    stop = asyncio.Event()
    refused = Transient(TransientReason.UNAUTHORIZED, "403")

    async def refuse(created_from_s: int, created_before_s: int, after: str | None) -> Page:
        raise refused

    poll = EventPoll(
        _Lists(bench.stripe.event_page, refuse),
        bench.book,
        bench.store,
        bench.clock,
        Metrics(CollectorRegistry()),
        900,
    )
    running = asyncio.create_task(poll.run(stop))
    await until(lambda: bench.clock.sleepers > 0)
    happened.append(bench.happen())
    bench.book.inbox = {happened[0]: "projected"}
    bench.clock.advance_ms(900_000)
    await until(lambda: len(bench.store.stored) == 2)
    stop.set()
    await asyncio.wait_for(running, 5)
    assert bench.stored() == happened


async def test_thin_events_are_asked_for_at_every_fourth_poll(bench: Bench) -> None:
    """Each look is a read, and reads are allotted."""
    stop = asyncio.Event()
    running = asyncio.create_task(bench.poll.run(stop))
    for number in range(1, 2 * THIN_EVERY + 1):
        await until(
            lambda number=number: (
                sum(r.startswith("events") for r in bench.stripe.reads) >= number  # type: ignore[misc]
                and bench.clock.sleepers > 0
            )
        )
        bench.clock.advance_ms(900_000)
    stop.set()
    await asyncio.wait_for(running, 5)
    polls = [read for read in bench.stripe.reads if read.startswith("thin")]
    assert len(polls) in (2, 3)


async def test_a_failed_poll_goes_on_where_it_was(bench: Bench) -> None:
    """Nothing is taken for compared that was not."""
    happened = bench.happen()
    bench.clock.advance_ms(SETTLING_SECONDS * 1000)
    bench.store.down = True
    with pytest.raises(StoreUnavailable):
        await bench.poll.poll_once()
    bench.store.down = False
    assert await bench.poll.poll_once() == 1
    assert bench.stored() == [happened]


async def test_the_loop_survives_failures_and_stops(bench: Bench) -> None:
    """Stripe is away at the first poll; the second, an interval later, succeeds."""
    happened = bench.happen()
    bench.clock.advance_ms(SETTLING_SECONDS * 1000)
    bench.stripe.failures = [Transient(TransientReason.STRIPE_UNREACHABLE, "")]
    stop = asyncio.Event()
    running = asyncio.create_task(bench.poll.run(stop))
    await until(lambda: bench.clock.sleepers > 0)
    assert bench.stored() == []
    bench.clock.advance_ms(900_000)
    await until(lambda: bool(bench.store.stored))
    stop.set()
    await asyncio.wait_for(running, 5)
    assert bench.stored() == [happened]
