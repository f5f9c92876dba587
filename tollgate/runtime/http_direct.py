"""The short road of HTTP: a POST is handed over as headers and whole body, and answered in one write.

Owns which requests may take it, the waiting for the rest of a body, and how they are answered on the connection
uvicorn serves. It refuses to know what any of them says. Measured: an ASGI scope, its task and its messages cost more
than everything else done for one small request, and the messages a large body comes in more than decoding it
(`docs/performance.md`).

Whatever is unusual takes the long road, which is uvicorn's own and knows all of HTTP: another method, a query, an old
version, a body of unknown length or one that takes seconds to come, a request that waits behind another of its
connection, and any request the handler hands back. So the short road never refuses anything, and both roads answer
alike.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Protocol, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

Reply = Callable[[int, bytes, tuple[tuple[bytes, bytes], ...]], None]
"""Answers a request, once: status, body, headers but for `content-length`."""

WAIT_SECONDS = 5.0
"""A body that takes longer to come whole goes on by the long road, which has a time-out of its own."""


class DirectHandler(Protocol):
    """Takes requests of one target. Headers are a mapping: names in lower case, the last of a repeated one."""

    def expect(self, headers: Mapping[bytes, bytes], size: int) -> bool:
        """Whether a body of `size` bytes that is still coming is to be waited for."""

    def hold(self, size: int) -> bool:
        """Make room for `size` bytes of it that have come, until `forget`. False: there is none; the body goes the long
        road. What has not come takes no room: else it would be enough to announce bodies."""

    def forget(self, size: int) -> None:
        """Let go of the room made: the body is whole, or will not come this way."""

    def enter(self, headers: Mapping[bytes, bytes], body: bytes, reply: Reply) -> bool:
        """True: taken, `reply` will be called, at once or later. False: not taken, nothing happened; the request goes
        the long road."""


_PLAIN_TEXT = ((b"content-type", b"text/plain; charset=utf-8"),)
_log = logging.getLogger(__name__)


class _NobodyWaits:
    """Stands for the event a uvicorn cycle's reader waits on: here the body is complete."""

    def set(self) -> None:
        """Wake nobody."""


