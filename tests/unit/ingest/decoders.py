"""The decoders as the tests of this room make them."""

from __future__ import annotations

from typing import Any

from services.ingest.capture import parse_capture
from services.ingest.gateways.cloudevents import CloudEventsDecoder
from services.ingest.gateways.kong import KongDecoder
from services.ingest.gateways.moesif import MoesifDecoder
from services.ingest.identity import KeyHasher

ID_SEED = 42
KEYS = KeyHasher(b"sixteen bytes or more")
INGEST_MS = 1_790_000_000_000
CAPTURE = parse_capture(
    [
        "header:x-model",
        "query:tenant",
        "data:usage.tokens",
        "metadata:plan",
        "body:$.usage.total_tokens",
        "response_header:x-cost",
    ]
)


def kong_decoder() -> KongDecoder:
    return KongDecoder(
        id_seed=ID_SEED,
        keys=KEYS,
        capture=CAPTURE,
        api_key_headers=("apikey",),
        api_key_queries=("apikey",),
    )


def moesif_decoder() -> MoesifDecoder:
    return MoesifDecoder(
        id_seed=ID_SEED,
        keys=KEYS,
        capture=CAPTURE,
        api_key_headers=("apikey",),
        api_key_queries=("apikey",),
    )


def cloudevents_decoder() -> CloudEventsDecoder:
    return CloudEventsDecoder(id_seed=ID_SEED, capture=CAPTURE)


def kong_entry(**changes: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "request": {
            "id": "a" * 32,
            "uri": "/v1/chat?tenant=t1&apikey=k",
            "url": "http://api.test:8000/v1/chat?tenant=t1&apikey=k",
            "querystring": {"tenant": "t1", "apikey": "k"},
            "method": "POST",
            "size": 100,
            "headers": {"user-agent": "curl", "x-model": "m1", "cookie": "c"},
        },
        "response": {"status": 200, "size": 200, "headers": {"x-cost": "1.10"}},
        "latencies": {"request": 33, "proxy": 30},
        "consumer": {"id": "c-1", "username": "joe", "custom_id": "cus_1"},
        "route": {"id": "r-1", "name": "chat"},
        "service": {"id": "s-1", "name": "llm"},
        "client_ip": "192.0.2.1",
        "started_at": 1_700_000_000_123,
        "source": "upstream",
    }
    return entry | changes


def moesif_event(**changes: Any) -> dict[str, Any]:
    event: dict[str, Any] = {
        "request": {
            "time": "2025-06-01T10:00:00.5",
            "uri": "http://api.test:8000/v1/chat?tenant=t1",
            "verb": "POST",
            "headers": {"User-Agent": "curl", "X-Model": ["m1", "m2"], "x-flag": True},
            "ip_address": "192.0.2.1",
            "body": "c2VjcmV0",
            "transfer_encoding": "base64",
        },
        "response": {
            "time": "2025-06-01T10:00:00.38",
            "status": 200,
            "headers": {"X-Kong-Request-Id": "b" * 32, "content-length": "20"},
            "body": {"usage": {"total_tokens": 12.50}},
        },
        "user_id": "cus_1",
        "company_id": "acme",
        "session_token": "raw key",
        "transaction_id": "tx-1",
        "weight": 2,
        "metadata": {"plan": "gold", "kong": {"service_name": "llm"}},
    }
    return event | changes


def cloud_event(**changes: Any) -> dict[str, Any]:
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": "e-1",
        "source": "app",
        "type": "prompt",
        "subject": "cus_1",
        "time": "2025-06-01T10:00:00.5Z",
        "data": {"usage": {"tokens": 7}},
    }
    return event | changes
