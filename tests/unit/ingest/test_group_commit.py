"""Packing and group commit, in virtual time and on a log in memory."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ingest.decoded import Columns, Fault
from services.ingest.decoder import Decoder
from services.ingest.gateways.kong import KongDecoder
from services.ingest.group_commit import GroupCommit, GroupRules
from services.ingest.ingest_time import IngestTime
from services.ingest.letters import write_letter
from services.ingest.packer import Packer, SealedRecord
from services.ingest.pending import Pending
from services.ingest.redaction import Redactor
from services.ingest.submission import Submission
from tests.unit.ingest.decoders import CAPTURE, INGEST_MS, KEYS, kong_decoder, kong_entry
from tests.unit.ingest.fake_log import FakeLog
from tollgate.contracts.events import assign_partition, decode_batch
from tollgate.metering.errors import DeadReason
from tollgate.runtime.clock import ManualClock

PARTITIONS = 8


DECODER = kong_decoder()


def body(*accounts: str, padding: str = "") -> bytes:
    entries = [
        kong_entry(
            consumer={"custom_id": account},
            request={"id": f"{account}-{number}", "uri": "/" + padding, "method": "GET"},
        )
        for number, account in enumerate(accounts)
    ]
    return json.dumps(entries).encode()


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
            partial(write_letter, Redactor(KEYS, CAPTURE)),
            rules=GroupRules(
                delay_seconds=0.004,
                delay_seconds_max=0.020,
                rows_worth_waiting=3,
                rows_max=100,
                requests_max=50,
            ),
            answer_timeout_seconds=8.0,
        )

    def submit(self, source: str, entries: bytes, decoder: Decoder = DECODER) -> asyncio.Future[Submission]:
        return self.commit.submit(source, decoder, decoder.read(entries), trust_ids=True)

    async def advance(self, ms: int) -> None:
        await self.turn()
        for step_ms in [1] * ms if ms < 50 else [ms]:
            self.clock.advance_ms(step_ms)
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
    one, two = rig.submit("s", body("a")), rig.submit("s", body("a"))
    await rig.advance(3)
    assert rig.log.records == []
    await rig.advance(1)
    assert [record.headers.rows for record in rig.log.records] == [2]
    assert not one.done()
    rig.log.answer(True)
    assert [done.result().acknowledged for done in (one, two)] == [True, True]
    assert [done.result().accepted for done in (one, two)] == [1, 1]


async def test_sources_do_not_share_records(rig: Rig) -> None:
    """The source is a header of the record."""
    rig.submit("s1", body("a"))
    rig.submit("s2", body("a"))
    await rig.advance(4)
    assert sorted(record.headers.source for record in rig.log.records) == ["s1", "s2"]


async def test_many_rows_do_not_wait(rig: Rig) -> None:
    """At the bound of rows the group is sealed at once."""
    rig.submit("s", body(*["a"] * 100))
    assert sum(record.headers.rows for record in rig.log.records) == 100


async def test_many_requests_do_not_wait(rig: Rig) -> None:
    """At the bound of requests the group is sealed at once, and the next one begins."""
    for _ in range(53):
        rig.submit("s", body("a"))
    assert [record.headers.rows for record in rig.log.records] == [50]
    await rig.advance(4)
    assert [record.headers.rows for record in rig.log.records] == [50, 3]


async def test_a_request_is_answered_when_its_last_record_is_acknowledged(rig: Rig) -> None:
    """Its events may be on several partitions, its rejections on the dead letters' topic."""
    entries = json.loads(body(*[f"a{n}" for n in range(40)]))
    done = rig.submit("s", json.dumps([*entries, {"request": 5}]).encode())
    await rig.advance(4)
    parts = len(rig.log.records) + 1
    assert parts > 3
    rig.log.answer(True, parts - 1)
    assert not done.done()
    rig.log.answer(True)
    assert done.result().acknowledged


