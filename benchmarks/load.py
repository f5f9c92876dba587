"""A load generator: many keep-alive connections, requests rendered beforehand, raw sockets under asyncio.

Owns the connections, their pace, and the reading of just as much HTTP as it takes to tell answers apart. It refuses
to know what a request says. An HTTP client library would cost more than the service it measures.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

import uvloop

_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length: "
_STALLED_SECONDS = 30.0


class LoadFailed(RuntimeError):
    """A connection broke, or nothing was answered any more."""


@dataclass(slots=True)
class Load:
    """What was sent and how it was answered."""

    statuses: Counter[int] = field(default_factory=Counter)
    latencies_seconds: list[float] = field(default_factory=list)
    """From when a request was due (paced) or written (not paced) to its answer."""
    seconds: float = 0.0

    @property
    def answered(self) -> int:
        return self.statuses.total()

    def latency(self, share: float) -> float:
        """A quantile of the latencies, in seconds."""
        ordered = sorted(self.latencies_seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def send_all(port: int, requests: Iterator[bytes], *, connections: int) -> Load:
    """Send every request, each connection its next as soon as its last is answered. Raises LoadFailed."""
    return uvloop.run(_Generator(port, requests, connections).run_unpaced())


def send_paced(port: int, requests: Iterator[bytes], *, connections: int, per_second: float) -> Load:
    """Send every request when it is due, whether or not earlier ones are answered, while a connection is free.

    A request that finds none waits for one, and its wait is part of its latency. Raises LoadFailed.
    """
    return uvloop.run(_Generator(port, requests, connections).run_paced(per_second))


class _Connection(asyncio.Protocol):
    def __init__(self, on_answer: Callable[[_Connection, int], None], on_lost: Callable[[], None]) -> None:
        self._on_answer = on_answer
        self._on_lost = on_lost
        self._held = b""
        self.transport: asyncio.Transport | None = None
        self.due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self.transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes, due: float) -> None:
        assert self.transport is not None
        self.due = due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._held:
            data = self._held + data
        size = answer_size(data)
        if size is None or len(data) < size:
            self._held = data
            return
        # One request at a time: nothing can follow its answer.
        self._held = b""
        self._on_answer(self, int(data[9:12]))

    def connection_lost(self, error: Exception | None) -> None:
        self._on_lost()


def answer_size(data: bytes) -> int | None:
    """Bytes of the HTTP answer `data` begins with; None while its head is not complete."""
    end = data.find(_HEAD_END)
    if end < 0:
        return None
    at = data.find(_LENGTH, 0, end)
    if at < 0:
        return end + len(_HEAD_END)
    at += len(_LENGTH)
    stop = data.find(b"\r", at)
    return end + len(_HEAD_END) + int(data[at:stop])


class _Generator:
    def __init__(self, port: int, requests: Iterator[bytes], connections: int) -> None:
        self._port = port
        self._requests = requests
        self._count = connections
        self._load = Load()
        self._open: list[_Connection] = []
        self._free: deque[_Connection] = deque()
        self._overdue: deque[tuple[bytes, float]] = deque()
        self._unanswered = 0
        self._exhausted = False
        self._finished = asyncio.Event()
        self._broken = False

    async def run_unpaced(self) -> Load:
        await self._connect(self._answered_unpaced)
        started = time.perf_counter()
        for connection in self._open:
            self._send_next(connection)
        await self._wait(started)
        return self._load

    async def run_paced(self, per_second: float) -> Load:
        await self._connect(self._answered_paced)
        self._free.extend(self._open)
        started = time.perf_counter()
        sent = 0
        while not self._exhausted and not self._broken:
            owed = int((time.perf_counter() - started) * per_second) - sent
            for _ in range(owed):
                request = next(self._requests, None)
                if request is None:
                    self._exhausted = True
                    break
                due = started + sent / per_second
                sent += 1
                self._unanswered += 1
                if self._free:
                    self._free.popleft().send(request, due)
                else:
                    self._overdue.append((request, due))
            await asyncio.sleep(0.001)
        if not self._unanswered:
            self._finished.set()
        await self._wait(started)
        return self._load

    async def _connect(self, on_answer: Callable[[_Connection, int], None]) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(self._count):
            _, connection = await loop.create_connection(
                lambda: _Connection(on_answer, self._lost), "127.0.0.1", self._port
            )
            self._open.append(connection)

    async def _wait(self, started: float) -> None:
        """Return when everything is answered, and close."""
        seen = -1
        while not self._finished.is_set():
            if self._broken or seen == self._load.answered:
                raise LoadFailed(
                    f"{'a connection broke' if self._broken else 'no answer any more'} after {self._load.answered} answers"
                )
            seen = self._load.answered
            try:
                async with asyncio.timeout(_STALLED_SECONDS):
                    await self._finished.wait()
            except TimeoutError:
                continue
        self._load.seconds = time.perf_counter() - started
        for connection in self._open:
            if connection.transport is not None:
                connection.transport.close()

    def _lost(self) -> None:
        if not self._finished.is_set():
            self._broken = True
            self._finished.set()

    def _note(self, connection: _Connection, status: int) -> None:
        self._load.statuses[status] += 1
        self._load.latencies_seconds.append(time.perf_counter() - connection.due)
        self._unanswered -= 1

    def _answered_unpaced(self, connection: _Connection, status: int) -> None:
        self._note(connection, status)
        self._send_next(connection)

    def _send_next(self, connection: _Connection) -> None:
        request = next(self._requests, None)
        if request is not None:
            self._unanswered += 1
            connection.send(request, time.perf_counter())
        elif not self._unanswered:
            self._finished.set()

    def _answered_paced(self, connection: _Connection, status: int) -> None:
        self._note(connection, status)
        if self._overdue:
            connection.send(*self._overdue.popleft())
        else:
            self._free.append(connection)
            if self._exhausted and not self._unanswered:
                self._finished.set()
