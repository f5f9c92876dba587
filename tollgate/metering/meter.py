"""Meters, as everyone else imports them: the types, and meters.yaml's reading and linting."""

from __future__ import annotations

from tollgate.metering.declaration import lint_meters, parse_meters
from tollgate.metering.definition import (
    SEND_MODES,
    STRIPE_MODES,
    Meter,
    MeterSet,
    MeterVersion,
    SendMode,
    StripeMode,
    StripeTarget,
)
from tollgate.metering.metric import Metric, MetricKind
from tollgate.metering.window import WindowSize

__all__ = [
    "SEND_MODES",
    "STRIPE_MODES",
    "Meter",
    "MeterSet",
    "MeterVersion",
    "Metric",
    "MetricKind",
    "SendMode",
    "StripeMode",
    "StripeTarget",
    "WindowSize",
    "lint_meters",
    "parse_meters",
]
