"""The endpoint: nothing is believed unsigned, nothing is acknowledged unstored."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from services.webhooks.event import Shape
from services.webhooks.http import PATH, Door, WebhookEndpoint, create_app
from services.webhooks.metrics import Metrics
from services.webhooks.signature import sign
from tests.unit.webhooks.fakes import FakeStore, until
from tollgate.runtime.clock import ManualClock
from tollgate.runtime.faults import Faults
from tollgate.runtime.health import Health
from tollgate.runtime.http import operations_app

NOW_S = 1_800_000_000
CLASSIC = {
    "id": "evt_1",
    "object": "event",
    "type": "customer.updated",
    "created": NOW_S,
    "data": {"object": {"id": "cus_1", "object": "customer"}},
}
THIN = {
    "id": "evt_2",
    "object": "v2.core.event",
    "type": "v1.billing.meter.no_meter_found",
    "created": "2027-01-15T08:00:00Z",
}


class Bench:
    """The endpoint with fakes around it."""

    def __init__(self, classic: tuple[str, ...] = ("whsec_c",), thin: tuple[str, ...] = ("whsec_t",)) -> None:
        self.store = FakeStore()
        self.registry = CollectorRegistry()
        clock = ManualClock(NOW_S * 1000)
        self.endpoint = WebhookEndpoint(
            Door({Shape.CLASSIC: classic, Shape.THIN: thin}, 300, 1000, 2),
            self.store,
            clock,
            Metrics(self.registry),
            Faults(),
        )
        app = create_app(self.endpoint, operations_app(Health(clock), self.registry))
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app),
            base_url="http://test",
        )

    async def post(
        self,
        body: bytes | dict[str, Any] = CLASSIC,
        secret: str = "whsec_c",
        *,
        media_type: str = "application/json; charset=utf-8",
        **headers: str,
    ) -> httpx.Response:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        signed = {"Content-Type": media_type, "Stripe-Signature": f"t={NOW_S},v1={sign(raw, secret, NOW_S)}"}
        return await self.client.post(PATH, content=raw, headers=signed | headers)

    def count(self, outcome: str) -> float | None:
        return self.registry.get_sample_value("tollgate_webhooks_requests_total", {"outcome": outcome})


async def test_a_signed_event_is_stored_as_it_came() -> None:
    """The bytes, not a rendering of them; then 200."""
    bench = Bench()
    raw = b'{ "created":%d , "data":{"object":{"id":"cus_1","object":"customer"}},"id":"evt_1",' % NOW_S
    raw += b'"object":"event","type":"customer.updated"}\n'
    answer = await bench.post(raw)
    assert (answer.status_code, answer.json()) == (200, {"received": True})
    [(event, stored)] = bench.store.stored
    assert stored == raw
    assert event.key == "cus_1"
    assert bench.count("stored") == 1


async def test_a_thin_event_needs_its_own_secret() -> None:
    """A body is only believed under the secret of its shape."""
    bench = Bench()
    assert (await bench.post(THIN, "whsec_t")).status_code == 200
    refused = await bench.post(THIN, "whsec_c")
    assert (refused.status_code, refused.json()) == (400, {"error": "wrong_secret"})
    assert (await bench.post(CLASSIC, "whsec_t")).status_code == 400
    assert [event.event_id for event, _ in bench.store.stored] == ["evt_2"]


async def test_a_rotation_accepts_both_secrets() -> None:
    """Until the old one is taken out of the settings."""
    bench = Bench(classic=("whsec_new", "whsec_old"))
    for secret in ("whsec_new", "whsec_old"):
        assert (await bench.post(secret=secret)).status_code == 200
    assert (await bench.post(secret="whsec_older")).status_code == 400


@pytest.mark.parametrize(
    ("body", "headers", "status", "error"),
    [
        (CLASSIC, {"Stripe-Signature": f"t={NOW_S},v1=00"}, 400, "no_match"),
        (CLASSIC, {"Stripe-Signature": ""}, 400, "missing_signature"),
        (CLASSIC, {"Stripe-Signature": f"t={NOW_S - 301},v1=00"}, 400, "too_old"),
        (CLASSIC, {"Stripe-Signature": f"t={NOW_S + 301},v1=00"}, 400, "in_the_future"),
        (b"{", {}, 400, "unreadable"),
        (b"[]", {}, 400, "unreadable"),
        (b" " * 1001, {}, 413, "too_large"),
        (CLASSIC, {"Content-Type": "text/plain"}, 415, "not_json"),
    ],
)
async def test_refusals_write_nothing(
    body: bytes | dict[str, Any], headers: dict[str, str], status: int, error: str
) -> None:
    """Each has its status, its reason and its counter."""
    bench = Bench()
    answer = await bench.post(body, **headers)
    assert (answer.status_code, answer.json()) == (status, {"error": error})
    assert bench.store.stored == []
    assert bench.count(error) == 1


async def test_a_body_without_length_is_capped_as_it_streams() -> None:
    """No more than the cap is ever held."""
    bench = Bench()
    sent = 0

    async def chunks() -> Any:
        nonlocal sent
        for _ in range(100):
            sent += 100
            yield b" " * 100

    answer = await bench.client.post(
        PATH, content=chunks(), headers={"Content-Type": "application/json", "Stripe-Signature": "t=1,v1=0"}
    )
    assert answer.status_code == 413


async def test_no_acknowledgement_means_come_again() -> None:
    """503 with Retry-After while the broker is away; 200 when it is back."""
    bench = Bench()
    bench.store.down = True
    answer = await bench.post()
    assert (answer.status_code, answer.json()) == (503, {"error": "store_unavailable"})
    assert int(answer.headers["Retry-After"]) > 0
    bench.store.down = False
    assert (await bench.post()).status_code == 200


async def test_without_secrets_the_endpoint_is_closed() -> None:
    """Nothing could be verified, so nothing is accepted, signed or not."""
    bench = Bench(classic=(), thin=())
    answer = await bench.post(secret="")
    assert (answer.status_code, answer.json()) == (503, {"error": "no_secret_set"})
    assert bench.store.stored == []


async def test_too_many_at_once_are_sent_away() -> None:
    """Memory is bounded by requests in flight times the cap."""
    bench = Bench()
    bench.store.gate = asyncio.Event()
    waiting = [asyncio.create_task(bench.post()) for _ in range(2)]
    await until(lambda: bench.store.waiting == 2)
    answer = await bench.post()
    assert (answer.status_code, answer.json()) == (503, {"error": "too_many_in_flight"})
    bench.store.gate.set()
    assert [(await task).status_code for task in waiting] == [200, 200]


async def test_other_paths_and_methods() -> None:
    """The operators' routes are beside the webhook's; nothing else is there."""
    bench = Bench()
    assert (await bench.client.get(PATH)).status_code == 405
    assert (await bench.client.get("/nothing")).status_code == 404
    assert (await bench.client.get("/livez")).status_code == 200
    assert (await bench.client.get("/readyz")).status_code == 503
    assert "tollgate_webhooks_requests_total" in (await bench.client.get("/metrics")).text
    assert (await bench.client.get("/openapi.json")).status_code == 404
