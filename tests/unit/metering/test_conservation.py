from __future__ import annotations

import dataclasses
from decimal import Decimal

import pytest

from tollgate.metering.conservation import (
    ChainLink,
    InstanceCounts,
    Law,
    LinkEffect,
    MeterTotals,
    PartitionCounts,
    Unposted,
    check_chain,
    check_instances,
    check_partition,
    check_totals,
    check_unposted,
)

GOOD = PartitionCounts(
    0, 9, received=10, counted=4, unmatched=2, duplicate=2, weak_duplicate=1, late=1, dead=1
)


def test_a_partition_that_adds_up() -> None:
    """No violation."""
    assert check_partition(GOOD, from_instances=10) == []


@pytest.mark.parametrize("name", ["received", "counted", "unmatched", "duplicate", "late", "dead"])
def test_any_number_changed_by_one_is_found(name: str) -> None:
    """Every term of the law matters."""
    changed = dataclasses.replace(GOOD, **{name: getattr(GOOD, name) + 1})
    (violation,) = check_partition(changed)
    assert violation.law is Law.PARTITION
    assert str(violation).startswith("partition: partition 0: received")


def test_other_impossible_partitions() -> None:
    """Negative counts, more weak duplicates than duplicates, events before any offset, more sent than received."""
    assert check_partition(dataclasses.replace(GOOD, counted=-1, unmatched=7))
    assert check_partition(dataclasses.replace(GOOD, weak_duplicate=3))
    assert check_partition(dataclasses.replace(GOOD, next_offset=0))
    assert check_partition(GOOD, from_instances=11)


def test_a_log_that_lost_records_is_found() -> None:
    """Received up to the tick, not in all, is what is compared with acknowledged."""
    assert check_instances([InstanceCounts(0, "a", 12, 10, 10), InstanceCounts(1, "a", 12, 8, 10)]) == []
    (lost,) = check_instances([InstanceCounts(3, "b", 50, tick_acknowledged=10, tick_received=7)])
    assert (lost.law, "3 lost" in lost.detail) == (Law.INSTANCE, True)
    assert check_instances([InstanceCounts(0, "a", 5, 5, 6)])


def test_totals_against_usage() -> None:
    """Each of quantity, events and unvalued, and rows that only one side has."""
    same = {(0, 1): MeterTotals(Decimal("5.50"), 3, 1)}
    assert check_totals(same, {(0, 1): MeterTotals(Decimal("5.5"), 3, 1)}) == []
    assert len(check_totals(same, {(0, 1): MeterTotals(Decimal(5), 2, 0)})) == 3
    assert len(check_totals(same, {})) == 3
    assert len(check_totals({}, same)) == 3
    assert check_totals({(0, 2): MeterTotals(Decimal(0), 0, 0)}, {}) == []


def link(seq: int, start: int, end: int, effect: LinkEffect = LinkEffect.DELIVERED) -> ChainLink:
    return ChainLink("k", seq, Decimal(start), Decimal(end), effect)


def test_chains_that_hold() -> None:
    """Nothing; deliveries; an open end, which Stripe may hold or not; a void link taken back."""
    assert check_chain([]) == []
    delivered = [link(2, 5, 9), link(1, 0, 5)]
    assert check_chain(delivered, Decimal(9)) == []
    waiting = [*delivered, link(3, 9, 12, LinkEffect.OPEN)]
    assert check_chain(waiting, Decimal(9)) == check_chain(waiting, Decimal(12)) == []
    mended = [
        link(1, 0, 5),
        link(2, 5, 9, LinkEffect.VOID),
        link(3, 9, 5, LinkEffect.REVERSAL),
        link(4, 5, 9),
    ]
    assert check_chain(mended, Decimal(9)) == []


def replacing(seq: int, start: int, end: int, effect: LinkEffect = LinkEffect.DELIVERED) -> ChainLink:
    return dataclasses.replace(link(seq, start, end, effect), replaces=True)


