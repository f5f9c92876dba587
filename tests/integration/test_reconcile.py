"""`tollgate reconcile` over a ledger, stripe_sync and the stand-in for Stripe: what differs is found, named, repaired."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import update

from sandbox.stripe.process import StripeStandIn
from services.cli.__main__ import cli
from tests.integration.stripe_sync_rig import KEY, Rig
from tests.parts.kafka import BrokerSettings
from tollgate.ledger.engine import ledger_transaction
from tollgate.ledger.posting_rows import PostingState
from tollgate.ledger.reconciliation_subjects import find_subjects
from tollgate.ledger.reconciliations import load_reconciliations
from tollgate.ledger.tables import postings
from tollgate.metering.reconciliation import Verdict

Reconcile = Callable[..., Result]

NOW_AND_THEN = {
    "TOLLGATE_SYNC__SUMMARY_LAG_SECONDS": "0",
    "TOLLGATE_RECONCILE__CHECK_SECONDS": "0.3",
    "TOLLGATE_RECONCILE__INTERVAL_HOURS": "0.0003",
}
"""A day is a second, and summaries are never behind."""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StripeStandIn]:
    with StripeStandIn.start(tmp_path_factory.mktemp("stripe") / "state.sqlite3") as running:
        yield running


@pytest.fixture
def rig(
    ledger_url: str, broker_settings: BrokerSettings, stand_in: StripeStandIn, tmp_path: Path
) -> Iterator[Rig]:
    made = Rig.make(ledger_url, broker_settings, stand_in, tmp_path)
    yield made
    made.close()


@pytest.fixture
def reconcile(rig: Rig) -> Reconcile:
    """Runs `tollgate reconcile` with arguments, as an operator would."""

    def run(*arguments: str, code: int = 0, **environment: str) -> Result:
        variables = {
            "TOLLGATE_LEDGER__URL": rig.url,
            "STRIPE_API_KEY": KEY,
            "TOLLGATE_STRIPE__API_BASE": rig.stand_in.base_url,
            **NOW_AND_THEN,
            **environment,
        }
        done = CliRunner().invoke(cli, ["reconcile", *arguments], env=variables)
        assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
        return done

    return run


def _rows(done: Result) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def _billed(rig: Rig, quantities: dict[int, int]) -> tuple[int, str, str]:
    """A customer whose usage of each window is at Stripe; the meter, its event name, the customer."""
    meter, name = rig.meter()
    customer = rig.customer(name)
    for window, quantity in quantities.items():
        rig.use(meter, customer, quantity, window)
    process = rig.start()
    rig.wait_for_totals(name, {customer: sum(quantities.values())})
    assert process.end() == 0
    return meter, name, customer


def test_what_agrees_says_so_for_one_read(rig: Rig, reconcile: Reconcile) -> None:
    """Counted, delivered and Stripe's summary are one number; a table for people, JSON and CSV for programs."""
    _, name, customer = _billed(rig, {0: 10, 1: 5})
    (row,) = _rows(reconcile("--json"))
    assert (row["customer"], row["meter"], row["verdict"]) == (customer, name, "agrees")
    assert (row["counted"], row["delivered"], row["stripe"], row["findings"]) == ("15", "15", "15", [])
    assert "agrees" in reconcile("--stored").stdout
    header, line = reconcile("--stored", "--csv").stdout.splitlines()
    assert header.split(",")[:2] == ["customer", "meter"]
    assert line.split(",")[0] == customer


