"""The consumer: nothing is skipped, nothing holds up what it has nothing to do with."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka.errors import CommitFailedError
from prometheus_client import CollectorRegistry

from services.webhooks.consumer import HEARTBEAT, Consumer
from services.webhooks.errors import Permanent, PermanentReason, Transient, TransientReason
from services.webhooks.event import StripeEvent
from services.webhooks.metrics import Metrics
from services.webhooks.projector import Batch
from tests.unit.webhooks.fakes import FakeLog, customer_body
from tollgate.ledger.billing import Receipt
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import ManualClock
from tollgate.runtime.faults import Faults
from tollgate.runtime.health import Health


def event(number: int) -> dict[str, Any]:
    return {
        "id": f"evt_{number}",
        "object": "event",
        "type": "customer.updated",
        "created": 1,
        "data": {"object": customer_body(f"cus_{number}")},
    }


class Target:
    """Projects by a script: the errors to raise for an event, in order, then success."""

    def __init__(self, **script: list[Exception]) -> None:
        self.script = script
        self.done: list[str] = []
        self.parked: list[tuple[str, str]] = []
        self.park_failures: list[Exception] = []
        self.tries = 0

    async def project(self, event: StripeEvent, batch: Batch) -> str:
        self.tries += 1
        errors = self.script.get(event.event_id)
        if errors:
            raise errors.pop(0)
        self.done.append(event.event_id)
        return "projected"

    async def park(self, receipt: Receipt, reason: PermanentReason) -> None:
        if self.park_failures:
            raise self.park_failures.pop(0)
        self.parked.append((receipt.event_id, reason))


class Bench:
    """A consumer over a log and a scripted target, in virtual time."""

    def __init__(self, log: FakeLog, target: Target, tries_max: int = 3) -> None:
        self.log = log
        self.target = target
        self.clock = ManualClock()
        self.registry = CollectorRegistry()
        self.stop = asyncio.Event()
        self.health = Health(self.clock)
        self.health.watch(HEARTBEAT, 10)
        self.consumer = Consumer(
            log,
            target,
            self.clock,
            Metrics(self.registry),
            self.health,
            Faults(),
            backoff=Backoff(1, 60, jitter=0),
            permanent_tries_max=tries_max,
            batch_records_max=100,
        )

    async def step(self, times: int = 1, advance_ms: int = 0) -> None:
        for _ in range(times):
            await self.consumer.step(self.stop)
            self.clock.advance_ms(advance_ms)

    def sample(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"tollgate_webhooks_{name}", labels)


def unavailable() -> Transient:
    return Transient(TransientReason.STRIPE_UNREACHABLE, "down")


async def test_records_are_projected_in_order_and_committed() -> None:
    """The committed offset is that of the next record."""
    bench = Bench(FakeLog([event(1), event(2)], [event(3)]), Target())
    await bench.step()
    assert sorted(bench.target.done) == ["evt_1", "evt_2", "evt_3"]
    assert bench.target.done.index("evt_1") < bench.target.done.index("evt_2")
    assert list(bench.log.committed.values()) == [2, 1]
    assert bench.sample("lag_records") == 0


async def test_a_transient_error_holds_its_partition_only() -> None:
    """The partition waits at the record that failed; the other goes on; nothing is skipped."""
    bench = Bench(
        FakeLog([event(1), event(2), event(3)], [event(4)]), Target(evt_2=[unavailable(), unavailable()])
    )
    await bench.step()
    assert sorted(bench.target.done) == ["evt_1", "evt_4"]
    assert list(bench.log.committed.values()) == [1, 1]
    assert bench.sample("lag_records") == 2
    await bench.step(5)
    assert bench.target.tries == 3, "no try before its time"
    bench.clock.advance_ms(1_000)
    await bench.step(5)
    assert bench.target.tries == 4
    bench.clock.advance_ms(1_999)
    await bench.step()
    assert bench.target.tries == 4, "the second wait is twice the first"
    bench.clock.advance_ms(1)
    await bench.step()
    assert bench.target.done == ["evt_1", "evt_4", "evt_2", "evt_3"]
    assert bench.log.committed[bench.log.parts[0]] == 3
    assert bench.sample("retries_total", reason="stripe_unreachable") == 2


async def test_transient_errors_are_never_given_up() -> None:
    """However long Stripe is away."""
    bench = Bench(FakeLog([event(1)]), Target(evt_1=[unavailable() for _ in range(50)]))
    await bench.step(51, advance_ms=60_000)
    assert bench.target.done == ["evt_1"]
    assert bench.target.parked == []


async def test_a_permanent_error_is_parked_after_a_few_tries() -> None:
    """Then the records behind it go on."""
    errors: list[Exception] = [Permanent(PermanentReason.NOT_FOUND, "") for _ in range(9)]
    bench = Bench(FakeLog([event(1), event(2)]), Target(evt_1=errors))
    await bench.step(3, advance_ms=60_000)
    assert bench.target.parked == [("evt_1", "not_found")]
    assert bench.target.done == ["evt_2"]
    assert len(errors) == 6
    assert bench.sample("events_projected_total", subject="parked", outcome="failed:not_found") == 1


async def test_transient_errors_do_not_use_up_permanent_tries() -> None:
    """A flaky Stripe must not park an event early."""
    missing = [Permanent(PermanentReason.NOT_FOUND, "") for _ in range(2)]
    bench = Bench(FakeLog([event(1)]), Target(evt_1=[missing[0], unavailable(), unavailable(), missing[1]]))
    await bench.step(5, advance_ms=60_000)
    assert (bench.target.done, bench.target.parked) == (["evt_1"], [])


async def test_a_bug_is_parked_like_a_poisonous_event() -> None:
    """One event must not stop a partition, whatever it makes us do."""
    bench = Bench(FakeLog([event(1), event(2)]), Target(evt_1=[KeyError("x") for _ in range(9)]))
    await bench.step(3, advance_ms=60_000)
    assert bench.target.parked == [("evt_1", "internal")]
    assert bench.target.done == ["evt_2"]


async def test_an_unreadable_record_is_parked_at_once_under_its_place() -> None:
    """It has no event id to be remembered by."""
    bench = Bench(FakeLog([b"\x00not json", event(2)]), Target())
    await bench.step()
    assert bench.target.parked == [("record:stripe.events/0/0", "unreadable")]
    assert bench.target.done == ["evt_2"]


async def test_what_cannot_be_parked_is_not_passed_over() -> None:
    """The ledger is down: the record stays."""
    bench = Bench(FakeLog([b"junk", event(2)]), Target())
    bench.target.park_failures = [Transient(TransientReason.LEDGER_UNAVAILABLE, "")]
    await bench.step()
    assert (bench.target.done, bench.log.committed) == ([], {})
    bench.clock.advance_ms(60_000)
    await bench.step()
    assert bench.target.done == ["evt_2"]


async def test_a_commit_that_fails_stops_nothing() -> None:
    """The offset is a hint; the inbox knows."""
    bench = Bench(FakeLog([event(1)]), Target())
    bench.log.commit_failures = [CommitFailedError()]
    await bench.step()
    assert bench.target.done == ["evt_1"]


async def test_a_stop_finishes_the_record_in_hand() -> None:
    """The rest of the batch is left for the next owner."""
    bench = Bench(FakeLog([event(1), event(2)]), Target())
    inner = bench.target.project

    async def project(event: StripeEvent, batch: Batch) -> str:
        bench.stop.set()
        return await inner(event, batch)

    bench.target.project = project  # type: ignore[method-assign]
    await bench.consumer.run(bench.stop)
    assert bench.target.done == ["evt_1"]
    assert list(bench.log.committed.values()) == [1]


async def test_a_partition_taken_away_is_forgotten() -> None:
    """Its waiting is not carried over to a later assignment."""
    bench = Bench(FakeLog([event(1)]), Target(evt_1=[unavailable()]))
    await bench.step()
    [part] = bench.log.parts
    bench.log.parts = []
    await bench.step()
    bench.log.parts = [part]
    bench.log.paused.clear()
    await bench.step()
    assert bench.target.done == ["evt_1"]
    assert bench.sample("lag_records") == 0


async def test_the_loop_says_it_lives() -> None:
    """Waiting for a broken Stripe is progress; not turning is not."""
    bench = Bench(FakeLog([event(1)]), Target(evt_1=[unavailable() for _ in range(9)]))
    await bench.step(9, advance_ms=9_000)
    assert bench.health.livez()[0] == 200
    bench.clock.advance_ms(11_000)
    assert bench.health.livez()[0] == 503


@pytest.mark.parametrize("tries_max", [1, 5])
async def test_the_number_of_tries_is_a_setting(tries_max: int) -> None:
    """Exactly so many."""
    errors: list[Exception] = [Permanent(PermanentReason.REFUSED, "") for _ in range(9)]
    bench = Bench(FakeLog([event(1)]), Target(evt_1=errors), tries_max)
    await bench.step(12, advance_ms=60_000)
    assert len(errors) == 9 - tries_max
