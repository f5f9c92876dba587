"""The comparison with the history: it sees one event lost, one counted twice, and never lets the two cancel out."""

from __future__ import annotations

from decimal import Decimal

from sandbox.traffic.truth import Truth
from tests.agreement import Agreement, Difference, compare_outcomes, differences

EXPECTED = {"received": 103, "counted": 95, "unmatched": 0, "duplicate": 3, "late": 4, "dead": 1}


def judged(repeated: int = 0, **changed: int) -> Agreement:
    """The verdict on outcomes that differ from the expected ones like this."""
    got = {name: count + changed.get(name, 0) for name, count in EXPECTED.items()}
    agreement = Agreement(outcomes=got, expected_outcomes=dict(EXPECTED))
    compare_outcomes(agreement, repeated)
    return agreement


def test_equal_outcomes_agree() -> None:
    """Nothing lost, nothing doubled, nothing to say."""
    assert judged().holds
    assert Truth().outcomes["received"] == 0


def test_a_lost_event_is_seen() -> None:
    """Whether it never arrived, or ended as a duplicate of nothing."""
    assert judged(received=-1, counted=-1).lost_events == 1
    assert not judged(counted=-1, duplicate=1, repeated=10).holds


def test_a_doubled_event_is_seen() -> None:
    """Counted once more than there were events, also when a request was repeated and might explain it."""
    doubled = judged(received=1, counted=1, repeated=10)
    assert doubled.doubled_events == 1
    assert not doubled.holds


def test_what_was_sent_again_may_end_twice_and_nothing_else() -> None:
    """Duplicates, late and dead ones up to what was repeated; more is a complaint, and so are fewer."""
    assert judged(received=4, duplicate=2, late=1, dead=1, repeated=4).holds
    assert judged(received=4, duplicate=4, repeated=3).words() == [
        "4 received beyond the history, but only 3 were sent again"
    ]
    assert not judged(received=-1, late=-1).holds
    assert not judged(received=1, repeated=5).holds


def test_a_loss_and_a_doubling_do_not_cancel_out() -> None:
    """One unit short here and one too many there are one lost and one doubled."""
    one, two = ("calls", "ada", 0), ("calls", "bob", 0)
    found = differences("ledger", {one: Decimal(5), two: Decimal(7)}, {one: Decimal(4), two: Decimal(8)})
    agreement = Agreement(differences=found)
    assert (agreement.lost_units("ledger"), agreement.doubled_units("ledger")) == (Decimal(1), Decimal(1))
    assert agreement.lost_units("stripe") == Decimal(0)
    assert not agreement.holds


def test_keys_of_one_side_alone_are_differences() -> None:
    """Usage of nobody's history, and history without usage; rows of nothing are neither."""
    here, there = ("calls", "ada", 0), ("calls", "bob", 0)
    assert differences("stripe", {here: Decimal(5)}, {there: Decimal(2)}) == [
        Difference("stripe", *here, Decimal(5), Decimal(0)),
        Difference("stripe", *there, Decimal(0), Decimal(2)),
    ]
    assert differences("stripe", {here: Decimal(0)}, {}) == []
