"""Packing and group commit, in virtual time and on a log in memory."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator

import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ingest.decoded import DecodedBatch
from services.ingest.group_commit import GroupCommit
from services.ingest.ingest_time import IngestTime
from services.ingest.letters import write_body_letter
from services.ingest.packer import Packer, SealedRecord, Submission
from services.ingest.redaction import Redactor
from tests.unit.ingest.decoders import CAPTURE, INGEST_MS, KEYS, kong_decoder, kong_entry
from tests.unit.ingest.fake_log import FakeLog
from tollgate.contracts.events import assign_partition, decode_batch
from tollgate.runtime.clock import ManualClock

PARTITIONS = 8


def batch(*accounts: str, padding: str = "") -> DecodedBatch:
    entries = [
        kong_entry(
            consumer={"custom_id": account},
            request={"id": f"{account}-{number}", "uri": "/" + padding, "method": "GET"},
        )
        for number, account in enumerate(accounts)
    ]
    return kong_decoder().decode(
        json.dumps(entries).encode(), ingest_ms=INGEST_MS, trust_ids=True, replayed=False
    )


def packer(record_bytes_max: int = 4 * 1024 * 1024) -> Packer:
    return Packer(
        partitions=PARTITIONS,
        properties=CAPTURE.names,
        instance="i",
        capture=CAPTURE.digest,
        record_bytes_max=record_bytes_max,
    )


class Rig:
    def __init__(self) -> None:
        self.clock = ManualClock(INGEST_MS)
        self.log = FakeLog()
        self.commit = GroupCommit(
            packer(),
            self.log,
            self.clock,
            IngestTime(self.clock),
            delay_seconds=0.004,
            rows_max=100,
            answer_timeout_seconds=8.0,
        )

    async def advance(self, ms: int) -> None:
        await self.turn()
        self.clock.advance_ms(ms)
        await self.turn()

    async def turn(self) -> None:
        """Let every task that can run do so."""
        for _ in range(5):
            await asyncio.sleep(0)


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    tasks = [asyncio.create_task(rig.commit.run()), asyncio.create_task(rig.commit.watch_deadlines())]
    await asyncio.sleep(0)
    yield rig
    for task in tasks:
        task.cancel()


async def test_concurrent_requests_share_a_record(rig: Rig) -> None:
    """Two requests of one account within the delay make one record, and both wait for it."""
    one, two = rig.commit.submit("s", batch("a")), rig.commit.submit("s", batch("a"))
    await rig.advance(3)
    assert rig.log.records == []
    await rig.advance(1)
    assert [record.headers.rows for record in rig.log.records] == [2]
    assert not one.done()
    rig.log.answer(True)
    assert (one.result(), two.result()) == (True, True)


async def test_sources_do_not_share_records(rig: Rig) -> None:
    """The source is a header of the record."""
    rig.commit.submit("s1", batch("a"))
    rig.commit.submit("s2", batch("a"))
    await rig.advance(4)
    assert sorted(record.headers.source for record in rig.log.records) == ["s1", "s2"]


async def test_many_rows_do_not_wait(rig: Rig) -> None:
    """At the bound of rows the group is sealed at once."""
    rig.commit.submit("s", batch(*["a"] * 100))
    assert sum(record.headers.rows for record in rig.log.records) == 100


async def test_a_request_is_answered_when_its_last_record_is_acknowledged(rig: Rig) -> None:
    """Its events may be on several partitions, its rejections on the dead letters' topic."""
    letter = write_body_letter(b"x", "d", source="s", ingest_ms=INGEST_MS, redactor=Redactor(KEYS, CAPTURE))
    done = rig.commit.submit("s", batch(*[f"a{n}" for n in range(40)]), [letter])
    await rig.advance(4)
    parts = len(rig.log.records) + 1
    assert parts > 3
    rig.log.answer(True, parts - 1)
    assert not done.done()
    rig.log.answer(True)
    assert done.result() is True