async def test_one_refused_record_fails_the_requests_in_it_and_no_other(rig: Rig) -> None:
    """A request whose own record was acknowledged has succeeded."""
    accounts = [f"a{n}" for n in range(30)]
    done = {account: rig.submit("s", body(account)) for account in accounts}
    await rig.advance(4)
    refused = rig.log.records[0].partition
    rig.log.answer(False, 1)
    rig.log.answer(True)
    for account, future in done.items():
        assert future.result().acknowledged is (assign_partition("user:" + account, PARTITIONS) != refused)


async def test_no_answer_in_time_is_a_failure(rig: Rig) -> None:
    """After the bound the sender is told to send again; a late acknowledgement changes nothing."""
    done = rig.submit("s", body("a"))
    for _ in range(31):
        await rig.advance(250)
    assert not done.done()
    await rig.advance(500)
    assert not done.result().acknowledged
    rig.log.answer(True)


async def test_drain_seals_and_waits(rig: Rig) -> None:
    """Nothing is left behind when the process ends."""
    done = rig.submit("s", body("a"))
    draining = asyncio.create_task(rig.commit.drain())
    await asyncio.sleep(0)
    assert len(rig.log.records) == 1
    assert not draining.done()
    rig.log.answer(True)
    await draining
    assert done.result().acknowledged


def pack(packing: Packer, requests: Sequence[tuple[str, bytes, Submission]]) -> list[SealedRecord]:
    """The records of some requests that were pending together."""
    pending = Pending(packing.schema)
    for source, entries, submission in requests:
        pending.add(source, DECODER, True, DECODER.read(entries), submission, INGEST_MS)
    groups, refused = pending.take(INGEST_MS)
    assert refused == []
    assert pending.rows == 0
    return packing.seal(groups, INGEST_MS)


def test_a_record_above_the_bound_is_cut() -> None:
    """Every part is small enough, and together they hold every row."""
    # Text that does not compress.
    paddings = [hashlib.shake_256(b"%d" % row).hexdigest(5_000) for row in range(31)]
    entries = json.loads(body(*["a"] * 31))
    for entry, padding in zip(entries, paddings, strict=True):
        entry["request"]["uri"] = "/" + padding
    submission = Submission(lambda _: None, 1)
    records = pack(packer(record_bytes_max=40_000), [("s", json.dumps(entries).encode(), submission)])
    assert len(records) > 1
    assert all(len(record.value) <= 40_000 for record in records)
    found = [row["id"] for record in records for row in decode_batch(record.value).to_pylist()]
    assert found == [entry["request"]["id"] for entry in entries]
    assert submission.outstanding == len(records)


@settings(deadline=None, max_examples=60)
@given(
    requests=st.lists(
        st.tuples(
            st.sampled_from(["s1", "s2"]),
            st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6) | st.just(list("abcdefgh") * 15),
        ),
        max_size=12,
    )
)
def test_every_row_is_on_its_accounts_partition_once(requests: list[tuple[str, list[str]]]) -> None:
    """Whatever is packed with whatever: no row lost, doubled or misplaced, each submission waits for its own."""
    finished: list[int] = []
    submissions: list[Submission] = []
    expected: Counter[tuple[int, str, str]] = Counter()
    for number, (source, accounts) in enumerate(requests):

        def finish(_: Submission, number: int = number) -> None:
            finished.append(number)

        submissions.append(Submission(finish, 1))
        expected.update((assign_partition("user:" + a, PARTITIONS), source, "user:" + a) for a in accounts)
    records = pack(
        packer(),
        [
            (source, body(*accounts), submission)
            for (source, accounts), submission in zip(requests, submissions, strict=True)
        ],
    )
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
        assert submission.accepted == len(accounts)
    settle_all(records)
    assert sorted(finished) == list(range(len(requests)))


def settle_all(records: list[SealedRecord]) -> None:
    for record in records:
        record.settle(True)


async def test_a_busy_group_stays_open_and_closes_when_little_comes(rig: Rig) -> None:
    """While three events come in two milliseconds the group waits, and no longer."""
    for _ in range(3):
        for _ in range(3):
            rig.submit("s", body("a"))
        await rig.advance(2)
        assert rig.log.records == []
    await rig.advance(2)
    assert [record.headers.rows for record in rig.log.records] == [9]


