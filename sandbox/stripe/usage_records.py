"""Legacy usage records, on subscription items whose metered price has no meter.

Owns: ``increment`` and ``set``, the period they must fall in, and their sums. Refuses to know: meters.
Served only to API versions before 2025-03-31.basil, which removed them.
"""

from decimal import Decimal

from sandbox.stripe.errors import JsonObject, missing_parameter, no_such, refused
from sandbox.stripe.state import new_id
from sandbox.stripe.turns import Call, Turn, page


def create_usage_record(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/subscription_items/{id}/usage_records``; ``set`` replaces what that timestamp held."""
    params = call.params
    quantity = params.integer("quantity", 0)
    if quantity is None:
        raise missing_parameter("quantity")
    stamp = params.text("timestamp")
    timestamp = turn.now if stamp in (None, "now") else params.integer("timestamp", 0)
    action = params.choice("action", ("increment", "set")) or "increment"
    params.finish()
    item = _metered_item(turn, call.ids[0])
    if timestamp is None or timestamp < item["current_period_start"]:
        raise refused(
            f"Cannot create the usage record with this timestamp because timestamps must be after the subscription's "
            f"last invoice period (or current period start time): {item['current_period_start']}.",
            "timestamp",
        )
    if timestamp > turn.now or timestamp >= item["current_period_end"]:
        raise refused("Cannot create the usage record with a timestamp in the future.", "timestamp")
    execute = turn.state.connection.execute
    if action == "set":
        execute("DELETE FROM usage_records WHERE item = ? AND timestamp = ?", (item["id"], timestamp))
    execute(
        "INSERT INTO usage_records (item, timestamp, quantity) VALUES (?, ?, ?)",
        (item["id"], timestamp, quantity),
    )
    return {
        "id": new_id("mbur"),
        "object": "usage_record",
        "livemode": False,
        "quantity": quantity,
        "subscription_item": item["id"],
        "timestamp": timestamp,
    }


def _metered_item(turn: Turn, item_id: str) -> JsonObject:
    item = turn.state.find("subscription_item", item_id)
    if item is None:
        raise no_such("subscription item", item_id)
    terms = (turn.state.find("price", item["price"]) or {}).get("recurring") or {}
    if terms.get("usage_type") != "metered":
        raise refused("Usage records can only be created for metered prices.", "subscription_item")
    if terms.get("meter") is not None:
        raise refused("This price is backed by a meter: report usage with meter events.", "subscription_item")
    return item


def recorded_quantity(turn: Turn, item_id: str, formula: str, start: int, end: int) -> Decimal:
    """Usage recorded on an item in ``[start, end)`` by the price's ``aggregate_usage``."""
    since = 0 if formula == "last_ever" else start
    rows = turn.state.connection.execute(
        "SELECT timestamp, SUM(quantity) AS quantity FROM usage_records WHERE item = ? AND timestamp >= ? "
        "AND timestamp < ? GROUP BY timestamp ORDER BY timestamp",
        (item_id, since, end),
    ).fetchall()
    quantities = [Decimal(row["quantity"]) for row in rows]
    if not quantities:
        return Decimal(0)
    if formula == "max":
        return max(quantities)
    return quantities[-1] if formula.startswith("last") else sum(quantities, Decimal(0))


def list_usage_record_summaries(turn: Turn, call: Call) -> JsonObject:
    """``GET …/usage_record_summaries``: one row a period, the current one first and without an invoice."""
    limit = call.params.integer("limit", 1, 100) or 10
    call.params.finish()
    item = _metered_item(turn, call.ids[0])
    price = turn.state.find("price", item["price"]) or {}
    formula = price["recurring"].get("aggregate_usage") or "sum"
    spans = [(None, item["current_period_start"], item["current_period_end"])]
    for invoice in turn.state.scan("invoice", parent=item["subscription"]):
        for line in invoice["_lines"]:
            details = (line["parent"] or {}).get("subscription_item_details") or {}
            if (
                details.get("subscription_item") == item["id"]
                and line["period"]["end"] > line["period"]["start"]
            ):
                spans.append((invoice["id"], line["period"]["start"], line["period"]["end"]))
    data = [
        {
            "id": f"sis_{item['id']}_{start}",
            "object": "usage_record_summary",
            "invoice": invoice_id,
            "livemode": False,
            "period": {"start": start, "end": end},
            "subscription_item": item["id"],
            "total_usage": int(recorded_quantity(turn, item["id"], formula, start, end)),
        }
        for invoice_id, start, end in spans
    ]
    return page(call, data[:limit], len(data) > limit)
