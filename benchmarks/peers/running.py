"""A peer as a process: started on a core of its own, watched, ended or killed, and its totals compared.

Owns the runs of those that read JSON from a topic. It refuses to know what differs between them (`roster`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.installation import Ground
from benchmarks.peers.contender import Count, KilledCount
from benchmarks.peers.events import EventLog, Span, write_events
from benchmarks.peers.outcome import Miscount, compare_usage, usage_of_rows
from benchmarks.peers.totals import Rows, read_committed
from benchmarks.peers.watching import (
    Meanwhile,
    StoodStill,
    begin_watch,
    ended_cpu_seconds,
    parse_progress,
    watch_progress,
)
from benchmarks.processor import pinned_to
from benchmarks.row import CountsDiffer
from sandbox.child import Child
from tollgate.runtime.kafka import TopicSpec, create_topics
from tollgate.runtime.settings import KafkaSettings

_CHECKOUT = Path(__file__).resolve().parents[2]
_COUNT_SECONDS = 300.0
_END_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Run:
    """One life of a peer's state: its group, its topic, its directory."""

    bootstrap: str
    name: str
    """Consumer group, application id."""
    usage_topic: str
    directory: Path


@dataclass(slots=True)
class Logs:
    """The topics of events, each written once and read by every peer."""

    ground: Ground
    python: Path
    _logs: dict[Span, EventLog] = field(default_factory=dict)

    def of(self, span: Span) -> EventLog:
        """The topic of a span, written at the first call."""
        if span not in self._logs:
            topic = f"peers-{span.events}-{uuid.uuid4().hex[:8]}"
            self._logs[span] = write_events(self.ground.bootstrap_servers, span, topic, self.python)
        return self._logs[span]


@dataclass(frozen=True, slots=True)
class Peer:
    """A program that takes (bootstrap servers, events topic, usage topic, name, mode, directory) and counts."""

    name: str
    mode: str
    argument: str
    """The mode as the program knows it."""
    command: tuple[str | Path, ...]
    read_rows: Callable[[Run], Rows]
    logs: Logs
    meanwhile: Meanwhile | None
    environment: Mapping[str, str] = field(default_factory=dict)

    def count(self, span: Span) -> Count:
        """Start, count everything, SIGTERM. Raises CountsDiffer, StoodStill."""
        log = self.logs.of(span)
        run, child = self._prepare(log)
        before, elsewhere = ended_cpu_seconds(), begin_watch(self.meanwhile)
        self._start(child, run, log)
        sights = watch_progress(child.pid, child.output, log.events, timeout_seconds=_COUNT_SECONDS)
        child.stop(signal.SIGTERM, _END_SECONDS)
        cpu = ended_cpu_seconds() - before
        elsewhere_cpu = elsewhere()
        miscount = self._compare(run, log)
        if not miscount.exact:
            raise CountsDiffer(f"{self.name}, {self.mode}, without a kill: {miscount}\n{child.tail()}")
        return Count(log.events, sights, cpu, elsewhere_cpu, miscount)

    def count_killed(self, span: Span) -> KilledCount:
        """Start, SIGKILL at half, start again, SIGTERM once the group has committed everything. Raises StoodStill."""
        log = self.logs.of(span)
        run, child = self._prepare(log)
        self._start(child, run, log)
        watch_progress(child.pid, child.output, log.events // 2, timeout_seconds=_COUNT_SECONDS)
        child.kill()
        killed_at = parse_progress(child.output())
        self._start(child, run, log)
        deadline = time.monotonic() + _COUNT_SECONDS
        while (committed := read_committed(run.bootstrap, run.name, log.topic)) < log.events:
            if time.monotonic() > deadline:
                raise StoodStill(
                    f"{self.name}, {self.mode}: {committed} of {log.events} committed\n{child.tail()}"
                )
            time.sleep(0.5)
        child.stop(signal.SIGTERM, _END_SECONDS)
        return KilledCount(log.events, killed_at, self._compare(run, log))

    def _prepare(self, log: EventLog) -> tuple[Run, Child]:
        ground = self.logs.ground
        name = f"{str(self.command[-1]).rpartition('.')[2].lower()}-{uuid.uuid4().hex[:8]}"
        run = Run(ground.bootstrap_servers, name, f"{name}-usage", ground.directory / name)
        run.directory.mkdir(parents=True)
        settings = KafkaSettings(bootstrap_servers=run.bootstrap)
        asyncio.run(create_topics(settings, [TopicSpec(run.usage_topic, log.span.partitions)]))
        return run, Child(self.name, run.directory / "output.log")

    def _start(self, child: Child, run: Run, log: EventLog) -> None:
        arguments = (run.bootstrap, log.topic, run.usage_topic, run.name, self.argument, run.directory)
        environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PEER_PARTITIONS": str(log.span.partitions),
            **self.environment,
        }
        with pinned_to(self.logs.ground.cores.measured):
            child.start((*self.command, *map(str, arguments)), cwd=_CHECKOUT, env=environment)

    def _compare(self, run: Run, log: EventLog) -> Miscount:
        return compare_usage(usage_of_rows(self.read_rows(run), log.span.end_ms), log.truth.usage)
