"""`POST /stripe/webhooks`: verify, store, answer; the work is done later.

Owns the route and its answers. It refuses to know what an event leads to: a body is believed for its signature alone,
put into the log, and only then is Stripe told that it arrived.

| answer | when | Stripe then |
|---|---|---|
| 200 | the broker has acknowledged it | forgets it |
| 400 | bad signature, or no event: nothing was written | tries again, in vain, and shows it |
| 413, 415 | too large, or not JSON | the same |
| 503 | the broker did not acknowledge, too many at once, or no secret is set | tries again for days |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from services.webhooks.errors import Permanent
from services.webhooks.event import Shape, parse_event
from services.webhooks.faults import FaultPoint
from services.webhooks.metrics import Metrics
from services.webhooks.signature import BadSignature, verify
from services.webhooks.store import EventStore, StoreUnavailable
from tollgate.runtime.clock import Clock
from tollgate.runtime.faults import Faults
from tollgate.runtime.http import OPERATIONS_PATHS, Application, Receive, Scope, Send

PATH = "/stripe/webhooks"
RETRY_AFTER_SECONDS = 5
"""A broker's failover takes seconds. Stripe keeps its own schedule; other senders (a replay) may listen."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Door:
    """How the endpoint decides. `secrets` by the shape of event each is for; several during a rotation."""

    secrets: Mapping[Shape, Sequence[str]]
    tolerance_seconds: int
    body_bytes_max: int
    in_flight_max: int


class _Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, outcome: str) -> None:
        super().__init__(outcome)
        self.status = status
        self.outcome = outcome


class WebhookEndpoint:
    """Takes requests in. One event loop."""

    def __init__(
        self, door: Door, store: EventStore, clock: Clock, metrics: Metrics, faults: Faults[FaultPoint]
    ) -> None:
        self._door = door
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._faults = faults
        self._in_flight = 0

    async def receive(self, request: Request) -> Response:
        """Answer one request; see the module's table."""
        began = self._clock.monotonic_seconds()
        self._in_flight += 1
        try:
            await self._take(request)
        except _Refused as refused:
            self._metrics.requests.labels(refused.outcome).inc()
            _log.warning("webhook.refused", reason=refused.outcome, status=refused.status)
            headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if refused.status == 503 else None
            return JSONResponse({"error": refused.outcome}, refused.status, headers=headers)
        finally:
            self._in_flight -= 1
            self._metrics.request_seconds.observe(self._clock.monotonic_seconds() - began)
        self._metrics.requests.labels("stored").inc()
        return JSONResponse({"received": True})

    async def _take(self, request: Request) -> None:
        if not any(self._door.secrets.values()):
            raise _Refused(503, "no_secret_set")
        if self._in_flight > self._door.in_flight_max:
            raise _Refused(503, "too_many_in_flight")
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise _Refused(415, "not_json")
        body = await self._read_body(request)
        now_ms = self._clock.now_ms()
        header = request.headers.get("stripe-signature")
        try:
            signed_as = verify(body, header, self._door.secrets, now_ms, self._door.tolerance_seconds)
        except BadSignature as bad:
            raise _Refused(400, bad.refusal) from None
        try:
            event = parse_event(body)
        except Permanent as unreadable:
            raise _Refused(400, unreadable.reason) from None
        if event.shape not in signed_as:
            # Each destination has its own secret: a body of the other shape is not what it signs.
            raise _Refused(400, "wrong_secret")
        try:
            await self._store.put(event, body, now_ms)
        except StoreUnavailable:
            raise _Refused(503, "store_unavailable") from None
        self._faults.reach(FaultPoint.STORED)
        self._metrics.received_timestamp.set(now_ms / 1000)

    async def _read_body(self, request: Request) -> bytes:
        """The body, never holding more than its cap and one chunk."""
        declared = request.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared[:19]) > self._door.body_bytes_max:
            raise _Refused(413, "too_large")
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > self._door.body_bytes_max:
                    raise _Refused(413, "too_large")
        except ClientDisconnect:
            raise _Refused(400, "disconnected") from None
        return bytes(body)


def create_app(endpoint: WebhookEndpoint, operations: Application) -> Application:
    """The service's whole HTTP side: the webhook route, and the operators' routes beside it."""
    app = FastAPI(title="Tollgate webhooks", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route(PATH, endpoint.receive, methods=["POST"], response_model=None)

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in OPERATIONS_PATHS:
            await operations(scope, receive, send)
        else:
            await app(scope, receive, send)

    return dispatch
