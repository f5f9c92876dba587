"""The commands that need a ledger and nothing else, each against a small one whose rows are known."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from services.cli.__main__ import cli
from tests.contract.ledger.postings_world import HOUR_MS, T0, World
from tollgate.ledger.controls import load_controls
from tollgate.ledger.posting_rows import PostingState
from tollgate.ledger.sources import hash_token, load_sources

ROOT = Path(__file__).resolve().parents[2]
METERS = ROOT / "meters.yaml"
Run = Callable[..., Result]


@pytest.fixture
def world(sqlite_url: str) -> Iterator[World]:
    """A ledger that `init` has made, and the rows other services would have written."""
    made = World.make(sqlite_url)
    yield made
    made.engine.dispose()


@pytest.fixture
def tollgate(world: World, sqlite_url: str) -> Run:
    """Runs a command of the command line on that ledger."""

    def run(*arguments: str, code: int = 0, stdin: str | None = None) -> Result:
        done = CliRunner().invoke(cli, arguments, env={"TOLLGATE_LEDGER__URL": sqlite_url}, input=stdin)
        assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
        assert "\x1b" not in done.output
        return done

    return run


def rows(done: Result) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_help_imports_no_database_and_no_broker() -> None:
    """`tollgate --help` answers at once because it loads nothing that a command needs."""
    script = (
        "import sys\nsys.argv = ['tollgate', '--help']\nfrom services.cli.__main__ import cli\n"
        "cli.main(standalone_mode=False)\n"
        "heavy = {'sqlalchemy', 'aiokafka', 'stripe', 'polars', 'pyarrow', 'pydantic', 'rich', 'httpx'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"


# ------------------------------------------------------------------------------------------------- meters


def test_meters_are_applied_once_and_listed(tollgate: Run) -> None:
    """The file's five meters; applied again nothing changes; taken out of the file they end only when agreed to."""
    assert "Meters  version 1\n" in tollgate("meters", "apply", str(METERS)).stdout
    assert "Meters  version 1 (unchanged)" in tollgate("meters", "apply", str(METERS)).stdout
    listed = rows(tollgate("meters", "list", "--json"))
    assert {row["meter"]: row["metric"] for row in listed} == {
        "api_calls": "count",
        "chat_tokens": "sum properties.tokens_in + properties.tokens_out",
        "egress_bytes": "sum response_bytes",
        "daily_addresses": "unique client_ip",
        "slowest_call": "max latency_ms",
    }
    assert {row["stripe"] for row in listed if row["meter"] == "egress_bytes"} == {"egress_bytes (live)"}


def test_a_removed_meter_asks_first(tollgate: Run, tmp_path: Path) -> None:
    """No answer, no change; --yes, and it ends."""
    tollgate("meters", "apply", str(METERS))
    fewer = tmp_path / "meters.yaml"
    fewer.write_text("meters:\n  - {name: api_calls, metric: count, window: hour}\n")
    tollgate("meters", "apply", str(fewer), code=1, stdin="n\n")
    assert len(rows(tollgate("meters", "list", "--json"))) == 5
    done = tollgate("meters", "apply", str(fewer), "--yes")
    assert "  - egress_bytes, counted until " in done.stdout
    ended = {row["meter"]: bool(row["until"]) for row in rows(tollgate("meters", "list", "--json"))}
    assert ended["egress_bytes"]


def test_a_bad_file_names_file_line_meter_and_the_nearest_column(tollgate: Run, tmp_path: Path) -> None:
    """Every problem is one line; nothing is applied."""
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        "meters:\n  - name: one\n    where: statsu < 500\n    metric: count\n"
        "  - name: two\n    metric: { sum: latency }\n"
    )
    done = tollgate("meters", "apply", str(bad), code=1)
    first, second = done.stderr.splitlines()
    assert first.startswith(f"{bad}:3: ")
    assert "one" in first
    assert "status" in first
    assert second.startswith(f"{bad}:6: ")
    assert "two" in second
    assert "latency_ms" in second
    assert "Traceback" not in done.output
    assert rows(tollgate("meters", "list", "--json")) == []


