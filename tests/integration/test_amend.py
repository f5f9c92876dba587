"""`tollgate amend`: on the log, counted once by the real meter, proven by the recount; and everything it refuses."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from services.cli.__main__ import cli
from tests.contract.ledger.postings_world import World
from tests.fakes.events import TIME_MS
from tests.integration.meter_rig import MeterRig, calls
from tests.parts.kafka import BrokerSettings
from tollgate.ledger.audit import AuditAction, list_audit
from tollgate.ledger.tables import audit
from tollgate.ledger.verify import verify_ledger
from tollgate.metering.closed import ClosedPolicy

TIME = "2023-11-14T22:20"
WINDOW = "2023-11-14T22:00"


class Amending:
    """A meter with its log and ledger, and the command line on them."""

    def __init__(self, rig: MeterRig, url: str) -> None:
        self.rig = rig
        self.environment = {
            "TOLLGATE_LEDGER__URL": url,
            "TOLLGATE_KAFKA__BOOTSTRAP_SERVERS": rig.settings.bootstrap_servers,
            "TOLLGATE_KAFKA__TOPIC_PREFIX": rig.settings.topic_prefix,
            "TOLLGATE_EPHEMERAL": str(rig.settings.ephemeral).lower(),
        }

    async def run(self, *arguments: str, code: int = 0) -> Result:
        """A command, beside the running event loop."""
        done = await asyncio.to_thread(CliRunner().invoke, cli, arguments, env=self.environment)
        assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
        return done


@pytest.fixture
async def amending(
    broker_settings: BrokerSettings, ledger_url: str, tmp_path: Path
) -> AsyncIterator[Amending]:
    """On SQLite and PostgreSQL."""
    rig = await MeterRig(broker_settings, ledger_url, tmp_path).prepare()
    yield Amending(rig, ledger_url)
    rig.close()


async def test_an_amendment_is_counted_once_and_proven(amending: Amending) -> None:
    """40 calls of an account, 7 too many and 2 forgotten: 35; sent again by its id nothing changes; verify agrees."""
    rig = amending.rig
    worker = rig.worker().start()
    await rig.produce(calls(40, accounts=1))
    await rig.until_all_folded()
    words = ("--time", TIME, "--reason", "a broken retry loop", "--by", "eve", "--yes")
    done = await amending.run("amend", "calls", "user:0", "--quantity", "-7", *words)
    assert "40 counted, -7 to be added" in done.output
    found = re.search(r"amended ([0-9a-f]{32})", done.output)
    assert found is not None
    await amending.run("amend", "calls", "user:0", "--quantity", "+2", "--window", WINDOW, *words[2:])
    again = ("--id", found[1], "--quantity", "-7", *words)
    await amending.run("amend", "calls", "user:0", *again)
    rig.received += 3
    await rig.until_all_folded()
    assert rig.usage == {"user:0": Decimal(35)}
    progress = rig.progress().values()
    assert (sum(p.received for p in progress), sum(p.counted for p in progress)) == (43, 42)
    assert sum(p.duplicate for p in progress) == 1
    assert verify_ledger(rig.engine) == []
    verified = await amending.run("verify", "--refold")
    assert "0 numbers differ" in verified.output
    entries = [(e.who, e.action, e.reason, e.details) for e in list_audit(rig.engine)]
    assert sorted(e[3]["quantity"] for e in entries) == ["-7", "2"]
    assert {e[:3] for e in entries} == {("eve", AuditAction.AMEND, "a broken retry loop")}
    usage = json.loads((await amending.run("usage", "--json")).stdout)
    assert [(row["account"], row["quantity"], row["amended"]) for row in usage] == [("user:0", "35", "-5")]
    told = (await amending.run("events", "tail", "--from-beginning", "--no-follow")).stdout
    assert told.count(found[1]) == 2
    worker.stop()


async def test_another_amendment_may_not_take_an_id(amending: Amending) -> None:
    """The id of one amendment with another quantity is refused before anything is written."""
    await amending.rig.produce(calls(1, accounts=1))
    words = ("--time", TIME, "--reason", "x", "--force-account", "--yes", "--id", "abcdefgh")
    await amending.run("amend", "calls", "user:0", "--quantity", "5", *words)
    done = await amending.run("amend", "calls", "user:0", "--quantity", "6", *words, code=1)
    assert "abcdefgh is another amendment" in done.output
    assert len(list_audit(amending.rig.engine)) == 1


async def test_without_its_topic_nothing_is_written(amending: Amending) -> None:
    """A wrong prefix: the audit trail stays empty, and the answer says what is missing."""
    amending.environment["TOLLGATE_KAFKA__TOPIC_PREFIX"] = "nowhere."
    words = ("--quantity", "5", "--time", TIME, "--reason", "x", "--force-account", "--yes")
    done = await amending.run("amend", "calls", "user:0", *words, code=1)
    assert "there is no topic nowhere.gateway.events" in done.output
    assert list_audit(amending.rig.engine) == []


# ----------------------------------------------------------------------------------------------- refusals

METERS = """
meters:
  - { name: calls, metric: count, stripe: { send: live } }
  - { name: tokens, metric: { sum: request_bytes } }
  - { name: slowest, metric: { max: latency_ms } }
