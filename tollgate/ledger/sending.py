"""What happens to a posting after it was journalled: sent, its outcome recorded, refused later.

Owns every change of a posting's state that the sender makes, each fenced by its lease. It refuses to know how Stripe
is called and what an answer means.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import Engine, Executable, Update, and_, bindparam, func, or_, select, tuple_, update

from tollgate.ledger.chunks import chunks
from tollgate.ledger.controls import HALTED, write_controls
from tollgate.ledger.engine import ledger_transaction
from tollgate.ledger.holding import reopen_chains
from tollgate.ledger.leases import Lease, fence
from tollgate.ledger.meter_terms import load_terms
from tollgate.ledger.posting_rows import (
    AT_STRIPE,
    REPLACING_MODES,
    SENDABLE,
    UNSETTLED,
    Outcome,
    PostingState,
    Refusal,
)
from tollgate.ledger.superseding import supersede_older
from tollgate.ledger.tables import postings, rejections


def mark_sending(
    engine: Engine, lease: Lease, refs: Sequence[tuple[str, int]], now_ms: int
) -> frozenset[tuple[str, int]]:
    """Calls for `refs` are about to be made: from here Stripe may have them. Returns those that may go.

    One that an operator parked in between is not among them. Unsent totals that a newer one among them replaces end
    as superseded: from here they could only undo it. Raises LeaseLost: then no call may be made.
    """
    allowed: set[tuple[str, int]] = set()
    with ledger_transaction(engine) as connection:
        fence(connection, lease)
        for chunk in chunks(refs):
            rows = connection.execute(
                _mark_sending(), {"refs": chunk, "at_ms": now_ms, "held_version": lease.version}
            )
            marked = {(row.posting_key, row.seq): row.mode for row in rows}
            supersede_older(
                connection, lease, [r for r, mode in marked.items() if mode in REPLACING_MODES], now_ms
            )
            allowed.update(marked)
    return frozenset(allowed)


@cache
def _mark_sending() -> Executable:
    """Kept, as `_record_outcome` is: every call to Stripe has both, and building them cost more than running them."""
    place = tuple_(postings.c.posting_key, postings.c.seq)
    return (
        update(postings)
        .where(and_(place.in_(bindparam("refs", expanding=True)), postings.c.state.in_(SENDABLE)))
        .values(
            state=str(PostingState.SENDING),
            first_sent_ms=func.coalesce(postings.c.first_sent_ms, bindparam("at_ms")),
            last_sent_ms=bindparam("at_ms"),
            lease_version=bindparam("held_version"),
        )
        .returning(postings.c.posting_key, postings.c.seq, postings.c.mode)
    )


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
            connection.execute(_record_outcome(columns), rows)
        voided = sorted({o.posting_key for o in outcomes if o.state is PostingState.VOID})
        reopen_chains(connection, voided, now_ms)


@cache
def _record_outcome(columns: tuple[str, ...]) -> Update:
    return (
        update(postings)
        .where(
            and_(
                postings.c.posting_key == bindparam("at_key"),
                postings.c.seq == bindparam("at_seq"),
                or_(*(postings.c.state == str(state) for state in SENDABLE)),  # IN refuses executemany
            )
        )
        .values(
            attempts=postings.c.attempts + bindparam("tried"),
            **{name: bindparam(f"new_{name}") for name in columns},
        )
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