def test_drift_is_found_named_and_repaired_by_command_only(rig: Rig, reconcile: Reconcile) -> None:
    """Stripe lost one event of three: its hour and posting are named, exit 1; --repair has it posted again, once."""
    _, name, customer = _billed(rig, {0: 10, 1: 5, 3: 7})
    lost = next(e for e in rig.control.meter_events(event_name=name) if e["value"] == "5")
    rig.client.v1.billing.meter_event_adjustments.create(
        {"event_name": name, "type": "cancel", "cancel": {"identifier": lost["identifier"]}}
    )
    (row,) = _rows(reconcile("--json", code=1))
    (finding,) = row["findings"]
    posting = next(p for p in rig.world.postings() if p.identifier == lost["identifier"])
    assert (row["verdict"], row["drift"], row["stripe"]) == ("drift", "5", "17")
    assert (finding["cause"], finding["hour_s"]) == ("missing", lost["timestamp"] // 3600 * 3600)
    assert finding["postings"] == [f"{posting.posting_key}:1"]
    before = rig.control.meter_events(event_name=name)
    again = rig.start()
    rig.wait(lambda: again.get("/readyz")[0] == 200, "readiness")
    assert again.end() == 0
    assert rig.control.meter_events(event_name=name) == before, "nothing is repaired unasked"
    # The leader may have looked as well, and calls what was delivered minutes ago settling: the newest check counts.
    (row,) = _rows(reconcile("--json", code=1))
    assert row["findings"] == [finding]
    told = reconcile("--repair", f"{posting.posting_key}:1", "--yes").stdout
    assert "done: take it back as missing at Stripe" in told
    assert "has changed" in reconcile("--repair", f"{posting.posting_key}:1", "--yes", code=1).stderr
    rig.start()
    rig.wait_for_totals(name, {customer: 22})
    assert _rows(reconcile("--json"))[0]["verdict"] == "agrees"


def test_a_posting_that_arrived_is_settled_by_command(rig: Rig, reconcile: Reconcile) -> None:
    """Parked after a lost answer; Stripe's summary holds it; settled as delivered, nothing is sent twice."""
    _, name, customer = _billed(rig, {0: 10, 1: 5})
    posting = next(p for p in rig.world.postings() if p.quantity == 5)
    with ledger_transaction(rig.world.engine) as connection:
        connection.execute(
            update(postings)
            .where(postings.c.posting_key == posting.posting_key)
            .values(state="parked", settled_ms=None)
        )
    (row,) = _rows(reconcile("--json"))
    assert {f["cause"]: f["remedy"] for f in row["findings"]} == {
        "parked": None,
        "arrived": "settle_delivered",
    }
    refused = CliRunner().invoke(
        cli,
        ["reconcile", "--repair", f"{posting.posting_key}:1"],
        input="n\n",
        env={"TOLLGATE_LEDGER__URL": rig.url},
    )
    assert (refused.exit_code, rig.world.postings()[1].state) == (1, PostingState.PARKED)
    reconcile("--repair", f"{posting.posting_key}:1", "--yes")
    assert {p.state for p in rig.world.postings()} == {PostingState.DELIVERED, PostingState.SETTLED}
    assert rig.at_stripe(name) == {customer: 15}
    assert _rows(reconcile("--json"))[0]["verdict"] == "agrees"


def test_what_lags_settles(rig: Rig, reconcile: Reconcile) -> None:
    """Stripe's summaries are two hours behind: no drift within the allowance, and drift beyond it."""
    rig.control.config(meters={"summary_lag_seconds": 7200})
    try:
        _billed(rig, {0: 10, 1: 5})
        settling = _rows(reconcile("--json", TOLLGATE_SYNC__SUMMARY_LAG_SECONDS="3600"))
        assert [row["verdict"] for row in settling] == ["settling"]
        drifting = _rows(reconcile("--json", code=1))
        assert [(row["verdict"], row["drift"]) for row in drifting] == [("drift", "15")]
    finally:
        rig.control.config(meters={"summary_lag_seconds": 0})


def test_a_spent_budget_is_said(rig: Rig, reconcile: Reconcile) -> None:
    """The ledger's side is still compared; Stripe is not asked, and no key is needed with --no-stripe."""
    _billed(rig, {0: 10})
    (row,) = _rows(reconcile("--json", TOLLGATE_RECONCILE__READS_PER_DAY="0"))
    assert (row["verdict"], row["stripe"]) == ("unchecked", None)
    assert row["findings"][0]["detail"] == "today's reads are used up"
    (row,) = _rows(reconcile("--no-stripe", "--json", STRIPE_API_KEY=""))
    assert (row["verdict"], row["delivered"]) == ("agrees", "10")


def test_a_key_of_another_account_is_refused(rig: Rig, reconcile: Reconcile) -> None:
    """Nothing of another account is compared with this ledger."""
    from tollgate.ledger.tables import pins

    with ledger_transaction(rig.world.engine) as connection:
        connection.execute(update(pins).where(pins.c.name == "stripe_account").values(value="acct_other"))
    assert "acct_other" in reconcile(code=1).stderr


def test_the_leader_reconciles_by_itself(rig: Rig) -> None:
    """Daily, which is each second here: what agrees, then what Stripe lost, in the ledger and in the metrics."""
    meter, name = rig.meter()
    customer = rig.customer(name)
    rig.use(meter, customer, 10)
    process = rig.start(**NOW_AND_THEN)
    rig.wait_for_totals(name, {customer: 10})

    def verdicts() -> list[Verdict]:
        found = load_reconciliations(rig.world.engine, find_subjects(rig.world.engine))
        return [kept.verdict for kept in found]

    rig.wait(lambda: verdicts() == [Verdict.AGREES], "the period to agree")
    (event,) = rig.control.meter_events(event_name=name)
    rig.client.v1.billing.meter_event_adjustments.create(
        {"event_name": name, "type": "cancel", "cancel": {"identifier": event["identifier"]}}
    )
    rig.wait(lambda: verdicts() == [Verdict.DRIFT], "the drift to be noticed")
    prefix = "tollgate_stripe_sync_reconciliation_"
    rig.wait(lambda: process.metric(f'{prefix}drift_units{{meter="{name}"}}') == 10, "the drift to show")
    assert process.metric(f"{prefix}drifting_customers") == 1
    assert process.metric(f"{prefix}last_checked_timestamp_seconds") > 0
    assert process.metric(f"{prefix}reads_total") >= 3
    assert '"usage.drifted"' in process.tail()
    assert rig.at_stripe(name) == {}, "nothing is repaired unasked"


def test_a_parallel_month_is_compared_with_the_other_biller(
    rig: Rig, reconcile: Reconcile, tmp_path: Path
) -> None:
    """In a dry run: equal lines agree, others differ and exit 1; a wrong file is refused before anything."""
    meter, name = rig.meter()
    rig.world.switch(meter, "dry_run")
    first, second = rig.customer(name), rig.customer(name)
    rig.use(meter, first, 10)
    rig.use(meter, second, 4)
    process = rig.start()
    rig.wait(lambda: [p.state for p in rig.world.postings()] == [PostingState.DRY_RUN] * 2, "the rehearsal")
    assert process.end() == 0
    (subject, _) = find_subjects(rig.world.engine)
    start = str(subject.period_start_ms // 1000)
    from datetime import UTC, datetime

    start = datetime.fromtimestamp(subject.period_start_ms / 1000, UTC).isoformat()
    bill = tmp_path / "other.csv"
    bill.write_text(
        f"customer,meter,period_start,quantity\n{first},{name},{start},10\n{second},{name},{start},4.0\n"
    )
    agreeing = _rows(reconcile("--against", str(bill), "--json", STRIPE_API_KEY=""))
    assert {(row["ours"], row["theirs"], row["result"]) for row in agreeing} == {
        ("10", "10", "agrees"),
        ("4", "4.0", "agrees"),
    }
    assert all("rehearsed" in row["why"] for row in agreeing)
    bill.write_text(f"customer,meter,period_start,quantity\n{first},{name},{start},11\n")
    differing = {row["customer"]: row for row in _rows(reconcile("--against", str(bill), "--json", code=1))}
    assert (differing[first]["difference"], differing[first]["result"]) == ("-1", "DIFFERS")
    assert (differing[second]["theirs"], differing[second]["result"]) == (None, "DIFFERS")
    bill.write_text(f"customer,meter,amount\n{first},{name},11\n")
    assert (
        "they must be customer, meter, period_start, quantity"
        in reconcile("--against", str(bill), code=1).stderr
    )
    assert rig.at_stripe(name) == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stored", "--no-stripe"], "choose one of --stored, --no-stripe"),
        (["--repair", "nonsense"], "is not KEY:SEQ"),
        (["--period", "soon"], "is not an ISO 8601 time"),
    ],
)
def test_wrong_use_is_answered(rig: Rig, reconcile: Reconcile, arguments: list[str], words: str) -> None:
    """With exit 2 and what would have been right."""
    assert words in reconcile(*arguments, code=2).stderr
    assert "no reconciliation says" in reconcile("--repair", "nothing:1", code=1).stderr
