"""Taking meter events in, cancelling them, and reporting the bad ones later.

Owns: identifiers and their 24 hours, bounds on time and value, what is refused at once and what only reported.
Refuses to know: what usage amounts to.
"""

import json
import re
from dataclasses import dataclass
from datetime import datetime

from sandbox.stripe.customers import find_customer
from sandbox.stripe.errors import (
    JsonObject,
    duplicate_identifier,
    invalid,
    missing_parameter,
    refused,
)
from sandbox.stripe.events import emit_thin, rfc3339
from sandbox.stripe.meters import find_meter_of
from sandbox.stripe.settings import meter_settings
from sandbox.stripe.state import new_id
from sandbox.stripe.turns import Call, Turn
from sandbox.stripe.versions import DAHLIA, since

IDENTIFIER_LENGTH_MAX = 100
IDENTIFIER_HORIZON_MS = 24 * 3600 * 1000
PAST_SECONDS_MAX = 35 * 86_400
FUTURE_SECONDS_MAX = 5 * 60
DIGITS_MAX = 15
_NUMERIC = re.compile(r"^[+-]?\d+(\.\d+)?$")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with an event: Stripe's code, its words, and the parameter."""

    code: str
    message: str
    param: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """One event as sent, times in epoch seconds."""

    event_name: str
    payload: dict[str, str]
    identifier: str
    timestamp: int


