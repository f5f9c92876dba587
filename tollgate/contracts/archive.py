"""Contract `archive/1`: the log of events as Parquet files, and what a file and a directory say about themselves.

Owns names and metadata: which range of which partition a file holds can be read from its path alone, so the files that
exist are the only record of what is archived. It refuses to know how a file is written, and what stands in its rows
(`archive_rows`).

    archive.json                                  what the directory belongs to
    events/partition=03/hour=2026-11-23T04/00000000000000012345-00000000000000023456.parquet
    events/partition=03/.writing/                 files in the making: no reader looks there

A partition's files follow each other without a gap or an overlap, in the order of their names, and their hours never
go back. A file never changes once it is there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import TypeVar

import msgspec

T = TypeVar("T")

CONTRACT = "archive/1"
PINS_NAME = "archive.json"
EVENTS_DIRECTORY = "events"
WRITING_DIRECTORY = ".writing"
LOCK_NAME = ".lock"
FACTS_KEY = b"tollgate.archive"
"""Under which a Parquet file's own metadata holds its facts."""

HOUR_MS = 3_600_000
_HOUR_FORMAT = "%Y-%m-%dT%H"
_PATH = re.compile(
    r"(?:^|.*/)partition=(?P<partition>\d+)/hour=(?P<hour>\d{4}-\d\d-\d\dT\d\d)/(?P<first>\d{20})-(?P<last>\d{20})\.parquet"
)


class NotAnArchive(ValueError):
    """A directory or file is not what contract `archive/1` promises; the message says which and why."""


@dataclass(frozen=True, slots=True, order=True)
class FileName:
    """What a file's path says: it holds each record of `[first_offset, last_offset]`, both included."""

    partition: int
    first_offset: int
    last_offset: int
    hour_ms: int
    """The start of the hour, epoch ms, in which its first record was taken in (or that of the file before it)."""

    @property
    def next_offset(self) -> int:
        return self.last_offset + 1

    @property
    def path(self) -> str:
        """Relative to the archive's directory, with forward slashes."""
        return f"{partition_path(self.partition)}/{hour_name(self.hour_ms)}/{self.base_name}"

    @property
    def base_name(self) -> str:
        return f"{self.first_offset:020d}-{self.last_offset:020d}.parquet"

    @classmethod
    def parse(cls, path: str) -> FileName | None:
        """Inverse of `path`, from a longer path too; None for any other file."""
        match = _PATH.fullmatch(path)
        if match is None:
            return None
        hour = datetime.strptime(match["hour"], _HOUR_FORMAT).replace(tzinfo=UTC)
        return cls(
            int(match["partition"]), int(match["first"]), int(match["last"]), int(hour.timestamp()) * 1000
        )


def partition_path(partition: int) -> str:
    """The directory of a partition, relative to the archive's."""
    return f"{EVENTS_DIRECTORY}/partition={partition:02d}"


def hour_name(hour_ms: int) -> str:
    """The directory of an hour, within its partition's. Its text sorts as time does."""
    return f"hour={datetime.fromtimestamp(hour_ms / 1000, UTC):{_HOUR_FORMAT}}"


def order_files(names: Sequence[FileName]) -> list[FileName]:
    """The files of one partition in the log's order.

    Raises NotAnArchive when one is missing between two others, two overlap, or an hour goes back.
    """
    ordered = sorted(names)
    for before, after in pairwise(ordered):
        if after.first_offset != before.next_offset:
            kind = "nothing holds" if after.first_offset > before.next_offset else "two files hold"
            first, last = sorted((after.first_offset, before.next_offset))
            raise NotAnArchive(
                f"partition {after.partition}: {kind} offsets {first} to {last - 1}, between {before.path} and {after.path}"
            )
        if after.hour_ms < before.hour_ms:
            raise NotAnArchive(
                f"partition {after.partition}: {after.path} is of an earlier hour than {before.path}"
            )
    for name in ordered:
        if name.last_offset < name.first_offset:
            raise NotAnArchive(f"partition {name.partition}: {name.path} ends before it begins")
    return ordered


class FileFacts(msgspec.Struct, frozen=True):
    """What a file says of itself, in its Parquet metadata under `FACTS_KEY`."""

    contract: str
    archive_id: str
    partition: int
    first_offset: int
    last_offset: int
    events: int
    """Events in rows; those of records kept as bytes are not among them."""
    kept: int
    """Records kept as bytes."""
    taken_ms_min: int
    taken_ms_max: int
    """The least and the greatest time at which one of its records was taken in, epoch ms (`taken_in_ms`)."""
    fingerprint: str
    """Of the last record, as the ledger writes it: tells this log from another one."""


class ArchivePins(msgspec.Struct, frozen=True):
    """What an archive belongs to: written once, compared by every writer and reader."""

    contract: str
    archive_id: str
    """This directory's own name. A second directory is a second archive, with the whole log again."""
    kafka_cluster_id: str
    events_topic: str
    partitions: int
    partitions_before: tuple[int, ...] = ()
    """Counts the log had before, each a divisor of the next: an account's events may be where any of them put it."""


_facts_decoder = msgspec.json.Decoder(FileFacts)
_pins_decoder = msgspec.json.Decoder(ArchivePins)


def encode_facts(facts: FileFacts) -> bytes:
    """The metadata value of a file's facts."""
    return msgspec.json.encode(facts)


def decode_facts(value: bytes | None, path: str) -> FileFacts:
    """Inverse of `encode_facts`. Raises NotAnArchive for anything else."""
    return _read(_facts_decoder, value, path)


def encode_pins(pins: ArchivePins) -> bytes:
    """The content of `PINS_NAME`."""
    return msgspec.json.format(msgspec.json.encode(pins), indent=2) + b"\n"


def decode_pins(value: bytes, path: str) -> ArchivePins:
    """Inverse of `encode_pins`. Raises NotAnArchive for anything else."""
    return _read(_pins_decoder, value, path)


def _read(decoder: msgspec.json.Decoder[T], value: bytes | None, path: str) -> T:
    try:
        told = decoder.decode(value or b"")
    except msgspec.DecodeError as error:
        raise NotAnArchive(f"{path} does not say what it holds: {error}") from error
    contract = getattr(told, "contract", "")
    if contract != CONTRACT:
        raise NotAnArchive(f"{path} is of contract {contract!r}, not {CONTRACT}")
    return told
