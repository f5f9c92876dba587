"""However the log is cut, mixed, repeated, restarted and rolled back, totals are those of a naive count over dicts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.metering.rows import (
    HOUR_MS,
    NOW_MS,
    Row,
    UsageTotals,
    meter,
    meter_set,
    record,
    row,
    usage_totals,
)
from tollgate.metering.fold import CompiledMeters, EventsRecord, Fold, Outcomes, TickRecord, TimeRules, fold
from tollgate.metering.seen import SeenIds
from tollgate.metering.usage import USAGE_SCHEMA, merge_usage

RULES = TimeRules(accept_age_ms=4 * HOUR_MS, future_ms=300_000)
PARTITIONS = 3
PROPERTIES = ("tokens",)
METERS = CompiledMeters.compile(
    meter_set(
        meter("sum properties.tokens", "status < 500 AND route = '/chat'"),
        meter("count", "status >= 200"),
        meter("max properties.tokens"),
        meter("min properties.tokens", "route = '/chat'"),
    )
)


def naive(
    log: Sequence[EventsRecord], rows: dict[tuple[int, int], list[Row]]
) -> tuple[UsageTotals, dict[str, int]]:
    """The truth, in ten lines over dicts."""
    ended: dict[str, int] = defaultdict(int)
    values: dict[tuple[Any, ...], list[int | None]] = defaultdict(list)
    seen = set()
    for part in log:
        for event in rows[part.partition, part.offset]:
            age_ms, key = part.ingest_ms - event["time_ms"], (part.partition, event["id_hash"])
            late, future = age_ms > RULES.accept_age_ms, -age_ms > RULES.future_ms
            outcome = "dead" if future else "late" if late else "duplicate" if key in seen else "counted"
            ended[outcome] += 1
            if outcome != "counted":
                continue
            seen.add(key)
            tokens = int(event["properties.tokens"]) if event["properties.tokens"].isdigit() else None
            chat = event["route"] == "/chat"
            window = event["time_ms"] - event["time_ms"] % HOUR_MS
            hits = [chat and event["status"] < 500, event["status"] >= 200, True, chat]
            for meter_id in (number for number, hit in enumerate(hits, start=1) if hit):
                place = (part.partition, meter_id, window, event["account"], "")
                values[place].append(1 if meter_id == 2 else tokens)
    totals = {}
    for place, found in values.items():
        good = [value for value in found if value is not None]
        quantity = [sum(good), sum(good), max(good, default=0), min(good, default=0)][place[1] - 1]
        totals[place] = (Decimal(quantity), len(good), len(found) - len(good))
    return totals, dict(ended)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """One event of a small world, so that ids, accounts and windows collide."""
    return row(
        # Ids across the whole range: filters and runs order by their high bits.
        draw(st.integers(0, 40)) * 0x9E3779B97F4A7C15 % 2**64,
        time_ms=NOW_MS
        + draw(st.sampled_from([-5, -3, -2, -1, 0])) * HOUR_MS
        + draw(st.integers(-60_000, 400_000)),
        account=draw(st.sampled_from(["user:a", "user:b"])),
        route=draw(st.sampled_from(["/chat", "/other"])),
        status=draw(st.sampled_from([200, 404, 503])),
        properties={"tokens": draw(st.sampled_from(["1", "7", "250", "none"]))},
    )


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[EventsRecord], dict[tuple[int, int], list[Row]]]:
    """A log over a few partitions: records of one to six events, partitions mixed."""
    offsets: dict[int, int] = defaultdict(int)
    log, contents = [], {}
    for found in draw(st.lists(st.lists(rows(), min_size=1, max_size=6), max_size=12)):
        partition = draw(st.integers(0, PARTITIONS - 1))
        offset = offsets[partition]
        offsets[partition] += 1
        contents[partition, offset] = found
        ingest_ms = NOW_MS + draw(st.sampled_from([0, 1000, HOUR_MS]))
        log.append(record(found, offset, partition=partition, properties=PROPERTIES, ingest_ms=ingest_ms))
    return log, contents


def total(folds: Sequence[Fold]) -> tuple[UsageTotals, dict[str, int]]:
    """What committed folds come to, as the ledger would hold it."""
    ended: dict[str, int] = defaultdict(int)
    for part in (part for one in folds for part in one.partitions.values()):
        for name in ("counted", "unmatched", "duplicate", "late", "dead"):
            ended[name] += getattr(part.outcomes, name)
    merged = merge_usage([one.usage for one in folds])
    return usage_totals(merged), {name: count for name, count in ended.items() if count}


def fresh_seen() -> dict[int, SeenIds]:
    return {partition: SeenIds() for partition in range(PARTITIONS)}


def commit(one: Fold, seen: dict[int, SeenIds]) -> None:
    for partition, part in one.partitions.items():
        seen[partition].stage(part.next_offset, part.seen_ids)
        seen[partition].commit(part.next_offset)


@given(logs(), st.data())
def test_any_flushes_give_the_naive_totals(
    made: tuple[list[EventsRecord], dict[tuple[int, int], list[Row]]], data: st.DataObject
) -> None:
    """Cut into flushes anywhere, each flush's partitions shuffled, some rolled back and done again: totals are exact."""
    log, contents = made
    seen, folds = fresh_seen(), []
    rest = list(log)
    while rest:
        flush, rest = rest[: (cut := data.draw(st.integers(1, len(rest))))], rest[cut:]
        # Order between partitions is nobody's promise; within one it is the log's.
        order = data.draw(st.permutations(range(PARTITIONS)))
        flush.sort(key=lambda part: order.index(part.partition))
        one = fold(flush, seen, METERS, RULES)
        if data.draw(st.booleans()):
            for partition, part in one.partitions.items():
                seen[partition].stage(part.next_offset, part.seen_ids)
                seen[partition].discard_tail()
            again = fold(flush, seen, METERS, RULES)
            assert again.usage.equals(one.usage)
            assert [part.outcomes for part in again.partitions.values()] == [
                part.outcomes for part in one.partitions.values()
            ]
        commit(one, seen)
        folds.append(one)
    assert total(folds) == naive(log, contents)


