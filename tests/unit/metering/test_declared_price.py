"""The `price:` block of meters.yaml: every key read exactly, every mistake named with its line."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from tollgate.metering.charge import Charge, MeterShape, Unchargeable, charge_of, check_charge, shape_for
from tollgate.metering.currency import CURRENCIES, format_amount, minor_places
from tollgate.metering.errors import InvalidMeter
from tollgate.metering.meter import Meter, MetricKind, WindowSize, parse_meters
from tollgate.metering.price import DeclaredPrice, Interval, Package, Price, PriceModel, Tier

D = Decimal


def declared(price: str, metric: str = "count") -> DeclaredPrice:
    (meter,) = parse_meters(
        f"meters: [{{name: m, metric: {metric}, stripe: {{price: {price}}}}}]", "meters.yaml"
    )
    assert meter.stripe is not None
    assert meter.stripe.price is not None
    assert Meter.from_document(json.loads(json.dumps(meter.to_document()))) == meter
    return meter.stripe.price


def problems(price: str, metric: str = "count", more: str = "") -> list[str]:
    with pytest.raises(InvalidMeter) as caught:
        parse_meters(
            f"meters: [{{name: m, metric: {metric}, stripe: {{{more}price: {price}}}}}]", "meters.yaml"
        )
    return [problem.removeprefix("meters.yaml:1: meter 'm': ") for problem in caught.value.problems]


def test_all_four_models_are_read() -> None:
    """Amounts are the text as written, never a float; what is left out is a month, a sum, rounding up."""
    month = Interval("month")
    assert declared("{model: standard, currency: USD, unit_amount_decimal: 0.000000000001}") == DeclaredPrice(
        Price(PriceModel.STANDARD, "usd", month, D("0.000000000001")), Charge.SUM
    )
    assert declared(
        "{model: package, currency: jpy, unit_amount: 5, package: {size: 1000}, description: Thousands}"
    ).price == Price(PriceModel.PACKAGE, "jpy", month, D(5), Package(1000, "up"), description="Thousands")
    tiers = "[{up_to: 10, unit_amount: 100, flat_amount: 500}, {up_to: inf, unit_amount_decimal: 10.5}]"
    for model in ("graduated", "volume"):
        assert declared(f"{{model: {model}, currency: eur, tiers: {tiers}}}").price == Price(
            PriceModel(model), "eur", month, tiers=(Tier(10, D(100), D(500)), Tier(None, D("10.5")))
        )


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("day", Interval("day")),
        ("week", Interval("week")),
        ("month", Interval("month")),
        ("3 months", Interval("month", 3)),
        ("6 months", Interval("month", 6)),
        ("year", Interval("year")),
        ("{every: 45, unit: day}", Interval("day", 45)),
        ("{every: 3, unit: year}", Interval("year", 3)),
    ],
)
def test_all_billing_periods_are_read(text: str, interval: Interval) -> None:
    """The usual ones by name, any other by number and unit."""
    price = declared(f"{{model: standard, currency: usd, interval: {text}, unit_amount: 1}}")
    assert price.price.interval == interval


def test_equal_amounts_have_one_document() -> None:
    """`1.50` and `1.5` are no change of a price."""
    one, other = (
        declared(f"{{model: standard, currency: usd, unit_amount_decimal: {text}}}").to_document()
        for text in ("1.50", "1.5")
    )
    assert one == other


def test_every_mistake_has_its_own_line() -> None:
    """All at once, each with file, line, meter, field and the nearest valid word."""
    text = """meters:
  - name: calls
    metric: count
    stripe:
      price:
        models: standard
        model: gradated
        currency: usdd
        interval: quarter
        unit_amount: 0.4
  - name: chat
    metric: count
    stripe:
      price:
        model: volume
        currency: usd
        tiers:
          - { up_to: 10, unit_amount: 5 }
          - { up_to: 10, unit_amount: 4 }
          - { up_to: inf, unit_amount: 3 }
