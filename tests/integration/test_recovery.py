"""A ledger restored to an earlier moment ends where it would have ended: the journal has the postings it lost."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from sandbox.postgres_binaries import find_binaries, without_pg_names
from sandbox.stripe.process import StripeStandIn
from services.webhooks.gateway import StripeGateway
from services.webhooks.pace import Pace
from tests.integration.stripe_sync_rig import KEY, Rig
from tests.parts.kafka import BrokerSettings
from tollgate.ledger.billing import Invoice
from tollgate.ledger.controls import load_controls
from tollgate.ledger.customers import CustomerBook
from tollgate.ledger.directory import DEFAULT_RULES
from tollgate.ledger.reconciliation_subjects import find_subjects
from tollgate.ledger.reconciliation_views import load_view
from tollgate.metering.comparison import compare_invoice, compare_postings
from tollgate.runtime.clock import SystemClock

HOUR_MS = 3_600_000
DAY_SECONDS = 86_400
CUSTOMERS = 3
STEPS = 6
"""Ten minutes each: an hour is lost."""


@pytest.fixture
def rig(ledger_url: str, broker_settings: BrokerSettings, tmp_path: Path) -> Iterator[Rig]:
    """A stand-in whose customers signed up half a day ago, and a ledger of either kind."""
    with StripeStandIn.start(tmp_path / "stripe.sqlite3") as stand_in:
        with stand_in.control as control:
            control.set_clock(int(time.time()) - DAY_SECONDS // 2)
        made = Rig.make(ledger_url, broker_settings, stand_in, tmp_path)
        yield made
        made.close()


class Backup:
    """A ledger as it was: a dump by PostgreSQL's own tools, or a copy of SQLite's file."""

    def __init__(self, url: str, path: Path) -> None:
        self._url = url
        self._path = path

    @property
    def hot(self) -> bool:
        """Whether it is taken while services write."""
        return self._url.startswith("postgresql")

    def take(self) -> None:
        if self.hot:
            self._run("pg_dump", "--format=custom", f"--file={self._path}", self._libpq())
        else:
            shutil.copyfile(self._file, self._path)

    def restore(self) -> None:
        """Everything since is gone, as if it had never been written. Nobody may be connected."""
        if not self.hot:
            for suffix in ("-wal", "-shm"):
                Path(f"{self._file}{suffix}").unlink(missing_ok=True)
            shutil.copyfile(self._path, self._file)
            return
        with psycopg.connect(self._libpq(), autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        self._run("pg_restore", "--exit-on-error", "--no-owner", f"--dbname={self._libpq()}", str(self._path))

    @property
    def _file(self) -> str:
        return self._url.removeprefix("sqlite:///")

    def _libpq(self) -> str:
        parts = urlsplit(self._url)
        return urlunsplit(("postgresql", parts.netloc, parts.path, parts.query, ""))

    def _run(self, program: str, *arguments: str) -> None:
        binaries = find_binaries(os.environ, None)
        done = subprocess.run(
            [str(binaries / program), *arguments],
            env=without_pg_names(os.environ),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr


def _subscribe(rig: Rig, name: str, customers: list[str]) -> dict[str, str]:
    """Each customer subscribed to a daily price on the meter; subscription ids by customer."""
    stripe = rig.client.v1
    (meter,) = [m for m in stripe.billing.meters.list({"limit": 100}) if m.event_name == name]
    product = stripe.products.create({"name": name})
    price = stripe.prices.create(
        {
            "currency": "usd",
            "product": product.id,
            "unit_amount": 1,
            "recurring": {"interval": "day", "usage_type": "metered", "meter": meter.id},
        }
    )
    return {
        customer: stripe.subscriptions.create({"customer": customer, "items": [{"price": price.id}]}).id
        for customer in customers
    }


def _final_invoices(rig: Rig, subscriptions: dict[str, str]) -> dict[str, Invoice]:
    """The final invoice of each customer's first day, as webhooks read it."""
    rig.control.advance(DAY_SECONDS // 2 + 2 * 3600)
    numbers = {}
    for customer, subscription in subscriptions.items():
        invoices = rig.client.v1.invoices.list({"subscription": subscription, "limit": 100}).data
        (cycle,) = [i for i in invoices if i.billing_reason == "subscription_cycle" and i.status == "paid"]
        numbers[customer] = cycle.id

    async def read() -> dict[str, Invoice]:
        gateway = StripeGateway(
            KEY, api_base=rig.stand_in.base_url, timeout_seconds=10, pace=Pace(100, SystemClock())
        )
        try:
            return {customer: await gateway.invoice(str(number)) for customer, number in numbers.items()}
        finally:
            await gateway.close()

    return asyncio.run(read())


def _an_hour(rig: Rig, meter: int, customers: list[str], settled: Callable[[int], None]) -> None:
    """Usage grows in old windows and new ones, ten minutes of Stripe's time a step."""
    for step in range(STEPS):
        for number, customer in enumerate(customers):
            rig.use(meter, customer, 100 + 10 * step + number, 0)
            rig.use(meter, customer, 7 * step + number + 1, 1 + step % 3)
        settled(step)


def _truth(rig: Rig, customers: list[str]) -> dict[str, int]:
    """Each customer's usage at the end of the hour, by the same arithmetic."""
    last: dict[tuple[str, int], int] = {}
    for step in range(STEPS):
        for number, customer in enumerate(customers):
            last[customer, 0] = 100 + 10 * step + number
            last[customer, 1 + step % 3] = 7 * step + number + 1
    return {c: sum(q for (owner, _), q in last.items() if owner == c) for c in customers}


def test_a_restored_ledger_ends_at_the_same_invoices(rig: Rig, tmp_path: Path) -> None:
    """An hour of postings made after the backup: imported, waited for, never doubled; invoices to the unit."""
    backup = Backup(rig.url, tmp_path / "backup")
    meter, name = rig.meter()
    customers = [rig.customer(name) for _ in range(CUSTOMERS)]
    subscriptions = _subscribe(rig, name, customers)
    rig.control.real_time()
    rig.base_ms = int(time.time() * 1000) // HOUR_MS * HOUR_MS - 6 * HOUR_MS
    for customer in customers:
        rig.use(meter, customer, 50, 0)
    first = rig.start()
    rig.wait_for_totals(name, dict.fromkeys(customers, 50))

    if not backup.hot:
        assert first.end() == 0
        rig.world.engine.dispose()
    backup.take()
    saved_offset = rig.world.offset
    if not backup.hot:
        first = rig.start()

    def settled(step: int) -> None:
        expected = {
            customer: 100
            + 10 * step
            + number
            + sum(7 * last + number + 1 for last in {s % 3: s for s in range(step + 1)}.values())
            for number, customer in enumerate(customers)
        }
        rig.wait_for_totals(name, expected)
        rig.control.advance(600)

    _an_hour(rig, meter, customers, settled)
    truth = _truth(rig, customers)
    lost = len(rig.world.postings()) - CUSTOMERS
    assert lost > STEPS * CUSTOMERS
    first.end(signal.SIGKILL)
    before = rig.control.meter_events(event_name=name)
    rig.world.engine.dispose()

    backup.restore()
    rig.world.offset = saved_offset
    assert len(rig.world.postings()) == CUSTOMERS, "the hour is gone"
    second = rig.start()
    rig.wait(lambda: len(rig.world.postings()) == CUSTOMERS + lost, "the lost postings to be imported")
    rig.wait(lambda: second.metric("tollgate_stripe_sync_planning_waiting") == 1, "planning to wait")
    rig.wait(lambda: rig.world.delivered().get((customers[0], meter)) == truth[customers[0]], "settling")
    assert any(control.startswith("journal_wait:") for control in load_controls(rig.world.engine))
    assert rig.control.meter_events(event_name=name) == before, "not one event more"

    # The meter folds the log again from where the ledger stands: the same counts at the same offsets.
    _an_hour(rig, meter, customers, lambda _: None)
    rig.wait(lambda: second.metric("tollgate_stripe_sync_planning_waiting") == 0, "planning to go on")
    rig.wait_for_totals(name, truth)
    assert rig.control.meter_events(event_name=name) == before
    for customer in customers:
        rig.use(meter, customer, 1000, 4)
    truth = {customer: quantity + 1000 for customer, quantity in truth.items()}
    rig.wait_for_totals(name, truth)
    rig.world.check_chains()
    identifiers = [event["identifier"] for event in rig.control.meter_events(event_name=name)]
    assert len(identifiers) == len(set(identifiers)) == len(before) + CUSTOMERS
    assert second.end() == 0

    invoices = _final_invoices(rig, subscriptions)
    billed = {c: sum(int(line.quantity) for line in invoice.lines) for c, invoice in invoices.items()}
    assert billed == truth
    book = CustomerBook(rig.world.engine, DEFAULT_RULES)
    for invoice in invoices.values():
        book.apply_invoice(invoice, sequence=book.take_sequence(), now_ms=int(time.time() * 1000))
    for subject in find_subjects(rig.world.engine):
        view = load_view(rig.world.engine, subject)
        posted = compare_postings(view.in_period, view.missing)
        assert posted.counted == posted.delivered == truth[subject.customer_id]
        assert posted.findings == ()
        assert view.invoice is not None
        assert compare_invoice(view.links, view.invoice) == []
