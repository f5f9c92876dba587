"""Two evaluators that share no code, one over columns and one over rows, agree on every expression and event."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import assume, given, note
from hypothesis import strategies as st

from tests.property.expressions import PROPERTIES, conditions, events, numbers, texts
from tests.unit.metering.rows import NOW_MS, Row, UsageTotals, meter_set, record, usage_totals
from tollgate.metering.errors import InvalidMeter
from tollgate.metering.fold import CompiledMeters, TimeRules, fold
from tollgate.metering.meter import Meter, Metric, MetricKind, WindowSize
from tollgate.metering.refold import recount
from tollgate.metering.seen import SeenIds

RULES = TimeRules()


def metrics() -> st.SearchStrategy[Metric]:
    """Any metric."""
    valued = st.sampled_from([MetricKind.SUM, MetricKind.MAX, MetricKind.MIN, MetricKind.LATEST])
    return st.one_of(
        st.builds(Metric, st.just(MetricKind.COUNT), st.none(), st.booleans()),
        st.builds(Metric, valued, numbers()),
        st.builds(Metric, st.just(MetricKind.UNIQUE), st.one_of(texts(), numbers(1), conditions(1))),
    )


def meters() -> st.SearchStrategy[Meter]:
    """Any meter."""
    dimensions = st.sampled_from([(), ("properties.model",), ("status", "route"), ("id_weak",)])
    return st.builds(
        Meter,
        st.just("m"),
        st.one_of(st.none(), conditions()),
        metrics(),
        st.sampled_from(WindowSize),
        dimensions,
    )


@st.composite
def records_rows(draw: st.DrawFn) -> list[tuple[tuple[str, ...], list[Row]]]:
    """Records, each with the properties it captures and its rows."""
    found, next_id = [], 0
    for _ in range(draw(st.integers(1, 3))):
        captured = draw(st.sampled_from([PROPERTIES, PROPERTIES, PROPERTIES[:1], ()]))
        rows = []
        for _ in range(draw(st.integers(1, 5))):
            # Small ids for exactness of the model, one at the very top of the range.
            next_id += 1
            rows.append(draw(events(2**64 - 1 if next_id == 3 else next_id)))
        found.append((captured, rows))
    return found


def both_ways(
    meters: Sequence[Meter], found: Sequence[tuple[tuple[str, ...], Sequence[Row]]]
) -> tuple[UsageTotals, UsageTotals]:
    """The usage of the fold, and of the recount. Distinct values are counted as the ledger does."""
    chosen = meter_set(*meters)
    log = [record(rows, offset, properties=captured) for offset, (captured, rows) in enumerate(found)]
    folded = fold(log, {0: SeenIds()}, CompiledMeters.compile(chosen), RULES)
    totals = usage_totals(folded.usage)
    for value in folded.distinct.to_dicts():
        key = tuple(
            value[name] for name in ("partition", "meter_id", "window_start_ms", "account", "dimensions")
        )
        quantity, counted, unvalued = totals[key]
        totals[key] = (quantity + 1, counted, unvalued)
    logged = [
        {
            **{name: value for name, value in row.items() if _is_captured(name, captured)},
            "partition": 0,
            "offset": offset,
            "ingest_ms": NOW_MS,
        }
        for offset, (captured, rows) in enumerate(found)
        for row in rows
    ]
    counted_again = recount(logged, chosen, RULES)
    assert counted_again.outcomes[0] == folded.partitions[0].outcomes
    expected = {key: (held.quantity, held.events, held.unvalued) for key, held in counted_again.usage.items()}
    latest = {key: held.latest_event_ms for key, held in counted_again.usage.items()}
    for row in folded.usage.to_dicts():
        key = tuple(
            row[name] for name in ("partition", "meter_id", "window_start_ms", "account", "dimensions")
        )
        assert row["latest_event_ms"] == latest[key]
    return totals, expected


def _is_captured(name: str, captured: tuple[str, ...]) -> bool:
    return not name.startswith("properties.") or name.removeprefix("properties.") in captured


@given(meters(), records_rows())
def test_fold_and_recount_agree(meter: Meter, found: list[tuple[tuple[str, ...], list[Row]]]) -> None:
    """Whatever a meter says and an event holds, both evaluators give the same usage and outcomes."""
    note(f"{meter.where} | {meter.metric}")
    try:
        totals, expected = both_ways([meter], found)
    except InvalidMeter as error:
        note(str(error))
        assume(False)
        raise
    assert totals == expected
