"""Postings on their way into the journal, and back from it after a restore.

Owns that a posting is in the journal before it is sent, and that what the journal has is in the ledger. It refuses to
know how the journal is written and read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any

from sqlalchemy import Connection, Engine, Update, and_, bindparam, insert, select, tuple_, update

from tollgate.contracts.journal import JournalEntry
from tollgate.ledger.candidates import JOURNAL_WAIT
from tollgate.ledger.chunks import chunks
from tollgate.ledger.controls import read_controls, write_controls
from tollgate.ledger.engine import ledger_transaction, read_snapshot
from tollgate.ledger.leases import Lease, fence
from tollgate.ledger.posting_rows import (
    REPLACING_MODES,
    SENT_MODES,
    Posting,
    PostingMode,
    PostingState,
    posting_from_row,
)
from tollgate.ledger.superseding import keep_newest
from tollgate.ledger.tables import postings
from tollgate.metering.errors import InvariantViolated

JOURNALLED_TO = "journal:"
"""Control, followed by a partition of the journal's topic: every record below the value is in this ledger."""

_DAY_MS = 24 * 60 * 60 * 1000
"""Past every horizon of sending again."""

_AFTER_JOURNALLING = {
    **dict.fromkeys(SENT_MODES, PostingState.JOURNALLED),
    PostingMode.DRY_RUN: PostingState.DRY_RUN,
    PostingMode.REVERSAL: PostingState.REVERSAL,
}
"""The state a planned posting gets once it is in the journal, by mode."""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What reading the journal's end found."""

    read: int = 0
    imported: int = 0


def load_planned(engine: Engine, limit: int) -> list[Posting]:
    """Postings not yet in the journal, oldest first."""
    with read_snapshot(engine) as connection:
        rows = connection.execute(
            select(postings)
            .where(postings.c.state == PostingState.PLANNED)
            .order_by(postings.c.planned_ms, postings.c.posting_key, postings.c.seq)
            .limit(limit)
        )
        return [posting_from_row(row) for row in rows]


def mark_journalled(
    engine: Engine,
    lease: Lease,
    refs: Sequence[tuple[str, int]],
    positions: Mapping[int, int],
    now_ms: int,
) -> None:
    """Planned postings are in the journal, whose partitions are now known up to `positions` (next offsets).

    What is to be sent becomes `journalled`, a dry run and a reversal end here. Raises LeaseLost.
    """
    with ledger_transaction(engine) as connection:
        fence(connection, lease)
        for chunk in chunks(refs):
            for mode, state in _AFTER_JOURNALLING.items():
                done = {} if state is PostingState.JOURNALLED else {"done_ms": now_ms}
                connection.execute(
                    _mark_journalled(mode, state), {"refs": chunk, "held_version": lease.version, **done}
                )
        _advance_journal(connection, positions, now_ms)


@cache
def _mark_journalled(mode: PostingMode, state: PostingState) -> Update:
    """Kept: there are as many as modes, each time."""
    changed = (
        update(postings)
        .where(
            and_(
                tuple_(postings.c.posting_key, postings.c.seq).in_(bindparam("refs", expanding=True)),
                postings.c.state == PostingState.PLANNED,
                postings.c.mode == mode,
            )
        )
        .values(state=str(state), lease_version=bindparam("held_version"))
    )
    return changed if state is PostingState.JOURNALLED else changed.values(settled_ms=bindparam("done_ms"))


def journal_positions(engine: Engine) -> dict[int, int]:
    """Per journal partition, the offset below which every record is known to be in this ledger."""
    with read_snapshot(engine) as connection:
        controls = read_controls(connection)
    return {
        int(name.removeprefix(JOURNALLED_TO)): int(value)
        for name, value in controls.items()
        if name.startswith(JOURNALLED_TO)
    }


