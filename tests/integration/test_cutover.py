"""From 4 to 12 partitions on real Kafka and PostgreSQL: nothing lost, nothing doubled, killed at each step on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.cli.cutover_faults import CutoverStep
from tests.fakes.events import Call
from tests.integration.cutover_rig import CutoverRig
from tests.parts.kafka import BrokerSettings
from tollgate.contracts.events import assign_partition
from tollgate.contracts.topics import GATEWAY_EVENTS
from tollgate.ledger.audit import AuditAction, list_audit
from tollgate.ledger.init import read_pins
from tollgate.ledger.verify import verify_ledger
from tollgate.runtime.faults import EXIT_CRASHED
from tollgate.runtime.kafka import topic_partitions

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow]

ACCOUNTS = 61
"""Enough that each of twelve partitions has some, and most move."""


def some(count: int, first: int = 0) -> list[Call]:
    return [Call(f"call-{n}", f"user:{n % ACCOUNTS}") for n in range(first, first + count)]


@pytest.fixture
async def rig(kafka_settings: BrokerSettings, postgres_url: str, tmp_path: Path) -> AsyncIterator[CutoverRig]:
    made = await CutoverRig(kafka_settings, postgres_url, tmp_path).prepare()
    assert isinstance(made, CutoverRig)
    yield made
    made.close()


async def test_killed_at_each_step_it_is_exact(rig: CutoverRig) -> None:
    """1,000 events by the old count; each step of the cut-over dies once; the same 1,000 again and 1,000 more by the
    new one: every account's total is what a count made here says, the copies are duplicates, and a recount agrees."""
    await rig.send(some(1_000), 4)
    meter = rig.worker().start()
    await rig.until_all_folded()
    for step in CutoverStep:
        assert read_pins(rig.engine).partitions == 4
        code, said = await rig.cut_over(12, CUTOVER_FAULT=step)
        assert code == EXIT_CRASHED, said
    assert read_pins(rig.engine).partitions == 12, "the last step it died at was behind the switch"
    code, said = await rig.cut_over(12)
    assert code == 0
    assert "nothing to do" in said
    assert await topic_partitions(rig.settings, GATEWAY_EVENTS.name) == 12
    assert meter.stop() == 0
    assert sum(assign_partition(f"user:{n}", 12) >= 4 for n in range(ACCOUNTS)) > ACCOUNTS // 2

    await rig.send(some(1_000), 12)
    await rig.send(some(1_000, first=1_000), 12)
    meter.start()
    await rig.until_all_folded()
    rig.assert_exact()
    assert sum(each.duplicate for each in rig.progress().values()) == 1_000
    assert sum(each.dead for each in rig.progress().values()) == 0
    assert {p for p, each in rig.progress().items() if each.received} == set(range(12))
    assert verify_ledger(rig.engine) == []
    recount = await rig.run("verify", "--refold")
    assert recount.returncode == 0, recount.stdout + recount.stderr
    assert "on 12 of 12 partitions" in recount.stdout
    replayed = await rig.run("replay", "--against", "live", "--exit-code")
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    (entry,) = list_audit(rig.engine)
    assert (entry.action, entry.details) == (AuditAction.CUTOVER, {"before": 4, "after": 12})
    assert meter.stop() == 0


async def test_a_forgotten_ingest_loses_and_doubles_nothing(rig: CutoverRig) -> None:
    """An ingest that slept through writes retries by the old count beside those by the new one, and a new event: what it
    writes is dead, with its letters, and the law and a recount still hold."""
    await rig.send(some(300), 4)
    meter = rig.worker().start()
    await rig.until_all_folded()
    code, said = await rig.cut_over(12)
    assert code == 0, said
    retried = [Call(f"retry-{n}", f"user:{n}") for n in range(ACCOUNTS)]
    await rig.send(retried, 12)
    await rig.send([*retried, Call("only-here", "user:1")], 4, counts=False)
    assert meter.stop() == 0
    meter.start()
    await rig.until_all_folded()
    rig.assert_exact()
    assert sum(each.dead for each in rig.progress().values()) == ACCOUNTS + 1
    assert verify_ledger(rig.engine) == []
    recount = await rig.run("verify", "--refold")
    assert recount.returncode == 0, recount.stdout + recount.stderr
    letters = await rig.run("dead", "list", "--reason", "misplaced", "--json")
    assert "written for 4 partitions, the log has 12" in letters.stdout
    assert meter.stop() == 0


async def test_what_is_not_drained_is_refused(rig: CutoverRig) -> None:
    """Records nobody counts, and a number that is no multiple: refused with the reason, and nothing has changed."""
    await rig.send(some(100), 4)
    code, said = await rig.cut_over(12, "--wait-seconds", "0")
    assert code == 1
    assert "not counted to their end" in said
    code, said = await rig.cut_over(6)
    assert code == 1
    assert "no multiple of 4" in said
    code, said = await rig.cut_over(12, "--plan")
    assert code == 0
    assert "4 -> 12" in said
    assert "to count    partitions" in said
    assert read_pins(rig.engine).partitions == 4
    assert await topic_partitions(rig.settings, GATEWAY_EVENTS.name) == 4
