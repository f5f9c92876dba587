"""Prices as meters.yaml declares them, from usage to the bill: preview, invoice and the hand-worked tables are equal."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import pytest

from sandbox.stripe.process import StripeStandIn
from tests.integration.period_rig import Json, PeriodRig, period_rig
from tests.unit.metering.price_tables import DOZENS, GRADUATED, PACKAGES, STANDARD, VOLUME
from tollgate.metering.meter import parse_meters
from tollgate.metering.price import Price

# Stripe's client posts through httpx in a way httpx would rather not see any more.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

USED = "2027-01-10 10:00:00"
SHAPES = 3
"""Of each model: prices that are asked for every quantity at and around a bound."""


@dataclass(frozen=True, slots=True)
class Case:
    """One row of a table: the price block it is about, what was used, what it costs in cents."""

    price: str
    quantity: str
    amount: int


def _tiers(tiers: Any) -> str:
    written = ", ".join(
        f"{{up_to: {'inf' if up_to is None else up_to}, unit_amount_decimal: {unit}, flat_amount: {flat}}}"
        for up_to, unit, flat in tiers
    )
    return f"[{written}]"


def _package(unit: str, size: int, rounding: str) -> str:
    return (
        f"{{model: package, currency: usd, unit_amount_decimal: {unit}, "
        f"package: {{size: {size}, round: {rounding}}}}}"
    )


def _cases() -> Iterator[Case]:
    for unit, quantity, amount in STANDARD:
        yield Case(f"{{model: standard, currency: usd, unit_amount_decimal: {unit}}}", quantity, amount)
    for rounding, quantity, packages in PACKAGES:
        yield Case(_package("3", 1000, rounding), quantity, 3 * packages)
    for quantity, amount in DOZENS:
        yield Case(_package("2.5", 12, "up"), quantity, amount)
    for model, table in (("graduated", GRADUATED), ("volume", VOLUME)):
        for tiers, quantity, amount in table:
            yield Case(f"{{model: {model}, currency: usd, tiers: {_tiers(tiers)}}}", quantity, amount)


CASES = tuple(_cases())
METERS = {price: f"case_{number}" for number, price in enumerate(dict.fromkeys(c.price for c in CASES))}
"""Each price's meter."""

FILE = "meters:\n" + "".join(
    f"  - {{name: {name}, metric: {{sum: properties.units}}, stripe: {{send: live, price: {price}}}}}\n"
    for price, name in METERS.items()
)


def _bounds(price: Price) -> set[int]:
    """Where an amount's slope changes."""
    if price.package is not None:
        return {price.package.size}
    return {tier.up_to for tier in price.tiers if tier.up_to is not None}


def _is_complete(price: Price, quantities: set[Decimal]) -> bool:
    """Whether a price is asked for nothing, one, every bound with the unit before and after it, and far past all."""
    bounds = _bounds(price)
    wanted = {0, 1} | {bound + step for bound in bounds for step in (-1, 0, 1)}
    return wanted <= quantities and max(quantities) >= 1000 * max(bounds, default=1)


def test_the_table_has_every_model_shape_and_bound() -> None:
    """Lest a row that is taken out be missed: three prices of each model, each at and around all its bounds."""
    shapes = Counter[str]()
    for meter in parse_meters(FILE, "meters.yaml"):
        assert meter.stripe is not None
        assert meter.stripe.price is not None
        price = meter.stripe.price.price
        asked = {Decimal(case.quantity) for case in CASES if METERS[case.price] == meter.name}
        if _is_complete(price, asked):
            shapes[price.model] += 1
        else:
            # Amounts in a fraction of a cent are asked for where they round; they have no bounds to be missed.
            assert price.model == "standard"
    assert shapes == dict.fromkeys(("standard", "package", "graduated", "volume"), SHAPES)


def _bill_of(rig: PeriodRig, customer: str) -> Json:
    """The one invoice a customer's first period ended with."""
    made: list[Json] = rig.get(f"/v1/invoices?customer={customer}&limit=100")["data"]
    (invoice,) = (body for body in made if body["billing_reason"] == "subscription_cycle")
    return invoice


def _cents_by_price(rig: PeriodRig, invoice: Json) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for line in rig.get(f"/v1/invoices/{invoice['id']}/lines?limit=100")["data"]:
        found[line["pricing"]["price_details"]["price"]] += line["amount"]
    return found


async def test_preview_invoice_and_the_hand_worked_table_agree(
    period_stand_in: StripeStandIn, period_url: str, tmp_path: Path
) -> None:
    """To the cent, for every row: two formulae that share no line, both sides of a preview, and a person with a pencil.

    `meters apply` makes the prices. Each customer takes the next row of each price, as one item of a subscription. The
    usage is planned, posted and previewed inside the period, and billed by the invoice that ends it.
    """
    path = tmp_path / "meters.yaml"
    path.write_text(FILE)
    sheets: dict[int, list[Case]] = defaultdict(list)
    rows = Counter[str]()
    for case in CASES:
        sheets[rows[case.price]].append(case)
        rows[case.price] += 1
    wrong: list[object] = []
    seen = 0
    async with period_rig(period_stand_in, period_url, "2027-01-01") as rig:
        rig.apply(str(path))
        at_stripe = {body["lookup_key"]: body["id"] for body in rig.get("/v1/prices?limit=100")["data"]}
        prices = {price: at_stripe[f"tollgate_{name}"] for price, name in METERS.items()}
        customers = [rig.customer() for _ in sheets]
        for customer, sheet in zip(customers, sheets.values(), strict=True):
            rig.subscribe(customer, *(prices[case.price] for case in sheet))
        await rig.live()
        for customer, sheet in zip(customers, sheets.values(), strict=True):
            for case in sheet:
                if Decimal(case.quantity):
                    rig.use(customer, USED, Decimal(case.quantity), event_name=METERS[case.price])
        await rig.at("2027-01-10 10:01:00")
        previews = {customer: rig.preview(customer) for customer in customers}
        await rig.at("2027-02-01 00:00:01")
        await rig.at("2027-02-01 01:00:01")
        for customer, sheet in zip(customers, sheets.values(), strict=True):
            code, (previewed,) = previews[customer]
            invoice = _bill_of(rig, customer)
            assert (code, invoice["status"], len(previewed["items"])) == (0, "paid", len(sheet))
            items = {item["price"]: item for item in previewed["items"]}
            billed = _cents_by_price(rig, invoice)
            for case in sheet:
                seen += 1
                item = items[prices[case.price]]
                # What is below zero is posted by nobody: it is held for a credit, and shown.
                units = max(Decimal(case.quantity), Decimal(0))
                below = {"negative": case.quantity} if Decimal(case.quantity) < 0 else {}
                assert (Decimal(item["coming"]), item["held"]) == (units, below), case
                assert (Decimal(item["stripe"]["quantity"]), item["result"]) == (units, "agrees"), case
                tiers = sum((Decimal(tier["amount"]) for tier in item["tiers"]), Decimal(0))
                got = {
                    "our preview": item["amount"],
                    "its tiers": int(tiers.quantize(Decimal(1), ROUND_HALF_UP)),
                    "Stripe's preview": item["stripe"]["amount"],
                    "the invoice": billed[prices[case.price]],
                }
                if set(got.values()) != {case.amount}:
                    wrong.append((case, got))
            total = sum(case.amount for case in sheet)
            totals = (previewed["our_total"], previewed["stripe_total"], invoice["total"])
            if totals != (total, total, total):
                wrong.append((customer, totals, total))
    assert wrong == []
    assert seen == len(CASES) > 80
