"""One id more than once: with another content, and again and again."""

from __future__ import annotations

from decimal import Decimal

from tests.unit.metering.rows import NOW_MS, meter, meter_set, record, row, usage_totals
from tollgate.metering.compiled import CompiledMeters
from tollgate.metering.fold import TimeRules, fold
from tollgate.metering.meter import Metric, MetricKind
from tollgate.metering.seen import SeenIds

METERS = (meter("count", name="calls"), meter(Metric(MetricKind.SUM, "request_bytes"), name="bytes"))


def test_of_one_id_with_two_contents_the_first_counts() -> None:
    """By offset, whatever else differs: time, bytes, route. The second is a duplicate and adds nothing to any meter."""
    first = row(1, request_bytes=5)
    second = row(1, request_bytes=7_000, route="/another", time_ms=NOW_MS - 1, status=500)
    done = fold(
        (record([first], 0), record([second], 1)),
        {0: SeenIds()},
        CompiledMeters.compile(meter_set(*METERS)),
        TimeRules(),
    )
    assert done.partitions[0].outcomes.counted == 1
    assert done.partitions[0].outcomes.duplicate == 1
    assert sorted(usage_totals(done.usage).values()) == [(Decimal(1), 1, 0), (Decimal(5), 1, 0)]


def test_an_hour_sent_ten_times_counts_once() -> None:
    """The same records at ten times the offsets: 500 events counted, 4,500 duplicates, the sums of one hour."""
    records = [
        record(
            [row(number * 50 + each + 1, request_bytes=each) for each in range(50)], offset=time * 10 + number
        )
        for time in range(10)
        for number in range(10)
    ]
    done = fold(records, {0: SeenIds()}, CompiledMeters.compile(meter_set(*METERS)), TimeRules())
    assert done.partitions[0].outcomes.counted == 500
    assert done.partitions[0].outcomes.duplicate == 4_500
    total = Decimal(10 * sum(range(50)))
    assert sorted(usage_totals(done.usage).values()) == [(Decimal(500), 500, 0), (total, 500, 0)]
