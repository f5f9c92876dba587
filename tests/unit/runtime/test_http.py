"""The operators' routes, and a server that comes and goes inside one event loop."""

from __future__ import annotations

import asyncio
import signal
import socket

import httpx
import pytest

from tollgate.runtime.clock import ManualClock
from tollgate.runtime.health import Health
from tollgate.runtime.http import Application, Message, Receive, Scope, Send, operations_app, serve_app
from tollgate.runtime.metrics import new_registry


@pytest.fixture
def health() -> Health:
    return Health(ManualClock())


@pytest.fixture
def app(health: Health) -> Application:
    return operations_app(health, new_registry("gate", "1"))


def client_of(app: Application) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gate")


async def test_probes_answer_what_health_says(app: Application, health: Health) -> None:
    """Each probe answers with health's status and its JSON."""
    async with client_of(app) as client:
        assert (await client.get("/readyz")).status_code == 503
        health.mark_started()
        answer = await client.get("/readyz")
        assert answer.status_code == 200
        assert answer.json() == health.readyz()[1]
        assert (await client.get("/livez")).json() == health.livez()[1]
        assert (await client.get("/startupz")).json() == {"started": True}
        assert answer.headers["cache-control"] == "no-store"


async def test_metrics_are_served_as_prometheus_text(app: Application) -> None:
    """/metrics is the registry's text."""
    async with client_of(app) as client:
        answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert "tollgate_build_info" in answer.text


async def test_other_paths_and_methods_are_refused(app: Application) -> None:
    """An unknown path is 404, another method 405."""
    async with client_of(app) as client:
        assert (await client.get("/")).status_code == 404
        assert (await client.post("/livez")).status_code == 405


async def test_head_announces_a_body_and_sends_none(app: Application) -> None:
    """HEAD answers with GET's headers and an empty body: a body would be read as the next answer."""
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("there is no request body to read")

    async def send(message: Message) -> None:
        sent.append(message)

    await app({"type": "http", "method": "HEAD", "path": "/livez"}, receive, send)
    assert (sent[0]["status"], sent[1]["body"]) == (200, b"")
    assert int(dict(sent[0]["headers"])[b"content-length"]) > 0


async def test_server_yields_its_port_and_is_gone_afterwards(app: Application) -> None:
    """Port 0 becomes a real one, two servers live in one loop, and their ports are free afterwards."""
    async with serve_app(app, "127.0.0.1", 0) as port, serve_app(app, "127.0.0.1", 0) as other:
        assert port != other
        async with httpx.AsyncClient() as client:
            for each in (port, other):
                assert (await client.get(f"http://127.0.0.1:{each}/livez")).status_code == 200
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


async def test_request_in_flight_is_finished_on_exit() -> None:
    """Leaving the context waits for the answer to a request that has begun."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    answered = []

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        begun.set()
        await go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})
        answered.append(True)

    async with httpx.AsyncClient() as client:
        async with serve_app(slow, "127.0.0.1", 0) as port:
            asking = asyncio.create_task(client.get(f"http://127.0.0.1:{port}/"))
            await begun.wait()
            asyncio.get_running_loop().call_later(0.02, go_on.set)
        assert answered
        assert (await asking).text == "done"


async def test_taken_port_is_told(app: Application) -> None:
    """A port somebody listens on is an OSError that names the address."""
    async with serve_app(app, "127.0.0.1", 0) as port:
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            async with serve_app(app, "127.0.0.1", port):
                pass


async def test_failed_startup_is_an_error_and_frees_the_port() -> None:
    """An app whose start-up fails raises RuntimeError here, and does not end the process."""

    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    with pytest.raises(RuntimeError, match="start-up failed"):
        async with serve_app(failing, "127.0.0.1", 0):
            pass


async def test_signal_handlers_are_left_alone(app: Application) -> None:
    """Serving does not take SIGTERM or SIGINT from the process."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    async with serve_app(app, "127.0.0.1", 0):
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
