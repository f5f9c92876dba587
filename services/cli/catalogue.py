"""The catalogue: what meters declare, what Stripe has, and what a step from one to the other is.

Owns those types. It refuses to know which steps are taken (`catalogue_plan`), how Stripe is asked
(`catalogue_stripe`) and how anything is printed (`catalogue_text`).

How things are found again, so that nothing is ever made twice: a product by the metadata key `tollgate_product`, a
Billing Meter by its event_name, a price by its lookup_key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from tollgate.metering.charge import MeterShape, shape_for
from tollgate.metering.meter import Meter
from tollgate.metering.price import Price

PRODUCT_METADATA = "tollgate_product"
"""The metadata key whose value is the product's name in meters.yaml; at Stripe it may be called otherwise."""
CUSTOMER_KEY = "stripe_customer_id"
VALUE_KEY = "value"
"""What postings carry, so what a Billing Meter must read. They are Stripe's own defaults."""


class Noun(StrEnum):
    """What a step is about, in the order steps are carried out: a price needs its product and its meter."""

    PRODUCT = "product"
    METER = "meter"
    PRICE = "price"


class Action(StrEnum):
    """What a step does."""

    CREATE = "create"
    ADOPT = "adopt"
    """It was there before Tollgate was, and fits."""
    CHANGE = "change"
    NOTHING = "nothing"
    REFUSE = "refuse"
    """It cannot be had as declared: nothing at all is carried out."""


# ------------------------------------------------------------------------------------ what is declared


@dataclass(frozen=True, slots=True)
class Declared:
    """What one meter wants at Stripe."""

    meter: str
    """Its name in meters.yaml."""
    event_name: str
    shape: MeterShape
    product: str | None
    price: Price | None
    lookup_key: str


def declare(meters: Sequence[Meter]) -> tuple[Declared, ...]:
    """What the meters want at Stripe; those that need no Billing Meter are left out.

    Raises Unchargeable for a meter whose mode cannot post its metric (meters.yaml was refused before that).
    """
    wanted = []
    for meter in meters:
        target = meter.stripe
        shape = shape_for(meter.metric.kind, target.mode, meter.window) if target is not None else None
        if target is None or shape is None:
            continue
        declared = target.price
        wanted.append(
            Declared(
                meter=meter.name,
                event_name=target.event_name,
                shape=shape,
                product=target.product or (meter.name if declared else None),
                price=declared.price if declared else None,
                lookup_key=(declared.lookup_key if declared else None) or f"tollgate_{meter.name}",
            )
        )
    return tuple(wanted)


# ---------------------------------------------------------------------------------------- what is there


@dataclass(frozen=True, slots=True)
class FoundProduct:
    """A product at Stripe."""

    product_id: str
    name: str
    active: bool
    key: str | None
    """Its `tollgate_product`."""


@dataclass(frozen=True, slots=True)
class FoundMeter:
    """A Billing Meter at Stripe."""

    meter_id: str
    event_name: str
    active: bool
    formula: str
    time_window: str | None
    customer_key: str
    value_key: str


@dataclass(frozen=True, slots=True)
class FoundPrice:
    """A price at Stripe."""

    price_id: str
    active: bool
    lookup_key: str | None
    product_id: str
    meter_id: str | None
    terms: Price | None
    """None for one that is of no kind a meter's price can be."""
    foreign: str = ""
    """Then: why."""


@dataclass(frozen=True, slots=True)
class Found:
    """What Stripe has of what is declared, and what could be meant by it."""

    products: tuple[FoundProduct, ...] = ()
    meters: tuple[FoundMeter, ...] = ()
    prices: tuple[FoundPrice, ...] = ()


# ------------------------------------------------------------------------------------------- the plan


@dataclass(frozen=True, slots=True)
class CreateProduct:
    """Make a product, found again by its key."""

    name: str


@dataclass(frozen=True, slots=True)
class TagProduct:
    """Write the key on a product that is there."""

    product_id: str
    name: str


@dataclass(frozen=True, slots=True)
class CreateMeter:
    """Make a Billing Meter."""

    event_name: str
    display_name: str
    shape: MeterShape


@dataclass(frozen=True, slots=True)
class CreatePrice:
    """Make a price and give it the lookup key, taken from the price that had it."""

    lookup_key: str
    product: str
    """Its product's name in meters.yaml: the id may only be known once the step before is done."""
    event_name: str
    terms: Price
    replaces: str | None
    """The price that had the lookup key when this was planned. Part of the idempotency key: terms that come back
    within a day must not be answered with the price they had then."""


@dataclass(frozen=True, slots=True)
class KeyPrice:
    """Give the lookup key to a price that is there."""

    lookup_key: str
    price_id: str


@dataclass(frozen=True, slots=True)
class DescribePrice:
    """Write another description: the one thing that can be edited in a price."""

    price_id: str
    description: str | None


Call = CreateProduct | TagProduct | CreateMeter | CreatePrice | KeyPrice | DescribePrice


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the plan."""

    noun: Noun
    action: Action
    name: str
    """The product's name, the event_name, or the lookup key."""
    meters: tuple[str, ...]
    """The meters it is for."""
    object_id: str | None = None
    """At Stripe, where it is known already."""
    says: tuple[str, ...] = ()
    """What a person should know: why, what was, what becomes of whom."""
    call: Call | None = None
    """What carries it out; None when there is nothing to do."""
    terms: Price | None = None
    """Of a price: as declared."""
    replaces: str | None = None
    """The id of the price that loses its lookup key, where one does."""
    was: Price | None = None
    """Its terms, where they can be said."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Every step, in the order they are carried out."""

    steps: tuple[Step, ...]

    @property
    def refused(self) -> tuple[Step, ...]:
        """The steps that forbid all others."""
        return tuple(step for step in self.steps if step.action is Action.REFUSE)

    @property
    def calls(self) -> tuple[Step, ...]:
        """The steps that change something at Stripe."""
        return tuple(step for step in self.steps if step.call is not None)

    @property
    def replaced(self) -> tuple[str, ...]:
        """The ids of prices that lose their lookup key to another."""
        return tuple(step.replaces for step in self.steps if step.replaces is not None)

    def ids(self, noun: Noun) -> dict[str, str]:
        """The ids that are known before anything is carried out, by name."""
        return {
            step.name: step.object_id
            for step in self.steps
            if step.noun is noun and step.object_id is not None
        }
