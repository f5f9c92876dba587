"""Schedules of faults, held as data: what goes wrong, with whom, when and for how long, drawn from a seed.

Owns the deck of faults and the drawing. It refuses to know how a fault is brought about (`faults.py`). The same seed
and length give the same schedule, and a schedule can be stored and played again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

FIRST_AT_SECONDS = 4.0
_COMPANION_SHARE = 0.6
"""How often a second fault, of another place, comes while the first one lasts."""


class Place(StrEnum):
    """Where a fault is. Two faults at once are in different places: what one of them holds the other cannot touch."""

    SERVICES = "services"
    KAFKA = "kafka"
    LEDGER = "ledger"
    STRIPE = "stripe"
    CLIENTS = "clients"


class Kind(StrEnum):
    """What is done to a target: processes by their names, stretches of network by theirs (`kafka-2:meter`)."""

    KILL = "kill"
    """SIGKILL, and a start when the time is over."""
    TERMINATE = "terminate"
    """SIGTERM, an end in good order, and a start when the time is over."""
    PAUSE = "pause"
    """SIGSTOP, and SIGCONT when the time is over: a zombie, when others have taken over meanwhile."""
    FLAP = "flap"
    """Ended and started again and again: a group that never comes to rest."""
    STARVE = "starve"
    """Stopped nine tenths of the time, as under a quota of the processor."""
    NO_FILES = "no_files"
    """Not one more file or socket may be opened, and those of clients are reset."""
    CUT = "cut"
    """Connections are reset, new ones too."""
    FREEZE = "freeze"
    """Nothing passes and nothing breaks."""
    SLOW = "slow"
    """Half a second to a second and a half each way."""
    NARROW = "narrow"
    """8 KB a second and connection."""
    LOSE_REPLIES = "lose_replies"
    """Every fifth answer is lost after its question has arrived."""
    CUT_COMMIT = "cut_commit"
    """The connection ends between COMMIT and its answer: nobody knows whether it happened."""
    KILL_BACKENDS = "kill_backends"
    """PostgreSQL ends every session, every second."""
    FILL_DISK = "fill_disk"
    """Not a byte more fits where the target keeps its data."""
    ANSWER_500 = "answer_500"
    """Stripe fails before it has done anything, three calls in ten."""
    ANSWER_SAVED_500 = "answer_saved_500"
    """Stripe fails after it has counted, and answers the same failure to each repeat, three calls in ten."""
    ANSWER_429 = "answer_429"
    """Stripe's rate limit, half of the calls."""
    DROP_BEFORE = "drop_before"
    """No answer from Stripe, and nothing done, three calls in ten."""
    DROP_AFTER = "drop_after"
    """No answer from Stripe, though it has counted, three calls in ten."""
    ANSWER_401 = "answer_401"
    """Stripe refuses the key."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong."""

    at_seconds: float
    """From the first event on."""
    lasts_seconds: float
    place: Place
    kind: Kind
    target: str
    """A process, several (`broker-1,broker-3`), or a pattern of links."""

    @property
    def until_seconds(self) -> float:
        return self.at_seconds + self.lasts_seconds

    def __str__(self) -> str:
        return f"{self.kind} {self.target}"


@dataclass(frozen=True, slots=True)
class Card:
    """A fault of the deck: its target still to be drawn from a choice, its length from a range."""

    place: Place
    kind: Kind
    targets: tuple[str, ...]
    seconds: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Cast:
    """The processes there are, by service."""

    ingest: tuple[str, ...] = ("ingest", "ingest-2")
    meter: tuple[str, ...] = ("meter", "meter-2", "meter-3")
    stripe_sync: tuple[str, ...] = ("stripe_sync", "stripe_sync-2")
    webhooks: tuple[str, ...] = ("webhooks",)
    brokers: tuple[str, ...] = ("broker-1", "broker-2", "broker-3")

    @property
    def services(self) -> dict[str, tuple[str, ...]]:
        """Every service's processes."""
        return {
            "ingest": self.ingest,
            "meter": self.meter,
            "stripe_sync": self.stripe_sync,
            "webhooks": self.webhooks,
        }


