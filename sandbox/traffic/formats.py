"""The same call as Kong, a Moesif plugin or a CloudEvents sender would log it.

Owns the three renderings and the malformed variants. It refuses to know how anything is sent or decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import msgspec

from sandbox.traffic.calls import Call, Kind


class Format(StrEnum):
    """A gateway's wire format."""

    KONG = "kong"
    MOESIF = "moesif"
    CLOUDEVENTS = "cloudevents"


PATHS = {
    Format.KONG: "/v1/logs/kong",
    Format.MOESIF: "/v1/events/batch",
    Format.CLOUDEVENTS: "/api/v1/events",
}
"""Where a batch of each format is posted."""

CONTENT_TYPES = {
    Format.KONG: "application/json",
    Format.MOESIF: "application/json",
    Format.CLOUDEVENTS: "application/cloudevents-batch+json",
}


def _headers(call: Call) -> dict[str, str]:
    headers = {"content-type": "application/json", "x-kong-request-id": call.id}
    if call.tokens_in is not None:
        headers |= {
            "x-tokens-in": str(call.tokens_in),
            "x-tokens-out": str(call.tokens_out),
            "x-model": str(call.model),
        }
    return headers


def to_kong(call: Call) -> dict[str, Any]:
    """One entry of Kong's http-log."""
    path, _, query = call.path.partition("?")
    entry: dict[str, Any] = {
        "request": {
            "id": call.id,
            "uri": call.path,
            "url": f"http://api.example.com:8000{call.path}",
            "querystring": dict(pair.split("=") for pair in query.split("&")) if query else {},
            "method": call.method,
            "headers": {
                "host": "api.example.com",
                "user-agent": call.user_agent,
                "accept": "*/*",
                "authorization": "REDACTED",
            },
            "size": call.request_bytes,
        },
        "response": {"status": call.status, "headers": _headers(call), "size": call.response_bytes},
        "latencies": {
            "kong": 2,
            "proxy": max(call.latency_ms - 2, 0),
            "request": call.latency_ms,
            "receive": 0,
        },
        "tries": [{"balancer_start": call.time_ms, "ip": "10.0.0.7", "port": 8080, "balancer_latency": 0}],
        "route": {"id": f"route-{call.route}", "name": call.route, "paths": [path]},
        "service": {
            "id": "service-api",
            "name": "api",
            "host": "api.internal",
            "port": 8080,
            "protocol": "http",
        },
        "client_ip": call.client_ip,
        "started_at": call.time_ms,
        "upstream_status": str(call.status),
        "source": "kong" if call.answered_by_gateway else "upstream",
        "workspace_name": "default",
    }
    if call.identity.user is not None:
        entry["consumer"] = {"id": "consumer-1", "username": "someone", "custom_id": call.identity.user}
    if call.kind is Kind.MALFORMED:
        entry["started_at"] = "yesterday"
    return entry


def to_moesif(call: Call) -> dict[str, Any]:
    """One event as kong-plugin-moesif sends it (milliseconds not padded, no zone)."""

    def stamp(time_ms: int) -> str:
        return f"{datetime.fromtimestamp(time_ms // 1000, UTC):%Y-%m-%dT%H:%M:%S}.{time_ms % 1000}"

    event: dict[str, Any] = {
        "request": {
            "time": stamp(call.time_ms),
            "uri": f"http://api.example.com:8000{call.path}",
            "verb": call.method,
            "headers": {"user-agent": call.user_agent, "content-length": str(call.request_bytes)},
            "ip_address": call.client_ip,
            "body": "",
            "transfer_encoding": "base64",
        },
        "response": {
            "time": stamp(call.time_ms + call.latency_ms),
            "status": call.status,
            "headers": _headers(call) | {"content-length": str(call.response_bytes)},
        },
        "user_id": call.identity.user,
        "company_id": call.identity.company,
        "direction": "Incoming",
        "weight": 1,
        "metadata": {"kong": {"service_name": "api"}},
    }
    if call.answered_by_gateway:
        event["blocked_by"] = "rate-limit"
    if call.kind is Kind.MALFORMED:
        event["request"]["time"] = "yesterday"
    return event


def to_cloudevent(call: Call) -> dict[str, Any]:
    """One CloudEvent 1.0 as a metering plugin sends it."""
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": call.id,
        "source": "gateway-eu-1",
        "type": "api-request",
        "subject": call.identity.user or call.identity.company,
        "time": datetime.fromtimestamp(call.time_ms / 1000, UTC).isoformat(timespec="milliseconds"),
        "data": {
            "route": call.route,
            "method": call.method,
            "path": call.path.partition("?")[0],
            "status": call.status,
            "latency_ms": call.latency_ms,
            "request_bytes": call.request_bytes,
            "response_bytes": call.response_bytes,
            "client_ip": call.client_ip,
            "user_agent": call.user_agent,
        },
    }
    if call.tokens_in is not None:
        event["data"] |= {"tokens_in": call.tokens_in, "tokens_out": call.tokens_out, "model": call.model}
    if call.answered_by_gateway:
        event["data"]["blocked_by"] = "rate-limit"
    if call.kind is Kind.MALFORMED:
        event["time"] = "yesterday"
    return event


_RENDER: dict[Format, Callable[[Call], dict[str, Any]]] = {
    Format.KONG: to_kong,
    Format.MOESIF: to_moesif,
    Format.CLOUDEVENTS: to_cloudevent,
}
_encoder = msgspec.json.Encoder()


def render_batch(calls: list[Call], wire: Format) -> bytes:
    """The request body that carries these calls in this format: always a JSON array."""
    render = _RENDER[wire]
    return _encoder.encode([render(call) for call in calls])
