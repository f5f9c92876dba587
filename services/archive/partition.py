"""A partition being archived: the records since the last file, in memory and in a file in the making.

Owns where one file ends and the next begins. It refuses to know Kafka's client and who assigned the partition.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import structlog

from services.archive.directory import PartitionDirectory
from services.archive.faults import FaultPoint
from services.archive.metrics import Closing, Metrics
from services.archive.opened import OpenedFile
from services.archive.settings import FileSettings
from tollgate.contracts.archive import HOUR_MS, FileName
from tollgate.contracts.archive_rows import (
    LoggedRecord,
    properties_of,
    tabulate,
    taken_in_ms,
)
from tollgate.contracts.events import record_fingerprint
from tollgate.runtime.clock import Clock
from tollgate.runtime.faults import Faults

_log = structlog.get_logger(__name__)


class StopReason(StrEnum):
    """Why a partition is not archived until an operator has looked."""

    TRUNCATED = "truncated"
    """The log begins after the next offset: records were deleted before they were archived."""
    TOO_SHORT = "too_short"
    """The log ends before the next offset: recreated, or its tail was lost."""
    REWRITTEN = "rewritten"
    """The last archived record is another one in the log."""
    GAP = "gap"
    """The log skips the next offset though it says it has it."""
    DAMAGED = "damaged"
    """The partition's files are not what an archive has."""


