"""Metrics: a registry of its own for each process, with build info, and sane buckets."""

from __future__ import annotations

import pytest

from tollgate.runtime.metrics import (
    BUCKETS_BYTES,
    BUCKETS_FRESHNESS_SECONDS,
    BUCKETS_SECONDS,
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
