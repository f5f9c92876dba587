"""Ingest: what an event costs from the socket to the broker's acknowledgement.

Owns two rows, bodies of 500 entries and one entry a request. Both read the topic back and compare what every account
has in it with what was sent.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.installation import CAPTURE, Ground, Installation
from benchmarks.kong import Bodies, Singles, make_bodies, make_calls
from benchmarks.load import Load, send_all
from benchmarks.log_reading import LogContents, read_log
from benchmarks.processor import Cores, cpu_seconds, pinned_to
from benchmarks.row import Bound, Measure, Row, assert_counts
from services.ingest.capture import parse_capture
from services.ingest.gateways.kong import KongDecoder
from services.ingest.identity import KeyHasher

BODY_EVENTS = 500
BODY_CONNECTIONS = 16
CONNECTIONS = 256
_BODIES = 40
_TEMPLATES = 2_000
_WARM_SHARE = 0.1


def ingest_batches(ground: Ground, events: int) -> Row:
    """Bodies of 500 entries of 2 KB over sixteen connections, as many as a gateway of four nodes has workers."""
    requests = max(_BODIES, events // BODY_EVENTS)
    warm = max(BODY_CONNECTIONS, int(requests * _WARM_SHARE))
    bodies = make_bodies(_BODIES, BODY_EVENTS, _now_ms())
    with ground.installation("ingest-batches") as installation:
        pid = installation.start("ingest", ground.cores.measured)
        token, port = installation.token, installation.stack.ports["ingest"]
        warming = send_all(port, bodies.requests(token, warm), connections=BODY_CONNECTIONS)
        before = cpu_seconds(pid)
        load = send_all(port, bodies.requests(token, requests), connections=BODY_CONNECTIONS)
        spent = cpu_seconds(pid) - before
        _profile(installation)
        expected = bodies.count_accounts(warm) + bodies.count_accounts(requests)
        contents = _check(installation, [warming, load], dict(expected))
    with pinned_to(ground.cores.measured):
        bare_us = _decode_bare(bodies, installation)
    return Row(
        name="ingest, Kong bodies of 500",
        unit="event",
        count=requests * BODY_EVENTS,
        seconds=load.seconds,
        cpu_us=spent / (requests * BODY_EVENTS) * 1e6,
        bound=Bound(Measure.CPU, floor=8.0, target=5.0),
        bare="typed decode of the bytes",
        bare_us=bare_us,
        notes={
            "entry_bytes": len(bodies.bodies[0]) // BODY_EVENTS,
            "events_a_record": round(contents.promised / contents.records, 1),
            "bytes_an_event": round(contents.bytes / contents.promised, 1),
            "latency_p50_ms": round(load.latency(0.5) * 1000, 1),
            "latency_p99_ms": round(load.latency(0.99) * 1000, 1),
        },
    )


def ingest_singles(ground: Ground, requests: int) -> Row:
    """One entry a request over 256 connections."""
    warm = int(requests * _WARM_SHARE)
    calls = make_calls(_TEMPLATES, _now_ms())
    with ground.installation("ingest-singles") as installation:
        pid = installation.start("ingest", ground.cores.measured)
        port = installation.stack.ports["ingest"]
        singles = Singles(calls, installation.token)
        warming = send_all(port, singles.requests(warm), connections=CONNECTIONS)
        before = cpu_seconds(pid)
        load = send_all(port, singles.requests(requests, warm), connections=CONNECTIONS)
        spent = cpu_seconds(pid) - before
        _profile(installation)
        contents = _check(installation, [warming, load], dict(singles.count_accounts(warm + requests)))
    bare_load, bare_us = _serve_bare(ground.cores, singles, requests)
    return Row(
        name="ingest, one event a request",
        unit="request",
        count=requests,
        seconds=load.seconds,
        cpu_us=spent / requests * 1e6,
        bound=Bound(Measure.CPU, floor=100.0, target=65.0),
        bare="empty ASGI route",
        bare_us=bare_us,
        notes={
            "connections": CONNECTIONS,
            "events_a_record": round(contents.promised / contents.records, 2),
            "latency_p50_ms": round(load.latency(0.5) * 1000, 1),
            "latency_p99_ms": round(load.latency(0.99) * 1000, 1),
            "bare_rate_per_second": round(bare_load.answered / bare_load.seconds),
        },
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _profile(installation: Installation) -> None:
    """Have a profiled service write its report while it is still whole."""
    if installation.ground.profile_directory is not None:
        installation.stack.child("ingest").send(signal.SIGUSR1)
        time.sleep(0.5)


def _check(installation: Installation, loads: list[Load], accounts: dict[str, int]) -> LogContents:
    """Compare answers, metrics and the topic with what was sent."""
    events = sum(accounts.values())
    statuses = sum((load.statuses for load in loads), start=Counter[int]())
    assert_counts("answers other than 200", {code: n for code, n in statuses.items() if code != 200}, {})
    acknowledged = installation.samples("ingest").total(
        "tollgate_ingest_events_total", outcome="acknowledged"
    )
    assert_counts("events acknowledged", int(acknowledged), events)
    contents = read_log(installation.kafka)
    assert_counts("rows the headers promise", contents.promised, events)
    assert_counts("events an account in the topic", dict(contents.accounts), accounts)
    return contents


def _decode_bare(bodies: Bodies, installation: Installation) -> float:
    """CPU microseconds an event of decoding the bodies into the gateway's own structs, and nothing else."""
    decoder = KongDecoder(
        id_seed=installation.id_seed,
        keys=KeyHasher(b"benchmark key seed"),
        capture=parse_capture(CAPTURE),
        api_key_headers=("apikey",),
        api_key_queries=("apikey",),
    )
    many = decoder._shape.reader.many
    for body in bodies.bodies[:4]:
        many.decode(body)
    before = time.process_time()
    rounds = 5
    for _ in range(rounds):
        for body in bodies.bodies:
            many.decode(body)
    return (time.process_time() - before) / (rounds * len(bodies.bodies) * BODY_EVENTS) * 1e6


@contextmanager
def _empty_route(cores: frozenset[int]) -> Iterator[tuple[int, int]]:
    """(pid, port) of an empty route."""
    with pinned_to(cores):
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.empty_route"], stdout=subprocess.PIPE, text=True
        )
    try:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
    finally:
        process.terminate()
        process.communicate(timeout=30)


def _serve_bare(cores: Cores, singles: Singles, requests: int) -> tuple[Load, float]:
    with _empty_route(cores.measured) as (pid, port):
        send_all(port, singles.requests(int(requests * _WARM_SHARE)), connections=CONNECTIONS)
        before = cpu_seconds(pid)
        load = send_all(port, singles.requests(requests), connections=CONNECTIONS)
        spent = cpu_seconds(pid) - before
    assert_counts("answers of the empty route", dict(load.statuses), {200: requests})
    return load, spent / requests * 1e6
