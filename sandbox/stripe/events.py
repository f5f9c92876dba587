"""Event objects: what happened, for webhooks and for ``/v1/events``.

Owns: snapshot events (v1), thin events (v2), and which destinations each goes to. Refuses to know: how they
are sent.
"""

import hashlib
import json
from datetime import UTC, datetime
from urllib.parse import urlencode

from sandbox.stripe.errors import JsonObject, invalid, no_such
from sandbox.stripe.listing import list_objects
from sandbox.stripe.params import Params
from sandbox.stripe.settings import webhook_settings
from sandbox.stripe.state import new_id
from sandbox.stripe.turns import Call, Turn
from sandbox.stripe.versions import LATEST, render

_LIST_SECONDS_MAX = 30 * 86_400  # how far back ``/v1/events`` and ``/v2/core/events`` reach
_FAR_SECONDS = 253_402_300_799  # the last second that has a name


def emit(turn: Turn, event_type: str, body: JsonObject, previous: JsonObject | None = None) -> None:
    """Record that something happened to an object and queue it for every endpoint that asked for the type."""
    endpoints = [
        endpoint
        for endpoint in turn.state.scan("webhook_endpoint", newest_first=False)
        if endpoint["status"] == "enabled" and {"*", event_type} & set(endpoint["enabled_events"])
    ]
    data: JsonObject = {"object": render(body, LATEST)}
    if previous is not None:
        data["previous_attributes"] = previous
    event: JsonObject = {
        "id": new_id("evt"),
        "object": "event",
        "api_version": LATEST,
        "created": turn.now,
        "data": data,
        "livemode": False,
        "pending_webhooks": len(endpoints),
        "request": {"id": turn.request_id, "idempotency_key": turn.idempotency_key},
        "type": event_type,
    }
    turn.state.insert("event", event)
    for endpoint in endpoints:
        queue(
            turn, event["id"], event_type, endpoint["id"], snapshot(event, endpoint["api_version"] or LATEST)
        )


def snapshot(event: JsonObject, version: str) -> JsonObject:
    """The event as an endpoint pinned to ``version`` sees it."""
    return {
        **event,
        "api_version": version,
        "data": {**event["data"], "object": render(event["data"]["object"], version)},
    }


def emit_thin(turn: Turn, event_type: str, related_object: JsonObject | None, data: JsonObject) -> JsonObject:
    """Record a v2 event and queue its thin notification; the data is only in ``GET /v2/core/events/{id}``."""
    event: JsonObject = {
        "id": new_id("evt_test"),
        "object": "v2.core.event",
        "type": event_type,
        "created": turn.now,
        "livemode": False,
        "context": None,
        "reason": None,
        "related_object": related_object,
        "data": data,
    }
    turn.state.insert("thin_event", event)
    notification = {key: value for key, value in render_thin(event).items() if key != "data"}
    for destination in turn.state.scan("event_destination", newest_first=False):
        if destination["status"] == "enabled" and {"*", event_type} & set(destination["enabled_events"]):
            queue(turn, event["id"], event_type, destination["id"], notification)
    return event


def queue(turn: Turn, event_id: str, event_type: str, endpoint_id: str, body: JsonObject) -> None:
    """Queue one delivery, or two where duplicates are wanted, spread in time where reordering is wanted."""
    settings = webhook_settings(turn.state)
    # Drawn from the delivery's own number, so that a seed gives the same duplicates and order every time.
    number = turn.state.next_number("delivery_number")
    draw = int.from_bytes(hashlib.sha256(f"{settings.seed}:{number}".encode()).digest()[:8], "big")
    copies = 2 if draw % 10_000 < settings.duplicate_per_10_000 else 1
    for copy in range(copies):
        spread_ms = (draw >> (16 * (copy + 1))) % (settings.reorder_window_ms + 1)
        turn.state.connection.execute(
            "INSERT INTO deliveries (event, event_type, endpoint, body, created_ms, state, next_attempt_ms) "
            "VALUES (?, ?, ?, ?, ?, 'pending', ?)",
            (
                event_id,
                event_type,
                endpoint_id,
                json.dumps(body),
                turn.now_ms,
                turn.now_ms + settings.delay_ms + spread_ms,
            ),
        )


