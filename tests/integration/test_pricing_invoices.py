"""Prices as meters.yaml declares them, made at the stand-in, billed by its invoices: equal to the hand-worked tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sandbox.shop import Shop
from sandbox.stripe.process import StripeStandIn
from services.cli.catalogue import declare
from services.cli.catalogue_plan import plan_catalogue
from services.cli.catalogue_stripe import carry_out, find_catalogue
from services.cli.gateway import StripeGateway
from services.cli.settings import StripeSettings
from tests.unit.metering.price_tables import (
    FREE_THEN_PAID,
    GRADUATED,
    ONE_TIER,
    PACKAGES,
    STANDARD,
    STEPS,
    VOLUME,
)
from tollgate.metering.meter import parse_meters
from tollgate.metering.pricing import price_from_fields, price_quantity

# Stripe's client posts through httpx in a way httpx would rather not see any more.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

KEY = "sk_test_pricing"
DAY_SECONDS = 86_400
STAMP_S = 1_790_000_000
"""Inside the first period, which begins when the stand-in's clock is set."""


@dataclass(frozen=True, slots=True)
class Case:
    """One row of a table: the price block it is about, what was used, what it costs."""

    price: str
    quantity: str
    amount: int


def _tiers(tiers: Any) -> str:
    written = ", ".join(
        f"{{up_to: {'inf' if up_to is None else up_to}, unit_amount_decimal: {unit}, flat_amount: {flat}}}"
        for up_to, unit, flat in tiers
    )
    return f"[{written}]"


def _cases() -> Iterator[Case]:
    for unit, quantity, amount in STANDARD:
        yield Case(f"{{model: standard, currency: usd, unit_amount_decimal: {unit}}}", quantity, amount)
    for rounding, quantity, packages in PACKAGES:
        price = (
            f"{{model: package, currency: usd, unit_amount: 3, package: {{size: 1000, round: {rounding}}}}}"
        )
        yield Case(price, quantity, 3 * packages)
    for model, table in (("graduated", GRADUATED), ("volume", VOLUME)):
        for tiers, quantity, amount in table:
            yield Case(f"{{model: {model}, currency: usd, tiers: {_tiers(tiers)}}}", quantity, amount)


CASES = tuple(case for case in _cases() if len(case.quantity.strip("-0.").replace(".", "")) <= 15)
"""A meter event has fifteen digits at most."""


def test_the_tables_have_every_model_and_shape() -> None:
    """Four models; for those with tiers, three shapes each."""
    prices = {case.price for case in CASES}
    assert {tiers for tiers, _, _ in GRADUATED} == {tiers for tiers, _, _ in VOLUME}
    assert {ONE_TIER, FREE_THEN_PAID, STEPS} == {tiers for tiers, _, _ in GRADUATED}
    assert [sum(f"model: {model}" in price for price in prices) for model in ("graduated", "volume")] == [
        3,
        3,
    ]
    assert any("model: standard" in price for price in prices)
    assert any("model: package" in price for price in prices)


def test_our_pricing_the_stand_in_s_invoice_and_the_hand_worked_table_agree(tmp_path: Path) -> None:
    """To the cent, for every row: two formulae that share no line, and a person with a pencil."""
    blocks = list(dict.fromkeys(case.price for case in CASES))
    names = {price: f"case_{number}" for number, price in enumerate(blocks)}
    text = "meters:\n" + "".join(
        f"  - {{name: {name}, metric: count, stripe: {{price: {price}}}}}\n" for price, name in names.items()
    )
    declared = declare(parse_meters(text, "meters.yaml"))
    with StripeStandIn.start(tmp_path / "stripe.sqlite3") as stand_in, stand_in.control as control:
        control.set_clock(STAMP_S - DAY_SECONDS, frozen=True)
        settings = StripeSettings.model_validate({"api_key": KEY, "api_base": stand_in.base_url})
        with StripeGateway(settings) as stripe, Shop(stand_in.base_url, KEY) as shop:
            carry_out(stripe, plan_catalogue(declared, find_catalogue(stripe, declared)))
            prices = dict(
                zip(names, shop.find_prices([f"tollgate_{name}" for name in names.values()]), strict=True)
            )
            customers = [
                shop.sign_up(f"c{number}", f"c{number}@example.com", [prices[case.price]]).customer
                for number, case in enumerate(CASES)
            ]
            control.set_clock(STAMP_S)
            for number, (case, customer) in enumerate(zip(CASES, customers, strict=True)):
                if Decimal(case.quantity):
                    stripe.update(
                        "/v1/billing/meter_events",
                        event_name=names[case.price],
                        payload={"stripe_customer_id": customer, "value": case.quantity},
                        identifier=f"event_{number}",
                        timestamp=STAMP_S,
                    )
            control.advance(33 * DAY_SECONDS)
            terms = {
                price: price_from_fields(stripe.list_all("/v1/prices", lookup_keys=[f"tollgate_{name}"])[0])
                for price, name in names.items()
            }
            billed = {
                invoice["customer"]: invoice["amount_due"]
                for invoice in stripe.list_all("/v1/invoices")
                if invoice["billing_reason"] == "subscription_cycle"
            }
    got = [
        (case, billed[customer], price_quantity(terms[case.price], Decimal(case.quantity)).amount)
        for case, customer in zip(CASES, customers, strict=True)
    ]
    wrong = [(case, invoice, ours) for case, invoice, ours in got if not case.amount == invoice == ours]
    assert wrong == []
    assert len(got) == len(CASES) > 60