def test_explain_says_what_each_clause_saw(tollgate: Run) -> None:
    """The clause that did not hold, with the event's own value; a broken event is one line."""
    event = json.dumps({"status": 503, "blocked_by": None, "time_ms": T0})
    done = tollgate("meters", "explain", str(METERS), "--event", event, "--meter", "api_calls")
    assert "503" in done.stdout
    assert "egress_bytes" not in done.stdout
    assert (
        done.stdout
        == tollgate(
            "meters", "explain", str(METERS), "--event", "-", "--meter", "api_calls", stdin=event
        ).stdout
    )
    done = tollgate("meters", "explain", str(METERS), "--event", "{", code=1)
    assert done.stderr.startswith("Error: the event is not JSON: ")


# ------------------------------------------------------------------------------------------------- tokens


def test_tokens_are_shown_once_and_revoked(tollgate: Run, world: World) -> None:
    """What is printed is what ingest will accept; the list never has it; one of two tokens can be revoked."""
    first, second = (tollgate("tokens", "create", "gateway").stdout.strip() for _ in range(2))
    operator = tollgate("tokens", "create", "operator", "--scope", "replay").stdout.strip()
    by_hash = {source.token_sha256: source for source in load_sources(world.engine)}
    assert by_hash[hash_token(first)].scopes == {"write"}
    assert by_hash[hash_token(operator)].scopes == {"replay"}
    listed = tollgate("tokens", "list").stdout
    assert not [token for token in (first, second, operator) if token in listed]
    assert tollgate("tokens", "revoke", "gateway", "--token", first).stdout == "revoked 1\n"
    assert tollgate("tokens", "revoke", "gateway").stdout == "revoked 1\n"
    assert {source.name for source in load_sources(world.engine)} == {"operator"}
    assert "no such live token" in tollgate("tokens", "revoke", "gateway", code=1).stderr
    assert "is not a source name" in tollgate("tokens", "create", "no spaces", code=1).stderr


# -------------------------------------------------------------------------------------------------- usage


@pytest.fixture
def used(world: World) -> World:
    """A customer of two accounts and a stranger, with a count, a unique, a max and a latest."""
    world.customer("cus_1", "user:a", "company:a")
    count, unique = world.meter("calls"), world.meter("people", metric={"unique": "user"})
    slowest, last = (
        world.meter("slowest", metric={"max": "latency_ms"}),
        world.meter("last", metric={"latest": "status"}),
    )
    for account, calls, values, latency, status, at in (
        ("user:a", 10, (1, 2), 70, 200, 5),
        ("company:a", 5, (2, 3), 40, 404, 9),
        ("user:stranger", 2, (9,), 900, 500, 99),
    ):
        world.use(count, account, calls)
        world.use(count, account, 1, window=1)
        world.use(unique, account, len(values), values=values)
        world.use(slowest, account, latency)
        world.use(last, account, status, order_ms=at)
    return world


def test_usage_of_a_customer_combines_its_accounts_as_each_metric_demands(tollgate: Run, used: World) -> None:
    """10 + 1 + 5 + 1 calls; values 1, 2, 3; the slower of 70 and 40; the later of two statuses."""
    found = rows(tollgate("usage", "--by", "customer,meter", "--json"))
    assert {(row["customer"], row["meter"]): row["quantity"] for row in found} == {
        ("cus_1", "calls"): "17",
        ("cus_1", "people"): "3",
        ("cus_1", "slowest"): "70",
        ("cus_1", "last"): "404",
        ("(no customer)", "calls"): "3",
        ("(no customer)", "people"): "1",
        ("(no customer)", "slowest"): "900",
        ("(no customer)", "last"): "500",
    }
    assert {(row["meter"], row["events"]) for row in found if row["customer"] == "cus_1"} == {
        ("calls", 4), ("people", 2), ("slowest", 2), ("last", 2)
    }  # fmt: skip


def test_usage_by_account_window_and_filter(tollgate: Run, used: World) -> None:
    """The default keeps accounts apart; filters narrow; windows begin in [from, to)."""
    found = rows(tollgate("usage", "--meter", "calls", "--json"))
    assert {row["account"]: row["quantity"] for row in found} == {
        "user:a": "11", "company:a": "6", "user:stranger": "3"
    }  # fmt: skip
    by_window = rows(tollgate("usage", "--by", "window", "--meter", "calls", "--customer", "cus_1", "--json"))
    assert [row["quantity"] for row in by_window] == ["15", "2"]
    at = "2027-01-15T09:00"
    assert T0 + HOUR_MS == 1_800_003_600_000
    later = rows(tollgate("usage", "--by", "meter", "--meter", "calls", "--from", at, "--json"))
    assert [row["quantity"] for row in later] == ["3"]
    earlier = rows(tollgate("usage", "--by", "meter", "--meter", "calls", "--to", at, "--json"))
    assert [row["quantity"] for row in earlier] == ["17"]
    table = tollgate("usage", "--account", "user:a", "--meter", "slowest").stdout
    assert any(line.split()[:4] == ["slowest", "user:a", "max", "70"] for line in table.splitlines())
    header, *lines = tollgate("usage", "--meter", "calls", "--csv").stdout.splitlines()
    assert header == "meter,account,metric,quantity,events,unvalued,latest_event"
    assert "calls,user:a,count,11,2,0,2027-01-15 09:00:01Z" in lines
    assert "choose from" in tollgate("usage", "--by", "moon", code=2).stderr
    assert "is not an ISO 8601 time" in tollgate("usage", "--from", "soon", code=2).stderr


