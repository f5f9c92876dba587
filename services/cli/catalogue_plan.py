"""The plan: the steps from what Stripe has to what is declared.

Owns every decision: create, adopt, change, nothing, refuse. Pure: the same declaration and the same findings give the
same steps. It refuses to know how Stripe is asked and in which order steps are carried out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from services.cli.catalogue import (
    CUSTOMER_KEY,
    PRODUCT_METADATA,
    VALUE_KEY,
    Action,
    Call,
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
)
from tollgate.metering.charge import MeterShape
from tollgate.metering.price import Price


def plan_catalogue(
    declared: Sequence[Declared],
    found: Found,
    known_event_names: Collection[str] = (),
    subscribers: Mapping[str, str] | None = None,
) -> Plan:
    """The steps from what Stripe has to what is declared.

    `known_event_names` are those the ledger's meters had before: their Billing Meters are not adopted any more.
    `subscribers` says for a price that is replaced who keeps it, in words.
    """
    products = _plan_products(declared, found)
    meters = _plan_meters(declared, found, known_event_names)
    prices = _plan_prices(declared, found, Plan((*products, *meters)), subscribers or {})
    return Plan((*products, *meters, *prices))


def _plan_products(declared: Sequence[Declared], found: Found) -> list[Step]:
    users: dict[str, list[str]] = {}
    for entry in declared:
        if entry.product is not None:
            users.setdefault(entry.product, []).append(entry.meter)
    return [_plan_product(name, tuple(meters), found.products) for name, meters in users.items()]


def _plan_product(name: str, meters: tuple[str, ...], found: Sequence[FoundProduct]) -> Step:
    step = Step(Noun.PRODUCT, Action.NOTHING, name, meters)
    ours = [product for product in found if product.key == name]
    live = [product for product in ours if product.active]
    if len(live) > 1:
        return _refuse(step, f"{_ids(live)} all carry metadata {PRODUCT_METADATA}={name}: leave it on one")
    if live:
        return replace(step, object_id=live[0].product_id)
    if ours:
        return _refuse(
            step, f"{_ids(ours)} is archived at Stripe: unarchive it there, or name another product"
        )
    twins = [product for product in found if product.active and product.name == name and product.key is None]
    if len(twins) > 1:
        return _refuse(
            step,
            f"{_ids(twins)} are all called {name!r}: set metadata {PRODUCT_METADATA}={name} on the one that is meant",
        )
    if twins:
        product_id = twins[0].product_id
        return replace(step, action=Action.ADOPT, object_id=product_id, call=TagProduct(product_id, name))
    return replace(step, action=Action.CREATE, call=CreateProduct(name))


def _plan_meters(declared: Sequence[Declared], found: Found, known: Collection[str]) -> list[Step]:
    return [
        _plan_meter(entry, [meter for meter in found.meters if meter.event_name == entry.event_name], known)
        for entry in declared
    ]


def _plan_meter(entry: Declared, found: Sequence[FoundMeter], known: Collection[str]) -> Step:
    step = Step(Noun.METER, Action.NOTHING, entry.event_name, (entry.meter,))
    active = next((meter for meter in found if meter.active), None)
    if active is None and found:
        return _refuse(
            replace(step, object_id=found[0].meter_id),
            "it is deactivated at Stripe: reactivate it there, or choose another event_name "
            "(until then this meter alone is not sent)",
        )
    if active is None:
        return replace(
            step,
            action=Action.CREATE,
            says=(str(entry.shape),),
            call=CreateMeter(entry.event_name, entry.meter, entry.shape),
        )
    step = replace(step, object_id=active.meter_id)
    misfits = tuple(_misfits(entry.shape, active))
    if misfits:
        return _refuse(step, *misfits, "a Billing Meter cannot be edited in this: choose another event_name")
    return step if entry.event_name in known else replace(step, action=Action.ADOPT)


def _misfits(shape: MeterShape, found: FoundMeter) -> list[str]:
    """Why usage posted to this Billing Meter would be billed wrongly, or not at all."""
    reasons = []
    if found.formula != shape.formula:
        reasons.append(f"its formula is {found.formula}, and postings need {shape.formula}")
    if found.time_window != shape.time_window:
        has = f"one value an {found.time_window}" if found.time_window else "every event"
        needs = f"one an {shape.time_window}" if shape.time_window else "every event"
        reasons.append(f"it keeps {has} (event_time_window), and postings need {needs} kept")
    if found.customer_key != CUSTOMER_KEY:
        reasons.append(f"it reads the customer from {found.customer_key!r}, postings carry {CUSTOMER_KEY!r}")
    if found.value_key != VALUE_KEY:
        reasons.append(f"it reads the value from {found.value_key!r}, postings carry {VALUE_KEY!r}")
    return reasons


def _plan_prices(
    declared: Sequence[Declared], found: Found, above: Plan, subscribers: Mapping[str, str]
) -> list[Step]:
    refused = {(step.noun, step.name) for step in above.refused}
    products, meters = above.ids(Noun.PRODUCT), above.ids(Noun.METER)
    steps: list[Step] = []
    keys: dict[str, str] = {}
    for entry in declared:
        if entry.price is None or entry.product is None:
            continue
        step = Step(Noun.PRICE, Action.NOTHING, entry.lookup_key, (entry.meter,), terms=entry.price)
        taken = keys.setdefault(entry.lookup_key, entry.meter)
        if taken != entry.meter:
            steps.append(_refuse(step, f"meter {taken!r} has the same lookup_key: one price has one"))
        elif (Noun.PRODUCT, entry.product) in refused or (Noun.METER, entry.event_name) in refused:
            # The refusal above says it all; what the price would become depends on how it is mended.
            continue
        else:
            place = _Place(products.get(entry.product), meters.get(entry.event_name))
            steps.append(_plan_price(step, entry, entry.price, place, found.prices, subscribers))
    return steps


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a price belongs; None for what is still to be made."""

    product_id: str | None
    meter_id: str | None

    def has(self, price: FoundPrice) -> bool:
        return price.product_id == self.product_id and price.meter_id == self.meter_id


