"""What is metered in a run: meters as the product is given them, each beside its rule in plain Python.

Owns both, so that the model counts by the one and the product by the other. It refuses to know how either counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tollgate.metering.meter import Meter, Metric, MetricKind, StripeTarget, WindowSize

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

CALLS = "calls"
WEIGHT = "weight"
USERS = "users"


@dataclass(frozen=True, slots=True)
class Event:
    """One call, as the gateway logged it."""

    id: str
    account: str
    time_ms: int
    status: int
    weight: int
    user: str
    weak: bool = False


Matches = Callable[[Event], bool]

CALLS_BELOW_500 = "status < 500"
CALLS_BELOW_400 = "status < 400"

FILTERS: Mapping[str | None, Matches] = {
    None: lambda event: True,
    CALLS_BELOW_500: lambda event: event.status < 500,
    CALLS_BELOW_400: lambda event: event.status < 400,
}
"""By the SQL a meter is given: the same in Python."""


def _target(name: str, mode: str) -> StripeTarget:
    return StripeTarget.from_document(
        {"mode": mode, "send": "live", "event_name": name, "product": None, "price": None, "closed": None}
    )


def _calls(mode: str = "delta") -> Meter:
    return Meter(CALLS, CALLS_BELOW_500, Metric(MetricKind.COUNT), WindowSize.HOUR, (), _target(CALLS, mode))


def _weight(mode: str) -> Meter:
    return Meter(
        WEIGHT, None, Metric(MetricKind.COUNT, weighted=True), WindowSize.HOUR, (), _target(WEIGHT, mode)
    )


_USERS = Meter(
    USERS, None, Metric.from_document({"unique": "user"}), WindowSize.HOUR, (), _target(USERS, "delta")
)

PROFILES: Mapping[str, tuple[Meter, ...]] = {
    "delta": (_calls(), _weight("delta")),
    "window_total": (_calls(), _weight("window_total")),
    "usage_record": (_calls(), _weight("usage_record")),
    "unique": (_calls(), _USERS),
}
"""What may be metered in a run. Two meters each: a flush costs by the meter."""


def changed(profile: str, where: str) -> tuple[Meter, ...]:
    """The profile's meters with another filter on the first."""
    first, *others = PROFILES[profile]
    return (replace(first, where=where), *others)