class _Exchange:
    """A request on the short road until its answer is written; looks like a cycle to uvicorn's own protocol, which
    asks it whether the next request may start, and tells it of a lost connection and of a shutdown."""

    __slots__ = ("_protocol", "disconnected", "keep_alive", "response_complete")

    message_event = _NobodyWaits()

    def __init__(self, protocol: DirectProtocol) -> None:
        self._protocol = protocol
        self.keep_alive = True
        self.response_complete = False
        self.disconnected = False

    def reply(self, status: int, body: bytes, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        """See `Reply`."""
        self.response_complete = True
        if self.disconnected:
            return
        protocol = self._protocol
        transport = protocol.transport
        if transport.is_closing():
            return
        # The date, by uvicorn's care, once a second.
        headers = (*protocol.server_state.default_headers, *headers)
        transport.write(_render(status, body, headers, self.keep_alive))
        if not self.keep_alive:
            transport.close()
        protocol.on_response_complete()


@dataclass(slots=True)
class _Coming:
    """A request whose body is not whole yet."""

    handler: DirectHandler
    headers: Mapping[bytes, bytes]
    missing: int
    """Bytes that have not come."""
    held: int
    """Bytes that have."""
    parts: list[bytes] = field(default_factory=list)
    """Of the body, after what came with the head."""
    too_late: asyncio.TimerHandle | None = None


class DirectProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a short road."""

    def __init__(self, *args: Any, handlers: Mapping[bytes, DirectHandler], **more: Any) -> None:
        """`handlers` by request target."""
        super().__init__(*args, **more)
        self._handlers = handlers
        self._handler: DirectHandler | None = None
        """Of the request being read, as long as it may take the short road."""
        self._whole = b""
        self._coming: _Coming | None = None

    def data_received(self, data: bytes) -> None:
        """Read on. What the parser still expects of a body that is waited for never passes through it: every part
        would be copied twice and reported on its own."""
        if self._coming is not None:
            self._collect(self._coming, data)
            return
        super().data_received(data)
        if self._handler is None:
            return
        if self.transport.is_closing():
            self._handler = None
        elif not self._wait():
            self._take_long_road()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of what was waited for."""
        if self._coming is not None:
            self._end_wait(self._coming)
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Note a new request. uvicorn's own part is done once it is known to be needed."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._whole = b""

    def on_headers_complete(self) -> None:
        """Choose the road."""
        handler = self._handlers.get(self.url)
        cycle = self.cycle
        parser = self.parser
        if (
            handler is not None
            and (cycle is None or cycle.response_complete)
            and not self.expect_100_continue
            and self.limit_concurrency is None
            and parser.get_method() == b"POST"
            and parser.should_keep_alive()
            and not parser.should_upgrade()
            and parser.get_http_version() == "1.1"
        ):
            self._handler = handler
        else:
            self._begin_long_road()

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body."""
        if self._handler is None:
            super().on_body(body)
        else:
            self._whole = self._whole + body if self._whole else body

    def on_message_complete(self) -> None:
        """Hand over what is complete."""
        handler, self._handler = self._handler, None
        if handler is None:
            super().on_message_complete()
            return
        before = self.cycle
        exchange = _Exchange(self)
        self.cycle = cast("RequestResponseCycle", exchange)
        if not _offer(handler, dict(self.headers), self._whole, exchange):
            self.cycle = before
            self._take_long_road()
            super().on_message_complete()

    def _wait(self) -> bool:
        """Wait for the rest of a body whose length is known, if the handler wants it."""
        handler = self._handler
        headers = dict(self.headers)
        announced = headers.get(b"content-length", b"")
        if handler is None or not announced.isdigit() or b"transfer-encoding" in headers:
            return False
        size = int(announced)
        come = len(self._whole)
        if not handler.expect(headers, size) or not handler.hold(come):
            return False
        self._handler = None
        self._coming = coming = _Coming(handler, headers, size - come, come)
        coming.too_late = self.loop.call_later(WAIT_SECONDS, self._resume_long_road, coming, b"")
        # A shutdown meanwhile sees a request in flight.
        self.cycle = cast("RequestResponseCycle", _Exchange(self))
        return True

    def _collect(self, coming: _Coming, data: bytes) -> None:
        if len(data) < coming.missing:
            if not coming.handler.hold(len(data)):
                self._resume_long_road(coming, data)
                return
            coming.missing -= len(data)
            coming.held += len(data)
            coming.parts.append(data)
            return
        rest = data[coming.missing :]
        body = b"".join([self._whole, *coming.parts, data[: coming.missing]])
        exchange = cast("_Exchange", self.cycle)
        # The room is taken again by whoever takes the body.
        self._end_wait(coming)
        if not _offer(coming.handler, coming.headers, body, exchange):
            self._resume_long_road(coming, data)
            return
        # The former parser waits for a body it will never see.
        self._whole = b""
        self.parser = _new_parser(self)
        if rest and not self.transport.is_closing():
            self.data_received(rest)

    def _end_wait(self, coming: _Coming) -> None:
        self._coming = None
        if coming.too_late is not None:
            coming.too_late.cancel()
        coming.handler.forget(coming.held)

    def _resume_long_road(self, coming: _Coming, data: bytes) -> None:
        """Show the parser what was kept from it; `data` came last."""
        if self._coming is not None:
            self._end_wait(coming)
        exchange = self.cycle
        # Whatever was before is complete, or this request had not come so far.
        self.cycle = None  # type: ignore[assignment]
        self._take_long_road()
        if not exchange.keep_alive:
            self.cycle.keep_alive = False
        super().data_received(b"".join([*coming.parts, data]))

    def _begin_long_road(self) -> None:
        """uvicorn's own beginning of a request, with what was read of it so far."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        # In place: the scope holds this very list.
        self.headers.extend(headers)
        super().on_headers_complete()

    def _take_long_road(self) -> None:
        self._handler = None
        self._begin_long_road()
        whole, self._whole = self._whole, b""
        if whole:
            super().on_body(whole)


def _offer(handler: DirectHandler, headers: Mapping[bytes, bytes], body: bytes, exchange: _Exchange) -> bool:
    """Whether the request needs nothing more."""
    try:
        return handler.enter(headers, body, exchange.reply)
    except Exception:
        # Left to the parser it would become "400 Bad Request", and the sender might give the request up.
        _log.exception("a handler of direct requests failed")
        exchange.keep_alive = False
        exchange.reply(500, b"Internal Server Error", _PLAIN_TEXT)
        return True


def _new_parser(protocol: DirectProtocol) -> httptools.HttpRequestParser:
    """As uvicorn makes its own."""
    parser = httptools.HttpRequestParser(protocol)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


@lru_cache(maxsize=1024)
def _render(status: int, body: bytes, headers: tuple[tuple[bytes, bytes], ...], keep_alive: bool) -> bytes:
    """An answer as bytes. Most are the same few: what differs is counts."""
    lines = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode())]
    lines += [b"%s: %s" % header for header in headers]
    if status != HTTPStatus.NO_CONTENT:
        lines.append(b"content-length: %d" % len(body))
    if not keep_alive:
        lines.append(b"connection: close")
    return b"\r\n".join([*lines, b"", body])
