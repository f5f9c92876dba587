"""`tollgate verify` agrees with a run nobody has touched, and finds each thing that was done behind its back."""

from __future__ import annotations

import asyncio
import json
import subprocess
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete
from sqlalchemy import delete, select, update

from tests.integration.cli_rig import EVENTS, PARTITIONS, CountedRun, read_log, write_log
from tests.parts.kafka import BrokerSettings
from tollgate.contracts.topics import GATEWAY_EVENTS
from tollgate.ledger.engine import ledger_transaction, open_ledger, read_snapshot
from tollgate.ledger.tables import meters, postings, progress, usage
from tollgate.runtime.kafka import admin_client

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow]

Ended = subprocess.CompletedProcess[str]


def verify(run: CountedRun, ledger: str, *options: str, **changed: str) -> Ended:
    """`tollgate verify` on a ledger: as a process on PostgreSQL, without one on SQLite."""
    command = run.invoke if ledger.startswith("sqlite") else run.tollgate
    return command("verify", *options, LEDGER__URL=ledger, **changed)


@pytest.fixture(params=["postgresql", "sqlite"])
def ledger(request: pytest.FixtureRequest, counted_run: CountedRun, tmp_path: Path) -> Iterator[str]:
    """A copy of the run's ledger, to be tampered with."""
    if request.param == "sqlite":
        yield counted_run.copy_ledger_to_sqlite(tmp_path / "ledger.sqlite3")
        return
    url = counted_run.copy_ledger()
    yield url
    counted_run.drop_ledger(url)


@pytest.fixture
def postgres_ledger(counted_run: CountedRun) -> Iterator[str]:
    """A copy of the run's ledger on PostgreSQL alone, for what does not depend on the database."""
    url = counted_run.copy_ledger()
    yield url
    counted_run.drop_ledger(url)


def look(url: str, statement: Any) -> Any:
    """One row of a ledger."""
    engine = open_ledger(url)
    try:
        with read_snapshot(engine) as connection:
            return connection.execute(statement).first()
    finally:
        engine.dispose()


def change(url: str, statement: Any) -> None:
    """Change exactly one row behind the ledger's back."""
    engine = open_ledger(url)
    try:
        with ledger_transaction(engine) as connection:
            assert connection.execute(statement).rowcount == 1
    finally:
        engine.dispose()


def one_usage(url: str, meter: str) -> Any:
    """The largest usage row of a meter, with its key and quantity."""
    return look(
        url,
        select(usage)
        .join(meters, meters.c.meter_id == usage.c.meter_id)
        .where(meters.c.name == meter)
        .order_by(usage.c.events.desc(), usage.c.account),
    )


def of_usage(row: Any) -> Any:
    """The condition that names this usage row alone."""
    keys = ("partition", "meter_id", "window_start_ms", "account", "dimensions")
    condition = usage.c.partition == row.partition
    for key in keys[1:]:
        condition &= usage.c[key] == getattr(row, key)
    return condition


def assert_found(done: Ended, *words: str) -> None:
    """Exit code 1, no traceback, and each of `words` in one line that says VIOLATED."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("VIOLATED")]
    assert any(all(word in line for word in words) for line in lines), done.stdout + done.stderr


def test_an_untouched_run_is_proven_both_ways(counted_run: CountedRun, ledger: str) -> None:
    """Ledger, log and recount agree: exit 0, nothing violated, nothing unproven, every event counted again."""
    plain = verify(counted_run, ledger)
    assert (plain.returncode, plain.stderr) == (0, "")
    assert "The law holds." in plain.stdout
    again = verify(counted_run, ledger, "--refold", "--json")
    assert again.returncode == 0, again.stdout + again.stderr
    found = json.loads(again.stdout)
    assert (found["violations"], found["unproven"]) == ([], [])
    received = counted_run.truth.outcomes["received"]
    assert received > EVENTS * 0.9
    assert any(
        f"Recount  {received:,} events of the log, on {PARTITIONS} of {PARTITIONS} partitions" in fact
        for fact in found["facts"]
    ), found["facts"]


def test_a_usage_row_changed_by_hand_is_found(counted_run: CountedRun, ledger: str) -> None:
    """The row's meter and partition are named, with the total that was kept and the sum that is there."""
    row = one_usage(ledger, "api_calls")
    change(ledger, update(usage).where(of_usage(row)).values(quantity=row.quantity + 1))
    assert_found(
        verify(counted_run, ledger),
        "totals",
        f"partition {row.partition}, meter {row.meter_id}",
        "quantity in progress is",
    )
    assert_found(
        verify(counted_run, ledger, "--refold"),
        "recount",
        f"partition {row.partition}, meter api_calls, account {row.account}",
        f"quantity in the ledger is {row.quantity + 1}, the log comes to {row.quantity}",
    )


def test_a_deleted_posting_is_found(counted_run: CountedRun, ledger: str) -> None:
    """Usage that was posted and now no posting covers: the chain is named, and how much of it is missing."""
    row = look(ledger, select(postings).order_by(postings.c.posting_key, postings.c.seq.desc()))
    alone = row.seq == 1
    change(
        ledger,
        delete(postings).where(postings.c.posting_key == row.posting_key, postings.c.seq == row.seq),
    )
    missing = row.quantity_to - row.quantity_from
    assert_found(
        verify(counted_run, ledger),
        row.posting_key,
        f"{row.quantity_to if alone else missing} is neither posted nor held",
    )


