"""The short road beside uvicorn's own, on a connection in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from tollgate.runtime.http import Receive, Scope, Send
from tollgate.runtime.http_direct import WAIT_SECONDS, DirectProtocol, Reply

PATH = b"/take"
JSON_TYPE = ((b"content-type", b"application/json"),)


CUT_ROADS = [
    (True, True, {"short"}),
    # Cut in its head nothing is known yet, and the rest comes at once.
    (True, False, {"short", "long POST /take"}),
    (False, True, {"long POST /take"}),
    (False, False, {"long POST /take"}),
]


class Connection:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> Any:
        return None

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def say(road: str, headers: Mapping[bytes, bytes], body: bytes) -> bytes:
    return json.dumps([road, headers.get(b"x-mark", b"").decode(), body.decode()]).encode()


class Rig:
    """One connection, an app that answers at once, and a handler that answers when told to."""

    def __init__(self, *, takes: bool = True, fails: bool = False, waits: bool = True) -> None:
        self.takes = takes
        self.fails = fails
        self.waits = waits
        self.room = 10_000_000
        self.held = 0
        self.waiting: list[tuple[bytes, Reply]] = []
        self.state = ServerState()
        config = uvicorn.Config(self._app, interface="asgi3", lifespan="off", log_config=None)
        config.load()
        self.connection = Connection()
        self.protocol = DirectProtocol(
            config, self.state, {}, asyncio.get_running_loop(), handlers={PATH: self}
        )
        self.protocol.connection_made(self.connection)  # type: ignore[arg-type]

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        answer = say(f"long {scope['method']} {scope['path']}", dict(scope["headers"]), body)
        headers = [*JSON_TYPE, (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    def expect(self, headers: Mapping[bytes, bytes], size: int) -> bool:
        assert headers[b"content-length"] == b"%d" % size
        return self.waits

    def hold(self, size: int) -> bool:
        if self.held + size > self.room:
            return False
        self.held += size
        return True

    def forget(self, size: int) -> None:
        self.held -= size

    def enter(self, headers: Mapping[bytes, bytes], body: bytes, reply: Reply) -> bool:
        assert self.held == 0
        if self.fails:
            raise RuntimeError("a bug")
        if self.takes:
            self.waiting.append((say("short", headers, body), reply))
        return self.takes

    async def turn(self) -> None:
        for _ in range(8):
            await asyncio.sleep(0)

    def answer_all(self) -> None:
        waiting, self.waiting = self.waiting, []
        for answer, reply in waiting:
            reply(200, answer, JSON_TYPE)

    async def ask(self, *parts: bytes) -> list[list[str]]:
        """Feed the parts, answer whatever waits, and read the answers in the order they were written."""
        for part in parts:
            self.protocol.data_received(part)
            await self.turn()
        for _ in range(4):
            self.answer_all()
            await self.turn()
        return read_answers(b"".join(self.connection.writes))


def read_answers(data: bytes) -> list[list[str]]:
    answers = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        assert lines[0] == b"HTTP/1.1 200 OK", head
        headers = dict(line.split(b": ", 1) for line in lines[1:])
        assert headers[b"content-type"] == b"application/json"
        size = int(headers[b"content-length"])
        answers.append(json.loads(rest[:size]))
        data = rest[size:]
    return answers


def post(mark: str, body: bytes = b"events", target: bytes = PATH) -> bytes:
    return b"POST %s HTTP/1.1\r\nhost: t\r\nX-Mark: %s\r\ncontent-length: %d\r\n\r\n%s" % (
        target,
        mark.encode(),
        len(body),
        body,
    )


async def test_a_whole_request_is_answered_in_one_write() -> None:
    """With its headers in lower case; the connection stays open for the next one."""
    rig = Rig()
    assert await rig.ask(post("a")) == [["short", "a", "events"]]
    assert len(rig.connection.writes) == 1
    assert await rig.ask(post("b", b"")) == [["short", "a", "events"], ["short", "b", ""]]
    assert not rig.connection.closed
    assert rig.state.total_requests == 2


@pytest.mark.parametrize(("takes", "waits", "roads"), CUT_ROADS)
async def test_wherever_a_request_is_cut_it_is_answered_once_and_alike(
    takes: bool, waits: bool, roads: set[str]
) -> None:
    """In two parts or three, with another one behind it in the last of them; with nothing lost or doubled."""
    request = post("a")
    found = set()
    for cut in range(1, len(request)):
        for again in {cut, (cut + len(request)) // 2}:
            rig = Rig(takes=takes, waits=waits)
            parts = (request[:cut], request[cut:again], request[again:] + post("b"))
            [[road, *first], [_, *second]] = await rig.ask(*filter(None, parts))
            assert (first, second) == (["a", "events"], ["b", "events"])
            found.add(road)
            assert rig.state.total_requests == 2
            assert rig.held == 0
            assert not rig.connection.closed
    assert found == roads


async def test_room_is_held_for_what_has_come_until_the_body_is_whole() -> None:
    """Announcing a body takes none. And the connection serves the next request like any other."""
    rig = Rig()
    body = b"e" * 300_000
    whole = post("a", body)
    head = whole.index(body[:1] * 9)
    assert await rig.ask(whole[:head]) == []
    assert rig.held == 0
    assert await rig.ask(*(whole[at : at + 65_536] for at in range(head, head + 262_144, 65_536))) == []
    assert rig.held == 262_144
    assert await rig.ask(whole[head + 262_144 :]) == [["short", "a", body.decode()]]
    assert (await rig.ask(post("b")))[1:] == [["short", "b", "events"]]


async def test_who_goes_away_half_way_leaves_nothing() -> None:
    """The room is given back, and nobody is told of half a body."""
    rig = Rig()
    assert await rig.ask(post("a")[:-2]) == []
    assert rig.held == 4
    rig.protocol.connection_lost(ConnectionResetError())
    assert (rig.held, rig.waiting, rig.connection.writes) == (0, [], [])


@pytest.mark.parametrize("room", [0, 100, 250])
async def test_a_body_there_is_no_room_for_goes_on_by_the_long_road(room: int) -> None:
    """Whole, whichever of its parts was one too many, with the request behind it; nothing stays held."""
    rig = Rig()
    rig.room = room
    body = b"e" * 400
    whole = post("a", body) + post("b")
    head = whole.index(body)
    parts = [whole[: head + 90], *(whole[at : at + 90] for at in range(head + 90, len(whole), 90))]
    [[road, *first], [_, *second]] = await rig.ask(*parts)
    assert (road, first, second) == ("long POST /take", ["a", body.decode()], ["b", "events"])
    assert rig.held == 0


async def test_a_body_that_takes_too_long_goes_on_by_the_long_road(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that came before; a shutdown meanwhile is remembered."""
    waits: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
    loop = asyncio.get_running_loop()

    def call_later(delay: float, work: Callable[..., None], *args: Any) -> Any:
        assert delay == WAIT_SECONDS
        waits.append((work, args))
        return loop.call_soon(lambda: None)

    rig = Rig()
    monkeypatch.setattr(
        rig.protocol, "loop", SimpleNamespace(call_later=call_later, create_task=loop.create_task)
    )
    whole = post("a")
    await rig.ask(whole[:-5], whole[-5:-3])
    rig.protocol.shutdown()
    assert not rig.connection.closed
    [(work, args)] = waits
    work(*args)
    assert rig.held == 0
    assert await rig.ask(whole[-3:]) == [["long POST /take", "a", "events"]]
    assert rig.connection.closed


