"""Completeness: up to which moment everything that will ever be accepted has been counted, by the ticks.

Owns the rule by which ticks become a watermark, and the rule by which an ingest instance that fell silent stops
holding it back. It refuses to know where ticks are stored, invoices and the clock. Times are epoch milliseconds.

A tick of wall time T says: whatever this instance writes to this partition from now on was ingested at T or later. A
tick is only known here once everything before it in its partition has been counted, in the same transaction. So when
the ticks of all living instances have passed T on all partitions, nothing ingested before T is left to count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InstanceTick:
    """The last counted tick of one ingest instance on one partition; `tick_ms` is 0 while none has been."""

    partition: int
    instance: str
    tick_ms: int


@dataclass(frozen=True, slots=True)
class Watermark:
    """Everything ingested before `until_ms` has been counted. The rest names what keeps it from being later."""

    until_ms: int
    partition: int | None = None
    """The partition that is furthest behind; None while there are no partitions."""
    instance: str | None = None
    """Whose tick it waits for; None where no instance has ever said anything."""


def find_watermark(
    partitions: Iterable[int], ticks: Iterable[InstanceTick], now_ms: int, silence_ms: int
) -> Watermark:
    """The watermark over `partitions`, each of which counts whether it has ticks or not.

    1. On a partition, the newest tick counted tells how far the log has been read: not the wall clock, so that a
       meter that is behind makes no instance look silent. A tick ahead of `now_ms` counts as `now_ms`.
    2. An instance whose last sign of life, on whichever partition, is more than `silence_ms` older than that is gone:
       it ended or was killed, and what it wrote lies before the newer tick in the log, counted already.
    3. Of the others, the oldest tick is how far the partition is complete. One that lives and has no tick here yet
       would have been heard of within `silence_ms`.

    Without any tick on a partition nothing is known: the watermark is 0. Choose `silence_ms` longer than a write to
    the log may be under way and than ingest's clocks may differ.
    """
    by_partition: dict[int, list[InstanceTick]] = defaultdict(list)
    last_sign_ms: dict[str, int] = {}
    for tick in ticks:
        seen = InstanceTick(tick.partition, tick.instance, min(tick.tick_ms, now_ms))
        by_partition[tick.partition].append(seen)
        last_sign_ms[tick.instance] = max(last_sign_ms.get(tick.instance, 0), seen.tick_ms)
    lowest: Watermark | None = None
    for partition in sorted(set(partitions)):
        found = _partition_watermark(partition, by_partition[partition], last_sign_ms, silence_ms)
        if lowest is None or found.until_ms < lowest.until_ms:
            lowest = found
    return Watermark(0) if lowest is None else lowest


def _partition_watermark(
    partition: int, ticks: list[InstanceTick], last_sign_ms: dict[str, int], silence_ms: int
) -> Watermark:
    newest_ms = max((tick.tick_ms for tick in ticks), default=0)
    if newest_ms == 0:
        return Watermark(0, partition)
    lowest = Watermark(newest_ms, partition)
    for tick in sorted(ticks, key=lambda tick: tick.instance):
        last_ms = last_sign_ms[tick.instance]
        if last_ms > 0 and newest_ms - last_ms > silence_ms:
            continue
        until_ms = tick.tick_ms if tick.tick_ms > 0 else max(0, newest_ms - silence_ms)
        if until_ms <= lowest.until_ms:
            lowest = Watermark(until_ms, partition, tick.instance)
    return lowest
