"""Routes and their answers, on a log in memory."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import zlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from services.ingest.admission import Admission
from services.ingest.body import BodyLimits
from services.ingest.door import Door, Gate
from services.ingest.group_commit import GroupCommit, GroupRules
from services.ingest.http import ReplayDoor, create_app, entrances
from services.ingest.ingest_time import IngestTime
from services.ingest.letters import write_letter
from services.ingest.metrics import IngestMetrics
from services.ingest.packer import Packer
from services.ingest.redaction import Redactor
from services.ingest.replay import Replayer
from services.ingest.tokens import Source, TokenBook
from tests.unit.ingest.decoders import (
    CAPTURE,
    INGEST_MS,
    KEYS,
    cloud_event,
    cloudevents_decoder,
    kong_decoder,
    kong_entry,
    moesif_decoder,
    moesif_event,
)
from tests.unit.ingest.fake_log import FakeLog
from tollgate.contracts.dead import DeadLetter, encode_dead_letter
from tollgate.metering.errors import DeadReason
from tollgate.runtime.clock import ManualClock
from tollgate.runtime.health import Health
from tollgate.runtime.http import operations_app
from tollgate.runtime.metrics import new_registry

TOKEN = "tg_id1_" + "s" * 60
READER = "tg_id2_" + "r" * 60
JSON = {"content-type": "application/json"}


def source(token: str, scopes: set[str]) -> Source:
    return Source("gw", token.split("_")[1], hashlib.sha256(token.encode()).hexdigest(), frozenset(scopes))


class Service:
    def __init__(self, directory: Path) -> None:
        clock = ManualClock(INGEST_MS)
        ingest_time = IngestTime(clock)
        self.log = FakeLog(at_once=True)
        self.tokens = TokenBook(directory / "sources.json", clock)
        self.tokens.replace([source(TOKEN, {"write", "replay"}), source(READER, {"replay"})])
        self.admission = Admission(2_000_000)
        self.registry = new_registry("ingest", "test")
        metrics = IngestMetrics(self.registry)
        commit = GroupCommit(
            Packer(partitions=4, properties=CAPTURE.names, instance="i", capture=CAPTURE.digest),
            self.log,
            clock,
            ingest_time,
            partial(write_letter, Redactor(KEYS, CAPTURE, ("apikey",), ("apikey",))),
            rules=GroupRules(
                delay_seconds=0, delay_seconds_max=0, rows_worth_waiting=1, rows_max=1, requests_max=1
            ),
            answer_timeout_seconds=8,
        )
        gate = Gate(self.tokens, self.admission)
        limits = BodyLimits(body_bytes_max=100_000, inflated_bytes_max=400_000, timeout_seconds=30)
        decoders = {d.format: d for d in (kong_decoder(), moesif_decoder(), cloudevents_decoder())}
        doors = {
            path: Door(
                entrance,
                gate=gate,
                commit=commit,
                limits=limits,
                clock=clock,
                ingest_time=ingest_time,
                metrics=metrics,
            )
            for path, entrance in entrances(decoders).items()
        }
        replay = ReplayDoor(Replayer(commit, decoders), gate, limits, clock, metrics)
        self.app = create_app(doors, replay, gate, operations_app(Health(clock), self.registry))
        self.direct = doors
        self.directly = 0
        """Requests that took the short road."""


class ShortRoad(httpx.AsyncBaseTransport):
    """Offers a whole request to its door first, as the server does."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._long = httpx.ASGITransport(service.app)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        door = self._service.direct.get(request.url.path)
        if door is not None and request.method == "POST" and "content-length" in request.headers:
            answered: asyncio.Future[httpx.Response] = asyncio.get_running_loop().create_future()

            def reply(status: int, body: bytes, headers: tuple[tuple[bytes, bytes], ...]) -> None:
                length = [] if status == 204 else [(b"content-length", b"%d" % len(body))]
                answered.set_result(httpx.Response(status, content=body, headers=[*headers, *length]))

            headers = {name.lower(): value for name, value in request.headers.raw}
            if door.enter(headers, await request.aread(), reply):
                self._service.directly += 1
                return await answered
        return await self._long.handle_async_request(request)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


