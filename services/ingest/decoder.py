"""A gateway's format, in the two steps in which a body becomes columns.

Owns the interface every format implements. A body is read when it arrives, since its sender must be told of JSON that
is none; its entries become columns when their group is sealed, with those of every request that waits beside it: a
column costs the same for one entry as for fifty. It refuses to know any format, HTTP and Kafka.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from services.ingest.decoded import Columns, DecodedBatch, Fault, drop_faults, find_nul
from services.ingest.entries import Entries


class Decoder(ABC):
    """One gateway's format. Pure: the same bytes give the same columns."""

    format: ClassVar[str]
    """The word for it: in `gateway`, in dead letters, in metrics."""

    @abstractmethod
    def read(self, body: bytes) -> Entries[Any]:
        """The entries of `body`. Raises BrokenBody when they cannot be told apart."""

    @abstractmethod
    def to_columns(
        self, entries: list[Any], *, ingest_ms: int, trust_ids: bool, replayed: bool
    ) -> tuple[Columns, list[Fault]]:
        """Every entry as a row, and the rows that cannot be counted.

        `trust_ids`: ids the sender put in the body are its own, not its callers'. `replayed`: the entry is a dead
        letter's payload, whose API keys are already hashed.
        """

    def decode(self, body: bytes, *, ingest_ms: int, trust_ids: bool, replayed: bool) -> DecodedBatch:
        """Both steps for one body alone: every entry as a row or a rejection. Raises BrokenBody."""
        reading = self.read(body)
        rows = len(reading.read)
        columns, faults = self.to_columns(
            reading.read, ingest_ms=ingest_ms, trust_ids=trust_ids, replayed=replayed
        )
        faults += find_nul(columns, rows)
        if not faults:
            return DecodedBatch(rows, columns, reading.rejected)
        rows, columns, rejected = drop_faults(columns, rows, faults, reading.payload)
        return DecodedBatch(rows, columns, [*reading.rejected, *rejected])
