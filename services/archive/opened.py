"""The file that is open: rows in memory, those written to its draft, and the facts of both.

Owns what is gathered for one file. It refuses to know when it is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa

from services.archive.draft import Draft
from tollgate.contracts.archive import CONTRACT, FileFacts
from tollgate.contracts.archive_rows import LoggedRecord, join_rows, properties_of, row_schema, taken_in_ms
from tollgate.contracts.events import record_fingerprint


class OpenedFile:
    """From its first record on. Blocking; one thread at a time."""

    def __init__(self, first: LoggedRecord, opened_at: float, expected: frozenset[str]) -> None:
        """`opened_at`: monotonic seconds. `expected`: properties its records are likely to carry."""
        self.first_offset = first.offset
        self.next_offset = first.offset
        self.opened_at = opened_at
        self.carried: frozenset[str] = frozenset()
        """Properties its records carry."""
        self.events = 0
        self.kept = 0
        self.held_bytes = 0
        """Bytes of rows in memory."""
        self.draft: Draft | None = None
        self._expected = expected
        self._columns: frozenset[str] = frozenset()
        self._held: list[pa.Table] = []
        self._taken_ms_min = self._taken_ms_max = taken_in_ms(first)
        self._fingerprint = ""

    def has_columns_for(self, properties: frozenset[str]) -> bool:
        """Whether records that carry `properties` fit: always, before anything is written."""
        return self.draft is None or properties <= self._columns

    def hold(self, records: Sequence[LoggedRecord], tables: Sequence[pa.Table]) -> None:
        """Hold the next records, which are `tables`, in memory."""
        for table in tables:
            kept = 0 if "row" in table.schema.names else len(table)
            self.kept += kept
            self.events += len(table) - kept
            self.carried |= properties_of(table.schema)
            self.held_bytes += table.nbytes
        self._held += tables
        times = [taken_in_ms(record) for record in records]
        self._taken_ms_min = min(self._taken_ms_min, *times)
        self._taken_ms_max = max(self._taken_ms_max, *times)
        self._fingerprint = record_fingerprint(records[-1].offset, records[-1].value)
        self.next_offset = records[-1].offset + 1

    def write(self, new_path: Callable[[], Path], zstd_level: int) -> bool:
        """Write what is held as a row group; whether a draft was made for it. Raises OSError."""
        made = self.draft is None
        if self.draft is None:
            self._columns = self.carried | self._expected
            self.draft = Draft(new_path(), row_schema(self._columns), zstd_level)
        if self._held:
            self.draft.write(join_rows(self._held, self._columns))
        self._held = []
        self.held_bytes = 0
        return made

    def facts(self, archive_id: str, partition: int) -> FileFacts:
        """What the file will say of itself."""
        return FileFacts(
            contract=CONTRACT,
            archive_id=archive_id,
            partition=partition,
            first_offset=self.first_offset,
            last_offset=self.next_offset - 1,
            events=self.events,
            kept=self.kept,
            taken_ms_min=self._taken_ms_min,
            taken_ms_max=self._taken_ms_max,
            fingerprint=self._fingerprint,
        )

    def discard(self) -> None:
        """Throw it away."""
        if self.draft is not None:
            self.draft.discard()
