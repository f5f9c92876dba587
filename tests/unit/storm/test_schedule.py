"""Schedules of the storm: the same from the same seed, over in time, and never two faults on one thing at once."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from tests.storm.schedule import Cast, Fault, Kind, Place, draw_schedule, from_json, make_deck, to_json

DECK = make_deck(Cast())


def draw(seed: int, seconds: float = 1_200.0) -> tuple[Fault, ...]:
    """A schedule of the whole deck."""
    return draw_schedule(seed, seconds, DECK)


def test_a_seed_gives_one_schedule() -> None:
    """The same again from the same seed, another one from another."""
    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def test_a_schedule_is_data() -> None:
    """Stored and read back it is what it was."""
    assert from_json(to_json(draw(7))) == draw(7)


@pytest.mark.parametrize("seed", range(20))
def test_a_schedule_is_over_before_its_end_and_places_never_meet(seed: int) -> None:
    """In each place one fault begins when the one before is over; the last one leaves time to recover."""
    schedule = draw(seed)
    for place in Place:
        spans = [(fault.at_seconds, fault.until_seconds) for fault in schedule if fault.place is place]
        assert all(end < begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert max(fault.until_seconds for fault in schedule) <= 1_196.0


def test_twenty_minutes_hold_every_fault() -> None:
    """The deck is dealt to its end before it is shuffled again: no kind is left out, in no place."""
    drawn = Counter((fault.place, fault.kind) for fault in draw(1))
    assert set(drawn) == {(card.place, card.kind) for card in DECK}


def test_every_kind_is_in_the_deck() -> None:
    """A kind nobody draws would be a promise nobody keeps."""
    assert {card.kind for card in DECK} == set(Kind)
