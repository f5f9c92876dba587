"""A rig for tests that run the archive as a process on a real broker, and know the log.

Owns producing, archive processes and reading what they left. What was produced is remembered, so that a test compares
the files with it and never with the code under test.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.fakes.logged import events_record, raw_record, tick_record
from tests.integration.meter_rig import ROOT, SESSION_SECONDS, MeterRig, Worker, ingest_producer
from tests.parts.kafka import BrokerSettings
from tests.unit.metering.rows import row
from tollgate.contracts.archive import HOUR_MS, FileName, order_files
from tollgate.contracts.archive_rows import RestoredRecord, restore_records
from tollgate.contracts.events import decode_batch
from tollgate.contracts.topics import GATEWAY_EVENTS


class Archiver(Worker):
    """One archive process."""

    def start(self, **changed: str) -> Archiver:
        self.started_at = self.child.log_path.stat().st_size if self.child.log_path.exists() else 0
        environment = {**self._environment, **{f"TOLLGATE_{name}": value for name, value in changed.items()}}
        self.child.start([sys.executable, "-m", "services.archive"], cwd=ROOT, env=environment)
        return self

    def ready(self) -> dict[str, Any]:
        """What /readyz says; empty when it does not listen."""
        _, body = self.ask("/readyz")
        found: dict[str, Any] = json.loads(body or "{}")
        return found


class ArchiveRig:
    """A log, a ledger, and archive processes."""

    def __init__(
        self, settings: BrokerSettings, ledger_url: str, directory: Path, partitions: int = 2
    ) -> None:
        self.meter = MeterRig(settings, ledger_url, directory, partitions)
        self.settings = settings
        self.ledger_url = ledger_url
        self.directory = directory
        self.root = directory / "archive"
        self.base_ms = (int(time.time() * 1000) // HOUR_MS - 5) * HOUR_MS
        """Five hours ago: the broker deletes what is stamped a week old, and the archive believes no future."""
        self.log: dict[int, list[RestoredRecord]] = defaultdict(list)
        self._archivers: list[Archiver] = []

    async def prepare(self) -> ArchiveRig:
        await self.meter.prepare()
        return self

    def environment(self) -> dict[str, str]:
        """Of the archive and of the command line."""
        return {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(self.directory),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TOLLGATE_KAFKA__BOOTSTRAP_SERVERS": self.settings.bootstrap_servers,
            "TOLLGATE_KAFKA__TOPIC_PREFIX": self.settings.topic_prefix,
            "TOLLGATE_LEDGER__URL": self.ledger_url,
            "TOLLGATE_HTTP__PORT": "0",
            "TOLLGATE_EPHEMERAL": str(self.settings.ephemeral).lower(),
            "TOLLGATE_ARCHIVE__DIRECTORY": str(self.root),
            "TOLLGATE_ARCHIVE__FILE_BYTES_MAX": "20000",
            "TOLLGATE_ARCHIVE__ROW_GROUP_BYTES": "30000",
            "TOLLGATE_ARCHIVE__FILE_SECONDS_MAX": "1",
            "TOLLGATE_ARCHIVE_FETCH__RECORDS_MAX": "40",
            "TOLLGATE_ARCHIVE_GROUP__SESSION_TIMEOUT_SECONDS": str(SESSION_SECONDS),
            "TOLLGATE_SHUTDOWN_SECONDS": "10",
        }

    def archiver(self, name: str = "archive") -> Archiver:
        """An archive process, not started."""
        made = Archiver(name, self.directory, self.environment())
        self._archivers.append(made)
        return made

    async def produce(self, records: Sequence[RestoredRecord]) -> None:
        """Write these to their partitions, in order; offsets are given by the log. All acknowledged on return."""
        async with ingest_producer(self.settings) as producer:
            sent = [
                await producer.send(
                    self.settings.topic_name(GATEWAY_EVENTS.name),
                    record.value,
                    key=record.key,
                    partition=record.partition,
                    headers=list(record.headers),
                    timestamp_ms=record.timestamp_ms,
                )
                for record in records
            ]
            done = await asyncio.gather(*sent)
        for record, metadata in zip(records, done, strict=True):
            self.log[record.partition].append(
                RestoredRecord(
                    record.partition,
                    metadata.offset,
                    record.timestamp_ms,
                    record.key,
                    record.value,
                    record.headers,
                )
            )

    def files(self, partition: int) -> list[FileName]:
        """The partition's files in order; AssertionError where they are no archive."""
        found = [
            name
            for path in self.root.rglob("*.parquet")
            if (name := FileName.parse(str(path))) is not None and name.partition == partition
        ]
        return order_files(found)

    def archived(self, partition: int) -> int:
        """The offset its files reach to."""
        files = self.files(partition)
        return files[-1].next_offset if files else 0

    def all_archived(self) -> bool:
        return all(self.archived(partition) == len(log) for partition, log in self.log.items())

    def assert_exact(self) -> None:
        """Each record of the log is in exactly one file, in order, with everything it said."""
        for partition, expected in self.log.items():
            found: list[RestoredRecord] = []
            for name in self.files(partition):
                held = list(restore_records(pq.read_table(self.root / name.path, partitioning=None)))
                assert [each.offset for each in held] == list(range(name.first_offset, name.next_offset))
                found += held
            assert [each.offset for each in found] == [each.offset for each in expected]
            for one, other in zip(expected, found, strict=True):
                assert (one.headers, one.timestamp_ms, one.key) == (
                    other.headers,
                    other.timestamp_ms,
                    other.key,
                )
                if one.value != other.value:
                    assert decode_batch(one.value).equals(decode_batch(other.value))

    async def until(self, holds: Any, timeout_seconds: float = 25.0, what: str = "") -> None:
        """Return once `holds()`; AssertionError with every archiver's last words when it does not in time."""
        try:
            await self.meter.until(holds, timeout_seconds, what)
        except AssertionError as error:
            words = "\n".join(each.child.tail() for each in self._archivers)
            raise AssertionError(f"{error}\n{words}") from None

    def close(self) -> None:
        for each in self._archivers:
            each.child.kill()
        self.meter.close()


def mixed_records(
    count: int, *, first: int, ingest_ms: int, partitions: int = 2, rows: int = 20
) -> list[RestoredRecord]:
    """Records of every kind, `count` of them: events with and without properties, ticks, amendments' bytes, noise."""
    found: list[RestoredRecord] = []
    for number in range(first, first + count):
        partition = number % partitions
        at_ms = ingest_ms + number
        if number % 17 == 3:
            found.append(tick_record(0, at_ms, number, partition=partition))
        elif number % 29 == 5:
            found.append(
                raw_record(0, b"\0noise", ("contract", b"events/1"), partition=partition, timestamp_ms=at_ms)
            )
        else:
            properties = ["model"] if number % 5 == 0 else []
            events = [
                row(
                    number * rows + place,
                    id=f"call-{number}-{place}",
                    account=f"user:{partition}-{place % 3}",
                    time_ms=at_ms - place,
                    status=200,
                    properties=dict.fromkeys(properties, None if place % 2 else "x"),
                )
                for place in range(rows)
            ]
            found.append(events_record(0, events, properties, partition=partition, ingest_ms=at_ms))
    return found


__all__ = ["ArchiveRig", "Archiver", "mixed_records"]
