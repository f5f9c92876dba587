from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from tests.unit.metering.rows import (
    DAY_MS,
    HOUR_MS,
    NOW_MS,
    batch,
    meter,
    meter_set,
    record,
    row,
    usage_totals,
)
from tollgate.contracts.events import SCHEMA, encode_batch
from tollgate.metering.compiled import CompiledMeters
from tollgate.metering.counting import Plan, hash_value
from tollgate.metering.errors import DeadReason, InvariantViolated
from tollgate.metering.fold import (
    EventsRecord,
    Fold,
    InstanceFold,
    Outcomes,
    Record,
    TickRecord,
    TickSeen,
    TimeRules,
    UnknownRecord,
    fold,
)
from tollgate.metering.meter import Meter, MeterSet, MeterVersion, Metric, MetricKind, WindowSize
from tollgate.metering.refold import recount
from tollgate.metering.seen import SeenIds
from tollgate.metering.usage import NEVER, merge_usage

RULES = TimeRules()
WINDOW = NOW_MS - NOW_MS % HOUR_MS
KEY = (0, 1, WINDOW, "user:ada", "")


def run(*records: Record, meters: tuple[Meter, ...] = (meter(),), seen: SeenIds | None = None) -> Fold:
    partitions = {part.partition for part in records}
    return fold(
        records,
        {partition: seen or SeenIds() for partition in partitions},
        CompiledMeters.compile(meter_set(*meters)),
        RULES,
    )


def test_an_event_ends_once() -> None:
    """Future, late, duplicate, unmatched and counted add up to what was received."""
    rows = [
        row(1, route="/chat"),
        row(2, route="/other"),
        row(1, route="/chat"),
        row(3, time_ms=NOW_MS + 300_001),
        row(4, time_ms=NOW_MS - 72 * HOUR_MS - 1),
        row(5, route="/chat", time_ms=NOW_MS + 300_000),
        row(6, route="/chat", time_ms=NOW_MS - 72 * HOUR_MS),
        row(2, route="/other", id_weak=True),
    ]
    done = run(record(rows), meters=(meter(where="route = '/chat'"),))
    assert done.partitions[0].outcomes == Outcomes(
        received=8, counted=3, unmatched=1, duplicate=2, weak_duplicate=1, late=1, dead=1
    )


def test_seen_ids_are_those_counted_or_unmatched() -> None:
    """Dead and late events can come again; an unmatched one is remembered."""
    rows = [
        row(9, route="/chat"),
        row(2),
        row(3, time_ms=NOW_MS + HOUR_MS),
        row(4, time_ms=0),
        row(7, time_ms=NOW_MS - DAY_MS),
    ]
    done = run(record(rows), meters=(meter(where="route = '/chat'"),))
    today = NOW_MS // DAY_MS
    found = {day: ids.tolist() for day, ids in done.partitions[0].seen_ids.items()}
    assert found == {today: [2, 9], today - 1: [7]}


def test_the_first_copy_by_offset_and_row_is_the_one_counted() -> None:
    """Across records of a flush too."""
    metric = Metric(MetricKind.SUM, "request_bytes")
    done = run(
        record([row(1, request_bytes=5), row(1, request_bytes=7)], 0),
        record([row(1, request_bytes=11), row(2, request_bytes=1)], 1),
        meters=(meter(metric),),
    )
    assert usage_totals(done.usage) == {KEY: (Decimal(6), 2, 0)}


def test_an_id_is_known_per_partition() -> None:
    """Two partitions never share ids: an account lives on one."""
    done = run(record([row(1)], 0, partition=0), record([row(1)], 0, partition=1))
    assert {number: part.outcomes.counted for number, part in done.partitions.items()} == {0: 1, 1: 1}


