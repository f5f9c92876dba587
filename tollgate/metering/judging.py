"""The judgements: what becomes of each event of a flush.

Owns their order (`fold` says it) and how each is made over whole columns. It refuses to know what is reported of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from tollgate.metering.compiled import CompiledMeters
from tollgate.metering.counting import Counted
from tollgate.metering.errors import InvariantViolated
from tollgate.metering.layout import DUPLICATE, FAILED, FRESH, FUTURE, LATE, NEVER, Events
from tollgate.metering.outcome import TimeRules
from tollgate.metering.seen import SeenIds


def judge_times(events: Events, rules: TimeRules) -> None:
    """Mark what lies in the future, then what is late, by each record's ingest time."""
    count = len(events.records)
    ingest_ms = np.fromiter((record.ingest_ms for record in events.records), np.int64, count)
    oldest_ms = ingest_ms - rules.accept_age_ms
    oldest_ms[np.fromiter((record.accept_late for record in events.records), np.bool_, count)] = NEVER
    lengths = np.diff(events.starts)
    events.state[events.times_ms < np.repeat(oldest_ms, lengths)] = LATE
    events.state[events.times_ms > np.repeat(ingest_ms + rules.future_ms, lengths)] = FUTURE


def count_first_copies(events: Events, seen: Mapping[int, SeenIds], meters: CompiledMeters) -> list[Counted]:
    """Mark duplicates and count the rest. An event that fails makes room for its next copy, so then both start over."""
    while True:
        _judge_duplicates(events, seen)
        counted, failed = [], False
        for part in events.classes:
            fresh = events.state[part.rows] == FRESH
            rows = part.rows[fresh]
            frame = part.frame if rows.size == part.rows.size else part.frame.filter(pl.Series(fresh))
            try:
                result = meters.count(frame, part.absent)
            except pl.exceptions.PolarsError as error:
                guilty = _find_guilty(frame, part.absent, meters, error)
                events.state[rows[guilty]] = FAILED
                failed = True
            else:
                events.matched[rows] = result.matched
                counted.append(result)
        if not failed:
            return counted


def _judge_duplicates(events: Events, seen: Mapping[int, SeenIds]) -> None:
    """Per partition, mark every copy but the first of each id, and all copies of ids seen before."""
    events.state[events.state == DUPLICATE] = FRESH
    for partition, (start, end) in events.partition_rows.items():
        state = events.state[start:end]
        eligible = np.flatnonzero(state == FRESH)
        ids = events.ids[start:end][eligible]
        different = np.sort(ids)
        again = different[1:] == different[:-1]
        repeated = different[1:][again]
        if repeated.size:
            repeated = repeated[np.concatenate(([True], repeated[1:] != repeated[:-1]))]
            different = different[np.concatenate(([True], ~again))]
        is_known = seen[partition].probe(different)
        known = different[is_known]
        events.fresh_ids[partition] = different[~is_known] if known.size else different
        if not known.size and not repeated.size:
            continue
        # Few ids are suspect, so only their rows are looked at one by one.
        suspects = np.union1d(known, repeated)
        at = np.searchsorted(suspects, ids)
        at[at == suspects.size] = 0
        suspect = np.flatnonzero(suspects[at] == ids)
        _, first = np.unique(ids[suspect], return_index=True)
        innocent = suspect[first]
        innocent = innocent[~np.isin(ids[innocent], known)]
        state[eligible[suspect]] = DUPLICATE
        state[eligible[innocent]] = FRESH


def _find_guilty(
    frame: pl.DataFrame, absent: frozenset[str], meters: CompiledMeters, error: Exception
) -> list[int]:
    """The rows on which counting raises, by bisection. Raises InvariantViolated when no single event is to blame."""
    try:
        meters.count(frame.clear(), absent)
    except pl.exceptions.PolarsError as without_events:
        raise InvariantViolated(f"counting fails without any event: {without_events}") from without_events
    guilty: list[int] = []
    todo = [(0, frame.height)]
    while todo:
        start, end = todo.pop()
        try:
            meters.count(frame[start:end], absent)
        except pl.exceptions.PolarsError:
            if end - start == 1:
                guilty.append(start)
            else:
                middle = (start + end) // 2
                todo += [(start, middle), (middle, end)]
    if not guilty:
        raise InvariantViolated(f"counting fails, though not on any event alone: {error}") from error
    return guilty
