"""Billing meters.

Owns: their definitions and life cycle. Refuses to know: the events (meter_events) and their sums (usage).
"""

from sandbox.stripe.errors import JsonObject, missing_parameter, no_such, refused
from sandbox.stripe.events import emit
from sandbox.stripe.listing import list_objects
from sandbox.stripe.state import new_id
from sandbox.stripe.turns import Call, Turn
from sandbox.stripe.versions import render

_EVENT_NAME_LENGTH_MAX = 100
_DISPLAY_NAME_LENGTH_MAX = 250


def create_meter(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/billing/meters``; one event name belongs to one active meter."""
    params = call.params
    aggregation = params.child("default_aggregation")
    if aggregation is None:
        raise missing_parameter("default_aggregation")
    formula = aggregation.choice("formula", ("sum", "count", "last"))
    if formula is None:
        raise missing_parameter("default_aggregation[formula]")
    mapping, value = params.child("customer_mapping"), params.child("value_settings")
    customer_key = "stripe_customer_id"
    if mapping is not None:
        mapping.choice("type", ("by_id",))
        customer_key = mapping.required_text("event_payload_key", 100)
    body: JsonObject = {
        "id": new_id("mtr_test"),
        "object": "billing.meter",
        "created": turn.now,
        "customer_mapping": {"event_payload_key": customer_key, "type": "by_id"},
        "default_aggregation": {"formula": formula},
        "display_name": params.required_text("display_name", _DISPLAY_NAME_LENGTH_MAX),
        "event_name": params.required_text("event_name", _EVENT_NAME_LENGTH_MAX),
        "event_time_window": params.choice("event_time_window", ("hour", "day")),
        "livemode": False,
        "status": "active",
        "status_transitions": {"deactivated_at": None},
        "updated": turn.now,
        "value_settings": {
            "event_payload_key": "value" if value is None else value.required_text("event_payload_key", 100)
        },
    }
    params.finish()
    _check_event_name(turn, body)
    turn.state.insert("meter", body, parent=body["event_name"])
    emit(turn, "billing.meter.created", body)
    return render(body, call.version)


def _check_event_name(turn: Turn, meter: JsonObject) -> None:
    other = find_meter_of(turn, meter["event_name"])
    if other is not None and other["status"] == "active" and other["id"] != meter["id"]:
        raise refused(
            f"There is already an active meter with event_name {meter['event_name']}.",
            "event_name",
            "resource_already_exists",
        )


def find_meter_of(turn: Turn, event_name: str) -> JsonObject | None:
    """The meter an event name belongs to: the active one, else the newest inactive one, else None."""
    newest: JsonObject | None = None
    for meter in turn.state.scan("meter", parent=event_name):
        if meter["status"] == "active":
            return meter
        newest = newest or meter
    return newest


def find_meter(turn: Turn, meter_id: str) -> JsonObject:
    """A meter by id; raises ``Refusal`` (404)."""
    body = turn.state.find("meter", meter_id)
    if body is None:
        raise no_such("billing meter", meter_id)
    return body


def retrieve_meter(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/billing/meters/{id}``."""
    call.params.finish()
    return render(find_meter(turn, call.ids[0]), call.version)


def update_meter(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/billing/meters/{id}``: only the display name can change."""
    body = find_meter(turn, call.ids[0])
    previous = body["display_name"]
    body["display_name"] = call.params.text("display_name", _DISPLAY_NAME_LENGTH_MAX) or previous
    call.params.finish()
    body["updated"] = turn.now
    turn.state.update(body)
    emit(turn, "billing.meter.updated", body, {"display_name": previous})
    return render(body, call.version)


def deactivate_meter(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/billing/meters/{id}/deactivate``: no more events, no new prices."""
    return _switch(turn, call, "inactive")


def reactivate_meter(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/billing/meters/{id}/reactivate``."""
    return _switch(turn, call, "active")


def _switch(turn: Turn, call: Call, status: str) -> JsonObject:
    call.params.finish()
    body = find_meter(turn, call.ids[0])
    if body["status"] == status:
        raise refused(f"The meter is already {status}.")
    if status == "active":
        _check_event_name(turn, body)
    body["status"] = status
    body["status_transitions"] = {"deactivated_at": None if status == "active" else turn.now}
    body["updated"] = turn.now
    turn.state.update(body)
    emit(turn, f"billing.meter.{'reactivated' if status == 'active' else 'deactivated'}", body)
    return render(body, call.version)


def list_meters(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/billing/meters`` by status."""
    status = call.params.choice("status", ("active", "inactive"))
    listed = list_objects(turn, call, "meter", keep=lambda body: status is None or body["status"] == status)
    listed["data"] = render(listed["data"], call.version)
    return listed
