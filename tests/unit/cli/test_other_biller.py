"""Another biller's file is read whole or refused with every line that is wrong."""

from __future__ import annotations

from decimal import Decimal

import pytest

from services.cli.other_biller import (
    MISTAKES_MAX,
    Billed,
    UnreadableBill,
    compare_bills,
    read_bill,
)

HEADER = "customer,meter,period_start,quantity"
NOVEMBER_MS = 1_793_491_200_000


def read(*lines: str, header: str = HEADER) -> dict[Billed, Decimal]:
    return read_bill([header + "\n", *(line + "\n" for line in lines)])


def test_lines_are_read_exactly() -> None:
    """Columns in any order, times with and without a zone, decimals to the last place, empty lines passed over."""
    found = read(
        "1234567890123.000000001,2026-11-01,calls,cus_1",
        "",
        '"1e3",2026-11-01T01:00:00+01:00,tokens,cus_1',
        header="quantity,period_start,meter,customer",
    )
    assert found == {
        Billed("cus_1", "calls", NOVEMBER_MS): Decimal("1234567890123.000000001"),
        Billed("cus_1", "tokens", NOVEMBER_MS): Decimal(1000),
    }


@pytest.mark.parametrize(
    "header",
    [
        "customer,meter,period_start",
        "customer,meter,period_start,quantity,note",
        "customer,meter,period_start,usage",
        "customer,customer,meter,period_start,quantity",
        "cus_1,calls,2026-11-01,5",
        "customer;meter;period_start;quantity",
    ],
)
def test_other_columns_are_refused_before_anything(header: str) -> None:
    """Naming what they are and what they must be."""
    with pytest.raises(UnreadableBill, match="they must be customer, meter, period_start, quantity"):
        read("cus_1,calls,2026-11-01,5", header=header)


def test_an_empty_file_is_refused() -> None:
    """It is no statement that nothing was used."""
    with pytest.raises(UnreadableBill, match="empty"):
        read_bill([])


def test_every_wrong_line_is_named() -> None:
    """Bad numbers, bad times, missing cells and a second line for the same period, all at once."""
    with pytest.raises(UnreadableBill) as refused:
        read(
            "cus_1,calls,2026-11-01,5",
            "cus_1,calls,2026-11-01,many",
            "cus_1,calls,2026-13-01,5",
            "cus_2,calls,2026-11-01",
            ",calls,2026-11-01,5",
            "cus_1,calls,2026-11-01T00:00Z,6",
            "cus_3,calls,2026-11-01,NaN",
        )
    assert str(refused.value).splitlines() == [
        "line 3: quantity 'many' is not a number",
        "line 4: period_start '2026-13-01' is not an ISO 8601 time",
        "line 5: 3 cells, not 4",
        "line 6: no customer",
        "line 7: the same customer, meter and period as line 2",
        "line 8: quantity 'NaN' is not a number",
    ]


def test_a_thoroughly_wrong_file_is_refused_in_brief() -> None:
    """Some lines are named and the others counted."""
    with pytest.raises(UnreadableBill) as refused:
        read(*(["cus_1,calls,now,5"] * (MISTAKES_MAX + 5)))
    assert len(str(refused.value).splitlines()) == MISTAKES_MAX + 1
    assert str(refused.value).endswith("and 5 more")


def test_both_sides_are_compared() -> None:
    """Equal however written, different to the last place, on one side only; nothing used and not named is no line."""
    here, there = Billed("a", "calls", 1), Billed("b", "calls", 1)
    lines = compare_bills(
        {here: Decimal("5.0"), there: Decimal("0.1"), Billed("c", "calls", 1): Decimal(0)},
        {here: Decimal(5), Billed("d", "calls", 1): Decimal(7), Billed("e", "calls", 1): Decimal(0)},
    )
    assert [(line.key.customer, line.ours, line.theirs, line.agrees) for line in lines] == [
        ("a", 5, 5, True),
        ("b", Decimal("0.1"), None, False),
        ("d", None, 7, False),
        ("e", None, 0, True),
    ]
    assert [line.difference for line in lines] == [0, Decimal("0.1"), -7, 0]