async def test_the_busiest_group_closes_at_the_longest_delay(rig: Rig) -> None:
    """Twenty milliseconds after the first event it is sealed whatever comes."""
    for _ in range(10):
        for _ in range(4):
            rig.submit("s", body("a"))
        assert rig.log.records == []
        await rig.advance(2)
    assert [record.headers.rows for record in rig.log.records] == [40]


class Trap(KongDecoder):
    """A format with a mistake in it: one account makes its columns fail."""

    def to_columns(
        self, entries: list[Any], *, ingest_ms: int, trust_ids: bool, replayed: bool
    ) -> tuple[Columns, list[Fault]]:
        if any(entry.consumer.custom_id == "trap" for entry in entries):
            raise ZeroDivisionError
        return super().to_columns(entries, ingest_ms=ingest_ms, trust_ids=trust_ids, replayed=replayed)


@pytest.mark.parametrize("copies", [1, 150])
async def test_an_error_nobody_foresaw_costs_the_entry_that_causes_it(rig: Rig, copies: int) -> None:
    """It is among the dead letters, to be sent again when the mistake is mended; its neighbours count."""
    trap = Trap(id_seed=1, keys=KEYS, capture=CAPTURE)
    alone, among = (
        rig.submit("s", body(*accounts), trap) for accounts in (["a"] * copies, ["b", "trap", "c"] * copies)
    )
    await rig.advance(4)
    rig.log.answer(True)
    assert [(done.result().acknowledged, done.result().accepted) for done in (alone, among)] == [
        (True, copies),
        (True, 2 * copies),
    ]
    assert [letter.reason for letter in rig.log.letters] == [DeadReason.BAD_TYPE] * copies
    assert {json.loads(letter.payload)["consumer"]["custom_id"] for letter in rig.log.letters} == {"trap"}
    assert Counter(row["account"] for row in rig.log.rows) == dict.fromkeys(
        ("user:a", "user:b", "user:c"), copies
    )


async def test_a_bad_entry_is_its_own_requests(rig: Rig) -> None:
    """Among requests sealed together each is told of its own entries, and its letter holds its own bytes."""
    good, mixed = (json.loads(body(*accounts)) for accounts in (("a", "b"), ("c", "d", "e")))
    mixed[1]["started_at"] = None
    first = rig.submit("s", json.dumps(good).encode())
    second = rig.submit("s", json.dumps(mixed).encode())
    await rig.advance(4)
    rig.log.answer(True)
    assert (first.result().accepted, first.result().rejected) == (2, [])
    assert (second.result().accepted, [entry.reason for entry in second.result().rejected]) == (
        2,
        [DeadReason.NO_TIME],
    )
    assert [json.loads(letter.payload)["request"]["id"] for letter in rig.log.letters] == ["d-1"]
    assert sorted(row["account"] for row in rig.log.rows) == ["user:a", "user:b", "user:c", "user:e"]


async def test_the_oldest_event_of_each_request_is_known(rig: Rig) -> None:
    """Also of requests that share a group."""
    entries = json.loads(body("a", "b", "c"))
    for entry, started_at in zip(entries, (7_000, 5_000, 6_000), strict=True):
        entry["started_at"] = started_at
    both = [rig.submit("s", json.dumps(part).encode()) for part in (entries[:2], entries[2:])]
    await rig.advance(4)
    rig.log.answer(True)
    assert [done.result().oldest_ms for done in both] == [5_000, 6_000]


async def test_a_nul_is_found_in_any_text_that_is_kept(rig: Rig) -> None:
    """PostgreSQL could not store it; where nothing is kept of the text, the call counts."""
    hidden, kept = (json.loads(body(account))[0] for account in ("a", "b"))
    hidden["request"]["headers"] = {"cookie": "\0"}
    kept["client_ip"] = "192.0.2.1\0"
    done = rig.submit("s", json.dumps([hidden, kept, json.loads(body("c"))[0]]).encode())
    await rig.advance(4)
    rig.log.answer(True)
    assert done.result().accepted == 2
    assert [entry.detail for entry in done.result().rejected] == ["NUL in client_ip"]
    assert sorted(row["account"] for row in rig.log.rows) == ["user:a", "user:c"]