@pytest_asyncio.fixture(params=["long road", "short road"])
async def client(service: Service, request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncClient]:
    transport = ShortRoad(service) if request.param == "short road" else httpx.ASGITransport(service.app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://ingest", headers={"authorization": f"Bearer {TOKEN}"}
    ) as client:
        yield client


async def test_kong_is_answered_with_counts(client: httpx.AsyncClient, service: Service) -> None:
    """One bad entry among three goes to the dead letters and the answer says so."""
    answer = await client.post("/v1/logs/kong", json=[kong_entry(), {"x": 1}, kong_entry()])
    assert (answer.status_code, answer.json()) == (200, {"accepted": 2, "rejected": 1})
    assert [row["account"] for row in service.log.rows] == ["user:cus_1"] * 2
    assert [letter.reason for letter in service.log.letters] == [DeadReason.UNSUPPORTED]
    assert service.admission.bytes_held == 0


async def test_what_is_usual_takes_the_short_road(service: Service) -> None:
    """And nothing that must be refused or unpacked does: such a request is handed back untouched."""
    async with httpx.AsyncClient(
        transport=ShortRoad(service), base_url="http://i", headers={"x-tollgate-token": TOKEN}
    ) as client:
        for path, content_type, entry in (
            ("/v1/logs/kong", "application/json; charset=utf-8", kong_entry()),
            ("/v1/events", "text/plain", moesif_event()),
            ("/api/v1/events", "application/cloudevents+json", cloud_event()),
        ):
            content = json.dumps(entry).encode()
            headers = {"content-type": content_type}
            assert (await client.post(path, content=content, headers=headers)).is_success
            taken = service.directly
            for more, unusual in (
                ({"content-encoding": "gzip"}, gzip.compress(content)),
                ({"x-tollgate-token": "tg_id1_no"}, content),
                ({}, content[:-1]),
                ({}, content.ljust(100_001)),
            ):
                await client.post(path, content=unusual, headers=headers | more)
            assert service.directly == taken
    assert service.directly == 3
    assert service.admission.bytes_held == 0


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/events", moesif_event()), ("/v1/events/batch", [moesif_event()])]
)
async def test_moesif_is_answered_201_with_its_tags(client: httpx.AsyncClient, path: str, body: Any) -> None:
    """Exactly 201, whatever the content type says, and the tags its plugins compare."""
    answer = await client.post(
        path, content=json.dumps(body), headers={"content-type": "application/x-www-form-urlencoded"}
    )
    assert (answer.status_code, answer.json()) == (201, {"accepted": 1, "rejected": 0})
    config = await client.get("/v1/config")
    rules = await client.get("/v1/rules")
    assert answer.headers["X-Moesif-Config-ETag"] == config.headers["X-Moesif-Config-ETag"] != ""
    assert rules.headers["X-Moesif-Rules-Tag"] == rules.headers["X-Moesif-Rules-Etag"] != ""
    assert rules.json() == []
    assert config.json()["sample_rate"] == 100
    assert None not in config.json().values()


@pytest.mark.parametrize("content", [b"not json", b'[{"a":', b""])
async def test_a_broken_moesif_body_is_quarantined(
    client: httpx.AsyncClient, service: Service, content: bytes
) -> None:
    """Anything but 201 would come again for ever; the body is kept where operators look."""
    answer = await client.post("/v1/events/batch", content=content)
    assert (answer.status_code, answer.json()) == (201, {"accepted": 0, "rejected": 1})
    assert [(letter.reason, letter.format, letter.payload) for letter in service.log.letters] == [
        (DeadReason.BAD_JSON, "raw", content)
    ]
    broken = await client.post("/v1/events", content=content, headers={"content-encoding": "gzip"})
    assert broken.status_code == 201


async def test_cloudevents_are_answered_204(client: httpx.AsyncClient, service: Service) -> None:
    """No body; the counts are in headers."""
    answer = await client.post(
        "/api/v1/events",
        content=json.dumps([cloud_event(), {}]),
        headers={"content-type": "application/cloudevents-batch+json; charset=utf-8"},
    )
    assert (answer.status_code, answer.content) == (204, b"")
    assert (answer.headers["x-tollgate-accepted"], answer.headers["x-tollgate-rejected"]) == ("1", "1")


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer " + TOKEN},
        {"X-Moesif-Application-Id": TOKEN},
        {"X-Tollgate-Token": TOKEN},
    ],
)
async def test_a_token_may_come_in_any_of_three_headers(service: Service, headers: dict[str, str]) -> None:
    """Senders differ in what they can be told to send."""
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(service.app), base_url="http://i", headers=headers
    ) as client:
        assert (await client.post("/v1/logs/kong", json=kong_entry())).status_code == 200


