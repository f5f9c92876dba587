"""Metrics: the registry of one process, and how it is written out.

Owns the registry's making and the bucket choices. It refuses to know any service's metrics: those are in each
service's own `metrics.py`, on the registry made here. One process, one registry; no multiprocess mode.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, GCCollector, Info, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.utils import floatToGoString

Registry = CollectorRegistry
"""The type of a registry, for files that pass one on without making metrics."""

BUCKETS_SECONDS: tuple[float, ...] = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
"""For requests, transactions and calls: from what a loopback call takes to past every timeout of ours.
0.25 is a boundary because the latency objective for accepting events is stated at 250 ms."""

BUCKETS_FRESHNESS_SECONDS: tuple[float, ...] = (
    0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 21600.0, 86400.0,
)  # fmt: skip
"""For the age of work when it is done: from one flush to a backlog of a day. 600 is the freshness objective."""

BUCKETS_BYTES: tuple[float, ...] = tuple(float(4**exponent) for exponent in range(4, 13))
"""For sizes: 256 bytes to 16 MiB (the largest body accepted by default), in steps of four."""


def new_registry(service: str, version: str) -> CollectorRegistry:
    """A registry with the process' own metrics (CPU, memory, file descriptors, collections) and build info."""
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    build = Info("tollgate_build", "What is running: always 1, the labels say it.", registry=registry)
    build.info({"service": service, "version": version, "python": platform.python_version()})
    return registry


class Observer:
    """One series of a `LoopHistogram`."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Values by bucket, not cumulated; the last bucket has no bound."""
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class LoopHistogram:
    """A histogram for what happens thousands of times a second in one thread.

    The client library's own takes a lock and walks its buckets for every value, which takes longer than much of what
    is measured. Here values are counted without locks: observe from one thread only; reading from another one gives
    at worst what was true a moment ago.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        buckets: Sequence[float],
        registry: CollectorRegistry,
        labels: Sequence[str] = (),
    ) -> None:
        """`buckets`: upper bounds, ascending, without infinity. `labels`: their names."""
        self._name, self._documentation, self._labels = name, documentation, tuple(labels)
        self._bounds = tuple(buckets)
        self._observers: dict[tuple[str, ...], Observer] = {}
        registry.register(self)

    def of(self, *values: str) -> Observer:
        """The series under these label values; it is written out from now on."""
        if len(values) != len(self._labels):
            raise ValueError(f"{self._name} has the labels {self._labels}, not {values}")
        return self._observers.setdefault(values, Observer(self._bounds))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """What the registry writes out."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        for values, observer in self._observers.items():
            buckets = list(zip(bounds, accumulate(observer.counts), strict=True))
            family.add_metric(values, buckets, observer.total)
        yield family


def render(registry: CollectorRegistry) -> tuple[bytes, str]:
    """The registry in Prometheus' text format, and the content type to serve it with."""
    return generate_latest(registry), CONTENT_TYPE_LATEST
