"""The short road of HTTP: a small POST that came whole is handed over as headers and body, and answered in one write.

Owns which requests may take it and how they are answered on the connection uvicorn serves. It refuses to know what
any of them says. Measured: an ASGI scope, its task and its messages cost more than everything else done for one
small request (`docs/performance.md`).

Whatever is unusual takes the long road, which is uvicorn's own and knows all of HTTP: another method, a query, an old
version, a body that is still coming, a request that waits behind another of its connection, and any request the
handler hands back. So the short road never refuses anything, and both roads answer alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

Reply = Callable[[int, bytes, tuple[tuple[bytes, bytes], ...]], None]
"""Answers a request, once: status, body, headers but for `content-length`."""

DirectHandler = Callable[[Mapping[bytes, bytes], bytes, Reply], bool]
"""Takes a request's headers (names in lower case, the last of a repeated one) and its body. True: taken, `Reply` will
be called, at once or later. False: not taken, nothing happened; it goes the long road."""

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


class DirectProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a short road."""

    def __init__(self, *args: Any, handlers: Mapping[bytes, DirectHandler], **more: Any) -> None:
        """`handlers` by request target."""
        super().__init__(*args, **more)
        self._handlers = handlers
        self._handler: DirectHandler | None = None
        """Of the request being read, as long as it may take the short road."""
        self._whole = b""
        self._idle_since: float | None = None
        """Loop time of the last answer, while nothing is being asked."""

    def data_received(self, data: bytes) -> None:
        """Read on; a request that is not complete by now goes the long road."""
        super().data_received(data)
        if self._handler is not None:
            if self.transport.is_closing():
                self._handler = None
            else:
                self._take_long_road()

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
        try:
            taken = handler(dict(self.headers), self._whole, exchange.reply)
        except Exception:
            # Left to the parser it would become "400 Bad Request", and the sender might give the request up.
            _log.exception("a handler of direct requests failed")
            exchange.keep_alive = False
            exchange.reply(500, b"Internal Server Error", _PLAIN_TEXT)
            return
        if not taken:
            self.cycle = before
            self._take_long_road()
            super().on_message_complete()

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
