"""Postings as reconciliation sees them, for its tests."""

from __future__ import annotations

from decimal import Decimal

from tollgate.metering.reconciliation import Effect, Link, Standing

HOUR = 3600


def link(
    seq: int,
    quantity: int | str,
    standing: Standing = Standing.AT_STRIPE,
    *,
    key: str = "k",
    at_s: int = 0,
    sent: int | str | None = None,
    sent_ms: int | None = 1,
    effect: Effect = Effect.ADDS,
    state: str = "delivered",
) -> Link:
    """A posting of chain `key` that adds `quantity` and tells Stripe `sent` (the same by default)."""
    return Link(
        posting_key=key,
        seq=seq,
        stamp_s=at_s,
        quantity=Decimal(quantity),
        sent=Decimal(quantity if sent is None else sent),
        effect=effect,
        standing=standing,
        state=state,
        last_sent_ms=sent_ms,
        settled_ms=sent_ms,
    )


def of(*values: object) -> tuple[object, ...]:
    """Values side by side, to be compared with plain numbers."""
    return values