"""

Refuse = Callable[..., str]


@pytest.fixture
def world(sqlite_url: str, tmp_path: Path) -> Iterator[World]:
    """Meters in force, a customer with an account, and a period around the time."""
    made = World.make(sqlite_url)
    path = tmp_path / "meters.yaml"
    path.write_text(METERS)
    arguments = ["meters", "apply", str(path), "--ledger-only"]
    done = CliRunner().invoke(cli, arguments, env={"TOLLGATE_LEDGER__URL": sqlite_url})
    assert done.exit_code == 0, done.output
    made.customer("cus_1", "user:0")
    made.period("cus_1", start_ms=TIME_MS - 10**7, end_ms=TIME_MS + 10**7)
    yield made
    made.engine.dispose()


@pytest.fixture
def refuse(world: World, sqlite_url: str) -> Refuse:
    """Runs an amendment that must be refused, and returns why; nothing may have been written."""

    def run(*arguments: str, meter: str = "calls", account: str = "user:0", code: int = 1) -> str:
        words = ["amend", meter, account, "--yes", *arguments]
        # A broker that is not there: what is refused is refused before it is asked.
        environment = {"TOLLGATE_LEDGER__URL": sqlite_url, "TOLLGATE_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}
        done = CliRunner().invoke(cli, words, env=environment)
        assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
        assert world.count(audit) == 0
        return done.output

    return run


GOOD = ("--quantity", "5", "--time", TIME, "--reason", "x")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--quantity", "0", "--time", TIME, "--reason", "x"), 2, "zero changes nothing"),
        (("--quantity", "0.0", "--time", TIME, "--reason", "x"), 2, "zero changes nothing"),
        (("--quantity", "five", "--time", TIME, "--reason", "x"), 2, "'five' is no number"),
        (("--quantity", "NaN", "--time", TIME, "--reason", "x"), 2, "'NaN' is no number"),
        (("--quantity", "1e-10", "--time", TIME, "--reason", "x"), 2, "nine decimal places"),
        (("--quantity", "1e25", "--time", TIME, "--reason", "x"), 2, "beyond"),
        (("--quantity", "5", "--time", TIME), 2, "--reason"),
        (("--quantity", "5", "--time", TIME, "--reason", "  "), 2, "say why"),
        (("--quantity", "5", "--reason", "x"), 2, "--window"),
        ((*GOOD, "--window", WINDOW), 2, "--window"),
        (("--quantity", "5", "--time", "yesterday", "--reason", "x"), 2, "ISO 8601"),
        (("--quantity", "5", "--window", TIME, "--reason", "x"), 1, "lies in the one of 2023-11-14"),
        (("--quantity", "5", "--time", "2999-01-01", "--reason", "x"), 1, "still to come"),
        (("--quantity", "1.5", "--time", TIME, "--reason", "x"), 1, "1.5 is not whole"),
        ((*GOOD, "--id", "?"), 2, "--id"),
    ],
)
def test_what_says_nothing_clear_is_refused(
    refuse: Refuse, arguments: tuple[str, ...], code: int, said: str
) -> None:
    """Each with the reason, before anything is written."""
    assert said in refuse(*arguments, code=code)


def test_what_cannot_be_amended_is_refused(refuse: Refuse, world: World) -> None:
    """Unknown meters and accounts, metrics that do not add up."""
    assert "there is no meter 'other'" in refuse(*GOOD, meter="other")
    assert "slowest is a max" in refuse(*GOOD, meter="slowest")
    assert "user:x has no usage and no customer" in refuse(*GOOD, account="user:x")
    assert "no account's name" in refuse(*GOOD, account="x" * 1001, code=2)
    # Forced, it gets as far as the broker, which is not there.
    assert "no answer from Kafka" in refuse(*GOOD, "--force-account", account="user:x")


def test_a_final_invoice_asks_for_a_policy(refuse: Refuse, world: World) -> None:
    """Nothing is known before the first planning; hold refuses; the others say what follows; a credit is Stripe's."""
    edges = {"start_ms": TIME_MS - 10**7, "end_ms": TIME_MS + 10**7}
    world.period("cus_1", **edges, state="closed")  # type: ignore[arg-type]
    assert "final, and nothing says yet what becomes of it" in refuse(*GOOD)
    for policy, said in (
        (ClosedPolicy.HOLD, "the policy for that is to hold"),
        (ClosedPolicy.RESTAMP, "no answer from Kafka"),
        (ClosedPolicy.INVOICE_ITEM, "no answer from Kafka"),
    ):
        world.rules = type(world.rules)(world.rules.ledger_id, policy)
        world.plan()
        assert said in refuse(*GOOD)
    assert "by a credit note" in refuse("--quantity", "-5", "--time", TIME, "--reason", "x")