@given(logs(), st.data())
def test_a_restart_changes_nothing(
    made: tuple[list[EventsRecord], dict[tuple[int, int], list[Row]]], data: st.DataObject
) -> None:
    """A process that starts anywhere from what the ledger holds goes on to the same totals."""
    log, contents = made
    cut = data.draw(st.integers(0, len(log)))
    seen = fresh_seen()
    first = fold(log[:cut], seen, METERS, RULES)
    rebuilt = fresh_seen()
    for partition, part in first.partitions.items():
        rebuilt[partition] = SeenIds(part.next_offset)
        for day, ids in part.seen_ids.items():
            rebuilt[partition].load(day, ids)
    second = fold(log[cut:], rebuilt, METERS, RULES)
    assert total([first, second]) == naive(log, contents)


@given(st.lists(logs(), min_size=3, max_size=3))
@settings(max_examples=20)
def test_merging_usage_is_associative_and_commutative(
    made: list[tuple[list[EventsRecord], dict[tuple[int, int], list[Row]]]],
) -> None:
    """Deltas of three flushes merge to one result in any grouping and order."""
    one, two, three = (fold(log, fresh_seen(), METERS, RULES).usage for log, _ in made)
    left = merge_usage([merge_usage([one, two]), three])
    right = merge_usage([one, merge_usage([two, three])])
    turned = merge_usage([three, one, two])
    assert left.equals(right)
    assert left.equals(turned)
    assert left.schema == pl.Schema(USAGE_SCHEMA)


class FoldAndSeen(RuleBasedStateMachine):
    """A meter process on one partition: it folds, commits or loses a flush, ticks, restarts; the model counts once."""

    @initialize()
    def start(self) -> None:
        self.seen = {0: SeenIds()}
        self.folds: list[Fold] = []
        self.log: list[EventsRecord] = []
        self.contents: dict[tuple[int, int], list[Row]] = {}
        self.next_offset = 0
        self.blobs: list[tuple[int, Any]] = []
        self.acknowledged = 0

    @rule(found=st.lists(rows(), min_size=1, max_size=5), lost=st.booleans())
    def flush(self, found: list[Row], lost: bool) -> None:
        """A record is folded and committed, or its commit is lost and the tail thrown away."""
        part = record(found, self.next_offset, properties=PROPERTIES)
        one = fold([part], self.seen, METERS, RULES)
        folded = one.partitions[0]
        self.seen[0].stage(folded.next_offset, folded.seen_ids)
        if lost:
            self.seen[0].discard_tail()
            return
        self.seen[0].commit(folded.next_offset)
        self.contents[0, self.next_offset] = found
        self.log.append(part)
        self.folds.append(one)
        self.blobs += folded.seen_ids.items()
        self.next_offset += 1
        self.acknowledged += len(found)

    @rule(found=st.lists(st.lists(rows(), min_size=1, max_size=3), min_size=2, max_size=3))
    def overlap(self, found: list[list[Row]]) -> None:
        """Flushes are folded over an uncommitted tail, which is committed afterwards."""
        offset = self.next_offset
        for rows_of_one in found:
            part = record(rows_of_one, offset, properties=PROPERTIES)
            one = fold([part], self.seen, METERS, RULES)
            self.seen[0].stage(offset + 1, one.partitions[0].seen_ids)
            self.contents[0, offset] = rows_of_one
            self.log.append(part)
            self.folds.append(one)
            self.blobs += one.partitions[0].seen_ids.items()
            self.acknowledged += len(rows_of_one)
            offset += 1
        for to_offset in range(self.next_offset + 1, offset + 1):
            self.seen[0].commit(to_offset)
        self.next_offset = offset

    @rule()
    def tick(self) -> None:
        """A tick is folded: it counts nothing and keeps what was received before it."""
        one = fold(
            [TickRecord(0, self.next_offset, "ingest-1", NOW_MS, self.acknowledged)], self.seen, METERS, RULES
        )
        assert one.partitions[0].outcomes == Outcomes()
        commit(one, self.seen)
        self.folds.append(one)
        self.next_offset += 1

    @rule()
    def restart(self) -> None:
        """The process dies; the set is rebuilt from what was committed."""
        self.seen = {0: SeenIds(self.next_offset)}
        for day, ids in self.blobs:
            self.seen[0].load(day, ids)

    @invariant()
    def totals_are_naive(self) -> None:
        """At every step."""
        if hasattr(self, "folds"):
            assert total(self.folds) == naive(self.log, self.contents)
            assert self.seen[0].committed_offset == self.next_offset


TestFoldAndSeen = FoldAndSeen.TestCase
TestFoldAndSeen.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
