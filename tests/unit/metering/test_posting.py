from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollgate.metering.metric import MetricKind
from tollgate.metering.posting import (
    combine_accounts,
    combine_distinct,
    combine_windows,
    first_names,
    posting_identifier,
    posting_key,
)


def test_keys_differ_by_every_part() -> None:
    """32 hex characters, and no two lists of parts spell the same."""
    keys = {
        posting_key("l", "cus_1", 1, 0),
        posting_key("l2", "cus_1", 1, 0),
        posting_key("lc", "us_1", 1, 0),
        posting_key("l", "cus_2", 1, 0),
        posting_key("l", "cus_1", 2, 0),
        posting_key("l", "cus_1", 1, 3_600_000),
    }
    assert len(keys) == 6
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys)


def test_keys_and_identifiers_never_change() -> None:
    """They name postings already made: a new value would post everything again."""
    key = posting_key("ledger-1", "cus_A", 7, 1_700_000_000_000)
    assert key == "de3686d901e407a8cb40df283afc4858"
    assert (
        posting_identifier(key, 3, Decimal(5), Decimal("7.5"), "ledger-1")
        == "tg_3_4ab8e00174025741e4fe39c759991f3b247f80d7"
    )


@given(
    st.text(),
    st.text(),
    st.integers(0),
    st.integers(0),
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**20), max_value=10**20),
)
def test_first_names_are_the_names_of_first_links(
    ledger: str, customer: str, meter: int, start_ms: int, quantity: Decimal
) -> None:
    """The short cut names a chain and its first link exactly as they are named one by one."""
    key = posting_key(ledger, customer, meter, start_ms)
    identifier = posting_identifier(key, 1, Decimal(0), quantity, ledger)
    assert first_names(ledger, meter, start_ms)(customer, quantity) == (key, identifier)


def test_identifiers_differ_by_every_part_but_not_by_spelling() -> None:
    """1, 1.0 and 1E0 are one quantity."""
    first = posting_identifier("k", 1, Decimal(0), Decimal(10), "l")
    assert posting_identifier("k", 1, Decimal("-0.0"), Decimal("1E1"), "l") == first
    assert posting_identifier("k", 1, Decimal(0), Decimal("10.000000000"), "l") == first
    others = {
        posting_identifier("j", 1, Decimal(0), Decimal(10), "l"),
        posting_identifier("k", 2, Decimal(0), Decimal(10), "l"),
        posting_identifier("k", 1, Decimal(1), Decimal(10), "l"),
        posting_identifier("k", 1, Decimal(0), Decimal(100), "l"),
        posting_identifier("k", 1, Decimal(0), Decimal(10), "m"),
    }
    assert len(others | {first}) == 6
    assert len(posting_identifier("k" * 32, 2**31, Decimal(0), Decimal(10**28), "l" * 100)) <= 100


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (MetricKind.COUNT, 16),
        (MetricKind.SUM, 16),
        (MetricKind.MAX, 9),
        (MetricKind.MIN, 2),
        (MetricKind.LATEST, 5),
    ],
)
def test_the_combination_table(kind: MetricKind, expected: int) -> None:
    """Windows over a period and accounts of a customer."""
    quantities = [Decimal(2), Decimal(9), Decimal(5)]
    assert combine_windows(kind, quantities) == combine_accounts(kind, quantities) == expected
    assert combine_windows(kind, []) == 0


def test_sums_do_not_round() -> None:
    """The default context would keep 28 digits."""
    parts = [Decimal("9" * 28 + ".999999997"), Decimal("0.000000001")]
    assert combine_accounts(MetricKind.SUM, parts) == Decimal("9" * 28 + ".999999998")


def test_unique_combines_as_sets() -> None:
    """A value in two windows counts once; as numbers, two windows are refused."""
    assert combine_distinct([[1, 2], [2, 3], []]) == 3
    assert combine_windows(MetricKind.UNIQUE, [Decimal(4)]) == 4
    with pytest.raises(ValueError, match="combine as sets"):
        combine_windows(MetricKind.UNIQUE, [Decimal(1), Decimal(2)])