class Stopped(Exception):
    """The partition cannot go on. `reason` is for the metrics, the text for an operator."""

    def __init__(self, reason: StopReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Gap(Exception):
    """A record came whose predecessor did not."""


class PartitionArchive:
    """One assignment of one partition. Blocking; one thread at a time."""

    def __init__(
        self,
        partition: int,
        directory: PartitionDirectory,
        archive_id: str,
        settings: FileSettings,
        clock: Clock,
        metrics: Metrics,
        faults: Faults[FaultPoint],
    ) -> None:
        self.partition = partition
        self.next_offset: int | None = None
        """The offset expected next; None while nothing is archived and nothing was begun."""
        self.archived_offset: int | None = None
        """Everything below is in files."""
        self._directory = directory
        self._archive_id = archive_id
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._faults = faults
        self._hour_ms = 0
        """Of the open file, else of the last one: hours never go back."""
        self._predecessor = ""
        """The fingerprint the record before `next_offset` must have; '' once it was compared."""
        self._expected: frozenset[str] = frozenset()
        """Properties the last file's records carried: the next one's most likely do."""
        self._open: OpenedFile | None = None

    # -------------------------------------------------------------------------------------- beginning

    def load(self) -> None:
        """Find out where to go on. Drops what was open. Raises NotAnArchive, OSError."""
        self.discard()
        last = self._directory.load()
        self._predecessor = ""
        self.next_offset = self.archived_offset = None
        if last is not None:
            name, facts = last
            self.next_offset = self.archived_offset = name.next_offset
            self._hour_ms = name.hour_ms
            self._predecessor = facts.fingerprint
        self._faults.reach(FaultPoint.PARTITION_LOADED)

    def begin_at(self, log_start: int, log_end: int) -> int:
        """The offset to read from, given what the log holds. The last archived record is read again, to compare it.

        Raises Stopped where the log cannot be gone on with.
        """
        if self.next_offset is None:
            self.next_offset = self.archived_offset = log_start
        if log_start > self.next_offset:
            raise Stopped(
                StopReason.TRUNCATED,
                f"the archive ends before offset {self.next_offset}, the log begins at {log_start}: "
                f"{log_start - self.next_offset} records were deleted before they were archived",
            )
        if log_end < self.next_offset:
            raise Stopped(
                StopReason.TOO_SHORT,
                f"the archive reaches to offset {self.next_offset}, the log ends at {log_end}: "
                "the topic was recreated or lost its tail",
            )
        if self._predecessor and log_start < self.next_offset:
            return self.next_offset - 1
        # Retention has deleted exactly everything archived: nothing is missing, and nothing can be compared.
        self._predecessor = ""
        return self.next_offset

    # ---------------------------------------------------------------------------------------- records

    @property
    def held_bytes(self) -> int:
        """Bytes of rows in memory."""
        return 0 if self._open is None else self._open.held_bytes

    def append(self, records: Sequence[LoggedRecord]) -> None:
        """Take records as the log gives them; those already had are dropped. Closes files on the way.

        Raises Gap, Stopped (REWRITTEN), Overtaken, OSError.
        """
        fresh = self._fresh(records)
        start = 0
        now_ms = self._clock.now_ms()
        while start < len(fresh):
            end = start
            while end < len(fresh):
                # A clock ahead of ours, or noise, must not drive the hours away.
                hour_ms = min(taken_in_ms(fresh[end]), now_ms) // HOUR_MS * HOUR_MS
                if self._open is None and end == start:
                    self._hour_ms = max(self._hour_ms, hour_ms)
                elif hour_ms > self._hour_ms:
                    break
                end += 1
            if end > start:
                self._hold(fresh[start:end])
            if end < len(fresh):
                self.close(Closing.HOUR)
            start = end

    def write_rows(self) -> None:
        """Write what is held in memory as a row group. Raises OSError."""
        opened = self._open
        if opened is None or not opened.held_bytes:
            return
        first_offset = opened.first_offset
        if opened.write(lambda: self._directory.draft(first_offset), self._settings.zstd_level):
            self._faults.reach(FaultPoint.FILE_OPENED)
        self._faults.reach(FaultPoint.ROWS_WRITTEN)

    def close_if_old(self) -> None:
        """Close the open file when it has been open for long. Raises Overtaken, OSError."""
        if self._open is not None:
            age_seconds = self._clock.monotonic_seconds() - self._open.opened_at
            if age_seconds >= self._settings.file_seconds_max:
                self.close(Closing.AGE)

    def close(self, closing: Closing) -> None:
        """Make what is held a file of the archive; nothing when nothing is. Raises Overtaken, OSError."""
        opened = self._open
        if opened is None:
            return
        began = self._clock.monotonic_seconds()
        self.write_rows()
        assert opened.draft is not None, "an open file has rows"
        name = FileName(self.partition, opened.first_offset, opened.next_offset - 1, self._hour_ms)
        size_bytes = opened.draft.close(opened.facts(self._archive_id, self.partition))
        self._faults.reach(FaultPoint.FILE_CLOSED)
        self._directory.archive(opened.draft.path, name)
        self.archived_offset = opened.next_offset
        self._expected = opened.carried
        self._open = None
        self._metrics.archived(
            closing,
            records=opened.next_offset - opened.first_offset,
            events=opened.events,
            kept=opened.kept,
            size_bytes=size_bytes,
            seconds=self._clock.monotonic_seconds() - began,
        )
        _log.info(
            "file.archived",
            partition=self.partition,
            path=name.path,
            closing=closing.value,
            events=opened.events,
            bytes=size_bytes,
        )

    def discard(self) -> None:
        """Throw away what is in no file yet: the log has it."""
        if self._open is not None:
            self._open.discard()
            self._open = None

    # ----------------------------------------------------------------------------------------- inside

    def _fresh(self, records: Sequence[LoggedRecord]) -> Sequence[LoggedRecord]:
        """Those not had before, contiguous from the one expected."""
        assert self.next_offset is not None, "begun"
        expected = self.next_offset
        fresh: list[LoggedRecord] = []
        for record in records:
            if record.offset == expected - 1 and self._predecessor:
                found = record_fingerprint(record.offset, record.value)
                if found != self._predecessor:
                    raise Stopped(
                        StopReason.REWRITTEN,
                        f"record {record.offset} was {self._predecessor} when it was archived and is {found} now: "
                        "the topic was recreated, swapped or restored",
                    )
                self._predecessor = ""
            if record.offset < expected:
                continue
            if record.offset > expected or self._predecessor:
                raise Gap(f"offset {record.offset} came, {expected - bool(self._predecessor)} was expected")
            fresh.append(record)
            expected += 1
        return fresh

    def _hold(self, records: Sequence[LoggedRecord]) -> None:
        """Hold records of the open file's hour in memory."""
        tables = tabulate(records)
        carried = frozenset().union(*(properties_of(table.schema) for table in tables))
        if self._open is not None and not self._open.has_columns_for(carried):
            # The next one has columns for both: two capture settings at once do not cut a file at every change.
            self.close(Closing.COLUMNS)
        if self._open is None:
            self._open = OpenedFile(records[0], self._clock.monotonic_seconds(), self._expected)
        self._open.hold(records, tables)
        self.next_offset = self._open.next_offset
        self._faults.reach(FaultPoint.RECORDS_HELD)
        if self._open.held_bytes >= self._settings.row_group_bytes:
            self.write_rows()
        if self._open.draft is not None and self._open.draft.bytes_written >= self._settings.file_bytes_max:
            self.close(Closing.SIZE)
