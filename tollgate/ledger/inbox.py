"""The inbox: which webhook events are done, the numbers their fetches carry, and what Stripe refused afterwards.

Owns the rows of `stripe_inbox`, `stripe_sequence` and `rejections`, on a transaction of the caller. It refuses to
know what an event means.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from tollgate.ledger.billing import Receipt, Rejection
from tollgate.ledger.engine import Engine, read_snapshot
from tollgate.ledger.tables import rejections, stripe_inbox, stripe_sequence

FAILED = "failed:"
"""How the outcome of a parked event begins. Such an event is tried again when Stripe (or an operator) resends it."""


@dataclass(frozen=True, slots=True)
class RecordedRejection:
    """A rejection as stored. Those with a higher `sequence` were committed later: a reader may keep a cursor."""

    sequence: int
    identifier: str
    code: str
    message: str
    event_id: str
    reported_ms: int


@dataclass(frozen=True, slots=True)
class ParkedEvent:
    """An event that could not be projected, and why."""

    event_id: str
    type: str
    object_id: str
    customer_id: str
    created_s: int
    outcome: str


def next_sequence(connection: Connection) -> int:
    """The next number. Its row stays locked until the transaction ends, so numbers are committed in order."""
    raised = connection.execute(
        update(stripe_sequence).where(stripe_sequence.c.id == 1).values(value=stripe_sequence.c.value + 1)
    )
    if raised.rowcount == 0:
        connection.execute(insert(stripe_sequence).values(id=1, value=1))
    return int(
        connection.execute(select(stripe_sequence.c.value).where(stripe_sequence.c.id == 1)).scalar_one()
    )


def done_events(connection: Connection, event_ids: Collection[str], *, with_failed: bool) -> frozenset[str]:
    """Those of `event_ids` that are in the inbox; the parked ones among them only `with_failed`."""
    query = select(stripe_inbox.c.event_id).where(stripe_inbox.c.event_id.in_(list(event_ids)))
    if not with_failed:
        query = query.where(~stripe_inbox.c.outcome.startswith(FAILED, autoescape=True))
    return frozenset(connection.scalars(query))


def record_event(connection: Connection, receipt: Receipt, outcome: str, now_ms: int) -> None:
    """Remember that an event is done; a parked one is replaced, a projected one never is."""
    stored = connection.scalar(
        select(stripe_inbox.c.outcome).where(stripe_inbox.c.event_id == receipt.event_id)
    )
    if stored is not None:
        if not stored.startswith(FAILED):
            return
        connection.execute(delete(stripe_inbox).where(stripe_inbox.c.event_id == receipt.event_id))
    connection.execute(
        insert(stripe_inbox).values(
            event_id=receipt.event_id,
            type=receipt.type,
            object_id=receipt.object_id,
            customer_id=receipt.customer_id,
            created_s=receipt.created_s,
            projected_ms=now_ms,
            outcome=outcome,
        )
    )


def record_rejections(connection: Connection, event_id: str, found: Sequence[Rejection]) -> int:
    """Store refusals not yet stored, each under a number of its own; how many were new.

    The first report of an identifier stays: a corrected event is sent under a new one.
    """
    new = 0
    for rejection in found:
        known = connection.scalar(
            select(rejections.c.identifier).where(rejections.c.identifier == rejection.identifier)
        )
        if known is not None:
            continue
        connection.execute(
            insert(rejections).values(
                identifier=rejection.identifier,
                event_id=event_id,
                code=rejection.code,
                message=rejection.message,
                reported_ms=rejection.reported_ms,
                sequence=next_sequence(connection),
            )
        )
        new += 1
    return new


def list_rejections(engine: Engine, after_sequence: int = 0) -> tuple[RecordedRejection, ...]:
    """Refusals numbered above `after_sequence`, in the order they were committed."""
    query = select(rejections).where(rejections.c.sequence > after_sequence).order_by(rejections.c.sequence)
    with read_snapshot(engine) as connection:
        return tuple(RecordedRejection(**row) for row in connection.execute(query).mappings())


def list_parked_events(engine: Engine) -> tuple[ParkedEvent, ...]:
    """Events that failed for good and wait for an operator, oldest first."""
    columns = [stripe_inbox.c[name] for name in ParkedEvent.__slots__]
    query = (
        select(*columns)
        .where(stripe_inbox.c.outcome.startswith(FAILED, autoescape=True))
        .order_by(stripe_inbox.c.created_s, stripe_inbox.c.event_id)
    )
    with read_snapshot(engine) as connection:
        return tuple(ParkedEvent(**row) for row in connection.execute(query).mappings())
