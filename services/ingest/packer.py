"""Packing: the events of many requests into few records, each of one partition and one source.

Owns what is pending, how it is routed by account and cut into records, and who waits for which record. Pure: it has
no clock, no tasks, no broker; `group_commit` turns its handle. It refuses to know any gateway's format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from services.ingest.decoded import Columns
from tollgate.contracts.events import EventHeaders, assign_partition, encode_batch, event_schema

RECORD_BYTES_MAX = 4 * 1024 * 1024
"""Half of what topics allow a record, so that nothing added in transport can make one too large."""


class Submission:
    """What one request waits for: the acknowledgement of everything it put into the log.

    `outstanding` counts the parts not yet acknowledged; `finish` is called once, with whether all of them were.
    """

    __slots__ = ("_finish", "outstanding")

    def __init__(self, finish: Callable[[bool], None], parts: int) -> None:
        self._finish: Callable[[bool], None] | None = finish
        self.outstanding = parts

    @property
    def finished(self) -> bool:
        return self._finish is None

    def settle(self, acknowledged: bool) -> None:
        """One part was acknowledged, or will not be in time: then the request has failed whatever else happens."""
        self.outstanding -= 1
        if self._finish is not None and (not acknowledged or self.outstanding <= 0):
            finish, self._finish = self._finish, None
            finish(acknowledged)


@dataclass(slots=True)
class SealedRecord:
    """One record, ready for the log, and the submissions that wait for it."""

    partition: int
    value: bytes
    headers: EventHeaders
    submissions: Sequence[Submission]

    def settle(self, acknowledged: bool) -> None:
        """Tell everyone who waits for this record."""
        for submission in self.submissions:
            submission.settle(acknowledged)


class _Pending:
    """What one source has sent since the last sealing."""

    __slots__ = ("columns", "owners", "sizes")

    def __init__(self, columns: Columns, owner: Submission, rows: int) -> None:
        self.columns = columns
        self.owners = [owner]
        self.sizes = [rows]

    def extend(self, columns: Columns, owner: Submission, rows: int) -> None:
        if len(self.owners) == 1:
            self.columns = {name: list(column) for name, column in self.columns.items()}
        for name, column in self.columns.items():
            column.extend(columns[name])
        self.owners.append(owner)
        self.sizes.append(rows)


class Packer:
    """Collects columns until they are sealed into records."""

    def __init__(
        self,
        *,
        partitions: int,
        properties: Sequence[str],
        instance: str,
        capture: str,
        record_bytes_max: int = RECORD_BYTES_MAX,
    ) -> None:
        """`properties`: bare names of what is captured. `capture`: the digest of those settings."""
        self._partitions = partitions
        self._schema = event_schema(properties)
        self._instance = instance
        self._capture = capture
        self._record_bytes_max = record_bytes_max
        self._pending: dict[str, _Pending] = {}
        self.rows = 0
        """Rows added and not sealed."""

    def add(self, source: str, columns: Columns, rows: int, submission: Submission) -> None:
        """Take `rows` events; `submission` has one outstanding part for them, whatever they are cut into."""
        pending = self._pending.get(source)
        if pending is None:
            self._pending[source] = _Pending(columns, submission, rows)
        else:
            pending.extend(columns, submission, rows)
        self.rows += rows

    def seal(self, ingest_ms: int) -> list[SealedRecord]:
        """Everything pending as records stamped `ingest_ms`. Nothing is pending afterwards."""
        pending, self._pending, self.rows = self._pending, {}, 0
        records: list[SealedRecord] = []
        for source, of_source in pending.items():
            batch = pa.RecordBatch.from_pydict(of_source.columns, schema=self._schema)
            owner_of_row = np.repeat(np.arange(len(of_source.owners)), of_source.sizes)
            records += self._route(
                batch, of_source.columns["account"], owner_of_row, of_source.owners, source, ingest_ms
            )
        return records

    def seal_batch(
        self, source: str, batch: pa.RecordBatch, submission: Submission, ingest_ms: int, accept_late: bool
    ) -> list[SealedRecord]:
        """Records of a batch that exists already (a replay); its columns stay as they are."""
        accounts = batch.column("account").to_pylist()
        owner_of_row = np.zeros(batch.num_rows, dtype=np.int64)
        return self._route(batch, accounts, owner_of_row, [submission], source, ingest_ms, accept_late)

    def _route(
        self,
        batch: pa.RecordBatch,
        accounts: Sequence[str],
        owner_of_row: np.ndarray,
        owners: Sequence[Submission],
        source: str,
        ingest_ms: int,
        accept_late: bool = False,
    ) -> list[SealedRecord]:
        """Partition numbers, one stable sort by them, one slice a partition."""
        partitions = np.array([assign_partition(account, self._partitions) for account in accounts])
        if len(partitions) > 1:
            order = np.argsort(partitions, kind="stable")
            partitions = partitions[order]
            owner_of_row = owner_of_row[order]
            batch = batch.take(pa.array(order))
        cuts = [0, *(np.flatnonzero(np.diff(partitions)) + 1).tolist(), len(partitions)]
        records: list[SealedRecord] = []
        for start, end in pairwise(cuts):
            records += self._cut(
                int(partitions[start]),
                batch.slice(start, end - start),
                owner_of_row[start:end],
                owners,
                source,
                ingest_ms,
                accept_late,
            )
        # Each submission was waiting for one part, its rows; now it waits for the records they went into.
        for owner in owners:
            owner.outstanding -= 1
        return records

    def _cut(
        self,
        partition: int,
        batch: pa.RecordBatch,
        owner_of_row: np.ndarray,
        owners: Sequence[Submission],
        source: str,
        ingest_ms: int,
        accept_late: bool,
    ) -> list[SealedRecord]:
        """One record, or halves of it until each is small enough."""
        rows = batch.num_rows
        value = encode_batch(batch)
        if len(value) > self._record_bytes_max and rows > 1:
            middle = rows // 2
            return [
                record
                for part, rows_of in (
                    (batch.slice(0, middle), owner_of_row[:middle]),
                    (batch.slice(middle), owner_of_row[middle:]),
                )
                for record in self._cut(partition, part, rows_of, owners, source, ingest_ms, accept_late)
            ]
        waiting = [owners[index] for index in dict.fromkeys(owner_of_row.tolist())]
        for owner in waiting:
            owner.outstanding += 1
        headers = EventHeaders(
            source=source,
            instance=self._instance,
            rows=rows,
            ingest_ms=ingest_ms,
            capture=self._capture,
            accept_late=accept_late,
        )
        return [SealedRecord(partition, value, headers, waiting)]
