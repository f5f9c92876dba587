"""The services around a period's end, in this process and on the stand-in's virtual time.

What is real: the stand-in for Stripe (a process, shared), the SDK, webhooks' gateway and projector, stripe_sync's
planner, sender and period keeper, and the ledger. What is not: Kafka (the journal is a list, webhooks are read from
Stripe's list of events) and the meter (usage is written as a flush would leave it).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
from click.testing import CliRunner
from prometheus_client import CollectorRegistry
from sqlalchemy import select

from sandbox.stripe.process import StandInControl, StripeStandIn
from services.cli.__main__ import cli
from services.stripe_sync.book import Book, Threads
from services.stripe_sync.bucket import TokenBucket
from services.stripe_sync.gateway import StripeGateway
from services.stripe_sync.leader import Leadership
from services.stripe_sync.leading import Leader
from services.stripe_sync.meter_watch import MeterWatch
from services.stripe_sync.metrics import SyncMetrics
from services.stripe_sync.period_keeper import PeriodKeeper
from services.stripe_sync.recorder import Recorder
from services.stripe_sync.sender import Sender, SenderLimits
from services.webhooks.event import event_from, is_wanted
from services.webhooks.gateway import StripeGateway as WebhooksGateway
from services.webhooks.metrics import Metrics as WebhooksMetrics
from services.webhooks.pace import Pace
from services.webhooks.projector import Batch, Projector
from tests.contract.ledger.postings_world import T0, World
from tollgate.contracts.journal import JournalEntry
from tollgate.ledger.catalogue import load_meter_set
from tollgate.ledger.customers import CustomerBook
from tollgate.ledger.directory import MappingRule
from tollgate.ledger.engine import ledger_transaction, read_snapshot
from tollgate.ledger.insertion import put
from tollgate.ledger.posting_rows import Posting
from tollgate.ledger.tables import holds, progress_instances, usage
from tollgate.metering.finalization import FinalizationTerms
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.faults import Faults
from tollgate.runtime.health import Health

KEY = "sk_test_periods"
HOUR_MS = 3_600_000
MINUTE_MS = 60_000
TERMS = FinalizationTerms(
    events_delay_ms=5 * MINUTE_MS, lead_ms=15 * MINUTE_MS, step_ms=HOUR_MS, delay_max_ms=72 * HOUR_MS
)
SILENCE_MS = 10 * MINUTE_MS
PARTITIONS = 2

Json = dict[str, Any]


def at_s(text: str) -> int:
    """A UTC moment such as `2027-01-31 12:30:00`, or a date, in epoch seconds."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def text_of(seconds: int) -> str:
    """The inverse; midnight as a date."""
    text = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
    return text.removesuffix(" 00:00:00")


class StandInClock:
    """The stand-in's frozen time, as the services' own."""

    def __init__(self) -> None:
        self.seconds = 0

    def now_ms(self) -> int:
        return self.seconds * 1000

    def monotonic_seconds(self) -> float:
        return float(self.seconds)

    async def sleep_seconds(self, seconds: float) -> None:
        await asyncio.sleep(0)


class ListJournal:
    """The journal as a list."""

    def __init__(self) -> None:
        self.entries: list[Posting] = []

    async def append(self, postings: Sequence[Posting]) -> dict[int, int]:
        self.entries += postings
        return {0: len(self.entries)}

    async def read_from(self, positions: Mapping[int, int]) -> tuple[list[JournalEntry], dict[int, int]]:
        return [], {}


@dataclass(frozen=True)
class Bill:
    """What an invoice says: its period, status, cents, and lines with units or cents."""

    start: str
    end: str
    status: str
    cents: int
    lines: tuple[tuple[str, int], ...]