# ------------------------------------------------------------------------- postings, held, sync, customers


def test_postings_are_listed_parked_and_resumed(tollgate: Run, world: World) -> None:
    """A planned posting can be parked and resumed, once each; what is delivered cannot."""
    meter = world.meter()
    world.customer("cus_1", "user:a")
    world.period("cus_1")
    world.use(meter, "user:a", 10)
    world.plan()
    (planned,) = rows(tollgate("postings", "list", "--json"))
    assert (planned["customer"], planned["from"], planned["to"], planned["state"]) == (
        "cus_1",
        "0",
        "10",
        "planned",
    )
    posting = planned["posting"]
    assert tollgate("postings", "park", posting, "--reason", "wrong price").stdout == f"parked {posting}\n"
    (parked,) = rows(tollgate("postings", "list", "--state", "parked", "--json"))
    assert (parked["posting"], parked["error"]) == (posting, "wrong price")
    assert rows(tollgate("postings", "summary", "--json")) == [
        {"state": "parked", "postings": 1, "units": "10"}
    ]
    assert tollgate("postings", "resume", posting).stdout == f"resumed {posting}\n"
    assert "is not parked" in tollgate("postings", "resume", posting, code=1).stderr
    assert "is not KEY:SEQ" in tollgate("postings", "park", "nonsense", code=2).stderr
    world.deliver()
    assert world.postings()[0].state is PostingState.DELIVERED
    assert "is settled" in tollgate("postings", "park", posting, code=1).stderr
    key = posting.rpartition(":")[0]
    assert len(rows(tollgate("postings", "list", "--key", key, "--customer", "cus_1", "--json"))) == 1
    assert rows(tollgate("postings", "list", "--customer", "cus_2", "--json")) == []


def test_held_usage_says_why(tollgate: Run, world: World) -> None:
    """Usage of nobody, and of a customer without a subscription, each with its reason in words."""
    meter = world.meter()
    world.customer("cus_1", "user:a")
    world.use(meter, "user:a", 10)
    world.use(meter, "user:stranger", 3)
    world.plan()
    found = {row["account"]: row for row in rows(tollgate("held", "--json"))}
    assert {account: (row["reason"], row["quantity"]) for account, row in found.items()} == {
        "user:a": ("no_item", "10"),
        "user:stranger": ("no_mapping", "3"),
    }
    assert "no customer has this account name" in found["user:stranger"]["what_it_means"]
    (row,) = rows(tollgate("held", "--reason", "no_item", "--json"))
    assert row["account"] == "user:a"


def test_sync_is_paused_resumed_and_hurried(tollgate: Run, world: World) -> None:
    """What stripe_sync reads is what was asked for."""
    tollgate("sync", "pause", "--reason", "a wrong price")
    assert load_controls(world.engine) == {"paused": "a wrong price"}
    tollgate("sync", "resume")
    assert load_controls(world.engine) == {}
    tollgate("sync", "now")
    assert load_controls(world.engine).keys() == {"sync_now"}


def test_customers_and_their_accounts(tollgate: Run, world: World) -> None:
    """Customers with the accounts they pay for now; mappings with their whole history."""
    world.customer("cus_1", "user:a")
    world.map("user:old", "cus_1", 0, T0)
    (row,) = rows(tollgate("customers", "list", "--json"))
    assert (row["customer"], row["accounts"]) == ("cus_1", "user:a")
    found = rows(tollgate("customers", "mappings", "--customer", "cus_1", "--json"))
    assert {(each["account"], each["from"], each["until"]) for each in found} == {
        ("user:a", "ever", ""),
        ("user:old", "ever", "2027-01-15 08:00:00Z"),
    }
    assert len(rows(tollgate("customers", "mappings", "--account", "user:a", "--json"))) == 1


