"""`tollgate replay` and recounts from the archive, against what a run of every service left behind."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import update

from sandbox.child import Child
from sandbox.traffic.calls import HOUR_MS
from services.cli.archived import Archive
from services.cli.console import format_time
from services.cli.replay import EXIT_DIFFERS
from tests.integration.cli_rig import PARTITIONS, ROOT, CountedRun, read_log
from tests.integration.test_verify import change, of_usage, one_usage
from tests.parts.kafka import KafkaPart
from tests.parts.postgres import PostgresPart
from tollgate.contracts.archive import FACTS_KEY, FileName
from tollgate.contracts.topics import GATEWAY_EVENTS
from tollgate.ledger.tables import usage
from tollgate.runtime.kafka import topic_bounds

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow]

Ended = subprocess.CompletedProcess[str]
METERS = str(ROOT / "meters.yaml")


@pytest.fixture(scope="module")
def counted_run(
    kafka: KafkaPart, postgres: PostgresPart, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CountedRun]:
    """A run of its own: other tests send late events of the shared one again, and these compare the whole log."""
    run = CountedRun(kafka.fresh(), postgres, tmp_path_factory.mktemp("replayed-run"))
    try:
        run.play()
        yield run
    finally:
        run.close()


@pytest.fixture(scope="module")
def archive(counted_run: CountedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's whole log in files, by the service itself."""
    directory = tmp_path_factory.mktemp("archived-run")
    root = directory / "archive"
    child = Child("archive", directory / "archive.log")
    environment = counted_run.environment(
        ARCHIVE__DIRECTORY=str(root),
        ARCHIVE__FILE_SECONDS_MAX="2",
        ARCHIVE__ROW_GROUP_BYTES="60000",
        HTTP__PORT="0",
    )
    child.start([sys.executable, "-m", "services.archive"], cwd=ROOT, env=environment)
    try:
        ends = _ends(counted_run)
        deadline = time.monotonic() + 60
        while not root.exists() or _reached(root) != ends:
            assert time.monotonic() < deadline, child.tail()
            time.sleep(0.2)
        assert child.stop(signal.SIGTERM, 20) == 0, child.tail()
    finally:
        child.kill()
    return root


def _ends(run: CountedRun) -> dict[int, int]:
    bounds = asyncio.run(topic_bounds(run.broker, GATEWAY_EVENTS.name))
    return {partition: end for partition, (_, end) in bounds.items() if end}


def _reached(root: Path) -> dict[int, int]:
    found: dict[int, int] = {}
    for path in root.rglob("*.parquet"):
        name = FileName.parse(str(path))
        if name is not None:
            found[name.partition] = max(found.get(name.partition, 0), name.next_offset)
    return found


@pytest.fixture(params=["postgresql", "sqlite"])
def ledger(request: pytest.FixtureRequest, counted_run: CountedRun, tmp_path: Path) -> Iterator[str]:
    """A copy of the run's ledger."""
    if request.param == "sqlite":
        yield counted_run.copy_ledger_to_sqlite(tmp_path / "ledger.sqlite3")
        return
    url = counted_run.copy_ledger()
    yield url
    counted_run.drop_ledger(url)


def replay(run: CountedRun, *options: str, code: int = 0, **changed: str) -> Ended:
    done = run.invoke("replay", *options, **changed)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def rows(done: Ended) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_archive_log_and_truth_come_to_the_same(
    counted_run: CountedRun, archive: Path, tmp_path: Path
) -> None:
    """Every row of the five meters, from files, from Kafka, and by the history file's own count."""
    from_archive = replay(counted_run, "--meters", METERS, "--from-archive", str(archive), "--json")
    out = tmp_path / "usage.parquet"
    from_log = replay(counted_run, "--meters", METERS, "--from-log", "--json", "--out", str(out))
    assert rows(from_archive) == rows(from_log)
    written = pl.read_parquet(out)
    assert len(written) == len(rows(from_log))
    found: dict[tuple[str, str, int], Decimal] = defaultdict(Decimal)
    for row in written.iter_rows(named=True):
        # The history knows no models: chat_tokens keeps them apart.
        found[row["meter"], row["account"], row["window_start_ms"]] += row["quantity"]
    truth = {key: Decimal(quantity) for key, quantity in counted_run.truth.usage.items()}
    assert {key: value for key, value in found.items() if value} == {k: v for k, v in truth.items() if v}
    assert "events/s" in from_archive.stderr
    assert "note:" not in from_archive.stderr