class PeriodRig:
    """One ledger and a stand-in made new. Nothing happens between two calls."""

    def __init__(self, stand_in: StripeStandIn, control: StandInControl, url: str, start: str) -> None:
        control.reset()
        control.set_clock(at_s(start), frozen=True)
        self.control = control
        self.clock = StandInClock()
        self.clock.seconds = at_s(start)
        self.api = httpx.Client(
            base_url=stand_in.base_url,
            headers={"Authorization": f"Bearer {KEY}", "Stripe-Version": "2026-10-28.endive"},
            trust_env=False,
            timeout=30,
        )
        self.world = World.make(url, PARTITIONS, stripe_account=self.get("/v1/account")["id"])
        self.engine = self.world.engine
        self.registry = CollectorRegistry()
        self.ticking = True
        self._base_url = stand_in.base_url
        self._url = url
        self._events_done: set[str] = set()
        self._meters: dict[str, tuple[str, int]] = {}
        self._stop = asyncio.Event()

    async def __aenter__(self) -> PeriodRig:
        self._webhooks_gateway = WebhooksGateway(
            KEY, api_base=self._base_url, timeout_seconds=20, pace=Pace(1e9, self.clock)
        )
        self.projector = Projector(
            self._webhooks_gateway,
            CustomerBook(self.engine, (MappingRule.USER_IS_CUSTOMER_ID,)),
            self.clock,
            WebhooksMetrics(CollectorRegistry()),
            Faults(),
        )
        self._gateway = StripeGateway(
            KEY, api_base=self._base_url, connect_timeout_seconds=5, read_timeout_seconds=20
        )
        self._threads = Threads(4)
        self.book = Book(self.engine, self.world.lease, self._threads)
        metrics = SyncMetrics(self.registry)
        recorder = Recorder(self.book, self.clock, Faults())
        bucket = TokenBucket(1e9, 1_000_000, 0.0)
        watch = MeterWatch(self.book, self._gateway, self.clock, 1.0)
        self.sender = Sender(
            book=self.book,
            gateway=self._gateway,
            watch=watch,
            recorder=recorder,
            bucket=bucket,
            clock=self.clock,
            backoff=Backoff(1.0, 60.0, jitter=0.0),
            limits=SenderLimits(concurrency=8, summary_lag_seconds=3600.0, probe_seconds=30.0),
            metrics=metrics,
            may_send=lambda: True,
            faults=Faults(),
            on_stopped=lambda _: None,
        )
        self.keeper = PeriodKeeper(
            book=self.book,
            stripe=self._gateway,
            bucket=bucket,
            clock=self.clock,
            metrics=metrics,
            terms=TERMS,
            silence_ms=SILENCE_MS,
            check_seconds=10.0,
        )
        self.leader = Leader(
            lease=self.world.lease,
            leadership=Leadership(self.engine, self._threads, self.clock, "rig", 15.0),
            book=self.book,
            journal=ListJournal(),
            rules=self.world.rules,
            sender=self.sender,
            recorder=recorder,
            watch=watch,
            clock=self.clock,
            backoff=Backoff(1.0, 60.0, jitter=0.0),
            health=Health(self.clock),
            metrics=metrics,
            faults=Faults(),
            cadence_seconds=60.0,
            calls_per_second=100.0,
            plan_rows_max=1000,
            periods=self.keeper,
        )
        self._recording = asyncio.create_task(recorder.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._recording.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._recording
        await self._gateway.close()
        await self._webhooks_gateway.close()
        self._threads.close()
        self.api.close()
        self.engine.dispose()

    # -------------------------------------------------------------------------------------- at Stripe

    def post(self, path: str, form: Mapping[str, Any] | None = None) -> Json:
        return self._checked(self.api.post(path, data=dict(form or {})))

    def get(self, path: str) -> Json:
        return self._checked(self.api.get(path))

    def delete(self, path: str, **params: Any) -> Json:
        return self._checked(self.api.request("DELETE", path, params=params))

    def _checked(self, answer: httpx.Response) -> Json:
        assert answer.is_success, answer.text
        body: Json = answer.json()
        return body

    def meter(self, event_name: str = "calls") -> str:
        """The Billing Meter's id; made here and at Stripe when it is first asked for."""
        if event_name not in self._meters:
            form = {
                "display_name": event_name,
                "event_name": event_name,
                "default_aggregation[formula]": "sum",
            }
            stripe_id = self.post("/v1/billing/meters", form)["id"]
            self._meters[event_name] = (stripe_id, self.world.meter(event_name))
        return self._meters[event_name][0]

    def price(
        self,
        cents: int = 3,
        *,
        event_name: str = "calls",
        interval: str = "month",
        every: int = 1,
        **terms: Any,
    ) -> str:
        """A metered price: so many cents a unit, unless `terms` say something else."""
        product = self.post("/v1/products", {"name": event_name})["id"]
        form = {
            "currency": "usd",
            "product": product,
            "recurring[interval]": interval,
            "recurring[interval_count]": every,
            "recurring[usage_type]": "metered",
            "recurring[meter]": self.meter(event_name),
        }
        form |= terms or {"unit_amount": cents}
        return str(self.post("/v1/prices", form)["id"])

    def customer(self) -> str:
        return str(self.post("/v1/customers", {"name": "c"})["id"])

    def subscribe(self, customer: str, *prices: str, **terms: Any) -> Json:
        form = {f"items[{number}][price]": price for number, price in enumerate(prices)}
        return self.post("/v1/subscriptions", {"customer": customer, **form, **terms})

    def bills(self, customer: str) -> list[Bill]:
        """The customer's invoices, oldest first, but for the empty ones that begin subscriptions."""
        found = []
        for body in reversed(self.get(f"/v1/invoices?customer={customer}&limit=100")["data"]):
            if body["billing_reason"] == "subscription_create" and body["total"] == 0:
                continue
            lines = tuple((line["quantity_decimal"], line["amount"]) for line in body["lines"]["data"])
            found.append(
                Bill(
                    text_of(body["period_start"]),
                    text_of(body["period_end"]),
                    body["status"],
                    body["total"],
                    lines,
                )
            )
        return found

    # --------------------------------------------------------------------------------------- at home

    def command(self, *words: str) -> tuple[int, str]:
        """Exit code and output of a `tollgate` command."""
        environment = {
            "TOLLGATE_LEDGER__URL": self._url,
            "STRIPE_API_KEY": KEY,
            "TOLLGATE_STRIPE__API_BASE": self._base_url,
        }
        result = CliRunner().invoke(cli, words, env=environment)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return result.exit_code, result.output

    def preview(self, customer: str) -> tuple[int, Any]:
        """Exit code and document of `tollgate preview --json`."""
        code, output = self.command("preview", customer, "--json")
        return code, json.loads(output)

    def apply(self, meters_yaml: str) -> None:
        """`tollgate meters apply` of a file; its meters are known here from then on."""
        code, output = self.command("meters", "apply", meters_yaml, "--yes")
        assert code == 0, output
        at_stripe = {
            body["event_name"]: body["id"] for body in self.get("/v1/billing/meters?limit=100")["data"]
        }
        for version in load_meter_set(self.engine).meters:
            event_name = version.meter.name
            self._meters[event_name] = (at_stripe[event_name], version.meter_id)

    def use(self, customer: str, when: str, units: int | Decimal, *, event_name: str = "calls") -> None:
        """The meter has counted `units` more for the customer, of an event at `when`."""
        self.meter(event_name)
        meter_id, event_ms = self._meters[event_name][1], at_s(when) * 1000
        window_ms = event_ms - event_ms % HOUR_MS
        account = f"user:{customer}"
        place = (
            usage.c.meter_id == meter_id,
            usage.c.window_start_ms == window_ms,
            usage.c.account == account,
        )
        with read_snapshot(self.engine) as connection:
            known = connection.execute(select(usage).where(*place)).first()
        before, latest_ms = (Decimal(0), 0) if known is None else (known.quantity, known.latest_event_ms)
        # World counts windows from a moment of its own; here they are given by their start.
        self.world.use(
            meter_id,
            account,
            str(before + units),
            window=(window_ms - T0) // HOUR_MS,
            at_ms=max(event_ms, latest_ms),
        )

    def tick(self, when: str | None = None) -> None:
        """Every partition has been counted up to a tick of `when` (now): nothing ingested before is left."""
        tick_ms = self.clock.now_ms() if when is None else at_s(when) * 1000
        rows = [
            {
                "partition": partition,
                "instance": "ingest-1",
                "rows_received": 0,
                "tick_ms": tick_ms,
                "tick_acknowledged": 0,
                "tick_received": 0,
            }
            for partition in range(PARTITIONS)
        ]
        with ledger_transaction(self.engine) as connection:
            put(connection, progress_instances, rows)

    async def project(self) -> None:
        """Every webhook Stripe has sent since is projected, in order."""
        fresh: list[Json] = []
        after = ""
        while True:
            page = self.get(f"/v1/events?limit=100{after}")
            fresh += [event for event in page["data"] if event["id"] not in self._events_done]
            if not page["has_more"] or any(event["id"] in self._events_done for event in page["data"]):
                break
            after = f"&starting_after={page['data'][-1]['id']}"
        batch = Batch()
        for body in reversed(fresh):
            self._events_done.add(body["id"])
            if is_wanted(body["type"]):
                await self.projector.project(event_from(body), batch)

    async def flush(self) -> None:
        """Plan, journal and send until nothing is left to do."""
        for _ in range(20):
            planned = await self.leader.plan_once(self._stop)
            sent = await self.send()
            if not planned and not sent:
                return
        raise AssertionError("planning and sending do not come to an end")

    async def send(self) -> int:
        """Send what is due until nothing is; how many postings."""
        sent = 0
        while started := await self.sender.dispatch():
            sent += started
            while self.sender.in_flight:  # noqa: ASYNC110 - the sender tells nobody
                await asyncio.sleep(0.001)
        return sent

    async def live(self) -> None:
        """All services do what they do at this moment: webhooks, the keeper, planning and sending, the keeper again."""
        if self.ticking:
            self.tick()
        await self.project()
        await self.keeper.look()
        await self.flush()
        await self.keeper.look()
        await self.project()

    def jump(self, when: str) -> None:
        """Time goes on, and with it Stripe; ours do nothing."""
        self.clock.seconds = at_s(when)
        self.control.set_clock(at_s(when), frozen=True)

    async def at(self, when: str) -> None:
        """Time goes on to `when`, and all services live there."""
        self.jump(when)
        await self.live()

    def held(self) -> dict[str, Decimal]:
        """What is held, by reason."""
        found: dict[str, Decimal] = {}
        with read_snapshot(self.engine) as connection:
            for row in connection.execute(select(holds.c.reason, holds.c.quantity)):
                found[row.reason] = found.get(row.reason, Decimal(0)) + row.quantity
        return found

    def metric(self, name: str, **labels: str) -> float:
        value = self.registry.get_sample_value(f"tollgate_stripe_sync_{name}", labels)
        assert value is not None, name
        return value


@contextlib.asynccontextmanager
async def period_rig(stand_in: StripeStandIn, url: str, start: str) -> AsyncIterator[PeriodRig]:
    """A rig at `start`; nothing of it is left open."""
    with stand_in.control as control:
        rig = PeriodRig(stand_in, control, url, start)
        async with rig:
            yield rig
