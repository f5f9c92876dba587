"""Retention's rules: every table has one, days fit together, and stretches of seen ids are few and cheap."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollgate.ledger.retention import DAY_MS, RULES, Growth, Retention, SeenRow, Stretch, find_stretches
from tollgate.ledger.tables import OWNERS


def test_every_table_has_a_rule_with_its_owner() -> None:
    """A table without a rule grows unseen; one with another's would be removed from by who may not."""
    owners = {table.name: owner for owner, tables in OWNERS.items() for table in tables}
    assert {rule.table: rule.owner for rule in RULES} == owners
    assert len(RULES) == len(owners)


def test_what_grows_with_time_says_what_goes_and_what_stays() -> None:
    """And what does not, why not; settings that a rule names are there."""
    for rule in RULES:
        assert rule.kept
        if rule.growth is Growth.TIME:
            assert rule.removed, rule.table
        if rule.settings:
            assert rule.removed, rule.table
        assert set(rule.settings) <= set(Retention.__slots__), rule.table


def test_every_setting_is_somebodys() -> None:
    """A setting that no rule names would do nothing that is written down."""
    assert {name for rule in RULES for name in rule.settings} | {"evidence_days"} == set(Retention.__slots__)


def test_moments_are_days_before_now() -> None:
    """Zero days is never."""
    kept = Retention(billed_days=400, audit_days=0)
    assert kept.before_ms("billed_days", 1_000 * DAY_MS) == 600 * DAY_MS
    assert kept.before_ms("audit_days", 1_000 * DAY_MS) == 0
    assert kept.before_ms("billed_days", 10 * DAY_MS) == 0


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"billed_days": 124}, "billed_days"),
        ({"billed_days": -1}, "billed_days"),
        ({"billed_days": 0}, "unbilled_days"),
        ({"unbilled_days": 399}, "unbilled_days"),
        ({"evidence_days": 399}, "evidence_days"),
        ({"audit_days": 799}, "audit_days"),
        ({"unbilled_days": 0, "audit_days": 9_999}, "audit_days"),
        ({"inbox_days": 35}, "inbox_days"),
        ({"rejections_days": 35}, "rejections_days"),
    ],
    ids=str,
)
def test_days_that_do_not_fit_are_refused(changed: dict[str, int], named: str) -> None:
    """Money that could still be asked about would go before what asks about it."""
    with pytest.raises(ValueError, match=named):
        Retention(**changed)


def test_all_that_does_not_fit_is_named_at_once() -> None:
    """One error for everything."""
    with pytest.raises(ValueError, match=r"inbox_days.*rejections_days.*unbilled_days"):
        Retention(inbox_days=1, rejections_days=1, unbilled_days=1)


def test_days_that_fit_are_taken() -> None:
    """At their least, and for ever."""
    Retention(125, 125, 125, 36, 36, 1, 125)
    Retention(0, 0, 0, 0, 0, 0, 0)
    Retention(400, 0, 0)


# ------------------------------------------------------------------------------------------ stretches


def _apply(rows: list[SeenRow], stretches: list[Stretch]) -> list[SeenRow]:
    """The rows as merging leaves them."""
    for stretch in stretches:
        inside = [row for row in rows if stretch.first_offset <= row.to_offset <= stretch.last_offset]
        assert len(inside) == stretch.rows >= 2
        assert (inside[0].to_offset, inside[-1].to_offset) == (stretch.first_offset, stretch.last_offset)
        merged = SeenRow(stretch.last_offset, sum(row.count for row in inside))
        rows = sorted([row for row in rows if row not in inside] + [merged], key=lambda row: row.to_offset)
    return rows


def _settle(rows: list[SeenRow], **options: object) -> list[SeenRow]:
    for _ in range(1_000):
        stretches = find_stretches(rows, **options)  # type: ignore[arg-type]
        if not stretches:
            return rows
        rows = _apply(rows, stretches)
    raise AssertionError("it does not come to an end")


@given(
    st.lists(st.integers(1, 300), max_size=200),
    st.integers(2, 400),
    st.integers(2, 20),
    st.integers(2, 50),
    st.booleans(),
)
def test_merging_comes_to_an_end_with_few_rows(
    counts: list[int], ids_max: int, rows_min: int, rows_max: int, closed: bool
) -> None:
    """No id is lost, rows that are full are kept, none becomes larger than allowed, and the bound is kept."""
    rows = [SeenRow(10 * (number + 1), count) for number, count in enumerate(counts)]
    rows_min = min(rows_min, rows_max)
    full = [row for row in rows if 2 * row.count >= ids_max]
    left = _settle(rows, ids_max=ids_max, rows_min=rows_min, rows_max=rows_max, closed=closed)
    assert sum(row.count for row in left) == sum(counts)
    assert set(full) <= set(left)
    assert all(row.count <= ids_max or row in full for row in left)
    bound = 4 * sum(counts) / ids_max + 1
    if not closed:
        bound += rows_min + math.log2(ids_max)
    assert len(left) <= bound


def test_a_growing_day_rewrites_an_id_a_few_times() -> None:
    """A day of forty thousand flushes, compacted as it grows: what is written beside the flushes stays below a
    logarithm's worth."""
    rng = random.Random(3)
    rows: list[SeenRow] = []
    ids = written = 0
    for flush in range(40_000):
        count = rng.randrange(1, 120)
        ids += count
        rows.append(SeenRow(flush + 1, count))
        if flush % 256 == 0:
            found = find_stretches(rows)
            before = set(rows)
            rows = _apply(rows, found)
            written += sum(row.count for row in rows if row not in before)
    assert written / ids < 8
    assert len(rows) < 350
    assert len(_settle(rows, closed=True)) <= 4 * ids / (1 << 19) + 1


def test_the_end_of_a_growing_day_waits() -> None:
    """Few rows at the end are left for more; a leading row that outweighs the others is not written again for them."""
    small = [SeenRow(n, 10) for n in range(1, 9)]
    assert find_stretches(small, rows_min=9) == []
    assert find_stretches(small, rows_min=8) == [Stretch(1, 8, 8)]
    heavy = [SeenRow(0, 81), *small]
    assert find_stretches(heavy, rows_min=8) == [Stretch(1, 8, 8)]
    assert find_stretches([SeenRow(0, 80), *small], rows_min=8) == [Stretch(0, 8, 9)]
    assert find_stretches(heavy, rows_min=8, closed=True) == [Stretch(0, 8, 9)]


def test_the_document_says_what_the_rules_say() -> None:
    """Each rule's row stands in docs/retention.md, word for word, and each setting with its default."""
    document = (Path(__file__).parents[3] / "docs" / "retention.md").read_text()
    for rule in RULES:
        row = next(
            line for line in document.splitlines() if line.startswith(f"| `{rule.table}` | {rule.owner} |")
        )
        assert rule.removed in row
        assert rule.kept in row
        assert all(f"`{setting}`" in row for setting in rule.settings)
    for name in Retention.__slots__:
        assert f"`{name}`" in document
