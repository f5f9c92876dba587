"""Meter events: identifiers, bounds, and what is refused at once or only reported."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
import stripe

from sandbox.stripe.process import StandInControl
from tests.contract.stripe.target import Target

DAY_SECONDS = 86_400


def test_duplicate_identifier_is_refused_in_stripes_words(target: Target) -> None:
    """A second event with an identifier is a 400 that names it and forbids retrying."""
    meter, customer = target.meter(), target.customer()
    identifier = target.name("id")
    target.send(meter, customer, 5, identifier=identifier)
    with pytest.raises(stripe.InvalidRequestError, match="An event already exists with identifier") as caught:
        target.send(meter, customer, 5, identifier=identifier)
    assert caught.value.http_status == 400
    assert caught.value.headers is not None
    assert caught.value.headers["stripe-should-retry"] == "false"


def test_duplicate_with_another_value_is_refused_too(target: Target) -> None:
    """The identifier alone decides: the first value stands."""
    meter, customer, identifier = target.meter(), target.customer(), target.name("id")
    target.send(meter, customer, 5, identifier=identifier)
    with pytest.raises(stripe.InvalidRequestError, match="already exists"):
        target.send(meter, customer, 7, identifier=identifier)
    start = target.now_seconds() // 3600 * 3600 - 3600
    assert target.eventually(
        lambda: target.summed(meter, customer, start, start + 3 * 3600) == [(start, 5.0)]
    )


def test_identifier_is_free_again_after_24_hours(target: Target, control: StandInControl) -> None:
    """Past the horizon a resend is a new event, and counts twice."""
    meter, customer, identifier = target.meter(), target.customer(), target.name("id")
    target.send(meter, customer, 5, identifier=identifier)
    control.advance(DAY_SECONDS - 60)
    with pytest.raises(stripe.InvalidRequestError, match="already exists"):
        target.send(meter, customer, 5, identifier=identifier)
    control.advance(61)
    target.send(meter, customer, 5, identifier=identifier)
    assert sum(int(row["quantity"]) for row in control.totals(customer)) == 10


@pytest.mark.parametrize(
    ("offset_seconds", "accepted"),
    [(-35 * DAY_SECONDS + 60, True), (-35 * DAY_SECONDS - 60, False), (240, True), (400, False)],
)
def test_timestamps_are_bounded(target: Target, offset_seconds: int, accepted: bool) -> None:
    """35 days back and 5 minutes ahead are the limits."""
    meter, customer = target.meter(), target.customer()
    timestamp = target.now_seconds() + offset_seconds
    if accepted:
        assert target.send(meter, customer, 1, timestamp).timestamp == timestamp
    else:
        with pytest.raises(stripe.InvalidRequestError):
            target.send(meter, customer, 1, timestamp)


@pytest.mark.parametrize("value", ["9" * 16, "1.234567890123456", "many", "1e3", "NaN", ""])
def test_values_that_are_no_plain_number_of_15_digits_are_refused(target: Target, value: str) -> None:
    """More than 15 significant digits, or no decimal number at all, is a 400."""
    with pytest.raises(stripe.InvalidRequestError):
        target.send(target.meter(), target.customer(), value)


def test_fifteen_digits_are_accepted(target: Target) -> None:
    """The largest value of 15 digits goes through."""
    event = target.send(target.meter(), target.customer(), "9" * 15)
    assert event.payload["value"] == "9" * 15


def test_identifier_longer_than_100_characters_is_refused(target: Target) -> None:
    """100 characters are the limit of an identifier."""
    meter, customer = target.meter(), target.customer()
    fitting = (target.name("id") + "x" * 100)[:100]
    assert target.send(meter, customer, 1, identifier=fitting).identifier == fitting
    with pytest.raises(stripe.InvalidRequestError):
        target.send(meter, customer, 1, identifier=fitting + "x")


def test_unknown_customer_is_accepted_and_reported_later(target: Target, control: StandInControl) -> None:
    """The answer is 200; a thin event names the identifier; nothing is counted."""
    meter, known = target.meter(), target.customer()
    target.client.v1.customers.delete(known)
    identifier = target.send(meter, known, 3).identifier
    control.advance(20)
    found = target.client.raw_request("get", "/v2/core/events", object_id=meter.id)
    [event] = found.data["data"]
    assert event["type"] == "v1.billing.meter.error_report_triggered"
    reason = event["data"]["reason"]
    assert reason["error_count"] == 1
    assert reason["error_types"][0]["code"] == "meter_event_customer_not_found"
    assert reason["error_types"][0]["sample_errors"][0]["request"]["identifier"] == identifier
    assert control.totals(known) == []


def test_event_name_without_a_meter_is_accepted_and_reported_later(
    target: Target, control: StandInControl
) -> None:
    """No meter: 200, then ``no_meter_found``; a meter made afterwards does not revive the event."""
    name, customer = target.name("nobody"), target.customer()
    payload = {"stripe_customer_id": customer, "value": "1"}
    target.client.v1.billing.meter_events.create({"event_name": name, "payload": payload})
    control.advance(20)
    events = target.client.raw_request("get", "/v2/core/events", limit=100).data["data"]
    reported = [
        kind
        for event in events
        if event["type"] == "v1.billing.meter.no_meter_found"
        for kind in event["data"]["reason"]["error_types"]
    ]
    assert any(name in kind["sample_errors"][0]["error_message"] for kind in reported)
    assert control.totals(customer) == []


def test_error_reports_list_samples_only(target: Target, control: StandInControl) -> None:
    """The count is complete, the samples are not."""
    control.config(meters={"error_report_samples": 2})
    control.set_clock((control.now_seconds() // 10 + 1) * 10, frozen=True)
    meter = target.meter()
    for _ in range(5):
        target.send(meter, "cus_nobody", 1)
    control.advance(10)
    found = target.client.raw_request("get", "/v2/core/events", object_id=meter.id)
    [event] = found.data["data"]
    [kind] = event["data"]["reason"]["error_types"]
    assert (kind["error_count"], len(kind["sample_errors"])) == (5, 2)


def test_inactive_meter_refuses_events(target: Target) -> None:
    """A deactivated meter takes nothing until it is reactivated."""
    meter, customer = target.meter(), target.customer()
    target.client.v1.billing.meters.deactivate(meter.id)
    with pytest.raises(stripe.InvalidRequestError):
        target.send(meter, customer, 1)
    target.client.v1.billing.meters.reactivate(meter.id)
    assert target.send(meter, customer, 1).event_name == meter.event_name


def test_async_validation_reports_what_sync_refuses(target: Target, control: StandInControl) -> None:
    """With validation set to async a bad timestamp is accepted and reported."""
    control.config(meters={"validation": "async"})
    meter, customer = target.meter(), target.customer()
    target.send(meter, customer, 1, target.now_seconds() - 36 * DAY_SECONDS)
    [event] = control.meter_events(customer)
    assert (event["status"], event["error_code"]) == ("rejected", "timestamp_too_far_in_past")


def test_cancelled_event_counts_no_more(target: Target) -> None:
    """An adjustment takes one event back out of the sum."""
    meter, customer = target.meter(), target.customer()
    start = target.now_seconds() // 3600 * 3600 - 3600
    target.send(meter, customer, 4)
    wrong = target.send(meter, customer, 100)
    adjustment = target.client.v1.billing.meter_event_adjustments.create(
        {
            "event_name": meter.event_name,
            "type": "cancel",
            "cancel": {"identifier": wrong.identifier},
        }
    )
    assert adjustment.status in ("pending", "complete")
    assert target.eventually(
        lambda: target.summed(meter, customer, start, start + 3 * 3600) == [(start, 4.0)]
    )


def test_event_cannot_be_cancelled_after_24_hours(target: Target, control: StandInControl) -> None:
    """The door for adjustments closes a day after receipt."""
    meter, customer = target.meter(), target.customer()
    event = target.send(meter, customer, 4)
    control.advance(DAY_SECONDS + 1)
    with pytest.raises(stripe.InvalidRequestError):
        target.client.v1.billing.meter_event_adjustments.create(
            {
                "event_name": meter.event_name,
                "type": "cancel",
                "cancel": {"identifier": event.identifier},
            }
        )


def test_two_calls_at_once_for_one_customer_and_meter_collide(
    target: Target, control: StandInControl
) -> None:
    """The second gets 429 lock_timeout; for another customer there is no collision."""
    control.config(meters={"latency_ms": 300})
    meter, one, other = target.meter(), target.customer(), target.customer()

    def attempt(customer: str) -> str:
        try:
            target.send(meter, customer, 1)
        except stripe.RateLimitError as error:
            return str(error.error and error.error.code)
        return "accepted"

    with ThreadPoolExecutor(3) as pool:
        first, elsewhere = pool.submit(attempt, one), pool.submit(attempt, other)
        time.sleep(0.1)
        second = pool.submit(attempt, one)
        assert (first.result(), elsewhere.result(), second.result()) == (
            "accepted",
            "accepted",
            "lock_timeout",
        )


def test_thin_events_are_listed_by_time_and_type_over_pages(target: Target, control: StandInControl) -> None:
    """Newest first, `created` half open as asked, each once however small the pages; 30 days back."""
    control.config(meters={"error_report_samples": 5})
    meter, began = target.meter(), control.now_seconds()
    for _ in range(5):
        target.send(meter, "cus_nobody", 1)
        control.advance(20)
    ended = control.now_seconds() + 1

    def listed(since: int, before: int, *types: str) -> list[str]:
        bounds = {"gte": _iso(since), "lt": _iso(before)}
        params: Any = {"object_id": meter.id, "limit": 2, "created": bounds, "types": list(types)}
        page = target.client.v2.core.events.list(params)
        return [event.id for event in page.auto_paging_iter()]

    report = "v1.billing.meter.error_report_triggered"
    every = listed(began, ended, report)
    assert (len(every), len(set(every))) == (5, 5)
    newest = target.client.raw_request("get", "/v2/core/events", object_id=meter.id, limit=1).data["data"]
    assert newest[0]["id"] == every[0]
    assert listed(began, ended, "v1.billing.meter.no_meter_found") == []
    made = [
        int(_seconds(e))
        for e in target.client.raw_request("get", "/v2/core/events", object_id=meter.id).data["data"]
    ]
    assert listed(made[2], made[0], report) == every[1:3]
    control.advance(31 * 86_400)
    assert listed(began, control.now_seconds(), report) == []


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _seconds(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["created"]).timestamp()
