"""A coming invoice's lines: which of them bill usage, and of which item."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from services.cli.preview_lines import UsageLine, sort_lines


def line(
    item: str | None,
    amount: int,
    quantity: str = "1",
    span: tuple[int, int] = (100, 200),
    description: str | None = "calls",
) -> dict[str, Any]:
    """A line as Stripe spells it; an invoice item has no subscription item."""
    parent = {"subscription_item_details": {"subscription_item": item, "proration": False}} if item else {}
    return {
        "parent": parent,
        "amount": amount,
        "quantity": int(Decimal(quantity)),
        "quantity_decimal": quantity,
        "period": {"start": span[0], "end": span[1]},
        "description": description,
    }


def test_a_line_for_each_tier_is_one_line() -> None:
    """100 units at 10 cents and 50.5 at 5: one item's 150.5 units, beside another's."""
    lines = [line("si_1", 1000, "100"), line("si_2", 3, "1"), line("si_1", 253, "50.5")]
    assert sort_lines(lines, {"si_1", "si_2"}) == (
        {"si_1": UsageLine(100, 200, Decimal("150.5"), 1253), "si_2": UsageLine(100, 200, Decimal(1), 3)},
        [],
    )


def test_what_bills_no_usage_is_kept_apart() -> None:
    """A licence, an invoice item, and a span of an item that is over count into the total and into no usage."""
    lines = [
        line("si_licence", 500),
        line(None, 30, description=None),
        line("si_1", 7, "2", (150, 200)),
        line("si_1", 36, "12", (100, 150), "12 calls at the old price"),
    ]
    assert sort_lines(lines, {"si_1"}) == (
        {"si_1": UsageLine(150, 200, Decimal(2), 7)},
        [("calls", 500), ("other", 30), ("12 calls at the old price", 36)],
    )
