"""What has been read and not yet sealed, and its turning into columns.

Owns the entries of all requests that wait for the same group, by source and format, and which request each row came
from. Pure. It refuses to know partitions, records and who acknowledges them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import structlog

from services.ingest.decoded import Columns, Fault, Rejected, drop_faults, find_nul, holds_nul
from services.ingest.decoder import Decoder
from services.ingest.entries import Entries
from services.ingest.submission import Submission
from tollgate.metering.errors import DeadReason

_ENTRIES_ENOUGH = 100
"""A body of so many entries gains nothing by company, and loses by waiting: what was just read is still in the
processor's cache."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Converted:
    """The rows of one source, and of whom each is."""

    source: str
    batch: pa.RecordBatch
    accounts: Sequence[str]
    """The batch's, as they are needed to route it."""
    owners: Sequence[Submission]
    owner_of_row: np.ndarray
    """Index into `owners`, ascending."""


@dataclass(frozen=True, slots=True)
class Refused:
    """An entry that turned out not to be countable, and whose it is."""

    source: str
    format: str
    owner: Submission
    rejected: Rejected


@dataclass(slots=True)
class _Group:
    """Readings that become columns together: all their decoder is told is equal."""

    source: str
    decoder: Decoder
    trust_ids: bool
    readings: list[Entries[Any]]
    owners: list[Submission]


class Pending:
    """Collects readings until they are taken."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._groups: dict[tuple[str, str, bool], _Group] = {}
        self._converted: list[Converted] = []
        self._refused: list[Refused] = []
        self.rows = 0
        """Entries added and not taken."""
        self.requests = 0
        """Bodies they came in."""

    def add(
        self,
        source: str,
        decoder: Decoder,
        trust_ids: bool,
        reading: Entries[Any],
        owner: Submission,
        ingest_ms: int,
    ) -> None:
        """Take the readable entries of one body; `owner` has one outstanding part for them."""
        self.rows += len(reading.read)
        self.requests += 1
        if len(reading.read) >= _ENTRIES_ENOUGH:
            self._convert(_Group(source, decoder, trust_ids, [reading], [owner]), ingest_ms)
            return
        key = (source, decoder.format, trust_ids)
        group = self._groups.get(key)
        if group is None:
            self._groups[key] = _Group(source, decoder, trust_ids, [reading], [owner])
        else:
            group.readings.append(reading)
            group.owners.append(owner)

    def take(self, ingest_ms: int) -> tuple[list[Converted], list[Refused]]:
        """Everything pending as columns, and the entries that cannot be. Nothing is pending afterwards."""
        for group in self._groups.values():
            self._convert(group, ingest_ms)
        taken = self._converted, self._refused
        self._groups, self._converted, self._refused = {}, [], []
        self.rows = self.requests = 0
        return taken

    def _convert(self, group: _Group, ingest_ms: int) -> None:
        """The group at once; after an error nobody foresaw, without the entries that cause it."""
        try:
            converted, refused = _to_rows(group, self._schema, ingest_ms)
        except Exception:
            _log.exception("entries.not_converted", source=group.source, format=group.decoder.format)
            group, unforeseen = _set_aside(group, self._schema, ingest_ms)
            self._refused += unforeseen
            converted, refused = _to_rows(group, self._schema, ingest_ms)
        self._converted.append(converted)
        self._refused += refused


def _set_aside(group: _Group, schema: pa.Schema, ingest_ms: int) -> tuple[_Group, list[Refused]]:
    """The entries that become columns when each is alone, and refusals of the others.

    One entry must neither fail its neighbours nor be sent again for ever.
    """
    refused: list[Refused] = []
    readings: list[Entries[Any]] = []
    for reading, owner in zip(group.readings, group.owners, strict=True):
        kept: list[tuple[Any, bytes]] = []
        for row, entry in enumerate(reading.read):
            payload = reading.payload(row)
            nobody = Submission(lambda _: None, 1)
            alone = replace(group, readings=[Entries(payload, [entry], [])], owners=[nobody])
            try:
                _to_rows(alone, schema, ingest_ms)
            except Exception as error:
                unforeseen = Rejected(DeadReason.BAD_TYPE, f"not understood: {error!r:.200}", payload)
                refused.append(Refused(group.source, group.decoder.format, owner, unforeseen))
            else:
                kept.append((entry, payload))
        readings.append(
            Entries(reading.body, [entry for entry, _ in kept], [], [payload for _, payload in kept])
        )
    return replace(group, readings=readings), refused


def _to_rows(group: _Group, schema: pa.Schema, ingest_ms: int) -> tuple[Converted, list[Refused]]:
    sizes = [len(reading.read) for reading in group.readings]
    entries = (
        group.readings[0].read
        if len(sizes) == 1
        else [entry for reading in group.readings for entry in reading.read]
    )
    owner_of_row = np.repeat(np.arange(len(sizes)), sizes)
    columns, faults = group.decoder.to_columns(
        entries, ingest_ms=ingest_ms, trust_ids=group.trust_ids, replayed=False
    )
    batch = None if faults else pa.RecordBatch.from_pydict(columns, schema=schema)
    refused: list[Refused] = []
    if batch is None or holds_nul(batch):
        faults += find_nul(columns, len(entries))
        columns, owner_of_row, refused = _drop(group, columns, faults, owner_of_row, sizes)
        batch = pa.RecordBatch.from_pydict(columns, schema=schema)
    _count(group.owners, owner_of_row, columns["time_ms"])
    return Converted(group.source, batch, columns["account"], group.owners, owner_of_row), refused


def _drop(
    group: _Group, columns: Columns, faults: list[Fault], owner_of_row: np.ndarray, sizes: list[int]
) -> tuple[Columns, np.ndarray, list[Refused]]:
    """Take the rows with a fault out, each into a refusal of its own request."""
    starts = np.cumsum([0, *sizes])

    def payload_of(row: int) -> bytes:
        owner = int(owner_of_row[row])
        return group.readings[owner].payload(row - int(starts[owner]))

    _, kept, rejected = drop_faults(columns, len(owner_of_row), faults, payload_of)
    rows = sorted({fault.row for fault in faults})
    refused = [
        Refused(group.source, group.decoder.format, group.owners[int(owner_of_row[row])], entry)
        for row, entry in zip(rows, rejected, strict=True)
    ]
    return kept, np.delete(owner_of_row, rows), refused


def _count(owners: Sequence[Submission], owner_of_row: np.ndarray, times: Sequence[int]) -> None:
    """Tell each request how many of its entries are events, and when the oldest of them happened."""
    if not len(owner_of_row):
        return
    present, starts = np.unique(owner_of_row, return_index=True)
    oldest = np.minimum.reduceat(np.array(times), starts)
    counts = np.diff([*starts, len(owner_of_row)])
    for index, count, oldest_ms in zip(present.tolist(), counts.tolist(), oldest.tolist(), strict=True):
        owners[index].accept(count, oldest_ms)
