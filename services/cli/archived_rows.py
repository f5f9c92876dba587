"""Archived rows as records the fold takes, whose events stay in the columns they are read in.

Owns a decoder that finds a record's events in a table. It refuses to know files and meters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from tollgate.contracts.archive_rows import KEPT_SCHEMA, RECORD_SCHEMA, Place, find_records, restore_kept
from tollgate.contracts.records import Layout, misplacement
from tollgate.contracts.records import decode_records as decode_logged
from tollgate.metering.decode import Broken, Decoded, decode_records, decode_whole
from tollgate.metering.event import PROPERTY_PREFIX
from tollgate.metering.records import EventsRecord, Record

BESIDE_COLUMNS = frozenset(
    {*RECORD_SCHEMA.names, *KEPT_SCHEMA.names, "id_hash", "id_weak", "time_ms", "account"}
)
"""What is read of a file whatever the meters look at."""

_HEADERS = ("rows", "source", "instance", "ingest_ms", "accept_late", "captured")


class ArchivedRows:
    """One table of rows as records, and their decoder: `fold(rows.records, …, rows)`."""

    def __init__(self, table: pa.Table, layout: Layout = lambda _partition, _offset: 0) -> None:
        """`table`: rows of one partition with `BESIDE_COLUMNS` and whatever columns meters ask for. `layout`: the
        partition count in force by place."""
        self._table = table
        self._places: dict[int, tuple[Place, str]] = {}
        places = find_records(table)
        starts = pa.array([place.start for place in places], pa.int64())
        told = table.select(_HEADERS).take(starts).to_pylist()
        self.records: list[Record] = []
        for place, headers in zip(places, told, strict=True):
            if place.kept:
                rows = table.slice(place.start, place.rows)
                self.records += decode_logged([restore_kept(rows, place)], layout)
                continue
            record = EventsRecord(
                partition=place.partition,
                offset=place.offset,
                rows=headers["rows"],
                instance=headers["instance"],
                source=headers["source"],
                ingest_ms=headers["ingest_ms"],
                accept_late=headers["accept_late"],
                value=b"",
                misplaced=misplacement(headers["instance"], layout(place.partition, place.offset)),
            )
            self._places[place.offset] = (place, headers["captured"])
            self.records.append(record)

    def decode(
        self, records: Sequence[EventsRecord], columns: Iterable[str]
    ) -> tuple[list[Decoded], list[Broken]]:
        """`Decoder.decode`: from the table, or from the value of a record that was kept as bytes."""
        wanted = tuple(sorted(columns))
        groups: dict[str, list[int]] = {}
        valued: list[int] = []
        for index, record in enumerate(records):
            found = self._places.get(record.offset)
            if found is None:
                valued.append(index)
            else:
                groups.setdefault(found[1], []).append(index)
        decoded, broken = decode_records([records[index] for index in valued], wanted)
        decoded = [Decoded([valued[i] for i in part.indexes], part.absent, part.table) for part in decoded]
        broken = [Broken(valued[item.index], item.detail) for item in broken]
        for captured, indexes in groups.items():
            carried = {PROPERTY_PREFIX + name for name in json.loads(captured)}
            absent = frozenset(
                name for name in wanted if name.startswith(PROPERTY_PREFIX) and name not in carried
            )
            present = [name for name in wanted if name not in absent]
            table = self._rows_of([self._places[records[index].offset][0] for index in indexes])
            decoded.append(Decoded(indexes, absent, table.select(present)))
        return decoded, broken

    def decode_whole(self, record: EventsRecord) -> pa.Table:
        """`Decoder.decode_whole`, with the columns that were read."""
        found = self._places.get(record.offset)
        return decode_whole(record) if found is None else self._rows_of([found[0]])

    def _rows_of(self, places: Sequence[Place]) -> pa.Table:
        first, last = places[0], places[-1]
        end = last.start + last.rows
        if sum(place.rows for place in places) == end - first.start:
            return self._table.slice(first.start, end - first.start)
        rows = np.concatenate([np.arange(place.start, place.start + place.rows) for place in places])
        return self._table.take(pa.array(rows))
