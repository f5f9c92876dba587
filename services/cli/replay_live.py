"""Shadow usage beside the ledger's: which rows agree, which do not, and which cannot be compared.

Owns the comparison. It refuses to know how either was counted. Rows are compared by meter name: a window that the
ledger counted with an older version of a meter is compared with what the shadow's meter of that name comes to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

import polars as pl

from services.cli.stretch import Stretch
from tollgate.ledger.counted import Counted, CountedUsage

Key = tuple[int, str, int, str, str]
"""partition, meter name, window start (ms), account, dimensions."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """One side of a row."""

    quantity: Decimal = Decimal(0)
    events: int = 0
    unvalued: int = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """A row whose sides differ."""

    key: Key
    live: Numbers
    shadow: Numbers

    @property
    def quantity(self) -> Decimal:
        """What the shadow comes to beyond the ledger."""
        return self.shadow.quantity - self.live.quantity


@dataclass(slots=True)
class Comparison:
    """What a comparison found."""

    agreed: int = 0
    differences: list[Difference] = field(default_factory=list)
    still_open: int = 0
    """Rows the ledger has changed by records that were not replayed."""
    removed: int = 0
    """Rows of windows the ledger has removed for their age."""


def shadow_rows(usage: pl.DataFrame, names: Mapping[int, str]) -> dict[Key, Numbers]:
    """Usage by name. Rows of two versions of a name never share a window."""
    columns = (
        "partition",
        "meter_id",
        "window_start_ms",
        "account",
        "dimensions",
        "quantity",
        "events",
        "unvalued",
    )
    return {
        (partition, names[meter_id], window, account, dimensions): Numbers(quantity, events, unvalued)
        for partition, meter_id, window, account, dimensions, quantity, events, unvalued in usage.select(
            columns
        ).iter_rows()
    }


def compare_live(
    shadow: Mapping[Key, Numbers],
    counted: Counted,
    live_names: Mapping[int, str],
    stretches: Mapping[int, Stretch],
    is_kept: Callable[[int, int, int], bool],
) -> Comparison:
    """Hold `shadow` against the ledger's rows of the same names.

    `live_names`: of every meter version that is compared. `is_kept(partition, meter_id, window_start_ms)`: whether
    the window is one that was replayed whole.
    """
    found = Comparison()
    live: dict[Key, CountedUsage] = {}
    for (partition, meter_id, window, account, dimensions), numbers in counted.usage.items():
        name = live_names.get(meter_id)
        if name is not None and partition in stretches and is_kept(partition, meter_id, window):
            live[partition, name, window, account, dimensions] = numbers
    removed_before: dict[tuple[int, str], int] = {}
    for (partition, meter_id), gone in counted.retired.items():
        name = live_names.get(meter_id)
        if name is not None:
            before = removed_before.get((partition, name), gone.before_ms)
            removed_before[partition, name] = max(before, gone.before_ms)
    for key in sorted(live.keys() | shadow.keys()):
        partition, name, window, _, _ = key
        held = live.get(key)
        if window < removed_before.get((partition, name), window):
            found.removed += 1
        elif held is not None and held.changed_offset > stretches[partition].stop:
            found.still_open += 1
        else:
            one = Numbers() if held is None else Numbers(held.quantity, held.events, held.unvalued)
            other = shadow.get(key, Numbers())
            if one == other:
                found.agreed += 1
            else:
                found.differences.append(Difference(key, one, other))
    return found
