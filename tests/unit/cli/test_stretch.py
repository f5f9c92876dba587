"""Which stretch a replay reads, and which windows of it are whole: arithmetic, against a day-by-day telling of it."""

from __future__ import annotations

import pytest

from services.cli.stretch import (
    MARGIN_MS,
    Held,
    NothingHeld,
    Stretch,
    ids_from_ms,
    join_sources,
    reading_from_ms,
    reading_until_ms,
    tell_caveats,
    whole_from_ms,
)
from tollgate.metering.outcome import TimeRules
from tollgate.metering.seen import oldest_day
from tollgate.metering.window import DAY_MS

RULES = TimeRules(accept_age_ms=3 * DAY_MS, future_ms=300_000)
SINCE_MS = 20_000 * DAY_MS + 7 * 3_600_000


def test_the_archive_first_then_the_log() -> None:
    """Overlapping, touching, or one of them alone."""
    assert join_sources(0, Held(2, 10), Held(5, 20)) == (2, 10, 20)
    assert join_sources(0, Held(2, 10), Held(10, 20)) == (2, 10, 20)
    assert join_sources(0, Held(2, 10), Held(3, 8)) == (2, 10, 10)
    assert join_sources(0, Held(2, 10), None) == (2, 10, 10)
    assert join_sources(0, None, Held(3, 8)) == (3, 3, 8)
    assert join_sources(0, None, None) == (0, 0, 0)


def test_records_that_are_in_neither_are_named() -> None:
    """A log whose retention was quicker than the archive."""
    with pytest.raises(
        NothingHeld, match="partition 4: the archive ends before offset 10, the log begins at 13: 3"
    ):
        join_sources(4, Held(0, 10), Held(13, 20))


def test_reading_begins_where_the_oldest_id_that_matters_was_taken_in() -> None:
    """Every id the meter remembers when the first event of the stretch can arrive was taken in after that."""
    from_ms = reading_from_ms(SINCE_MS, RULES)
    first_arrival_ms = SINCE_MS - RULES.future_ms
    # An id of the oldest day remembered: taken in at the earliest when its event was as far ahead as is accepted.
    earliest_ms = oldest_day(first_arrival_ms, RULES) * DAY_MS - RULES.future_ms
    assert earliest_ms - MARGIN_MS == from_ms
    assert from_ms < first_arrival_ms - RULES.accept_age_ms


def test_no_event_of_a_window_comes_later() -> None:
    """As old as is accepted, and an hour for the clocks."""
    assert reading_until_ms(SINCE_MS, RULES) == SINCE_MS + RULES.accept_age_ms + MARGIN_MS


def test_a_source_that_begins_late_is_whole_later_and_knows_ids_later_still() -> None:
    """From `ids_from_ms` on a reading that begins where the source does begins early enough; a day before it does not."""
    begins_ms = SINCE_MS
    assert whole_from_ms(begins_ms, RULES) == begins_ms + RULES.future_ms + MARGIN_MS
    known_ms = ids_from_ms(begins_ms, RULES)
    assert reading_from_ms(known_ms + RULES.future_ms, RULES) >= begins_ms
    assert reading_from_ms(known_ms + RULES.future_ms - DAY_MS, RULES) < begins_ms


def test_caveats_are_said_where_they_matter() -> None:
    """Nothing of a whole source; what is left out and what is not known of another, unless asked for later."""
    whole, cut = Stretch(0, 5, 9), Stretch(7, 7, 9, whole_from_ms=1_000_000, ids_from_ms=9_000_000)
    assert tell_caveats({0: whole}, None) == []
    told = tell_caveats({0: whole, 1: cut}, None)
    assert len(told) == 2
    assert told[0].startswith("partition 1 begins at offset 7: windows before 1970-01-01 00:16:40Z")
    assert "ids from before offset 7 are not known: until 1970-01-01 02:30:00Z" in told[1]
    assert len(tell_caveats({1: cut}, 5_000_000)) == 1
    assert tell_caveats({1: cut}, 9_000_000) == []
