"""A catalogue plan for people and for programs.

Owns the lines and the JSON. It refuses to know how a plan comes about.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from services.cli.catalogue import Action, Noun, Plan, Step
from tollgate.metering.currency import format_amount
from tollgate.metering.price import Price, Tier, plain_decimal

_SIGNS = {
    Action.CREATE: "+",
    Action.ADOPT: "&",
    Action.CHANGE: "~",
    Action.NOTHING: "=",
    Action.REFUSE: "!",
}
_INDENT = " " * 10


def describe_plan(plan: Plan) -> list[str]:
    """Every step with what a person should know, and how many there are of each kind."""
    lines = [line for step in plan.steps for line in describe_step(step)]
    counts = {
        action: sum(step.action is action for step in plan.steps)
        for action in (Action.CREATE, Action.ADOPT, Action.CHANGE, Action.REFUSE)
    }
    said = ", ".join(
        f"{count} to {action}" if action is not Action.REFUSE else f"{count} refused"
        for action, count in counts.items()
        if count
    )
    return [*lines, f"  {said or 'nothing to do at Stripe'}"]


def describe_step(step: Step) -> list[str]:
    """One step: what is done with what, the terms of a price, and the reasons."""
    which = f" {step.object_id}" if step.object_id is not None else ""
    action = "" if step.action is Action.NOTHING else f"{step.action}"
    lines = [f"  {_SIGNS[step.action]} {step.noun:<8}{step.name}{f': {action}' if action else ''}{which}"]
    if step.terms is not None and step.action not in (Action.NOTHING, Action.REFUSE):
        lines += [f"{_INDENT}{line}" for line in describe_price(step.terms)]
        if step.was is not None:
            lines += [f"{_INDENT}was: {line}" for line in describe_price(step.was)]
    return lines + [f"{_INDENT}{line}" for line in step.says]


def describe_price(price: Price) -> list[str]:
    """The terms of a price, a line for each tier."""
    period = f"every {price.interval}"
    if price.tiers:
        return [f"{price.model}, {period}", *_describe_tiers(price.tiers, price.currency)]
    assert price.unit_amount is not None, "a price has tiers or a unit amount"
    amount = format_amount(price.unit_amount, price.currency)
    if price.package is None:
        return [f"{amount} a unit, {period}"]
    rounded = "begun" if price.package.round == "up" else "full"
    return [f"{amount} for every {price.package.size:,} units {rounded}, {period}"]


def _describe_tiers(tiers: Sequence[Tier], currency: str) -> list[str]:
    lines, first = [], 1
    for tier in tiers:
        parts = []
        if tier.unit_amount or not tier.flat_amount:
            parts.append(f"{_amount(tier.unit_amount, currency)} a unit")
        if tier.flat_amount:
            parts.append(f"{_amount(tier.flat_amount, currency)} flat")
        end = "on" if tier.up_to is None else f"to {tier.up_to:,}"
        lines.append(f"  from {first:,} {end}: {' + '.join(parts)}")
        first = 0 if tier.up_to is None else tier.up_to + 1
    return lines


def _amount(minor: Decimal, currency: str) -> str:
    return format_amount(minor, currency) if minor else f"{plain_decimal(minor)} {currency}"


def plan_document(plan: Plan) -> list[dict[str, object]]:
    """The steps as plain JSON values."""
    return [
        {
            "noun": str(step.noun),
            "action": str(step.action),
            "name": step.name,
            "meters": list(step.meters),
            "id": step.object_id,
            "says": list(step.says),
            **(
                {"price": step.terms.to_document() if step.terms else None} if step.noun is Noun.PRICE else {}
            ),
        }
        for step in plan.steps
    ]