async def test_one_refused_record_fails_the_requests_in_it_and_no_other(rig: Rig) -> None:
    """A request whose own record was acknowledged has succeeded."""
    accounts = [f"a{n}" for n in range(30)]
    done = {account: rig.commit.submit("s", batch(account)) for account in accounts}
    await rig.advance(4)
    refused = rig.log.records[0].partition
    rig.log.answer(False, 1)
    rig.log.answer(True)
    for account, future in done.items():
        assert future.result() is (assign_partition("user:" + account, PARTITIONS) != refused)


async def test_no_answer_in_time_is_a_failure(rig: Rig) -> None:
    """After the bound the sender is told to send again; a late acknowledgement changes nothing."""
    done = rig.commit.submit("s", batch("a"))
    for _ in range(31):
        await rig.advance(250)
    assert not done.done()
    await rig.advance(500)
    assert done.result() is False
    rig.log.answer(True)


async def test_drain_seals_and_waits(rig: Rig) -> None:
    """Nothing is left behind when the process ends."""
    done = rig.commit.submit("s", batch("a"))
    draining = asyncio.create_task(rig.commit.drain())
    await asyncio.sleep(0)
    assert len(rig.log.records) == 1
    assert not draining.done()
    rig.log.answer(True)
    await draining
    assert done.result() is True


def test_a_record_above_the_bound_is_cut() -> None:
    """Every part is small enough, and together they hold every row."""
    cut = packer(record_bytes_max=40_000)
    decoded = batch(*["a"] * 31, padding="x" * 10_000)
    for column in ("user_agent", "path"):
        # Text that does not compress.
        decoded.columns[column] = [
            f"{hash((column, row, n))}" * 100 for row, n in zip(range(31), range(31), strict=True)
        ]
    submission = Submission(lambda _: None, 1)
    cut.add("s", decoded.columns, decoded.rows, submission)
    records = cut.seal(INGEST_MS)
    assert len(records) > 1
    assert all(len(record.value) <= 40_000 for record in records)
    assert [row["id"] for r in records for row in decode_batch(r.value).to_pylist()] == decoded.columns["id"]
    assert submission.outstanding == len(records)


@settings(deadline=None, max_examples=60)
@given(
    requests=st.lists(
        st.tuples(
            st.sampled_from(["s1", "s2"]), st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6)
        ),
        max_size=12,
    )
)
def test_every_row_is_on_its_accounts_partition_once(requests: list[tuple[str, list[str]]]) -> None:
    """Whatever is packed with whatever: no row lost, doubled or misplaced, each submission waits for its own."""
    packing = packer()
    finished: list[int] = []
    submissions: list[Submission] = []
    expected: Counter[tuple[int, str, str]] = Counter()
    for number, (source, accounts) in enumerate(requests):

        def finish(_: bool, number: int = number) -> None:
            finished.append(number)

        submissions.append(Submission(finish, 1))
        decoded = batch(*accounts)
        packing.add(source, decoded.columns, decoded.rows, submissions[-1])
        expected.update((assign_partition("user:" + a, PARTITIONS), source, "user:" + a) for a in accounts)
    records = packing.seal(INGEST_MS)
    found = Counter(
        (record.partition, record.headers.source, row["account"])
        for record in records
        for row in decode_batch(record.value).to_pylist()
    )
    assert found == expected
    assert len({(record.partition, record.headers.source) for record in records}) == len(records)
    for submission, (source, accounts) in zip(submissions, requests, strict=True):
        partitions = {assign_partition("user:" + account, PARTITIONS) for account in accounts}
        waiting = [record for record in records if submission in record.submissions]
        assert {(r.partition, r.headers.source) for r in waiting} == {(p, source) for p in partitions}
        assert submission.outstanding == len(waiting)
    settle_all(records)
    assert sorted(finished) == list(range(len(requests)))


def settle_all(records: list[SealedRecord]) -> None:
    for record in records:
        record.settle(True)