@pytest.mark.parametrize("source", [("--from-archive",), ("--from-log",), ("--from-archive", "--from-log")])
def test_the_meters_in_force_agree_with_the_ledger(
    counted_run: CountedRun, archive: Path, ledger: str, source: tuple[str, ...]
) -> None:
    """Nothing differs, whichever source; --exit-code says so."""
    words = [
        word for each in source for word in ((each, str(archive)) if each == "--from-archive" else (each,))
    ]
    done = replay(
        counted_run,
        "--meters",
        METERS,
        *words,
        "--against",
        "live",
        "--exit-code",
        "--json",
        LEDGER__URL=ledger,
    )
    assert rows(done) == []
    agreed = int(done.stderr.split(" usage rows agree")[0].split()[-1].replace(",", ""))
    assert agreed == len(rows(replay(counted_run, "--meters", METERS, "--from-log", "--json")))
    assert "not compared" not in done.stderr


def test_a_row_changed_behind_the_ledgers_back_differs(
    counted_run: CountedRun, archive: Path, ledger: str
) -> None:
    """That one row alone, with both numbers."""
    row = one_usage(ledger, "api_calls")
    change(ledger, update(usage).where(of_usage(row)).values(quantity=row.quantity + 5))
    done = replay(
        counted_run,
        "--meters",
        METERS,
        "--from-archive",
        str(archive),
        "--against",
        "live",
        "--exit-code",
        "--json",
        code=EXIT_DIFFERS,
        LEDGER__URL=ledger,
    )
    (found,) = rows(done)
    assert (found["meter"], found["account"]) == ("api_calls", row.account)
    assert (Decimal(found["live"]), Decimal(found["shadow"])) == (row.quantity + 5, row.quantity)
    assert Decimal(found["difference"]) == -5


def test_a_shadow_meter_differs_by_what_it_counts(
    counted_run: CountedRun, archive: Path, tmp_path: Path
) -> None:
    """Twice the weight is twice the quantity; a meter the ledger has not is named, and nothing of it compared."""
    changed = tmp_path / "meters.yaml"
    changed.write_text(
        "meters:\n"
        "  - name: egress_bytes\n    metric: { sum: response_bytes * 2 }\n    window: hour\n"
        "  - name: unheard_of\n    metric: count\n    window: hour\n"
    )
    done = replay(
        counted_run, "--meters", str(changed), "--from-archive", str(archive), "--against", "live", "--json"
    )
    found = rows(done)
    assert found
    assert {row["meter"] for row in found} == {"egress_bytes"}
    assert all(Decimal(row["shadow"]) == 2 * Decimal(row["live"]) for row in found)
    assert "the ledger counts no meter unheard_of" in done.stderr
    assert (
        "there is no meter nothing"
        in replay(counted_run, "--meters", str(changed), "--meter", "nothing", code=2).stderr
    )


def test_only_windows_wholly_inside_are_shown(counted_run: CountedRun, archive: Path) -> None:
    """Half an hour cut from either side takes the hours it cuts away, and leaves the rest as it was."""
    windows = sorted({start for meter, _, start in counted_run.truth.usage if meter == "egress_bytes"})
    first, last = windows[0], windows[-1]
    since, until = first + HOUR_MS // 2, last + HOUR_MS // 2
    options = ("--meters", METERS, "--meter", "egress_bytes", "--from-archive", str(archive), "--json")
    whole = rows(replay(counted_run, *options))
    cut = rows(replay(counted_run, *options, "--since", _iso(since), "--until", _iso(until)))
    kept = {_window(start) for start in windows if since <= start and start + HOUR_MS <= until}
    assert {row["window"] for row in cut} == kept
    assert cut == [row for row in whole if row["window"] in kept]


def _iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat()


def _window(time_ms: int) -> str:
    return format_time(time_ms)


def test_a_recount_from_the_archive_agrees(counted_run: CountedRun, archive: Path, ledger: str) -> None:
    """The same events, rows and partitions as from the log; nothing violated, nothing unproven."""
    told = []
    for words in ((), ("--from-archive", str(archive))):
        done = counted_run.invoke("verify", "--refold", *words, "--json", LEDGER__URL=ledger)
        assert done.returncode == 0, done.stdout + done.stderr
        told.append(json.loads(done.stdout))
    assert told[0] == told[1]
    assert told[1]["unproven"] == []
    assert any(f"on {PARTITIONS} of {PARTITIONS} partitions" in fact for fact in told[1]["facts"])


