"""Amendments in the fold, and in the recount that shares no code with it."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import pytest

from services.cli.log import StoredRecord
from services.cli.logged import read_rows
from services.meter.decode import decode_records
from services.meter.intake import LogRecord
from tests.unit.metering.rows import HOUR_MS, NOW_MS, meter, meter_set, record, row, usage_totals
from tollgate.contracts.amendments import AMENDMENT_HEADERS, Amendment, encode_amendment
from tollgate.metering.compiled import CompiledMeters
from tollgate.metering.fold import Fold, TimeRules, fold
from tollgate.metering.meter import Meter, MeterSet, MeterVersion, Metric, MetricKind
from tollgate.metering.outcome import Outcomes
from tollgate.metering.records import AmendmentRecord, Record, UnknownRecord
from tollgate.metering.refold import Recount, recount
from tollgate.metering.seen import SeenIds

WINDOW = NOW_MS - NOW_MS % HOUR_MS
LONG_AGO = WINDOW - 2000 * HOUR_MS
KEY = (0, 1, WINDOW, "user:ada", "")
RULES = TimeRules()


def amendment(name: str = "one", quantity: str = "5", **changed: object) -> Amendment:
    told: dict[str, object] = {
        "amendment_id": name,
        "meter_id": 1,
        "meter": "calls",
        "account": "user:ada",
        "window_start_ms": WINDOW,
        "time_ms": WINDOW + 7,
        "quantity": quantity,
        "reason": "a test",
        "by": "eve",
        "written_ms": NOW_MS,
    }
    return Amendment(**(told | changed))  # type: ignore[arg-type]


def on_the_log(value: bytes, offset: int = 0) -> Record:
    """The record of an amendment as the meter decodes it."""
    return decode_records([LogRecord(0, offset, value, tuple(AMENDMENT_HEADERS))])[0]


def run(*records: Record, meters: tuple[Meter, ...] = (meter(),), seen: SeenIds | None = None) -> Fold:
    return fold(records, {0: seen or SeenIds()}, CompiledMeters.compile(meter_set(*meters)), RULES)


def recounted(*values: bytes, meters: MeterSet | None = None) -> Recount:
    rows = [
        told
        for offset, value in enumerate(values)
        for told in read_rows(StoredRecord(0, offset, 0, None, value, tuple(AMENDMENT_HEADERS)))
    ]
    return recount(rows, meters or meter_set(meter()), RULES)


def numbers(found: Recount) -> Mapping[tuple[int, int, int, str, str], tuple[Decimal, int, int]]:
    return {key: (held.quantity, held.events, held.unvalued) for key, held in found.usage.items()}


def test_an_amendment_adds_its_signed_quantity_beside_the_events() -> None:
    """Two calls, five more and one less are six; each amendment is one event that was received and counted."""
    done = run(
        record([row(1), row(2)], 0),
        on_the_log(encode_amendment(amendment("a")), 1),
        on_the_log(encode_amendment(amendment("b", "-1")), 2),
    )
    assert usage_totals(done.usage) == {KEY: (Decimal(6), 4, 0)}
    part = done.partitions[0]
    assert part.outcomes == Outcomes(received=4, counted=4)
    assert (part.from_offset, part.next_offset, part.last_offset) == (0, 3, 2)
    assert part.instances.keys() == {"ingest-1"}


def test_amendments_alone_are_a_flush() -> None:
    """Without a single event; a window years back is amended like any, and no time rule makes it late."""
    old = amendment("a", "-0.000000001", window_start_ms=LONG_AGO, time_ms=LONG_AGO)
    sums = meter(Metric(MetricKind.SUM, "request_bytes"))
    done = run(on_the_log(encode_amendment(old)), meters=(sums,))
    assert usage_totals(done.usage) == {(0, 1, LONG_AGO, "user:ada", ""): (Decimal("-1E-9"), 1, 0)}
    assert done.usage["latest_event_ms"].to_list() == [LONG_AGO]


def test_an_amendment_counts_once_however_often_it_is_on_the_log() -> None:
    """Within a flush, and over flushes: it is remembered by the day it was written."""
    value = encode_amendment(amendment())
    done = run(on_the_log(value, 0), on_the_log(value, 1), on_the_log(encode_amendment(amendment("two")), 2))
    assert done.partitions[0].outcomes == Outcomes(received=3, counted=2, duplicate=1)
    seen = SeenIds()
    seen.stage(3, done.partitions[0].seen_ids)
    again = run(on_the_log(value, 3), seen=seen)
    assert again.partitions[0].outcomes == Outcomes(received=1, duplicate=1)
    assert again.usage.height == 0


UNFIT = {
    "another meter": amendment(meter_id=2),
    "no window's start": amendment(window_start_ms=WINDOW + 1),
    "a time outside the window": amendment(time_ms=WINDOW + HOUR_MS),
    "a time before the window": amendment(time_ms=WINDOW - 1),
}


@pytest.mark.parametrize("told", UNFIT.values(), ids=UNFIT.keys())
def test_what_no_meter_can_take_is_dead_and_stops_nothing(told: Amendment) -> None:
    """With its bytes in a dead letter; the same for the recount."""
    value = encode_amendment(told)
    done = run(on_the_log(value, 0), record([row(1)], 1))
    assert done.partitions[0].outcomes == Outcomes(received=2, counted=1, dead=1)
    (letter,) = done.dead
    assert (letter.offset, letter.rows, letter.payload) == (0, 1, value)
    assert recounted(value).outcomes == {0: Outcomes(received=1, dead=1)}


@pytest.mark.parametrize("kind", [MetricKind.MAX, MetricKind.MIN, MetricKind.LATEST, MetricKind.UNIQUE])
def test_only_what_adds_up_can_be_amended(kind: MetricKind) -> None:
    """A maximum has no part that could be taken away."""
    made = meter(Metric(kind, "request_bytes"))
    value = encode_amendment(amendment())
    assert run(on_the_log(value), meters=(made,)).partitions[0].outcomes == Outcomes(received=1, dead=1)
    assert recounted(value, meters=meter_set(made)).outcomes == {0: Outcomes(received=1, dead=1)}


def test_a_version_takes_amendments_of_its_own_time_only() -> None:
    """Before its beginning and from its end on, another version is meant."""
    bounded = MeterSet(1, (MeterVersion(1, meter(), WINDOW, WINDOW + HOUR_MS),))
    compiled = CompiledMeters.compile(bounded)
    for start_ms, ends in (
        (WINDOW - HOUR_MS, Outcomes(received=1, dead=1)),
        (WINDOW, Outcomes(received=1, counted=1)),
        (WINDOW + HOUR_MS, Outcomes(received=1, dead=1)),
    ):
        value = encode_amendment(amendment(window_start_ms=start_ms, time_ms=start_ms))
        done = fold([on_the_log(value)], {0: SeenIds()}, compiled, RULES)
        assert done.partitions[0].outcomes == ends
        assert recounted(value, meters=bounded).outcomes == {0: ends}


GARBAGE = {
    "no JSON": b"{",
    "no amendment": b"{}",
    "zero": encode_amendment(amendment(quantity="0")),
    "no number": encode_amendment(amendment(quantity="five")),
    "not finite": encode_amendment(amendment(quantity="NaN")),
    "endless": encode_amendment(amendment(quantity="1e25")),
    "ten places": encode_amendment(amendment(quantity="0.0000000001")),
    "no account": encode_amendment(amendment(account="")),
    "a NUL": encode_amendment(amendment(account="user:\0")),
    "a long account": encode_amendment(amendment(account="x" * 1001)),
    "long dimensions": encode_amendment(amendment(dimensions="x" * 1201)),
    "a time before 1970": encode_amendment(amendment(time_ms=-1)),
    "another field": encode_amendment(amendment())[:-1] + b',"more":1}',
}


@pytest.mark.parametrize("value", GARBAGE.values(), ids=GARBAGE.keys())
def test_what_is_no_amendment_counts_as_one_dead_event(value: bytes) -> None:
    """For the meter and for the recount."""
    assert isinstance(on_the_log(value), UnknownRecord)
    assert run(on_the_log(value)).partitions[0].outcomes == Outcomes(received=1, dead=1)
    assert recounted(value).outcomes == {0: Outcomes(received=1, dead=1)}


def test_the_recount_agrees() -> None:
    """On sums over several windows and accounts, duplicates among them."""
    told = [
        amendment("a", "5"),
        amendment("b", "-7", account="user:bob"),
        amendment("a", "5"),
        amendment("c", "3", window_start_ms=LONG_AGO, time_ms=LONG_AGO + 1),
        amendment("d", "-2"),
        amendment("e", "1", dimensions='{"m":"x"}'),
    ]
    values = [encode_amendment(each) for each in told]
    done = run(*(on_the_log(value, offset) for offset, value in enumerate(values)))
    again = recounted(*values)
    assert usage_totals(done.usage) == numbers(again)
    assert {0: done.partitions[0].outcomes} == again.outcomes
    assert done.partitions[0].outcomes == Outcomes(received=6, counted=5, duplicate=1)


def test_equal_names_are_equal_ids() -> None:
    """And another name is another id; an event's id is never one of them by its text."""
    one, same, other = amendment("a"), amendment("a", "9"), amendment("b")
    assert one.id_hash == same.id_hash != other.id_hash
    decoded = on_the_log(encode_amendment(one))
    assert isinstance(decoded, AmendmentRecord)
    assert decoded.id_hash == one.id_hash


def test_the_hash_of_an_id_never_changes() -> None:
    """What is remembered today is compared with what is read next week."""
    assert amendment("a").id_hash == 7108788205587936583
