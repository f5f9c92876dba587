"""The demo, step by step: start, sell, send, kill, settle, prove.

Owns the order of events and the exit code. Everything is done as an operator would: through the command line and
HTTP; the ledger is read, never written.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sandbox.demo.cast import Cast, hire_cast, yesterday_s
from sandbox.demo.parts import Parts
from sandbox.demo.report import print_outcomes, print_usage
from sandbox.shop import Shop
from sandbox.stack import BRISK, CommandFailed, Stack, StackSettings
from sandbox.stripe.process import StandInControl
from sandbox.traffic.calls import generate_calls
from sandbox.traffic.formats import Format
from sandbox.traffic.history import HistoryWriter, read_history
from sandbox.traffic.sender import Sending, Target, send_calls
from sandbox.traffic.truth import POSTED, Truth, tell_truth
from tollgate.ledger.engine import open_ledger
from tollgate.ledger.progress import load_progress

CAPTURE = (
    "response_header:x-tokens-in",
    "response_header:x-tokens-out",
    "response_header:x-model",
    "data:tokens_in",
    "data:tokens_out",
    "data:model",
)
SETTLE_SECONDS = 60.0
KILL_METER_AT = 0.35
KILL_SYNC_AT = 0.65


@dataclass(frozen=True, slots=True)
class Story:
    """What is told, and to whom."""

    events: int
    seed: int
    meters_path: Path
    directory: Path
    console: Console


def tell(story: Story, parts: Parts, *, linger: Callable[[Stack, str], None] | None = None) -> bool:
    """Run the demo; returns whether every number agreed. `linger` is called before everything is stopped."""
    console = story.console
    settings = StackSettings(
        directory=story.directory,
        bootstrap_servers=parts.bootstrap_servers,
        topic_prefix=parts.topic_prefix,
        ephemeral=parts.ephemeral,
        ledger_url=parts.ledger_url,
        stripe_url=parts.stripe.base_url,
        capture=CAPTURE,
        extra=BRISK,
    )
    with (
        Stack(settings) as stack,
        Shop(parts.stripe.base_url, settings.stripe_key) as shop,
        StandInControl(parts.stripe.base_url) as control,
    ):
        control.set_clock(yesterday_s(int(time.time())))
        secret = shop.register_webhooks(f"{stack.url('webhooks')}/stripe/webhooks")
        stack.configure("webhooks", TOLLGATE_STRIPE__WEBHOOK_SECRETS=secret)
        console.print(stack.tollgate("init").rstrip())
        console.print(stack.tollgate("meters", "apply", str(story.meters_path), "--yes").rstrip())
        token = stack.tollgate("tokens", "create", "demo-gateway").strip()
        stack.start("webhooks", "ingest", "meter", "stripe_sync")
        console.print("Services  " + ", ".join(f"{n} {stack.url(n)}" for n in stack.ports))
        cast = hire_cast(shop)
        control.real_time()
        console.print("Customers " + ", ".join(f"{s.name} {s.customer}" for s in cast.shoppers))
        history = story.directory / "history.jsonl"
        _send(story, stack, cast, token, history)
        truth = tell_truth(read_history(history))
        good = _settle_and_prove(story, parts, stack, control, cast, truth)
        if linger is not None:
            linger(stack, token)
    return good


def _send(story: Story, stack: Stack, cast: Cast, token: str, history: Path) -> None:
    console = story.console
    calls = generate_calls(
        story.events, seed=story.seed, identities=cast.identities, now_ms=int(time.time() * 1000)
    )
    kills = [(KILL_METER_AT, "meter"), (KILL_SYNC_AT, "stripe_sync")]
    columns = (TextColumn("Sending  "), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("events", total=story.events)

        def on_progress(sending: Sending) -> None:
            progress.update(task, completed=sending.accepted)
            while kills and sending.accepted >= kills[0][0] * story.events:
                _, name = kills.pop(0)
                pid = stack.kill(name)
                console.print(f"[yellow]kill -9   {name} (pid {pid}) after {sending.accepted:,} events[/]")
                stack.start(name, wait=False)

        started = time.monotonic()
        with HistoryWriter(history) as writer:
            target = Target((stack.url("ingest"),), token)
            sending = asyncio.run(
                send_calls(
                    calls,
                    target,
                    writer,
                    formats=(Format.KONG, Format.MOESIF, Format.CLOUDEVENTS),
                    on_progress=on_progress,
                )
            )
    seconds = time.monotonic() - started
    console.print(
        f"Sent      {sending.accepted:,} events in {seconds:.1f} s ({sending.accepted / seconds:,.0f}/s), "
        f"as Kong, Moesif and CloudEvents log them; {sending.retries} requests had to be repeated"
    )


def _settle_and_prove(
    story: Story, parts: Parts, stack: Stack, control: StandInControl, cast: Cast, truth: Truth
) -> bool:
    console = story.console
    expected = _by_customer(truth)
    outcomes: dict[str, int] = {}
    stripe: dict[tuple[str, str], Decimal] = {}
    deadline = time.monotonic() + SETTLE_SECONDS
    with console.status("Waiting until the last event is posted"):
        while time.monotonic() < deadline:
            outcomes = _outcomes(parts.ledger_url)
            stripe = _stripe_totals(control)
            if outcomes.get("received", 0) >= truth.outcomes["received"] and stripe == expected:
                break
            time.sleep(0.25)
    console.print()
    good = print_outcomes(console, outcomes, truth.outcomes)
    rejected = truth.outcomes["rejected"]
    console.print(f"{rejected:,} malformed entries were answered as rejected and lie in gateway.dead.\n")
    names = {shopper.customer: shopper.name for shopper in cast.shoppers}
    good &= print_usage(console, names, _ledger_totals(stack), stripe, expected)
    try:
        console.print(stack.tollgate("verify").rstrip())
    except CommandFailed as failed:
        good = False
        console.print(f"{failed.stdout}{failed.stderr}")
    return good


def _by_customer(truth: Truth) -> dict[tuple[str, str], Decimal]:
    totals: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    for (meter, customer, _), quantity in truth.by_customer.items():
        if meter in POSTED and quantity:
            totals[customer, meter] += quantity
    return dict(totals)


def _outcomes(ledger_url: str) -> dict[str, int]:
    engine = open_ledger(ledger_url)
    try:
        rows = load_progress(engine, None).values()
    finally:
        engine.dispose()
    names = ("received", "counted", "unmatched", "duplicate", "late", "dead")
    return {name: sum(getattr(row, name) for row in rows) for name in names}


def _stripe_totals(control: StandInControl) -> dict[tuple[str, str], Decimal]:
    totals: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    for row in control.totals():
        totals[row["customer"], row["event_name"]] += Decimal(row["quantity"])
    return dict(totals)


def _ledger_totals(stack: Stack) -> dict[tuple[str, str], Decimal]:
    rows = json.loads(stack.tollgate("usage", "--by", "customer,meter", "--posted", "--json"))
    return {(row["customer"], row["meter"]): Decimal(str(row["quantity"])) for row in rows}