async def test_a_shutdown_waits_for_a_body_under_way() -> None:
    """It is answered, and the sender told that the connection ends."""
    rig = Rig()
    whole = post("a")
    await rig.ask(whole[:-2])
    rig.protocol.shutdown()
    assert not rig.connection.closed
    assert await rig.ask(whole[-2:]) == [["short", "a", "events"]]
    assert b"\r\nconnection: close\r\n" in rig.connection.writes[0]
    assert rig.connection.closed


@pytest.mark.parametrize("takes", [True, False])
async def test_answers_keep_the_order_of_requests(takes: bool) -> None:
    """Pipelined requests wait for the one before, whichever roads they take."""
    rig = Rig(takes=takes)
    requests = [post("1"), post("2", target=b"/other"), post("3"), post("4")]
    answers = await rig.ask(b"".join(requests))
    assert [mark for _, mark, _ in answers] == ["1", "2", "3", "4"]
    assert [road for road, *_ in answers][:2] == ["short" if takes else "long POST /take", "long POST /other"]
    assert await rig.ask(post("5")) == [*answers, ["short" if takes else "long POST /take", "5", "events"]]


@pytest.mark.parametrize(
    ("request_bytes", "road"),
    [
        (post("a", target=b"/take?x=1"), "long POST /take"),
        (post("a", target=b"/take/"), "long POST /take/"),
        (b"PUT /take HTTP/1.1\r\nhost: t\r\nx-mark: a\r\ncontent-length: 6\r\n\r\nevents", "long PUT /take"),
        (
            b"POST /take HTTP/1.1\r\nhost: t\r\nx-mark: a\r\nupgrade: h2c\r\ncontent-length: 6\r\n\r\nevents",
            "short",
        ),
        (
            (
                b"POST /take HTTP/1.1\r\nhost: t\r\nx-mark: a\r\ntransfer-encoding: chunked\r\n\r\n"
                b"3\r\neve\r\n3\r\nnts\r\n0\r\n\r\n"
            ),
            "short",
        ),
    ],
)
async def test_which_requests_take_which_road(request_bytes: bytes, road: str) -> None:
    """A target with anything more to it, another method: the long road. Chunks that came at once are a whole."""
    assert await Rig().ask(request_bytes) == [[road, "a", "events"]]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /take HTTP/1.0\r\nhost: t\r\nx-mark: a\r\ncontent-length: 6\r\n\r\nevents",
        b"POST /take HTTP/1.1\r\nhost: t\r\nx-mark: a\r\nconnection: close\r\ncontent-length: 6\r\n\r\nevents",
    ],
)
async def test_a_sender_that_wants_the_connection_closed_gets_it(request_bytes: bytes) -> None:
    """That is the long road's business."""
    rig = Rig()
    assert await rig.ask(request_bytes) == [["long POST /take", "a", "events"]]
    assert rig.connection.closed


