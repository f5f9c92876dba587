"""What applying a list of meters does to the versions there are: a pure plan, carried out by `catalogue.py`.

Owns when a change takes effect. It refuses to know SQL.

- A new meter counts at once, and from the beginning of event time; never before the end of an earlier meter of its
  name, which has counted until there.
- A change of what is counted, or of which Stripe meter gets it, ends the version there is and begins the next at one
  boundary in event time, so far ahead that no event beyond it can have been counted yet.
- A change of how it is sent or priced changes the version in place: the counts stay what they are.
- A meter that is gone ends at such a boundary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tollgate.metering.definition import Meter

FUTURE_MS = 300_000
"""Events up to five minutes ahead of their record's ingest time are counted; a boundary lies beyond all of them."""

_IN_PLACE = ("send", "price", "product", "closed")
"""Parts of a meter's Stripe target that do not change which Stripe meter a unit belongs to."""


@dataclass(frozen=True, slots=True)
class StoredMeter:
    """One version of a meter as the ledger has it."""

    meter_id: int
    meter: Meter
    from_ms: int
    to_ms: int | None


@dataclass(frozen=True, slots=True)
class Begin:
    """A version to add."""

    meter: Meter
    from_ms: int


@dataclass(frozen=True, slots=True)
class End:
    """A version to end; when nothing is left of it (`to_ms` is where it began) it leaves the set."""

    meter_id: int
    name: str
    to_ms: int
    never_began: bool


@dataclass(frozen=True, slots=True)
class Retarget:
    """A version whose definition changes in place."""

    meter_id: int
    meter: Meter


@dataclass(frozen=True, slots=True)
class MeterChanges:
    """The plan."""

    kept: tuple[str, ...]
    added: tuple[Begin, ...]
    changed: tuple[tuple[End, Begin], ...]
    retargeted: tuple[Retarget, ...]
    removed: tuple[End, ...]

    @property
    def empty(self) -> bool:
        """True when the set stays as it is."""
        return not (self.added or self.changed or self.retargeted or self.removed)


def plan_changes(stored: Sequence[StoredMeter], meters: Sequence[Meter], now_ms: int) -> MeterChanges:
    """How the set `stored` (every version still in it) becomes `meters`. Raises ValueError for a name given twice."""
    names = [meter.name for meter in meters]
    if len(set(names)) != len(names):
        raise ValueError(
            f"meter names given twice: {sorted({name for name in names if names.count(name) > 1})}"
        )
    open_versions = {version.meter.name: version for version in stored if version.to_ms is None}
    kept, added, changed, retargeted = [], [], [], []
    for meter in meters:
        version = open_versions.get(meter.name)
        if version is None:
            ends = [old.to_ms for old in stored if old.meter.name == meter.name and old.to_ms is not None]
            added.append(Begin(meter, from_ms=max(ends, default=0)))
            continue
        before, after = version.meter.to_document(), meter.to_document()
        if before == after:
            kept.append(meter.name)
        elif _counted(before) == _counted(after):
            retargeted.append(Retarget(version.meter_id, meter))
        else:
            end = _end(version, max(version.meter.window.size_ms, meter.window.size_ms), now_ms)
            changed.append((end, Begin(meter, from_ms=end.to_ms)))
    removed = [
        _end(version, version.meter.window.size_ms, now_ms)
        for name, version in sorted(open_versions.items())
        if name not in names
    ]
    return MeterChanges(tuple(kept), tuple(added), tuple(changed), tuple(retargeted), tuple(removed))


def next_boundary(now_ms: int, size_ms: int) -> int:
    """The first window start at least `FUTURE_MS` and one whole window after `now_ms`.

    The window of margin covers clocks that disagree: an ingest instance that far ahead of this one has still not
    counted anything past the boundary.
    """
    return -(-(now_ms + FUTURE_MS + size_ms) // size_ms) * size_ms


def _end(version: StoredMeter, size_ms: int, now_ms: int) -> End:
    # A version that is still to begin ends where it would have begun: it never counts.
    to_ms = max(next_boundary(now_ms, size_ms), version.from_ms)
    return End(version.meter_id, version.meter.name, to_ms, never_began=to_ms == version.from_ms)


def _counted(document: Mapping[str, object]) -> dict[str, object]:
    """The part of a definition that decides what is counted and which Stripe meter it belongs to."""
    stripe = document.get("stripe")
    if not isinstance(stripe, Mapping):
        return dict(document)
    return {**document, "stripe": {key: value for key, value in stripe.items() if key not in _IN_PLACE}}