def test_chains_of_totals_that_replace() -> None:
    """A delivered total brings the superseded ones before it; a newer one may wait behind an open one."""
    superseded = [replacing(1, 0, 5, LinkEffect.SUPERSEDED), replacing(2, 5, 9)]
    assert check_chain(superseded, Decimal(9)) == []
    waiting = [*superseded, replacing(3, 9, 12, LinkEffect.OPEN), replacing(4, 12, 7, LinkEffect.OPEN)]
    for at_stripe in (9, 12, 7):
        assert check_chain(waiting, Decimal(at_stripe)) == []
    assert check_chain(waiting, Decimal(10)) != []
    alone = [replacing(1, 0, 5), replacing(2, 5, 9, LinkEffect.SUPERSEDED)]
    assert [v.detail for v in check_chain(alone)] == ["seq 2 is superseded, and nothing follows it"]
    adding = [link(1, 0, 5, LinkEffect.SUPERSEDED), link(2, 5, 9)]
    assert len(check_chain(adding)) == 1


def test_a_reversal_answers_for_the_links_it_names() -> None:
    """Also when an older one became void after it; not for one twice, nor for one that is not void."""

    def taking_back(seq: int, start: int, end: int, *seqs: int) -> ChainLink:
        return dataclasses.replace(link(seq, start, end, LinkEffect.REVERSAL), reverses=seqs)

    void = [link(1, 0, 1, LinkEffect.VOID), link(2, 1, 6, LinkEffect.VOID)]
    late = [*void, taking_back(3, 6, 5, 1), link(4, 5, 6), taking_back(5, 6, 1, 2), link(6, 1, 6)]
    assert check_chain(late, Decimal(6)) == []
    assert check_chain([*void, taking_back(3, 6, 5, 2)]) != []
    assert check_chain([*void, taking_back(3, 6, 5, 1), taking_back(4, 5, 4, 1)]) != []
    assert check_chain([link(1, 0, 5), taking_back(2, 5, 0, 1)]) != []


@pytest.mark.parametrize(
    ("links", "at_stripe", "detail"),
    [
        ([link(1, 0, 5), link(3, 5, 9)], None, "seq 3 stands where 2 should"),
        ([link(2, 0, 5)], None, "seq 2 stands where 1 should"),
        ([link(1, 0, 5), link(1, 5, 6)], None, "seq 1 stands where 2 should"),
        ([link(1, 1, 5)], None, "seq 1 goes from 1"),
        ([link(1, 0, 5), link(2, 4, 9)], None, "seq 2 goes from 4"),
        ([link(1, 0, 5, LinkEffect.OPEN), link(2, 5, 9)], None, "seq 2 follows seq 1, which is not settled"),
        (
            [link(1, 0, 5, LinkEffect.VOID), link(2, 5, 1, LinkEffect.REVERSAL)],
            None,
            "takes back 4, void before it is 5",
        ),
        ([link(1, 0, 5)], Decimal(6), "delivered sums to 5, Stripe holds 6"),
        ([link(1, 0, 5, LinkEffect.REHEARSED)], Decimal(5), "delivered sums to 0, Stripe holds 5"),
        ([link(1, 0, 5, LinkEffect.VOID)], Decimal(5), "delivered sums to 0, Stripe holds 5"),
    ],
)
def test_chains_that_do_not(links: list[ChainLink], at_stripe: Decimal | None, detail: str) -> None:
    """Gaps, jumps, overtaking, wrong reversals and another sum at Stripe."""
    (violation,) = check_chain(links, at_stripe)
    assert detail in violation.detail


def test_two_chains_are_not_one() -> None:
    """A mistake of the caller, not a violation."""
    with pytest.raises(ValueError, match="more than one chain"):
        check_chain([link(1, 0, 1), dataclasses.replace(link(2, 1, 2), posting_key="other")])


def test_unposted_usage_has_a_reason() -> None:
    """Held, not yet due, or nothing at all; else it is found."""
    fine = [
        Unposted("a", Decimal(5), "no_mapping", due=True),
        Unposted("b", Decimal(5), None, due=False),
        Unposted("c", Decimal(0), None, due=True),
    ]
    assert check_unposted(fine) == []
    (violation,) = check_unposted([Unposted("d", Decimal(5), None, due=True)])
    assert (violation.law, violation.subject) == (Law.UNPOSTED, "d")