def make_deck(cast: Cast) -> tuple[Card, ...]:
    """Every fault the storm knows. Longer than a meter's session (6 s) or a lease (4 s) where zombies are wanted."""
    cards: list[Card] = []
    for service, names in cast.services.items():
        pause = {
            "ingest": (1.0, 3.0),
            "meter": (8.0, 10.0),
            "stripe_sync": (6.0, 8.0),
            "webhooks": (3.0, 12.0),
        }
        cards += [
            Card(Place.SERVICES, Kind.KILL, names, (0.1, 2.0)),
            Card(Place.SERVICES, Kind.TERMINATE, names, (0.1, 1.0)),
            Card(Place.SERVICES, Kind.PAUSE, names, pause[service]),
        ]
    brokers = cast.brokers
    pairs = tuple(f"{a},{b}" for n, a in enumerate(brokers) for b in brokers[n + 1 :])
    numbers = range(1, len(brokers) + 1)
    cards += [
        Card(Place.SERVICES, Kind.KILL, (",".join(cast.meter),), (0.5, 3.0)),
        Card(Place.SERVICES, Kind.FLAP, cast.meter, (8.0, 12.0)),
        Card(Place.SERVICES, Kind.STARVE, (*cast.ingest, *cast.meter), (4.0, 8.0)),
        Card(Place.SERVICES, Kind.NO_FILES, cast.ingest, (2.0, 4.0)),
        Card(Place.KAFKA, Kind.KILL, brokers, (1.0, 8.0)),
        Card(Place.KAFKA, Kind.TERMINATE, brokers, (1.0, 4.0)),
        Card(Place.KAFKA, Kind.PAUSE, brokers, (2.0, 8.0)),
        Card(Place.KAFKA, Kind.KILL, pairs, (3.0, 6.0)),
        Card(Place.KAFKA, Kind.KILL, (",".join(brokers),), (1.0, 5.0)),
        Card(Place.KAFKA, Kind.CUT, tuple(f"kafka-{n}:*" for n in numbers), (3.0, 8.0)),
        Card(Place.KAFKA, Kind.CUT, ("kafka-*:meter", "kafka-*:stripe_sync", "kafka-*:webhooks"), (6.0, 9.0)),
        Card(Place.KAFKA, Kind.FREEZE, ("kafka-*:meter", "kafka-*:stripe_sync"), (7.0, 9.0)),
        Card(Place.KAFKA, Kind.CUT, tuple(f"kafka-{n}:peers" for n in numbers), (6.0, 9.0)),
        Card(Place.KAFKA, Kind.SLOW, tuple(f"kafka-{n}:*" for n in numbers), (4.0, 8.0)),
        Card(Place.KAFKA, Kind.NARROW, tuple(f"kafka-{n}:*" for n in numbers), (4.0, 8.0)),
        Card(Place.KAFKA, Kind.FILL_DISK, brokers[-1:], (4.0, 8.0)),
        Card(Place.LEDGER, Kind.KILL_BACKENDS, ("postgres",), (0.5, 4.0)),
        Card(Place.LEDGER, Kind.KILL, ("postgres",), (0.5, 4.0)),
        Card(Place.LEDGER, Kind.FILL_DISK, ("postgres",), (3.0, 6.0)),
        Card(Place.LEDGER, Kind.CUT, ("ledger:meter*", "ledger:stripe_sync*", "ledger:*"), (2.0, 6.0)),
        Card(Place.LEDGER, Kind.FREEZE, ("ledger:meter*", "ledger:stripe_sync*"), (3.0, 8.0)),
        Card(Place.LEDGER, Kind.SLOW, ("ledger:*",), (3.0, 6.0)),
        Card(Place.LEDGER, Kind.CUT_COMMIT, ("ledger:meter*", "ledger:stripe_sync*"), (1.0, 3.0)),
        Card(Place.STRIPE, Kind.ANSWER_500, ("stripe",), (3.0, 8.0)),
        Card(Place.STRIPE, Kind.ANSWER_SAVED_500, ("stripe",), (3.0, 8.0)),
        Card(Place.STRIPE, Kind.ANSWER_429, ("stripe",), (3.0, 8.0)),
        Card(Place.STRIPE, Kind.DROP_BEFORE, ("stripe",), (3.0, 8.0)),
        Card(Place.STRIPE, Kind.DROP_AFTER, ("stripe",), (3.0, 8.0)),
        Card(Place.STRIPE, Kind.ANSWER_401, ("stripe",), (2.0, 4.0)),
        Card(Place.STRIPE, Kind.KILL, ("stripe",), (1.0, 6.0)),
        Card(Place.STRIPE, Kind.FREEZE, ("stripe:*",), (4.0, 8.0)),
        Card(Place.CLIENTS, Kind.LOSE_REPLIES, ("clients:*",), (4.0, 8.0)),
        Card(Place.CLIENTS, Kind.SLOW, ("clients:*",), (3.0, 6.0)),
        Card(Place.CLIENTS, Kind.CUT, ("hooks:*",), (4.0, 10.0)),
    ]
    return tuple(cards)


def draw_schedule(
    seed: int, seconds: float, deck: Sequence[Card], *, rest_seconds: tuple[float, float] = (4.0, 8.0)
) -> tuple[Fault, ...]:
    """Faults that are all over before `seconds` have passed, in order of their beginning.

    The deck is dealt to its end before it is shuffled again, so a long storm has every fault equally often. After each
    fault, or pair of them, it is calm for `rest_seconds`, in which recovery can be seen.
    """
    rng = random.Random(seed)
    hand: list[Card] = []
    schedule: list[Fault] = []
    at = FIRST_AT_SECONDS
    while True:
        if not hand:
            hand = rng.sample(list(deck), len(deck))
        fault = _draw(rng, hand.pop(), at)
        drawn = [fault]
        companion = next((card for card in reversed(hand) if card.place is not fault.place), None)
        if companion is not None and rng.random() < _COMPANION_SHARE:
            hand.remove(companion)
            drawn.append(_draw(rng, companion, at + rng.random() * fault.lasts_seconds))
        until = max(each.until_seconds for each in drawn)
        if until > seconds - rest_seconds[0]:
            return tuple(schedule)
        schedule += drawn
        at = until + rng.uniform(*rest_seconds)


def _draw(rng: random.Random, card: Card, at_seconds: float) -> Fault:
    return Fault(
        at_seconds=round(at_seconds, 2),
        lasts_seconds=round(rng.uniform(*card.seconds), 2),
        place=card.place,
        kind=card.kind,
        target=rng.choice(card.targets),
    )


def to_json(schedule: Sequence[Fault]) -> list[dict[str, object]]:
    """As plain data."""
    return [asdict(fault) for fault in schedule]


def from_json(rows: Sequence[dict[str, object]]) -> tuple[Fault, ...]:
    """A schedule out of plain data."""
    return tuple(
        Fault(
            at_seconds=float(str(row["at_seconds"])),
            lasts_seconds=float(str(row["lasts_seconds"])),
            place=Place(str(row["place"])),
            kind=Kind(str(row["kind"])),
            target=str(row["target"]),
        )
        for row in rows
    )
