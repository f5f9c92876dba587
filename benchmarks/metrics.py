"""Metrics of a running service, read as any scraper would.

Owns the fetch and a histogram's quantile. It refuses to know what the metrics mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True, slots=True)
class Samples:
    """One scrape."""

    values: Mapping[tuple[str, tuple[tuple[str, str], ...]], float]

    def total(self, name: str, **labels: str) -> float:
        """The sum of a series over the labels not given."""
        wanted = set(labels.items())
        return sum(
            value for (series, held), value in self.values.items() if series == name and wanted <= set(held)
        )

    def buckets(self, name: str) -> list[tuple[float, float]]:
        """(upper bound, cumulative count) of a histogram, ascending, summed over its labels."""
        found: dict[float, float] = {}
        for (series, held), value in self.values.items():
            if series == f"{name}_bucket":
                bound = float(dict(held)["le"])
                found[bound] = found.get(bound, 0.0) + value
        return sorted(found.items())


def read_samples(url: str) -> Samples:
    """Scrape `url`. Raises httpx.HTTPError."""
    answer = httpx.get(url, timeout=10.0, trust_env=False)
    answer.raise_for_status()
    return parse_samples(answer.text)


def parse_samples(text: str) -> Samples:
    """The samples of Prometheus' text format."""
    return Samples(
        {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    )


def quantile(buckets: Sequence[tuple[float, float]], share: float) -> float:
    """The value below which `share` of the observations lie, interpolated within its bucket as Prometheus does.

    The upper bound of the last finite bucket when it lies beyond. Raises ValueError without observations.
    """
    total = buckets[-1][1] if buckets else 0.0
    if not total:
        raise ValueError("a histogram without observations has no quantile")
    rank = share * total
    below_bound, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            if bound == float("inf"):
                return below_bound
            return below_bound + (bound - below_bound) * (rank - below) / (count - below)
        below_bound, below = bound, count
    raise AssertionError("the last bucket holds every observation")
