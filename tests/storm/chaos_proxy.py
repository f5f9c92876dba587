"""A TCP proxy that misbehaves on request: latency, little bandwidth, cuts, silence, lost answers.

Owns the sockets and a thread with an event loop of its own. It refuses to know what is said over it, and when which
weather comes: `faults.py` sets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import random
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeVar

import uvloop

from sandbox.ports import LOOPBACK, free_port
from tests.storm.weather import CALM, Weather

_CHUNK_BYTES = 65_536
_CONNECT_SECONDS = 5.0
_CONTROL_SECONDS = 30.0

Result = TypeVar("Result")


@dataclass(slots=True)
class Link:
    """One stretch of network: a port that leads to another."""

    name: str
    port: int
    target_port: int
    weather: Weather = CALM
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    connections: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = field(default_factory=set)
    """To the client, to the server."""
    cuts: int = 0
    """Connections reset on purpose, over all weathers."""


class ChaosProxy:
    """Links by name. A context manager: the thread runs inside; add links after entering.

    Draws (jitter, which answers are lost) come from `seed`; how they fall on connections depends on timing.
    """

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._links: dict[str, Link] = {}
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos-proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._await(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def add(self, name: str, target_port: int) -> int:
        """A new link to a port of loopback; returns the port that leads there."""
        return self._await(self._open(name, target_port))

    def set_weather(self, pattern: str, weather: Weather) -> list[str]:
        """Change the weather of all links whose name matches (`kafka-2:*`); returns their names, never none."""
        chosen = [link for name, link in self._links.items() if fnmatch.fnmatchcase(name, pattern)]
        if not chosen:
            raise ValueError(f"no link is named {pattern}")
        self._await(self._change(chosen, weather))
        return [link.name for link in chosen]

    @property
    def cuts(self) -> int:
        """Connections reset on purpose so far."""
        return sum(link.cuts for link in self._links.values())

    def _await(self, doing: Coroutine[object, object, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(doing, self._loop).result(_CONTROL_SECONDS)

    async def _open(self, name: str, target_port: int) -> int:
        link = Link(name, free_port(), target_port)

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                # Cancelled only by close(), which waits for it: nobody else is to hear of that.
                with contextlib.suppress(asyncio.CancelledError):
                    await self._carry(link, reader, writer)
            finally:
                self._tasks.discard(task)

        self._servers.append(await asyncio.start_server(accept, LOOPBACK, link.port))
        self._links[name] = link
        return link.port

    async def _change(self, links: list[Link], weather: Weather) -> None:
        for link in links:
            link.weather = weather
            link.changed.set()
            link.changed = asyncio.Event()
            if weather.cut:
                for near, far in list(link.connections):
                    self._reset(link, near)
                    far.transport.abort()

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @staticmethod
    def _reset(link: Link, writer: asyncio.StreamWriter) -> None:
        if not writer.transport.is_closing():
            link.cuts += 1
        writer.transport.abort()

    async def _carry(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its first byte to its end."""
        if link.weather.cut:
            self._reset(link, writer)
            return
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                far_reader, far_writer = await asyncio.open_connection(LOOPBACK, link.target_port)
        except (OSError, TimeoutError):
            writer.transport.abort()
            return
        near, far = _End(reader, writer), _End(far_reader, far_writer)
        link.connections.add((writer, far_writer))
        try:
            await asyncio.gather(self._ask(link, near, far), self._answer(link, near, far))
        except (OSError, RuntimeError):
            # Either end may be gone in the middle of a word; uvloop says so with a RuntimeError.
            pass
        finally:
            link.connections.discard((writer, far_writer))
            writer.close()
            far_writer.close()

    async def _ask(self, link: Link, near: _End, far: _End) -> None:
        """From the client to the server."""
        while data := await near.reader.read(_CHUNK_BYTES):
            await self._pass_through(link, data)
            far.writer.write(data)
            marker = link.weather.cut_after
            if marker and marker in data:
                # A reset on the far side could overtake the question: there it ends in good order.
                far.writer.close()
                self._reset(link, near.writer)
                return
            await far.writer.drain()
        _end_half(far.writer)

    async def _answer(self, link: Link, near: _End, far: _End) -> None:
        """From the server to the client."""
        while data := await far.reader.read(_CHUNK_BYTES):
            await self._pass_through(link, data)
            if self._rng.random() * 100 < link.weather.lost_replies_percent:
                self._reset(link, near.writer)
                far.writer.close()
                return
            near.writer.write(data)
            await near.writer.drain()
        _end_half(near.writer)

    async def _pass_through(self, link: Link, data: bytes) -> None:
        """Return when the link's weather lets `data` pass. Better weather ends every wait."""
        while link.weather is not CALM:
            weather, changed = link.weather, link.changed
            seconds = (weather.latency_ms + self._rng.random() * weather.jitter_ms) / 1000
            if weather.bytes_per_second:
                seconds += len(data) / weather.bytes_per_second
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if weather.frozen else seconds):
                    await changed.wait()
                    continue
            return


@dataclass(frozen=True, slots=True)
class _End:
    """One end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


def _end_half(writer: asyncio.StreamWriter) -> None:
    """One direction has ended; the other may still have something to say."""
    with contextlib.suppress(OSError):
        if not writer.is_closing():
            writer.write_eof()
