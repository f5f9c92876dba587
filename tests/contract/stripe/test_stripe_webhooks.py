"""Webhooks and events: signed, repeated, rotated, listed."""

import json
from collections import Counter
from typing import Any

import pytest
import stripe

from sandbox.stripe.process import StandInControl
from tests.contract.stripe.target import Receiver, Target


def _listen(target: Target, receiver: Receiver, *types: str) -> stripe.WebhookEndpoint:
    return target.client.v1.webhook_endpoints.create(
        {"url": receiver.url, "enabled_events": list(types)}  # type: ignore[arg-type]
    )


def test_events_are_signed(target: Target, control: StandInControl, receiver: Receiver) -> None:
    """The SDK accepts the delivery with the endpoint's secret and refuses it changed."""
    endpoint = _listen(target, receiver, "customer.created")
    customer = target.customer()
    [(signature, body)] = receiver.wait(1)
    event = stripe.Webhook.construct_event(body, signature, str(endpoint.secret))
    assert (event.type, event.data.object["id"]) == ("customer.created", customer)
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.Webhook.construct_event(body + b" ", signature, str(endpoint.secret))
    target.client.v1.webhook_endpoints.delete(endpoint.id)


def test_secret_is_shown_once(target: Target) -> None:
    """Only the creation answers the secret."""
    endpoint = target.client.v1.webhook_endpoints.create(
        {"url": "https://example.com/hook", "enabled_events": ["customer.created"]}
    )
    assert str(endpoint.secret).startswith("whsec_")
    assert "secret" not in target.client.v1.webhook_endpoints.retrieve(endpoint.id)
    target.client.v1.webhook_endpoints.delete(endpoint.id)


def test_secret_is_shown_again_to_the_same_idempotency_key(target: Target) -> None:
    """Who lost the answer may ask once more; it is the same endpoint."""
    key = target.name("key")
    first, second = (
        target.client.v1.webhook_endpoints.create(
            {"url": "https://example.com/hook", "enabled_events": ["customer.created"]},
            {"idempotency_key": key},
        )
        for _ in range(2)
    )
    assert (second.id, second.secret) == (first.id, first.secret)
    target.client.v1.webhook_endpoints.delete(first.id)


def test_destination_of_thin_events_can_be_changed_and_switched(target: Target) -> None:
    """Its events are edited in place; disabled it stays where it is."""
    destinations = target.client.v2.core.event_destinations
    made = destinations.create(
        {
            "name": "errors",
            "type": "webhook_endpoint",
            "event_payload": "thin",
            "enabled_events": ["v1.billing.meter.no_meter_found"],
            "webhook_endpoint": {"url": "https://example.com/thin"},
            "metadata": {"tollgate_ledger": "ledger_contract"},
        }
    )
    both = ["v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"]
    assert sorted(destinations.update(made.id, {"enabled_events": both}).enabled_events) == both
    assert destinations.disable(made.id).status == "disabled"
    assert destinations.enable(made.id).status == "enabled"
    listed = destinations.list({"include": ["webhook_endpoint.url"]})
    (found,) = [each for each in listed.auto_paging_iter() if each.id == made.id]
    assert found.webhook_endpoint is not None
    assert found.webhook_endpoint.url == "https://example.com/thin"
    assert found.metadata is not None
    assert found.metadata["tollgate_ledger"] == "ledger_contract"
    destinations.delete(made.id)


def test_both_secrets_sign_during_a_rotation(
    target: Target, control: StandInControl, receiver: Receiver
) -> None:
    """Old and new secret verify until the old one expires."""
    endpoint = _listen(target, receiver, "customer.created")
    new = control.rotate_secret(endpoint.id, old_lives_seconds=3600)
    target.customer()
    [(signature, body)] = receiver.wait(1)
    for secret in (str(endpoint.secret), new):
        stripe.Webhook.construct_event(body, signature, secret)
    control.advance(3601)
    target.customer()
    signature, body = receiver.wait(2)[1]
    stripe.Webhook.construct_event(body, signature, new)
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.Webhook.construct_event(body, signature, str(endpoint.secret))
    target.client.v1.webhook_endpoints.delete(endpoint.id)


def test_failed_deliveries_are_repeated(target: Target, control: StandInControl, receiver: Receiver) -> None:
    """After a 500 the same event comes again, by virtual time."""
    control.config(webhooks={"retry_delays_seconds": [60, 600]})
    endpoint = _listen(target, receiver, "customer.created")
    receiver.answers[:] = [500, 503]
    target.customer()
    receiver.wait(1)
    assert target.eventually(lambda: len(control.deliveries(endpoint=endpoint.id)[0]["attempts"]) == 1)
    control.advance(61)
    receiver.wait(2)
    assert target.eventually(lambda: len(control.deliveries(endpoint=endpoint.id)[0]["attempts"]) == 2)
    control.advance(601)
    bodies = {body for _, body in receiver.wait(3)}
    assert len(bodies) == 1
    control.wait_deliveries()
    [delivery] = control.deliveries(endpoint=endpoint.id)
    assert [attempt["status"] for attempt in delivery["attempts"]] == [500, 503, 200]
    target.client.v1.webhook_endpoints.delete(endpoint.id)


