"""Chains of totals that replace: which of their links may go, and which end unsent.

Owns the order in them, never an older total after a newer one, and every change to and from `superseded`. It refuses
to know chains whose links add up: there each link is sent, one after the other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import ColumnElement, Connection, and_, bindparam, exists, func, not_, or_, select, update

from tollgate.ledger.chunks import chunks
from tollgate.ledger.leases import Lease
from tollgate.ledger.posting_rows import (
    AT_STRIPE,
    REPLACING_MODES,
    SENDABLE,
    UNSENT,
    UNSETTLED,
    PostingState,
)
from tollgate.ledger.tables import postings


def has_its_turn() -> ColumnElement[bool]:
    """Whether a posting's place in its chain lets it go: always, but for totals that replace.

    Never an older one after a newer one: an unsent total stands back for a newer one, and a newer one waits while an
    older one may still reach Stripe or an operator has it.
    """
    other = postings.alias("other")
    newer = exists().where(
        and_(
            other.c.posting_key == postings.c.posting_key,
            other.c.seq > postings.c.seq,
            other.c.state.in_(SENDABLE),
        )
    )
    older = exists().where(
        and_(
            other.c.posting_key == postings.c.posting_key,
            other.c.seq < postings.c.seq,
            other.c.state.in_(UNSETTLED),
            or_(other.c.first_sent_ms.is_not(None), other.c.state == PostingState.PARKED),
        )
    )
    stands_back = and_(postings.c.first_sent_ms.is_(None), newer)
    return or_(postings.c.mode.not_in(REPLACING_MODES), not_(or_(stands_back, older)))


def supersede_older(
    connection: Connection, lease: Lease, newer: Sequence[tuple[str, int]], now_ms: int
) -> None:
    """Close the unsent links before each of `newer` in its chain."""
    chains = [{"of_chain": key, "below": seq} for key, seq in newer if seq > 1]
    if not chains:
        return
    connection.execute(
        update(postings)
        .where(
            and_(
                postings.c.posting_key == bindparam("of_chain"),
                postings.c.seq < bindparam("below"),
                or_(*(postings.c.state == str(s) for s in UNSENT)),  # IN refuses executemany
                or_(*(postings.c.mode == str(m) for m in REPLACING_MODES)),
                postings.c.first_sent_ms.is_(None),
            )
        )
        .values(state=str(PostingState.SUPERSEDED), settled_ms=now_ms, lease_version=lease.version),
        chains,
    )


def keep_newest(connection: Connection, lease: Lease, keys: Collection[str], now_ms: int) -> None:
    """Of each of these chains of totals that replace, only the newest link stays open."""
    for key in sorted(keys):
        of_chain = and_(
            postings.c.posting_key == key,
            postings.c.mode.in_(REPLACING_MODES),
            postings.c.state != PostingState.VOID,
        )
        newest = connection.execute(select(func.max(postings.c.seq)).where(of_chain)).scalar()
        connection.execute(
            update(postings)
            .where(and_(of_chain, postings.c.seq < (newest or 0), postings.c.state.in_(UNSETTLED)))
            .values(state=str(PostingState.SUPERSEDED), settled_ms=now_ms, lease_version=lease.version)
        )


def void_uncarried(connection: Connection, keys: Sequence[str], now_ms: int) -> None:
    """Superseded links of these chains that no later link carries, as the one that was to is void, are void as well."""
    if not keys:
        return
    other = postings.alias("other")
    carried = exists().where(
        and_(
            other.c.posting_key == postings.c.posting_key,
            other.c.seq > postings.c.seq,
            other.c.state.in_((*AT_STRIPE, *UNSETTLED)),
        )
    )
    for chunk in chunks(keys):
        connection.execute(
            update(postings)
            .where(
                and_(
                    postings.c.posting_key.in_(chunk),
                    postings.c.state == PostingState.SUPERSEDED,
                    not_(carried),
                )
            )
            .values(state=str(PostingState.VOID), settled_ms=now_ms)
        )
