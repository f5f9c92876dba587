"""What a replay reads: a stretch of each partition, from an archive and from the log behind it.

Owns asking the sources what they hold, and handing their records to the fold in flushes. It refuses to know meters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import pyarrow as pa

from services.cli.archived import Archive
from services.cli.archived_rows import BESIDE_COLUMNS, ArchivedRows
from services.cli.generations import Generations
from services.cli.log import StoredRecord, find_offsets, reaching_broker, read_records, read_topic
from services.cli.shadow import Shadow
from services.cli.stretch import (
    Held,
    Stretch,
    ids_from_ms,
    join_sources,
    reading_from_ms,
    reading_until_ms,
    whole_from_ms,
)
from tollgate.contracts.archive_rows import taken_in_ms
from tollgate.contracts.records import Layout, decode_records
from tollgate.contracts.topics import GATEWAY_EVENTS
from tollgate.metering.outcome import TimeRules
from tollgate.runtime.kafka import topic_bounds
from tollgate.runtime.settings import KafkaSettings

FLUSH_ROWS = 200_000
"""Archived rows folded at a time: past it a flush costs by the row alone."""
FLUSH_BYTES = 32 * 1024 * 1024
"""Bytes of the log folded at a time."""


class Source:
    """An archive, the log, or both: the archive as far as it goes."""

    def __init__(self, archive: Archive | None, kafka: KafkaSettings | None) -> None:
        assert archive is not None or kafka is not None, "there is something to read"
        self._archive = archive
        self._kafka = kafka

    async def plan(
        self,
        rules: TimeRules,
        *,
        since_ms: int | None,
        until_ms: int | None,
        counted: Mapping[int, int] | None,
    ) -> dict[int, Stretch]:
        """What to read of each partition for windows within `[since_ms, until_ms)`.

        `counted`: by partition, what the ledger has counted up to, which is then where reading ends, if that far is
        held. Raises NothingHeld, NotAnArchive, NoSuchTopic, BrokerUnreachable.
        """
        log = await self._log_bounds()
        archived = {} if self._archive is None else self._archive.bounds
        from_ms = None if since_ms is None else reading_from_ms(since_ms, rules)
        to_ms = None if until_ms is None or counted is not None else reading_until_ms(until_ms, rules)
        found: dict[int, Stretch] = {}
        for partition in sorted(archived.keys() | log.keys()):
            begin, middle, end = join_sources(
                partition, _held(archived.get(partition)), _held(log.get(partition))
            )
            stop = end if counted is None else min(end, counted.get(partition, 0))
            found[partition] = Stretch(begin, min(middle, max(begin, stop)), max(begin, stop))
        begins = await self._begins_ms(
            {p: stretch.start for p, stretch in found.items() if stretch.start > 0}
        )
        starts = await self._offsets_at(found, from_ms)
        stops = await self._offsets_at(found, to_ms)
        for partition, stretch in found.items():
            start = min(max(stretch.start, starts.get(partition, stretch.start)), stretch.stop)
            stop = max(start, min(stretch.stop, stops.get(partition, stretch.stop)))
            begin_ms = begins.get(partition)
            # Where reading begins later than the source does, it begins early enough.
            cut = begin_ms is not None and (from_ms is None or begin_ms >= from_ms)
            found[partition] = replace(
                stretch,
                start=start,
                middle=min(max(stretch.middle, start), stop),
                stop=stop,
                whole_from_ms=whole_from_ms(begin_ms, rules) if cut and begin_ms is not None else None,
                ids_from_ms=ids_from_ms(begin_ms, rules) if cut and begin_ms is not None else None,
            )
        return found

    async def feed(
        self,
        stretches: Mapping[int, Stretch],
        shadow: Shadow,
        on_progress: Callable[[int], None],
        generations: Generations,
    ) -> None:
        """Fold every record of the stretches, a partition that another one gave its ids to after that one.

        `on_progress` is told how many records were folded. Raises NotAnArchive, LogStalled, InvariantViolated (a gap).
        """
        begin = {partition: stretch.start for partition, stretch in stretches.items()}
        for step in generations.steps({partition: stretch.stop for partition, stretch in stretches.items()}):
            part = {p: _between(stretches[p], begin[p], stop) for p, stop in step.stop.items()}
            self._feed_archive(part, shadow, on_progress, generations.at)
            await self._feed_log(part, shadow, on_progress, generations.at)
            shadow.inherit({child: parent for child, parent in step.parents.items() if child in stretches})
            begin |= {partition: stretch.stop for partition, stretch in part.items()}

    def _feed_archive(
        self,
        stretches: Mapping[int, Stretch],
        shadow: Shadow,
        on_progress: Callable[[int], None],
        layout: Layout,
    ) -> None:
        columns = shadow.columns | BESIDE_COLUMNS
        for partition, stretch in stretches.items():
            if self._archive is None or stretch.middle <= stretch.start:
                continue
            waiting: list[pa.Table] = []

            def flush(tables: list[pa.Table]) -> None:
                rows = ArchivedRows(_joined(tables, columns), layout)
                shadow.fold(rows.records, rows)
                on_progress(len(rows.records))

            for table in self._archive.row_groups(partition, stretch.start, stretch.middle, columns):
                if not len(table):
                    continue
                waiting.append(table)
                if sum(map(len, waiting)) >= FLUSH_ROWS:
                    flush(waiting)
                    waiting = []
            if waiting:
                flush(waiting)

    async def _feed_log(
        self,
        stretches: Mapping[int, Stretch],
        shadow: Shadow,
        on_progress: Callable[[int], None],
        layout: Layout,
    ) -> None:
        wanted = {p: stretch for p, stretch in stretches.items() if stretch.stop > stretch.middle}
        if self._kafka is None or not wanted:
            return
        waiting: dict[int, list[StoredRecord]] = {}
        size_bytes = 0

        def flush() -> None:
            records = decode_records([record for part in waiting.values() for record in part], layout)
            shadow.fold(records)
            on_progress(len(records))
            waiting.clear()

        records = read_topic(
            self._kafka,
            GATEWAY_EVENTS.name,
            start={p: stretch.middle for p, stretch in wanted.items()},
            stop={p: stretch.stop for p, stretch in wanted.items()},
        )
        async with contextlib.aclosing(records):
            async for record in records:
                waiting.setdefault(record.partition, []).append(record)
                size_bytes += len(record.value)
                if size_bytes >= FLUSH_BYTES:
                    flush()
                    size_bytes = 0
        if waiting:
            flush()

    # -------------------------------------------------------------------------------- what is held

    async def _log_bounds(self) -> Mapping[int, tuple[int, int]]:
        if self._kafka is None:
            return {}
        with reaching_broker(self._kafka):
            return await topic_bounds(self._kafka, GATEWAY_EVENTS.name)

    async def _begins_ms(self, offsets: Mapping[int, int]) -> dict[int, int]:
        """When the records at these offsets, the first that are held, were taken in."""
        found: dict[int, int] = {}
        missing: dict[int, int] = {}
        for partition, offset in offsets.items():
            names = [] if self._archive is None else self._archive.files.get(partition, [])
            if self._archive is not None and names:
                found[partition] = self._archive.facts(names[0]).taken_ms_min
            else:
                missing[partition] = offset
        if missing and self._kafka is not None:
            records = await read_records(self._kafka, GATEWAY_EVENTS.name, missing)
            found |= {partition: taken_in_ms(record) for partition, record in records.items()}
        return found

    async def _offsets_at(self, stretches: Mapping[int, Stretch], time_ms: int | None) -> dict[int, int]:
        """An offset of each partition before which nothing was taken in at or after `time_ms`."""
        if time_ms is None:
            return {}
        found: dict[int, int] = {}
        missing: list[int] = []
        for partition, stretch in stretches.items():
            first = None
            if self._archive is not None and stretch.middle > stretch.start:
                first = self._archive.first_from(partition, time_ms)
            if first is None:
                missing.append(partition)
            else:
                found[partition] = first
        if missing and self._kafka is not None:
            in_log = await find_offsets(self._kafka, GATEWAY_EVENTS.name, time_ms)
            found |= {p: max(stretches[p].middle, in_log[p]) for p in missing if p in in_log}
        for partition in missing:
            # Nothing that late is held.
            found.setdefault(partition, stretches[partition].stop)
        return found


def _between(stretch: Stretch, start: int, stop: int) -> Stretch:
    """What of a stretch lies in `[start, stop)`; nothing where none does."""
    start = min(max(stretch.start, start), stretch.stop)
    stop = max(start, min(stretch.stop, stop))
    return replace(stretch, start=start, middle=min(max(stretch.middle, start), stop), stop=stop)


def _held(bounds: tuple[int, int] | None) -> Held | None:
    return None if bounds is None else Held(*bounds)


def _joined(tables: list[pa.Table], columns: Collection[str]) -> pa.Table:
    """Row groups as one table. A file without a column has no record that carried it: null says that too, beside
    `captured`.
    """
    if len(tables) == 1:
        return tables[0].combine_chunks()
    names = {name for table in tables for name in table.schema.names}
    return (
        pa.concat_tables(tables, promote_options="default")
        .combine_chunks()
        .select([name for name in sorted(names) if name in columns])
    )
