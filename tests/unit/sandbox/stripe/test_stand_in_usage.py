"""Which events count, and what they come to, against a naive recount."""

from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sandbox.stripe.usage import Counted, aggregate, effective

EVENTS = st.lists(st.tuples(st.integers(0, 4 * 3600), st.decimals("-999", "999", places=3)), max_size=30)


def _meter(formula: str, window: str | None = None) -> dict[str, Any]:
    return {"default_aggregation": {"formula": formula}, "event_time_window": window}


def _received(pairs: list[tuple[int, Decimal]]) -> list[Counted]:
    return [Counted(seq, timestamp, value) for seq, (timestamp, value) in enumerate(pairs)]


@given(EVENTS)
def test_hourly_meter_keeps_the_last_received_of_each_hour(pairs: list[tuple[int, Decimal]]) -> None:
    """However stamps are ordered within an hour, the last received is what counts."""
    naive: dict[int, Decimal] = {}
    for timestamp, value in pairs:
        naive[timestamp // 3600] = value
    meter = _meter("sum", "hour")
    assert aggregate(meter, effective(meter, _received(pairs))) == sum(naive.values(), Decimal(0))


@given(EVENTS)
def test_sum_and_count_take_every_event(pairs: list[tuple[int, Decimal]]) -> None:
    """Without a window everything counts, same stamps included."""
    events = effective(_meter("sum"), _received(pairs))
    assert aggregate(_meter("sum"), events) == sum((value for _, value in pairs), Decimal(0))
    assert aggregate(_meter("count"), events) == len(pairs)


def test_sums_of_many_long_values_stay_exact() -> None:
    """Thirty significant digits and more are not rounded."""
    events = _received([(0, Decimal(999999999999999)), (0, Decimal("0.00000000000001"))])
    assert aggregate(_meter("sum"), events) == Decimal("999999999999999.00000000000001")


def test_last_is_by_stamp_then_by_receipt() -> None:
    """A late event with an older stamp does not become the last."""
    events = _received([(10, Decimal(1)), (20, Decimal(2)), (20, Decimal(3)), (15, Decimal(4))])
    assert aggregate(_meter("last"), events) == 3
    assert aggregate(_meter("last"), []) == 0
