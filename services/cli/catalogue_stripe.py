"""The catalogue at Stripe: what is found there, and the calls that carry a plan out.

Owns Stripe's spelling of products, Billing Meters and prices. It refuses to decide anything: `catalogue` does.

A plan that is interrupted anywhere is simply made again: whatever was done is found by its metadata, event_name or
lookup_key, and a call that is still on its way has the same idempotency key as its repetition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from services.cli.catalogue import (
    CUSTOMER_KEY,
    PRODUCT_METADATA,
    VALUE_KEY,
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
from services.cli.gateway import Json, idempotency_key
from tollgate.metering.pricing import ForeignPrice, price_from_fields, price_to_fields

PRODUCTS, METERS, PRICES = "/v1/products", "/v1/billing/meters", "/v1/prices"
_LOOKUP_KEYS_MAX = 10
"""Stripe looks up ten at once."""
_TIERS = ["data.tiers"]
"""Tiers are left out of a price unless they are asked for."""


class Conversation(Protocol):
    """What this file asks of the gateway."""

    def list_all(self, path: str, **params: Any) -> list[Json]: ...

    def first_page(self, path: str, **params: Any) -> tuple[list[Json], bool]: ...

    def create_once(
        self, path: str, params: Json, key: str, find: Callable[[], Json | None] = ...
    ) -> Json: ...

    def update(self, path: str, **params: Any) -> Json: ...


# --------------------------------------------------------------------------------------------- finding


def find_catalogue(stripe: Conversation, declared: Sequence[Declared]) -> Found:
    """What Stripe has of what is declared, and what could be meant by it. Reads only."""
    if not declared:
        return Found()
    names = {entry.event_name for entry in declared}
    meters = [_meter(body) for body in stripe.list_all(METERS) if body["event_name"] in names]
    products = (
        tuple(_product(body) for body in stripe.list_all(PRODUCTS))
        if any(entry.product for entry in declared)
        else ()
    )
    return Found(products, tuple(meters), tuple(_find_prices(stripe, declared, meters)))


def _find_prices(
    stripe: Conversation, declared: Sequence[Declared], meters: Sequence[FoundMeter]
) -> list[FoundPrice]:
    """The prices that have a lookup key that is wanted, and those for sale on a Billing Meter that is."""
    priced = [entry for entry in declared if entry.price is not None]
    bodies: dict[str, Json] = {}
    for keys in _batches(sorted({entry.lookup_key for entry in priced})):
        for body in stripe.list_all(PRICES, lookup_keys=keys, expand=_TIERS):
            bodies[body["id"]] = body
    names = {entry.event_name for entry in priced}
    for meter in meters:
        if meter.active and meter.event_name in names:
            for body in stripe.list_all(
                PRICES, active=True, recurring={"meter": meter.meter_id}, expand=_TIERS
            ):
                bodies[body["id"]] = body
    # In a fixed order, so that a plan does not depend on how Stripe lists.
    return sorted(map(_price, bodies.values()), key=lambda price: price.price_id)


def _batches(keys: Sequence[str]) -> list[list[str]]:
    return [list(keys[start : start + _LOOKUP_KEYS_MAX]) for start in range(0, len(keys), _LOOKUP_KEYS_MAX)]


def count_subscribers(stripe: Conversation, price_id: str) -> str:
    """Who keeps a price that is replaced, in words."""
    found, more = stripe.first_page("/v1/subscriptions", price=price_id)
    if not found:
        return "no subscription has it"
    if len(found) == 1:
        return "1 subscription keeps it until it is moved to the new one"
    return (
        f"{len(found)}{' or more' if more else ''} subscriptions keep it until they are moved to the new one"
    )


def _product(body: Json) -> FoundProduct:
    key = (body.get("metadata") or {}).get(PRODUCT_METADATA)
    return FoundProduct(body["id"], body["name"], bool(body["active"]), key)


def _meter(body: Json) -> FoundMeter:
    return FoundMeter(
        meter_id=body["id"],
        event_name=body["event_name"],
        active=body["status"] == "active",
        formula=body["default_aggregation"]["formula"],
        time_window=body.get("event_time_window"),
        customer_key=body["customer_mapping"]["event_payload_key"],
        value_key=body["value_settings"]["event_payload_key"],
    )


def _price(body: Json) -> FoundPrice:
    terms, foreign = None, ""
    try:
        terms = price_from_fields(body)
    except ForeignPrice as error:
        foreign = str(error)
    return FoundPrice(
        price_id=body["id"],
        active=bool(body["active"]),
        lookup_key=body.get("lookup_key"),
        product_id=body["product"],
        meter_id=(body.get("recurring") or {}).get("meter"),
        terms=terms,
        foreign=foreign,
    )


# ---------------------------------------------------------------------------------------- carrying out


def carry_out(
    stripe: Conversation, plan: Plan, done: Callable[[Step, str], None] = lambda *_: None
) -> dict[tuple[Noun, str], str]:
    """Carry out a plan that has no refusals; `done` is told each step with the id it came to.

    Returns every id by noun and name. Raises StripeUnreachable; then a new plan goes on where this one stopped.
    """
    assert not plan.refused, "a plan with refusals is not carried out"
    ids = {(step.noun, step.name): step.object_id for step in plan.steps if step.object_id is not None}
    for step in plan.calls:
        ids[step.noun, step.name] = made = _call(stripe, step, ids)
        done(step, made)
    return ids


def _call(stripe: Conversation, step: Step, ids: dict[tuple[Noun, str], str]) -> str:
    call = step.call
    if isinstance(call, CreateProduct):
        return _create_product(stripe, call)
    if isinstance(call, TagProduct):
        stripe.update(f"{PRODUCTS}/{call.product_id}", metadata={PRODUCT_METADATA: call.name})
        return call.product_id
    if isinstance(call, CreateMeter):
        return _create_meter(stripe, call)
    if isinstance(call, CreatePrice):
        return _create_price(stripe, call, ids[Noun.PRODUCT, call.product], ids[Noun.METER, call.event_name])
    if isinstance(call, KeyPrice):
        stripe.update(f"{PRICES}/{call.price_id}", lookup_key=call.lookup_key, transfer_lookup_key=True)
        return call.price_id
    assert isinstance(call, DescribePrice), "every kind of call has its branch"
    stripe.update(f"{PRICES}/{call.price_id}", nickname=call.description or "")
    return call.price_id


def _create_product(stripe: Conversation, call: CreateProduct) -> str:
    params = {"name": call.name, "metadata": {PRODUCT_METADATA: call.name}}

    def find() -> Json | None:
        listed = stripe.list_all(PRODUCTS)
        return next((body for body in listed if _product(body).key == call.name and body["active"]), None)

    return str(stripe.create_once(PRODUCTS, params, idempotency_key("product", params), find)["id"])


def _create_meter(stripe: Conversation, call: CreateMeter) -> str:
    params: dict[str, Any] = {
        "display_name": call.display_name,
        "event_name": call.event_name,
        "default_aggregation": {"formula": call.shape.formula},
        "customer_mapping": {"type": "by_id", "event_payload_key": CUSTOMER_KEY},
        "value_settings": {"event_payload_key": VALUE_KEY},
    }
    if call.shape.time_window is not None:
        params["event_time_window"] = call.shape.time_window

    def find() -> Json | None:
        listed = stripe.list_all(METERS, status="active")
        return next((body for body in listed if body["event_name"] == call.event_name), None)

    return str(stripe.create_once(METERS, params, idempotency_key("meter", params), find)["id"])


def _create_price(stripe: Conversation, call: CreatePrice, product_id: str, meter_id: str) -> str:
    params = price_to_fields(call.terms)
    params |= {
        "product": product_id,
        "recurring": {**params["recurring"], "meter": meter_id},
        "lookup_key": call.lookup_key,
        "transfer_lookup_key": True,
    }

    def find() -> Json | None:
        listed = stripe.list_all(PRICES, lookup_keys=[call.lookup_key], expand=_TIERS)
        return next((body for body in listed if body["id"] != call.replaces), None)

    key = idempotency_key("price", params, call.replaces)
    return str(stripe.create_once(PRICES, params, key, find)["id"])
