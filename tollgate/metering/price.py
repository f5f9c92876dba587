"""A price: what a unit of usage costs, in one of Stripe's four models.

Owns the type, what makes one valid and its canonical JSON form. It refuses to know how an amount comes out
(`pricing`), how meters.yaml spells it (`declared_price`) and how Stripe does (`stripe_price`).

Amounts are exact decimals of the currency's minor unit (cents), with at most twelve decimal places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from itertools import pairwise
from typing import Any, Literal, cast

from tollgate.metering.charge import Charge

AMOUNT_PLACES_MAX = 12
"""What Stripe keeps of a decimal amount."""

IntervalUnit = Literal["day", "week", "month", "year"]
Rounding = Literal["up", "down"]

INTERVAL_COUNT_MAX: Mapping[str, int] = {"day": 1095, "week": 156, "month": 36, "year": 3}
"""Stripe bills at least every three years."""
ROUNDINGS: tuple[Rounding, ...] = ("up", "down")


class PriceModel(StrEnum):
    """How a quantity becomes an amount."""

    STANDARD = "standard"
    """Every unit costs the same."""
    PACKAGE = "package"
    """Units are sold by packages of a size."""
    GRADUATED = "graduated"
    """Each unit costs what the tier it falls in says."""
    VOLUME = "volume"
    """All units cost what the tier of the total says."""

    @property
    def tiered(self) -> bool:
        """Whether its amounts stand in tiers."""
        return self in (PriceModel.GRADUATED, PriceModel.VOLUME)


@dataclass(frozen=True, slots=True)
class Interval:
    """How long a billing period is. Raises ValueError for one that Stripe does not have."""

    unit: IntervalUnit
    every: int = 1

    def __post_init__(self) -> None:
        if self.unit not in INTERVAL_COUNT_MAX:
            raise ValueError(f"{self.unit!r} is none of {', '.join(INTERVAL_COUNT_MAX)}")
        if not 1 <= self.every <= INTERVAL_COUNT_MAX[self.unit]:
            raise ValueError(
                f"every {self.every} {self.unit}s: from 1 to {INTERVAL_COUNT_MAX[self.unit]} (three years) is possible"
            )

    def __str__(self) -> str:
        return self.unit if self.every == 1 else f"{self.every} {self.unit}s"


@dataclass(frozen=True, slots=True)
class Package:
    """Units sold together."""

    size: int
    round: Rounding
    """`up`: a package that is begun is due. `down`: only full packages are."""


@dataclass(frozen=True, slots=True)
class Tier:
    """From the bound of the tier before (exclusive) up to its own."""

    up_to: int | None
    """The last unit in it; None for the last tier, which has no end."""
    unit_amount: Decimal = Decimal(0)
    flat_amount: Decimal = Decimal(0)
    """Due once when the tier is reached. The first tier is reached by no usage at all."""


@dataclass(frozen=True, slots=True)
class Price:
    """Terms of usage in one currency and billing period. Raises ValueError when they contradict each other."""

    model: PriceModel
    currency: str
    interval: Interval
    unit_amount: Decimal | None = None
    """Per unit (standard) or per package; None where tiers say it."""
    package: Package | None = None
    tiers: tuple[Tier, ...] = ()
    description: str | None = None

    def __post_init__(self) -> None:
        if self.model.tiered != (self.unit_amount is None) or self.model.tiered != bool(self.tiers):
            raise ValueError(
                f"a {self.model} price has {'tiers' if self.model.tiered else 'one unit amount'}"
            )
        if (self.model is PriceModel.PACKAGE) != (self.package is not None):
            raise ValueError(f"a {self.model} price, and a package: {self.package}")
        problem = find_tier_problem(self.tiers) if self.tiers else None
        if problem is not None:
            raise ValueError(f"tier {problem[0] + 1}: {problem[1]}")

    def to_document(self) -> dict[str, Any]:
        """Plain JSON values, every key present, amounts as plain decimal text: equal exactly if the prices are."""
        return {
            "model": str(self.model),
            "currency": self.currency,
            "interval": {"every": self.interval.every, "unit": self.interval.unit},
            "unit_amount": None if self.unit_amount is None else plain_decimal(self.unit_amount),
            "package": None
            if self.package is None
            else {"size": self.package.size, "round": self.package.round},
            "tiers": [
                {
                    "up_to": tier.up_to,
                    "unit_amount": plain_decimal(tier.unit_amount),
                    "flat_amount": plain_decimal(tier.flat_amount),
                }
                for tier in self.tiers
            ],
            "description": self.description,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Price:
        """Inverse of `to_document`. Raises KeyError or ValueError for anything else."""
        package, unit_amount = document["package"], document["unit_amount"]
        interval = document["interval"]
        return cls(
            model=PriceModel(document["model"]),
            currency=document["currency"],
            interval=Interval(interval["unit"], interval["every"]),
            unit_amount=None if unit_amount is None else Decimal(unit_amount),
            package=None if package is None else Package(package["size"], cast("Rounding", package["round"])),
            tiers=tuple(
                Tier(tier["up_to"], Decimal(tier["unit_amount"]), Decimal(tier["flat_amount"]))
                for tier in document["tiers"]
            ),
            description=document["description"],
        )


@dataclass(frozen=True, slots=True)
class DeclaredPrice:
    """What meters.yaml says under `price`: the terms, and what of a period is charged."""

    price: Price
    charge: Charge
    lookup_key: str | None = None
    """The name it is found by at Stripe; None for one made of the meter's name."""

    def to_document(self) -> dict[str, Any]:
        """Plain JSON values, every key present."""
        return {**self.price.to_document(), "charge": str(self.charge), "lookup_key": self.lookup_key}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> DeclaredPrice:
        """Inverse of `to_document`. Raises KeyError or ValueError for anything else."""
        return cls(Price.from_document(document), Charge(document["charge"]), document["lookup_key"])


def find_tier_problem(tiers: Sequence[Tier]) -> tuple[int, str] | None:
    """The first tier (counted from 0) that is out of place, and why; None when they are in order."""
    for index, (before, tier) in enumerate(pairwise(tiers), start=1):
        if before.up_to is None:
            return index - 1, "only the last tier is without an end (up_to: inf)"
        if tier.up_to is not None and tier.up_to <= before.up_to:
            return index, f"up_to {tier.up_to} is not above the {before.up_to} of the tier before"
    if tiers[-1].up_to is not None:
        return (
            len(tiers) - 1,
            "the last tier must have no end (up_to: inf), or usage beyond it would be free",
        )
    return None


def plain_decimal(number: Decimal) -> str:
    """A decimal without exponent or needless zeros: `0.000009`, `10`, `0`."""
    text = f"{number:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text
