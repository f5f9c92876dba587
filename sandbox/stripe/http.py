"""The stand-in's HTTP face: one application, the API on every path but those under ``/_``.

Owns: FastAPI, the control endpoints, and closing connections without an answer. Refuses to know: what the API does.
"""

import asyncio
import json
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

from fastapi import Body, FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sandbox.stripe import faults, schedule, settings, totals, webhooks
from sandbox.stripe.clock import VirtualClock
from sandbox.stripe.delivery import Courier
from sandbox.stripe.endpoint import Api, Dropped, account_of
from sandbox.stripe.endpoint import Request as ApiRequest
from sandbox.stripe.errors import JsonObject, Refusal
from sandbox.stripe.state import State

_TRANSPORT = "tollgate.transport"
_TICK_SECONDS = 0.2  # how late due work may be when nobody calls


class AbortableProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with its transport in the scope so that a fault can abort it."""

    def on_message_begin(self) -> None:
        """Begin a request as usual, then leave the transport where the application finds it."""
        super().on_message_begin()
        extensions: dict[str, Any] = {_TRANSPORT: self.transport}
        self.scope["extensions"] = extensions


class Abort(Response):
    """No answer: the connection is reset."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Abort the transport, then wait until the server has noticed, so that it answers nothing either."""
        scope["extensions"][_TRANSPORT].abort()
        while (await receive())["type"] != "http.disconnect":
            pass


class ClockMove(BaseModel):
    """``POST /_clock``: seconds; ``frozen`` stops or releases the flow; ``real`` returns to real time."""

    model_config = ConfigDict(extra="forbid")

    now: int | None = None
    advance_seconds: int | None = None
    frozen: bool | None = None
    real: bool = False


def create_app(state: State, clock: VirtualClock) -> FastAPI:
    """The application over an open state file."""
    with state.transaction():
        account_of(state, clock.now_seconds())
    api = Api(state, clock)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(Courier(state, clock).run()),
            asyncio.create_task(_keep_time(state, clock)),
        ]
        for task in tasks:
            task.add_done_callback(_stop_on_failure)
        yield
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    app = FastAPI(title="Stand-in for Stripe", lifespan=lifespan, openapi_url=None)
    app.add_exception_handler(Refusal, _refusal_answer)
    app.add_exception_handler(ValidationError, _validation_answer)
    _add_clock(app, state, clock)
    _add_faults(app, state)
    _add_inspection(app, state)
    _add_webhooks(app, state, clock)

    # Mounted, not routed: a meter event then costs no more than the server and the transaction.
    app.mount("/", _ApiFace(api))
    return app


class _ApiFace:
    """The API as a bare ASGI application: every path that is not a control endpoint."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or abort its connection."""
        request = Request(scope, receive)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        query = scope["query_string"].decode("latin-1")
        sent = ApiRequest(request.method, scope["path"], query, headers, await request.body())
        try:
            answered = await self._api.answer(sent)
        except Dropped:
            await Abort()(scope, receive, send)
            return
        response = Response(answered.body, answered.status, answered.headers, media_type="application/json")
        await response(scope, receive, send)


