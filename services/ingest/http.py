"""The routes of this service.

Owns the table below. The POSTs of events go straight to their doors; FastAPI answers the rest. It refuses to know any
format's insides and how events reach the log.

| route | takes | success |
|---|---|---|
| POST /v1/logs/kong | Kong http-log: one entry or an array | 200 with counts |
| POST /v1/events, /v1/events/batch | Moesif events | 201 with counts |
| GET /v1/config, /v1/rules | what Moesif's plugins poll | 200 |
| POST /api/v1/events | CloudEvents, single and batch | 204, counts in headers |
| POST /v1/replay | one dead letter (scope `replay`) | 200 with counts |
| GET /health/probe | what Moesif's SDKs ask | 200 |
| GET /livez, /readyz, /startupz, /metrics | operators | |
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from services.ingest.body import BodyLimits, Hold, RefusedBody, SenderGone, read_body
from services.ingest.decoder import Decoder
from services.ingest.door import Answer, Door, Entrance, Gate, Handler, Refusal, refuse
from services.ingest.gateways import cloudevents, kong, moesif
from services.ingest.metrics import IngestMetrics, Route
from services.ingest.replay import NotReplayable, Replayer
from tollgate.contracts.dead import decode_dead_letter
from tollgate.runtime.clock import Clock
from tollgate.runtime.http import OPERATIONS_PATHS, Application, Receive, Scope, Send

REPLAY = "replay"

# What Moesif's senders poll. Every call is kept: a sampled count is a wrong bill. Absent and null both break some
# sender, so every member is there and empty; the Envoy filter needs all of them to parse any.
_CONFIG = msgspec.json.encode(
    {
        "org_id": "tollgate",
        "app_id": "tollgate",
        "sample_rate": 100,
        "block_bot_traffic": False,
        "user_sample_rate": {},
        "company_sample_rate": {},
        "user_rules": {},
        "company_rules": {},
        "ip_addresses_blocked_by_name": {},
        "regex_config": [],
        "billing_config_jsons": {},
    }
)
_RULES = b"[]"


def _tag(document: bytes) -> bytes:
    return hashlib.sha256(document).hexdigest()[:32].encode()


CONFIG_HEADERS = ((b"x-moesif-config-etag", _tag(_CONFIG)),)
RULES_HEADERS = (
    (b"x-moesif-rules-tag", _tag(_RULES)),
    (b"x-moesif-rules-etag", _tag(_RULES)),
)


def entrances(decoders: Mapping[str, Decoder]) -> dict[str, Entrance]:
    """The routes that take events, by path. `decoders` by format."""
    moesif_entrance = Entrance(
        route=Route.MOESIF,
        decoder=decoders[moesif.FORMAT],
        # Kong's plugin takes every other status, 200 included, for a failure and sends the batch again for ever.
        success=201,
        content_types=None,
        quarantine_broken=True,
        headers=CONFIG_HEADERS + RULES_HEADERS,
    )
    return {
        "/v1/logs/kong": Entrance(
            route=Route.KONG,
            decoder=decoders[kong.FORMAT],
            success=200,
            content_types=frozenset({"application/json"}),
        ),
        "/v1/events": moesif_entrance,
        "/v1/events/batch": moesif_entrance,
        "/api/v1/events": Entrance(
            route=Route.CLOUDEVENTS,
            decoder=decoders[cloudevents.FORMAT],
            success=204,
            content_types=frozenset(
                {
                    "application/json",
                    "application/cloudevents+json",
                    "application/cloudevents-batch+json",
                }
            ),
        ),
    }


@dataclass(frozen=True, slots=True)
class ReplayDoor:
    """Handles POST /v1/replay."""

    replayer: Replayer
    gate: Gate
    limits: BodyLimits
    clock: Clock
    metrics: IngestMetrics

    async def answer(self, request: Request) -> Answer:
        """One dead letter in, counts out: 200 when all of it was accepted, 422 when some of it still cannot be."""
        started = self.clock.monotonic_seconds()
        hold = Hold(self.gate.admission)
        try:
            answer = await self._serve(request, hold)
        except Refusal as refusal:
            answer = refusal.answer
        except RefusedBody as refused:
            answer = refuse(refused.status, str(refused))
        except SenderGone:
            raise ClientDisconnect from None
        finally:
            hold.release()
        self.metrics.count_request(Route.REPLAY, answer.status, self.clock.monotonic_seconds() - started)
        return answer

    async def _serve(self, request: Request, hold: Hold) -> Answer:
        self.gate.admit(dict(request.scope["headers"]), REPLAY)
        body = await read_body(request.receive, None, self.limits, hold)
        try:
            replayed = await self.replayer.replay(decode_dead_letter(body))
        except msgspec.DecodeError as error:
            return refuse(400, f"not a dead letter: {error}")
        except NotReplayable as error:
            return refuse(422, str(error), accepted=0, rejected=0)
        if not replayed.done:
            return refuse(503, "not acknowledged in time: send it again")
        self.metrics.count_events(Route.REPLAY, len(body), replayed.accepted, None)
        document = {
            "accepted": replayed.accepted,
            "rejected": len(replayed.rejected),
            "reasons": [{"reason": entry.reason, "detail": entry.detail} for entry in replayed.rejected],
        }
        return Answer(422 if replayed.rejected else 200, msgspec.json.encode(document))


def create_app(
    doors: Mapping[str, Door | Handler], replay: ReplayDoor, gate: Gate, operations: Application
) -> Application:
    """The whole service as one ASGI app. `doors` by path; `operations` answers the operators' paths."""
    api = FastAPI(title="Tollgate ingest", openapi_url=None, docs_url=None, redoc_url=None)
    api.add_api_route("/v1/config", _polled(gate, _CONFIG, CONFIG_HEADERS), methods=["GET"])
    api.add_api_route("/v1/rules", _polled(gate, _RULES, RULES_HEADERS + CONFIG_HEADERS), methods=["GET"])

    @api.get("/health/probe")
    async def probe() -> dict[str, bool]:
        return {"status": True}

    @api.post("/v1/replay")
    async def replay_letter(request: Request) -> Response:
        return _response(await replay.answer(request))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            door = doors.get(path)
            if door is not None:
                await door(scope, receive, send)
                return
            if path in OPERATIONS_PATHS:
                await operations(scope, receive, send)
                return
        await api(scope, receive, send)

    return app


def _polled(
    gate: Gate, document: bytes, headers: tuple[tuple[bytes, bytes], ...]
) -> Callable[[Request], Awaitable[Response]]:
    """A GET that answers even before tokens are known: some SDKs take their host's site down when it fails."""

    async def answer(request: Request) -> Response:
        if gate.tokens.known:
            try:
                gate.admit(dict(request.scope["headers"]), "write")
            except Refusal as refusal:
                return _response(refusal.answer)
        return _response(Answer(200, document, headers))

    # FastAPI reads annotations from the module's names; this closure's are among them.
    return answer


def _response(answer: Answer) -> Response:
    return Response(
        answer.body,
        status_code=answer.status,
        headers={name.decode(): value.decode() for name, value in answer.headers},
        media_type="application/json",
    )
