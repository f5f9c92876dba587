"""The plan of a run: everything that is done to it, as data, from one number.

Owns drawing a plan. It refuses to know how a step is carried out (`director.py`) and what a trouble does. A run is a
function of its plan: printed it can be read, replayed it does the same, and with parts left out it is still a plan.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.ledger import CRASH_AFTER, REFUSED, UNAVAILABLE, UNKNOWN_DONE, UNKNOWN_LOST
from tests.simulation.metered import PROFILES
from tests.simulation.trouble import CRASH, Trouble


@dataclass(frozen=True, slots=True)
class Step:
    """Something the director does at a moment."""

    at_ms: int
    action: str
    args: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.at_ms:>7} ms  {self.action}({', '.join(map(repr, self.args))})"


@dataclass(frozen=True, slots=True)
class Plan:
    """One run."""

    seed: int
    profile: str
    meters: int
    syncs: int
    begins_ms: int
    """True time at which it begins."""
    skew_ms: tuple[int, int]
    webhook_disorder: float
    """Share of webhooks that come late, twice, or in another order."""
    projectors: int
    """Of two, both read everything: one has lost its partitions and does not know."""
    late_customer: bool
    """One customer is made only when its usage has begun."""
    length_ms: int
    steps: tuple[Step, ...] = field(repr=False)
    troubles: tuple[Trouble, ...] = field(repr=False)

    def __str__(self) -> str:
        head = (
            f"seed {self.seed}: profile {self.profile}, {self.meters} meters, {self.syncs} stripe_syncs, "
            f"{self.projectors} projectors, late customer {self.late_customer}, begins "
            f"{self.begins_ms}, ingest clocks {self.skew_ms} ms ahead, webhook disorder {self.webhook_disorder}, "
            f"{self.length_ms} ms"
        )
        parts: list[Step | Trouble] = sorted((*self.steps, *self.troubles), key=lambda each: each.at_ms)
        return "\n".join((head, *(f"  {part}" for part in parts)))


METER_PLACES: dict[str, tuple[str, ...]] = {
    "meter.read": (UNAVAILABLE, CRASH),
    "meter.write": (UNAVAILABLE, UNAVAILABLE, CRASH),
    "meter.commit": (REFUSED, UNKNOWN_LOST, UNKNOWN_DONE, CRASH, CRASH_AFTER),
    "meter.partition_loaded": (CRASH,),
    "meter.record_appended": (CRASH,),
    "meter.flush_taken": (CRASH,),
    "meter.flush_folded": (CRASH,),
    "meter.dead_produced": (CRASH,),
    "meter.ledger_committed": (CRASH,),
    "meter.group_committed": (CRASH,),
    "meter.revoked": (CRASH,),
    "meter.bury": (UNAVAILABLE, "lost_ack", CRASH),
    "meter.ask": (UNAVAILABLE,),
    "meter.fetch": ("skip", "rewind", "reset"),
    "meter.seek": ("lost",),
    "meter.group_commit": ("refused", "raises", "lost", "rolled_back", CRASH),
}
SYNC_PLACES: dict[str, tuple[str, ...]] = {
    "sync.read": (UNAVAILABLE, CRASH),
    "sync.write": (UNAVAILABLE, CRASH),
    "sync.commit": (REFUSED, UNKNOWN_LOST, UNKNOWN_DONE, CRASH, CRASH_AFTER),
    "sync.after_plan": (CRASH,),
    "sync.after_journal": (CRASH,),
    "sync.after_mark_journalled": (CRASH,),
    "sync.after_mark_sending": (CRASH,),
    "sync.after_send": (CRASH,),
    "sync.after_record": (CRASH,),
    "sync.journal": (UNAVAILABLE, "lost_ack", "half", CRASH),
    "sync.import": (UNAVAILABLE, CRASH),
    "stripe.send": (
        "unreachable",
        "lost_request",
        "lost_answer",
        "late_arrival",
        "slow",
        "error_before",
        "error_after",
        "rate_limit",
        "lock_timeout",
        "revoked",
        "reject:timestamp_in_future",
        "reject:archived_meter",
        "reject:meter_event_invalid_value",
        CRASH,
    ),
    "stripe.answered": (CRASH,),
    "stripe.ask": ("unreachable", "error", CRASH),
}
WEBHOOK_PLACES: dict[str, tuple[str, ...]] = {
    "webhooks.read": (UNAVAILABLE, CRASH),
    "webhooks.write": (UNAVAILABLE, CRASH),
    "webhooks.commit": (REFUSED, UNKNOWN_LOST, UNKNOWN_DONE, CRASH, CRASH_AFTER),
    "webhooks.fetched": (CRASH,),
    "webhooks.projected": (CRASH,),
    "webhooks.committed": (CRASH,),
    "webhooks.poll": ("replay",),
    "webhooks.offset": ("lost", CRASH),
    "stripe.fetch": ("unreachable", "slow", "slow", "missing", CRASH),
}

BEGINNINGS_MS = (
    1_798_761_590_000,  # ten seconds before a year's end
    1_800_000_000_000,
    1_803_868_200_000,  # the end of February
    1_806_198_900_000,
)


def draw_plan(seed: int) -> Plan:
    """The plan of `seed`."""
    rng = random.Random(seed)
    return _Draft(seed, rng).finish()


class _Draft:
    """A plan in the making."""

    def __init__(self, seed: int, rng: random.Random) -> None:
        self._seed = seed
        self._rng = rng
        self._steps: list[Step] = []
        self._troubles: list[Trouble] = []
        self._length_ms = rng.choice((1500, 1800, 2100))
        self._meters = rng.choice((1, 2, 2, 2, 3))
        self._syncs = rng.choice((1, 2, 2))
        self.profile = rng.choice(list(PROFILES))

    def finish(self) -> Plan:
        rng = self._rng
        for number in range(self._length_ms // 40):
            self._steps.append(Step(rng.randrange(self._length_ms), "traffic", (number,)))
        for places, most in ((METER_PLACES, 8), (SYNC_PLACES, 8), (WEBHOOK_PLACES, 4)):
            for _ in range(rng.choice((0, most // 4, most // 2, most))):
                place = rng.choice([*places, *(["stripe.send"] * 6 if "stripe.send" in places else [])])
                self._trouble(place, rng.choice(places[place]))
        acts = rng.sample(_METER_ACTS, rng.choice((0, 1, 2, 2))) + rng.sample(
            _SYNC_ACTS, rng.choice((0, 1, 2, 3))
        )
        if _Draft.restore in acts:
            acts = [act for act in acts if act not in _NOT_WITH_RESTORE]
        for act in acts:
            act(self)
        return Plan(
            seed=self._seed,
            profile=self.profile,
            meters=self._meters,
            syncs=self._syncs,
            begins_ms=rng.choice(BEGINNINGS_MS) + rng.randrange(10_000),
            skew_ms=(0, rng.choice((0, 0, 400, -90_000, 600_000, -600_000))),
            webhook_disorder=rng.choice((0.0, 0.2, 0.6)),
            projectors=rng.choice((1, 1, 2)),
            late_customer=rng.random() < 0.25,
            length_ms=self._length_ms,
            steps=tuple(sorted(self._steps, key=lambda step: step.at_ms)),
            troubles=tuple(sorted(self._troubles, key=lambda each: each.at_ms)),
        )

    def _moment(self, share: float = 0.9) -> int:
        return self._rng.randrange(int(self._length_ms * share))

    def _trouble(self, place: str, kind: str, at_ms: int | None = None) -> None:
        self._troubles.append(Trouble(self._moment() if at_ms is None else at_ms, place, kind))

    def _step(self, at_ms: int, action: str, *args: Any) -> None:
        self._steps.append(Step(at_ms, action, args))

    def _a_meter(self) -> str:
        return f"meter-{self._rng.randrange(self._meters)}"

    # ------------------------------------------------------------------------------------------------ acts

    def kill_meters(self) -> None:
        for _ in range(self._rng.randint(1, 3)):
            self._step(self._moment(), "kill", self._a_meter(), self._rng.choice((20, 200, 1200)))

    def terminate_meter(self) -> None:
        self._step(self._moment(), "terminate", self._a_meter())

    def zombie(self) -> None:
        """Frozen for longer than a session, woken while another counts."""
        at_ms, who = self._moment(0.6), self._a_meter()
        self._step(at_ms, "freeze", who)
        self._step(at_ms + self._rng.choice((100, 550, 700, 1000)), "thaw", who)

    def rebalances(self) -> None:
        for _ in range(self._rng.randint(1, 5)):
            self._step(self._moment(), "rebalance")

    def broker_outage(self) -> None:
        self._outage("broker")

    def ledger_outage(self) -> None:
        self._outage("ledger")

    def _outage(self, what: str) -> None:
        at_ms = self._moment(0.7)
        self._step(at_ms, "outage", what)
        self._step(at_ms + self._rng.choice((50, 300, 1000)), "end_outage", what)

    def truncate(self) -> None:
        self._step(self._moment(), "truncate", self._rng.randrange(3))

    def recreate(self) -> None:
        self._step(self._moment(), "recreate", self._rng.randrange(3), self._rng.random() < 0.5)

    def step_clock(self) -> None:
        who = self._rng.choice((self._a_meter(), "sync-0", "webhooks-0"))
        self._step(self._moment(), "step_clock", who, self._rng.choice((-600_000, -5_000, 5_000, 600_000)))

    def suspend(self) -> None:
        self._step(
            self._moment(), "suspend", self._rng.choice((60, 3_600, 21 * 3_600, 26 * 3_600, 80 * 3_600))
        )

    def change_meters(self) -> None:
        """Meters change; hours later a backlog reaches across the boundary, in the hands of one that slept."""
        at_ms = self._moment(0.5)
        sleeper = self._a_meter()
        if self._rng.random() < 0.6:
            self._step(at_ms, "freeze", sleeper)
            self._step(at_ms + 300, "thaw", sleeper)
        self._step(at_ms + 100, "change_meters")
        if self._rng.random() < 0.8:
            self._step(at_ms + 200, "suspend", 3 * 3_600)

    # --------------------------------------------------------------------------------- acts around Stripe

    def kill_syncs(self) -> None:
        for _ in range(self._rng.randint(1, 3)):
            self._step(self._moment(), "kill", self._a_sync(), self._rng.choice((20, 300, 1200)))

    def terminate_sync(self) -> None:
        self._step(self._moment(), "terminate", self._a_sync())

    def frozen_leader(self) -> None:
        """Frozen for longer than its lease, calls in flight, and woken."""
        at_ms = self._moment(0.6)
        self._trouble("stripe.send", "slow", at_ms)
        self._step(at_ms, "freeze_leader", self._rng.choice((300, 1100, 1500)))

    def stripe_outage(self) -> None:
        self._outage("stripe")

    def unknown_for_a_day(self) -> None:
        """An answer is lost, Stripe stays away, and when it is back it may have forgotten."""
        at_ms = self._moment(0.7)
        for _ in range(self._rng.randint(1, 3)):
            self._trouble(
                "stripe.send", self._rng.choice(("lost_answer", "lost_request", "error_after")), at_ms
            )
        # The outage begins when a call has been lost, not at a moment when there was none.
        self._step(at_ms + 1, "outage_after_loss", "stripe")
        if self._rng.random() < 0.4:
            self._step(at_ms + 600, "kill", self._a_sync(), 200)
        self._step(at_ms + 700, "suspend", self._rng.choice((19, 21, 23, 25, 30)) * 3_600)
        self._step(at_ms + 900, "end_outage", "stripe")

    def revoke_key(self) -> None:
        at_ms = self._moment(0.7)
        self._step(at_ms, "revoke_key", True)
        self._step(at_ms + self._rng.choice((100, 800)), "revoke_key", False)

    def deactivate_meter(self) -> None:
        at_ms = self._moment(0.7)
        self._step(at_ms, "deactivate", "calls", True)
        self._step(at_ms + self._rng.choice((100, 800)), "deactivate", "calls", False)

    def restore(self) -> None:
        """The ledger's disk is lost; a backup of a while ago takes its place."""
        at_ms = self._moment(0.5)
        self._step(at_ms, "back_up")
        self._step(at_ms + self._rng.choice((300, 700, 1100)), "restore")

    def move_mailbox(self) -> None:
        """An e-mail address goes from one customer to another, while its usage is under way."""
        at_ms = self._moment(0.8)
        if self._rng.random() < 0.7:
            self._trouble("stripe.send", self._rng.choice(("slow", "lost_answer")), max(0, at_ms - 300))
        self._step(at_ms, "move_mailbox", 0)

    def end_period(self) -> None:
        """A period ends, its draft is finalized, and usage of it goes on being counted."""
        if self.profile != "delta":
            return
        at_ms, who = self._moment(0.4), self._rng.choice(("cus_a", "cus_b"))
        self._step(at_ms, "end_period", who)
        if self._rng.random() < 0.9:
            self._step(at_ms + self._rng.choice((50, 200)), "finalize", who)

    def kill_webhooks(self) -> None:
        self._step(self._moment(), "kill", "webhooks-0", self._rng.choice((20, 400, 1200)))

    def busy_customers(self) -> None:
        """Customers change again and again, and fetches are slow."""
        for _ in range(self._rng.randint(2, 6)):
            self._step(self._moment(), "touch_customer", self._rng.choice(("cus_a", "cus_b")))
            self._trouble("stripe.fetch", "slow")

    def _a_sync(self) -> str:
        return f"sync-{self._rng.randrange(self._syncs)}"


_METER_ACTS = [
    _Draft.kill_meters,
    _Draft.terminate_meter,
    _Draft.zombie,
    _Draft.zombie,
    _Draft.rebalances,
    _Draft.broker_outage,
    _Draft.ledger_outage,
    _Draft.truncate,
    _Draft.recreate,
    _Draft.step_clock,
    _Draft.suspend,
    _Draft.change_meters,
]
_SYNC_ACTS = [
    _Draft.kill_syncs,
    _Draft.terminate_sync,
    _Draft.frozen_leader,
    _Draft.stripe_outage,
    _Draft.unknown_for_a_day,
    _Draft.unknown_for_a_day,
    _Draft.revoke_key,
    _Draft.deactivate_meter,
    _Draft.restore,
    _Draft.move_mailbox,
    _Draft.end_period,
    _Draft.end_period,
    _Draft.kill_webhooks,
    _Draft.busy_customers,
]
_NOT_WITH_RESTORE = (_Draft.move_mailbox, _Draft.change_meters)
"""What is decided anew after a restore may be decided otherwise: the product says so, and does not promise more."""