@pytest.mark.parametrize(
    "token", ["", "nonsense", TOKEN[:-1], TOKEN + "x", "tg_id9_" + "s" * 60, "tg_id1", "tg__", "é"]
)
async def test_a_wrong_token_is_401_on_every_route(service: Service, token: str) -> None:
    """Nothing is stored and nothing is told."""
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(service.app),
        base_url="http://i",
        headers=[(b"x-tollgate-token", token.encode())],
    ) as client:
        for path in ("/v1/logs/kong", "/v1/events", "/v1/events/batch", "/api/v1/events", "/v1/replay"):
            assert (await client.post(path, content=b"[]", headers=JSON)).status_code == 401
        assert (await client.get("/v1/config")).status_code == 401
    assert service.log.records == []


async def test_scopes_are_kept_apart(client: httpx.AsyncClient) -> None:
    """A token for replays sends no events."""
    answer = await client.post(
        "/v1/logs/kong", json=kong_entry(), headers={"authorization": f"Bearer {READER}"}
    )
    assert answer.status_code == 403


async def test_before_tokens_are_known_events_wait_and_config_is_answered(
    client: httpx.AsyncClient, service: Service, tmp_path: Path
) -> None:
    """An SDK that fails at start-up without its configuration would take its host down."""
    service.tokens._by_id = None
    answer = await client.post("/v1/logs/kong", json=kong_entry())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert (await client.get("/v1/config")).status_code == 200


@pytest.mark.parametrize(
    ("path", "headers", "content", "status"),
    [
        ("/v1/logs/kong", {"content-type": "text/plain"}, b"[]", 415),
        ("/v1/logs/kong", {}, b"[]", 415),
        ("/api/v1/events", {"content-type": "application/xml"}, b"[]", 415),
        ("/v1/logs/kong", JSON | {"content-encoding": "br"}, b"[]", 415),
        ("/v1/events", {"content-encoding": "gzip, gzip"}, b"[]", 415),
        ("/v1/logs/kong", JSON, b"x" * 100_001, 413),
        ("/v1/events", {}, b"x" * 100_001, 413),
        ("/v1/logs/kong", JSON | {"content-encoding": "gzip"}, gzip.compress(b" " * 400_001, mtime=0), 413),
        ("/v1/logs/kong", JSON | {"content-encoding": "gzip"}, b"no gzip", 400),
        ("/v1/logs/kong", JSON | {"content-encoding": "gzip"}, gzip.compress(b"[]", mtime=0)[:-4], 400),
        ("/v1/logs/kong", JSON, b"[{]", 400),
        ("/v1/users", {}, b"{}", 404),
        ("/", {}, b"{}", 404),
        ("/v1/logs/kong/", JSON, b"{}", 404),
    ],
)
async def test_refusals(
    client: httpx.AsyncClient,
    service: Service,
    path: str,
    headers: dict[str, str],
    content: bytes,
    status: int,
) -> None:
    """Each refusal has its own status, and nothing is held afterwards."""
    answer = await client.post(path, content=content, headers=headers)
    assert answer.status_code == status
    assert service.admission.bytes_held == 0
    assert service.log.records == []


