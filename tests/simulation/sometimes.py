"""Sometimes: rare situations that a set of runs must have met, or it has shown nothing about them.

Owns the list, and how those are recognised that leave a trace in a fault that struck or in the ledger at the end. It
refuses to know how one is brought about (`plan.py`); the others are noticed where they happen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

STRUCK: Mapping[str, tuple[str, ...]] = {
    "a crash between the ledger's commit and the group's": (
        "meter.ledger_committed crash",
        "meter.commit crash_after",
    ),
    "a crash between dead letters and the ledger's commit": ("meter.dead_produced crash",),
    "a crash with a fold staged": ("meter.flush_folded crash",),
    "a crash while a partition is handed over": ("meter.revoked crash",),
    "a crash while a partition is loaded": ("meter.partition_loaded crash",),
    "dead letters written, their acknowledgement lost": ("meter.bury lost_ack",),
    "a flush's commit lost, its outcome unknown": ("meter.commit unknown_lost",),
    "a flush's commit done, its outcome unknown": ("meter.commit unknown_done",),
    "records skipped by a fetch": ("meter.fetch skip",),
    "records fetched again": ("meter.fetch rewind", "meter.fetch reset"),
    "a seek that was lost": ("meter.seek lost",),
    "a group's commit lost or rolled back": ("meter.group_commit lost", "meter.group_commit rolled_back"),
    "a crash between marking a posting and calling Stripe": ("sync.after_mark_sending crash",),
    "a crash between Stripe's answer and its recording": ("sync.after_send crash", "stripe.answered crash"),
    "a crash between journal and ledger": ("sync.after_journal crash",),
    "a journal written in part": ("sync.journal half",),
    "stripe_sync's commit lost, its outcome unknown": ("sync.commit unknown_lost",),
    "stripe_sync's commit done, its outcome unknown": ("sync.commit unknown_done",),
    "a 500 after the effect": ("stripe.send error_after",),
    "a projector's commit of unknown outcome": (
        "webhooks.commit unknown_lost",
        "webhooks.commit unknown_done",
    ),
    "a crash between projecting and its offset": ("webhooks.projected crash",),
}
"""Situations by the faults (place, kind) that are them."""

TRACES: Mapping[str, str] = {
    "an identifier older than 24 hours, unknown, settled by summaries": (
        "SELECT 1 FROM postings WHERE settled_ms - first_sent_ms >= 86400000 AND state IN ('settled', 'void') "
        "AND (error LIKE 'delivered:%' OR error LIKE 'not_delivered:%')"
    ),
    "a posting found lost after a day, and posted again": (
        "SELECT 1 FROM postings WHERE state = 'void' AND error LIKE 'not_delivered:%'"
    ),
    "an asynchronous refusal reopened its chain": "SELECT 1 FROM postings WHERE state = 'void' AND error LIKE 'rejected:%'",
    "a total superseded before it was sent": "SELECT 1 FROM postings WHERE state = 'superseded'",
    "usage of a final invoice stamped into the next period": "SELECT 1 FROM postings WHERE for_period_ms IS NOT NULL",
    "a standby took the lease over": "SELECT 1 FROM leases WHERE version > 1",
    "one fetch for several webhooks": "SELECT 1 FROM stripe_inbox WHERE outcome = 'covered'",
}
"""Situations by a row that the ledger has of them when a run has drained."""

NOTICED: tuple[str, ...] = (
    "a zombie's flush before take-over, counted",
    "a zombie's flush after take-over, fenced",
    "an owner's flush missed: somebody else had counted",
    "rolled back, then the same ids counted",
    "rolled back, then the same ids counted by another",
    "meters changed under a folded flush",
    "a backlog across a change of meters",
    "ids of a whole day forgotten",
    "a partition stopped: truncated",
    "a partition stopped: too_short",
    "a record that cannot be decoded",
    "an event at the very edge of lateness",
    "a wall clock stepped back",
    "the whole machine suspended",
    "a lease lost while a call was in flight",
    "a second call while the first is in flight at Stripe",
    "a request arrived after its caller had given up",
    "a stored success replayed",
    "a stored 500 replayed",
    "a duplicate identifier",
    "the key revoked",
    "a restored ledger that lacked postings",
    "a mapping changed while a posting was in flight",
    "usage held for want of a customer, who came",
    "a webhook delivered twice",
    "a parked posting decided by an operator",
)
"""Situations noticed where they happen."""

SOMETIMES: tuple[str, ...] = (*STRUCK, *TRACES, *NOTICED)
"""A set of runs fails when one of these never happened in it."""


def recognise(struck: Mapping[str, int], query: Callable[[str], list[Any]]) -> Counter[str]:
    """Situations that a run's faults and its ledger show."""
    found = Counter({name: sum(struck.get(each, 0) for each in faults) for name, faults in STRUCK.items()})
    found.update({name: 1 for name, statement in TRACES.items() if query(f"{statement} LIMIT 1")})
    return +found


def missing(found: Mapping[str, int]) -> list[str]:
    """Those of the list that never happened."""
    return [name for name in SOMETIMES if not found.get(name)]


class Sightings(Counter[str]):
    """How often each situation was met."""

    def see(self, name: str) -> None:
        self[name] += 1