def create_meter_event(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/billing/meter_events``. An answer of 200 says received, not counted."""
    params = call.params
    payload = params.text_map("payload")
    if payload is None:
        raise missing_parameter("payload")
    timestamp = params.integer("timestamp", 0)
    arrival = Arrival(
        params.required_text("event_name", 100),
        payload,
        params.text("identifier", IDENTIFIER_LENGTH_MAX) or new_id("evt_id"),
        turn.now if timestamp is None else timestamp,
    )
    params.finish()
    _receive(turn, arrival, call.version)
    return {
        "object": "billing.meter_event",
        "created": turn.now,
        "event_name": arrival.event_name,
        "identifier": arrival.identifier,
        "livemode": False,
        "payload": payload,
        "timestamp": arrival.timestamp,
    }


def create_meter_event_v2(turn: Turn, call: Call) -> JsonObject:
    """``POST /v2/billing/meter_events``: the same event with its time as text; validated at once."""
    params = call.params
    payload = params.text_map("payload")
    if payload is None:
        raise missing_parameter("payload")
    stamp = params.text("timestamp")
    try:
        timestamp = turn.now if stamp is None else int(datetime.fromisoformat(stamp).timestamp())
    except ValueError as error:
        raise invalid(f"Invalid timestamp: {stamp}", "timestamp") from error
    arrival = Arrival(
        params.required_text("event_name", 100),
        payload,
        params.text("identifier", IDENTIFIER_LENGTH_MAX) or new_id("evt_id"),
        timestamp,
    )
    params.finish()
    _receive(turn, arrival, call.version)
    return {
        "object": "v2.billing.meter_event",
        "created": rfc3339(turn.now),
        "event_name": arrival.event_name,
        "identifier": arrival.identifier,
        "livemode": False,
        "payload": payload,
        "timestamp": rfc3339(arrival.timestamp),
    }


def _receive(turn: Turn, arrival: Arrival, version: str) -> None:
    """Judge and store one event.

    1. Shape, time and value are validated: refused at once, or in ``async`` validation stored as rejected.
    2. The identifier must be new within 24 hours of receipt.
    3. An unknown event name or customer is accepted now and reported later.
    """
    meter = find_meter_of(turn, arrival.event_name)
    fault = _fault(turn, arrival, meter, version)
    if fault is not None and meter_settings(turn.state).validation == "sync":
        raise invalid(fault.message, fault.param, fault.code)
    _check_identifier(turn, arrival.identifier)
    customer_id = (
        None if meter is None else arrival.payload.get(meter["customer_mapping"]["event_payload_key"])
    )
    if meter is None:
        fault = Fault("no_meter", f"No meter found for event name {arrival.event_name}.", "event_name")
    elif fault is None and (customer_id is None or find_customer(turn, customer_id) is None):
        fault = Fault("meter_event_customer_not_found", f"No such customer: '{customer_id}'", "payload")
    turn.state.connection.execute(
        "INSERT INTO meter_events (identifier, event_name, meter, customer, value, timestamp, received_ms, payload, "
        "status, error_code, error_message, reported) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            arrival.identifier,
            arrival.event_name,
            None if meter is None else meter["id"],
            customer_id,
            "1" if meter is None else _value(arrival, meter),
            arrival.timestamp,
            turn.now_ms,
            json.dumps(arrival.payload),
            "accepted" if fault is None else "rejected",
            None if fault is None else fault.code,
            None if fault is None else fault.message,
            1 if fault is None else 0,
        ),
    )


def _value(arrival: Arrival, meter: JsonObject) -> str | None:
    """The value as sent; a counting meter needs none."""
    value = arrival.payload.get(meter["value_settings"]["event_payload_key"])
    return "1" if value is None and meter["default_aggregation"]["formula"] == "count" else value


def _fault(turn: Turn, arrival: Arrival, meter: JsonObject | None, version: str) -> Fault | None:
    """The first thing wrong with the event itself, or None."""
    if arrival.timestamp < turn.now - PAST_SECONDS_MAX:
        return Fault(
            "timestamp_too_far_in_past",
            "Invalid timestamp: must be within the past 35 calendar days.",
            "timestamp",
        )
    if arrival.timestamp > turn.now + FUTURE_SECONDS_MAX:
        return Fault(
            "timestamp_in_future",
            "Invalid timestamp: must be no more than 5 minutes in the future.",
            "timestamp",
        )
    if meter is None:
        return None
    if meter["status"] != "active":
        return Fault("archived_meter", f"The meter for {arrival.event_name} is inactive.", "event_name")
    customer_key = meter["customer_mapping"]["event_payload_key"]
    if not arrival.payload.get(customer_key):
        return Fault(
            "meter_event_no_customer_defined", f"The payload is missing the key {customer_key}.", "payload"
        )
    value, key = _value(arrival, meter), meter["value_settings"]["event_payload_key"]
    if value is None:
        return Fault("meter_event_value_not_found", f"The payload is missing the key {key}.", "payload")
    if not _NUMERIC.match(value):
        return Fault("meter_event_invalid_value", f"The value of {key} must be a number.", f"payload[{key}]")
    if since(version, DAHLIA) and _significant_digits(value) > DIGITS_MAX:
        return Fault(
            "meter_event_value_too_many_digits",
            f"The value of {key} has more than {DIGITS_MAX} significant digits.",
            f"payload[{key}]",
        )
    return None


def _significant_digits(value: str) -> int:
    """Digits from the first that is not zero, as written: the strict reading, in which ``1500`` has four."""
    return len(value.lstrip("+-").replace(".", "").lstrip("0"))


def _check_identifier(turn: Turn, identifier: str) -> None:
    """Refuse an identifier received within the last 24 hours, whatever it was used for."""
    row = turn.state.connection.execute(
        "SELECT 1 FROM meter_events WHERE identifier = ? AND received_ms > ? LIMIT 1",
        (identifier, turn.now_ms - IDENTIFIER_HORIZON_MS),
    ).fetchone()
    if row is not None:
        raise duplicate_identifier(identifier)


def create_adjustment(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/billing/meter_event_adjustments``: cancel one event received within the last 24 hours."""
    params = call.params
    event_name = params.required_text("event_name", 100)
    if params.choice("type", ("cancel",)) is None:
        raise missing_parameter("type")
    cancel = params.child("cancel")
    identifier = None if cancel is None else cancel.text("identifier", IDENTIFIER_LENGTH_MAX)
    if identifier is None:
        raise missing_parameter("cancel[identifier]")
    params.finish()
    row = turn.state.connection.execute(
        "SELECT seq, received_ms, status FROM meter_events WHERE identifier = ? AND event_name = ? "
        "ORDER BY seq DESC LIMIT 1",
        (identifier, event_name),
    ).fetchone()
    if row is None:
        raise refused(
            f"No meter event found with identifier {identifier}.", "cancel[identifier]", "resource_missing"
        )
    if row["received_ms"] <= turn.now_ms - IDENTIFIER_HORIZON_MS:
        raise refused(
            "Meter events can only be cancelled within 24 hours of being received.", "cancel[identifier]"
        )
    if row["status"] == "cancelled":
        raise refused(
            f"The meter event with identifier {identifier} is already cancelled.", "cancel[identifier]"
        )
    turn.state.connection.execute(
        "UPDATE meter_events SET status = 'cancelled', reported = 1 WHERE seq = ?", (row["seq"],)
    )
    return {
        "object": "billing.meter_event_adjustment",
        "cancel": {"identifier": identifier},
        "event_name": event_name,
        "livemode": False,
        "status": "complete",
        "type": "cancel",
    }


def report_errors(turn: Turn) -> None:
    """Send an error report for every finished reporting window that holds rejected events."""
    settings = meter_settings(turn.state)
    span_ms = 1000 * settings.error_report_window_seconds
    finished_ms = turn.now_ms // span_ms * span_ms
    rows = turn.state.connection.execute(
        "SELECT seq, identifier, event_name, meter, error_code, error_message, received_ms FROM meter_events "
        "WHERE reported = 0 AND received_ms < ? ORDER BY seq",
        (finished_ms,),
    ).fetchall()
    reports: dict[tuple[int, str | None], list[tuple[str, str, str]]] = {}
    for row in rows:
        entry = (row["error_code"], row["error_message"], row["identifier"])
        reports.setdefault((row["received_ms"] // span_ms, row["meter"]), []).append(entry)
    for (window, meter_id), errors in reports.items():
        data = _report(errors, window * span_ms // 1000, settings.error_report_window_seconds)
        data["reason"]["error_types"] = [
            {**kind, "sample_errors": kind["sample_errors"][: settings.error_report_samples]}
            for kind in data["reason"]["error_types"]
        ]
        if meter_id is None:
            emit_thin(turn, "v1.billing.meter.no_meter_found", None, data)
        else:
            related: JsonObject = {
                "id": meter_id,
                "type": "billing.meter",
                "url": f"/v1/billing/meters/{meter_id}",
            }
            emit_thin(turn, "v1.billing.meter.error_report_triggered", related, data)
    if rows:
        turn.state.connection.execute(
            "UPDATE meter_events SET reported = 1 WHERE reported = 0 AND seq <= ? AND received_ms < ?",
            (rows[-1]["seq"], finished_ms),
        )


def _report(errors: list[tuple[str, str, str]], start: int, span_seconds: int) -> JsonObject:
    """The data of one report: errors by code, each with samples."""
    kinds: dict[str, JsonObject] = {}
    for code, message, identifier in errors:
        kind = kinds.setdefault(code, {"code": code, "error_count": 0, "sample_errors": []})
        kind["error_count"] += 1
        kind["sample_errors"].append({"error_message": message, "request": {"identifier": identifier}})
    return {
        "developer_message_summary": f"There is {len(errors)} invalid event"
        if len(errors) == 1
        else f"There are {len(errors)} invalid events",
        "reason": {"error_count": len(errors), "error_types": list(kinds.values())},
        "validation_start": rfc3339(start),
        "validation_end": rfc3339(start + span_seconds),
    }