async def test_a_body_of_unknown_length_is_capped_too(client: httpx.AsyncClient) -> None:
    """Chunks are counted as they arrive."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b"x" * 10_000

    answer = await client.post("/v1/logs/kong", content=chunks(), headers=JSON)
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("gzip", gzip.compress(b"[" + b" " * 399_000, mtime=0) + gzip.compress(b"]", mtime=0)),
        ("deflate", zlib.compress(b"[]")),
        ("deflate", zlib.compress(b"[]", wbits=-15)),
        ("identity", b"[]"),
        ("GZIP", gzip.compress(b"[]", mtime=0)),
    ],
)
async def test_encodings(client: httpx.AsyncClient, encoding: str, content: bytes) -> None:
    """gzip in several members, both kinds of deflate, identity."""
    answer = await client.post(
        "/v1/logs/kong", content=content, headers=JSON | {"content-encoding": encoding}
    )
    assert (answer.status_code, answer.json()) == (200, {"accepted": 0, "rejected": 0})


async def test_broken_json_names_reason_and_position(client: httpx.AsyncClient) -> None:
    """So that its sender can be mended."""
    answer = await client.post("/v1/logs/kong", content=b'[{"a": 1}', headers=JSON)
    assert answer.status_code == 400
    assert (answer.json()["reason"], answer.json()["position"]) == ("bad_json", 9)


async def test_no_success_without_acknowledgement(client: httpx.AsyncClient, service: Service) -> None:
    """A refused record, and a refused dead letter, are both 503 with a time to come back."""
    service.log.at_once = False
    for body in (kong_entry(), {"no": "event"}):
        answer = await client.post("/v1/logs/kong", json=body)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert (await client.post("/v1/events", content=b"broken")).status_code == 503


async def test_success_waits_for_the_acknowledgement(client: httpx.AsyncClient, service: Service) -> None:
    """Until the broker has answered there is no answer, and the body's bytes are held."""
    service.log.at_once = None
    request = asyncio.create_task(client.post("/v1/logs/kong", json=kong_entry()))
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(service.log.records) == 1
    assert not request.done()
    assert service.admission.bytes_held > 0
    service.log.answer(True)
    assert (await request).status_code == 200
    assert service.admission.bytes_held == 0


async def test_past_the_bound_of_held_bytes_requests_are_refused(
    client: httpx.AsyncClient, service: Service
) -> None:
    """At once, with a time to come back."""
    service.admission.hold(1_999_990)
    answer = await client.post("/v1/logs/kong", json=kong_entry())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


async def test_a_mended_letter_is_replayed_under_its_source(
    client: httpx.AsyncClient, service: Service
) -> None:
    """By its format; what still cannot be counted is named and not written again."""
    payload = json.dumps(kong_entry()).encode()
    letter = DeadLetter(DeadReason.NO_IDENTITY, "", "other", 1, "kong", payload, ingest_ms=1)
    answer = await client.post("/v1/replay", content=encode_dead_letter(letter))
    assert (answer.status_code, answer.json()["accepted"]) == (200, 1)
    assert service.log.records[0].headers.source == "other"
    bad = DeadLetter(DeadReason.NO_IDENTITY, "", "other", 1, "kong", b"{}", ingest_ms=1)
    answer = await client.post("/v1/replay", content=encode_dead_letter(bad))
    assert (answer.status_code, answer.json()["reasons"][0]["reason"]) == (422, "unsupported")
    raw = DeadLetter(DeadReason.BAD_JSON, "", "other", 1, "raw", b"{}", ingest_ms=1)
    assert (await client.post("/v1/replay", content=encode_dead_letter(raw))).status_code == 422
    assert service.log.letters == []


async def test_operators_and_probes(client: httpx.AsyncClient) -> None:
    """The operators' routes need no token; the other method of an event route is refused."""
    assert (await client.get("/health/probe")).status_code == 200
    assert (await client.get("/livez")).status_code == 200
    await client.post("/v1/logs/kong", json=kong_entry())
    metrics = (await client.get("/metrics")).text
    assert 'tollgate_ingest_events_total{outcome="acknowledged",route="kong"} 1.0' in metrics
    answer = await client.get("/v1/logs/kong")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_a_body_is_waited_for_only_when_it_may_be_taken(service: Service) -> None:
    """By its headers and its announced size; waiting itself holds nothing, what has come is counted and bounded."""
    door = service.direct["/v1/logs/kong"]
    headers = {b"authorization": f"Bearer {TOKEN}".encode(), b"content-type": b"application/json"}
    assert door.expect(headers, 100_000)
    assert not door.expect(headers, 100_001)
    assert not door.expect(headers | {b"authorization": b"Bearer tg_unknown"}, 10)
    assert not door.expect(headers | {b"authorization": f"Bearer {READER}".encode()}, 10)
    assert not door.expect(headers | {b"content-encoding": b"gzip"}, 10)
    assert not door.expect(headers | {b"content-type": b"text/html"}, 10)
    assert service.admission.bytes_held == 0
    assert door.hold(1_999_999)
    assert not door.hold(2)
    door.forget(1_999_999)
    assert service.admission.bytes_held == 0
