"""A meter as applied: its filter, metric, windows, dimensions and where its usage goes in Stripe.

Owns the types and their canonical JSON form, which is what the ledger keeps. It refuses to know YAML
(`declaration`), how expressions are checked (`expression`) and how they run (`compiled`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from tollgate.metering.closed import ClosedPolicy
from tollgate.metering.metric import Metric
from tollgate.metering.price import DeclaredPrice
from tollgate.metering.window import WindowSize

StripeMode = Literal["delta", "window_total", "usage_record"]
SendMode = Literal["off", "dry_run", "live"]

STRIPE_MODES: tuple[StripeMode, ...] = ("delta", "window_total", "usage_record")
SEND_MODES: tuple[SendMode, ...] = ("off", "dry_run", "live")


@dataclass(frozen=True, slots=True)
class StripeTarget:
    """Where a meter's usage goes in Stripe."""

    mode: StripeMode
    send: SendMode
    event_name: str
    """Of the Stripe Billing Meter."""
    product: str | None = None
    """Name of the product to create or find for it."""
    price: DeclaredPrice | None = None
    """What a unit costs. It does not change what is counted."""
    closed: ClosedPolicy | None = None
    """What becomes of usage for a final invoice; None: as the installation has it."""

    def to_document(self) -> dict[str, Any]:
        """Plain JSON values, every key present."""
        return {
            "event_name": self.event_name,
            "mode": self.mode,
            "send": self.send,
            "product": self.product,
            "price": self.price.to_document() if self.price else None,
            "closed": None if self.closed is None else str(self.closed),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> StripeTarget:
        """Inverse of `to_document`. Raises KeyError or ValueError for anything else."""
        mode, send, price = document["mode"], document["send"], document["price"]
        closed = document.get("closed")  # absent from ledgers older than the choice
        if mode not in STRIPE_MODES or send not in SEND_MODES:
            raise ValueError(f"not a Stripe target: mode {mode!r}, send {send!r}")
        return cls(
            event_name=document["event_name"],
            mode=cast("StripeMode", mode),
            send=cast("SendMode", send),
            product=document["product"],
            price=None if price is None else DeclaredPrice.from_document(price),
            closed=None if closed is None else ClosedPolicy(closed),
        )


@dataclass(frozen=True, slots=True)
class Meter:
    """A filter, a metric, a window size, dimensions, and where the usage goes."""

    name: str
    where: str | None
    metric: Metric
    window: WindowSize = WindowSize.HOUR
    group_by: tuple[str, ...] = ()
    stripe: StripeTarget | None = None

    def to_document(self) -> dict[str, Any]:
        """Canonical JSON-able form: two meters are the same exactly if their documents are equal."""
        return {
            "name": self.name,
            "where": self.where,
            "metric": self.metric.to_document(),
            "window": str(self.window),
            "group_by": list(self.group_by),
            "stripe": self.stripe.to_document() if self.stripe else None,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Meter:
        """Inverse of `to_document`. Raises KeyError or ValueError for anything else."""
        stripe = document["stripe"]
        return cls(
            name=document["name"],
            where=document["where"],
            metric=Metric.from_document(document["metric"]),
            window=WindowSize(document["window"]),
            group_by=tuple(document["group_by"]),
            stripe=None if stripe is None else StripeTarget.from_document(stripe),
        )


@dataclass(frozen=True, slots=True)
class MeterVersion:
    """One immutable version of a meter: it counts events of time `[from_ms, to_ms)`, for ever when `to_ms` is None."""

    meter_id: int
    meter: Meter
    from_ms: int
    to_ms: int | None = None


@dataclass(frozen=True, slots=True)
class MeterSet:
    """Everything that is counted at one version of the catalogue."""

    version: int
    meters: tuple[MeterVersion, ...]
    partitions: int = 0
    """Of the log, while this set is in force: a record that was written for another number may be in the wrong
    partition. 0 where it is not known."""
