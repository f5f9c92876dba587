"""What the meter's own histogram adds to prometheus_client."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from services.meter.metrics import WeightedHistogram


def test_an_observation_stands_for_many() -> None:
    """Buckets are cumulative, a value on a bound belongs to it, and the text form is valid."""
    registry = CollectorRegistry()
    histogram = WeightedHistogram("age_seconds", "Age.", (1.0, 5.0), registry)
    histogram.observe(0.5, 10)
    histogram.observe(5.0, 3)
    histogram.observe(60.0, 2)
    found = {le: registry.get_sample_value("age_seconds_bucket", {"le": le}) for le in ("1.0", "5.0", "+Inf")}
    assert found == {"1.0": 10, "5.0": 13, "+Inf": 15}
    assert registry.get_sample_value("age_seconds_count") == 15
    assert registry.get_sample_value("age_seconds_sum") == 5 + 15 + 120
    text = generate_latest(registry).decode()
    assert [family.type for family in text_string_to_metric_families(text)] == ["histogram"]