# ---------------------------------------------------------------------------------------------- it is away

NEED_LEDGER = [
    "meters apply meters.yaml",
    "meters list",
    "tokens create a",
    "tokens list",
    "tokens revoke a",
    "usage",
    "postings list",
    "postings summary",
    "postings park a:1",
    "postings resume a:1",
    "postings settle a:1 --delivered",
    "held",
    "sync pause",
    "sync resume",
    "sync now",
    "customers list",
    "customers mappings",
    "verify",
    "verify --refold",
    "verify --no-log",
]
NEED_BROKER = [
    "events tail",
    "dead list",
    "dead show 0:1",
    "dead replay 0:1 --yes",
    "dead replay --reason late --yes",
]
NOWHERE = {
    "TOLLGATE_LEDGER__URL": "postgresql://ada:hidden@127.0.0.1:1/x",
    "TOLLGATE_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "TOLLGATE_REPLAY_TOKEN": "tg_a_b",
    "TOLLGATE_ID_SEED": "a seed",
    "STRIPE_API_KEY": "sk_test_nowhere",
    "TOLLGATE_STRIPE__API_BASE": "http://127.0.0.1:1",
}


@pytest.mark.parametrize("words", NEED_LEDGER)
def test_an_unreachable_ledger_is_one_line(words: str) -> None:
    """Exit 1, one line that says what is the matter, no password, no traceback."""
    done = CliRunner().invoke(cli, words.split(), env=NOWHERE)
    assert (done.exit_code, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: the ledger cannot be reached: ")
    assert "hidden" not in line


@pytest.mark.parametrize("words", NEED_LEDGER)
def test_a_ledger_that_is_not_there_is_not_made(words: str, sqlite_url: str) -> None:
    """An empty file would look like a ledger: it is left to `tollgate init`."""
    done = CliRunner().invoke(cli, words.split(), env=NOWHERE | {"TOLLGATE_LEDGER__URL": sqlite_url})
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: there is no ledger at ")
    assert "tollgate init" in done.stderr
    assert not Path(sqlite_url.removeprefix("sqlite:///")).exists()


@pytest.mark.parametrize("words", NEED_BROKER)
def test_an_unreachable_broker_is_one_line(words: str) -> None:
    """Exit 1 and one line that names the address and the variable."""
    done = CliRunner().invoke(cli, words.split(), env=NOWHERE)
    assert (done.exit_code, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: no answer from Kafka at 127.0.0.1:1 ")
    assert "TOLLGATE_KAFKA__BOOTSTRAP_SERVERS" in line


def test_verify_says_that_the_broker_is_away(tollgate: Run, sqlite_url: str) -> None:
    """The ledger alone can be verified without it."""
    done = CliRunner().invoke(cli, ["verify"], env=NOWHERE | {"TOLLGATE_LEDGER__URL": sqlite_url})
    assert done.exit_code == 1
    assert "Error: no answer from Kafka at 127.0.0.1:1 " in done.stderr
    assert "The law holds." in tollgate("verify", "--no-log").stdout


def test_init_says_that_stripe_is_away(sqlite_url: str) -> None:
    """Before anything is made."""
    done = CliRunner().invoke(cli, ["init"], env=NOWHERE | {"TOLLGATE_LEDGER__URL": sqlite_url})
    assert (done.exit_code, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: Stripe: no answer")
    done = CliRunner().invoke(cli, ["init"], env=NOWHERE | {"TOLLGATE_ID_SEED": ""})
    assert "set TOLLGATE_ID_SEED" in done.stderr


def test_doctor_names_each_part_that_is_away() -> None:
    """All three, each with what to do."""
    done = CliRunner().invoke(cli, ["doctor", "--json"], env=NOWHERE)
    assert done.exit_code == 1
    found = {row["check"]: row for row in rows(done)}
    assert {check: row["result"] for check, row in found.items()} == {
        "Kafka": "WRONG", "ledger": "WRONG", "Stripe": "WRONG"
    }  # fmt: skip
    assert "TOLLGATE_KAFKA__BOOTSTRAP_SERVERS" in found["Kafka"]["what_to_do"]
    assert "start the database" in found["ledger"]["what_to_do"]
    assert "STRIPE_API_KEY" in found["Stripe"]["what_to_do"]
