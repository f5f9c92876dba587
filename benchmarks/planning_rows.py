"""Planning: what stripe_sync's passes cost, on PostgreSQL, by the number of customers and of usage rows.

Owns two rows: everybody's usage planned and written down at once, and a pass in which nothing has changed beside ten
million usage rows. The rows other services would have written are made by the database itself. Nothing is sent.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal

import psycopg

from benchmarks.installation import Ground
from benchmarks.processor import pinned_to
from benchmarks.row import Bound, Measure, Row, assert_counts
from services.stripe_sync.plan import Rules
from tollgate.ledger.catalogue import apply_meters
from tollgate.ledger.engine import Engine, open_ledger
from tollgate.ledger.init import Pins, initialise
from tollgate.ledger.leases import Lease, take_lease
from tollgate.ledger.planning import PlanReport, plan_postings
from tollgate.metering.declaration import parse_meters

METERS = ("calls", "tokens", "bytes")
PARTITIONS = 24
ROWS_A_PLAN = 5_000
PASSES = 50
_HOUR_MS = 3_600_000
_NOW_MS = 1_800_000_000_000 - 1_800_000_000_000 % _HOUR_MS + 30 * 60_000
_DECLARATION = "meters:\n" + "".join(
    f"  - {{name: {name}, metric: count, stripe: {{mode: delta, send: live, event_name: {name}}}}}\n"
    for name in METERS
)


@dataclass(frozen=True, slots=True)
class _Book:
    """One ledger with meters, and nothing counted."""

    url: str
    engine: Engine
    lease: Lease

    def run(self, statement: str, **values: object) -> int:
        """Run SQL as the services that are not here would have; returns the rows it touched."""
        with psycopg.connect(self.url.replace("+psycopg", ""), autocommit=True) as connection:
            return connection.execute(statement, values).rowcount

    def read(self, statement: str) -> tuple[object, ...]:
        """The first row of a query."""
        with psycopg.connect(self.url.replace("+psycopg", ""), autocommit=True) as connection:
            row = connection.execute(statement).fetchone()
            assert row is not None
            return tuple(row)

    def plan(self) -> PlanReport:
        return plan_postings(self.engine, self.lease, Rules("benchmark"), _NOW_MS, ROWS_A_PLAN)


@contextmanager
def _book(ground: Ground) -> Iterator[_Book]:
    name = f"bench_planning_{time.time_ns()}"
    url = ground.postgres.create_database(name)
    try:
        engine = open_ledger(url)
        try:
            pins = Pins(
                kafka_cluster_id="",
                events_topic="gateway.events",
                partitions=PARTITIONS,
                stripe_account="",
                stripe_mode="test",
                id_seed_fingerprint="",
                ledger_id="benchmark",
            )
            initialise(engine, pins, PARTITIONS, _NOW_MS)
            apply_meters(engine, parse_meters(_DECLARATION, "benchmark", ()), _DECLARATION, 0)
            lease = take_lease(engine, "stripe_sync", "benchmark", None, _NOW_MS)
            assert lease is not None
            book = _Book(url, engine, lease)
            # The meters have been on for long: their first pass walks over all usage there is.
            book.plan()
            yield book
        finally:
            engine.dispose()
    finally:
        ground.postgres.drop_database(name)


def everybody_planned(ground: Ground, customers: int) -> Row:
    """A posting for each of three meters of every customer."""
    postings = customers * len(METERS)
    with _book(ground) as book:
        _make_customers(book, customers)
        _count_usage(book, customers, hours=1)
        book.run("ANALYZE")
        with pinned_to(ground.cores.measured):
            started, cpu = time.perf_counter(), time.process_time()
            planned = 0
            while (report := book.plan()).more or report.planned:
                planned += report.planned
            seconds, spent = time.perf_counter() - started, time.process_time() - cpu
        found = book.read("SELECT count(*), count(DISTINCT posting_key), sum(quantity_to) FROM postings")
        assert_counts("postings planned", planned, postings)
        # Usage of account n under each meter is n + 1: see `_count_usage`.
        assert_counts(
            "postings, their chains and their sum",
            found,
            (postings, postings, Decimal(len(METERS) * customers * (customers + 1) // 2)),
        )
    return Row(
        name=f"plan {customers:,} customers x {len(METERS)} meters",
        unit="posting",
        count=planned,
        seconds=seconds,
        cpu_us=spent / planned * 1e6,
        bound=Bound(Measure.RATE, floor=15_000, target=15_000),
        bare="",
        bare_us=None,
        notes={"rows_a_plan": ROWS_A_PLAN},
    )


def nothing_changed(ground: Ground, rows: int) -> Row:
    """A pass that finds nothing to do, beside `rows` usage rows that were planned long ago."""
    customers = 10_000
    hours = max(1, rows // (customers * len(METERS)))
    with _book(ground) as book:
        _make_customers(book, customers)
        made = _count_usage(book, customers, hours=hours)
        # They were planned: the cursors stand where the counts do.
        book.run("INSERT INTO plan_cursors SELECT partition, next_offset FROM progress")
        book.run("VACUUM ANALYZE")
        with pinned_to(ground.cores.measured):
            book.plan()
            started, cpu = time.perf_counter(), time.process_time()
            reports = [book.plan() for _ in range(PASSES)]
            seconds, spent = time.perf_counter() - started, time.process_time() - cpu
        assert_counts("slots looked at", [report.candidates for report in reports], [0] * PASSES)
        assert_counts("usage rows", book.read("SELECT count(*) FROM usage"), (made,))
    return Row(
        name=f"a pass with nothing changed, {made:,} usage rows",
        unit="plan",
        count=PASSES,
        seconds=seconds,
        cpu_us=spent / PASSES * 1e6,
        bound=Bound(Measure.RATE, floor=100, target=100),
        bare="",
        bare_us=None,
        notes={"milliseconds_a_pass": round(seconds / PASSES * 1000, 2)},
    )


def _make_customers(book: _Book, customers: int) -> None:
    """Each with an account of its own and an item for each meter, in a period that is open."""
    book.run(
        "INSERT INTO mappings (account, customer_id, from_ms, to_ms, rule, created_ms) "
        "SELECT 'user:u' || n, 'cus_' || n, 0, NULL, 'benchmark', 0 FROM generate_series(0, %(last)s) n",
        last=customers - 1,
    )
    for name in METERS:
        book.run(
            "INSERT INTO item_periods (item_id, period_start_ms, period_end_ms, subscription_id, customer_id, "
            "price_id, event_name, state, sequence) SELECT %(name)s || n, 0, %(end)s, 'sub_' || n, 'cus_' || n, "
            "'price', %(name)s, 'open', 1 FROM generate_series(0, %(last)s) n",
            name=name,
            end=2 * _NOW_MS,
            last=customers - 1,
        )


def _count_usage(book: _Book, customers: int, hours: int) -> int:
    """Usage of n + 1 for account n, meter and hour, over the partitions; returns the rows made."""
    indexes = ("ix_usage_changed", "ix_usage_account", "ix_usage_window")
    definitions = [
        str(book.read(f"SELECT indexdef FROM pg_indexes WHERE indexname = '{name}'")[0]) for name in indexes
    ]
    for name in indexes:
        book.run(f"DROP INDEX {name}")
    made = book.run(
        "INSERT INTO usage (partition, meter_id, window_start_ms, account, dimensions, quantity, events, unvalued, "
        "latest_event_ms, order_ms, order_offset, changed_offset) "
        "SELECT n %% %(partitions)s, m.meter_id, %(now)s - %(now)s %% 3600000 - h * 3600000::bigint, 'user:u' || n, '', "
        "n + 1, n + 1, 0, %(now)s - h * 3600000::bigint, 0, 0, n / %(partitions)s + 1 "
        "FROM generate_series(0, %(hours)s) h, meters m, generate_series(0, %(last)s) n",
        partitions=PARTITIONS,
        now=_NOW_MS,
        hours=hours - 1,
        last=customers - 1,
    )
    for definition in definitions:
        book.run(definition)
    book.run("UPDATE progress SET next_offset = %(last)s", last=customers)
    return made