def import_journal(
    engine: Engine,
    lease: Lease,
    entries: Sequence[JournalEntry],
    positions: Mapping[int, int],
    now_ms: int,
) -> ImportReport:
    """Take over journal entries that the ledger lacks, as after a restore of a backup.

    A missing posting that is sent comes in as `unknown`: the process that wrote it may have sent it. Of totals that
    replace, only the newest does, and older ones end: sent again they would undo it. Planning then waits until every
    partition's progress has reached what the imported postings were planned from. Raises LeaseLost, and
    InvariantViolated when the ledger has another posting under the same key and sequence number.
    """
    with ledger_transaction(engine) as connection:
        fence(connection, lease)
        wanted = {(entry.posting_key, entry.seq): entry for entry in entries}
        present: dict[tuple[str, int], str] = {}
        for chunk in chunks(sorted(wanted)):
            for row in connection.execute(
                select(postings.c.posting_key, postings.c.seq, postings.c.identifier).where(
                    tuple_(postings.c.posting_key, postings.c.seq).in_(chunk)
                )
            ):
                present[row.posting_key, row.seq] = row.identifier
        missing = []
        for ref, entry in sorted(wanted.items()):
            if ref not in present:
                missing.append(entry)
            elif present[ref] != entry.identifier:
                raise InvariantViolated(
                    f"posting {ref} is {present[ref]} in the ledger and {entry.identifier} in the journal"
                )
        if missing:
            connection.execute(insert(postings), [_imported(entry, lease, now_ms) for entry in missing])
            for entry in missing:
                if entry.mode == PostingMode.REVERSAL:
                    _void(connection, lease, entry.posting_key, json.loads(entry.body)["reverses"], now_ms)
            keep_newest(
                connection, lease, {e.posting_key for e in missing if e.mode in REPLACING_MODES}, now_ms
            )
            _wait_for_counts(connection, missing, now_ms)
        _advance_journal(connection, positions, now_ms)
    return ImportReport(read=len(entries), imported=len(missing))


def _imported(entry: JournalEntry, lease: Lease, now_ms: int) -> dict[str, Any]:
    mode = PostingMode(entry.mode)
    may_have_been_sent = mode in SENT_MODES
    state = PostingState.UNKNOWN if may_have_been_sent else _AFTER_JOURNALLING[mode]
    # The earliest it can have been sent: the horizon of blind resending counts from there. Nothing but its idempotency
    # key protects an invoice item, and the journal may have an older one: it is looked for before anything is sent.
    first_sent_ms = entry.planned_ms - (_DAY_MS if mode is PostingMode.INVOICE_ITEM else 0)
    return {
        "posting_key": entry.posting_key,
        "seq": entry.seq,
        "customer_id": entry.customer,
        "meter_id": entry.meter_id,
        "window_start_ms": entry.window_start_ms,
        "quantity_from": Decimal(entry.quantity_from),
        "quantity_to": Decimal(entry.quantity_to),
        "mode": entry.mode,
        "identifier": entry.identifier,
        "idempotency_key": entry.idempotency_key,
        "timestamp_s": entry.timestamp_s,
        "body": entry.body,
        "state": str(state),
        "attempts": 1 if may_have_been_sent else 0,
        "first_sent_ms": first_sent_ms if may_have_been_sent else None,
        "last_sent_ms": entry.planned_ms if may_have_been_sent else None,
        "retry_ms": None,
        "settled_ms": None if may_have_been_sent else now_ms,
        "request_id": None,
        "error": "imported from the journal",
        "planned_ms": entry.planned_ms,
        "planned_from": {str(p): offset for p, offset in entry.planned_from.items()},
        "lease_version": lease.version,
        "for_period_ms": entry.for_period_ms,
    }


def _void(connection: Connection, lease: Lease, key: str, seqs: Sequence[int], now_ms: int) -> None:
    connection.execute(
        update(postings)
        .where(and_(postings.c.posting_key == key, postings.c.seq.in_(seqs)))
        .values(state=str(PostingState.VOID), settled_ms=now_ms, lease_version=lease.version)
    )


def _wait_for_counts(connection: Connection, entries: Iterable[JournalEntry], now_ms: int) -> None:
    controls = read_controls(connection)
    waits: dict[int, int] = {}
    for entry in entries:
        for partition, offset in entry.planned_from.items():
            known = int(controls.get(f"{JOURNAL_WAIT}{partition}", "0"))
            waits[partition] = max(waits.get(partition, known), offset)
    write_controls(connection, {f"{JOURNAL_WAIT}{p}": str(offset) for p, offset in waits.items()}, now_ms)


def _advance_journal(connection: Connection, positions: Mapping[int, int], now_ms: int) -> None:
    write_controls(connection, {f"{JOURNALLED_TO}{p}": str(o) for p, o in positions.items()}, now_ms)