def _plan_price(
    step: Step,
    entry: Declared,
    terms: Price,
    place: _Place,
    found: Sequence[FoundPrice],
    subscribers: Mapping[str, str],
) -> Step:
    assert entry.product is not None, "a price has a product"
    create = CreatePrice(entry.lookup_key, entry.product, entry.event_name, terms, None)
    holder = next((price for price in found if price.lookup_key == entry.lookup_key), None)
    equals = [price for price in found if place.has(price) and _same(price.terms, terms)]
    if holder is None:
        return _plan_first_price(step, create, equals)
    step = replace(step, object_id=holder.price_id)
    if holder in equals:
        if not holder.active:
            return _refuse(
                step, "it is archived at Stripe: unarchive it there, or take the price out of the file"
            )
        assert holder.terms is not None, "equal terms are terms"
        if holder.terms.description == terms.description:
            return step
        return replace(
            step,
            action=Action.CHANGE,
            says=(f"description {holder.terms.description!r} becomes {terms.description!r}, in place",),
            call=DescribePrice(holder.price_id, terms.description),
        )
    twin = next((price for price in equals if price.active and price.lookup_key is None), None)
    says = [_why_new(holder, terms, place)]
    call: Call = replace(create, replaces=holder.price_id)
    if twin is not None:
        says.append(f"{twin.price_id} has these terms and gets the lookup key")
        call = KeyPrice(entry.lookup_key, twin.price_id)
    else:
        says.append("a new price gets the lookup key")
    count = subscribers.get(holder.price_id, "existing subscriptions keep it")
    says.append(f"{holder.price_id} stays as it is: {count}")
    return replace(
        step,
        action=Action.CHANGE,
        says=tuple(says),
        call=call,
        replaces=holder.price_id,
        was=holder.terms,
    )


def _plan_first_price(step: Step, create: CreatePrice, equals: Sequence[FoundPrice]) -> Step:
    """Nobody has the lookup key: adopt the one price of these terms, or make one."""
    twins = [price for price in equals if price.active and price.lookup_key is None]
    if len(twins) > 1:
        return _refuse(
            step,
            f"{_price_ids(twins)} all have these terms: set lookup_key {step.name} on the one that is meant",
        )
    if twins:
        price_id = twins[0].price_id
        return replace(
            step, action=Action.ADOPT, object_id=price_id, call=KeyPrice(create.lookup_key, price_id)
        )
    named = [price for price in equals if price.active]
    says = tuple(
        f"{price.price_id} has these terms already; to adopt it write lookup_key: {price.lookup_key}"
        for price in named
    )
    return replace(step, action=Action.CREATE, says=says, call=create)


def _same(found: Price | None, terms: Price) -> bool:
    """Whether a unit costs the same; what it is called aside."""
    return found is not None and replace(found, description=None) == replace(terms, description=None)


def _why_new(holder: FoundPrice, terms: Price, place: _Place) -> str:
    if holder.terms is None:
        return f"{holder.price_id} has the lookup key, but {holder.foreign}"
    if not _same(holder.terms, terms):
        return "terms cannot be edited in Stripe"
    if holder.meter_id != place.meter_id:
        return f"{holder.price_id} belongs to another Billing Meter, and cannot be moved"
    return f"{holder.price_id} belongs to another product, and cannot be moved"


def _refuse(step: Step, *reasons: str) -> Step:
    return replace(step, action=Action.REFUSE, says=reasons, call=None)


def _ids(products: Sequence[FoundProduct]) -> str:
    return ", ".join(product.product_id for product in products)


def _price_ids(prices: Sequence[FoundPrice]) -> str:
    return ", ".join(price.price_id for price in prices)
