"""Replay: a dead letter sent through again, after what was wrong has been put right.

Owns what each kind of letter is turned back into. It refuses to know who may do this, and HTTP. A replay never writes
another dead letter: what still cannot be counted stays where it is, and the answer says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from services.ingest.decoded import BrokenBody, Rejected
from services.ingest.decoder import Decoder
from services.ingest.group_commit import GroupCommit
from tollgate.contracts.dead import DeadLetter
from tollgate.contracts.events import (
    CONTRACT,
    PROPERTY_PREFIX,
    SCHEMA,
    UndecodableRecord,
    decode_batch,
)
from tollgate.metering.errors import DeadReason


class NotReplayable(Exception):
    """The letter holds nothing that can become an event; the message says what it holds."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of one letter. `done` is False when the log did not acknowledge in time."""

    done: bool
    accepted: int
    rejected: tuple[Rejected, ...]


class Replayer:
    """Puts the events of dead letters into the log again."""

    def __init__(self, commit: GroupCommit, decoders: Mapping[str, Decoder]) -> None:
        """`decoders` by format."""
        self._commit = commit
        self._decoders = decoders

    async def replay(self, letter: DeadLetter) -> Replayed:
        """Send the letter's events through again, under its source. Raises NotReplayable.

        Ids stay the same, so an event counted meanwhile is a duplicate. Events of a late letter are marked to be
        counted however old they are.
        """
        if letter.format == CONTRACT:
            batch = _read_events(letter.payload)
            outcome = await self._commit.submit_batch(
                letter.source, batch, accept_late=letter.reason is DeadReason.LATE
            )
            return Replayed(outcome.acknowledged, batch.num_rows, ())
        decoder = self._decoders.get(letter.format)
        if decoder is None:
            raise NotReplayable(f"a letter in format {letter.format!r} holds no entry that can be read again")
        try:
            # Inside a letter ids were believed or not when it was written by the same rules as now.
            decoded = decoder.decode(
                letter.payload, ingest_ms=letter.ingest_ms, trust_ids=True, replayed=True
            )
        except BrokenBody as broken:
            raise NotReplayable(str(broken)) from None
        outcome = await self._commit.submit_columns(letter.source, decoded.columns)
        return Replayed(outcome.acknowledged, decoded.rows, tuple(decoded.rejected))


def _read_events(payload: bytes) -> pa.RecordBatch:
    """The batch of an `events/1` payload. Raises NotReplayable when its columns are not the contract's."""
    try:
        batch = decode_batch(payload)
        batch.validate(full=True)
    except (UndecodableRecord, pa.ArrowException) as error:
        raise NotReplayable(str(error)) from None
    fixed = len(SCHEMA.names)
    extra = list(batch.schema)[fixed:]
    if list(batch.schema)[:fixed] != list(SCHEMA) or not all(
        field.name.startswith(PROPERTY_PREFIX) and field.type == pa.string() for field in extra
    ):
        raise NotReplayable(f"the columns are not those of {CONTRACT}")
    if any(batch.column(field.name).null_count for field in SCHEMA if not field.nullable):
        raise NotReplayable(f"a column that {CONTRACT} always fills has nulls")
    return batch
