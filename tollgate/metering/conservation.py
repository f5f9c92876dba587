"""The law: what must hold between the numbers the ledger keeps, and which of it does not.

Owns the equations, as pure functions from plain numbers to violations. It refuses to know where the numbers are read.

1. per partition: received = counted + unmatched + duplicate + late + dead, and nothing is negative;
   per ingest instance: what was received up to its last tick is at least what it had acknowledged;
2. per (partition, meter): the totals in progress equal the sum of the usage rows;
3. per posting key: seq 1..n without a gap, each from = the previous to, and what was delivered sums to the last
   delivered `to`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from enum import StrEnum

_EXACT = Context(prec=60)


class Law(StrEnum):
    """Which part of the law a violation breaks."""

    PARTITION = "partition"
    INSTANCE = "instance"
    TOTALS = "totals"
    CHAIN = "chain"


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that does not add up. `subject` names it, `detail` spells it out in numbers."""

    law: Law
    subject: str
    detail: str

    def __str__(self) -> str:
        return f"{self.law}: {self.subject}: {self.detail}"


@dataclass(frozen=True, slots=True)
class PartitionCounts:
    """What progress keeps of one partition."""

    partition: int
    next_offset: int
    received: int
    counted: int
    unmatched: int
    duplicate: int
    weak_duplicate: int
    late: int
    dead: int


@dataclass(frozen=True, slots=True)
class InstanceCounts:
    """What progress keeps of one ingest instance on one partition."""

    partition: int
    instance: str
    rows_received: int
    tick_acknowledged: int
    tick_received: int
    """`rows_received` as it was when the last tick was folded."""


@dataclass(frozen=True, slots=True)
class MeterTotals:
    """Quantity (0 where it does not add up), events and unvalued of one meter on one partition."""

    quantity: Decimal
    events: int
    unvalued: int


@dataclass(frozen=True, slots=True)
class ChainLink:
    """One posting of a chain. `delivered` when Stripe holds it."""

    posting_key: str
    seq: int
    quantity_from: Decimal
    quantity_to: Decimal
    delivered: bool


def check_partition(counts: PartitionCounts, from_instances: int | None = None) -> list[Violation]:
    """Law 1 for one partition.

    `from_instances`: rows received by instance, summed. Records that name no instance are in `received` only, so it
    may be less, never more.
    """
    subject = f"partition {counts.partition}"
    found = []
    ended = counts.counted + counts.unmatched + counts.duplicate + counts.late + counts.dead
    if counts.received != ended:
        found.append(
            f"received {counts.received} != counted {counts.counted} + unmatched {counts.unmatched} + duplicate "
            f"{counts.duplicate} + late {counts.late} + dead {counts.dead} = {ended}"
        )
    for name in ("next_offset", "received", "counted", "unmatched", "duplicate", "late", "dead"):
        if getattr(counts, name) < 0:
            found.append(f"{name} is {getattr(counts, name)}")
    if not 0 <= counts.weak_duplicate <= counts.duplicate:
        found.append(f"weak_duplicate {counts.weak_duplicate} is not within duplicate {counts.duplicate}")
    if counts.received and not counts.next_offset:
        found.append(f"received {counts.received} though nothing is folded")
    if from_instances is not None and from_instances > counts.received:
        found.append(f"instances sent {from_instances}, received is {counts.received}")
    return [Violation(Law.PARTITION, subject, detail) for detail in found]


def check_instances(instances: Iterable[InstanceCounts]) -> list[Violation]:
    """Law 1 for ingest instances: the log lost records when one had more acknowledged than came out of it."""
    found = []
    for counts in instances:
        subject = f"partition {counts.partition}, instance {counts.instance}"
        if counts.tick_received < counts.tick_acknowledged:
            lost = counts.tick_acknowledged - counts.tick_received
            found.append(
                Violation(
                    Law.INSTANCE,
                    subject,
                    f"acknowledged {counts.tick_acknowledged}, received {counts.tick_received}: {lost} lost",
                )
            )
        if counts.rows_received < counts.tick_received:
            found.append(
                Violation(
                    Law.INSTANCE,
                    subject,
                    f"received {counts.rows_received} in all, but {counts.tick_received} at its last tick",
                )
            )
    return found


def check_totals(
    totals: Mapping[tuple[int, int], MeterTotals], usage: Mapping[tuple[int, int], MeterTotals]
) -> list[Violation]:
    """Law 2: the totals kept in progress against the sums of the usage rows, by (partition, meter id).

    Missing means zero. Quantities that do not add up (max, min, latest) are to be given as 0 on both sides.
    """
    nothing = MeterTotals(Decimal(0), 0, 0)
    found = []
    for key in sorted(totals.keys() | usage.keys()):
        kept, summed = totals.get(key, nothing), usage.get(key, nothing)
        for name in ("quantity", "events", "unvalued"):
            left, right = getattr(kept, name), getattr(summed, name)
            if left != right:
                found.append(
                    Violation(
                        Law.TOTALS,
                        f"partition {key[0]}, meter {key[1]}",
                        f"{name} in progress is {left}, its usage rows sum to {right}",
                    )
                )
    return found


def check_chain(postings: Sequence[ChainLink], at_stripe: Decimal | None = None) -> list[Violation]:
    """Law 3 for one posting key, its links in any order.

    Undelivered links may only stand at the end. `at_stripe` is what Stripe says it holds for the key, when asked.
    """
    if not postings:
        return []
    links = sorted(postings, key=lambda link: link.seq)
    subject = f"posting {links[0].posting_key}"
    found: list[str] = []
    reached, delivered = Decimal(0), Decimal(0)
    delivered_to, open_seq = Decimal(0), None
    for place, link in enumerate(links, start=1):
        if link.posting_key != links[0].posting_key:
            raise ValueError(f"links of two chains: {links[0].posting_key} and {link.posting_key}")
        if link.seq != place:
            found.append(f"seq {link.seq} stands where {place} should")
            break
        if link.quantity_from != reached:
            found.append(f"seq {link.seq} goes from {link.quantity_from}, the one before went to {reached}")
        reached = link.quantity_to
        if not link.delivered:
            open_seq = link.seq if open_seq is None else open_seq
            continue
        if open_seq is not None:
            found.append(f"seq {link.seq} is delivered, seq {open_seq} before it is not")
        delivered = _EXACT.add(delivered, _EXACT.subtract(link.quantity_to, link.quantity_from))
        delivered_to = link.quantity_to
    if not found and delivered != delivered_to:
        found.append(f"delivered sums to {delivered}, the last delivered goes to {delivered_to}")
    if at_stripe is not None and at_stripe != delivered:
        found.append(f"delivered sums to {delivered}, Stripe holds {at_stripe}")
    return [Violation(Law.CHAIN, subject, detail) for detail in found]
