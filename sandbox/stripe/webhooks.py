"""Where events go: classic webhook endpoints and thin event destinations.

Owns: their registration and signing secrets. Refuses to know: how deliveries are made.
"""

from sandbox.stripe.errors import JsonObject, invalid, missing_parameter, no_such
from sandbox.stripe.events import rfc3339
from sandbox.stripe.listing import list_objects
from sandbox.stripe.params import merge_metadata
from sandbox.stripe.state import State, new_id
from sandbox.stripe.turns import Call, Turn
from sandbox.stripe.versions import check_version, render


def _checked_url(url: str, param: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise invalid(
            "Invalid URL: An explicit scheme (such as https) must be provided.", param, "url_invalid"
        )
    return url


def create_endpoint(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/webhook_endpoints``: the only answer that shows the secret. Plain http is allowed, as in test mode."""
    params = call.params
    api_version = params.text("api_version")
    enabled_events = params.texts("enabled_events")
    body: JsonObject = {
        "id": new_id("we"),
        "object": "webhook_endpoint",
        "api_version": None if api_version is None else check_version(api_version),
        "application": None,
        "created": turn.now,
        "description": params.text("description"),
        "enabled_events": enabled_events,
        "livemode": False,
        "metadata": {},
        "status": "enabled",
        "url": _checked_url(params.required_text("url"), "url"),
        "_secrets": [{"secret": new_id("whsec"), "expires_ms": None}],
    }
    params.boolean("connect")
    merge_metadata(body, params)
    params.finish()
    if not enabled_events:
        raise missing_parameter("enabled_events")
    turn.state.insert("webhook_endpoint", body)
    return {**render(body, call.version), "secret": body["_secrets"][0]["secret"]}


def _endpoint(turn: Turn, endpoint_id: str) -> JsonObject:
    body = turn.state.find("webhook_endpoint", endpoint_id)
    if body is None:
        raise no_such("webhook endpoint", endpoint_id)
    return body


def retrieve_endpoint(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/webhook_endpoints/{id}``, without the secret."""
    call.params.finish()
    return render(_endpoint(turn, call.ids[0]), call.version)


def update_endpoint(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/webhook_endpoints/{id}``; the API version cannot change."""
    body, params = _endpoint(turn, call.ids[0]), call.params
    if params.has("url"):
        body["url"] = _checked_url(params.required_text("url"), "url")
    if params.has("enabled_events"):
        body["enabled_events"] = params.texts("enabled_events")
    if params.has("description"):
        body["description"] = params.text("description")
    if params.has("disabled"):
        body["status"] = "disabled" if params.boolean("disabled") else "enabled"
    merge_metadata(body, params)
    params.finish()
    turn.state.update(body)
    return render(body, call.version)


def delete_endpoint(turn: Turn, call: Call) -> JsonObject:
    """``DELETE /v1/webhook_endpoints/{id}``: what is still queued for it is given up."""
    call.params.finish()
    body = _endpoint(turn, call.ids[0])
    turn.state.delete(body["id"])
    return {"id": body["id"], "object": "webhook_endpoint", "deleted": True}


def list_endpoints(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/webhook_endpoints``, without secrets."""
    listed = list_objects(turn, call, "webhook_endpoint")
    listed["data"] = render(listed["data"], call.version)
    return listed


def create_destination(turn: Turn, call: Call) -> JsonObject:
    """``POST /v2/core/event_destinations``: a webhook for thin events; ``include`` asks for secret and address."""
    params = call.params
    if params.choice("type", ("webhook_endpoint",)) is None:
        raise missing_parameter("type")
    if params.choice("event_payload", ("thin",)) is None:
        raise missing_parameter("event_payload")
    endpoint = params.child("webhook_endpoint")
    if endpoint is None:
        raise missing_parameter("webhook_endpoint")
    params.has("events_from")
    include = params.texts("include")
    body: JsonObject = {
        "id": new_id("ed_test"),
        "object": "v2.core.event_destination",
        "created": turn.now,
        "description": params.text("description") or "",
        "enabled_events": params.texts("enabled_events"),
        "event_payload": "thin",
        "events_from": ["self"],
        "livemode": False,
        "metadata": params.text_map("metadata") or {},
        "name": params.required_text("name"),
        "snapshot_api_version": None,
        "status": "enabled",
        "status_details": None,
        "type": "webhook_endpoint",
        "updated": turn.now,
        "url": _checked_url(endpoint.required_text("url"), "webhook_endpoint[url]"),
        "_secrets": [{"secret": new_id("whsec"), "expires_ms": None}],
    }
    params.finish()
    if not body["enabled_events"]:
        raise missing_parameter("enabled_events")
    turn.state.insert("event_destination", body)
    return _destination_seen(body, include)


def _destination_seen(body: JsonObject, include: list[str]) -> JsonObject:
    seen = {key: value for key, value in body.items() if key not in ("url", "_secrets")}
    seen["created"], seen["updated"] = rfc3339(body["created"]), rfc3339(body["updated"])
    seen["webhook_endpoint"] = {
        "signing_secret": body["_secrets"][-1]["secret"]
        if "webhook_endpoint.signing_secret" in include
        else None,
        "url": body["url"] if "webhook_endpoint.url" in include else None,
    }
    return seen


def _destination(turn: Turn, destination_id: str) -> JsonObject:
    body = turn.state.find("event_destination", destination_id)
    if body is None:
        raise no_such("event destination", destination_id)
    return body


def retrieve_destination(turn: Turn, call: Call) -> JsonObject:
    """``GET /v2/core/event_destinations/{id}``; its secret is shown at creation only."""
    include = [name for name in call.params.texts("include") if name != "webhook_endpoint.signing_secret"]
    call.params.finish()
    return _destination_seen(_destination(turn, call.ids[0]), include)


def list_destinations(turn: Turn, call: Call) -> JsonObject:
    """``GET /v2/core/event_destinations``: all of them on one page."""
    include = [name for name in call.params.texts("include") if name != "webhook_endpoint.signing_secret"]
    call.params.integer("limit", 1, 100)
    call.params.finish()
    data = [_destination_seen(body, include) for body in turn.state.scan("event_destination")]
    return {"data": data, "next_page_url": None, "previous_page_url": None}


def update_destination(turn: Turn, call: Call) -> JsonObject:
    """``POST /v2/core/event_destinations/{id}``: names, events and address; kind and payload cannot change."""
    body, params = _destination(turn, call.ids[0]), call.params
    include = [name for name in params.texts("include") if name != "webhook_endpoint.signing_secret"]
    if params.has("enabled_events"):
        body["enabled_events"] = params.texts("enabled_events")
    if params.has("name"):
        body["name"] = params.required_text("name")
    if params.has("description"):
        body["description"] = params.text("description") or ""
    endpoint = params.child("webhook_endpoint")
    if endpoint is not None:
        body["url"] = _checked_url(endpoint.required_text("url"), "webhook_endpoint[url]")
    merge_metadata(body, params)
    params.finish()
    if not body["enabled_events"]:
        raise missing_parameter("enabled_events")
    body["updated"] = turn.now
    turn.state.update(body)
    return _destination_seen(body, include)


def enable_destination(turn: Turn, call: Call) -> JsonObject:
    """``POST /v2/core/event_destinations/{id}/enable``."""
    return _switch_destination(turn, call, "enabled")


def disable_destination(turn: Turn, call: Call) -> JsonObject:
    """``POST /v2/core/event_destinations/{id}/disable``."""
    return _switch_destination(turn, call, "disabled")


def _switch_destination(turn: Turn, call: Call, status: str) -> JsonObject:
    call.params.finish()
    body = _destination(turn, call.ids[0])
    body["status"], body["updated"] = status, turn.now
    turn.state.update(body)
    return _destination_seen(body, [])


def delete_destination(turn: Turn, call: Call) -> JsonObject:
    """``DELETE /v2/core/event_destinations/{id}``."""
    call.params.finish()
    body = _destination(turn, call.ids[0])
    turn.state.delete(body["id"])
    return {"id": body["id"], "object": "v2.core.event_destination"}


def receiver(state: State, endpoint_id: str) -> JsonObject | None:
    """The endpoint or destination behind an id, with its secrets; None once deleted."""
    found = state.find_any(endpoint_id)
    return None if found is None else found[1]


def live_secrets(endpoint: JsonObject, now_ms: int) -> list[str]:
    """The secrets to sign with, newest first: more than one while an old one is being rotated out."""
    return [
        entry["secret"]
        for entry in reversed(endpoint["_secrets"])
        if entry["expires_ms"] is None or entry["expires_ms"] > now_ms
    ]


def rotate_secret(state: State, endpoint_id: str, now_ms: int, old_lives_seconds: int) -> str:
    """Give an endpoint a new secret; the old ones sign along for a while. Raises ``Refusal`` (404)."""
    endpoint = receiver(state, endpoint_id)
    if endpoint is None or "_secrets" not in endpoint:
        raise no_such("webhook endpoint", endpoint_id)
    expires_ms = now_ms + 1000 * old_lives_seconds
    for entry in endpoint["_secrets"]:
        entry["expires_ms"] = expires_ms if entry["expires_ms"] is None else entry["expires_ms"]
    secret = new_id("whsec")
    endpoint["_secrets"].append({"secret": secret, "expires_ms": None})
    state.update(endpoint)
    return secret
