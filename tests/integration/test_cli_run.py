"""The commands that need a log and a Stripe, against what a run of every service left behind."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import delete

from services.cli.__main__ import cli
from tests.integration.cli_rig import PARTITIONS, CountedRun
from tollgate.ledger.catalogue import revoke_source
from tollgate.ledger.controls import set_paused
from tollgate.ledger.engine import Engine, ledger_transaction, open_ledger
from tollgate.ledger.progress import load_progress
from tollgate.ledger.tables import meters

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow]

Run = Callable[..., Result]


@pytest.fixture
def ledger(counted_run: CountedRun, tmp_path: Path) -> str:
    """A copy of the run's ledger in a file: what is changed in it concerns one test alone."""
    return counted_run.copy_ledger_to_sqlite(tmp_path / "ledger.sqlite3")


@pytest.fixture
def tollgate(counted_run: CountedRun, ledger: str) -> Run:
    """Runs a command of the command line on the run's log and that ledger."""

    def run(*arguments: str, code: int = 0, **changed: str) -> Result:
        environment = counted_run.environment(**{"LEDGER__URL": ledger, **changed})
        done = CliRunner().invoke(cli, arguments, env=environment)
        assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
        assert "\x1b" not in done.output
        return done

    return run


@pytest.fixture
def engine(ledger: str) -> Iterator[Engine]:
    """Connections to the copied ledger."""
    opened = open_ledger(ledger)
    yield opened
    opened.dispose()


def rows(done: Result) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


# --------------------------------------------------------------------------------------------- init, doctor


def test_init_again_changes_nothing(tollgate: Run, engine: Engine, tmp_path: Path) -> None:
    """The second run says the same as the first, and keeps what was counted."""
    before = load_progress(engine)
    said = tollgate("init").stdout
    assert tollgate("init").stdout == said
    assert f"4 topics, {PARTITIONS} partitions" in said
    assert load_progress(engine) == before
    elsewhere = tollgate("init", LEDGER__URL=f"sqlite:///{tmp_path / 'new.sqlite3'}").stdout
    assert elsewhere.splitlines()[0] == said.splitlines()[0]


def test_init_refuses_what_does_not_belong_together(tollgate: Run) -> None:
    """Another partition count, another seed: one line each, nothing made."""
    assert (
        f"has {PARTITIONS} partitions, 5 are wanted"
        in tollgate("init", code=1, TOPICS__PARTITIONS="5").stderr
    )
    assert "id_seed_fingerprint is pinned to" in tollgate("init", code=1, ID_SEED="another seed").stderr


def checks(done: Result) -> dict[str, dict[str, Any]]:
    return {row["check"]: row for row in rows(done)}


def test_doctor_finds_a_good_installation_good(tollgate: Run) -> None:
    """Exit 0, every check good, and what is there is named."""
    found = checks(tollgate("doctor", "--json"))
    assert {row["result"] for row in found.values()} == {"good"}
    assert found["meters"]["seen"].count(",") == 6
    assert found["tokens"]["seen"] == "gateway"
    assert found["Stripe meters"]["seen"] == "api_calls active, chat_tokens active, egress_bytes active"
    assert "no_mapping" in found["held usage"]["seen"]
    assert found["held usage"]["what_to_do"] == "`tollgate held` says whose and why"