"""
    with pytest.raises(InvalidMeter) as caught:
        parse_meters(text, "meters.yaml")
    assert caught.value.problems == [
        "meters.yaml:6: meter 'calls': price: unknown key 'models': did you mean model?",
        (
            "meters.yaml:7: meter 'calls': price: model: 'gradated' is none of standard, package, graduated, volume: "
            "did you mean graduated?"
        ),
        "meters.yaml:8: meter 'calls': price: currency: 'usdd' is none that Stripe knows: did you mean usd?",
        (
            "meters.yaml:9: meter 'calls': price: interval: 'quarter' is none of day, week, month, 3 months, 6 months, "
            "year, { every: 2, unit: month }"
        ),
        (
            "meters.yaml:10: meter 'calls': price: unit_amount: whole minor units (cents) are wanted; "
            "write unit_amount_decimal: 0.4"
        ),
        "meters.yaml:19: meter 'chat': price: tier 2: up_to 10 is not above the 10 of the tier before",
    ]


USD = "currency: usd, "


@pytest.mark.parametrize(
    ("price", "problem"),
    [
        ("5", "price: a mapping is wanted"),
        ("{currency: usd, unit_amount: 1}", "price: a model is wanted: standard, package, graduated, volume"),
        ("{model: standard, unit_amount: 1}", "price: a currency is wanted, like usd"),
        ("{model: standard, currency: [usd], unit_amount: 1}", "none that Stripe knows"),
        ("{model: standard, " + USD + "}", "needs unit_amount"),
        ("{model: standard, " + USD + "unit_amount: 1, unit_amount_decimal: 1}", "one of them, not both"),
        ("{model: standard, " + USD + "unit_amount: -1}", "'-1' is no whole number of at least 0"),
        ("{model: standard, " + USD + "unit_amount: [1]}", "this is no whole number"),
        ("{model: standard, " + USD + "unit_amount_decimal: 1e-3}", "'1e-3' is no plain decimal like 0.25"),
        (
            "{model: standard, " + USD + "unit_amount_decimal: 0.0000000000001}",
            "more than 12 decimal places",
        ),
        ("{model: standard, " + USD + "unit_amount: 1, package: {size: 5}}", "a standard price has none"),
        ("{model: standard, " + USD + "unit_amount: 1, tiers: []}", "a standard price has none"),
        ("{model: standard, " + USD + "unit_amount: 1, interval: {every: 4, unit: year}}", "from 1 to 3"),
        ("{model: standard, " + USD + "unit_amount: 1, interval: {every: 4}}", "every and unit are wanted"),
        ("{model: standard, " + USD + "unit_amount: 1, interval: {every: 4, unit: months}}", "mean month?"),
        ("{model: standard, " + USD + f"unit_amount: 1, lookup_key: {'k' * 201}}}", "longer than 200"),
        ("{model: package, " + USD + "unit_amount: 1}", "needs package: { size: 1000, round: up }"),
        ("{model: package, " + USD + "unit_amount: 1, package: {round: up}}", "a size is wanted"),
        ("{model: package, " + USD + "unit_amount: 1, package: {size: 0}}", "at least 1"),
        ("{model: package, " + USD + "unit_amount: 1, package: {size: 5, round: upp}}", "did you mean up?"),
        ("{model: volume, " + USD + "}", "a volume price needs tiers"),
        ("{model: volume, " + USD + "tiers: []}", "a volume price needs tiers"),
        (
            "{model: volume, " + USD + "unit_amount: 1, tiers: [{up_to: inf, unit_amount: 1}]}",
            "in its tiers",
        ),
        ("{model: volume, " + USD + "tiers: [5]}", "price: tier 1: a mapping is wanted"),
        ("{model: volume, " + USD + "tiers: [{up_to: inf}]}", "a unit_amount or a flat_amount is wanted"),
        ("{model: volume, " + USD + "tiers: [{unit_amount: 1}]}", "tier 1: up_to is wanted"),
        ("{model: volume, " + USD + "tiers: [{up_to: 5, unit_amount: 1}]}", "usage beyond it would be free"),
        (
            "{model: volume, " + USD + "tiers: [{up_to: inf, unit_amount: 1}, {up_to: 5, unit_amount: 1}]}",
            "tier 1: only the last tier is without an end",
        ),
        ("{model: volume, " + USD + "tiers: [{up_to: 5, unit_amounts: 1}]}", "did you mean unit_amount?"),
    ],
)
def test_a_wrong_price_is_refused_in_words(price: str, problem: str) -> None:
    """Nothing that contradicts itself reaches Stripe."""
    assert any(problem in found for found in problems(price)), problems(price)


def test_usage_records_have_no_new_prices() -> None:
    """Stripe stopped making them; a price declared there would never exist."""
    (found,) = problems("{model: standard, currency: usd, unit_amount: 1}", more="mode: usage_record, ")
    assert "no longer makes prices for usage records" in found


@pytest.mark.parametrize(
    ("meter", "words"),
    [
        ("metric: {max: latency_ms}", "which a max over a period is not made of; nearest: mode: delta"),
        ("metric: count, window: day", "nearest: window: hour, or mode: delta"),
    ],
)
def test_a_mode_that_cannot_post_a_metric_is_refused(meter: str, words: str) -> None:
    """With the nearest that can."""
    text = f"meters: [{{name: m, {meter}, stripe: {{mode: window_total}}}}]"
    with pytest.raises(InvalidMeter) as caught:
        parse_meters(text, "meters.yaml")
    (found,) = caught.value.problems
    assert found.startswith("meters.yaml:1: meter 'm': mode: ")
    assert words in found


# ------------------------------------------------------------------------------------------------ charge


@pytest.mark.parametrize(
    ("metric", "charge"),
    [
        ("count", Charge.SUM),
        ("{sum: latency_ms}", Charge.SUM),
        ("{unique: user}", Charge.SUM),
        ("{max: latency_ms}", Charge.MAX),
        ("{min: latency_ms}", Charge.MIN),
        ("{latest: latency_ms}", Charge.LAST_IN_PERIOD),
    ],
)
def test_the_metric_says_what_is_charged(metric: str, charge: Charge) -> None:
    """Written down or left out, it is the same."""
    price = "{{model: standard, currency: usd, unit_amount: 1{}}}"
    assert declared(price.format(""), metric).charge is charge
    assert declared(price.format(f", charge: {charge}"), metric).charge is charge


@pytest.mark.parametrize(
    ("metric", "charge", "words"),
    [
        ("count", "last_ever", ("begins every period at nothing", "nearest: charge: last_in_period")),
        ("count", "max", ("no formula max", "metric: { max: … }", "nearest for count: charge: sum")),
        ("{sum: latency_ms}", "last_in_period", ("metric: { latest: … }", "formula last", "charge: sum")),
        ("{max: latency_ms}", "sum", ("one value", "nearest: charge: max")),
        ("count", "maximum", ("none of sum, last_in_period, last_ever, max, min",)),
    ],
)
def test_what_stripe_does_not_offer_is_refused_with_the_nearest(
    metric: str, charge: str, words: tuple[str, ...]
) -> None:
    """The reason, and what to write instead."""
    (found,) = problems(f"{{model: standard, currency: usd, unit_amount: 1, charge: {charge}}}", metric)
    assert all(word in found for word in words), found


def test_every_metric_has_one_way_to_charge() -> None:
    """And no other is accepted for it."""
    for kind in MetricKind:
        for charge in Charge:
            if charge is charge_of(kind):
                check_charge(kind, charge)
            else:
                with pytest.raises(Unchargeable):
                    check_charge(kind, charge)


def test_a_billing_meter_is_shaped_by_mode_metric_and_window() -> None:
    """Changes go to a summing meter; whole windows to one that keeps a value for each."""
    for kind in MetricKind:
        assert shape_for(kind, "delta", WindowSize.HOUR) == MeterShape("sum", None)
        assert shape_for(kind, "usage_record", WindowSize.HOUR) is None
    assert shape_for(MetricKind.COUNT, "window_total", WindowSize.HOUR) == MeterShape("sum", "hour")
    for kind, window in (
        (MetricKind.MAX, WindowSize.HOUR),
        (MetricKind.COUNT, WindowSize.MINUTE),
        (MetricKind.SUM, WindowSize.DAY),
    ):
        with pytest.raises(Unchargeable, match="nearest"):
            shape_for(kind, "window_total", window)


# ---------------------------------------------------------------------------------------------- currency


@pytest.mark.parametrize(
    ("minor", "currency", "text"),
    [
        (D(1234), "usd", "12.34 usd"),
        (D("0.4"), "usd", "0.004 usd"),
        (D("0.000000000001"), "usd", "0.00000000000001 usd"),
        (0, "usd", "0.00 usd"),
        (500, "jpy", "500 jpy"),
        (D("0.5"), "jpy", "0.5 jpy"),
        (1234567, "kwd", "1,234.567 kwd"),
        (-5, "eur", "-0.05 eur"),
    ],
)
def test_amounts_are_printed_in_the_currency(minor: Decimal | int, currency: str, text: str) -> None:
    """Minor units become the unit people know, and no digit is lost."""
    assert format_amount(minor, currency) == text


def test_currencies_are_iso_codes() -> None:
    """Three lower-case letters each; those without decimals are among them."""
    assert all(len(code) == 3 and code.isalpha() and code.islower() for code in CURRENCIES)
    assert (minor_places("jpy"), minor_places("usd"), minor_places("kwd")) == (0, 2, 3)
    assert {"usd", "eur", "jpy", "krw", "kwd", "brl", "inr"} <= CURRENCIES