def _stop_on_failure(task: asyncio.Task[None]) -> None:
    """Stop the process when a background task dies: a stand-in whose time stands still would look alive."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logging.getLogger(__name__).critical("background task failed", exc_info=error)
        signal.raise_signal(signal.SIGTERM)


async def _keep_time(state: State, clock: VirtualClock) -> None:
    """Do what time does, also while nobody calls."""
    while True:
        await asyncio.sleep(_TICK_SECONDS)
        _run_due(state, clock)


def _run_due(state: State, clock: VirtualClock) -> int:
    now_ms = clock.now_ms()
    if not schedule.is_due(state, now_ms):
        return 0
    with state.transaction():
        return schedule.run_due(state, now_ms)


async def _refusal_answer(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return JSONResponse(error.body(), error.status)


async def _validation_answer(_: Request, error: Exception) -> Response:
    assert isinstance(error, ValidationError)
    body = {"error": {"message": str(error), "type": "invalid_request_error"}}
    return JSONResponse(body, 400)


def _add_clock(app: FastAPI, state: State, clock: VirtualClock) -> None:
    @app.get("/_clock")
    async def read_clock() -> JsonObject:
        return clock.describe()

    @app.post("/_clock")
    async def move_clock(move: ClockMove) -> JsonObject:
        with state.transaction():
            clock.move(
                now_seconds=move.now,
                advance_seconds=move.advance_seconds,
                real=move.real,
                frozen=move.frozen,
            )
        return {**clock.describe(), "due": _run_due(state, clock)}

    @app.post("/_reset")
    async def reset() -> JsonObject:
        with state.transaction():
            state.clear()
            clock.move(now_seconds=None, advance_seconds=None, real=True, frozen=False)
        return clock.describe()

    @app.get("/_config")
    async def read_config() -> JsonObject:
        return settings.load(state).model_dump(mode="json")

    @app.post("/_config")
    async def change_config(changes: Annotated[dict[str, dict[str, object]], Body()]) -> JsonObject:
        with state.transaction():
            return settings.change(state, changes).model_dump(mode="json")


def _add_faults(app: FastAPI, state: State) -> None:
    async def set_faults(request: Request) -> JsonObject:
        try:
            sent = json.loads(await request.body())
        except ValueError as error:
            raise Refusal(400, f"Invalid JSON: {error}") from error
        rules = sent.get("rules", [sent]) if isinstance(sent, dict) else sent
        parsed = [faults.Rule.model_validate(rule) for rule in rules]
        with state.transaction():
            if request.method == "PUT":
                faults.clear(state)
            return {"ids": [faults.add(state, rule) for rule in parsed]}

    # PUT replaces every rule, POST adds to them; both take one rule, a list, or {"rules": [...]}.
    app.add_api_route("/_faults", set_faults, methods=["PUT", "POST"])

    @app.get("/_faults")
    async def list_faults() -> JsonObject:
        return {"rules": faults.listed(state)}

    @app.delete("/_faults")
    async def clear_faults() -> JsonObject:
        with state.transaction():
            return {"cleared": faults.clear(state)}

    @app.delete("/_faults/{fault_id}")
    async def clear_fault(fault_id: str) -> JsonObject:
        with state.transaction():
            return {"cleared": faults.clear(state, fault_id)}


def _add_inspection(app: FastAPI, state: State) -> None:
    @app.get("/_health")
    async def health() -> JsonObject:
        return {"account": state.setting("account_id")}

    @app.get("/_totals")
    async def read_totals(
        customer: str | None = None,
        event_name: str | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> JsonObject:
        return totals.totals(state, customer, event_name, start, end)

    @app.get("/_meter_events")
    async def read_meter_events(
        customer: str | None = None,
        event_name: str | None = None,
        identifier: str | None = None,
        status: str | None = None,
        after: int = 0,
        limit: Annotated[int, Query(ge=1, le=100_000)] = 1000,
    ) -> JsonObject:
        events = totals.stored_events(state, customer, event_name, identifier, status, after, limit)
        return {"data": events}

    @app.get("/_usage_records")
    async def read_usage_records(subscription_item: str | None = None) -> JsonObject:
        rows = state.connection.execute(
            "SELECT seq, item AS subscription_item, timestamp, quantity FROM usage_records "
            "WHERE ? IS NULL OR item = ? ORDER BY seq",
            (subscription_item, subscription_item),
        )
        return {"data": [dict(row) for row in rows]}

    @app.get("/_requests")
    async def read_requests() -> JsonObject:
        rows = state.connection.execute("SELECT method, path, outcome, count FROM requests")
        return {"data": [dict(row) for row in rows]}


def _add_webhooks(app: FastAPI, state: State, clock: VirtualClock) -> None:
    @app.get("/_webhooks")
    async def read_deliveries(
        event: str | None = None,
        event_type: str | None = None,
        endpoint: str | None = None,
        delivery_state: Annotated[str | None, Query(alias="state")] = None,
        limit: Annotated[int, Query(ge=1, le=100_000)] = 1000,
    ) -> JsonObject:
        wanted = {"event": event, "event_type": event_type, "endpoint": endpoint, "state": delivery_state}
        given = {name: value for name, value in wanted.items() if value is not None}
        where = "".join(f" AND {name} = ?" for name in given)
        rows = state.connection.execute(
            "SELECT seq, event, event_type, endpoint, created_ms, state, next_attempt_ms, attempts "  # noqa: S608
            f"FROM deliveries WHERE 1 = 1{where} ORDER BY seq DESC LIMIT ?",
            [*given.values(), limit],
        )
        counts = state.connection.execute("SELECT state, COUNT(*) AS count FROM deliveries GROUP BY state")
        return {
            "data": [{**dict(row), "attempts": json.loads(row["attempts"])} for row in rows],
            "counts": {row["state"]: row["count"] for row in counts},
        }

    @app.post("/_webhooks/{event_id}/resend")
    async def resend(event_id: str) -> JsonObject:
        with state.transaction():
            again = state.connection.execute(
                "INSERT INTO deliveries (event, event_type, endpoint, body, created_ms, state, next_attempt_ms) "
                "SELECT event, event_type, endpoint, MIN(body), ?, 'pending', ? FROM deliveries "
                "WHERE event = ? GROUP BY event, event_type, endpoint",
                (clock.now_ms(), clock.now_ms(), event_id),
            )
        return {"queued": again.rowcount}

    @app.post("/_webhooks/{endpoint_id}/rotate_secret")
    async def rotate(endpoint_id: str, old_lives_seconds: int = 86_400) -> JsonObject:
        with state.transaction():
            secret = webhooks.rotate_secret(state, endpoint_id, clock.now_ms(), old_lives_seconds)
        return {"secret": secret}