@pytest.mark.parametrize(
    ("changed", "check", "advice"),
    [
        ({"KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}, "Kafka", "start the broker"),
        ({"KAFKA__TOPIC_PREFIX": "nobody."}, "topics", "run `tollgate init`"),
        ({"ID_SEED": "another seed"}, "pins", "belong together"),
        ({"STRIPE__API_BASE": "http://127.0.0.1:1"}, "Stripe", "check STRIPE_API_KEY"),
        ({"LEDGER__URL": "postgresql://ada@127.0.0.1:1/x"}, "ledger", "start the database"),
        ({"LEDGER__URL": "sqlite:////nowhere/ledger.sqlite3"}, "ledger", "`tollgate init`"),
    ],
)
def test_doctor_names_what_is_elsewhere(
    tollgate: Run, changed: dict[str, str], check: str, advice: str
) -> None:
    """Exit 1, that check is wrong, and it says what to do."""
    found = checks(tollgate("doctor", "--json", code=1, **changed))
    assert found[check]["result"] == "WRONG"
    assert advice in found[check]["what_to_do"]


def test_doctor_names_what_is_missing_in_the_ledger(tollgate: Run, engine: Engine) -> None:
    """No meters, no tokens, sending paused: each with the command that mends it."""
    revoke_source(engine, "gateway", 1)
    set_paused(engine, True, 1, "a wrong price")
    with ledger_transaction(engine) as connection:
        connection.execute(delete(meters))
    found = checks(tollgate("doctor", "--json", code=1))
    wrong = {check: row["what_to_do"] for check, row in found.items() if row["result"] == "WRONG"}
    assert wrong.keys() == {"meters", "tokens", "sending"}
    assert "tollgate meters apply" in wrong["meters"]
    assert "tollgate tokens create" in wrong["tokens"]
    assert "tollgate sync resume" in wrong["sending"]
    assert found["sending"]["seen"] == "paused: a wrong price"


def test_doctor_names_a_meter_that_stripe_does_not_have(
    tollgate: Run, counted_run: CountedRun, tmp_path: Path
) -> None:
    """A live meter without its Billing Meter would be refused call by call."""
    declared = tmp_path / "meters.yaml"
    declared.write_text(
        "meters:\n  - name: unheard_of\n    metric: count\n"
        "    stripe: { mode: delta, send: live, event_name: unheard_of }\n"
    )
    tollgate("meters", "apply", str(declared), "--yes", "--ledger-only")
    found = checks(tollgate("doctor", "--json", code=1))
    assert "meters apply --plan" in found["Stripe meters"]["what_to_do"]
    assert "unheard_of" in found["Stripe meters"]["what_to_do"]


# ------------------------------------------------------------------------------------------- events, usage


def test_events_are_printed_as_json_lines(tollgate: Run, counted_run: CountedRun) -> None:
    """Every event of the log once a line, ticks when asked for, one account when asked for, a limit when given."""
    lines = [json.loads(line) for line in tollgate("events", "tail", "--no-follow").stdout.splitlines()]
    assert len(lines) >= counted_run.truth.outcomes["received"]
    places = Counter((line["partition"], line["offset"], line["row"]) for line in lines)
    assert set(places.values()) == {1}
    assert {"id", "time_ms", "account", "status", "path"} <= lines[0].keys()
    stranger = [
        json.loads(line)
        for line in tollgate(
            "events", "tail", "--no-follow", "--account", "user:stranger"
        ).stdout.splitlines()
    ]
    assert len(stranger) == sum(line["account"] == "user:stranger" for line in lines) > 0
    assert {line["account"] for line in stranger} == {"user:stranger"}
    assert len(tollgate("events", "tail", "--no-follow", "-n", "7").stdout.splitlines()) == 7
    with_ticks = tollgate("events", "tail", "--no-follow", "--ticks").stdout.splitlines()
    assert len(with_ticks) > len(lines)
    assert (
        "no topic nobody.gateway.events"
        in tollgate("events", "tail", "--no-follow", code=1, KAFKA__TOPIC_PREFIX="nobody.").stderr
    )


def test_usage_by_customer_is_what_was_sent(tollgate: Run, counted_run: CountedRun) -> None:
    """Acme's two accounts are one bill: sums, different addresses and the slowest call, against the history file."""
    acme, globex = counted_run.shoppers
    owners = {
        f"user:{acme.customer}": acme.customer,
        f"user:{acme.email}": acme.customer,
        f"user:{globex.customer}": globex.customer,
        "user:stranger": "(no customer)",
    }
    truth: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    for (meter, account, _), quantity in counted_run.truth.usage.items():
        key = (owners[account], meter)
        if meter == "slowest_call":
            truth[key] = max(truth[key], Decimal(quantity))
        elif meter != "daily_addresses":
            truth[key] += quantity
    found = {
        (row["customer"], row["meter"]): Decimal(row["quantity"])
        for row in rows(tollgate("usage", "--by", "customer,meter", "--json"))
    }
    addresses: dict[str, set[str]] = defaultdict(set)
    for call in counted_run.counted_calls():
        addresses[owners[call.identity.account]].add(call.client_ip)
    for owner, different in addresses.items():
        truth[owner, "daily_addresses"] = Decimal(len(different))
    posted = {"api_calls", "chat_tokens", "egress_bytes"}
    assert {
        key: value for key, value in found.items() if key[1] in {*posted, "slowest_call", "daily_addresses"}
    } == truth
    sent = rows(tollgate("usage", "--by", "customer", "--posted", "--json"))
    assert {row["meter"] for row in sent} == posted


def test_what_was_posted_and_what_is_held(tollgate: Run, counted_run: CountedRun) -> None:
    """Every delivered unit is Stripe's; the stranger's usage is held for want of a customer."""
    (delivered,) = rows(tollgate("postings", "summary", "--json"))
    assert delivered["state"] in ("delivered", "settled")
    totals = counted_run.stand_in_totals()
    assert Decimal(delivered["units"]) == sum(totals.values())
    held = rows(tollgate("held", "--json"))
    assert {(row["account"], row["reason"]) for row in held} == {("user:stranger", "no_mapping")}
    listed = rows(tollgate("customers", "list", "--json"))
    acme = counted_run.shoppers[0]
    (row,) = [row for row in listed if row["customer"] == acme.customer]
    assert {f"user:{acme.customer}", f"user:{acme.email}"} <= set(row["accounts"].split(", "))


def test_customers_are_imported_from_stripe(counted_run: CountedRun, tmp_path: Path) -> None:
    """Into a ledger that has never heard of them, with the accounts the rules give them."""
    url = f"sqlite:///{tmp_path / 'new.sqlite3'}"
    for words in (("init",), ("customers", "import")):
        # The import becomes another process, so it needs one of its own.
        run = counted_run.invoke if words == ("init",) else counted_run.tollgate
        done = run(*words, LEDGER__URL=url)
        assert done.returncode == 0, done.stdout + done.stderr
    listed = json.loads(counted_run.invoke("customers", "list", "--json", LEDGER__URL=url).stdout)
    assert {row["customer"] for row in listed} == {shopper.customer for shopper in counted_run.shoppers}
    assert all(row["subscriptions"] and row["accounts"] for row in listed)


# ---------------------------------------------------------------------------------------------------- dead


@pytest.fixture(scope="module")
def operator(counted_run: CountedRun) -> Iterator[str]:
    """Ingest and meter running again on the run's own ledger; the token to replay with."""
    made = counted_run.invoke("tokens", "create", "operator", "--scope", "replay")
    assert made.returncode == 0, made.stderr
    counted_run.stack.start("ingest", "meter")
    yield made.stdout.strip()
    counted_run.end_services()


def outcomes(run: CountedRun) -> Counter[str]:
    """What became of all events, in the run's own ledger."""
    engine = open_ledger(run.ledger_url)
    try:
        found = load_progress(engine).values()
    finally:
        engine.dispose()
    names = ("received", "counted", "unmatched", "duplicate", "late", "dead")
    return Counter({name: sum(getattr(row, name) for row in found) for name in names})


def test_dead_letters_are_listed_and_shown(tollgate: Run, counted_run: CountedRun) -> None:
    """As many rows by reason as the history has, whose, and each with its bytes."""
    by_reason: Counter[str] = Counter()
    listed = rows(tollgate("dead", "list", "--json", "-n", "10000"))
    for row in listed:
        by_reason[row["reason"]] += row["rows"]
    truth = counted_run.truth.outcomes
    assert (by_reason["late"], by_reason["future"]) == (truth["late"], truth["dead"])
    assert sum(by_reason.values()) == truth["late"] + truth["dead"] + truth["rejected"]
    late = rows(tollgate("dead", "list", "--reason", "late", "--json"))
    assert {row["reason"] for row in late} == {"late"}
    shown = tollgate("dead", "show", late[0]["letter"]).stdout
    assert "reason    late" in shown
    assert late[0]["account"] in shown
    raw = next(row for row in listed if row["reason"] not in ("late", "future"))
    assert "yesterday" in tollgate("dead", "show", raw["letter"]).stdout
    assert "no dead letter at 0:99999" in tollgate("dead", "show", "0:99999", code=1).stderr
    assert "is not PARTITION:OFFSET" in tollgate("dead", "show", "here", code=2).stderr


def test_a_replayed_late_event_is_counted_once(counted_run: CountedRun, tollgate: Run, operator: str) -> None:
    """Sent again through ingest it is counted however late; sent twice it is a duplicate; the law still holds."""
    letter = rows(tollgate("dead", "list", "--reason", "late", "--json"))[0]
    events = letter["rows"]
    replay = ("dead", "replay", letter["letter"], "--yes")

    def again(before: Counter[str]) -> Counter[str]:
        done = counted_run.invoke(*replay, REPLAY_TOKEN=operator)
        assert (done.returncode, done.stdout) == (0, "1 letters replayed, 0 refused\n"), done.stderr
        counted_run.wait(
            lambda: counted_run.received() >= before["received"] + events, "the replayed events to be counted"
        )
        return outcomes(counted_run) - before

    before = outcomes(counted_run)
    assert again(before) == {"received": events, "counted": events}
    assert again(outcomes(counted_run)) == {"received": events, "duplicate": events}
    done = counted_run.invoke("verify", "--refold")
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_cannot_be_replayed_is_said(tollgate: Run, operator: str) -> None:
    """A wrong token, an entry that is still malformed, no ingest, nothing named: each its own words and code."""
    letters = rows(tollgate("dead", "list", "--json", "-n", "10000"))
    malformed = next(row for row in letters if row["reason"] not in ("late", "future"))["letter"]
    replay = ("dead", "replay", malformed, "--yes")
    assert "refused: 401" in tollgate(*replay, code=1, REPLAY_TOKEN="tg_nobody_x").stderr
    still_bad = tollgate(*replay, code=1, REPLAY_TOKEN=operator)
    assert f"{malformed} refused: 422" in still_bad.stderr
    assert "0 letters replayed, 1 refused" in still_bad.stdout
    away = tollgate(*replay, code=1, REPLAY_TOKEN=operator, INGEST_URL="http://127.0.0.1:1").stderr
    assert away.startswith("Error: ingest at http://127.0.0.1:1 does not answer")
    assert "set TOLLGATE_REPLAY_TOKEN" in tollgate(*replay, code=1).stderr
    assert "name letters, or one --reason" in tollgate("dead", "replay", code=2, REPLAY_TOKEN=operator).stderr
