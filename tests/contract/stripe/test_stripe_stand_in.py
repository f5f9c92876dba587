"""What only the stand-in does: faults on demand, legacy usage records, and surviving SIGKILL."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import stripe

from sandbox.stripe.process import StandInControl, StripeStandIn
from tests.contract.stripe.target import Target, client_of

OLD_VERSION = "2025-02-24.acacia"


def test_drop_before_leaves_no_effect(target: Target, control: StandInControl) -> None:
    """The connection ends without an answer and nothing was stored."""
    meter, customer = target.meter(), target.customer()
    control.add_fault("drop_before", {"customer": customer}, times=1)
    with pytest.raises(stripe.APIConnectionError) as caught:
        target.send(meter, customer, 1)
    assert caught.value.should_retry is True
    assert control.meter_events(customer) == []


def test_drop_after_leaves_the_effect(target: Target, control: StandInControl) -> None:
    """The connection ends without an answer and the event is stored; a resend is a duplicate."""
    meter, customer, identifier = target.meter(), target.customer(), target.name("id")
    control.add_fault("drop_after", {"event_name": meter.event_name}, times=1)
    with pytest.raises(stripe.APIConnectionError):
        target.send(meter, customer, 1, identifier=identifier)
    assert [event["identifier"] for event in control.meter_events(customer)] == [identifier]
    with pytest.raises(stripe.InvalidRequestError, match="already exists"):
        target.send(meter, customer, 1, identifier=identifier)


@pytest.mark.parametrize(
    ("kind", "details", "code", "headers"),
    [
        (
            "rate_limit_429",
            {"reason": "endpoint-rate"},
            "rate_limit",
            {"stripe-rate-limited-reason": "endpoint-rate"},
        ),
        ("rate_limit_429", {"should_retry": True}, "rate_limit", {"stripe-should-retry": "true"}),
        ("lock_timeout", {}, "lock_timeout", {}),
    ],
)
def test_rate_limits(
    target: Target,
    control: StandInControl,
    kind: str,
    details: dict[str, object],
    code: str,
    headers: dict[str, str],
) -> None:
    """A 429 has the code and headers asked for, leaves no effect, and is not kept under the key."""
    key = target.name("key")
    control.add_fault(kind, {"path": "^/v1/customers$"}, times=1, **details)
    with pytest.raises(stripe.RateLimitError) as caught:
        target.client.v1.customers.create({"name": "A"}, {"idempotency_key": key})
    assert caught.value.error is not None
    assert caught.value.error.code == code
    got = {name.lower(): value for name, value in (caught.value.headers or {}).items()}
    assert {name: got.get(name) for name in headers} == headers
    assert target.client.v1.customers.create({"name": "A"}, {"idempotency_key": key}).name == "A"


def test_faults_by_probability_are_the_same_for_a_seed(target: Target, control: StandInControl) -> None:
    """A seed decides which calls fail, and the rule counts them."""

    def outcomes() -> list[bool]:
        control.clear_faults()
        control.add_fault("conflict_409", {"path": "^/v1/products$"}, probability=0.5, seed=11)
        seen = []
        for _ in range(20):
            try:
                target.client.v1.products.list()
                seen.append(True)
            except stripe.APIError:
                seen.append(False)
        return seen

    first = outcomes()
    assert first == outcomes()
    assert 0 < sum(first) < 20
    [rule] = control.faults()
    assert (rule["matched"], rule["hits"]) == (20, first.count(False))


def test_everything_answered_survives_sigkill(stand_in: StripeStandIn) -> None:
    """After a SIGKILL: same account, same objects, same keys, same identifiers, same time."""
    client = client_of(stand_in)
    target = Target(client, lambda: 0, 5)
    with stand_in.control as control:
        control.advance(100 * 86_400)
        now = control.now_seconds()
        account = client.v1.accounts.retrieve_current().id
        meter = target.meter()
        customer = client.v1.customers.create({"name": "A"}, {"idempotency_key": "k"}).id
        target.send(meter, customer, 5, now, "only-once")
        control.add_fault("conflict_409", {"path": "never"})
        before = control.totals()
        stand_in.kill()
        stand_in.restart()
        assert client.v1.accounts.retrieve_current().id == account
        assert client.v1.customers.create({"name": "A"}, {"idempotency_key": "k"}).id == customer
        with pytest.raises(stripe.InvalidRequestError, match="already exists"):
            target.send(meter, customer, 5, now, "only-once")
        assert control.totals() == before
        assert [row["quantity"] for row in before] == ["5"]
        assert control.now_seconds() >= now
        assert [rule["kind"] for rule in control.faults()] == ["conflict_409"]


def test_sigkill_in_full_flow_loses_nothing_answered(stand_in: StripeStandIn) -> None:
    """Events answered with 200 up to the moment of death are all there afterwards, each once."""
    target = Target(client_of(stand_in), lambda: int(time.time()), 5)
    meter, customers = target.meter(), [target.customer() for _ in range(4)]
    answered: list[str] = []

    def send_until_it_dies(customer: str) -> None:
        with contextlib.suppress(stripe.APIConnectionError):
            while True:
                answered.append(target.send(meter, customer, 1).identifier)

    with ThreadPoolExecutor(len(customers)) as pool:
        sending = [pool.submit(send_until_it_dies, customer) for customer in customers]
        assert target.eventually(lambda: len(answered) > 100)
        stand_in.kill()
        for sender in sending:
            sender.result()
    stand_in.restart()
    with stand_in.control as control:
        stored = [event["identifier"] for event in control.meter_events()]
        assert sum(int(row["quantity"]) for row in control.totals()) == len(stored)
    assert len(stored) == len(set(stored))
    # One call of each sender may have had its effect without its answer.
    assert set(answered) <= set(stored)
    assert len(stored) - len(answered) <= len(customers)


def _legacy_item(target: Target) -> tuple[str, int, int]:
    """A subscription item on a metered price without a meter, and its period."""
    price = target.client.raw_request(
        "post",
        "/v1/prices",
        currency="usd",
        unit_amount=3,
        product_data={"name": "Legacy"},
        recurring={"interval": "month", "usage_type": "metered", "aggregate_usage": "sum"},
        stripe_version=OLD_VERSION,
    ).data["id"]
    subscription = target.client.raw_request(
        "post",
        "/v1/subscriptions",
        customer=target.customer(),
        items=[{"price": price}],
        stripe_version=OLD_VERSION,
    ).data
    return (
        subscription["items"]["data"][0]["id"],
        subscription["current_period_start"],
        subscription["current_period_end"],
    )


def _record(target: Target, item: str, quantity: int, timestamp: int, action: str) -> None:
    target.client.raw_request(
        "post",
        f"/v1/subscription_items/{item}/usage_records",
        quantity=quantity,
        timestamp=timestamp,
        action=action,
        stripe_version=OLD_VERSION,
    )


def test_usage_records_increment_and_set(target: Target, control: StandInControl) -> None:
    """Increment adds at a timestamp, set replaces what it held; the period's invoice bills the sum."""
    item, start, end = _legacy_item(target)
    control.advance(10)
    for quantity, timestamp, action in (
        (5, start, "increment"),
        (6, start, "increment"),
        (100, start + 1, "set"),
        (7, start + 1, "set"),
    ):
        _record(target, item, quantity, timestamp, action)
    path = f"/v1/subscription_items/{item}/usage_record_summaries"
    [summary] = target.client.raw_request("get", path, stripe_version=OLD_VERSION).data["data"]
    assert (summary["total_usage"], summary["invoice"]) == (18, None)
    control.set_clock(end + 3600)
    current, billed = target.client.raw_request("get", path, stripe_version=OLD_VERSION).data["data"]
    assert (current["total_usage"], billed["total_usage"]) == (0, 18)
    assert target.client.v1.invoices.retrieve(billed["invoice"]).total == 54


