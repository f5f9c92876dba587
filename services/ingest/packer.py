"""Packing: the events of many requests into few records, each of one partition and one source.

Owns how rows are routed by account and cut into records, and who waits for which record. Pure: it has no clock, no
tasks, no broker; `group_commit` turns its handle. It refuses to know any gateway's format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise

import numpy as np
import pyarrow as pa

from services.ingest.decoded import Columns
from services.ingest.pending import Converted
from services.ingest.submission import Submission
from tollgate.contracts.events import EventHeaders, assign_partition, encode_batch, event_schema

RECORD_BYTES_MAX = 4 * 1024 * 1024
"""Half of what topics allow a record, so that nothing added in transport can make one too large."""

_ACCOUNTS_REMEMBERED = 65_536
"""Whose partition need not be hashed again; accounts that call at all call often."""


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
        self._schema = event_schema(properties)
        self._instance = instance
        self._capture = capture
        self._record_bytes_max = record_bytes_max
        self._partition_of = lru_cache(_ACCOUNTS_REMEMBERED)(partial(assign_partition, partitions=partitions))

    def seal(self, groups: Sequence[Converted], ingest_ms: int) -> list[SealedRecord]:
        """Everything of `groups` as records stamped `ingest_ms`.

        Each owner had one part outstanding, its rows; now it waits for the records they went into.
        """
        by_source: dict[str, list[Converted]] = {}
        for group in groups:
            by_source.setdefault(group.source, []).append(group)
        records: list[SealedRecord] = []
        for source, parts in by_source.items():
            whole = _join(parts)
            if whole.accounts:
                records += self._route(
                    whole.batch, whole.accounts, whole.owner_of_row, whole.owners, source, ingest_ms
                )
            for owner in whole.owners:
                owner.settle(True)
        return records

    @property
    def schema(self) -> pa.Schema:
        """The columns of a record: the contract's, then the captured properties."""
        return self._schema

    def to_batch(self, columns: Columns) -> pa.RecordBatch:
        """Columns as a batch of the contract."""
        return pa.RecordBatch.from_pydict(columns, schema=self._schema)

    def seal_batch(
        self, source: str, batch: pa.RecordBatch, submission: Submission, ingest_ms: int, accept_late: bool
    ) -> list[SealedRecord]:
        """Records of a batch that exists already (a replay); its columns stay as they are."""
        accounts = batch.column("account").to_pylist()
        owner_of_row = np.zeros(batch.num_rows, dtype=np.int64)
        records = self._route(batch, accounts, owner_of_row, [submission], source, ingest_ms, accept_late)
        submission.settle(True)
        return records

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
        partitions = np.array([self._partition_of(account) for account in accounts])
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


def _join(parts: Sequence[Converted]) -> Converted:
    """What one source sent, in one batch."""
    if len(parts) == 1:
        return parts[0]
    owners_before = np.cumsum([0, *(len(part.owners) for part in parts[:-1])])
    return Converted(
        parts[0].source,
        pa.concat_batches([part.batch for part in parts]),
        [account for part in parts for account in part.accounts],
        [owner for part in parts for owner in part.owners],
        np.concatenate(
            [part.owner_of_row + before for part, before in zip(parts, owners_before, strict=True)]
        ),
    )
