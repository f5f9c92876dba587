"""The chaos proxy on real sockets: each weather does what its name says, and calm weather nothing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from sandbox.ports import LOOPBACK, free_port
from tests.storm.chaos_proxy import ChaosProxy
from tests.storm.weather import CALM, Weather

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[int], Awaitable[Streams]]


class Echo:
    """A server that answers each line with itself, and keeps what it was told."""

    def __init__(self) -> None:
        self.port = free_port()
        self.heard: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                self.heard.append(line)
                writer.write(line)
        writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    """An echo server."""
    made = Echo()
    server = await asyncio.start_server(made.serve, LOOPBACK, made.port, limit=2_000_000)
    yield made
    server.close()
    await hang_up(made.writers)


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Opens connections, and closes them with the test."""
    writers: list[asyncio.StreamWriter] = []

    async def connected(port: int) -> Streams:
        reader, writer = await asyncio.open_connection(LOOPBACK, port, limit=2_000_000)
        writers.append(writer)
        return reader, writer

    yield connected
    await hang_up(writers)


async def hang_up(writers: list[asyncio.StreamWriter]) -> None:
    """Close connections and wait until they are."""
    for writer in writers:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.fixture
def proxy() -> Iterator[ChaosProxy]:
    """A proxy without links."""
    with ChaosProxy(seed=1) as made:
        yield made


async def call(streams: Streams, line: bytes) -> bytes:
    """One question and its answer; empty when the connection ends instead."""
    reader, writer = streams
    writer.write(line)
    try:
        async with asyncio.timeout(5):
            return await reader.readline()
    except ConnectionError:
        return b""


async def test_calm_weather_passes_everything(echo: Echo, proxy: ChaosProxy, connect: Connect) -> None:
    """A megabyte comes back as it went."""
    streams = await connect(proxy.add("a", echo.port))
    line = b"x" * 1_000_000 + b"\n"
    assert await call(streams, line) == line


async def test_a_cut_resets_connections_and_refuses_new_ones(
    echo: Echo, proxy: ChaosProxy, connect: Connect
) -> None:
    """While it is cut nothing is heard; afterwards a new connection works."""
    port = proxy.add("kafka-1:meter", echo.port)
    streams = await connect(port)
    assert await call(streams, b"before\n") == b"before\n"
    assert proxy.set_weather("kafka-*:meter", Weather(cut=True)) == ["kafka-1:meter"]
    assert await call(streams, b"lost\n") == b""
    refused = await connect(port)
    assert await call(refused, b"lost\n") == b""
    proxy.set_weather("*", CALM)
    again = await connect(port)
    assert await call(again, b"after\n") == b"after\n"
    assert echo.heard == [b"before\n", b"after\n"]
    assert proxy.cuts == 2


async def test_frozen_bytes_pass_afterwards(echo: Echo, proxy: ChaosProxy, connect: Connect) -> None:
    """Nothing passes a frozen link and nothing breaks; what was held arrives when it thaws."""
    streams = await connect(proxy.add("a", echo.port))
    proxy.set_weather("a", Weather(frozen=True))
    waiting = asyncio.create_task(call(streams, b"held\n"))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    assert echo.heard == []
    proxy.set_weather("a", CALM)
    assert await waiting == b"held\n"


async def test_latency_delays_each_way(echo: Echo, proxy: ChaosProxy, connect: Connect) -> None:
    """A question and its answer each wait."""
    streams = await connect(proxy.add("a", echo.port))
    proxy.set_weather("a", Weather(latency_ms=100))
    started = time.monotonic()
    assert await call(streams, b"slow\n") == b"slow\n"
    assert time.monotonic() - started >= 0.2


async def test_bandwidth_is_kept(echo: Echo, proxy: ChaosProxy, connect: Connect) -> None:
    """Four kilobytes at forty a second take a tenth of a second each way."""
    streams = await connect(proxy.add("a", echo.port))
    proxy.set_weather("a", Weather(bytes_per_second=40_000))
    started = time.monotonic()
    line = b"x" * 3_999 + b"\n"
    assert await call(streams, line) == line
    assert time.monotonic() - started >= 0.2


async def test_a_lost_reply_is_of_a_question_that_arrived(
    echo: Echo, proxy: ChaosProxy, connect: Connect
) -> None:
    """The server has heard it, the client gets a reset."""
    streams = await connect(proxy.add("a", echo.port))
    proxy.set_weather("a", Weather(lost_replies_percent=100))
    assert await call(streams, b"charge\n") == b""
    assert echo.heard == [b"charge\n"]


async def test_a_cut_after_a_word_delivers_it(echo: Echo, proxy: ChaosProxy, connect: Connect) -> None:
    """COMMIT arrives and its answer does not; other questions are answered."""
    streams = await connect(proxy.add("a", echo.port))
    proxy.set_weather("a", Weather(cut_after=b"COMMIT"))
    assert await call(streams, b"BEGIN\n") == b"BEGIN\n"
    assert await call(streams, b"COMMIT\n") == b""
    assert echo.heard == [b"BEGIN\n", b"COMMIT\n"]


async def test_an_unknown_link_is_a_mistake(proxy: ChaosProxy) -> None:
    """A schedule that names no link fails instead of doing nothing."""
    with pytest.raises(ValueError, match="no link is named kafka-9"):
        proxy.set_weather("kafka-9:*", CALM)
