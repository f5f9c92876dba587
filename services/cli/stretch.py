"""Which stretch of the log a replay reads, from which source, and which windows of it are whole.

Owns that arithmetic, by partition. It refuses to know how records are read and counted.

Events of a window are taken in from `future_ms` before it begins to `accept_age_ms` after it ends. An event is a
duplicate if its id was seen before, and ids are remembered by event day; so reading begins where the oldest day began
whose ids the meter still had when the first window did. Reading more than is needed harms nothing, and margins are wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.cli.console import format_time
from tollgate.metering.outcome import TimeRules
from tollgate.metering.seen import oldest_day
from tollgate.metering.window import DAY_MS, epoch_day

MARGIN_MS = 3_600_000
"""What clocks of the ingest instances, and their way to the broker, may differ by."""


@dataclass(frozen=True, slots=True)
class Held:
    """What one source holds of a partition: `[start, end)`."""

    start: int
    end: int

    @property
    def empty(self) -> bool:
        return self.end <= self.start


@dataclass(frozen=True, slots=True)
class Stretch:
    """What is read of one partition: `[start, middle)` from the archive, `[middle, stop)` from the log."""

    start: int
    middle: int
    stop: int
    whole_from_ms: int | None = None
    """Windows that begin before this may lack events that no source holds any more; None when all are whole."""
    ids_from_ms: int | None = None
    """Before this an event may be a duplicate of one that no source holds any more; None when none can."""

    @property
    def records(self) -> int:
        return self.stop - self.start


class NothingHeld(Exception):
    """The sources do not reach from one to the other, or to where they must."""


def reading_from_ms(since_ms: int, rules: TimeRules) -> int:
    """The time from which on records must be read to count windows from `since_ms` on with every id known."""
    first_ms = since_ms - rules.future_ms
    return oldest_day(first_ms, rules) * DAY_MS - rules.future_ms - MARGIN_MS


def reading_until_ms(until_ms: int, rules: TimeRules) -> int:
    """The time from which on no record can hold an event of a window that ends by `until_ms`."""
    return until_ms + rules.accept_age_ms + MARGIN_MS


def whole_from_ms(source_begins_ms: int, rules: TimeRules) -> int:
    """From when on windows are whole, where the source's first record was taken in at `source_begins_ms`."""
    return source_begins_ms + rules.future_ms + MARGIN_MS


def ids_from_ms(source_begins_ms: int, rules: TimeRules) -> int:
    """From when on every id that could make an event a duplicate is known, with a source that begins so."""
    # The least time whose oldest remembered day begins after the source did.
    whole_day = epoch_day(source_begins_ms + rules.future_ms + MARGIN_MS) + 1
    return (whole_day + 1) * DAY_MS + rules.accept_age_ms


def join_sources(partition: int, archive: Held | None, log: Held | None) -> tuple[int, int, int]:
    """First offset, where the log takes over, and the end, of whatever is there: the archive, then the log.

    Raises NothingHeld where records between the two are in neither.
    """
    if archive is None or archive.empty:
        found = log or Held(0, 0)
        return found.start, found.start, found.end
    if log is None or log.end <= archive.end:
        return archive.start, archive.end, archive.end
    if log.start > archive.end:
        raise NothingHeld(
            f"partition {partition}: the archive ends before offset {archive.end}, the log begins at {log.start}: "
            f"{log.start - archive.end} records are in neither"
        )
    return archive.start, archive.end, log.end


def tell_caveats(stretches: Mapping[int, Stretch], first_ms: int | None) -> list[str]:
    """What the numbers may lack, in sentences; none where every event and every id is known.

    `first_ms`: the beginning of the first window asked for; None for the first there is.
    """
    told = []
    for partition, stretch in sorted(stretches.items()):
        if stretch.whole_from_ms is not None and (first_ms is None or first_ms < stretch.whole_from_ms):
            told.append(
                f"partition {partition} begins at offset {stretch.start}: windows before "
                f"{format_time(stretch.whole_from_ms)} may lack events and are left out"
            )
        if stretch.ids_from_ms is not None and (first_ms is None or first_ms < stretch.ids_from_ms):
            told.append(
                f"partition {partition}: ids from before offset {stretch.start} are not known: until "
                f"{format_time(stretch.ids_from_ms)} a late copy of such an event counts here and is a duplicate live"
            )
    return told
