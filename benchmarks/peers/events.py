"""The same events for everybody: the backlog of the meter's benchmark, as JSON, one event a record.

Owns their JSON, their topics, and the events that close the last window. Copies are left out: no peer removes
duplicates, and their totals are to be compared with one truth. It refuses to know who reads them.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import polars as pl

from benchmarks.backlog import ACCOUNTS, HOUR_MS, Backlog, BacklogRecord, Truth
from benchmarks.meter_rows import RECORD_EVENTS
from benchmarks.peers.meters import GRACE_MS, REPORT_EVERY
from tollgate.contracts.events import assign_partition
from tollgate.runtime.kafka import TopicSpec, create_topics
from tollgate.runtime.settings import KafkaSettings

_COLUMNS = (
    *("id", "time_ms", "account", "user", "company", "gateway", "service", "route", "method", "host", "path"),
    *("status", "latency_ms", "request_bytes", "response_bytes", "client_ip", "user_agent", "blocked_by"),
)
_PROPERTIES = ("tokens_in", "tokens_out", "model")


@dataclass(frozen=True, slots=True)
class Span:
    """How many events, and when: what makes a backlog the same one each time it is made."""

    events: int
    partitions: int
    now_ms: int

    @property
    def end_ms(self) -> int:
        """The end of the last window that is compared."""
        return self.now_ms // HOUR_MS * HOUR_MS

    def backlog(self, id_seed: int = 1) -> Backlog:
        """Its records, of 500 events each. The seed changes hashes alone."""
        records = max(self.partitions, self.events // RECORD_EVENTS)
        return Backlog(
            [RECORD_EVENTS] * records, partitions=self.partitions, id_seed=id_seed, now_ms=self.now_ms
        )


@dataclass(frozen=True, slots=True)
class EventLog:
    """A topic of JSON events."""

    span: Span
    topic: str
    events: int
    """Records in it, a multiple of `REPORT_EVERY`, those that close the last window among them."""
    event_bytes: float
    truth: Truth


def write_events(bootstrap: str, span: Span, topic: str, python: Path) -> EventLog:
    """Create the topic and write the span's events, through the peers' own client (`python` is theirs)."""
    settings = KafkaSettings(bootstrap_servers=bootstrap)
    asyncio.run(create_topics(settings, [TopicSpec(topic, span.partitions, configs={"retention.ms": "-1"})]))
    writer = subprocess.Popen(
        [python, Path(__file__).with_name("write_events.py"), bootstrap, topic], stdin=subprocess.PIPE
    )
    assert writer.stdin is not None
    backlog = span.backlog()
    events = size = 0
    for line in render_lines(backlog.records()):
        writer.stdin.write(line)
        events += 1
        size += len(line)
    for line in closing_lines(events, span):
        writer.stdin.write(line)
        events += 1
    writer.stdin.close()
    if writer.wait():
        sys.exit("the events could not be written")
    return EventLog(span, topic, events, size / events, backlog.truth())


def render_lines(records: Iterator[BacklogRecord]) -> Iterator[bytes]:
    """Each event once: partition, epoch milliseconds, account and JSON, separated by tabs."""
    previous: dict[int, pl.Series] = {}
    for record in records:
        frame = pl.from_arrow(record.batch)
        assert isinstance(frame, pl.DataFrame)
        # A copy is always one of an event of the record before it in its partition.
        if record.partition in previous:
            frame = frame.filter(~pl.col("id_hash").is_in(previous[record.partition].implode()))
        previous[record.partition] = frame["id_hash"]
        values = frame.select(
            *_COLUMNS,
            pl.struct(pl.col(f"properties.{name}").alias(name) for name in _PROPERTIES).alias("properties"),
        ).write_ndjson()
        for time_ms, account, value in zip(
            frame["time_ms"], frame["account"], values.splitlines(keepends=True), strict=True
        ):
            yield f"{record.partition}\t{time_ms}\t{account}\t{value}".encode()


def closing_lines(written: int, span: Span) -> Iterator[bytes]:
    """One event or more an account, in the hour after, until the log is a multiple of `REPORT_EVERY`.

    A peer that emits a window when a later event closes it would else keep the last ones to itself.
    """
    missing = -written % REPORT_EVERY
    for number in range(ACCOUNTS + (missing - ACCOUNTS) % REPORT_EVERY):
        account = f"company:acme-{number % ACCOUNTS:04d}"
        time_ms = span.end_ms + 2 * GRACE_MS
        event = {
            **dict.fromkeys(_COLUMNS),
            "id": f"closing-{number}",
            "time_ms": time_ms,
            "account": account,
            "status": 200,
            "latency_ms": 1,
            "request_bytes": 1,
            "response_bytes": 1,
            "properties": dict.fromkeys(_PROPERTIES),
        }
        partition = assign_partition(account, span.partitions)
        yield b"%d\t%d\t%s\t%s\n" % (partition, time_ms, account.encode(), msgspec.json.encode(event))
