"""stripe_sync against the stand-in for Stripe, with each of its faults: what it holds equals the usage exactly."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.stripe.process import StripeStandIn
from tests.integration.stripe_sync_rig import Rig
from tests.parts.kafka import BrokerSettings
from tollgate.ledger.posting_rows import PostingState
from tollgate.ledger.postings import resume_posting, set_paused

EVENTS = {"path": "/v1/billing/meter_events$"}


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StripeStandIn]:
    with StripeStandIn.start(tmp_path_factory.mktemp("stripe") / "state.sqlite3") as running:
        yield running


@pytest.fixture
def rig(
    sqlite_url: str, broker_settings: BrokerSettings, stand_in: StripeStandIn, tmp_path: Path
) -> Iterator[Rig]:
    made = Rig.make(sqlite_url, broker_settings, stand_in, tmp_path)
    yield made
    made.close()


def _grow(rig: Rig, meter: int, customers: list[str], windows: int = 2) -> dict[str, int]:
    """Give each customer some usage; returns the truth."""
    truth = {}
    for number, customer in enumerate(customers):
        for window in range(windows):
            rig.use(meter, customer, 10 * (number + 1) + window, window)
        truth[customer] = sum(10 * (number + 1) + window for window in range(windows))
    return truth


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "drop_before", "times": 3},
        {"kind": "drop_after", "times": 3},
        {"kind": "error_500_before", "times": 3},
        {"kind": "error_500_after", "times": 2},
        {"kind": "error_500_before", "times": 2, "saved": True},
        {"kind": "rate_limit_429", "times": 4, "reason": "global-rate"},
        {"kind": "lock_timeout", "times": 3},
        {"kind": "conflict_409", "times": 3},
        {"kind": "unauthorized_401", "times": 2},
    ],
    ids=lambda fault: "-".join(str(value) for value in fault.values()),
)
def test_a_fault_changes_nothing_in_the_end(rig: Rig, fault: dict[str, object]) -> None:
    """Whatever Stripe does to the calls, each unit arrives once, and more usage goes on from there."""
    meter, name = rig.meter()
    customers = [rig.customer(name) for _ in range(2)]
    truth = _grow(rig, meter, customers)
    details = {key: value for key, value in fault.items() if key != "kind"}
    rig.control.add_fault(str(fault["kind"]), EVENTS, **details)
    process = rig.start()
    rig.wait_for_totals(name, truth)
    assert [rule["hits"] for rule in rig.control.faults()] == [fault["times"]]
    rig.use(meter, customers[0], 1000, 5)
    truth[customers[0]] += 1000
    rig.wait_for_totals(name, truth)
    assert process.end() == 0


def test_one_broken_customer_stops_nobody_else(rig: Rig) -> None:
    """A customer whose every call fails is tried on its own; all others are served at once."""
    meter, name = rig.meter()
    customers = [rig.customer(name) for _ in range(4)]
    truth = _grow(rig, meter, customers)
    rig.control.add_fault("error_500_before", {**EVENTS, "customer": customers[0]})
    rig.start()
    others = {c: q for c, q in truth.items() if c != customers[0]}
    rig.wait(lambda: rig.at_stripe(name) == others, "the others")
    rig.control.clear_faults()
    rig.wait_for_totals(name, truth)


def test_a_customer_deleted_at_stripe_is_parked(rig: Rig) -> None:
    """A posting for a customer the ledger knows as deleted is never sent; the others go on."""
    meter, name = rig.meter()
    gone, stays = rig.customer(name), rig.customer(name)
    truth = _grow(rig, meter, [gone, stays], windows=1)
    rig.client.v1.customers.delete(gone)
    rig.world.customer(gone, deleted=True)
    rig.start()
    rig.wait_for_totals(name, {stays: truth[stays]})
    rig.wait(
        lambda: [p.state for p in rig.world.postings() if p.customer_id == gone] == [PostingState.PARKED],
        "the deleted customer's posting to be parked",
    )


def test_a_refused_key_stops_everything_and_says_so(rig: Rig) -> None:
    """401: not ready, nothing is burned; once the key is taken again all goes on by itself."""
    meter, name = rig.meter()
    customer = rig.customer(name)
    process = rig.start()
    rig.wait(lambda: '"lease.taken"' in process.tail(), "the lease")
    rig.control.add_fault("unauthorized_401", {"path": "/v1/"})
    truth = _grow(rig, meter, [customer])
    rig.wait(lambda: process.get("/readyz")[0] == 503, "not ready")
    assert process.get("/livez")[0] == 200
    assert {p.attempts for p in rig.world.postings()} <= {0}
    rig.control.clear_faults()
    rig.wait_for_totals(name, truth)
    rig.wait(lambda: process.get("/readyz")[0] == 200, "ready again")


def test_a_deactivated_meter_halts_alone(rig: Rig) -> None:
    """Postings of an inactive meter wait, those of others go on; reactivated, it is served."""
    meter, name = rig.meter()
    other, other_name = rig.meter()
    customer = rig.customer(name)
    rig.world.period(customer, other_name, rig.base_ms - 10**9, rig.base_ms + 10**9, item="si_other")
    stripe_meter = next(m for m in rig.client.v1.billing.meters.list({"limit": 100}) if m.event_name == name)
    rig.client.v1.billing.meters.deactivate(stripe_meter.id)
    rig.use(meter, customer, 7)
    rig.use(other, customer, 8)
    process = rig.start()
    rig.wait(lambda: rig.at_stripe(other_name) == {customer: 8}, "the other meter")
    assert rig.at_stripe(name) == {}
    assert process.metric("tollgate_stripe_sync_halted_meters") == 1
    rig.client.v1.billing.meters.reactivate(stripe_meter.id)
    rig.wait(lambda: rig.at_stripe(name) == {customer: 7}, "the reactivated meter")


def test_pause_holds_and_resume_continues(rig: Rig) -> None:
    """While paused nothing is planned nor sent."""
    meter, name = rig.meter()
    customer = rig.customer(name)
    set_paused(rig.world.engine, True, 1)
    rig.use(meter, customer, 5)
    process = rig.start()
    rig.wait(lambda: '"lease.taken"' in process.tail(), "the lease")
    rig.use(meter, customer, 6)
    assert rig.at_stripe(name) == {}
    set_paused(rig.world.engine, False, 2)
    rig.wait_for_totals(name, {customer: 6})


def test_a_refused_posting_is_parked_and_resumed_under_a_new_key(rig: Rig) -> None:
    """An operator lets a parked posting go; it arrives once."""
    meter, name = rig.meter()
    customer = rig.customer(name)
    rig.world.customer(customer, deleted=True)
    rig.use(meter, customer, 5)
    rig.start()
    rig.wait(
        lambda: [p.state for p in rig.world.postings()] == [PostingState.PARKED], "the posting to be parked"
    )
    rig.world.customer(customer, deleted=False)
    assert resume_posting(rig.world.engine, *rig.world.postings()[0].ref)
    rig.wait_for_totals(name, {customer: 5})


def test_a_missing_row_is_imported_from_the_journal(rig: Rig) -> None:
    """After a restore that lost postings Stripe has, the journal brings them back and nothing is doubled."""
    meter, name = rig.meter()
    customer = rig.customer(name)
    rig.use(meter, customer, 5)
    first = rig.start()
    rig.wait_for_totals(name, {customer: 5})
    assert first.end() == 0
    backup = rig.url.removeprefix("sqlite:///")
    rig.world.engine.dispose()
    saved = Path(backup).read_bytes()
    rig.use(meter, customer, 9)
    second = rig.start()
    rig.wait_for_totals(name, {customer: 9})
    assert second.end() == 0
    rig.world.engine.dispose()
    for suffix in ("-wal", "-shm"):
        Path(backup + suffix).unlink(missing_ok=True)
    Path(backup).write_bytes(saved)
    rig.world.offset = 1
    third = rig.start()
    rig.wait(lambda: len(rig.world.postings()) == 2, "the lost posting to be imported")
    assert third.metric("tollgate_stripe_sync_planning_waiting") in (0, 1)
    rig.use(meter, customer, 9)
    rig.use(meter, customer, 11)
    rig.wait_for_totals(name, {customer: 11})


def test_two_processes_have_one_leader_and_a_stopped_one_doubles_nothing(rig: Rig) -> None:
    """SIGSTOP the leader past its lease: the standby takes over; SIGCONT: the old one changes nothing."""
    meter, name = rig.meter()
    customers = [rig.customer(name) for _ in range(3)]
    truth = _grow(rig, meter, customers)
    processes = [rig.start(), rig.start()]
    rig.wait_for_totals(name, truth)

    def leaders() -> list[float]:
        return [process.metric("tollgate_stripe_sync_leader") for process in processes]

    rig.wait(lambda: sorted(leaders()) == [0, 1], "one leader")
    leader, standby = sorted(processes, key=lambda p: -p.metric("tollgate_stripe_sync_leader"))
    rig.control.add_fault("delay", EVENTS, delay_ms=300)
    rig.use(meter, customers[0], 500, 3)
    rig.wait(lambda: any(p.state is PostingState.SENDING for p in rig.world.postings()), "a call under way")
    leader.send(signal.SIGSTOP)
    rig.use(meter, customers[1], 600, 3)
    truth[customers[0]] += 500
    truth[customers[1]] += 600
    rig.wait(lambda: standby.metric("tollgate_stripe_sync_leader") == 1, "the standby to lead")
    rig.wait_for_totals(name, truth)
    leader.send(signal.SIGCONT)
    rig.use(meter, customers[2], 700, 3)
    truth[customers[2]] += 700
    rig.wait_for_totals(name, truth)
    rig.wait(lambda: leader.metric("tollgate_stripe_sync_leader") == 0, "the old leader to notice")
    assert standby.metric("tollgate_stripe_sync_leader") == 1
    identifiers = [event["identifier"] for event in rig.control.meter_events(event_name=name)]
    assert len(identifiers) == len(set(identifiers))
