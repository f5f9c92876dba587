"""The bare limit of a request: a raw ASGI route that reads the body and answers, under ingest's own server.

`python -m benchmarks.empty_route` prints its port and serves until SIGTERM. It refuses to do anything else.
"""

from __future__ import annotations

import asyncio
import signal
import sys

import uvloop

from tollgate.runtime.http import Receive, Scope, Send, serve_app

_BODY = b'{"accepted":1,"rejected":0}'
_HEADERS = [(b"content-length", str(len(_BODY)).encode()), (b"content-type", b"application/json")]


async def empty_route(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 200, whatever comes."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _BODY})


async def _serve() -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with serve_app(empty_route, "127.0.0.1", 0) as port:
        sys.stdout.write(f"{port}\n")
        sys.stdout.flush()
        await ended.wait()


if __name__ == "__main__":
    uvloop.run(_serve())
