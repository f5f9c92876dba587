"""The law: what must hold between the numbers the ledger keeps, and which of it does not.

Owns the equations, as pure functions from plain numbers to violations. It refuses to know where the numbers are read.

1. per partition: received = counted + unmatched + duplicate + late + dead, and nothing is negative;
   per ingest instance: what was received up to its last tick is at least what it had acknowledged;
2. per (partition, meter): the totals in progress equal the sum of the usage rows, those removed for their age included;
3. per posting key: seq 1..n without a gap, each from = the previous to, only the last link unsettled, each reversal
   takes back exactly the void links before it, and what was delivered is what Stripe holds;
   usage that is not posted is held with a reason, in flight, or not yet due.
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
    UNPOSTED = "unposted"


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


class LinkEffect(StrEnum):
    """What one posting did to Stripe's count."""

    DELIVERED = "delivered"
    """Stripe holds it."""
    OPEN = "open"
    """Not settled: Stripe may hold it or get it."""
    REHEARSED = "rehearsed"
    """A dry run: never sent."""
    VOID = "void"
    """Stripe has not got it and never will."""
    REVERSAL = "reversal"
    """Takes void links back inside the chain; never sent."""
    SUPERSEDED = "superseded"
    """Never sent: the next delivered link carries a total that includes it."""


@dataclass(frozen=True, slots=True)
class ChainLink:
    """One posting of a chain."""

    posting_key: str
    seq: int
    quantity_from: Decimal
    quantity_to: Decimal
    effect: LinkEffect
    replaces: bool = False
    """What it tells Stripe is the total `to`, not the difference: a newer one may wait behind it."""
    reverses: tuple[int, ...] | None = None
    """Of a reversal: the links it takes back, by sequence number; None for all void ones before it."""

    @property
    def quantity(self) -> Decimal:
        """What it adds to the chain."""
        return _EXACT.subtract(self.quantity_to, self.quantity_from)


@dataclass(frozen=True, slots=True)
class Unposted:
    """Usage of one (meter, account, window) that no posting covers."""

    subject: str
    quantity: Decimal
    hold_reason: str | None
    due: bool
    """Planning has read past it."""


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
    found += [
        f"{name} is {getattr(counts, name)}"
        for name in ("next_offset", "received", "counted", "unmatched", "duplicate", "late", "dead")
        if getattr(counts, name) < 0
    ]
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
    """Law 2: the totals kept in progress against the sums of the usage rows, by (partition, meter id); in the sums are
    the rows that were removed for their age.

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

    Where links replace, a delivered one brings what the superseded links before it were to bring: delivered and
    superseded together sum to the last delivered `to`, and a chain does not end with a superseded link.
    `at_stripe` is what Stripe says it holds for the key, when asked: with open links, with or without them.
    Raises ValueError for links of two chains.
    """
    links = sorted(postings, key=lambda link: link.seq)
    if len({link.posting_key for link in links}) > 1:
        raise ValueError("links of more than one chain")
    found: list[str] = []
    reached = delivered = void = waiting = Decimal(0)
    open_link: ChainLink | None = None
    maybe: set[Decimal] = set()
    reversed_seqs: set[int] = set()
    for place, link in enumerate(links, start=1):
        if link.seq != place:
            found.append(f"seq {link.seq} stands where {place} should")
            break
        if link.quantity_from != reached:
            found.append(f"seq {link.seq} goes from {link.quantity_from}, the one before went to {reached}")
        if open_link is not None and not (link.replaces and open_link.replaces):
            found.append(f"seq {link.seq} follows seq {open_link.seq}, which is not settled")
        reached = link.quantity_to
        if link.effect in (LinkEffect.DELIVERED, LinkEffect.SUPERSEDED, LinkEffect.OPEN):
            waiting = _EXACT.add(waiting, link.quantity)
        if link.effect is LinkEffect.SUPERSEDED and not link.replaces:
            found.append(f"seq {link.seq} is superseded, and what it adds no later link carries")
        if link.effect is LinkEffect.DELIVERED:
            delivered, waiting = _EXACT.add(delivered, waiting), Decimal(0)
        elif link.effect is LinkEffect.VOID:
            void = _EXACT.add(void, link.quantity)
        elif link.effect is LinkEffect.REVERSAL:
            if link.reverses is not None:
                # Stripe's refusals come late: one of an older link may follow the reversal of a newer one.
                named = [other for other in links if other.seq in link.reverses and other.seq < link.seq]
                void = _void_of(named)
                found += [
                    f"seq {link.seq} takes seq {seq} back once more"
                    for seq in reversed_seqs & {*link.reverses}
                ]
                reversed_seqs |= {*link.reverses}
            if link.quantity != -void:
                found.append(f"seq {link.seq} takes back {-link.quantity}, void before it is {void}")
            void = Decimal(0)
        elif link.effect is LinkEffect.OPEN:
            open_link = link
            maybe.add(_EXACT.add(delivered, waiting))
    if links and links[-1].effect is LinkEffect.SUPERSEDED:
        found.append(f"seq {links[-1].seq} is superseded, and nothing follows it")
    if at_stripe is not None and at_stripe not in (delivered, *maybe):
        found.append(f"delivered sums to {delivered}, Stripe holds {at_stripe}")
    subject = f"posting {links[0].posting_key}" if links else ""
    return [Violation(Law.CHAIN, subject, detail) for detail in found]


def _void_of(links: Iterable[ChainLink]) -> Decimal:
    total = Decimal(0)
    for link in links:
        if link.effect is LinkEffect.VOID:
            total = _EXACT.add(total, link.quantity)
    return total


def check_unposted(unposted: Iterable[Unposted]) -> list[Violation]:
    """Law 3 for what is not posted: due usage is held with a reason."""
    return [
        Violation(Law.UNPOSTED, item.subject, f"{item.quantity} is neither posted nor held")
        for item in unposted
        if item.quantity != 0 and item.due and not item.hold_reason
    ]