def test_usage_records_stay_in_the_period(target: Target, control: StandInControl) -> None:
    """Before the period or in the future is a 400."""
    item, start, _ = _legacy_item(target)
    for timestamp in (start - 1, control.now_seconds() + 3600):
        with pytest.raises(stripe.InvalidRequestError):
            _record(target, item, 1, timestamp, "increment")


def test_usage_records_are_gone_since_basil(target: Target, control: StandInControl) -> None:
    """The address is unknown to newer API versions."""
    item, start, _ = _legacy_item(target)
    with pytest.raises(stripe.InvalidRequestError, match="Unrecognized request URL"):
        target.client.raw_request(
            "post", f"/v1/subscription_items/{item}/usage_records", quantity=1, timestamp=start
        )


def test_totals_are_per_hour_and_exact(target: Target, control: StandInControl) -> None:
    """The oracle sums by hour as exact text, and leaves out what a window replaced."""
    plain, hourly, customer = target.meter(), target.meter(window="hour"), target.customer()
    hour = control.now_seconds() // 3600 * 3600 - 7200
    for meter in (plain, hourly):
        for offset, value in ((1, "0.1"), (2, "0.2"), (3600, "999999999999999")):
            target.send(meter, customer, value, hour + offset)
    found = {
        (row["event_name"], row["window_start"]): (row["quantity"], row["events"])
        for row in control.totals(customer)
    }
    assert found == {
        (plain.event_name, hour): ("0.3", 2),
        (plain.event_name, hour + 3600): ("999999999999999", 1),
        (hourly.event_name, hour): ("0.2", 1),
        (hourly.event_name, hour + 3600): ("999999999999999", 1),
    }
