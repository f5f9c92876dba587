"""What happens to a posting after it was planned: journalled, sent, its outcome recorded, refused later, imported.

Owns every change of a posting's state that the leader makes, each fenced by its lease. It refuses to know how Stripe
is called, what an answer means, and how the journal is written.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Engine, and_, bindparam, exists, func, insert, or_, select, tuple_, update

from tollgate.contracts.journal import JournalEntry
from tollgate.ledger.controls import HALTED, PAUSED, read_controls, write_controls
from tollgate.ledger.engine import ledger_transaction, read_snapshot
from tollgate.ledger.insertion import put
from tollgate.ledger.leases import Lease, fence
from tollgate.ledger.planning import CHUNK, WAIT, load_terms
from tollgate.ledger.posting_rows import (
    AT_STRIPE,
    UNSETTLED,
    DuePosting,
    HoldReason,
    MeterTerms,
    Outcome,
    Posting,
    PostingMode,
    PostingState,
    Refusal,
    SettlementView,
)
from tollgate.ledger.tables import attributions, customers, holds, item_periods, postings, rejections, usage
from tollgate.metering.errors import InvariantViolated

JOURNALLED_TO = "journal:"
"""Control, followed by a partition of the journal's topic: every record below the value is in this ledger."""

_CLOSED_BY_JOURNALLING = {
    PostingMode.DELTA: PostingState.JOURNALLED,
    PostingMode.DRY_RUN: PostingState.DRY_RUN,
    PostingMode.REVERSAL: PostingState.REVERSAL,
}
"""The state a planned posting gets once it is in the journal: only a delta goes on to be sent."""

_NEVER_MS = 2**62
"""Sorts what was never sent behind what was."""

_DUE = (PostingState.JOURNALLED, PostingState.SENDING, PostingState.UNKNOWN)


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What reading the journal's end found."""

    read: int = 0
    imported: int = 0


# ----------------------------------------------------------------------------------------------- reading


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


def load_due(
    engine: Engine, now_ms: int, limit: int, busy: Collection[tuple[str, str]] = ()
) -> list[DuePosting]:
    """The first posting that may be sent now of each lane (customer, meter) that is not `busy`.

    `busy`: (customer, event name) of calls under way in this process. A posting left in `sending` by a process that
    died is due, as is one whose outcome is unknown; those come first, then by stamp. Nothing is due while paused, nor
    for a meter that is halted or not live. One row a lane: a customer's backlog never hides another customer.
    """
    with read_snapshot(engine) as connection:
        controls = read_controls(connection)
        if PAUSED in controls:
            return []
        halted = {name.removeprefix(HALTED) for name in controls if name.startswith(HALTED)}
        terms = load_terms(connection)
        sendable = [m for m, t in terms.items() if t.event_name not in halted and t.send == "live"]
        order = (func.coalesce(postings.c.first_sent_ms, _NEVER_MS), postings.c.timestamp_s, postings.c.seq)
        ranked = (
            select(
                postings.c.posting_key,
                postings.c.seq,
                func.row_number()
                .over(partition_by=(postings.c.customer_id, postings.c.meter_id), order_by=order)
                .label("place"),
            )
            .where(
                and_(
                    postings.c.state.in_(_DUE),
                    postings.c.meter_id.in_(sendable),
                    func.coalesce(postings.c.retry_ms, 0) <= now_ms,
                )
            )
            .subquery()
        )
        open_period = (
            select(func.min(item_periods.c.period_end_ms))
            .where(
                and_(
                    item_periods.c.customer_id == postings.c.customer_id,
                    item_periods.c.state == "open",
                    item_periods.c.period_start_ms <= postings.c.timestamp_s * 1000,
                    item_periods.c.period_end_ms > postings.c.timestamp_s * 1000,
                )
            )
            .scalar_subquery()
        )
        rows = connection.execute(
            select(postings, open_period.label("period_end_ms"), customers.c.deleted)
            .join_from(
                postings,
                ranked,
                and_(ranked.c.posting_key == postings.c.posting_key, ranked.c.seq == postings.c.seq),
            )
            .join(customers, customers.c.customer_id == postings.c.customer_id, isouter=True)
            .where(ranked.c.place == 1)
            .order_by(*order)
            .limit(limit + len(busy))
        ).all()
    return [
        DuePosting(
            posting_from_row(row), terms[row.meter_id].event_name, bool(row.deleted), row.period_end_ms
        )
        for row in rows
        if (row.customer_id, terms[row.meter_id].event_name) not in busy
    ]


