"""The director: carries out a plan's steps, then heals the world and waits until it has drained.

Owns what each step does. It refuses to know why a plan has it, and what must hold in the end.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.simulation.metered import CALLS_BELOW_400, CALLS_BELOW_500, DAY_MS, PROFILES, changed
from tests.simulation.plan import Step
from tests.simulation.processes import MeterProcess
from tests.simulation.traffic import CUSTOMERS, MAILBOXES
from tollgate.ledger.billing import Customer
from tollgate.ledger.catalogue import apply_meters
from tollgate.ledger.postings import resume_posting, settle_posting

if TYPE_CHECKING:
    from tests.simulation.world import World

FLUSHES_MIN = 30

OPERATOR_SECONDS = 8.0
"""How long after healing an operator looks: requests that were on their way have arrived by then."""

PRELUDE_LOOKS = 100
"""Looks, 20 ms apart, for the first customers."""

DRAIN_SECONDS = 60.0
"""Virtual time in which everything must be done after the last fault: the slowest is settling by summaries."""


class Director:
    """Carries out one plan."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._actions: dict[str, Callable[..., None]] = {
            name.removeprefix("do_"): getattr(self, name) for name in dir(self) if name.startswith("do_")
        }
        self._where = CALLS_BELOW_500
        self._touched = 0
        self._drafts: dict[str, str] = {}
        self._backed_up = False
        self._healed_seconds = 0.0
        self.moved: set[str] = set()
        """Accounts whose mailbox went to another customer."""

    async def carry_out(self) -> None:
        """Every step at its moment."""
        world = self._world
        for step in world.plan.steps:
            await self._until(step.at_ms)
            self._do(step)
        await self._until(world.plan.length_ms)

    async def _until(self, at_ms: int) -> None:
        left = at_ms - self._world.elapsed_ms()
        if left > 0:
            await asyncio.sleep(left / 1000)

    def _do(self, step: Step) -> None:
        self._actions[step.action](*step.args)

    # ----------------------------------------------------------------------------------------------- steps

    def do_traffic(self, number: int) -> None:
        self._world.traffic.write(number, random.Random(f"traffic {self._world.plan.seed} {number}"))

    def do_kill(self, name: str, back_ms: int) -> None:
        self._world.processes[name].kill(back_ms / 1000)

    def do_terminate(self, name: str) -> None:
        self._world.processes[name].stop.set()

    def do_freeze(self, name: str) -> None:
        self._world.processes[name].freeze()

    def do_thaw(self, name: str) -> None:
        self._world.processes[name].thaw()

    def do_rebalance(self) -> None:
        self._world.log.rebalance()

    def do_outage(self, what: str) -> None:
        self._set_outage(what, down=True)

    def do_end_outage(self, what: str) -> None:
        self._set_outage(what, down=False)

    def _set_outage(self, what: str, *, down: bool) -> None:
        world = self._world
        if what == "broker":
            world.log.reachable = not down
        elif what == "ledger":
            world.ledger_down = down
        elif what == "stripe":
            world.wire.cut = down

    def do_truncate(self, partition: int) -> None:
        """Retention is faster than counting: what is not counted goes as well."""
        log = self._world.log
        held = log.partitions[partition]
        log.truncate(partition, min(held.end, self._counted(partition) + 2))

    def do_recreate(self, partition: int, filled: bool) -> None:
        """Empty, under the meters' eyes; or filled past what was counted while no meter runs."""
        counted = self._counted(partition)
        if not counted:
            return  # nothing was counted that another topic could be told from
        self._world.log.recreate(partition, counted + 3 if filled else 0)
        if filled:
            for process in self._world.processes.values():
                if isinstance(process, MeterProcess):
                    process.kill(0.2)

    def do_step_clock(self, name: str, ms: int) -> None:
        process = self._world.processes.get(name)
        if process is not None:
            process.clock.skew_ms += ms
            self._world.sightings.see("a wall clock stepped " + ("back" if ms < 0 else "ahead"))

    def do_suspend(self, seconds: int) -> None:
        self._world.wire.hang_up()
        self._world.loop.suspend(seconds)
        self._world.suspended_seconds += seconds
        self._world.sightings.see("the whole machine suspended")

    def do_change_meters(self) -> None:
        world = self._world
        self._where = CALLS_BELOW_400 if self._where == CALLS_BELOW_500 else CALLS_BELOW_500
        apply_meters(world.warm.engine, changed(world.plan.profile, self._where), "", world.now_ms())
        world.learn_meters()
        world.sightings.see("meters changed")

    # --------------------------------------------------------------------------------- steps around Stripe

    async def begin(self) -> None:
        """The customers there are, each with a subscription; the first step waits until they are known."""
        world = self._world
        for place, customer_id in enumerate(CUSTOMERS):
            if customer_id == CUSTOMERS[-1] and world.plan.late_customer:
                world.loop.outside(world.plan.length_ms / 2000, self._late_customer)
                continue
            self._put_customer(customer_id, MAILBOXES[place] if place < len(MAILBOXES) else None)
            self._subscribe(customer_id)
        for _ in range(PRELUDE_LOOKS):
            await asyncio.sleep(0.02)
            if self._unread() is None:
                return

    def _late_customer(self) -> None:
        if self._world.ledger.query("SELECT 1 FROM holds WHERE reason = 'no_mapping' LIMIT 1"):
            self._world.sightings.see("usage held for want of a customer, who came")
        self._put_customer(CUSTOMERS[-1], None)
        self._subscribe(CUSTOMERS[-1])

    def _put_customer(self, customer_id: str, email: str | None) -> None:
        self._touched += 1
        self._world.stripe.put_customer(Customer(customer_id, email=email, name=f"name {self._touched}"))

    def _subscribe(self, customer_id: str) -> None:
        begins_ms = self._world.plan.begins_ms
        names = tuple(meter.name for meter in PROFILES[self._world.plan.profile])
        self._world.stripe.subscribe(customer_id, names, begins_ms - 20 * DAY_MS, begins_ms + 20 * DAY_MS)

    def do_outage_after_loss(self, what: str) -> None:
        """An outage that begins as soon as a call's outcome is unknown."""
        world = self._world
        unknown = "SELECT 1 FROM postings WHERE state IN ('sending', 'unknown') AND attempts > 0 LIMIT 1"

        def look(left: int) -> None:
            if world.troubles.over or not left:
                return
            if world.ledger.query(unknown):
                self._set_outage(what, down=True)
            else:
                world.loop.outside(0.02, lambda: look(left - 1))

        look(30)

    def do_revoke_key(self, revoked: bool) -> None:
        self._world.stripe.key_revoked = revoked
        if revoked:
            self._world.sightings.see("the key revoked")

    def do_deactivate(self, event_name: str, inactive: bool) -> None:
        change = self._world.stripe.inactive.add if inactive else self._world.stripe.inactive.discard
        change(event_name)

    def do_touch_customer(self, customer_id: str) -> None:
        self._put_customer(customer_id, self._world.stripe.customers[customer_id].email)

    def do_move_mailbox(self, number: int) -> None:
        """From its owner to another customer, when a posting of the owner's is under way, or a little later anyway."""
        world, email = self._world, MAILBOXES[number]
        customers = world.stripe.customers
        owner = next((c.customer_id for c in customers.values() if c.email == email), None)
        heirs = [c.customer_id for c in customers.values() if c.email is None]
        if owner is None or not heirs:
            return
        in_flight = "SELECT 1 FROM postings WHERE customer_id = ? AND state IN ('sending', 'unknown') LIMIT 1"
        self.moved.add(f"user:{email}")

        def look(left: int) -> None:
            under_way = bool(world.ledger.query(in_flight, owner))
            if under_way:
                world.sightings.see("a mapping changed while a posting was in flight")
            if under_way or not left or world.troubles.over:
                self._put_customer(owner, None)
                self._put_customer(heirs[0], email)
            else:
                world.loop.outside(0.01, lambda: look(left - 1))

        look(30)

    def do_freeze_leader(self, ms: int) -> None:
        """As soon as a call of its is under way."""
        world = self._world

        def look(left: int) -> None:
            if world.troubles.over or not left:
                return
            holders = world.ledger.query("SELECT holder FROM leases")
            leader = world.processes.get(str(holders[0][0]).partition("#")[0]) if holders else None
            if leader is not None and (world.wire.in_transit or world.stripe.busy):
                leader.freeze()
                world.loop.outside(ms / 1000, leader.thaw)
            else:
                world.loop.outside(0.005, lambda: look(left - 1))

        look(200)

    def do_end_period(self, customer_id: str) -> None:
        world = self._world
        self._drafts[customer_id] = world.stripe.end_period(
            customer_id, world.now_ms() // 1000 * 1000, world.now_ms() // 1000 * 1000 + 20 * DAY_MS
        )

    def do_finalize(self, customer_id: str) -> None:
        if customer_id in self._drafts:
            self._world.stripe.finalize(self._drafts[customer_id])

    def do_back_up(self) -> None:
        self._world.ledger.back_up()
        self._backed_up = True

    def do_restore(self) -> None:
        """Everything is stopped, the backup put in place, everything started; webhooks are read from the beginning."""
        world = self._world
        if not self._backed_up:
            return
        for process in world.processes.values():
            if process.life is not None:
                process.life.die()
        before = world.ledger.query("SELECT count(*) FROM postings")[0][0]
        world.ledger.restore()
        after = world.ledger.query("SELECT count(*) FROM postings")[0][0]
        if after < before:
            world.sightings.see("a restored ledger that lacked postings")
        world.topic.committed.clear()
        for process in world.processes.values():
            process.kill(0.05)

    # ------------------------------------------------------------------------------------------ heal, drain

    async def heal(self) -> None:
        """No more faults: everything that is down comes up, everything that was taken away is put back."""
        world = self._world
        world.troubles.over = True
        for what in ("broker", "ledger", "stripe"):
            self._set_outage(what, down=False)
        for process in world.processes.values():
            if isinstance(process, MeterProcess):
                process.look_at_stopped()
        touched = world.log.mend()
        for process in world.processes.values():
            process.thaw()
            process.revive()
        if touched:
            # Stopped partitions wait for an operator, who has mended the log and starts the meters again.
            world.sightings.see("a partition's log was taken away and put back")
            for name, process in world.processes.items():
                if name.startswith("meter"):
                    process.kill(0.1)
        world.stripe.key_revoked = False
        world.stripe.inactive.clear()
        number = len(world.plan.steps)
        while world.watch.flushes < FLUSHES_MIN and number < len(world.plan.steps) + 100:
            # Faults have kept the meters from their work: more of it, so that no run shows less than another.
            number += 1
            self.do_traffic(number)
            await asyncio.sleep(0.05)
        world.traffic.tick()
        # What was stamped by a clock that is ahead is refused until its time has come.
        await asyncio.sleep(0.3)
        self.do_suspend(1_800)
        self._healed_seconds = world.loop.time()

    async def drain(self) -> None:
        """Return when nothing is left to be done, or when that has taken too long: the oracle then says what is left."""
        world = self._world
        deadline = world.loop.time() + DRAIN_SECONDS
        while world.loop.time() < deadline:
            await asyncio.sleep(0.25)
            self._operate()
            if self.left() is None:
                return

    def left(self) -> str | None:
        """What is not done yet, or None."""
        world = self._world
        for number, end in world.log.ends.items():
            if self._counted(number) < end:
                return f"partition {number} is counted to {self._counted(number)} of {end}"
        for what, statement in _LEFT.items():
            rows = world.ledger.query(statement)
            if rows:
                return f"{what}: {rows[0]}"
        return self._unread()

    def _unread(self) -> str | None:
        known = {row[0] for row in self._world.ledger.query("SELECT event_id FROM stripe_inbox")}
        unread = [event.event_id for event in self._world.stripe.webhooks if event.event_id not in known]
        return f"webhook {unread[0]} is not in the inbox" if unread else None

    def _operate(self) -> None:
        """An operator looks at what is parked, asks Stripe about it, and decides."""
        world = self._world
        if world.loop.time() - self._healed_seconds < OPERATOR_SECONDS:
            return
        parked = (
            "SELECT posting_key, seq, identifier, first_sent_ms, mode FROM postings WHERE state = 'parked'"
        )
        for key, seq, identifier, first_sent_ms, mode in world.ledger.query(parked):
            world.sightings.see("a parked posting decided by an operator")
            if first_sent_ms is None or mode == "usage_record":
                resume_posting(world.warm.engine, key, seq)
            else:
                delivered = world.stripe.holds(identifier)
                settle_posting(world.warm.engine, key, seq, delivered=delivered, now_ms=world.now_ms())

    def _counted(self, partition: int) -> int:
        rows: list[Any] = self._world.ledger.query(
            "SELECT next_offset FROM progress WHERE partition = ?", partition
        )
        return int(rows[0][0])


_LEFT = {
    "usage not planned": (
        "SELECT usage.partition, changed_offset, planned_offset FROM usage LEFT JOIN plan_cursors USING (partition) "
        "WHERE changed_offset > coalesce(planned_offset, 0) LIMIT 1"
    ),
    "a posting not settled": (
        "SELECT posting_key, seq, state, error FROM postings "
        "WHERE state IN ('planned', 'journalled', 'sending', 'unknown', 'parked') LIMIT 1"
    ),
    "usage waiting for a posting": "SELECT * FROM holds WHERE reason = 'in_flight' LIMIT 1",
    "mappings or periods that planning has not looked at": (
        "SELECT version FROM directory_state WHERE version > 0 AND NOT EXISTS "
        "(SELECT 1 FROM controls WHERE name = 'directory_version' AND CAST(value AS INTEGER) = version)"
    ),
    "a refusal not taken back": (
        "SELECT identifier FROM rejections JOIN postings USING (identifier) "
        "WHERE state IN ('delivered', 'settled') LIMIT 1"
    ),
}
"""Rows there are while something is left to be done."""