def test_lateness_is_judged_by_the_records_ingest_time() -> None:
    """A backlog is not late; a replay an operator asked for is never late, and its id is kept by the day it came."""
    old = row(1, time_ms=NOW_MS - 30 * DAY_MS)
    on_time = record([old], 0, ingest_ms=NOW_MS - 30 * DAY_MS)
    replayed = record([row(2, time_ms=NOW_MS - 30 * DAY_MS)], 1, accept_late=True)
    done = run(on_time, replayed)
    part = done.partitions[0]
    assert part.outcomes == Outcomes(received=2, counted=2)
    assert sorted(part.seen_ids) == [(NOW_MS - 30 * DAY_MS) // DAY_MS, NOW_MS // DAY_MS]
    assert (part.ingest_ms_min, part.ingest_ms_max) == (NOW_MS - 30 * DAY_MS, NOW_MS)


def test_a_gap_in_the_offsets_stops_everything() -> None:
    """Offsets are folded without a gap, and never backwards."""
    for offset in (2, 0):
        with pytest.raises(InvariantViolated, match="offset"):
            run(record([row(1)], 0), record([row(2)], offset))


def test_ticks_keep_what_was_received_before_them() -> None:
    """The last tick of an instance counts, with its instance's rows at lower offsets."""
    done = run(
        record([row(1), row(2)], 0),
        record([row(3)], 1, instance="ingest-2"),
        TickRecord(0, 2, "ingest-1", NOW_MS, 1),
        record([row(4)], 3),
        TickRecord(0, 4, "ingest-1", NOW_MS + 1, 3),
        record([row(5)], 5),
        TickRecord(0, 6, "ingest-3", NOW_MS, 0),
    )
    part = done.partitions[0]
    assert part.instances == {
        "ingest-1": InstanceFold(4, TickSeen(NOW_MS + 1, 3, 3)),
        "ingest-2": InstanceFold(1, None),
        "ingest-3": InstanceFold(0, TickSeen(NOW_MS, 0, 0)),
    }
    assert (part.from_offset, part.next_offset, part.last_offset) == (0, 7, 6)


def test_a_tick_of_a_log_that_lost_rows_keeps_what_came_and_what_was_acknowledged() -> None:
    """The two counts are independent: their difference is the loss."""
    done = run(record([row(1)], 0), TickRecord(0, 1, "ingest-1", NOW_MS, 3))
    assert done.partitions[0].instances == {"ingest-1": InstanceFold(1, TickSeen(NOW_MS, 3, 1))}


def test_a_flush_of_ticks_alone() -> None:
    """It moves the offset and nothing else."""
    part = run(TickRecord(0, 5, "i", NOW_MS, 0)).partitions[0]
    assert (part.outcomes, part.next_offset, part.seen_ids) == (Outcomes(), 6, {})
    assert (part.ingest_ms_max, part.ingest_ms_min) == (0, None)


def _corrupt(value: bytes) -> list[bytes]:
    batch = pa.ipc.open_stream(value).read_all()
    doubled = pa.BufferOutputStream()
    with pa.ipc.new_stream(doubled, batch.schema) as writer:
        writer.write_table(batch)
        writer.write_table(batch)
    typed = pa.BufferOutputStream()
    wrong = batch.set_column(
        batch.schema.get_field_index("time_ms"), "time_ms", pa.array(["x"] * batch.num_rows)
    )
    with pa.ipc.new_stream(typed, wrong.schema) as writer:
        writer.write_table(wrong)
    missing = pa.BufferOutputStream()
    with pa.ipc.new_stream(missing, batch.drop_columns(["account"]).schema) as writer:
        writer.write_table(batch.drop_columns(["account"]))
    nulls = pa.BufferOutputStream()
    field = pa.field("account", pa.string(), nullable=True)
    holed = batch.set_column(
        batch.schema.get_field_index("account"), field, pa.array([None] * batch.num_rows, pa.string())
    )
    with pa.ipc.new_stream(nulls, holed.schema) as writer:
        writer.write_table(holed)
    cut = [value[:end] for end in (0, 3, 8, 200, len(value) - 40)]
    built = [bytes(sink.getvalue()) for sink in (doubled, typed, missing, nulls)]
    return [*cut, *built, value + b"x", b"\xff" * 64, b"{}" * 100]


@pytest.mark.parametrize("index", range(12))
def test_a_record_nobody_can_decode_is_dead_alone(index: int) -> None:
    """Its rows, by the header, are dead and kept as bytes; its neighbours count."""
    good = record([row(1), row(2)], 0)
    broken = dataclasses.replace(record([row(3), row(4)], 1), value=_corrupt(good.value)[index])
    done = run(good, broken, record([row(5)], 2))
    assert done.partitions[0].outcomes == Outcomes(received=5, counted=3, dead=2)
    assert done.partitions[0].instances["ingest-1"].rows_received == 5
    (letter,) = done.dead
    assert (letter.reason, letter.rows, letter.format) == (DeadReason.UNDECODABLE_RECORD, 2, "raw")
    assert (letter.payload, letter.offset) == (broken.value, 1)


def test_a_record_whose_header_lies_about_its_rows_is_dead() -> None:
    """The header's number is what ingest acknowledged, so it is what dies."""
    done = run(record([row(1)], 0), record([row(2), row(3)], 1, claimed_rows=7), record([row(4)], 2))
    assert done.partitions[0].outcomes == Outcomes(received=9, counted=2, dead=7)


def test_an_unknown_contract_is_dead() -> None:
    """It is counted by its header and kept."""
    done = run(record([row(1)], 0), UnknownRecord(0, 1, 3, b"\x00", "contract events/9"))
    assert done.partitions[0].outcomes == Outcomes(received=4, counted=1, dead=3)
    assert (done.dead[0].detail, done.dead[0].payload) == ("contract events/9", b"\x00")


def test_dead_letters_hold_exactly_the_events_of_their_reason() -> None:
    """One letter per record and reason, all columns kept, decodable as they are."""
    rows = [
        row(1),
        row(2, time_ms=NOW_MS + DAY_MS, account="user:f", properties={"x": "kept"}),
        row(3, time_ms=0, account="user:l"),
        row(4, time_ms=NOW_MS + DAY_MS),
    ]
    done = run(record(rows, 0, properties=("x",)))
    future, late = done.dead
    assert (future.reason, future.rows, future.account) == (DeadReason.FUTURE, 2, "user:f")
    assert (late.reason, late.rows, late.time_ms, late.source) == (DeadReason.LATE, 1, 0, "test")
    table = pa.ipc.open_stream(future.payload).read_all()
    assert table.column("id_hash").to_pylist() == [2, 4]
    assert table.column("properties.x").to_pylist() == ["kept", None]
    replay = EventsRecord(0, 0, late.rows, "i", "replay", NOW_MS, True, late.payload)
    assert run(replay).partitions[0].outcomes == Outcomes(received=1, counted=1)


@pytest.mark.parametrize(
    ("metric", "values", "expected"),
    [
        ("sum properties.x", ["1", "2.5", "0.000000001"], (Decimal("3.500000001"), 3, 0)),
        ("sum properties.x", ["1", None, "x", "-1", "1e3", "1.0000000001"], (Decimal(1), 1, 5)),
        ("sum properties.x", ["1000000000000", "1000000000001"], (Decimal(10**12), 1, 1)),
        ("max properties.x", ["3", "10", "x"], (Decimal(10), 2, 1)),
        ("min properties.x", ["3", "10", "x"], (Decimal(3), 2, 1)),
        ("min properties.x", ["x"], (Decimal(0), 0, 1)),
        ("latest properties.x", ["3", "10", "x"], (Decimal(10), 2, 1)),
        ("sum properties.x * 0.5", ["3", "0.00000001", "0.000000001"], (Decimal("1.500000005"), 2, 1)),
        ("sum properties.x * properties.x", ["0.0001", "0.00001"], (Decimal("0.00000001"), 1, 1)),
        ("sum COALESCE(properties.x, 7)", ["3", "x", None], (Decimal(17), 3, 0)),
    ],
)
def test_values(metric: str, values: list[str | None], expected: tuple[Decimal, int, int]) -> None:
    """What is missing, no number, negative or out of bounds adds nothing and is counted as unvalued; nothing is cut."""
    rows = [row(number, properties={"x": value}) for number, value in enumerate(values)]
    done = run(record(rows, properties=("x",)), meters=(meter(metric),))
    assert usage_totals(done.usage) == {KEY: expected}
    assert done.partitions[0].outcomes.counted == len(values)


def test_sums_are_exact_past_64_bits() -> None:
    """Ten million times the bound fits; integers would have wrapped."""
    rows = [row(number, response_bytes=10**12) for number in range(20)]
    done = run(record(rows), meters=(meter("sum response_bytes * 10000000 - response_bytes * 9999999"),))
    assert usage_totals(done.usage)[KEY] == (Decimal(20 * 10**12), 20, 0)


def test_weights() -> None:
    """A weighted count adds what each row stands for; a negative weight is unvalued."""
    rows = [row(1, weight=5), row(2, weight=1), row(3, weight=-4)]
    done = run(record(rows), meters=(meter(Metric(MetricKind.COUNT, None, weighted=True)), meter(name="n")))
    assert usage_totals(done.usage) == {KEY: (Decimal(6), 2, 1), (0, 2, *KEY[2:]): (Decimal(3), 3, 0)}


def test_latest_is_by_time_then_offset_then_row() -> None:
    """The order of arrival breaks a tie of times."""
    done = run(
        record([row(1, latency_ms=1, time_ms=NOW_MS + 5), row(2, latency_ms=2, time_ms=NOW_MS + 5)], 0),
        record([row(3, latency_ms=3, time_ms=NOW_MS + 4)], 1),
        meters=(meter("latest latency_ms"),),
    )
    (found,) = done.usage.to_dicts()
    assert (found["quantity"], found["order_ms"], found["order_offset"]) == (Decimal(2), NOW_MS + 5, 0)


def test_latest_without_a_value_comes_before_everything() -> None:
    """So that the ledger never takes it for a newer one."""
    (found,) = run(record([row(1)]), meters=(meter("latest latency_ms"),)).usage.to_dicts()
    assert (found["order_ms"], found["order_offset"], found["events"]) == (NEVER, NEVER, 0)


def test_unique_yields_each_value_once() -> None:
    """The ledger counts the new ones; the delta's quantity is 0."""
    rows = [row(number, user=user) for number, user in enumerate(["a", "b", "a", None])]
    done = run(record(rows), meters=(meter("unique user"),))
    assert sorted(done.distinct["value_hash"].to_list()) == sorted([hash_value("a"), hash_value("b")])
    assert usage_totals(done.usage) == {KEY: (Decimal(0), 3, 1)}


def test_dimensions_are_canonical_json() -> None:
    """Keys are sorted, a missing value is null, and each combination is a row of its own."""
    model = meter(group_by=("status", "properties.model"))
    rows = [row(1, status=200, properties={"model": 'é"'}), row(2, status=None), row(3, status=None)]
    done = run(record(rows, properties=("model",)), meters=(model,))
    assert {found[4]: total[1] for found, total in usage_totals(done.usage).items()} == {
        '{"properties.model":"é\\"","status":200}': 1,
        '{"properties.model":null,"status":null}': 2,
    }


def test_a_long_dimension_is_shortened_and_stays_apart() -> None:
    """PostgreSQL refuses an index key past 2,704 bytes; the count must neither stop nor mix two long values."""
    model = meter(group_by=("properties.model",))
    texts = ["x" * 5_000 + end for end in "aab"]
    done = run(
        record([row(n, properties={"model": text}) for n, text in enumerate(texts)], properties=("model",)),
        meters=(model,),
    )
    found = {key[4]: total[1] for key, total in usage_totals(done.usage).items()}
    assert sorted(found.values()) == [1, 2]
    assert all(len(key) < 100 and key.startswith('{"properties.model":"' + "x" * 24 + "…") for key in found)


def test_meters_share_a_flush_with_windows_of_their_own() -> None:
    """Minute, hour and day windows of one event."""
    sizes = tuple(meter(name=size.value, window=size) for size in WindowSize)
    done = run(record([row(1)]), meters=sizes)
    assert {found[1]: found[2] for found in usage_totals(done.usage)} == {
        number: NOW_MS - NOW_MS % size.size_ms for number, size in enumerate(WindowSize, start=1)
    }


@pytest.mark.parametrize("size", WindowSize)
def test_a_window_begins_with_its_first_millisecond_and_ends_before_the_next(size: WindowSize) -> None:
    """`[start, start + size)`: an event on the stroke belongs to what begins."""
    start = NOW_MS - NOW_MS % size.size_ms
    times = (start - 1, start, start + size.size_ms - 1, start + size.size_ms)
    rows = [row(number, time_ms=time_ms) for number, time_ms in enumerate(times)]
    done = run(record(rows, ingest_ms=times[-1]), meters=(meter(window=size),))
    assert {found[2]: total[1] for found, total in usage_totals(done.usage).items()} == {
        start - size.size_ms: 1,
        start: 2,
        start + size.size_ms: 1,
    }


def test_a_version_counts_its_own_times_only() -> None:
    """`[from_ms, to_ms)` bounds event time."""
    compiled = CompiledMeters.compile(meter_set(meter(), from_ms=NOW_MS, to_ms=NOW_MS + 10))
    rows = [row(number, time_ms=NOW_MS + ahead) for number, ahead in enumerate((-1, 0, 9, 10))]
    done = fold([record(rows)], {0: SeenIds()}, compiled, RULES)
    assert done.partitions[0].outcomes == Outcomes(received=4, counted=2, unmatched=2)


def test_versions_of_one_filter_keep_their_own_times() -> None:
    """The same condition over different times is not the same thing."""
    spans = [(0, None), (0, NOW_MS), (NOW_MS, None), (NOW_MS, NOW_MS + 1)]
    versions = tuple(MeterVersion(number, meter(), *span) for number, span in enumerate(spans, start=1))
    compiled = CompiledMeters.compile(MeterSet(1, versions))
    rows = [row(number, time_ms=NOW_MS + ahead) for number, ahead in enumerate((-1, 0, 1, 2))]
    done = fold([record(rows)], {0: SeenIds()}, compiled, RULES)
    assert {key[1]: total[1] for key, total in usage_totals(done.usage).items()} == {1: 4, 2: 1, 3: 3, 4: 1}


@pytest.mark.parametrize(
    ("where", "events", "unvalued"),
    [
        ("route = '/chat' AND properties.tier = 'gold'", 0, 1),
        ("route = '/other' AND properties.tier = 'gold'", 0, 0),
        ("route = '/chat' OR properties.tier = 'gold'", 1, 0),
        ("NOT properties.tier = 'gold'", 0, 1),
        ("NOT (properties.tier = 'gold' OR route = '/chat')", 0, 0),
        ("properties.tier IS NULL", 0, 1),
    ],
)
def test_a_column_that_was_not_captured_is_not_null(where: str, events: int, unvalued: int) -> None:
    """The rest of the filter decides, or the event is unvalued."""
    done = run(record([row(1, route="/chat")]), meters=(meter(where=where),))
    totals = usage_totals(done.usage)
    expected = {KEY: (Decimal(events), events, unvalued)} if events + unvalued else {}
    assert totals == expected
    logged = {name: value for name, value in row(1, route="/chat").items() if name != "properties.tier"}
    again = recount(
        [{**logged, "partition": 0, "offset": 0, "ingest_ms": NOW_MS}], meter_set(meter(where=where)), RULES
    )
    assert {key: (held.quantity, held.events, held.unvalued) for key, held in again.usage.items()} == expected


def test_records_with_different_columns_meet_in_one_flush() -> None:
    """Each is read by its own columns; values and dimensions that are absent are unvalued."""
    grouped = meter("sum properties.x", name="g", group_by=("properties.model",))
    done = run(
        record([row(1, properties={"x": "5"})], 0, properties=("x",)),
        record([row(2)], 1),
        record([row(3, properties={"x": "7", "model": "m"})], 2, properties=("model", "x")),
        record([row(1)], 3),
        meters=(meter("sum properties.x"), grouped, meter("latest properties.x", name="l")),
    )
    by_null = (*KEY[2:4], '{"properties.model":null}')
    assert usage_totals(done.usage) == {
        KEY: (Decimal(12), 2, 1),
        (0, 2, *by_null): (Decimal(0), 0, 2),
        (0, 2, *KEY[2:4], '{"properties.model":"m"}'): (Decimal(7), 1, 0),
        (0, 3, *KEY[2:]): (Decimal(7), 2, 1),
    }
    assert done.partitions[0].outcomes == Outcomes(received=4, counted=3, duplicate=1)


def test_the_log_s_order_holds_across_schemas() -> None:
    """Records written under other capture settings are read apart, yet the last by (time, offset) is the latest."""
    done = run(
        record([row(1, latency_ms=1)], 0),
        record([row(2, latency_ms=2)], 1, properties=("unneeded",)),
        record([row(3, latency_ms=3), row(1, latency_ms=9)], 2),
        record([row(4, latency_ms=4, time_ms=NOW_MS - 1)], 3, properties=("unneeded",)),
        meters=(meter("latest latency_ms"),),
    )
    (found,) = done.usage.to_dicts()
    assert (found["quantity"], found["order_ms"], found["order_offset"]) == (Decimal(3), NOW_MS, 2)
    assert done.partitions[0].outcomes.duplicate == 1


def test_latest_deltas_merge_by_time_before_offset() -> None:
    """Of two flushes, the later event wins, not the later record; a delta without a value never does."""
    latest = meter("latest latency_ms")
    deltas = [
        run(record([row(1, latency_ms=5, time_ms=NOW_MS)], 0), meters=(latest,)).usage,
        run(record([row(2, latency_ms=7, time_ms=NOW_MS - 1)], 1), meters=(latest,)).usage,
        run(record([row(3, latency_ms=None, time_ms=NOW_MS + 1)], 2), meters=(latest,)).usage,
    ]
    (found,) = merge_usage(deltas).to_dicts()
    assert (found["quantity"], found["order_ms"], found["order_offset"]) == (Decimal(5), NOW_MS, 0)
    assert (found["events"], found["unvalued"], found["latest_event_ms"]) == (2, 1, NOW_MS + 1)


@pytest.mark.parametrize(("kind", "extreme"), [("max", 7), ("min", 5)])
def test_a_delta_without_a_value_is_no_extreme(kind: str, extreme: int) -> None:
    """Nothing is neither a peak nor a low, whichever flush it comes in."""
    peak = meter(f"{kind} latency_ms")
    flushes = ([row(1, latency_ms=5)], [row(2, latency_ms=None)], [row(3, latency_ms=7)])
    deltas = [run(record(rows, at), meters=(peak,)).usage for at, rows in enumerate(flushes)]
    (found,) = merge_usage(deltas).to_dicts()
    assert (found["quantity"], found["events"], found["unvalued"]) == (Decimal(extreme), 2, 1)


def _poison(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """Make counting raise on events of this status, as no checked expression can."""
    honest = Plan.count

    def raising(self: Plan, frame: pl.DataFrame) -> Any:
        if (frame["status"] == status).any():
            raise pl.exceptions.ComputeError("poison")
        return honest(self, frame)

    monkeypatch.setattr(Plan, "count", raising)


def test_an_event_that_cannot_be_evaluated_dies_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bisected, dead, not seen; a later copy without the poison counts, one with it dies too."""
    compiled = CompiledMeters.compile(meter_set(meter(where="status > 0")))
    _poison(monkeypatch, 666)
    rows = [row(number, status=200) for number in range(50)]
    rows[20]["status"] = rows[33]["status"] = 666
    copies = [row(20, status=200), row(33, status=666), row(5, status=200)]
    done = fold([record(rows, 0), record(copies, 1)], {0: SeenIds()}, compiled, RULES)
    assert done.partitions[0].outcomes == Outcomes(received=53, counted=49, duplicate=1, dead=3)
    assert [letter.rows for letter in done.dead] == [2, 1]
    assert {letter.reason for letter in done.dead} == {DeadReason.EVALUATION_FAILED}
    assert 33 not in np.concatenate(list(done.partitions[0].seen_ids.values()))


def test_a_failure_of_no_event_stops_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours must not bury a whole flush as dead."""
    compiled = CompiledMeters.compile(meter_set(meter()))

    def broken(self: Plan, frame: pl.DataFrame) -> Any:
        raise pl.exceptions.ComputeError("out of order")

    monkeypatch.setattr(Plan, "count", broken)
    with pytest.raises(InvariantViolated, match="without any event"):
        fold([record([row(1)])], {0: SeenIds()}, compiled, RULES)


def test_ids_seen_before_are_duplicates() -> None:
    """Committed or staged."""
    seen = SeenIds()
    seen.load(NOW_MS // DAY_MS, np.array([1], np.uint64))
    seen.stage(1, {NOW_MS // DAY_MS: np.array([2], np.uint64)})
    done = run(record([row(1), row(2), row(3), row(2)], 1), seen=seen)
    assert done.partitions[0].outcomes == Outcomes(received=4, counted=1, duplicate=3)


def test_without_meters_everything_is_unmatched() -> None:
    """An empty meter set still moves the log along."""
    done = run(record([row(1), row(1)]), meters=())
    assert done.partitions[0].outcomes == Outcomes(received=2, unmatched=1, duplicate=1)
    assert done.usage.is_empty()


def test_outcomes_that_do_not_add_up_are_refused() -> None:
    """The law is asserted where the numbers are made."""
    with pytest.raises(InvariantViolated):
        Outcomes(received=2, counted=1)
    with pytest.raises(InvariantViolated):
        Outcomes(received=1, duplicate=1, weak_duplicate=2)


def test_a_bound_can_be_lowered_but_not_raised() -> None:
    """Static bounds of expressions rest on 10^12."""
    compiled = CompiledMeters.compile(meter_set(meter("sum latency_ms")), operand_bound=100)
    rows = [row(1, latency_ms=100), row(2, latency_ms=101)]
    done = fold([record(rows)], {0: SeenIds()}, compiled, RULES)
    assert usage_totals(done.usage)[KEY] == (Decimal(100), 1, 1)
    with pytest.raises(ValueError, match="operand_bound"):
        CompiledMeters.compile(meter_set(meter()), operand_bound=10**13)


def test_records_of_two_capture_settings_count_together_whatever_their_size() -> None:
    """Small records are gathered, large ones read by Arrow: a property nobody asks for must not keep them apart."""
    large = record([row(number) for number in range(300)], 0, properties=["a"])
    small = record([row(1_000)], 1, properties=["b"])
    loose = batch([row(2_000)]).cast(pa.schema([field.with_nullable(True) for field in SCHEMA]))
    nullable = dataclasses.replace(record([row(2_000)], 2), value=encode_batch(loose))
    done = run(large, small, nullable)
    assert done.partitions[0].outcomes == Outcomes(received=302, counted=302)
