"""Reading an archive: a directory, or a URL that Arrow knows, of contract `archive/1`.

Owns finding its files and reading rows and records of them, in the log's order. It refuses to know what is done with
them, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from services.cli.log import StoredRecord
from tollgate.contracts.archive import (
    EVENTS_DIRECTORY,
    FACTS_KEY,
    HOUR_MS,
    PINS_NAME,
    ArchivePins,
    FileFacts,
    FileName,
    NotAnArchive,
    decode_facts,
    decode_pins,
    order_files,
)
from tollgate.contracts.archive_rows import restore_records
from tollgate.ledger.init import Pins


class Archive:
    """An archive as it was when it was opened: files that come later are not seen."""

    def __init__(self, filesystem: pafs.FileSystem, root: str) -> None:
        """Lists every file. Raises NotAnArchive where there is no archive, files are missing or overlap."""
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        try:
            self.pins: ArchivePins = decode_pins(self._read_bytes(PINS_NAME), f"{root}/{PINS_NAME}")
            listed = filesystem.get_file_info(
                pafs.FileSelector(f"{self._root}/{EVENTS_DIRECTORY}", recursive=True, allow_not_found=True)
            )
        except (OSError, pa.ArrowException) as error:
            raise NotAnArchive(f"there is no archive at {root}: {error}") from error
        found: dict[int, list[FileName]] = {}
        for info in listed:
            name = FileName.parse(info.path)
            if name is not None:
                found.setdefault(name.partition, []).append(name)
        self.files: dict[int, list[FileName]] = {
            partition: order_files(names) for partition, names in sorted(found.items())
        }

    @classmethod
    def open(cls, location: str) -> Archive:
        """The archive at a path, or at a URL of a file system Arrow has (s3://, gs://, file://). Raises NotAnArchive."""
        if "://" not in location:
            return cls(pafs.LocalFileSystem(), str(Path(location).absolute()))
        try:
            filesystem, root = pafs.FileSystem.from_uri(location)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise NotAnArchive(f"there is no archive at {location}: {error}") from error
        return cls(filesystem, root)

    def check_belongs(self, pins: Pins) -> None:
        """Raises NotAnArchive unless it holds the log that the ledger with `pins` counts."""
        for name in ("kafka_cluster_id", "events_topic", "partitions"):
            held, pinned = getattr(self.pins, name), getattr(pins, name)
            if name == "partitions" and held and pinned % held == 0:
                # A cut-over the archive has not heard of yet: what it holds is the log's all the same.
                continue
            if pinned and held != pinned:
                raise NotAnArchive(
                    f"the archive is of {name} {held}, the ledger of {pinned}: they do not belong together"
                )

    @property
    def bounds(self) -> dict[int, tuple[int, int]]:
        """By partition, the first offset it holds and the one after the last."""
        return {
            partition: (names[0].first_offset, names[-1].next_offset)
            for partition, names in self.files.items()
        }

    def facts(self, name: FileName) -> FileFacts:
        """What a file says of itself. Raises NotAnArchive."""
        with self._open(name) as file:
            return decode_facts((file.metadata.metadata or {}).get(FACTS_KEY), name.path)

    def first_from(self, partition: int, time_ms: int) -> int | None:
        """The first offset of a file before which nothing was taken in at or after `time_ms`; None without any such file.

        An hour is allowed for clocks that differ.
        """
        # A file holds nothing of a later hour than its own.
        found = [name for name in self.files[partition] if name.hour_ms + 2 * HOUR_MS > time_ms]
        return found[0].first_offset if found else None

    def row_groups(
        self, partition: int, start: int, stop: int, columns: Collection[str] | None = None
    ) -> Iterator[pa.Table]:
        """Rows of the offsets in `[start, stop)`, a row group or less at a time; of `columns`, those a file has.

        Raises NotAnArchive for a file that cannot be read or holds other offsets than it says.
        """
        for name in self.files.get(partition, ()):
            if name.next_offset <= start or name.first_offset >= stop:
                continue
            with self._open(name) as file:
                yield from self._groups_of(file, name, start, stop, columns)

    def records(self, partition: int, start: int, stop: int) -> Iterator[StoredRecord]:
        """The records of `[start, stop)`, as the log held them. Raises NotAnArchive."""
        for rows in self.row_groups(partition, start, stop):
            for record in restore_records(rows):
                yield StoredRecord(
                    partition=record.partition,
                    offset=record.offset,
                    timestamp_ms=record.timestamp_ms,
                    key=record.key,
                    value=record.value,
                    headers=record.headers,
                )

    def _groups_of(
        self, file: pq.ParquetFile, name: FileName, start: int, stop: int, columns: Collection[str] | None
    ) -> Iterator[pa.Table]:
        names = file.schema_arrow.names
        wanted = names if columns is None else [column for column in names if column in columns]
        at = names.index("offset")
        expected = name.first_offset
        for number in range(file.num_row_groups):
            statistics = _leaf(file.metadata.row_group(number), "offset", at).statistics
            if statistics.min != expected:
                raise NotAnArchive(f"{name.path}: a row group begins at {statistics.min}, not at {expected}")
            expected = statistics.max + 1
            if statistics.max < start or statistics.min >= stop:
                continue
            try:
                rows = file.read_row_group(number, columns=wanted, use_threads=False)
            except (pa.ArrowException, OSError) as error:
                raise NotAnArchive(f"{name.path} cannot be read: {error}") from error
            yield _between(rows, start, stop)
        if expected != name.next_offset:
            raise NotAnArchive(f"{name.path} holds offsets to {expected - 1}, not to {name.last_offset}")

    def _open(self, name: FileName) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(
                self._filesystem.open_input_file(f"{self._root}/{name.path}"), page_checksum_verification=True
            )
        except (pa.ArrowException, OSError) as error:
            raise NotAnArchive(f"{name.path} cannot be read: {error}") from error

    def _read_bytes(self, path: str) -> bytes:
        with self._filesystem.open_input_stream(f"{self._root}/{path}") as stream:
            content: bytes = stream.read()
        return content


def _leaf(group: pq.RowGroupMetaData, name: str, guess: int) -> pq.ColumnChunkMetaData:
    """The column chunk called `name`; nested columns come later, so its place in the schema is its own."""
    found = group.column(guess)
    assert found.path_in_schema == name, "the columns before it are flat"
    return found


def _between(rows: pa.Table, start: int, stop: int) -> pa.Table:
    """The rows whose offsets are in `[start, stop)`; offsets ascend."""
    offsets = rows.column("offset").to_numpy()
    first, last = offsets.searchsorted([start, stop], side="left")
    return rows.slice(int(first), int(last - first))
