"""The archive's directory: what is archived, and the one step by which a file joins it.

Owns paths, the lock and the order of syncs. It refuses to know what is in a file.

The files that exist are the only record of what is archived. A file joins them by a compare-and-set: under the
partition's lock it is looked up where the last file ends, and only a file that begins there is given its name. So of
two workers that both think a partition theirs, one is refused, whoever was paused in between and for how long. The
lock is the kernel's: it ends with its holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from services.archive.faults import FaultPoint
from tollgate.contracts.archive import (
    CONTRACT,
    EVENTS_DIRECTORY,
    FACTS_KEY,
    LOCK_NAME,
    PINS_NAME,
    WRITING_DIRECTORY,
    ArchivePins,
    FileFacts,
    FileName,
    NotAnArchive,
    decode_facts,
    decode_pins,
    encode_pins,
    order_files,
    partition_path,
)
from tollgate.runtime.faults import Faults


class Overtaken(Exception):
    """Another worker has archived what this one was about to. What this one holds is worth nothing."""


class PinsDiffer(Exception):
    """The directory is another installation's archive."""


def open_archive(root: Path, *, kafka_cluster_id: str, events_topic: str, partitions: int) -> ArchivePins:
    """The pins of the archive at `root`, made when there is none; with the new count where the log was cut over.

    Raises PinsDiffer when it belongs to another cluster, topic or partition count, NotAnArchive when its pins cannot
    be read, OSError.
    """
    path = root / PINS_NAME
    wanted = ArchivePins(
        CONTRACT, f"archive_{uuid.uuid4().hex[:16]}", kafka_cluster_id, events_topic, partitions
    )
    if not path.exists():
        (root / EVENTS_DIRECTORY).mkdir(parents=True, exist_ok=True)
        draft = _draft_pins(root, wanted)
        # A link is refused where a file is: of two workers that begin at once, one writes the pins.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
        draft.unlink()
        _sync_directory(root)
    found = decode_pins(path.read_bytes(), str(path))
    if _was_cut_over(found, wanted):
        # Of two workers that do it at once, both write the same.
        found = msgspec.structs.replace(
            found,
            partitions=wanted.partitions,
            partitions_before=(*found.partitions_before, found.partitions),
        )
        _draft_pins(root, found).rename(path)
        _sync_directory(root)
    for name in ("kafka_cluster_id", "events_topic", "partitions"):
        is_, expected = getattr(found, name), getattr(wanted, name)
        if is_ != expected:
            raise PinsDiffer(
                f"{path}: {name} is {is_!r}, here it is {expected!r}: another installation's archive"
            )
    return found


def _was_cut_over(found: ArchivePins, wanted: ArchivePins) -> bool:
    """Whether it is the same log, with a multiple of the partitions it had. The ledger, asked before, has the new count."""
    same = (found.kafka_cluster_id, found.events_topic) == (wanted.kafka_cluster_id, wanted.events_topic)
    return same and found.partitions < wanted.partitions and wanted.partitions % found.partitions == 0


def _draft_pins(root: Path, pins: ArchivePins) -> Path:
    """A file with these pins, on the disk, that nobody reads yet."""
    draft = root / f".{PINS_NAME}.{uuid.uuid4().hex}"
    with draft.open("xb") as file:
        file.write(encode_pins(pins))
        _sync(file.fileno())
    return draft


class PartitionDirectory:
    """The files of one partition. Blocking; one thread at a time."""

    def __init__(self, root: Path, partition: int, faults: Faults[FaultPoint]) -> None:
        self._root = root
        self._partition = partition
        self._path = root / partition_path(partition)
        self._writing = self._path / WRITING_DIRECTORY
        self._faults = faults

    def load(self) -> tuple[FileName, FileFacts] | None:
        """The last file and what it says; None when nothing is archived yet. Makes the directory.

        Removes what was left in the making: whoever still writes there is refused when it is done. Raises NotAnArchive
        when files are missing or overlap, or the last one cannot be read; OSError.
        """
        if not self._writing.is_dir():
            self._writing.mkdir(parents=True, exist_ok=True)
            _sync_directory(self._path)
            _sync_directory(self._path.parent)
        for left in self._writing.iterdir():
            left.unlink(missing_ok=True)
        files = order_files(
            [
                name
                for path in self._path.glob("hour=*/*")
                if (name := FileName.parse(path.relative_to(self._root).as_posix())) is not None
            ]
        )
        if not files:
            return None
        last = files[-1]
        path = self._root / last.path
        try:
            metadata = pq.read_metadata(path).metadata or {}
        except (pa.ArrowException, OSError) as error:
            raise NotAnArchive(f"{path} cannot be read: {error}") from error
        facts = decode_facts(metadata.get(FACTS_KEY), str(path))
        if (facts.partition, facts.first_offset, facts.last_offset) != (
            last.partition,
            last.first_offset,
            last.last_offset,
        ):
            raise NotAnArchive(
                f"{path} holds {facts.first_offset} to {facts.last_offset} of {facts.partition}"
            )
        return last, facts

    def draft(self, first_offset: int) -> Path:
        """A path for a file in the making."""
        return self._writing / f"{first_offset:020d}-{uuid.uuid4().hex}.part"

    def archive(self, draft: Path, name: FileName) -> None:
        """Make the complete file at `draft` the archive's next one. On return it survives a power cut.

        Raises Overtaken, with nothing changed, unless the archive ends where it begins; OSError.
        """
        with self._present(draft), draft.open("rb") as file:
            _sync(file.fileno())
        self._faults.reach(FaultPoint.FILE_SYNCED)
        with self._locked():
            last = self._last_file()
            if last is not None and last.next_offset != name.first_offset:
                raise Overtaken(
                    f"partition {self._partition}: offset {name.first_offset} is no longer next, {last.next_offset} is"
                )
            self._faults.reach(FaultPoint.LOCKED)
            hour = self._root / name.path
            if not hour.parent.is_dir():
                hour.parent.mkdir()
                _sync_directory(self._path)
            self._faults.reach(FaultPoint.HOUR_MADE)
            with self._present(draft):
                draft.rename(hour)
            self._faults.reach(FaultPoint.FILE_RENAMED)
            _sync_directory(hour.parent)
        self._faults.reach(FaultPoint.FILE_ARCHIVED)

    @contextlib.contextmanager
    def _present(self, draft: Path) -> Iterator[None]:
        """A draft that is gone was removed by the worker that has the partition now."""
        try:
            yield
        except FileNotFoundError:
            raise Overtaken(
                f"partition {self._partition}: another worker has taken it and removed {draft.name}"
            ) from None

    def _last_file(self) -> FileName | None:
        """The last file, by looking into the last hour that has one: hours never go back."""
        for hour in sorted((path.name for path in self._path.glob("hour=*")), reverse=True):
            found = [
                name
                for path in (self._path / hour).iterdir()
                if (name := FileName.parse(path.relative_to(self._root).as_posix())) is not None
            ]
            if found:
                return max(found)
        return None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _sync(descriptor: int) -> None:
    os.fsync(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
