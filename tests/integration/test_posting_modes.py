"""Every mode of posting through the whole failure table: all end at the same totals."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from sandbox.stripe.process import StripeStandIn
from tests.integration.posting_modes_rig import MODES, ModesRig
from tollgate.ledger.posting_rows import PostingState

# Stripe's client hands its bodies to httpx in a way that httpx no longer likes.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

CALLS = {"method": "POST", "path": "(meter_events|usage_records)$"}


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StripeStandIn]:
    with StripeStandIn.start(tmp_path_factory.mktemp("stripe") / "state.sqlite3") as running:
        yield running


@pytest.fixture
def rig(stand_in: StripeStandIn, tmp_path: Path, mode: str) -> Iterator[ModesRig]:
    made = ModesRig.make(f"sqlite:///{tmp_path / 'ledger.sqlite3'}", stand_in, mode)
    yield made
    made.close()


def grow(rig: ModesRig, by: int = 0) -> None:
    """Two customers, two windows; `by` more in each window the second time."""
    for number, customer in enumerate(sorted({customer for customer, _ in rig.truth} or rig.customers(2))):
        for window in range(2):
            rig.use(customer, 10 * (number + 1) + window + by, window)


FAULTS: dict[str, dict[str, object]] = {
    "drop_before": {"kind": "drop_before", "times": 5},
    "drop_after": {"kind": "drop_after", "times": 5},
    "500_before": {"kind": "error_500_before", "times": 5},
    "500_after": {"kind": "error_500_after", "times": 3},
    "500_before_saved": {"kind": "error_500_before", "times": 3, "saved": True},
    "429": {"kind": "rate_limit_429", "times": 6, "reason": "global-rate"},
    "lock_timeout": {"kind": "lock_timeout", "times": 5},
    "409": {"kind": "conflict_409", "times": 5},
    "401": {"kind": "unauthorized_401", "times": 3},
    "403": {"kind": "forbidden_403", "times": 3},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
@pytest.mark.parametrize("mode", MODES)
def test_a_fault_changes_nothing_in_the_end(rig: ModesRig, fault: dict[str, object]) -> None:
    """Each unit once, whatever Stripe does to the calls, also with usage that moves on meanwhile."""
    grow(rig)
    details = {key: value for key, value in fault.items() if key != "kind"}
    rig.control.add_fault(str(fault["kind"]), CALLS, **details)
    rig.run(lambda: rig.control.faults()[0]["hits"] >= 2)
    grow(rig, by=100)
    rig.run(rig.agrees)
    assert [rule["hits"] for rule in rig.control.faults()] == [fault["times"]]
    rig.check_law()


@pytest.mark.parametrize("mode", MODES)
def test_what_arrived_without_anybodys_knowledge_counts_once(rig: ModesRig) -> None:
    """A duplicate identifier is a delivery; setting a record twice is setting it once."""
    grow(rig)
    rig.plan()
    rig.send_behind_its_back()
    rig.run(rig.agrees)
    assert {p.state for p in rig.world.postings()} == {PostingState.DELIVERED}
    if rig.mode != "usage_record":
        assert {p.error for p in rig.world.postings()} == {"duplicate identifier"}
    rig.check_law()


@pytest.mark.parametrize("hours", [21, 30])
@pytest.mark.parametrize("arrived", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_unknown_for_longer_than_stripe_remembers(rig: ModesRig, arrived: bool, hours: int) -> None:
    """Answers lost, then no Stripe for a day: settled by summaries, or set again where that replaces."""
    grow(rig)
    rig.control.add_fault("drop_after" if arrived else "drop_before", CALLS)
    rig.run(lambda: all(p.first_sent_ms is not None for p in rig.world.postings()))
    grow(rig, by=100)
    rig.pass_time(hours * 3600)
    rig.control.clear_faults()
    rig.run(rig.agrees)
    rig.check_law()
    sent = [event["identifier"] for event in rig.control.meter_events(event_name=rig.name)]
    if rig.mode == "delta":
        assert len(sent) == len(set(sent))


@pytest.mark.parametrize("mode", ["delta", "window_total"])
def test_a_meter_that_is_deactivated_for_a_while_loses_nothing(rig: ModesRig) -> None:
    """Refused at once while it is inactive, whatever is counted meanwhile; a usage record has no meter."""
    grow(rig)
    rig.run(rig.agrees)
    first = rig.at_stripe()
    (meter,) = [m for m in rig.client.v1.billing.meters.list({"limit": 100}) if m.event_name == rig.name]
    rig.client.v1.billing.meters.deactivate(meter.id)
    grow(rig, by=100)
    minutes = iter(range(5))
    rig.run(lambda: next(minutes) == 4)
    assert rig.at_stripe() == first
    assert not rig.is_settled()
    grow(rig, by=200)
    rig.client.v1.billing.meters.reactivate(meter.id)
    rig.run(rig.agrees)
    rig.check_law()


@pytest.mark.parametrize("mode", ["delta", "window_total"])
def test_a_refusal_after_the_2xx_is_taken_back_and_posted_again(rig: ModesRig) -> None:
    """The meter was inactive when the events were looked at; usage records are refused at once or not at all."""
    grow(rig)
    rig.run(rig.agrees)
    rig.control.config(meters={"validation": "async"})
    (meter,) = [m for m in rig.client.v1.billing.meters.list({"limit": 100}) if m.event_name == rig.name]
    grow(rig, by=100)
    rig.plan()
    rig.client.v1.billing.meters.deactivate(meter.id)
    rig.send_behind_its_back()
    rig.world.deliver()
    rig.client.v1.billing.meters.reactivate(meter.id)
    assert rig.at_stripe() != rig.expected()
    refused = [e for e in rig.control.meter_events(event_name=rig.name) if e["status"] == "rejected"]
    assert len(refused) == 4
    for event in refused:
        rig.world.reject(event["identifier"], event["error_code"])
    rig.run(rig.agrees)
    assert sum(p.state is PostingState.VOID for p in rig.world.postings()) == 4
    rig.check_law()


@pytest.mark.parametrize("arrived", [True, False])
@pytest.mark.parametrize("mode", ["usage_record"])
def test_usage_records_end_with_their_period(rig: ModesRig, arrived: bool) -> None:
    """No answer, then the period is over: Stripe's records say what is on the invoice, the rest is held, to the unit."""
    grow(rig)
    rig.run(rig.agrees)
    first = rig.expected()
    rig.control.add_fault("drop_after" if arrived else "drop_before", CALLS)
    grow(rig, by=100)
    rig.run(lambda: sum(p.state is PostingState.UNKNOWN for p in rig.world.postings()) == 4)
    assert rig.period_end_s is not None
    rig.pass_time(rig.period_end_s + 3600 - rig.control.now_seconds())
    rig.control.clear_faults()
    rig.run(rig.is_settled)
    rig.plan()
    ends = {p.state for p in rig.world.postings() if p.seq == 2}
    if arrived:
        assert ends == {PostingState.SETTLED}
        assert rig.agrees()
    else:
        assert ends == {PostingState.VOID}
        assert rig.at_stripe() == first
        held = {(account, window): found for (_, window, account), found in rig.world.held().items()}
        assert len(held) == 4
        assert set(held.values()) == {("period_over", Decimal(100))}
    assert rig.invoiced() == {customer: 3 * quantity for customer, quantity in rig.at_stripe().items()}
    rig.check_law()


@pytest.mark.parametrize("mode", ["usage_record"])
def test_usage_after_the_period_is_held_and_the_next_period_goes_on(rig: ModesRig) -> None:
    """Our clock behind Stripe's: refused, taken back, held; nothing is posted in a loop."""
    grow(rig)
    rig.run(rig.agrees)
    first = rig.at_stripe()
    assert rig.period_end_s is not None
    rig.control.advance(rig.period_end_s + 60 - rig.control.now_seconds())
    grow(rig, by=100)
    rig.run(rig.is_settled)
    for _ in range(3):
        rig.plan()
    assert {p.seq for p in rig.world.postings()} == {1, 2, 3}
    assert {reason for reason, _ in rig.world.held().values()} == {"period_over"}
    assert rig.at_stripe() == first
    rig.check_law()
