"""Metrics: a registry of its own for each process, with build info, and sane buckets."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from tollgate.runtime.metrics import (
    BUCKETS_BYTES,
    BUCKETS_FRESHNESS_SECONDS,
    BUCKETS_SECONDS,
    LoopHistogram,
    new_registry,
    render,
)


def test_registry_says_what_is_running() -> None:
    """The exposition names service and version and has the process' own metrics."""
    body, content_type = render(new_registry("gate", "1.2.3"))
    text = body.decode()
    assert 'service="gate"' in text
    assert 'version="1.2.3"' in text
    assert "\ntollgate_build_info{" in text
    assert "\nprocess_cpu_seconds_total " in text
    assert content_type.startswith("text/plain")


def test_registries_are_separate() -> None:
    """Two registries can be made in one process: nothing global is touched."""
    assert render(new_registry("one", "1"))[0] != render(new_registry("two", "1"))[0]


@pytest.mark.parametrize("buckets", [BUCKETS_SECONDS, BUCKETS_FRESHNESS_SECONDS, BUCKETS_BYTES])
def test_buckets_ascend(buckets: tuple[float, ...]) -> None:
    """Bucket boundaries ascend and are positive."""
    assert list(buckets) == sorted(set(buckets))
    assert buckets[0] > 0


def test_a_loop_histogram_writes_what_the_library_would() -> None:
    """The same values under the same labels: the same text."""
    values = [0.0, 0.1, 0.100001, 0.5, 2.0, 2.0, 7.0, -1.0]
    bounds = (0.1, 0.5, 2.0)
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    fast = LoopHistogram("t_seconds", "Said.", bounds, ours, ["route"])
    slow = Histogram("t_seconds", "Said.", ["route"], buckets=bounds, registry=theirs)
    for route in ("a", "b"):
        for value in values:
            fast.of(route).observe(value)
            slow.labels(route).observe(value)
    expected = [line for line in generate_latest(theirs).decode().splitlines() if "_created" not in line]
    assert generate_latest(ours).decode().splitlines() == expected
    with pytest.raises(ValueError, match="labels"):
        fast.of("a", "b")
