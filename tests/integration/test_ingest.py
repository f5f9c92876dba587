"""Ingest as a real process on a real broker."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import pytest_asyncio

from tests.integration.ingest_rig import PARTITIONS, IngestRig
from tests.parts.kafka import BrokerSettings, KafkaPart, fresh_settings
from tollgate.contracts.dead import DeadLetter, encode_dead_letter
from tollgate.contracts.events import encode_batch, written_for
from tollgate.ledger.audit import AuditAction, AuditEntry
from tollgate.ledger.cutover import switch
from tollgate.ledger.engine import open_ledger
from tollgate.ledger.sources import revoke_source
from tollgate.metering.errors import DeadReason
from tollgate.metering.event import event_schema


def kong_entry(number: int, user: str = "cus_1") -> dict[str, Any]:
    return {
        "request": {
            "id": f"{number:032x}",
            "uri": "/v1/chat?apikey=s3cr3t",
            "url": "http://api.test:8000/v1/chat?apikey=s3cr3t",
            "method": "POST",
            "size": 100,
            "headers": {"user-agent": "t"},
            "querystring": {"apikey": "s3cr3t"},
        },
        "response": {"status": 200, "size": 200, "headers": {}},
        "latencies": {"request": 12},
        "consumer": {"id": "c", "custom_id": user},
        "client_ip": "192.0.2.1",
        "started_at": int(time.time() * 1000),
        "source": "upstream",
    }


@pytest_asyncio.fixture
async def rig(broker_settings: BrokerSettings, tmp_path: Path) -> AsyncIterator[IngestRig]:
    rig = IngestRig(broker_settings, tmp_path, TOLLGATE_CAPTURE="data:tokens")
    await rig.prepare()
    yield rig
    rig.stop()


async def test_every_format_reaches_the_log_and_ticks_count_it(rig: IngestRig) -> None:
    """Events of each format are in the log once answered with success, and the last tick counts every one."""
    rig.start()
    with rig.client() as client:
        kong = client.post("/v1/logs/kong", json=[kong_entry(n, f"cus_{n}") for n in range(50)] + [17])
        assert (kong.status_code, kong.json()) == (200, {"accepted": 50, "rejected": 1})
        moesif = client.post(
            "/v1/events/batch",
            content=gzip.compress(
                json.dumps(
                    [
                        {
                            "request": {
                                "time": "2026-01-01T00:00:00.5",
                                "uri": "http://h:1/p?q=1",
                                "verb": "GET",
                            },
                            "transaction_id": "tx-1",
                            "user_id": "u",
                        }
                    ]
                ).encode()
            ),
            headers={"content-encoding": "gzip"},
        )
        assert (moesif.status_code, moesif.json()) == (201, {"accepted": 1, "rejected": 0})
        cloud = client.post(
            "/api/v1/events",
            json={
                "specversion": "1.0",
                "id": "1",
                "source": "app",
                "type": "t",
                "subject": "u",
                "data": {"tokens": 1.10},
            },
        )
        assert (cloud.status_code, cloud.headers["x-tollgate-accepted"]) == (204, "1")
    assert rig.stop() == 0

    log = await rig.read_log()
    assert len(log.events) == 52
    assert {f"{n:032x}" for n in range(50)} | {"tx-1", "3:app:1"} == log.ids
    assert [letter.reason for letter in log.letters] == [DeadReason.NOT_AN_OBJECT]
    assert {e["properties.tokens"] for e in log.events if e["gateway"] == "cloudevents"} == {"1.1"}
    assert "s3cr3t" not in repr(log.events)
    instances = {instance for _, instance in log.rows}
    assert len(instances) == 1
    assert {place for place, _ in log.ticks} == set(range(3))
    for place, (tick, rows_before) in log.ticks.items():
        assert tick.rows_acknowledged == log.rows[place] == rows_before


async def test_a_replayed_late_letter_is_marked_and_keeps_its_rows(rig: IngestRig) -> None:
    """Rows of a late letter come back as they were, in a record that says they are to be counted all the same."""
    rig.start()
    row = {
        "id_hash": 5,
        "id_weak": False,
        "id": "old",
        "time_ms": 1000,
        "account": "user:u",
        "gateway": "kong",
        "weight": 1,
        "properties.extra": "kept",
    }
    schema = event_schema(["extra"])
    payload = encode_batch(
        pa.RecordBatch.from_pylist([{name: row.get(name) for name in schema.names}], schema=schema)
    )
    letter = DeadLetter(DeadReason.LATE, "", "gateway", 1, "events/1", payload, ingest_ms=2000)
    with rig.client() as client:
        answer = client.post("/v1/replay", content=encode_dead_letter(letter))
        assert (answer.status_code, answer.json()["accepted"]) == (200, 1)
        assert client.post("/v1/replay", content=b"\x00junk").status_code == 400
    log = await rig.read_log()
    assert [(e["id"], e["properties.extra"]) for e in log.events] == [("old", "kept")]
    assert log.accept_late == 1


async def test_ingest_goes_on_without_the_ledger_and_forgets_revoked_tokens(
    rig: IngestRig, tmp_path: Path
) -> None:
    """The snapshot of the last run is enough to start on; a revoked token ends at the next reading."""
    rig.start()
    rig.stop()
    ledger = tmp_path / "ledger.sqlite3"
    aside = tmp_path / "aside.sqlite3"
    for suffix in ("", "-wal", "-shm"):
        source = ledger.with_name(ledger.name + suffix)
        if source.exists():
            source.rename(aside.with_name(aside.name + suffix))
    ledger.mkdir()  # a directory in its place: nobody can open it
    rig.start()
    with rig.client() as client:
        assert client.post("/v1/logs/kong", json=kong_entry(1)).status_code == 200
        assert client.get("/v1/config").status_code == 200
        ledger.rmdir()
        for suffix in ("", "-wal", "-shm"):
            source = aside.with_name(aside.name + suffix)
            if source.exists():
                source.rename(ledger.with_name(ledger.name + suffix))
        engine = open_ledger(rig.ledger_url)
        assert revoke_source(engine, "gateway", 1) == 1
        engine.dispose()
        deadline = time.monotonic() + 15
        while client.post("/v1/logs/kong", json=kong_entry(2)).status_code != 401:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)


@pytest.mark.kafka
@pytest.mark.slow
async def test_no_success_without_an_acknowledgement(own_kafka: KafkaPart, tmp_path: Path) -> None:
    """While the broker is dead every request is answered 503; afterwards all that was answered 200 is in the log."""
    rig = IngestRig(
        fresh_settings(own_kafka.bootstrap, ephemeral=False),
        tmp_path,
        TOLLGATE_ANSWER_TIMEOUT_SECONDS="1.5",
        TOLLGATE_UNACKNOWLEDGED_BYTES_MAX=str(1024 * 1024),
    )
    await rig.prepare()
    rig.start()
    try:
        acknowledged: list[str] = []
        with rig.client() as client:

            def post(number: int) -> int:
                status = client.post("/v1/logs/kong", json=kong_entry(number, f"cus_{number}")).status_code
                if status == 200:
                    acknowledged.append(f"{number:032x}")
                return status

            assert {post(n) for n in range(5)} == {200}
            own_kafka.local.kill()
            refused = [post(n) for n in range(5, 9)]
            assert refused == [503] * 4
            # Past the bound of what may wait, the answer comes at once.
            big = json.dumps([kong_entry(n) for n in range(1000, 2600)]).encode()
            large = [
                client.post("/v1/logs/kong", content=big, headers={"content-type": "application/json"})
                for _ in range(3)
            ]
            assert {answer.status_code for answer in large} == {503}
            assert all(answer.headers["retry-after"] == "2" for answer in large)
            own_kafka.local.start()
            deadline = time.monotonic() + 30
            number = 5
            while number < 12:
                if post(number) == 200:
                    number += 1
                assert time.monotonic() < deadline, rig.child.tail()
        assert rig.stop() == 0
    finally:
        rig.stop()
    log = await rig.read_log()
    assert len(acknowledged) == 12
    assert set(acknowledged) <= log.ids
    for place, (tick, rows_before) in log.ticks.items():
        assert tick.rows_acknowledged <= rows_before <= log.rows[place]


def test_wrong_settings_are_named_all_at_once() -> None:
    """Every mistake in one go, by the variable's name, with exit code 2 and no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "services.ingest"],
        env={"TOLLGATE_CAPTURE": "nowhere:x", "TOLLGATE_GROUP_COMMIT_MS": "-1", "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    for name in ("ID_SEED", "KEY_SEED", "CAPTURE", "GROUP_COMMIT_MS"):
        assert f"TOLLGATE_{name}: " in done.stderr
    assert "Traceback" not in done.stderr


async def test_an_ingest_that_missed_a_cut_over_ends_and_says_why(rig: IngestRig) -> None:
    """What it had acknowledged is in the log, under the count it knew; the reason is a sentence."""
    rig.start()
    with rig.client() as client:
        assert client.post("/v1/logs/kong", json=[kong_entry(1), kong_entry(2)]).status_code == 200
    engine = open_ledger(rig.ledger_url)
    drained = dict.fromkeys(range(PARTITIONS), 0)
    entry = AuditEntry(1, "test", AuditAction.CUTOVER, "gateway.events", "more", {})
    switch(engine, PARTITIONS, 2 * PARTITIONS, drained, entry, 1)
    engine.dispose()
    assert await asyncio.to_thread(rig.child.wait, 20) == 1
    said = rig.child.output()
    assert f"partitions is pinned to '{2 * PARTITIONS}' but here it is '{PARTITIONS}'" in said
    assert "Traceback" not in said
    contents = await rig.read_log()
    assert contents.ids == {f"{1:032x}", f"{2:032x}"}
    assert {written_for(instance) for _, instance in contents.rows} == {PARTITIONS}