def test_the_archive_is_really_read(counted_run: CountedRun, archive: Path, tmp_path: Path) -> None:
    """One event's account changed in one file: the recount from there finds it, the one from the log does not."""
    copy = tmp_path / "archive"
    shutil.copytree(archive, copy)
    opened = Archive.open(str(copy))
    path = next(
        copy / name.path for names in opened.files.values() for name in names if opened.facts(name).events
    )
    file = pq.ParquetFile(path)
    table, facts = file.read(), file.metadata.metadata[FACTS_KEY]
    accounts = table.column("account").to_pylist()
    at = next(index for index, account in enumerate(accounts) if account is not None)
    accounts[at] = "user:mallory"
    changed = table.set_column(
        table.schema.get_field_index("account"), table.schema.field("account"), pa.array(accounts)
    )
    with pq.ParquetWriter(path, changed.schema) as writer:
        writer.write_table(changed)
        writer.add_key_value_metadata({FACTS_KEY: facts})
    done = counted_run.invoke("verify", "--refold", "--from-archive", str(copy))
    assert done.returncode == 1
    assert "user:mallory" in done.stderr


def test_what_is_no_archive_is_said(counted_run: CountedRun, archive: Path, tmp_path: Path) -> None:
    """A directory that is none, one with a file missing, one of another log: one line each."""
    assert (
        "there is no archive at"
        in replay(counted_run, "--from-archive", str(tmp_path / "none"), code=1).stderr
    )
    copy = tmp_path / "archive"
    shutil.copytree(archive, copy)
    pins = json.loads((copy / "archive.json").read_text())
    (copy / "archive.json").write_text(json.dumps(pins | {"kafka_cluster_id": "another"}))
    assert "do not belong together" in replay(counted_run, "--from-archive", str(copy), code=1).stderr


async def test_every_record_of_the_log_is_in_the_archive(counted_run: CountedRun, archive: Path) -> None:
    """Headers and stamps of each, in order."""
    opened = Archive.open(archive.as_uri())
    log = await read_log(counted_run.broker)
    for partition, records in log.items():
        found = list(opened.records(partition, 0, 2**62)) if partition in opened.files else []
        assert [(tuple(each.headers), each.timestamp_ms) for each in records] == [
            (each.headers, each.timestamp_ms) for each in found
        ]


def test_an_event_is_found_again_and_explained(counted_run: CountedRun, archive: Path) -> None:
    """By id, every copy of it, the same from files and from Kafka; an account's events are as many as were sent."""
    logged = [
        json.loads(line) for line in counted_run.invoke("events", "tail", "--no-follow").stdout.splitlines()
    ]
    events = [line for line in logged if "id" in line]
    copies = Counter(event["id"] for event in events)
    (twice, _), *_ = copies.most_common(1)
    assert copies[twice] > 1
    for words in ((), ("--from-archive", str(archive))):
        done = counted_run.invoke("events", "find", "--id", twice, *words)
        assert [json.loads(line) for line in done.stdout.splitlines()] == [
            event for event in events if event["id"] == twice
        ]
    own = [event for event in events if event["account"] == "user:stranger"]
    middle = sorted(event["time_ms"] for event in own)[len(own) // 2] // 1000 * 1000
    done = counted_run.invoke(
        *("events", "find", "--account", "user:stranger", "--from-archive", str(archive)),
        *("--since", _iso(middle)),
    )
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        event for event in own if event["time_ms"] >= middle
    ]
    explain = ("meters", "explain", METERS, "--id", twice)
    explained = [counted_run.invoke(*explain, *more) for more in ((), ("--from-archive", str(archive)))]
    assert explained[0].returncode == 0
    assert explained[0].stdout == explained[1].stdout
    assert json.loads(explained[0].stdout.splitlines()[0])["id"] == twice
    none = counted_run.invoke("meters", "explain", METERS, "--id", "nobody", "--from-archive", str(archive))
    assert (none.returncode, none.stderr) == (1, "Error: no event nobody in the archive\n")


def test_doctor_looks_at_the_archive(counted_run: CountedRun, archive: Path, tmp_path: Path) -> None:
    """Files, partitions and what is in none; a directory that is no archive is wrong."""

    def found(directory: Path) -> dict[str, str]:
        done = counted_run.invoke("doctor", "--json", ARCHIVE__DIRECTORY=str(directory))
        (row,) = [row for row in json.loads(done.stdout) if row["check"] == "archive"]
        return dict(row)

    good = found(archive)
    assert good["result"] == "good"
    assert f"of {PARTITIONS} partitions, 0 records not in one yet" in good["seen"]
    assert "tollgate run archive" in found(tmp_path)["what_to_do"]
