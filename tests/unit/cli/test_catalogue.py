"""The plan from meters.yaml to Stripe: create, adopt, change, nothing, or refuse with the reason."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from services.cli.catalogue import (
    Action,
    CreateMeter,
    CreatePrice,
    CreateProduct,
    Declared,
    DescribePrice,
    Found,
    FoundMeter,
    FoundPrice,
    FoundProduct,
    KeyPrice,
    Noun,
    Plan,
    Step,
    TagProduct,
    declare,
)
from services.cli.catalogue_plan import plan_catalogue
from services.cli.catalogue_text import describe_plan, describe_price, plan_document
from services.cli.gateway import idempotency_key
from tollgate.metering.charge import MeterShape
from tollgate.metering.meter import parse_meters
from tollgate.metering.price import Interval, Price, PriceModel, Tier

TERMS = Price(PriceModel.STANDARD, "usd", Interval("month"), Decimal("0.4"))
DEARER = replace(TERMS, unit_amount=Decimal("0.5"))
CALLS = Declared("calls", "calls", MeterShape("sum", None), "Calls", TERMS, "tollgate_calls")
PRODUCT = FoundProduct("prod_1", "Calls", True, "Calls")
METER = FoundMeter("mtr_1", "calls", True, "sum", None, "stripe_customer_id", "value")
PRICE = FoundPrice("price_1", True, "tollgate_calls", "prod_1", "mtr_1", TERMS)
ALL = Found((PRODUCT,), (METER,), (PRICE,))


def step(plan: Plan, noun: Noun) -> Step:
    (found,) = [each for each in plan.steps if each.noun is noun]
    return found


def actions(plan: Plan) -> list[str]:
    return [str(each.action) for each in plan.steps]


# ------------------------------------------------------------------------------------------------ create


def test_a_new_account_gets_a_product_a_meter_and_a_price() -> None:
    """In the order in which each can be made."""
    plan = plan_catalogue([CALLS], Found())
    assert [each.call for each in plan.steps] == [
        CreateProduct("Calls"),
        CreateMeter("calls", "calls", MeterShape("sum", None)),
        CreatePrice("tollgate_calls", "Calls", "calls", TERMS, None),
    ]
    assert actions(plan) == ["create"] * 3
    assert not plan.refused


def test_what_is_there_as_declared_is_left_alone() -> None:
    """No call at all: applying twice changes nothing."""
    plan = plan_catalogue([CALLS], ALL, known_event_names={"calls"})
    assert actions(plan) == ["nothing"] * 3
    assert plan.calls == ()


def test_meters_of_one_product_share_it() -> None:
    """One product, two meters, two prices."""
    other = replace(CALLS, meter="more", event_name="more", lookup_key="tollgate_more")
    plan = plan_catalogue([CALLS, other], Found())
    assert [str(each.noun) for each in plan.steps] == ["product", "meter", "meter", "price", "price"]
    assert step(plan, Noun.PRODUCT).meters == ("calls", "more")


def test_a_meter_without_product_and_price_is_a_billing_meter_alone() -> None:
    """Prices may be made elsewhere."""
    plan = plan_catalogue([replace(CALLS, product=None, price=None)], Found())
    assert [str(each.noun) for each in plan.steps] == ["meter"]


def test_meters_declare_what_they_need() -> None:
    """Names come from the file; what is not sent to Stripe wants nothing there."""
    text = """meters:
  - {name: idle, metric: count}
  - {name: plain, metric: count, stripe: {}}
  - name: chat
    metric: count
    stripe: {event_name: chat_calls, price: {model: standard, currency: usd, unit_amount: 1}}
  - name: keyed
    metric: count
    stripe: {product: Mine, price: {model: standard, currency: usd, unit_amount: 1, lookup_key: mine}}