def load_meter_terms(engine: Engine) -> dict[int, MeterTerms]:
    """Every meter version that has a Stripe target, by meter id."""
    with read_snapshot(engine) as connection:
        return load_terms(connection)


def load_settlement(engine: Engine, posting: Posting, event_name: str) -> SettlementView:
    """The ledger's side of the comparison with Stripe's summary of the posting's UTC hour."""
    hour_s = posting.timestamp_s - posting.timestamp_s % 3600
    with read_snapshot(engine) as connection:
        terms = load_terms(connection)
        same_meter = [meter_id for meter_id, t in terms.items() if t.event_name == event_name]
        rows = connection.execute(
            select(postings).where(
                and_(
                    postings.c.customer_id == posting.customer_id,
                    postings.c.meter_id.in_(same_meter),
                    postings.c.mode == PostingMode.DELTA,
                    postings.c.timestamp_s >= hour_s,
                    postings.c.timestamp_s < hour_s + 3600,
                )
            )
        )
        found = [posting_from_row(row) for row in rows]
    return SettlementView(
        delivered=sum((p.quantity for p in found if p.state in AT_STRIPE), Decimal(0)),
        # Parked ones that were tried belong here too: what they were parked for does not say where they are.
        unsure=tuple(p for p in found if p.state in UNSETTLED and p.first_sent_ms is not None),
        newest_ms=max((p.last_sent_ms or 0 for p in found), default=0),
    )


def count_states(engine: Engine) -> tuple[dict[str, int], dict[str, int], int | None]:
    """Unsettled postings by state, holds by reason, and when the oldest unsettled posting was planned (epoch ms)."""
    with read_snapshot(engine) as connection:
        states = connection.execute(
            select(postings.c.state, func.count(), func.min(postings.c.planned_ms))
            .where(postings.c.state.in_(UNSETTLED))
            .group_by(postings.c.state)
        ).all()
        reasons = connection.execute(select(holds.c.reason, func.count()).group_by(holds.c.reason)).all()
    oldest = min((row[2] for row in states), default=None)
    return {row[0]: row[1] for row in states}, {row[0]: row[1] for row in reasons}, oldest


# ----------------------------------------------------------------------------------------------- journal


