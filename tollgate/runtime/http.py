"""HTTP: the operators' routes every service has, and a server inside a running event loop.

Owns /livez, /readyz, /startupz and /metrics as one plain ASGI app, and starting and draining uvicorn. It refuses
to know any service's own routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import uvicorn

from tollgate.runtime.health import Health
from tollgate.runtime.http_direct import DirectHandler, DirectProtocol
from tollgate.runtime.metrics import Registry, render

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
"""An ASGI 3 application."""

OPERATIONS_PATHS = frozenset({"/livez", "/readyz", "/startupz", "/metrics"})
"""What `operations_app` answers; an app with routes of its own hands these over to it."""

_JSON = "application/json"


def operations_app(health: Health, registry: Registry) -> Application:
    """The ASGI app of the operators' routes: GET and HEAD on `OPERATIONS_PATHS`, 405 and 404 otherwise."""
    probes = {"/livez": health.livez, "/readyz": health.readyz, "/startupz": health.startupz}

    def answer(path: str, method: str) -> tuple[int, str, bytes]:
        if path not in OPERATIONS_PATHS:
            return 404, _JSON, b'{"error":"no such path"}'
        if method not in ("GET", "HEAD"):
            return 405, _JSON, b'{"error":"only GET"}'
        if path == "/metrics":
            body, content_type = render(registry)
            return 200, content_type, body
        status, document = probes[path]()
        return status, _JSON, json.dumps(document).encode()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _agree_to_lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"the operators' routes speak no {scope['type']}")
        status, content_type, body = answer(scope["path"], scope["method"])
        headers = [
            (b"content-type", content_type.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    return app


async def _agree_to_lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


@asynccontextmanager
async def serve_app(
    app: Application,
    host: str,
    port: int,
    *,
    drain_seconds: int = 10,
    keep_alive_seconds: int = 75,
    backlog: int = 2048,
    connections_max: int | None = None,
    direct: Mapping[str, DirectHandler] | None = None,
) -> AsyncIterator[int]:
    """Serve `app` from the running event loop for as long as the context lasts; yields the bound port.

    Port 0 takes any free one. On exit: stop accepting, close idle connections, let requests in flight finish for
    up to `drain_seconds`, cancel the rest. Installs no signal handler and writes no access log. Connections above
    `connections_max` are answered 503. Keep-alive is longer than the usual 60 seconds of a proxy in front, so
    that it is the proxy that closes an idle connection and never meets one closed by us. `direct`, by path, are
    offered POSTs before `app` is.

    Raises OSError when the address cannot be bound, RuntimeError when the app's own start-up fails.
    """
    handlers = {path.encode(): handler for path, handler in (direct or {}).items()}
    config = uvicorn.Config(
        app,
        host=host,
        # uvicorn calls it to make a protocol and asks nothing else of it.
        http=cast("type[asyncio.Protocol]", partial(DirectProtocol, handlers=handlers))
        if handlers
        else "httptools",
        ws="none",
        lifespan="auto",
        log_config=None,
        access_log=False,
        server_header=False,
        # Who called is told by the peer address alone: a forwarded header can be written by anybody.
        proxy_headers=False,
        backlog=backlog,
        limit_concurrency=connections_max,
        timeout_keep_alive=keep_alive_seconds,
        timeout_graceful_shutdown=drain_seconds,
    )
    listener = _bind(host, port)
    # uvicorn's `serve()` takes over the process' signal handlers and ends the process when start-up fails; its
    # steps, called one by one, do neither.
    server = uvicorn.Server(config)
    try:
        config.load()
        server.lifespan = config.lifespan_class(config)
        try:
            await server.startup(sockets=[listener])
        except SystemExit:
            raise RuntimeError("the application's start-up failed; the log says why") from None
    except BaseException:
        listener.close()
        raise
    ticking = asyncio.create_task(server.main_loop(), name="http-server")
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticking
        await server.shutdown(sockets=[listener])


def _bind(host: str, port: int) -> socket.socket:
    """A listening-to-be socket on the first address `host` resolves to. Raises OSError naming the address."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # A restarted service takes its port back at once, though connections of its predecessor linger.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from None
    listener.setblocking(False)
    return listener
