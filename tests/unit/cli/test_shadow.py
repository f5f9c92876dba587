"""Shadow counting from archived rows: equal to the fold of the log's own bytes, and to a count by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence
from decimal import Decimal

import polars as pl
import pytest

from services.cli.archived_rows import BESIDE_COLUMNS, ArchivedRows
from services.cli.logged import read_rows
from services.cli.shadow import Shadow
from tests.fakes.logged import events_record, raw_record, tick_record
from tests.unit.metering.rows import DAY_MS, HOUR_MS, NOW_MS, row
from tollgate.contracts.amendments import AMENDMENT_HEADERS, Amendment, encode_amendment
from tollgate.contracts.archive_rows import RestoredRecord, join_rows, properties_of, tabulate
from tollgate.contracts.records import decode_records
from tollgate.metering.definition import MeterSet, MeterVersion
from tollgate.metering.meter import parse_meters
from tollgate.metering.outcome import TimeRules
from tollgate.metering.refold import recount

RULES = TimeRules()
METERS = MeterSet(
    version=1,
    meters=tuple(
        MeterVersion(meter_id=number, meter=meter, from_ms=0, to_ms=None)
        for number, meter in enumerate(
            parse_meters(
                "meters:\n"
                "  - {name: calls, where: status < 500, metric: count, window: hour}\n"
                "  - {name: tokens, metric: {sum: properties.tokens}, window: hour, group_by: [properties.model]}\n"
                "  - {name: slowest, metric: {max: latency_ms}, window: day}\n"
                "  - {name: last, metric: {latest: latency_ms}, window: day}\n"
                "  - {name: people, metric: {unique: user}, window: day}\n",
                "meters.yaml",
            ),
            start=1,
        )
    ),
)


def made(rng: random.Random, offset: int) -> RestoredRecord:
    """Events with and without properties, duplicates, late and future ones; ticks; noise."""
    at_ms = NOW_MS + offset * 60_000
    if rng.random() < 0.1:
        return tick_record(offset, at_ms)
    properties = rng.choice([[], ["tokens"], ["model", "tokens"]])
    events = [
        row(
            rng.randrange(200),
            account=rng.choice(["user:ada", "user:bob"]),
            user=rng.choice([None, "ada", "eve"]),
            time_ms=at_ms - rng.choice([0, 5, HOUR_MS, DAY_MS, 4 * DAY_MS, -HOUR_MS]),
            status=rng.choice([200, 503, None]),
            latency_ms=rng.randrange(100),
            properties={name: rng.choice([None, "3", "x"]) for name in properties},
        )
        for _ in range(rng.randrange(6))
    ]
    whole = events_record(offset, events, properties, ingest_ms=at_ms, accept_late=rng.random() < 0.1)
    return raw_record(offset, whole.value[:50], *whole.headers) if rng.random() < 0.1 else whole


def shadow(records: Sequence[RestoredRecord], *, archived: bool, cuts: int = 3) -> Shadow:
    """Folded in `cuts` pieces, from bytes or from rows."""
    counting = Shadow(METERS, RULES, lambda rows: rows)
    size = max(1, len(records) // cuts)
    for at in range(0, len(records), size):
        part = records[at : at + size]
        if not archived:
            counting.fold(decode_records(part))
            continue
        tables = tabulate(part)
        properties = frozenset().union(*(properties_of(table.schema) for table in tables))
        table = join_rows(tables, properties)
        wanted = counting.columns | BESIDE_COLUMNS
        rows = ArchivedRows(table.select([name for name in table.schema.names if name in wanted]))
        counting.fold(rows.records, rows)
    return counting


@pytest.mark.parametrize("seed", range(8))
def test_rows_and_bytes_and_another_count_agree(seed: int) -> None:
    """Usage and outcomes from the archive's rows, from the log's bytes, and by the row-by-row evaluator."""
    rng = random.Random(seed)
    records = [made(rng, offset) for offset in range(60)]
    by_rows, by_bytes = shadow(records, archived=True), shadow(records, archived=False, cuts=1)
    assert by_rows.usage().equals(by_bytes.usage())
    assert by_rows.outcomes == by_bytes.outcomes
    again = recount((each for record in records for each in read_rows(record)), METERS, RULES)
    assert by_rows.outcomes == again.outcomes
    found = {
        (r["partition"], r["meter_id"], r["window_start_ms"], r["account"], r["dimensions"]): r["quantity"]
        for r in by_rows.usage().iter_rows(named=True)
    }
    assert found == {key: held.quantity for key, held in again.usage.items()}
    assert by_rows.events == sum(ended.received for ended in again.outcomes.values())


def test_an_id_seen_before_the_windows_asked_for_is_a_duplicate() -> None:
    """The stretch begins before them: its usage is not kept, its ids are."""
    first = events_record(0, [row(7, time_ms=NOW_MS, status=200)], ingest_ms=NOW_MS)
    copy = events_record(1, [row(7, time_ms=NOW_MS + DAY_MS, status=200)], ingest_ms=NOW_MS + DAY_MS)
    later = NOW_MS + DAY_MS // 2
    counting = Shadow(METERS, RULES, lambda rows: rows.filter(pl.col("window_start_ms") >= later))
    for record in (first, copy):
        counting.fold(decode_records([record]))
    assert counting.usage().is_empty()
    assert counting.outcomes[0].duplicate == 1
    without = Shadow(METERS, RULES, lambda rows: rows.filter(pl.col("window_start_ms") >= later))
    without.fold(decode_records([copy]))
    assert not without.usage().is_empty()


def test_an_amendment_counts_for_the_meter_of_its_name() -> None:
    """Whatever number the ledger's version has; for no meter of that name it is dead."""
    hour = NOW_MS // HOUR_MS * HOUR_MS

    def amendment(offset: int, meter: str) -> RestoredRecord:
        told = Amendment(f"a{offset}", 99, meter, "user:ada", hour, hour + 5, "-2.5", "why", "me", NOW_MS)
        return raw_record(offset, encode_amendment(told), *AMENDMENT_HEADERS)

    records = [
        events_record(0, [row(1, status=200)], ingest_ms=NOW_MS),
        amendment(1, "calls"),
        amendment(2, "unheard"),
    ]
    for archived in (False, True):
        counting = shadow(records, archived=archived)
        calls = counting.usage().filter(pl.col("meter_id") == 1)
        assert calls["quantity"].to_list() == [Decimal("-1.5")]
        assert (counting.outcomes[0].counted, counting.outcomes[0].dead) == (2, 1)


def test_a_record_kept_as_bytes_is_decoded_from_them() -> None:
    """A header more keeps a record from being rows, and its events count all the same."""
    whole = events_record(1, [row(2, status=200)], ingest_ms=NOW_MS)
    records = [
        events_record(0, [row(1, status=200)], ingest_ms=NOW_MS),
        raw_record(1, whole.value, *whole.headers, ("more", b"1")),
        events_record(2, [row(3, status=200)], ingest_ms=NOW_MS),
    ]
    counting = shadow(records, archived=True, cuts=1)
    calls = counting.usage().filter(pl.col("meter_id") == 1)
    assert calls["quantity"].to_list() == [Decimal(3)]
