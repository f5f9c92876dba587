"""Ending a subscription so that what was used is billed: flush first, then cancel with a last invoice.

Owns the order. It refuses to know how usage is counted, planned and sent: it asks for that and waits until it is done.

Stripe drops usage it has not got when a subscription ends, and by default what it has as well. So: 1. everything
ingested so far is counted, by the ticks; 2. all of it is settled at Stripe; 3. Stripe's own preview shows it; 4. only
then is the subscription ended, with `invoice_now`. Until the last step nothing has been changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.cli.gateway import Json
from services.cli.preview_lines import Conversation as PreviewConversation
from services.cli.preview_lines import SubscriptionPreview, preview_subscription
from tollgate.ledger.completeness import Span, load_unsettled, load_watermark
from tollgate.ledger.controls import request_sync_now
from tollgate.ledger.engine import Engine
from tollgate.metering.finalization import Incomplete
from tollgate.metering.preview import Agreement

ENDED_STATUSES = ("canceled", "incomplete_expired")

POLL_SECONDS = 1.0
STRIPE_POLL_SECONDS = 10.0
"""Stripe's sums may be minutes behind, and each look costs a few reads."""

SILENCE_MS = 10 * 60 * 1000
"""After how much of the log without a tick an ingest instance is taken to be gone."""


class NotCancelled(Exception):
    """Nothing was changed at Stripe; the message says why."""


class Conversation(PreviewConversation, Protocol):
    """What this file asks of the gateway."""

    def cancel_subscription(self, subscription_id: str, *, invoice_now: bool) -> Json: ...


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A subscription that has ended. The amount is in the currency's minor unit."""

    subscription_id: str
    customer_id: str
    invoice_id: str | None
    amount: int
    currency: str


def flush_then_cancel(
    engine: Engine,
    stripe: Conversation,
    subscription_id: str,
    *,
    now_ms: Callable[[], int],
    wait: Callable[[float], None],
    say: Callable[[str], None],
    drain_ms: int,
    timeout_ms: int,
    anyway: bool = False,
) -> Cancelled:
    """End a subscription once all its usage is at Stripe. Raises NotCancelled, StripeUnreachable, LedgerError.

    `drain_ms`: how long after now events of before may still be ingested. `anyway`: end it although usage is held, or
    after `timeout_ms` although some is still on its way.
    """
    subscription = stripe.retrieve(f"/v1/subscriptions/{subscription_id}")
    if subscription["status"] in ENDED_STATUSES:
        raise NotCancelled(f"{subscription_id} has ended already")
    customer_id, began_ms = subscription["customer"], now_ms()
    preview = preview_subscription(engine, stripe, subscription, began_ms, 0)
    spans = [Span(customer_id, item.event_name, item.start_ms, item.end_ms) for item in preview.items]
    said = ""
    while True:
        pause_seconds = POLL_SECONDS
        missing = _missing_here(engine, spans, began_ms + drain_ms, now_ms())
        if missing is None:
            preview = preview_subscription(engine, stripe, subscription, now_ms(), 0)
            missing, pause_seconds = _missing_at_stripe(preview), STRIPE_POLL_SECONDS
        if missing is None:
            break
        if now_ms() - began_ms >= timeout_ms:
            if not anyway:
                raise NotCancelled(f"{missing}; nothing was cancelled")
            say(f"{missing}; cancelling all the same")
            break
        if missing != said:
            say(missing)
            said = missing
        request_sync_now(engine, now_ms())
        wait(pause_seconds)
    held = _what_is_held(preview)
    if held is not None and not anyway:
        raise NotCancelled(
            f"{held}; see `tollgate held`, or cancel with --anyway and leave it off the invoice"
        )
    ended = stripe.cancel_subscription(subscription_id, invoice_now=True)
    invoice_id = ended.get("latest_invoice")
    invoice = {} if not invoice_id else stripe.retrieve(f"/v1/invoices/{invoice_id}")
    return Cancelled(
        subscription_id,
        customer_id,
        str(invoice_id) if invoice_id else None,
        int(invoice.get("total") or 0),
        str(invoice.get("currency") or subscription["currency"]),
    )


def _missing_here(engine: Engine, spans: Sequence[Span], counted_ms: int, at_ms: int) -> str | None:
    """What has to happen before all usage is delivered, or None."""
    watermark = load_watermark(engine, at_ms, SILENCE_MS)
    if watermark.until_ms < counted_ms:
        of = f" (partition {watermark.partition}, {watermark.instance or 'no ingest instance'})"
        return f"waiting until everything ingested is counted{of}"
    unsettled = load_unsettled(engine, spans)
    if Incomplete.PARKED in unsettled.values():
        return "a posting is parked; see `tollgate postings list --state parked`"
    return "waiting until everything counted is at Stripe" if unsettled else None


def _missing_at_stripe(preview: SubscriptionPreview) -> str | None:
    """What Stripe does not show yet of what it has taken, or None."""
    lagging = [item for item in preview.items if item.compared.agreement is not Agreement.AGREES]
    if not lagging:
        return None
    return f"waiting until Stripe shows it: {lagging[0].meter}: {'; '.join(lagging[0].compared.why)}"


def _what_is_held(preview: SubscriptionPreview) -> str | None:
    held = [
        f"{quantity:f} {item.meter} ({reason})"
        for item in preview.items
        for reason, quantity in sorted(item.line.held.items())
    ]
    return f"usage is held and would be on no invoice: {', '.join(held)}" if held else None