def test_progress_moved_back_is_found(counted_run: CountedRun, ledger: str) -> None:
    """The ledger's own tables reach further than progress, and the last record is another one."""
    row = look(ledger, select(progress).where(progress.c.next_offset > 2))
    change(
        ledger,
        update(progress).where(progress.c.partition == row.partition).values(next_offset=row.next_offset - 1),
    )
    done = verify(counted_run, ledger)
    assert_found(done, f"partition {row.partition}", f"but progress is at {row.next_offset - 1}")
    assert_found(
        done, f"partition {row.partition}: record {row.next_offset - 2} is not the one that was counted"
    )


def test_progress_moved_forward_is_found(
    counted_run: CountedRun, ledger: str, copied_log: BrokerSettings
) -> None:
    """Where the log has more records, the last one counted is another; where it has none, its tail is missing."""
    row = look(ledger, select(progress).where(progress.c.next_offset > 2))
    forward = update(progress).where(progress.c.partition == row.partition)
    change(ledger, forward.values(next_offset=row.next_offset + 1))
    assert_found(
        verify(counted_run, ledger, KAFKA__TOPIC_PREFIX=copied_log.topic_prefix),
        f"partition {row.partition} ends at {row.next_offset}",
        f"everything below {row.next_offset + 1} was counted",
        "lost its tail",
    )
    log = asyncio.run(read_log(counted_run.broker))
    log = {partition: records[: _counted(ledger, partition)] for partition, records in log.items()}
    log[row.partition] = [*log[row.partition][: row.next_offset], log[row.partition][0]]
    asyncio.run(write_log(copied_log, log))
    done = verify(counted_run, ledger, "--refold", KAFKA__TOPIC_PREFIX=copied_log.topic_prefix)
    assert_found(done, f"partition {row.partition}: record {row.next_offset} is not the one that was counted")


def test_a_log_that_lost_its_tail_is_found(
    counted_run: CountedRun, postgres_ledger: str, copied_log: BrokerSettings
) -> None:
    """A topic recreated with one record less is named by partition; recreated with other records, by the record."""
    environment = {"LEDGER__URL": postgres_ledger, "KAFKA__TOPIC_PREFIX": copied_log.topic_prefix}
    untouched = counted_run.invoke("verify", "--refold", **environment)
    assert untouched.returncode == 0, untouched.stdout + untouched.stderr
    log = asyncio.run(read_log(copied_log))
    partition = max(log, key=lambda number: len(log[number]))
    whole = log[partition]
    asyncio.run(write_log(copied_log, log | {partition: whole[:-1]}))
    for done in (
        counted_run.tollgate("verify", **environment),
        counted_run.invoke("verify", "--refold", **environment),
    ):
        assert_found(
            done,
            f"partition {partition} ends at {len(whole) - 1}",
            f"everything below {len(whole)} was counted",
            "lost its tail",
        )
    assert f"NOT PROVEN  cannot recount partition {partition}" in done.stderr
    asyncio.run(write_log(copied_log, log | {partition: [*whole[:-1], whole[0]]}))
    assert_found(
        counted_run.invoke("verify", **environment),
        f"partition {partition}: record {len(whole) - 1} is not the one that was counted",
    )


def test_a_log_past_its_retention_is_said_and_no_violation(
    counted_run: CountedRun, postgres_ledger: str, copied_log: BrokerSettings
) -> None:
    """What cannot be counted again is named as not proven; what can agrees; the exit code is 0."""
    asyncio.run(_delete_first_record(copied_log, partition=0))
    done = counted_run.invoke(
        "verify", "--refold", LEDGER__URL=postgres_ledger, KAFKA__TOPIC_PREFIX=copied_log.topic_prefix
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NOT PROVEN  cannot recount partition 0: the log begins at 1" in done.stderr
    assert "The law holds where it could be looked at; 1 partitions are not proven." in done.stdout
    assert f"on {PARTITIONS - 1} of {PARTITIONS} partitions" in done.stdout


def test_a_maximum_changed_by_hand_is_found_by_a_recount_only(counted_run: CountedRun, ledger: str) -> None:
    """No sum shows it; the recount names partition, meter, account, window and both numbers."""
    row = one_usage(ledger, "slowest_call")
    change(ledger, update(usage).where(of_usage(row)).values(quantity=row.quantity + Decimal("0.5")))
    assert verify(counted_run, ledger).returncode == 0
    done = verify(counted_run, ledger, "--refold")
    assert_found(
        done,
        f"partition {row.partition}, meter slowest_call, account {row.account}, window ",
        f"quantity in the ledger is {row.quantity + Decimal('0.5')}, the log comes to {row.quantity}",
    )
    assert "1 violations." in done.stdout


@pytest.fixture
def copied_log(counted_run: CountedRun) -> BrokerSettings:
    """The run's log up to what was counted, record by record, in topics that may be broken."""
    broker = counted_run.broker.model_copy(update={"topic_prefix": f"t{uuid.uuid4().hex[:12]}."})
    log = asyncio.run(read_log(counted_run.broker))
    counted = {partition: _counted(counted_run.counted_url, partition) for partition in log}
    asyncio.run(write_log(broker, {p: records[: counted[p]] for p, records in log.items()}))
    return broker


def _counted(url: str, partition: int) -> int:
    row = look(url, select(progress).where(progress.c.partition == partition))
    offset: int = row.next_offset
    return offset


async def _delete_first_record(broker: BrokerSettings, partition: int) -> None:
    async with admin_client(broker) as admin:
        place = TopicPartition(broker.topic_name(GATEWAY_EVENTS.name), partition)
        await admin.delete_records({place: RecordsToDelete(before_offset=1)})