def rfc3339(seconds: int) -> str:
    """API v2's way of writing a time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def render_thin(event: JsonObject) -> JsonObject:
    """A v2 event with its time in v2's notation."""
    return {**event, "created": rfc3339(event["created"])}


def list_events(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/events``: newest first, the last 30 days, by ``type`` or ``types``."""
    wanted = set(call.params.texts("types"))
    single = call.params.text("type")
    if single is not None:
        wanted.add(single)
    call.params.boolean("delivery_success")
    listed = list_objects(
        turn,
        call,
        "event",
        keep=(lambda event: _type_matches(event["type"], wanted)) if wanted else None,
        created_since=turn.now - _LIST_SECONDS_MAX,
    )
    listed["data"] = [snapshot(event, call.version) for event in listed["data"]]
    return listed


def _type_matches(event_type: str, wanted: set[str]) -> bool:
    """Exact names, or a trailing ``*`` (``customer.*``), which ``type`` allows."""
    return any(
        event_type == name or (name.endswith("*") and event_type.startswith(name[:-1])) for name in wanted
    )


def retrieve_event(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/events/{id}``."""
    call.params.finish()
    event = turn.state.find("event", call.ids[0])
    if event is None or event["created"] < turn.now - _LIST_SECONDS_MAX:
        raise no_such("event", call.ids[0])
    return snapshot(event, call.version)


def retrieve_thin_event(turn: Turn, call: Call) -> JsonObject:
    """``GET /v2/core/events/{id}``: the data a thin notification leaves out."""
    call.params.finish()
    event = turn.state.find("thin_event", call.ids[0])
    if event is None:
        raise no_such("event", call.ids[0])
    return render_thin(event)


def list_thin_events(turn: Turn, call: Call) -> JsonObject:
    """``GET /v2/core/events``: newest first, the last 30 days, by object, types and time; ``next_page_url`` goes on."""
    params = call.params
    object_id, after = params.text("object_id"), params.text("page")
    types = params.texts("types")
    limit = params.integer("limit", 1, 100) or 20
    bounds = params.child("created")
    since, until = _rfc3339_range(bounds)
    params.finish()
    newer_than = max(since, turn.now - _LIST_SECONDS_MAX)
    found = [
        render_thin(event)
        for event in turn.state.scan("thin_event", after=after, created=(newer_than, until))
        if (object_id is None or (event["related_object"] or {}).get("id") == object_id)
        and (not types or event["type"] in types)
    ]
    data, following = found[:limit], None
    if len(found) > limit:
        query: list[tuple[str, object]] = [("limit", limit), ("page", data[-1]["id"])]
        query += [("object_id", object_id)] if object_id is not None else []
        query += [(f"types[{number}]", name) for number, name in enumerate(types)]
        query += [("created[gte]", rfc3339(since)), ("created[lte]", rfc3339(min(until, _FAR_SECONDS)))]
        following = f"{call.path}?{urlencode(query)}"
    return {"data": data, "next_page_url": following, "previous_page_url": None}


def _rfc3339_range(bounds: Params | None) -> tuple[int, int]:
    """The filter ``created[gte]=2026-11-22T00:00:00Z`` and its kin as an inclusive range of seconds."""
    low, high = 0, 2**62
    if bounds is not None:
        for name, shift in (("gt", 1), ("gte", 0)):
            seconds = _rfc3339_seconds(bounds, name)
            low = low if seconds is None else max(low, seconds + shift)
        for name, shift in (("lt", -1), ("lte", 0)):
            seconds = _rfc3339_seconds(bounds, name)
            high = high if seconds is None else min(high, seconds + shift)
    return low, high


def _rfc3339_seconds(bounds: Params, name: str) -> int | None:
    text = bounds.text(name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise invalid(f"Invalid timestamp: {text[:40]}; use RFC 3339", bounds.full_name(name))
    return int(moment.timestamp())
