"""From a gateway's log line to Stripe, every service a real process, each killed three times on the way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine

from sandbox.demo.cast import LOOKUP_KEYS, yesterday_s
from sandbox.demo.story import CAPTURE
from sandbox.shop import Shop
from sandbox.stack import BRISK, SERVICES, Stack, StackSettings
from sandbox.stripe.process import StandInControl, StripeStandIn
from sandbox.traffic.calls import HOUR_MS, Identity, Mix, generate_calls
from sandbox.traffic.formats import Format
from sandbox.traffic.history import HistoryWriter, read_history
from sandbox.traffic.sender import Sending, Target, send_calls
from sandbox.traffic.truth import Truth, tell_truth
from tests.agreement import compare, expected_at_stripe, load_outcomes, stripe_totals
from tests.e2e.schedule import draw_schedule
from tollgate.ledger.engine import open_ledger
from tollgate.ledger.verify import verify_ledger
from tollgate.runtime.settings import KafkaSettings

METERS = Path(__file__).parents[2] / "meters.yaml"
SEED = 20261122


@pytest.mark.kafka
@pytest.mark.postgres
@pytest.mark.slow
@pytest.mark.timeout(280)
def test_usage_equals_the_history_when_every_service_is_killed_three_times(
    kafka_settings: KafkaSettings, postgres_url: str, tmp_path: Path
) -> None:
    """200,000 events with 12 kills: ledger, Stripe and history agree to the unit, and the law holds at each check."""
    run_main_path(kafka_settings, postgres_url, tmp_path, events=200_000, calls_per_second=7_000)


@pytest.mark.kafka
@pytest.mark.postgres
@pytest.mark.nightly
@pytest.mark.timeout(3_600)
def test_two_million_events_and_forty_kills(
    kafka_settings: KafkaSettings, postgres_url: str, tmp_path: Path
) -> None:
    """The same with 2,000,000 events and each service killed ten times."""
    run_main_path(
        kafka_settings, postgres_url, tmp_path, events=2_000_000, calls_per_second=7_000, kills_each=10
    )


def run_main_path(
    kafka: KafkaSettings,
    ledger_url: str,
    directory: Path,
    *,
    events: int,
    calls_per_second: float,
    kills_each: int = 3,
) -> None:
    """Tell the whole story once; every assertion is an equality with the history file's own count."""
    with StripeStandIn.start(directory / "stripe.sqlite3") as stand_in:
        settings = StackSettings(
            directory=directory,
            bootstrap_servers=kafka.bootstrap_servers,
            topic_prefix=kafka.topic_prefix,
            ledger_url=ledger_url,
            stripe_url=stand_in.base_url,
            capture=CAPTURE,
            extra=BRISK,
        )
        with (
            Stack(settings) as stack,
            Shop(stand_in.base_url, settings.stripe_key) as shop,
            StandInControl(stand_in.base_url) as control,
        ):
            control.set_clock(yesterday_s(int(time.time())))
            secret = shop.register_webhooks(f"{stack.url('webhooks')}/stripe/webhooks")
            stack.configure("webhooks", TOLLGATE_STRIPE__WEBHOOK_SECRETS=secret)
            stack.tollgate("init")
            stack.tollgate("meters", "apply", str(METERS), "--yes")
            token = stack.tollgate("tokens", "create", "e2e").strip()
            stack.start(*SERVICES)
            plan = Plan(events, calls_per_second, kills_each)
            with closing_ledger(ledger_url) as ledger:
                sending = _send_through_kills(stack, shop, control, token, ledger, directory, plan)
                truth = tell_truth(read_history(directory / "history.jsonl"))
                _assert_everything_agrees(stack, control, ledger, truth, sending)


@contextmanager
def closing_ledger(url: str) -> Iterator[Engine]:
    """The ledger, whose connections are closed whatever happens."""
    engine = open_ledger(url)
    try:
        yield engine
    finally:
        engine.dispose()


@dataclass(frozen=True, slots=True)
class Plan:
    """How much, how fast, how deadly."""

    events: int
    calls_per_second: float
    kills_each: int


def _send_through_kills(
    stack: Stack,
    shop: Shop,
    control: StandInControl,
    token: str,
    engine: Engine,
    directory: Path,
    plan: Plan,
) -> Sending:
    prices = shop.find_prices(LOOKUP_KEYS)
    customers = [shop.sign_up(f"c{number}", f"c{number}@example.com", prices) for number in range(6)]
    control.real_time()
    known, unknown = customers[:4], customers[4:]
    identities = [Identity(customer=shopper.customer, user=shopper.customer) for shopper in known]
    identities += [Identity(customer=known[0].customer, user=known[0].email)]
    # Known to the gateway by an address Stripe has not heard of yet: held until it has.
    identities += [Identity(customer=shopper.customer, user=f"new-{shopper.email}") for shopper in unknown]
    calls = generate_calls(
        plan.events,
        seed=SEED,
        identities=identities,
        now_ms=int(time.time() * 1000),
        spread_ms=6 * HOUR_MS,
        mix=Mix(duplicate=0.01, late=0.001, future=0.0005, malformed=0.001),
    )
    kills = list(draw_schedule(SEED, SERVICES, plan.kills_each))
    changes = [(0.3, unknown[0]), (0.6, unknown[1])]
    checks = 0

    def on_progress(sending: Sending) -> None:
        nonlocal checks
        share = sending.accepted / plan.events
        while changes and share >= changes[0][0]:
            _, shopper = changes.pop(0)
            shop.change_email(shopper, f"new-{shopper.email}")
        while kills and share >= kills[0].at:
            victim = kills.pop(0).service
            if stack.child(victim).running:
                stack.kill(victim)
            stack.start(victim, wait=False)
            violations = verify_ledger(engine)
            assert violations == [], f"after killing {victim} at {share:.0%}"
            checks += 1

    with HistoryWriter(directory / "history.jsonl") as history:
        sending = asyncio.run(
            send_calls(
                calls,
                Target((stack.url("ingest"),), token),
                history,
                formats=(Format.KONG, Format.MOESIF, Format.CLOUDEVENTS),
                calls_per_second=plan.calls_per_second,
                on_progress=on_progress,
            )
        )
    assert sending.accepted == plan.events
    assert not kills, "the schedule was not carried out"
    assert checks == plan.kills_each * len(SERVICES)
    return sending


def _assert_everything_agrees(
    stack: Stack, control: StandInControl, engine: Engine, truth: Truth, sending: Sending
) -> None:
    _wait_for(
        lambda: all(ended >= truth.outcomes[name] for name, ended in load_outcomes(engine).items()),
        seconds=60,
        what="the meter to catch up",
    )
    _wait_for(
        lambda: stripe_totals(control) == expected_at_stripe(truth),
        seconds=60,
        what="Stripe's totals to equal the history's",
    )
    agreement = compare(engine, control, truth, sending.repeated)
    assert agreement.holds, agreement.words()
    assert verify_ledger(engine) == []
    stack.tollgate("verify", "--refold", timeout_seconds=240)


def _wait_for(reached: Callable[[], bool], *, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.5)