"""
    wanted = declare(parse_meters(text, "meters.yaml"))
    assert [(each.meter, each.event_name, each.product, each.lookup_key) for each in wanted] == [
        ("plain", "plain", None, "tollgate_plain"),
        ("chat", "chat_calls", "chat", "tollgate_chat"),
        ("keyed", "keyed", "Mine", "mine"),
    ]


# ------------------------------------------------------------------------------------------------- adopt


def test_a_product_of_the_same_name_is_adopted() -> None:
    """It gets the key, so that it may be renamed at Stripe afterwards."""
    plan = plan_catalogue([CALLS], replace(ALL, products=(replace(PRODUCT, key=None),)))
    assert step(plan, Noun.PRODUCT).call == TagProduct("prod_1", "Calls")
    assert step(plan, Noun.PRODUCT).action is Action.ADOPT


def test_a_product_renamed_at_stripe_stays_ours() -> None:
    """The key counts, not the name."""
    renamed = replace(PRODUCT, name="Gateway calls")
    assert actions(plan_catalogue([CALLS], replace(ALL, products=(renamed,)), {"calls"})) == ["nothing"] * 3


def test_another_ones_product_is_not_taken() -> None:
    """Of the same name but keyed otherwise: it belongs to another declaration."""
    plan = plan_catalogue([CALLS], Found(products=(replace(PRODUCT, key="Other"),)))
    assert step(plan, Noun.PRODUCT).action is Action.CREATE


def test_a_fitting_meter_is_adopted_without_a_call() -> None:
    """The ledger takes note of it; at Stripe nothing changes."""
    adopted = step(plan_catalogue([CALLS], Found(meters=(METER,))), Noun.METER)
    assert (adopted.action, adopted.object_id, adopted.call) == (Action.ADOPT, "mtr_1", None)


def test_a_price_of_the_same_terms_is_adopted() -> None:
    """It gets the lookup key: its subscribers go on as they are."""
    found = replace(ALL, prices=(replace(PRICE, lookup_key=None),))
    adopted = step(plan_catalogue([CALLS], found), Noun.PRICE)
    assert (adopted.action, adopted.call) == (Action.ADOPT, KeyPrice("tollgate_calls", "price_1"))


def test_a_price_with_a_lookup_key_of_its_own_is_not_taken() -> None:
    """Somebody's code may look it up; the plan says how to adopt it all the same."""
    found = replace(ALL, prices=(replace(PRICE, lookup_key="theirs"),))
    created = step(plan_catalogue([CALLS], found), Noun.PRICE)
    assert created.action is Action.CREATE
    assert "lookup_key: theirs" in created.says[0]


# ------------------------------------------------------------------------------------------------ change


def test_other_terms_make_a_new_price() -> None:
    """The key moves, and the plan says who keeps the old price."""
    plan = plan_catalogue(
        [replace(CALLS, price=DEARER)], ALL, {"calls"}, {"price_1": "3 subscriptions keep it"}
    )
    changed = step(plan, Noun.PRICE)
    assert changed.call == CreatePrice("tollgate_calls", "Calls", "calls", DEARER, "price_1")
    assert (changed.action, changed.was, plan.replaced) == (Action.CHANGE, TERMS, ("price_1",))
    assert "price_1 stays as it is: 3 subscriptions keep it" in changed.says


@pytest.mark.parametrize(
    "terms",
    [
        replace(TERMS, currency="eur"),
        replace(TERMS, interval=Interval("year")),
        replace(TERMS, interval=Interval("month", 12)),
        Price(PriceModel.VOLUME, "usd", Interval("month"), tiers=(Tier(None, Decimal("0.4")),)),
    ],
)
def test_every_term_counts(terms: Price) -> None:
    """Currency, period and model as much as the amount."""
    plan = plan_catalogue([replace(CALLS, price=terms)], ALL, {"calls"})
    assert actions(plan) == ["nothing", "nothing", "change"]


def test_terms_that_come_back_come_back_with_their_price() -> None:
    """The old price has them still; its subscribers and the new ones are on one price again."""
    old = replace(PRICE, price_id="price_0", lookup_key=None, terms=DEARER)
    plan = plan_catalogue([replace(CALLS, price=DEARER)], replace(ALL, prices=(old, PRICE)), {"calls"})
    assert step(plan, Noun.PRICE).call == KeyPrice("tollgate_calls", "price_0")
    assert plan.replaced == ("price_1",)


def test_a_description_changes_in_place() -> None:
    """It is the one thing Stripe lets one edit; nobody has to be asked."""
    described = replace(TERMS, description="Calls")
    plan = plan_catalogue([replace(CALLS, price=described)], ALL, {"calls"})
    assert step(plan, Noun.PRICE).call == DescribePrice("price_1", "Calls")
    assert plan.replaced == ()


@pytest.mark.parametrize(
    ("holder", "reason"),
    [
        (replace(PRICE, meter_id="mtr_0"), "another Billing Meter"),
        (replace(PRICE, product_id="prod_0"), "another product"),
        (replace(PRICE, terms=None, foreign="it is licensed, not metered"), "licensed"),
        (replace(PRICE, terms=DEARER, active=False), "cannot be edited"),
    ],
)
def test_a_price_in_the_wrong_place_is_replaced(holder: FoundPrice, reason: str) -> None:
    """Neither its product nor its meter can be changed."""
    changed = step(plan_catalogue([CALLS], replace(ALL, prices=(holder,)), {"calls"}), Noun.PRICE)
    assert isinstance(changed.call, CreatePrice)
    assert reason in changed.says[0]


