"""Another biller's numbers: a CSV of quantities, beside which the ledger's are put for a parallel month.

Owns reading such a file, whole or not at all, and the comparison. It refuses to know where the ledger's numbers come
from and how a result is printed.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from services.cli.moment import parse_moment_ms
from tollgate.metering.reconciliation import EXACT

COLUMNS = ("customer", "meter", "period_start", "quantity")

MISTAKES_MAX = 20
"""Lines named in one refusal; the rest is counted."""


class UnreadableBill(Exception):
    """The file is refused, and each line that is why."""


@dataclass(frozen=True, slots=True, order=True)
class Billed:
    """Whose quantity of which meter in the period that begins when (epoch milliseconds)."""

    customer: str
    meter: str
    period_start_ms: int


@dataclass(frozen=True, slots=True)
class Difference:
    """One line of the comparison. None: the one side has no such line."""

    key: Billed
    ours: Decimal | None
    theirs: Decimal | None

    @property
    def agrees(self) -> bool:
        """Whether both say the same; a side that has nothing says zero."""
        return (self.ours or Decimal(0)) == (self.theirs or Decimal(0))

    @property
    def difference(self) -> Decimal:
        """Ours less theirs."""
        return EXACT.subtract(self.ours or Decimal(0), self.theirs or Decimal(0))


def read_bill(lines: Iterable[str]) -> dict[Billed, Decimal]:
    """Every line of the file. Raises UnreadableBill naming each line that is wrong, and then nothing is compared."""
    reader = csv.reader(lines)
    header = next(reader, None)
    if header is None:
        raise UnreadableBill("the file is empty")
    names = [name.strip().removeprefix("\ufeff") for name in header]
    if sorted(names) != sorted(COLUMNS):
        raise UnreadableBill(f"its columns are {', '.join(names)}; they must be {', '.join(COLUMNS)}")
    found: dict[Billed, Decimal] = {}
    first_line: dict[Billed, int] = {}
    mistakes: list[str] = []
    for cells in reader:
        if not cells:
            continue
        try:
            key, quantity = _read_line(names, cells)
            if key in first_line:
                raise ValueError(f"the same customer, meter and period as line {first_line[key]}")
        except ValueError as error:
            mistakes.append(f"line {reader.line_num}: {error}")
            continue
        first_line[key] = reader.line_num
        found[key] = quantity
    if mistakes:
        more = len(mistakes) - MISTAKES_MAX
        named = mistakes[:MISTAKES_MAX] + ([f"and {more} more"] if more > 0 else [])
        raise UnreadableBill("\n".join(named))
    return found


def _read_line(names: Sequence[str], cells: Sequence[str]) -> tuple[Billed, Decimal]:
    if len(cells) != len(names):
        raise ValueError(f"{len(cells)} cells, not {len(names)}")
    values = dict(zip(names, (cell.strip() for cell in cells), strict=True))
    for name in ("customer", "meter"):
        if not values[name]:
            raise ValueError(f"no {name}")
    try:
        start_ms = parse_moment_ms(values["period_start"])
    except (ValueError, OverflowError):
        raise ValueError(f"period_start {values['period_start']!r} is not an ISO 8601 time") from None
    try:
        quantity = Decimal(values["quantity"])
    except InvalidOperation:
        raise ValueError(f"quantity {values['quantity']!r} is not a number") from None
    if not quantity.is_finite():
        raise ValueError(f"quantity {values['quantity']!r} is not a number")
    return Billed(values["customer"], values["meter"], start_ms), quantity


def compare_bills(ours: Mapping[Billed, Decimal], theirs: Mapping[Billed, Decimal]) -> list[Difference]:
    """Every line of either side, in order. A period without usage that the other does not name is left out."""
    found = [Difference(key, ours.get(key), theirs.get(key)) for key in sorted({*ours, *theirs})]
    return [line for line in found if line.theirs is not None or line.ours]