def test_duplicates_come_when_asked_for(target: Target, control: StandInControl, receiver: Receiver) -> None:
    """With every event duplicated each comes twice, with one id."""
    control.config(webhooks={"duplicate_per_10_000": 10_000})
    endpoint = _listen(target, receiver, "customer.created")
    target.customer()
    first, second = (json.loads(body)["id"] for _, body in receiver.wait(2))
    assert first == second
    target.client.v1.webhook_endpoints.delete(endpoint.id)


def test_reordering_comes_when_asked_for(target: Target, control: StandInControl, receiver: Receiver) -> None:
    """With a reorder window events arrive in another order than they happened."""
    control.config(webhooks={"reorder_window_ms": 10_000, "seed": 3})
    control.freeze()
    endpoint = _listen(target, receiver, "customer.created")
    made = [target.customer() for _ in range(8)]
    arrived: list[str] = []
    for _ in range(11):
        control.advance(1)
        control.wait_deliveries()
        arrived = [json.loads(body)["data"]["object"]["id"] for _, body in receiver.got]
    assert sorted(arrived) == sorted(made)
    assert arrived != made
    target.client.v1.webhook_endpoints.delete(endpoint.id)


def test_endpoint_gets_the_shape_of_its_version(
    target: Target, control: StandInControl, receiver: Receiver
) -> None:
    """An endpoint pinned before basil sees the period on the subscription."""
    endpoint = target.client.v1.webhook_endpoints.create(
        {
            "url": receiver.url,
            "enabled_events": ["customer.subscription.created"],
            "api_version": "2025-02-24.acacia",
        }
    )
    target.client.v1.subscriptions.create(
        {"customer": target.customer(), "items": [{"price": target.price(target.meter())}]}
    )
    [(_, body)] = receiver.wait(1)
    event = json.loads(body)
    assert event["api_version"] == "2025-02-24.acacia"
    assert "current_period_end" in event["data"]["object"]
    target.client.v1.webhook_endpoints.delete(endpoint.id)


def test_subscription_tells_its_story(target: Target, control: StandInControl, receiver: Receiver) -> None:
    """A period's end is told by invoice.created, updated items, and an hour later the finalization."""
    endpoint = _listen(
        target,
        receiver,
        "customer.subscription.updated",
        "customer.subscription.deleted",
        "invoice.created",
        "invoice.finalized",
        "invoice.paid",
    )
    customer = target.customer()
    subscription = target.client.v1.subscriptions.create(
        {"customer": customer, "items": [{"price": target.price(target.meter())}]}
    )
    end = subscription["items"].data[0].current_period_end
    control.set_clock(end + 3600)
    target.client.v1.subscriptions.cancel(subscription.id)

    def told() -> list[dict[str, Any]]:
        events = [json.loads(body) for _, body in list(receiver.got)]
        # Time moves for every test's subscriptions; only this customer's story is told here.
        return [event for event in events if event["data"]["object"]["customer"] == customer]

    assert target.eventually(lambda: len(told()) >= 8)
    control.wait_deliveries()
    assert Counter(event["type"] for event in told()) == {
        "invoice.created": 2,
        "invoice.finalized": 2,
        "invoice.paid": 2,
        "customer.subscription.updated": 1,
        "customer.subscription.deleted": 1,
    }
    [updated] = [event for event in told() if event["type"] == "customer.subscription.updated"]
    before = updated["data"]["previous_attributes"]["items"]["data"][0]
    after = updated["data"]["object"]["items"]["data"][0]
    assert before["current_period_end"] == after["current_period_start"] == end == updated["created"]
    target.client.v1.webhook_endpoints.delete(endpoint.id)


def test_events_are_listed_by_type(target: Target) -> None:
    """What webhooks told can be read again."""
    customer = target.customer()
    target.client.v1.customers.update(customer, {"name": "B"})

    def listed() -> bool:
        events = target.client.v1.events.list({"type": "customer.updated", "limit": 100}).data
        return [event.data.object["id"] for event in events].count(customer) == 1

    assert target.eventually(listed)


def test_events_reach_back_30_days(target: Target, control: StandInControl) -> None:
    """An older event is gone."""
    target.customer()
    [event] = target.client.v1.events.list({"limit": 1}).data
    control.advance(30 * 86_400 + 1)
    with pytest.raises(stripe.InvalidRequestError):
        target.client.v1.events.retrieve(event.id)


def test_thin_event_is_signed_and_fetched(
    target: Target, control: StandInControl, receiver: Receiver
) -> None:
    """A meter's error report comes as a thin notification; its data is fetched with the SDK."""
    destination = target.client.v2.core.event_destinations.create(
        {
            "name": "errors",
            "type": "webhook_endpoint",
            "event_payload": "thin",
            "enabled_events": ["v1.billing.meter.error_report_triggered"],
            "webhook_endpoint": {"url": receiver.url},
            "include": ["webhook_endpoint.signing_secret"],
        }
    )
    assert destination.webhook_endpoint is not None
    secret = str(destination.webhook_endpoint.signing_secret)
    meter = target.meter()
    identifier = target.send(meter, "cus_nobody", 1).identifier
    control.advance(10)
    [(signature, body)] = receiver.wait(1)
    notification = target.client.parse_event_notification(body, signature, secret)
    assert isinstance(notification, stripe.events.V1BillingMeterErrorReportTriggeredEventNotification)
    assert notification.related_object.id == meter.id
    report = notification.fetch_event().data.reason
    assert report.error_types[0].sample_errors[0].request.identifier == identifier
    assert notification.fetch_related_object().event_name == meter.event_name
    target.client.v2.core.event_destinations.delete(destination.id)
