"""Postings as operators see and steer them: list, park, resume, settle by hand, what is held, pause and hurry.

Owns the operators' changes of a posting's state. It refuses to know planning (`planning.py`), sending (`sending.py`)
and rules. These changes carry no lease: each is one conditional statement, and none touches a posting whose call is
under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import ColumnElement, Engine, Text, and_, case, cast, func, not_, select, update

from tollgate.ledger.anomalies import PARKED_AS_ANOMALY
from tollgate.ledger.candidates import request_scan
from tollgate.ledger.controls import (
    HALTED,
    PAUSED,
    is_paused,
    load_controls,
    request_sync_now,
    set_paused,
)
from tollgate.ledger.engine import ledger_transaction, read_snapshot
from tollgate.ledger.holding import reopen_chains
from tollgate.ledger.plan_rows import HoldReason, Slot
from tollgate.ledger.posting_rows import (
    AT_STRIPE,
    UNSETTLED,
    Posting,
    PostingMode,
    PostingState,
    posting_from_row,
)
from tollgate.ledger.tables import holds, meters, postings

__all__ = [
    "AT_STRIPE",
    "HALTED",
    "PAUSED",
    "UNSETTLED",
    "HeldUsage",
    "HoldReason",
    "Posting",
    "PostingMode",
    "PostingState",
    "PostingSummary",
    "held_summary",
    "is_paused",
    "list_holds",
    "list_postings",
    "load_controls",
    "park_posting",
    "post_dry_run",
    "posting_summary",
    "request_sync_now",
    "resume_posting",
    "set_paused",
    "settle_posting",
]

_PARKABLE = (PostingState.PLANNED, PostingState.JOURNALLED, PostingState.UNKNOWN)


@dataclass(frozen=True, slots=True)
class HeldUsage:
    """Usage that is not posted, and why. `quantity` is what Stripe lacks; several slots of one chain share it."""

    slot: Slot
    meter: str
    reason: HoldReason
    quantity: Decimal
    since_ms: int


@dataclass(frozen=True, slots=True)
class PostingSummary:
    """Postings of one state: how many, and their quantity."""

    state: PostingState
    postings: int
    quantity: Decimal


def list_postings(
    engine: Engine,
    state: PostingState | str | None = None,
    customer: str | None = None,
    limit: int = 100,
    posting_key: str | None = None,
) -> list[Posting]:
    """The newest postings first, of a state, a customer, a chain, or all."""
    wanted = select(postings)
    if state is not None:
        wanted = wanted.where(postings.c.state == str(PostingState(state)))
    if customer is not None:
        wanted = wanted.where(postings.c.customer_id == customer)
    if posting_key is not None:
        wanted = wanted.where(postings.c.posting_key == posting_key)
    wanted = wanted.order_by(postings.c.planned_ms.desc(), postings.c.posting_key, postings.c.seq.desc())
    with read_snapshot(engine) as connection:
        return [posting_from_row(row) for row in connection.execute(wanted.limit(limit))]


def posting_summary(engine: Engine) -> list[PostingSummary]:
    """Number and quantity of the postings of each state."""
    found: dict[str, tuple[int, Decimal]] = {}
    with read_snapshot(engine) as connection:
        columns = select(postings.c.state, postings.c.quantity_from, postings.c.quantity_to)
        for row in connection.execute(columns).yield_per(10_000):
            count, quantity = found.get(row.state, (0, Decimal(0)))
            found[row.state] = count + 1, quantity + row.quantity_to - row.quantity_from
    return [PostingSummary(PostingState(state), *found[state]) for state in sorted(found)]


def park_posting(engine: Engine, posting_key: str, seq: int, reason: str) -> bool:
    """Stop a posting until it is resumed. False when it is being sent, settled, or not there."""
    with ledger_transaction(engine) as connection:
        parked = connection.execute(
            update(postings)
            .where(_one(posting_key, seq, _PARKABLE))
            .values(state=str(PostingState.PARKED), error=reason)
        )
        return parked.rowcount == 1


def resume_posting(engine: Engine, posting_key: str, seq: int) -> bool:
    """Let a parked posting go on, under a new idempotency key and its old identifier. False when it is not parked.

    An anomaly is not: it is released (`release_anomaly`), which is audited.
    One that may already be at Stripe goes on as `unknown`: past Stripe's horizon it is settled, never resent blindly.
    """
    with ledger_transaction(engine) as connection:
        resumed = connection.execute(
            update(postings)
            .where(_one(posting_key, seq, (PostingState.PARKED,)), not_(PARKED_AS_ANOMALY))
            .values(
                state=case(
                    (postings.c.first_sent_ms.is_(None), str(PostingState.PLANNED)),
                    else_=str(PostingState.UNKNOWN),
                ),
                # Stripe replays a stored 400 to the same key for a day: asking again needs a new one. But nothing
                # else than its key keeps an invoice item that may be there already from being made again.
                idempotency_key=case(
                    (
                        and_(
                            postings.c.mode == str(PostingMode.INVOICE_ITEM),
                            postings.c.first_sent_ms.is_not(None),
                        ),
                        postings.c.idempotency_key,
                    ),
                    else_=postings.c.identifier + ":r" + cast(postings.c.attempts, Text),
                ),
                retry_ms=None,
                error=None,
            )
        )
        return resumed.rowcount == 1


def settle_posting(engine: Engine, posting_key: str, seq: int, *, delivered: bool, now_ms: int) -> bool:
    """An operator says whether Stripe has a parked posting. False when it is not parked.

    Not delivered: it becomes void, its quantity is taken back in the chain and planned again.
    """
    state = PostingState.SETTLED if delivered else PostingState.VOID
    with ledger_transaction(engine) as connection:
        settled = connection.execute(
            update(postings)
            .where(_one(posting_key, seq, (PostingState.PARKED,)))
            .values(state=str(state), settled_ms=now_ms, error="settled by an operator")
        )
        if settled.rowcount != 1:
            return False
        reopen_chains(connection, [posting_key], now_ms)
        return True


def post_dry_run(engine: Engine, meter_id: int, now_ms: int) -> int:
    """Have everything a meter has only rehearsed posted for real, once its `send` is live. Returns the postings undone.

    Each dry-run link becomes void, is taken back by a reversal, and its quantity is planned again.
    """
    with ledger_transaction(engine) as connection:
        undone = connection.execute(
            update(postings)
            .where(and_(postings.c.meter_id == meter_id, postings.c.state == PostingState.DRY_RUN))
            .values(state=str(PostingState.VOID), settled_ms=now_ms)
        ).rowcount
        request_scan(connection, meter_id, now_ms)
        return undone


def list_holds(engine: Engine, reason: HoldReason | str | None = None, limit: int = 1000) -> list[HeldUsage]:
    """Held usage, the oldest first, of one reason or all but the harmless `in_flight`."""
    wanted = (
        select(holds, meters.c.name.label("meter"))
        .join_from(holds, meters, meters.c.meter_id == holds.c.meter_id)
        .order_by(holds.c.since_ms, holds.c.meter_id, holds.c.window_start_ms, holds.c.account)
        .limit(limit)
    )
    if reason is not None:
        wanted = wanted.where(holds.c.reason == str(HoldReason(reason)))
    else:
        wanted = wanted.where(holds.c.reason != str(HoldReason.IN_FLIGHT))
    with read_snapshot(engine) as connection:
        return [
            HeldUsage(
                slot=Slot(row.meter_id, row.window_start_ms, row.account),
                meter=row.meter,
                reason=HoldReason(row.reason),
                quantity=row.quantity,
                since_ms=row.since_ms,
            )
            for row in connection.execute(wanted)
        ]


def held_summary(engine: Engine) -> dict[HoldReason, int]:
    """How many slots are held for each reason."""
    with read_snapshot(engine) as connection:
        rows = connection.execute(select(holds.c.reason, func.count()).group_by(holds.c.reason))
        return {HoldReason(row[0]): row[1] for row in rows}


def _one(posting_key: str, seq: int, states: Sequence[PostingState]) -> ColumnElement[bool]:
    return and_(
        postings.c.posting_key == posting_key,
        postings.c.seq == seq,
        postings.c.state.in_([str(state) for state in states]),
    )