def mark_journalled(
    engine: Engine,
    lease: Lease,
    refs: Sequence[tuple[str, int]],
    positions: Mapping[int, int],
    now_ms: int,
) -> None:
    """Planned postings are in the journal, whose partitions are now known up to `positions` (next offsets).

    A delta becomes `journalled`, a dry run and a reversal end here. Raises LeaseLost.
    """
    with ledger_transaction(engine) as connection:
        fence(connection, lease)
        for chunk in _chunks(refs):
            for mode, state in _CLOSED_BY_JOURNALLING.items():
                done = {} if state is PostingState.JOURNALLED else {"settled_ms": now_ms}
                connection.execute(
                    update(postings)
                    .where(
                        and_(
                            tuple_(postings.c.posting_key, postings.c.seq).in_(chunk),
                            postings.c.state == PostingState.PLANNED,
                            postings.c.mode == mode,
                        )
                    )
                    .values(state=str(state), lease_version=lease.version, **done)
                )
        _advance_journal(connection, positions, now_ms)


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

    A missing delta is imported as `unknown`: the process that wrote it may have sent it. Planning then waits until
    every partition's progress has reached what the imported postings were planned from. Raises LeaseLost, and
    InvariantViolated when the ledger has another posting under the same key and sequence number.
    """
    with ledger_transaction(engine) as connection:
        fence(connection, lease)
        wanted = {(entry.posting_key, entry.seq): entry for entry in entries}
        present: dict[tuple[str, int], str] = {}
        for chunk in _chunks(sorted(wanted)):
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
            _wait_for_counts(connection, missing, now_ms)
        _advance_journal(connection, positions, now_ms)
    return ImportReport(read=len(entries), imported=len(missing))


def _imported(entry: JournalEntry, lease: Lease, now_ms: int) -> dict[str, Any]:
    mode = PostingMode(entry.mode)
    state = PostingState.UNKNOWN if mode is PostingMode.DELTA else _CLOSED_BY_JOURNALLING[mode]
    may_have_been_sent = mode is PostingMode.DELTA
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
        # The earliest it can have been sent: the horizon of blind resending counts from there.
        "first_sent_ms": entry.planned_ms if may_have_been_sent else None,
        "last_sent_ms": entry.planned_ms if may_have_been_sent else None,
        "retry_ms": None,
        "settled_ms": None if may_have_been_sent else now_ms,
        "request_id": None,
        "error": "imported from the journal",
        "planned_ms": entry.planned_ms,
        "planned_from": {str(p): offset for p, offset in entry.planned_from.items()},
        "lease_version": lease.version,
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
            known = int(controls.get(f"{WAIT}{partition}", "0"))
            waits[partition] = max(waits.get(partition, known), offset)
    write_controls(connection, {f"{WAIT}{p}": str(offset) for p, offset in waits.items()}, now_ms)


def _advance_journal(connection: Connection, positions: Mapping[int, int], now_ms: int) -> None:
    write_controls(connection, {f"{JOURNALLED_TO}{p}": str(o) for p, o in positions.items()}, now_ms)


# ----------------------------------------------------------------------------------------------- sending


def mark_sending(
    engine: Engine, lease: Lease, refs: Sequence[tuple[str, int]], now_ms: int
) -> frozenset[tuple[str, int]]:
    """Calls for `refs` are about to be made: from here Stripe may have them. Returns those that may go.

    One that an operator parked in between is not among them. Raises LeaseLost: then no call may be made.
    """
    allowed: set[tuple[str, int]] = set()
    with ledger_transaction(engine) as connection:
        fence(connection, lease)
        for chunk in _chunks(refs):
            place = tuple_(postings.c.posting_key, postings.c.seq)
            rows = connection.execute(
                update(postings)
                .where(and_(place.in_(chunk), postings.c.state.in_(_DUE)))
                .values(
                    state=str(PostingState.SENDING),
                    first_sent_ms=func.coalesce(postings.c.first_sent_ms, now_ms),
                    last_sent_ms=now_ms,
                    lease_version=lease.version,
                )
                .returning(postings.c.posting_key, postings.c.seq)
            )
            allowed.update((row.posting_key, row.seq) for row in rows)
    return frozenset(allowed)


def record_outcomes(engine: Engine, lease: Lease, outcomes: Sequence[Outcome], now_ms: int) -> None:
    """What became of calls. Raises LeaseLost: the new leader then finds them in `sending` and asks again.

    A void posting's slots are put where the next planning finds them.
    """
    final = (*AT_STRIPE, PostingState.VOID)
    with ledger_transaction(engine) as connection:
        fence(connection, lease)
        by_columns: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for outcome in outcomes:
            values: dict[str, Any] = {
                "state": str(outcome.state),
                "retry_ms": outcome.retry_ms,
                "lease_version": lease.version,
                "error": outcome.error,
            }
            if outcome.certain:
                values["first_sent_ms"] = None
            if outcome.state in final:
                values["settled_ms"] = now_ms
            if outcome.idempotency_key is not None:
                values["idempotency_key"] = outcome.idempotency_key
            if outcome.request_id is not None:
                values["request_id"] = outcome.request_id
            row = {f"new_{name}": value for name, value in values.items()}
            row |= {"at_key": outcome.posting_key, "at_seq": outcome.seq, "tried": int(outcome.attempted)}
            by_columns.setdefault(tuple(sorted(values)), []).append(row)
        for columns, rows in by_columns.items():
            connection.execute(
                update(postings)
                .where(
                    and_(
                        postings.c.posting_key == bindparam("at_key"),
                        postings.c.seq == bindparam("at_seq"),
                        or_(*(postings.c.state == str(state) for state in _DUE)),  # IN refuses executemany
                    )
                )
                .values(
                    attempts=postings.c.attempts + bindparam("tried"),
                    **{name: bindparam(f"new_{name}") for name in columns},
                ),
                rows,
            )
        voided = sorted({o.posting_key for o in outcomes if o.state is PostingState.VOID})
        reopen_chains(connection, voided, now_ms)


def reopen_chains(connection: Connection, keys: Sequence[str], now_ms: int) -> None:
    """Put every slot of these chains among the held, as in flight: the next planning looks at them."""
    for chunk in _chunks(keys):
        rows = connection.execute(
            select(
                attributions.c.meter_id,
                attributions.c.window_start_ms,
                attributions.c.account,
                func.min(usage.c.latest_event_ms),
            )
            .join_from(
                attributions,
                usage,
                and_(
                    usage.c.account == attributions.c.account,
                    usage.c.meter_id == attributions.c.meter_id,
                    usage.c.window_start_ms == attributions.c.window_start_ms,
                ),
            )
            .where(attributions.c.posting_key.in_(chunk))
            .group_by(attributions.c.meter_id, attributions.c.window_start_ms, attributions.c.account)
        ).all()
        put(
            connection,
            holds,
            [
                {
                    "meter_id": row.meter_id,
                    "window_start_ms": row.window_start_ms,
                    "account": row.account,
                    "reason": str(HoldReason.IN_FLIGHT),
                    "quantity": Decimal(0),  # the next planning says how much
                    "since_ms": now_ms,
                }
                for row in rows
            ],
        )


def apply_rejections(engine: Engine, lease: Lease, now_ms: int) -> list[Refusal]:
    """Void every posting that a meter error report names; planning then continues its chain.

    Matched by identifier and not by a cursor: reports are written by another service in any order. One whose call is
    under way is left for the next look. Raises LeaseLost.
    """
    open_states = [str(s) for s in (*AT_STRIPE, *UNSETTLED) if s is not PostingState.SENDING]
    with ledger_transaction(engine) as connection:
        fence(connection, lease)
        rows = connection.execute(
            select(
                postings.c.posting_key,
                postings.c.seq,
                postings.c.meter_id,
                rejections.c.code,
                rejections.c.message,
            )
            .join_from(rejections, postings, postings.c.identifier == rejections.c.identifier)
            .where(postings.c.state.in_(open_states))
        ).all()
        if not rows:
            return []
        terms = load_terms(connection)
        refused = []
        for row in rows:
            connection.execute(
                update(postings)
                .where(and_(postings.c.posting_key == row.posting_key, postings.c.seq == row.seq))
                .values(
                    state=str(PostingState.VOID),
                    error=f"rejected:{row.code}:{row.message}",
                    settled_ms=now_ms,
                    lease_version=lease.version,
                )
            )
            event_name = terms[row.meter_id].event_name if row.meter_id in terms else ""
            refused.append(Refusal(row.posting_key, row.seq, event_name, row.code))
        reopen_chains(connection, sorted({r.posting_key for r in refused}), now_ms)
    return refused


def halt_meter(engine: Engine, event_name: str, reason: str | None, now_ms: int) -> None:
    """Send nothing to the Billing Meter called `event_name` (None: go on). Its postings wait where they are."""
    with ledger_transaction(engine) as connection:
        write_controls(connection, {f"{HALTED}{event_name}": reason}, now_ms)


def has_unjournalled(engine: Engine) -> bool:
    """Whether any posting waits for the journal."""
    with read_snapshot(engine) as connection:
        return bool(
            connection.execute(select(exists().where(postings.c.state == PostingState.PLANNED))).scalar()
        )


def posting_from_row(row: Any) -> Posting:
    """A row of `postings` as a value."""
    return Posting(
        posting_key=row.posting_key,
        seq=row.seq,
        customer_id=row.customer_id,
        meter_id=row.meter_id,
        window_start_ms=row.window_start_ms,
        quantity_from=row.quantity_from,
        quantity_to=row.quantity_to,
        mode=PostingMode(row.mode),
        identifier=row.identifier,
        idempotency_key=row.idempotency_key,
        timestamp_s=row.timestamp_s,
        body=row.body,
        state=PostingState(row.state),
        attempts=row.attempts,
        first_sent_ms=row.first_sent_ms,
        last_sent_ms=row.last_sent_ms,
        retry_ms=row.retry_ms,
        settled_ms=row.settled_ms,
        request_id=row.request_id,
        error=row.error,
        planned_ms=row.planned_ms,
        planned_from={int(p): offset for p, offset in row.planned_from.items()},
        lease_version=row.lease_version,
    )


def _chunks(refs: Sequence[Any]) -> Iterable[list[Any]]:
    for start in range(0, len(refs), CHUNK):
        yield list(refs[start : start + CHUNK])