def test_the_same_wish_has_the_same_idempotency_key_and_a_later_one_another() -> None:
    """Prices that go back and forth within a day must not be answered with the first."""
    params = {"currency": "usd", "recurring": {"interval": "month"}}
    reordered = {"recurring": {"interval": "month"}, "currency": "usd"}
    assert idempotency_key("price", params, None) == idempotency_key("price", reordered, None)
    keys = {idempotency_key("price", params, seed) for seed in (None, "price_1", "price_2")}
    assert len(keys) == 3
    assert all(len(key) <= 255 for key in keys)


# ------------------------------------------------------------------------------------------------ refuse


@pytest.mark.parametrize(
    ("found", "noun", "reason"),
    [
        (Found(products=(replace(PRODUCT, active=False),)), Noun.PRODUCT, "archived at Stripe"),
        (
            Found(products=(PRODUCT, replace(PRODUCT, product_id="prod_2"))),
            Noun.PRODUCT,
            "prod_1, prod_2 all carry",
        ),
        (
            Found(products=(replace(PRODUCT, key=None), replace(PRODUCT, product_id="prod_2", key=None))),
            Noun.PRODUCT,
            "set metadata tollgate_product=Calls",
        ),
        (Found(meters=(replace(METER, active=False),)), Noun.METER, "reactivate it there"),
        (Found(meters=(replace(METER, formula="last"),)), Noun.METER, "its formula is last"),
        (Found(meters=(replace(METER, time_window="hour"),)), Noun.METER, "one value an hour"),
        (Found(meters=(replace(METER, customer_key="customer"),)), Noun.METER, "customer from 'customer'"),
        (Found(meters=(replace(METER, value_key="tokens"),)), Noun.METER, "value from 'tokens'"),
        (replace(ALL, prices=(replace(PRICE, active=False),)), Noun.PRICE, "unarchive it there"),
        (
            replace(
                ALL,
                prices=(
                    replace(PRICE, lookup_key=None),
                    replace(PRICE, price_id="price_2", lookup_key=None),
                ),
            ),
            Noun.PRICE,
            "price_1, price_2 all have these terms",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(found: Found, noun: Noun, reason: str) -> None:
    """Nothing is guessed, nothing that bills wrongly is adopted, and nothing else is carried out."""
    plan = plan_catalogue([CALLS], found)
    (refused,) = plan.refused
    assert refused.noun is noun
    assert reason in " ".join(refused.says)
    assert refused.call is None


def test_a_deactivated_meter_beside_an_active_one_is_no_matter() -> None:
    """An event name may have had several; the active one takes the events."""
    old = replace(METER, meter_id="mtr_0", active=False)
    assert plan_catalogue([CALLS], replace(ALL, meters=(old, METER)), {"calls"}).calls == ()


def test_a_window_total_meter_needs_one_value_a_window() -> None:
    """The same event name cannot serve both modes."""
    hourly = replace(CALLS, shape=MeterShape("sum", "hour"))
    assert step(plan_catalogue([hourly], ALL), Noun.METER).action is Action.REFUSE
    fitting = Found(meters=(replace(METER, time_window="hour"),))
    assert step(plan_catalogue([hourly], fitting), Noun.METER).action is Action.ADOPT


def test_two_prices_of_one_lookup_key_are_refused() -> None:
    """The second would take it from the first, at every apply."""
    other = replace(CALLS, meter="more", event_name="more")
    (refused,) = plan_catalogue([CALLS, other], Found()).refused
    assert "same lookup_key" in refused.says[0]


# ------------------------------------------------------------------------------------------------- words


def test_a_plan_is_printed_line_by_line() -> None:
    """Signs, names, ids, terms before and after, and the sum of it all."""
    plan = plan_catalogue([replace(CALLS, price=DEARER)], ALL, (), {"price_1": "nobody has it"})
    assert describe_plan(plan) == [
        "  = product Calls prod_1",
        "  & meter   calls: adopt mtr_1",
        "  ~ price   tollgate_calls: change price_1",
        "          0.005 usd a unit, every month",
        "          was: 0.004 usd a unit, every month",
        "          terms cannot be edited in Stripe",
        "          a new price gets the lookup key",
        "          price_1 stays as it is: nobody has it",
        "  1 to adopt, 1 to change",
    ]
    assert [entry["action"] for entry in plan_document(plan)] == ["nothing", "adopt", "change"]


def test_prices_are_described_as_people_speak_of_them() -> None:
    """Tiers with their first and last unit, packages with what counts."""
    tiers = (Tier(10, Decimal(0)), Tier(1000, Decimal(5), Decimal(100)), Tier(None, flat_amount=Decimal(9)))
    graduated = Price(PriceModel.GRADUATED, "usd", Interval("month", 3), tiers=tiers)
    assert describe_price(graduated) == [
        "graduated, every 3 months",
        "  from 1 to 10: 0 usd a unit",
        "  from 11 to 1,000: 0.05 usd a unit + 1.00 usd flat",
        "  from 1,001 on: 0.09 usd flat",
    ]
