"""Shadow beside live: what agrees, what differs, and what must not be compared."""

from __future__ import annotations

from decimal import Decimal

from services.cli.replay_live import Comparison, Key, Numbers, compare_live
from services.cli.stretch import Stretch
from tollgate.ledger.counted import Counted, CountedUsage
from tollgate.ledger.retired import RetiredUsage

HOUR_MS = 3_600_000
STRETCHES = {0: Stretch(0, 0, 100)}
NAMES = {7: "calls", 8: "calls"}


def live(window: int, quantity: int, *, changed_offset: int = 100, meter_id: int = 7) -> Counted:
    """A ledger with one row."""
    row = CountedUsage(Decimal(quantity), quantity, 0, window, changed_offset)
    return Counted({0: 200}, {}, {(0, meter_id, window, "user:ada", ""): row})


def key(window: int) -> Key:
    return (0, "calls", window, "user:ada", "")


def compared(counted: Counted, shadow: dict[Key, Numbers], *, since_ms: int = 0) -> Comparison:
    return compare_live(
        shadow, counted, NAMES, STRETCHES, lambda _partition, _meter, window: window >= since_ms
    )


def test_equal_rows_agree_whichever_version_counted_them() -> None:
    """By name; 2.0 is 2."""
    for meter_id in (7, 8):
        found = compared(live(HOUR_MS, 2, meter_id=meter_id), {key(HOUR_MS): Numbers(Decimal("2.0"), 2, 0)})
        assert (found.agreed, found.differences) == (1, [])


def test_every_number_is_compared_and_either_side_may_lack_a_row() -> None:
    """Quantity, events, unvalued; nothing on one side is a zero."""
    for other in (Numbers(Decimal(3), 2, 0), Numbers(Decimal(2), 3, 0), Numbers(Decimal(2), 2, 1)):
        (found,) = compared(live(HOUR_MS, 2), {key(HOUR_MS): other}).differences
        assert (found.live, found.shadow) == (Numbers(Decimal(2), 2, 0), other)
    (lacking,) = compared(live(HOUR_MS, 2), {}).differences
    assert (lacking.key, lacking.quantity) == (key(HOUR_MS), Decimal(-2))
    (added,) = compared(Counted({}, {}, {}), {key(HOUR_MS): Numbers(Decimal(5), 1, 0)}).differences
    assert (added.live, added.quantity) == (Numbers(), Decimal(5))


def test_a_row_changed_past_the_replay_is_not_compared() -> None:
    """The ledger went on: up to the last replayed offset it is compared, one further it is not."""
    shadow = {key(HOUR_MS): Numbers(Decimal(1), 1, 0)}
    assert len(compared(live(HOUR_MS, 2, changed_offset=100), shadow).differences) == 1
    found = compared(live(HOUR_MS, 2, changed_offset=101), shadow)
    assert (found.agreed, found.differences, found.still_open) == (0, [], 1)


def test_windows_that_lost_rows_for_their_age_are_not_compared() -> None:
    """The shadow still comes to what the ledger has removed."""
    counted = Counted({}, {}, {}, {(0, 7): RetiredUsage(Decimal(2), 2, 0, 1, 2 * HOUR_MS)})
    shadow = {key(HOUR_MS): Numbers(Decimal(2), 2, 0), key(2 * HOUR_MS): Numbers(Decimal(2), 2, 0)}
    found = compared(counted, shadow)
    assert (found.removed, [difference.key for difference in found.differences]) == (1, [key(2 * HOUR_MS)])


def test_windows_that_were_not_replayed_whole_are_left_out() -> None:
    """And so are meters and partitions that were not replayed."""
    assert compared(live(HOUR_MS, 2), {}, since_ms=2 * HOUR_MS) == Comparison()
    assert compared(live(HOUR_MS, 2, meter_id=9), {}) == Comparison()
