"""Idempotency keys: what is kept, replayed, refused and forgotten."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import stripe

from sandbox.stripe.process import StandInControl
from tests.contract.stripe.target import Target


def _create(target: Target, key: str, name: str) -> stripe.Customer:
    return target.client.v1.customers.create({"name": name}, {"idempotency_key": key})


def test_same_key_and_parameters_replay_the_first_answer(target: Target) -> None:
    """The second call answers the same customer and says that it replays."""
    key = target.name("key")
    first, second = _create(target, key, "A"), _create(target, key, "A")
    assert first.id == second.id
    assert second.last_response is not None
    headers = {name.lower(): value for name, value in second.last_response.headers.items()}
    assert headers["idempotent-replayed"] == "true"


def test_same_key_with_other_parameters_is_refused(target: Target) -> None:
    """A key belongs to its first parameters."""
    key = target.name("key")
    _create(target, key, "A")
    with pytest.raises(stripe.IdempotencyError) as caught:
        _create(target, key, "B")
    assert caught.value.http_status == 400


def test_same_key_at_another_endpoint_is_refused(target: Target) -> None:
    """A key belongs to its first endpoint."""
    key = target.name("key")
    _create(target, key, "A")
    with pytest.raises(stripe.IdempotencyError):
        target.client.v1.products.create({"name": "A"}, {"idempotency_key": key})


def test_validation_failures_are_not_kept(target: Target) -> None:
    """A call that was refused before it began leaves its key free for the corrected call."""
    key = target.name("key")
    with pytest.raises(stripe.InvalidRequestError):
        target.client.v1.products.create({}, {"idempotency_key": key})  # type: ignore[typeddict-item]
    assert target.client.v1.products.create({"name": "A"}, {"idempotency_key": key}).name == "A"


def test_keys_are_forgotten_after_24_hours(target: Target, control: StandInControl) -> None:
    """Past the horizon the same call is executed again."""
    key = target.name("key")
    first = _create(target, key, "A")
    control.advance(24 * 3600 + 1)
    assert _create(target, key, "A").id != first.id


@pytest.mark.parametrize(("kind", "effects"), [("error_500_before", 0), ("error_500_after", 1)])
def test_saved_500_replays_under_its_key(
    target: Target, control: StandInControl, kind: str, effects: int
) -> None:
    """A kept 500 comes back for the same key, effect or no effect, and nothing is done twice."""
    meter, customer, identifier, key = (
        target.meter(),
        target.customer(),
        target.name("id"),
        target.name("key"),
    )
    control.add_fault(kind, {"event_name": meter.event_name}, times=1, saved=True)
    params = {
        "event_name": meter.event_name,
        "payload": {"stripe_customer_id": customer, "value": "5"},
        "identifier": identifier,
    }
    for _ in range(2):
        with pytest.raises(stripe.APIError) as caught:
            target.client.v1.billing.meter_events.create(params, {"idempotency_key": key})  # type: ignore[arg-type]
        assert caught.value.http_status == 500
    assert len(control.meter_events(customer)) == effects
    # A new key with the same identifier settles it either way.
    if effects:
        with pytest.raises(stripe.InvalidRequestError, match="An event already exists with identifier"):
            target.client.v1.billing.meter_events.create(params)  # type: ignore[arg-type]
    else:
        target.client.v1.billing.meter_events.create(params)  # type: ignore[arg-type]
    assert [row["quantity"] for row in control.totals(customer)] == ["5"]


def test_unsaved_500_leaves_the_key_free(target: Target, control: StandInControl) -> None:
    """A failure before execution is not kept: the same key then works."""
    key = target.name("key")
    control.add_fault("error_500_before", {"path": "^/v1/customers$"}, times=1)
    with pytest.raises(stripe.APIError):
        _create(target, key, "A")
    assert _create(target, key, "A").name == "A"


def test_lost_answer_is_replayed(target: Target, control: StandInControl) -> None:
    """A connection cut after the effect is an unknown outcome; the same key then tells what happened."""
    key, name = target.name("key"), target.name("lost")
    control.add_fault("drop_after", {"method": "POST", "path": "^/v1/customers$"}, times=1)
    with pytest.raises(stripe.APIConnectionError):
        _create(target, key, name)
    replayed = _create(target, key, name)
    assert replayed.last_response is not None
    headers = {header.lower(): value for header, value in replayed.last_response.headers.items()}
    assert headers["idempotent-replayed"] == "true"
    listed = target.client.v1.customers.list({"limit": 5}).data
    assert [customer.name for customer in listed].count(name) == 1


def test_key_in_flight_is_a_conflict(target: Target, control: StandInControl) -> None:
    """While the first call is under way the same key answers 409."""
    key = target.name("key")
    control.add_fault("delay", {"path": "^/v1/customers$"}, times=1, delay_ms=300)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(_create, target, key, "A")
        time.sleep(0.1)
        with pytest.raises(stripe.APIError) as caught:
            _create(target, key, "A")
        assert caught.value.http_status == 409
        assert caught.value.error is not None
        assert caught.value.error.code == "idempotency_key_in_use"
        assert first.result().name == "A"
