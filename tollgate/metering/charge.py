"""What of a billing period is charged, and which Billing Meter at Stripe can do it.

Owns the ways to charge and what each comes to with a meter's metric and mode. It refuses to know prices and Stripe's
calls.

A Billing Meter adds up (`sum`), counts (`count`) or takes the last event (`last`); it has no maximum, and it begins
every period at nothing. Tollgate sends *changes*: of a maximum, a minimum, a most recent value or a number of different
values it posts what the period's value has moved by, so a summing meter ends at the period's value. That is why every
way to charge that is possible comes to `sum`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from tollgate.metering.metric import MetricKind
from tollgate.metering.window import WindowSize

Formula = Literal["sum", "count", "last"]
TimeWindow = Literal["hour", "day"]


class Charge(StrEnum):
    """What of a period is charged."""

    SUM = "sum"
    """Everything in it, added up (or, of different values, their number)."""
    LAST_IN_PERIOD = "last_in_period"
    """Its most recent value."""
    LAST_EVER = "last_ever"
    """The most recent value, of an earlier period if this one has none. Stripe no longer offers it."""
    MAX = "max"
    """Its highest value."""
    MIN = "min"
    """Its lowest value."""


class Unchargeable(ValueError):
    """Nothing Stripe offers would charge this; the message says why and what comes nearest."""


@dataclass(frozen=True, slots=True)
class MeterShape:
    """What a Billing Meter must be for a meter's postings to come out right."""

    formula: Formula
    time_window: TimeWindow | None
    """None: every event counts. Else the last one received of each hour or day replaces those before."""

    def __str__(self) -> str:
        return (
            self.formula if self.time_window is None else f"{self.formula}, one value an {self.time_window}"
        )


_CHARGES = {
    MetricKind.COUNT: Charge.SUM,
    MetricKind.SUM: Charge.SUM,
    MetricKind.UNIQUE: Charge.SUM,
    MetricKind.MAX: Charge.MAX,
    MetricKind.MIN: Charge.MIN,
    MetricKind.LATEST: Charge.LAST_IN_PERIOD,
}
"""A metric says how the windows of a period become one value, so it says what is charged."""

_ADDITIVE = (MetricKind.COUNT, MetricKind.SUM)


def charge_of(kind: MetricKind) -> Charge:
    """What a meter of this metric charges."""
    return _CHARGES[kind]


def check_charge(kind: MetricKind, charge: Charge) -> None:
    """Raises Unchargeable where `charge` is not what the metric comes to, or is nothing Stripe offers."""
    if charge is Charge.LAST_EVER:
        raise Unchargeable(
            "last_ever is not offered any more: a Billing Meter begins every period at nothing; "
            "nearest: charge: last_in_period with metric: { latest: … }"
        )
    if charge is _CHARGES[kind]:
        return
    if charge is Charge.SUM:
        raise Unchargeable(
            f"the {kind} of a period is one value, which cannot be summed; nearest: charge: {_CHARGES[kind]}, "
            "or metric: { sum: … }"
        )
    wanted = next(metric for metric, charged in _CHARGES.items() if charged is charge)
    at_stripe = "its formula last would charge the last posting alone"
    if charge is not Charge.LAST_IN_PERIOD:
        at_stripe = f"a Billing Meter has no formula {charge}"
    raise Unchargeable(
        f"{charge} needs metric: {{ {wanted}: … }}, whose changes are sent to a summing meter ({at_stripe}); "
        f"nearest for {kind}: charge: {_CHARGES[kind]}"
    )


def shape_for(kind: MetricKind, mode: str, window: WindowSize) -> MeterShape | None:
    """The Billing Meter that postings of this metric need in a mode; None for `usage_record`, which needs none.

    Raises Unchargeable where the mode cannot post the metric.
    """
    if mode == "usage_record":
        return None
    if mode != "window_total":
        return MeterShape("sum", None)
    if kind not in _ADDITIVE:
        raise Unchargeable(
            f"window_total replaces whole windows, which a {kind} over a period is not made of; nearest: mode: delta"
        )
    if window is not WindowSize.HOUR:
        # Stripe knows days, too; but most billing periods begin within one, and a window cannot be split.
        raise Unchargeable(
            "window_total needs windows of an hour, each of which Stripe keeps one value for; "
            "nearest: window: hour, or mode: delta"
        )
    return MeterShape("sum", "hour")
