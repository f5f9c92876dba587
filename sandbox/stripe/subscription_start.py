"""A subscription's beginning: the cycle it starts, its first period, its first invoice.

Owns: creation. Refuses to know: what happens to it afterwards.
"""

from sandbox.stripe.customers import find_customer
from sandbox.stripe.errors import (
    JsonObject,
    invalid,
    missing_parameter,
    no_such_reference,
)
from sandbox.stripe.events import emit
from sandbox.stripe.invoice_drafts import draft
from sandbox.stripe.invoice_lines import empty_usage_line, licence_line, usage_line
from sandbox.stripe.invoices import finalize
from sandbox.stripe.params import Params, merge_metadata
from sandbox.stripe.periods import anchor_from_config, edge, next_edge
from sandbox.stripe.state import new_id
from sandbox.stripe.subscription_items import (
    add_item,
    check_one_cycle,
    check_price,
    items_of,
    metered,
    price_of,
    read_change,
)
from sandbox.stripe.subscriptions import assembled, next_moment
from sandbox.stripe.turns import Call, Turn
from sandbox.stripe.versions import CLOVER, render, since


def create_subscription(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/subscriptions``.

    1. Read and check the customer, the prices and the cycle.
    2. Store the subscription and its items, the first period running to the next edge of the cycle.
    3. Make the first invoice (licences ahead; usage only of a backdated start) and close it at once.
    """
    params = call.params
    customer_id = params.required_text("customer")
    changes = [read_change(entry) for entry in params.children("items")]
    start, anchor, anchor_config = _cycle(turn, params)
    trial_end = _trial_end(turn, params)
    if trial_end is not None and anchor == start:
        # A new billing cycle begins when the trial ends.
        anchor = trial_end
    backdate = params.integer("backdate_start_date", 0)
    body = _new_body(turn, call, customer_id)
    proration = params.choice("proration_behavior", ("create_prorations", "none", "always_invoice"))
    for echoed in ("payment_behavior", "payment_settings", "off_session", "automatic_tax", "currency"):
        params.has(echoed)
    params.finish()

    customer = find_customer(turn, customer_id)
    if customer is None:
        raise no_such_reference("customer", customer_id, "customer")
    if not changes:
        raise missing_parameter("items")
    prices = [check_price(turn, change, call.version) for change in changes]
    check_one_cycle(prices)
    if backdate is not None and backdate > turn.now:
        raise invalid("backdate_start_date must be in the past.", "backdate_start_date")
    terms = prices[0]["recurring"]
    end = next_edge(anchor, terms["interval"], terms["interval_count"], start)
    if trial_end is not None:
        end = trial_end
        body |= {"status": "trialing", "trial_start": start, "trial_end": trial_end}
    elif anchor > edge(start, terms["interval"], terms["interval_count"], 1):
        raise invalid("billing_cycle_anchor cannot be later than the next natural billing date.")

    body |= {
        "currency": prices[0]["currency"],
        "start_date": start if backdate is None else backdate,
        "billing_cycle_anchor": anchor,
        "billing_cycle_anchor_config": anchor_config,
    }
    turn.state.insert("subscription", body, customer=customer_id, due=next_moment(body, end))
    classic_backdate = backdate is not None and body["billing_mode"]["type"] == "classic"
    for change, price in zip(changes, prices, strict=True):
        item = add_item(turn, body, change, price, (start, end))
        if classic_backdate and metered(price):
            # Classic billing picks a backdated start's usage up with the first full period's invoice.
            item["_billed_from"] = backdate
            turn.state.update(item)
    lines = _first_lines(turn, body, None if classic_backdate else backdate, proration != "none")
    invoice = draft(turn, customer, body, "subscription_create", (start, start), lines, None)
    finalize(turn, invoice)
    body["latest_invoice"] = invoice["id"]
    turn.state.update(body)
    seen = assembled(turn, body)
    emit(turn, "customer.subscription.created", seen)
    return render(seen, call.version)


def _cycle(turn: Turn, params: Params) -> tuple[int, int, JsonObject | None]:
    """Start, anchor and anchor config of a new subscription, in seconds."""
    anchor = params.integer("billing_cycle_anchor", 0)
    config = params.child("billing_cycle_anchor_config")
    if config is None:
        if anchor is not None and anchor < turn.now:
            raise invalid("billing_cycle_anchor must be in the future.", "billing_cycle_anchor")
        return turn.now, turn.now if anchor is None else anchor, None
    if anchor is not None:
        raise invalid("Set billing_cycle_anchor or billing_cycle_anchor_config, not both.")
    day = config.integer("day_of_month", 1, 31)
    if day is None:
        raise missing_parameter("billing_cycle_anchor_config[day_of_month]")
    hour, minute, second = (
        config.integer("hour", 0, 23),
        config.integer("minute", 0, 59),
        config.integer("second", 0, 59),
    )
    kept: JsonObject = {
        "day_of_month": day,
        "hour": hour,
        "minute": minute,
        "month": None,
        "second": second,
    }
    return turn.now, anchor_from_config(turn.now, day, hour, minute, second), kept


def _trial_end(turn: Turn, params: Params) -> int | None:
    """``trial_end`` or ``trial_period_days``, in seconds; None without a trial."""
    days, sent = params.integer("trial_period_days", 0, 1825), params.text("trial_end")
    if sent is not None and days is not None:
        raise invalid("You may only specify one of these parameters: trial_end, trial_period_days.")
    if sent == "now" or (sent is None and not days):
        return None
    trial_end = turn.now + (days or 0) * 86_400 if sent is None else params.integer("trial_end", turn.now + 1)
    if trial_end is not None and trial_end > turn.now + 1825 * 86_400:
        raise invalid("The maximum number of trial period days is 1825 (5 years).", "trial_end")
    return trial_end


def _new_body(turn: Turn, call: Call, customer_id: str) -> JsonObject:
    """A subscription's fields as the parameters set them; the cycle is filled in by the caller."""
    params = call.params
    mode = params.child("billing_mode")
    mode_type = None if mode is None else mode.choice("type", ("classic", "flexible"))
    if mode is not None:
        mode.has("flexible")
    mode_type = mode_type or ("flexible" if since(call.version, CLOVER) else "classic")
    collection = params.choice("collection_method", ("charge_automatically", "send_invoice"))
    body: JsonObject = {
        "id": new_id("sub"),
        "object": "subscription",
        "application": None,
        "application_fee_percent": None,
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_cycle_anchor": turn.now,
        "billing_cycle_anchor_config": None,
        "billing_mode": {"flexible": None, "type": mode_type},
        "billing_thresholds": None,
        "cancel_at": params.integer("cancel_at", turn.now + 1),
        "cancel_at_period_end": bool(params.boolean("cancel_at_period_end")),
        "canceled_at": None,
        "cancellation_details": {"comment": None, "feedback": None, "reason": None},
        "collection_method": collection or "charge_automatically",
        "created": turn.now,
        "currency": "usd",
        "customer": customer_id,
        "days_until_due": params.integer("days_until_due", 0),
        "default_payment_method": params.text("default_payment_method"),
        "default_source": None,
        "default_tax_rates": [],
        "description": params.text("description", 500),
        "discounts": [],
        "ended_at": None,
        "invoice_settings": {"account_tax_ids": None, "issuer": {"type": "self"}},
        "latest_invoice": None,
        "livemode": False,
        "metadata": {},
        "next_pending_invoice_item_invoice": None,
        "on_behalf_of": None,
        "pause_collection": None,
        "payment_settings": {
            "payment_method_options": None,
            "payment_method_types": None,
            "save_default_payment_method": "off",
        },
        "pending_invoice_item_interval": None,
        "pending_setup_intent": None,
        "pending_update": None,
        "schedule": None,
        "start_date": turn.now,
        "status": "active",
        "test_clock": None,
        "transfer_data": None,
        "trial_end": None,
        "trial_settings": {"end_behavior": {"missing_payment_method": "create_invoice"}},
        "trial_start": None,
    }
    merge_metadata(body, params)
    return body


def _first_lines(
    turn: Turn, subscription: JsonObject, usage_since: int | None, prorated: bool
) -> list[JsonObject]:
    """Lines of the first invoice: licences for the first period, and a backdated start's usage until now."""
    lines = []
    trial = subscription["status"] == "trialing"
    for item in items_of(turn, subscription["id"]):
        price = price_of(turn, item)
        start, end = item["current_period_start"], item["current_period_end"]
        if trial:
            free = empty_usage_line(item, price, start)
            lines.append(free if metered(price) else licence_line(item, price, start, end, (0, 1)))
            continue
        if metered(price):
            lines.append(
                empty_usage_line(item, price, start)
                if usage_since is None
                else usage_line(turn, subscription["customer"], item, price, usage_since, start)
            )
            continue
        terms = price["recurring"]
        full = end - edge(end, terms["interval"], terms["interval_count"], -1)
        if end - start >= full:
            lines.append(licence_line(item, price, start, end))
        elif prorated:
            lines.append(licence_line(item, price, start, end, (end - start, full)))
    return lines
