"""A metric: what a meter makes of the events its filter lets through.

Owns the kinds and their fixed combination code. It refuses to know filters, windows and how a value is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

COMBINE_ADD = 0
COMBINE_MAX = 1
COMBINE_MIN = 2
COMBINE_LATEST = 3
COMBINE_DISTINCT = 4


class MetricKind(StrEnum):
    """How the values of one window become one quantity."""

    COUNT = "count"
    SUM = "sum"
    MAX = "max"
    MIN = "min"
    LATEST = "latest"
    """The value of the event last by (time, partition, offset)."""
    UNIQUE = "unique"
    """How many different values there were."""

    @property
    def combine(self) -> int:
        """How two partial quantities of one window become one: the code that travels in a usage delta."""
        return _COMBINE[self]


_COMBINE = {
    MetricKind.COUNT: COMBINE_ADD,
    MetricKind.SUM: COMBINE_ADD,
    MetricKind.MAX: COMBINE_MAX,
    MetricKind.MIN: COMBINE_MIN,
    MetricKind.LATEST: COMBINE_LATEST,
    MetricKind.UNIQUE: COMBINE_DISTINCT,
}


@dataclass(frozen=True, slots=True)
class Metric:
    """One kind and the SQL expression of its value.

    `count` has no expression; with `weighted` it adds each event's `weight` instead of one.
    """

    kind: MetricKind
    expression: str | None = None
    weighted: bool = False

    def __post_init__(self) -> None:
        if (self.kind is MetricKind.COUNT) != (self.expression is None):
            raise ValueError(
                f"a {self.kind} metric {'takes no' if self.expression else 'needs an'} expression"
            )
        if self.weighted and self.kind is not MetricKind.COUNT:
            raise ValueError("only a count can be weighted")

    def to_document(self) -> object:
        """As it is written in meters.yaml: `count`, or a mapping of one kind to its expression."""
        if self.kind is MetricKind.COUNT:
            return {"count": "weight"} if self.weighted else "count"
        return {str(self.kind): self.expression}

    @classmethod
    def from_document(cls, document: object) -> Metric:
        """Inverse of `to_document`. Raises ValueError saying what a metric looks like."""
        if document == "count":
            return cls(MetricKind.COUNT)
        if not isinstance(document, dict) or len(document) != 1:
            raise ValueError(
                "a metric is `count`, or one of count, sum, max, min, latest, unique and its expression"
            )
        ((name, expression),) = document.items()
        if name not in list(MetricKind):
            raise ValueError(f"unknown metric {name!r}: use one of {', '.join(MetricKind)}")
        kind = MetricKind(name)
        if kind is MetricKind.COUNT:
            if expression != "weight":
                raise ValueError(
                    "count counts events (`count`) or their weight (`{count: weight}`); for more use sum"
                )
            return cls(kind, None, weighted=True)
        if not isinstance(expression, str) or not expression.strip():
            raise ValueError(f"{kind} needs an expression over the event's columns")
        return cls(kind, expression.strip())
