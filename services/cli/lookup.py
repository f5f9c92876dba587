"""Finding events again: by id, account and time, in an archive or in the log.

Owns which records are opened for that. It refuses to know what an event is worth.

An archive is asked for four columns first, and only records that hold a match are made again.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from services.cli.archived import Archive
from services.cli.events import describe_record
from services.cli.log import StoredRecord, read_topic
from tollgate.contracts.archive_rows import Place, find_records
from tollgate.contracts.events import assign_partition
from tollgate.contracts.topics import GATEWAY_EVENTS
from tollgate.runtime.settings import KafkaSettings

_EVERYTHING = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an event must have; None leaves it open. Times are the event's own, `[since_ms, until_ms)`."""

    event_id: str | None = None
    account: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None

    def fits(self, event: Mapping[str, Any]) -> bool:
        """Whether one event, as `events tail` prints it, is wanted."""
        time_ms = event.get("time_ms")
        return (
            "id" in event
            and (self.event_id is None or event["id"] == self.event_id)
            and (self.account is None or event.get("account") == self.account)
            and (self.since_ms is None or (time_ms is not None and time_ms >= self.since_ms))
            and (self.until_ms is None or (time_ms is not None and time_ms < self.until_ms))
        )


async def find_events(
    wanted: Wanted, archive: Archive | None, kafka: KafkaSettings
) -> AsyncGenerator[dict[str, Any], None]:
    """Events that fit, each copy of them, as `events tail` prints them: of the archive, or of the log without one.

    By partition in the log's order. Raises NotAnArchive, NoSuchTopic, BrokerUnreachable.
    """
    if archive is not None:
        for record in _candidates(archive, wanted):
            for event in describe_record(record, with_ticks=False):
                if wanted.fits(event):
                    yield event
        return
    records = read_topic(kafka, GATEWAY_EVENTS.name)
    async with contextlib.aclosing(records):
        async for record in records:
            for event in describe_record(record, with_ticks=False):
                if wanted.fits(event):
                    yield event


def _candidates(archive: Archive, wanted: Wanted) -> Iterator[StoredRecord]:
    """Every record that may hold a wanted event: those with a fitting row, and those kept as bytes."""
    partitions = sorted(archive.files)
    if wanted.account is not None:
        counts = (*archive.pins.partitions_before, archive.pins.partitions)
        partitions = sorted({assign_partition(wanted.account, count) for count in counts})
    columns = {"partition", "offset", "row", "rows", "id", "account", "time_ms"}
    for partition in partitions:
        for rows in archive.row_groups(partition, 0, _EVERYTHING, columns):
            for place in _fitting(rows, wanted):
                yield from archive.records(partition, place.offset, place.offset + 1)


def _fitting(rows: pa.Table, wanted: Wanted) -> list[Place]:
    fits = np.ones(len(rows), np.bool_)
    for name, value, compare in (
        ("id", wanted.event_id, pc.equal),
        ("account", wanted.account, pc.equal),
        ("time_ms", wanted.since_ms, pc.greater_equal),
        ("time_ms", wanted.until_ms, pc.less),
    ):
        if value is not None:
            fits &= pc.fill_null(compare(rows.column(name), value), False).to_numpy()
    fits |= rows.column("row").is_null().to_numpy()
    return [place for place in find_records(rows) if fits[place.start : place.start + place.rows].any()]