async def test_a_sender_that_waits_for_100_is_told_to_continue() -> None:
    """The body comes after, and takes the long road."""
    rig = Rig()
    head = b"POST /take HTTP/1.1\r\nhost: t\r\nx-mark: a\r\nexpect: 100-continue\r\ncontent-length: 6\r\n\r\n"
    rig.protocol.data_received(head)
    await rig.turn()
    assert rig.connection.writes == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    rig.connection.writes.clear()
    assert await rig.ask(b"events") == [["long POST /take", "a", "events"]]


async def test_what_the_handler_hands_back_takes_the_long_road() -> None:
    """Untouched."""
    assert await Rig(takes=False).ask(post("a")) == [["long POST /take", "a", "events"]]


async def test_a_failing_handler_is_a_500_and_not_the_senders_fault() -> None:
    """Senders give up what is answered 400."""
    rig = Rig(fails=True)
    rig.protocol.data_received(post("a"))
    assert rig.connection.writes[0].startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert b"\r\nconnection: close\r\n" in rig.connection.writes[0]
    assert rig.connection.closed


async def test_a_request_in_flight_is_answered_before_a_shutdown_closes() -> None:
    """And the sender learns that the connection ends."""
    rig = Rig()
    rig.protocol.data_received(post("a"))
    rig.protocol.shutdown()
    assert not rig.connection.closed
    rig.answer_all()
    assert b"\r\nconnection: close\r\n" in rig.connection.writes[0]
    assert rig.connection.closed


async def test_nobody_is_answered_who_has_gone() -> None:
    """The connection was lost while the handler worked."""
    rig = Rig()
    rig.protocol.data_received(post("a"))
    rig.protocol.connection_lost(ConnectionResetError())
    rig.answer_all()
    assert rig.connection.writes == []


@pytest.mark.parametrize("bad", [b"content-length: x\r\n\r\n", b"transfer-encoding: chunked\r\n\r\nZ\r\n"])
async def test_what_is_no_http_is_a_400(bad: bytes) -> None:
    """Also when it began like a request for the short road; nothing of it reaches a handler."""
    rig = Rig()
    rig.protocol.data_received(b"POST /take HTTP/1.1\r\nhost: t\r\n" + bad)
    await rig.turn()
    assert rig.connection.writes[0].startswith(b"HTTP/1.1 400 ")
    assert rig.connection.closed
    assert rig.waiting == []
