"""A ledger with the rows other services would have written, for the tests of postings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import cast

from sqlalchemy import delete, func, insert, select, update

from services.stripe_sync.plan import Rules
from tollgate.ledger.due import load_due
from tollgate.ledger.engine import Engine, ledger_transaction, open_ledger, read_snapshot
from tollgate.ledger.init import Pins, initialise
from tollgate.ledger.insertion import put
from tollgate.ledger.leases import Lease, take_lease
from tollgate.ledger.planning import PlanReport, plan_postings
from tollgate.ledger.posting_journal import load_planned, mark_journalled
from tollgate.ledger.posting_rows import (
    AT_STRIPE,
    IN_CHAIN,
    REPLACING_MODES,
    Outcome,
    Posting,
    PostingState,
)
from tollgate.ledger.postings import list_postings
from tollgate.ledger.sending import mark_sending, record_outcomes
from tollgate.ledger.tables import (
    customers,
    directory_state,
    distinct_values,
    holds,
    item_periods,
    mappings,
    meters,
    progress,
    rejections,
    usage,
)
from tollgate.metering.closed import ClosedPolicy
from tollgate.metering.meter import Meter, Metric, SendMode, StripeMode, StripeTarget, WindowSize

HOUR_MS = 3_600_000
T0 = 1_800_000_000_000 - 1_800_000_000_000 % HOUR_MS
NOW = T0 + 3 * HOUR_MS
LEDGER_ID = "ledger_test"


def pins(**changed: object) -> Pins:
    """Pins of a ledger of the tests."""
    values: dict[str, object] = {
        "kafka_cluster_id": "",
        "events_topic": "gateway.events",
        "partitions": 0,
        "stripe_account": "",
        "stripe_mode": "test",
        "id_seed_fingerprint": "",
        "ledger_id": LEDGER_ID,
    }
    return Pins(**(values | changed))  # type: ignore[arg-type]


@dataclass
class World:
    """One ledger, its meters, customers and counts. Offsets move on by one with every change."""

    engine: Engine
    lease: Lease
    rules: Rules = field(default_factory=lambda: Rules(LEDGER_ID))
    now_ms: int = NOW
    offset: int = 0

    @classmethod
    def make(cls, url: str, partitions: int = 2, **pinned: object) -> World:
        engine = open_ledger(url)
        initialise(engine, pins(**pinned), partitions, NOW)
        lease = take_lease(engine, "stripe_sync", "one", None, NOW)
        assert lease is not None
        return cls(engine, lease)

    # ------------------------------------------------------------------------ what others write

    def meter(
        self,
        name: str = "calls",
        send: str = "live",
        metric: object = "count",
        window: str = "hour",
        mode: str = "delta",
        closed: ClosedPolicy | None = None,
    ) -> int:
        target = StripeTarget(
            mode=cast("StripeMode", mode), send=cast("SendMode", send), event_name=name, closed=closed
        )
        made = Meter(
            name=name,
            where=None,
            metric=Metric.from_document(metric),
            window=WindowSize(window),
            stripe=target,
        )
        document = made.to_document()
        with ledger_transaction(self.engine) as connection:
            row = connection.execute(
                insert(meters)
                .values(name=name, definition=document, from_ms=0, to_ms=None, since_version=1)
                .returning(meters.c.meter_id)
            ).one()
            return int(row[0])

    def switch(self, meter_id: int, send: str) -> None:
        with ledger_transaction(self.engine) as connection:
            row = connection.execute(select(meters.c.definition).where(meters.c.meter_id == meter_id)).one()
            document = {**row[0], "stripe": {**row[0]["stripe"], "send": send}}
            connection.execute(
                update(meters).where(meters.c.meter_id == meter_id).values(definition=document)
            )

    def use(
        self,
        meter_id: int,
        account: str,
        quantity: int | str,
        window: int = 0,
        partition: int = 0,
        dimensions: str = "",
        at_ms: int | None = None,
        order_ms: int = 0,
        values: tuple[int, ...] = (),
    ) -> None:
        """The meter has committed a flush after which this usage row stands at `quantity`."""
        self.offset += 1
        start_ms = T0 + window * HOUR_MS
        row: dict[str, object] = {
            "partition": partition,
            "meter_id": meter_id,
            "window_start_ms": start_ms,
            "account": account,
            "dimensions": dimensions,
            "quantity": Decimal(quantity),
            "events": 1,
            "unvalued": 0,
            "latest_event_ms": start_ms + 1000 if at_ms is None else at_ms,
            "order_ms": order_ms,
            "order_offset": self.offset,
            "changed_offset": self.offset,
        }
        with ledger_transaction(self.engine) as connection:
            put(connection, usage, [row])
            key = {k: row[k] for k in ("partition", "meter_id", "window_start_ms", "account", "dimensions")}
            if values:
                put(connection, distinct_values, [{**key, "value_hash": value} for value in values])
            connection.execute(
                update(progress).where(progress.c.partition == partition).values(next_offset=self.offset)
            )

    def customer(self, customer_id: str, *accounts: str, deleted: bool = False) -> None:
        row: dict[str, object] = {
            "customer_id": customer_id,
            "email": None,
            "name": None,
            "deleted": deleted,
            "metadata": {},
            "sequence": 1,
            "updated_ms": 0,
        }
        with ledger_transaction(self.engine) as connection:
            put(connection, customers, [row])
        for account in accounts:
            self.map(account, customer_id)

    def map(self, account: str, customer_id: str, from_ms: int = 0, to_ms: int | None = None) -> None:
        row = {
            "account": account,
            "customer_id": customer_id,
            "from_ms": from_ms,
            "to_ms": to_ms,
            "rule": "user=customer.id",
            "created_ms": 0,
        }
        with ledger_transaction(self.engine) as connection:
            put(connection, mappings, [row])
            self._directory_moved(connection)

    def period(
        self,
        customer_id: str,
        event_name: str = "calls",
        start_ms: int = T0 - 100 * HOUR_MS,
        end_ms: int = T0 + 600 * HOUR_MS,
        state: str = "open",
        item: str = "si_1",
        item_id: str | None = None,
        price_id: str = "price_1",
    ) -> None:
        row = {
            "item_id": item_id or f"{item}_{customer_id}_{event_name}",
            "period_start_ms": start_ms,
            "period_end_ms": end_ms,
            "subscription_id": "sub_1",
            "customer_id": customer_id,
            "price_id": price_id,
            "event_name": event_name,
            "state": state,
            "sequence": 1,
        }
        with ledger_transaction(self.engine) as connection:
            put(connection, item_periods, [row])
            self._directory_moved(connection)

    def _directory_moved(self, connection: object) -> None:
        connection.execute(update(directory_state).values(version=directory_state.c.version + 1))  # type: ignore[attr-defined]

    def reject(self, identifier: str, code: str) -> None:
        row = {
            "identifier": identifier,
            "event_id": "evt_1",
            "code": code,
            "message": "no",
            "reported_ms": 0,
            "sequence": 1,
        }
        with ledger_transaction(self.engine) as connection:
            put(connection, rejections, [row])

    # --------------------------------------------------------------------------- what is tested

    def plan(self, rows_max: int = 1000, lease: Lease | None = None) -> PlanReport:
        return plan_postings(self.engine, lease or self.lease, self.rules, self.now_ms, rows_max)

    def journal(self) -> list[Posting]:
        """Journal what is planned, into nowhere."""
        planned = load_planned(self.engine, 10_000)
        mark_journalled(self.engine, self.lease, [p.ref for p in planned], {}, self.now_ms)
        return planned

    def deliver(self) -> list[Posting]:
        """Journal and deliver all that is planned; returns it."""
        planned = self.journal()
        for _ in range(100):
            sent = [entry.posting.ref for entry in load_due(self.engine, self.now_ms, 10_000)]
            if not sent:
                return planned
            mark_sending(self.engine, self.lease, sent, self.now_ms)
            outcomes = [Outcome(*ref, PostingState.DELIVERED) for ref in sent]
            record_outcomes(self.engine, self.lease, outcomes, self.now_ms)
        raise AssertionError("sending does not come to an end")

    def settle_all(self, rows_max: int = 1000) -> None:
        """Plan, journal and deliver until nothing is left to do."""
        before: list[Posting] = []
        for _ in range(50):
            report = self.plan(rows_max)
            self.deliver()
            after = self.postings()
            if after == before and not report.more:
                return
            before = after
        raise AssertionError("planning does not come to an end")

    def state(self, posting: Posting, state: PostingState, **columns: object) -> None:
        mark_sending(self.engine, self.lease, [posting.ref], self.now_ms)
        record_outcomes(self.engine, self.lease, [Outcome(*posting.ref, state, **columns)], self.now_ms)  # type: ignore[arg-type]

    # ------------------------------------------------------------------------------ what is seen

    def postings(self) -> list[Posting]:
        found = list_postings(self.engine, limit=10_000)
        return sorted(found, key=lambda p: (p.customer_id, p.meter_id, p.window_start_ms, p.seq))

    def held(self) -> dict[tuple[int, int, str], tuple[str, Decimal]]:
        """Reason and quantity by (meter, window number, account)."""
        with read_snapshot(self.engine) as connection:
            return {
                (row.meter_id, (row.window_start_ms - T0) // HOUR_MS, row.account): (row.reason, row.quantity)
                for row in connection.execute(select(holds))
            }

    def delivered(self) -> dict[tuple[str, int], Decimal]:
        """What Stripe has, by customer and meter."""
        found: dict[tuple[str, int], Decimal] = {}
        chains: dict[str, tuple[tuple[str, int], Decimal]] = {}
        for posting in self.postings():
            if posting.state in AT_STRIPE:
                key = posting.customer_id, posting.meter_id
                _, before = chains.get(posting.posting_key, (key, Decimal(0)))
                replacing = posting.mode in REPLACING_MODES
                total = posting.quantity_to if replacing else before + posting.quantity
                chains[posting.posting_key] = key, total
        for key, total in chains.values():
            found[key] = found.get(key, Decimal(0)) + total
        return found

    def check_chains(self) -> None:
        """Each chain has seq 1..n and from = previous to, and what is not at Stripe is taken back or unsettled.

        Links that replace bring the total: what they delivered is told apart from what they add.
        """
        chains: dict[str, list[Posting]] = {}
        for posting in self.postings():
            chains.setdefault(posting.posting_key, []).append(posting)
        for chain in chains.values():
            assert [p.seq for p in chain] == list(range(1, len(chain) + 1))
            assert [p.quantity_from for p in chain] == [Decimal(0), *[p.quantity_to for p in chain[:-1]]]
            brought = (*AT_STRIPE, PostingState.SUPERSEDED)
            at_stripe = sum((p.quantity for p in chain if p.state in brought), Decimal(0))
            if {p.state for p in chain} <= set(IN_CHAIN):
                if chain[-1].mode in REPLACING_MODES:
                    assert chain[-1].state is not PostingState.SUPERSEDED
                unreversed = sum(
                    (p.quantity for p in chain if p.state in (PostingState.VOID, PostingState.REVERSAL)),
                    Decimal(0),
                )
                assert chain[-1].quantity_to == at_stripe + unreversed

    def forget(self, seqs_above: Mapping[str, int]) -> None:
        """As after a restore: postings of these chains above a sequence number were never written."""
        from tollgate.ledger.tables import postings

        with ledger_transaction(self.engine) as connection:
            for key, seq in seqs_above.items():
                connection.execute(
                    delete(postings).where((postings.c.posting_key == key) & (postings.c.seq > seq))
                )

    def count(self, table: object) -> int:
        with read_snapshot(self.engine) as connection:
            return int(connection.execute(select(func.count()).select_from(table)).scalar_one())  # type: ignore[arg-type]
