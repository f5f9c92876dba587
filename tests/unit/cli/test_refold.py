"""Two counts held against each other: every difference is named with both numbers."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from services.cli.refold import compare_counts
from tollgate.ledger.counted import OUTCOME_NAMES, Counted, CountedUsage
from tollgate.ledger.retired import RetiredUsage
from tollgate.metering.outcome import Outcomes
from tollgate.metering.refold import Recount, RecountedUsage

KEY = (1, 5, 1_699_999_200_000, "user:ada", "")
ENDED = Outcomes(received=3, counted=2, unmatched=1)
ROW = CountedUsage(Decimal("7.5"), 2, 0, 1_700_000_000_000)
PLACE = "recount: partition 1, meter calls, account user:ada, window 2023-11-14 22:00:00Z"


def counted(**changed: int) -> Counted:
    outcomes = {name: getattr(ENDED, name) for name in OUTCOME_NAMES}
    return Counted({1: 4}, {1: outcomes | changed}, {KEY: ROW})


def again() -> Recount:
    return Recount({KEY: RecountedUsage(Decimal("7.50"), 2, 0, 1_700_000_000_000)}, {1: ENDED})


def compare(ledger: Counted, recount: Recount, partitions: set[int] | None = None) -> tuple[int, list[str]]:
    return compare_counts(ledger, recount, partitions or {1}, {5: "calls"}.__getitem__)


def test_equal_counts_agree() -> None:
    """Equal numbers agree however they are written."""
    assert compare(counted(), again()) == (1, [])


def test_every_number_of_a_row_is_compared() -> None:
    """Quantity, events, unvalued and the latest event, each with both numbers."""
    ledger = counted()
    ledger.usage[KEY] = replace(ROW, quantity=Decimal(8), events=3, unvalued=1, latest_event_ms=1)
    assert compare(ledger, again()) == (
        0,
        [
            f"{PLACE}: quantity in the ledger is 8, the log comes to 7.50",
            f"{PLACE}: events in the ledger is 3, the log comes to 2",
            f"{PLACE}: unvalued in the ledger is 1, the log comes to 0",
            f"{PLACE}: latest_event_ms in the ledger is 1, the log comes to 1700000000000",
        ],
    )


def test_what_was_retired_is_compared_by_sums() -> None:
    """A row the ledger removed for its age is no difference while the account has it, and is one when it has not."""
    recount = again()
    late = (1, 5, 1_699_999_200_000, "user:eve", "")
    recount.usage[late] = RecountedUsage(Decimal(4), 3, 1, 1_700_000_000_000)
    held = CountedUsage(Decimal(1), 1, 0, 1_700_000_000_000)  # came after the others had gone
    gone = RetiredUsage(Decimal("10.5"), 4, 1, 2, late[2] + 1)
    ledger = replace(counted(), usage={late: held}, retired={(1, 5): gone})
    assert compare(ledger, recount) == (0, [])
    short = replace(ledger, retired={(1, 5): replace(gone, quantity=Decimal(9), events=5)})
    subject = "recount: partition 1, meter calls"
    assert compare(short, recount) == (
        0,
        [
            f"{subject}: quantity of the usage rows removed was 9, the log comes to 10.50 of what is not there",
            f"{subject}: events of the usage rows removed was 5, the log comes to 4 of what is not there",
        ],
    )
    assert compare_counts(short, recount, {1}, {5: "calls"}.__getitem__, lambda _: False)[1] == [
        f"{subject}: events of the usage rows removed was 5, the log comes to 4 of what is not there"
    ]
    younger = replace(ledger, retired={(1, 5): replace(gone, before_ms=late[2])})
    assert len(compare(younger, recount)[1]) > 3
    nothing_lacks = replace(counted(), retired={(1, 5): gone})
    assert len(compare(nothing_lacks, again())[1]) == 3


def test_rows_of_one_side_are_named() -> None:
    """A row that was deleted, and one that was made up."""
    lacking, recount = counted(), again()
    lacking.usage.clear()
    assert compare(lacking, recount) == (
        0,
        [f"{PLACE}: the ledger has no such row, the log comes to 7.50 of 2 events"],
    )
    recount.usage.clear()
    assert compare(counted(), recount)[1] == [
        f"{PLACE}: quantity in the ledger is 7.5 of 2 events, the log comes to none"
    ]


def test_outcomes_are_compared_one_by_one() -> None:
    """Also where they no longer add up; a partition without any event is all zeros."""
    assert compare(counted(late=4), again())[1] == [
        "recount: partition 1: late in the ledger is 4, the log comes to 0"
    ]
    assert compare(counted(), Recount(again().usage, {}))[1] == [
        "recount: partition 1: received in the ledger is 3, the log comes to 0",
        "recount: partition 1: counted in the ledger is 2, the log comes to 0",
        "recount: partition 1: unmatched in the ledger is 1, the log comes to 0",
    ]


def test_partitions_that_were_not_recounted_are_left_out() -> None:
    """Their usage is neither right nor wrong."""
    ledger = counted()
    ledger.usage[(2, *KEY[1:])] = ROW
    assert compare(ledger, again()) == (1, [])
