"""The watermark: what the ticks say has been counted, worked by hand."""

from __future__ import annotations

import pytest

from tollgate.metering.completeness import InstanceTick, Watermark, find_watermark

SILENCE = 600_000
NOW = 10_000_000


def ticks(**by_instance: dict[int, int]) -> list[InstanceTick]:
    """`a={0: 5}`: instance a's last tick on partition 0 was at 5."""
    return [
        InstanceTick(partition, instance, tick_ms)
        for instance, found in by_instance.items()
        for partition, tick_ms in found.items()
    ]


def until(partitions: int, found: list[InstanceTick], now_ms: int = NOW) -> int:
    return find_watermark(range(partitions), found, now_ms, SILENCE).until_ms


def test_the_slowest_partition_of_the_slowest_instance_counts() -> None:
    """The oldest of all last ticks is the watermark, and it is named."""
    found = ticks(a={0: 9_000_000, 1: 9_010_000}, b={0: 9_020_000, 1: 8_995_000})
    assert find_watermark(range(2), found, NOW, SILENCE) == Watermark(8_995_000, 1, "b")


def test_a_partition_without_ticks_holds_everything_back() -> None:
    """Nothing is known of a partition nobody has ticked on."""
    found = ticks(a={0: 9_000_000})
    assert find_watermark(range(2), found, NOW, SILENCE) == Watermark(0, 1)


def test_without_partitions_nothing_is_complete() -> None:
    """A ledger without partitions has counted nothing."""
    assert find_watermark([], [], NOW, SILENCE) == Watermark(0)


@pytest.mark.parametrize(("silent_for", "expected"), [(600_000, 8_400_000), (600_001, 9_000_000)])
def test_a_silent_instance_is_gone_after_the_silence(silent_for: int, expected: int) -> None:
    """Up to ten minutes behind the newest tick it counts, one millisecond more and it does not."""
    found = ticks(alive={0: 9_000_000}, silent={0: 9_000_000 - silent_for})
    assert until(1, found) == expected


def test_a_meter_that_is_behind_makes_no_instance_look_silent() -> None:
    """Partition 1 has been read up to two hours ago: both instances hold it back there, alive as they are."""
    found = ticks(a={0: 9_000_000, 1: 1_800_000}, b={0: 9_000_000, 1: 1_795_000})
    assert until(2, found) == 1_795_000


def test_an_instance_alive_elsewhere_holds_back_where_it_is_silent() -> None:
    """Its tick on partition 1 is old, but on partition 0 it has just been heard: it is not gone."""
    found = ticks(a={0: 9_000_000, 1: 9_000_000}, b={0: 8_990_000, 1: 8_000_000})
    assert until(2, found) == 8_000_000


def test_a_dead_instance_is_gone_on_each_partition_when_that_has_been_read_far_enough() -> None:
    """It died at 8,000,000. Partition 0 has been read well past that, partition 1 has not."""
    found = ticks(a={0: 9_000_000, 1: 8_100_000}, dead={0: 8_000_000, 1: 7_990_000})
    assert until(1, found) == 9_000_000
    assert until(2, found) == 7_990_000


def test_the_last_instance_to_stop_leaves_the_watermark_where_it_was() -> None:
    """With every instance stopped, what gateways keep back meanwhile has not been counted."""
    assert until(1, ticks(a={0: 5_000_000})) == 5_000_000


def test_an_instance_with_records_and_no_tick_is_given_the_silence() -> None:
    """One that lived would have ticked here within the silence before the newest tick."""
    assert until(1, ticks(a={0: 9_000_000}, new={0: 0})) == 8_400_000
    assert until(2, ticks(a={0: 9_000_000, 1: 9_000_000}, new={0: 8_995_000, 1: 0})) == 8_400_000


def test_a_clock_ahead_makes_nobody_look_silent() -> None:
    """A tick from the future counts as now, for its own partition and as a measure for others."""
    found = ticks(ahead={0: NOW + 7_200_000}, right={0: NOW - 5_000})
    assert until(1, found) == NOW - 5_000
