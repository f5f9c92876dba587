"""What a peer lost and what it doubled: its totals beside the independent count.

Owns the comparison. It refuses to know where totals come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Usage = Mapping[tuple[str, str, int], int]
"""(meter, account, window start) -> quantity, nothing that is zero."""

EVENTS_METER = "calls"
"""The meter that counts every event: what is lost and doubled is told in its units."""


@dataclass(frozen=True, slots=True)
class Miscount:
    """How totals differ from the count they should equal."""

    lost: int
    """Events missing, over all accounts and windows that have too few."""
    doubled: int
    """Events too many, over all that have too many."""
    rows_off: int
    """(meter, account, window) whose quantity is another one, of all meters."""

    @property
    def exact(self) -> bool:
        return not self.rows_off

    def __str__(self) -> str:
        parts = [
            f"{word} {number:,}"
            for word, number in (("lost", self.lost), ("doubled", self.doubled))
            if number
        ]
        if self.rows_off and not parts:
            parts.append(f"{self.rows_off:,} rows off")
        return ", ".join(parts) or "exact"

    def to_document(self) -> dict[str, int]:
        """Plain JSON values."""
        return {"lost": self.lost, "doubled": self.doubled, "rows_off": self.rows_off}


def compare_usage(found: Usage, expected: Usage) -> Miscount:
    """What `found` lacks of `expected`, and has too much. Both in one account and window cancel each other."""
    lost = doubled = rows_off = 0
    for key in found.keys() | expected.keys():
        difference = found.get(key, 0) - expected.get(key, 0)
        if not difference:
            continue
        rows_off += 1
        if key[0] == EVENTS_METER:
            lost += max(0, -difference)
            doubled += max(0, difference)
    return Miscount(lost, doubled, rows_off)


def usage_of_rows(
    rows: Mapping[tuple[str, int], Mapping[str, Any]], until_ms: int
) -> dict[tuple[str, str, int], int]:
    """Rows by (account, window start), as the peers keep them, as usage; windows from `until_ms` on are left out."""
    usage = {}
    for (account, window_ms), row in rows.items():
        if window_ms >= until_ms:
            continue
        for meter, value in row.items():
            quantity = len(value) if isinstance(value, list) else value
            if quantity:
                usage[meter, account, window_ms] = quantity
    return usage
