"""Group commit: the waiting room between requests and the log.

Owns when what is pending is sealed (a few milliseconds after the first event of a group, later while many come,
sooner when there is much) and when a request has waited long enough for its answer. It refuses to know what a record holds and how it is sent.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from services.ingest.decoded import Columns, Rejected
from services.ingest.decoder import Decoder
from services.ingest.entries import Entries
from services.ingest.ingest_time import IngestTime
from services.ingest.packer import Packer, SealedRecord
from services.ingest.pending import Pending
from services.ingest.submission import Submission
from tollgate.contracts.dead import DeadLetter
from tollgate.runtime.clock import Clock

_OVERDUE_CHECK_SECONDS = 0.25

LetterWriter = Callable[[Rejected, str, str, int], DeadLetter]
"""Makes the letter of a rejected entry, from its format, its source and the ingest time."""


class RecordLog(Protocol):
    """Where records go. Neither method waits; each settles what it was given, later, once."""

    def produce(self, records: Sequence[SealedRecord]) -> None: ...

    def produce_dead(self, letter: DeadLetter, submission: Submission) -> None: ...


@dataclass(frozen=True, slots=True)
class GroupRules:
    """When a group is sealed."""

    delay_seconds: float
    """An event waits this long for others in any case."""
    delay_seconds_max: float
    """And this long while enough others keep coming."""
    rows_worth_waiting: int
    """What half of `delay_seconds` must bring for the group to stay open."""
    rows_max: int
    """At so many rows nobody waits any longer."""
    requests_max: int
    """Nor at so many requests: of senders that all wait for their answers, some get on while the others are packed."""


class GroupCommit:
    """Puts requests' events into the log together and tells each request when its own are acknowledged."""

    def __init__(
        self,
        packer: Packer,
        log: RecordLog,
        clock: Clock,
        ingest_time: IngestTime,
        write_letter: LetterWriter,
        *,
        rules: GroupRules,
        answer_timeout_seconds: float,
    ) -> None:
        self._packer = packer
        self._log = log
        self._clock = clock
        self._ingest_time = ingest_time
        self._write_letter = write_letter
        self._rules = rules
        self._answer_timeout_seconds = answer_timeout_seconds
        self._pending = Pending(packer.schema)
        self._something = asyncio.Event()
        self._waiting: deque[tuple[float, Submission]] = deque()
        self._in_flight = 0
        # Asking for the running loop is a system call each time.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(
        self, source: str, decoder: Decoder, reading: Entries[Any], *, trust_ids: bool
    ) -> asyncio.Future[Submission]:
        """A future of what became of a body: see `enter`."""
        done, finish = self._promise()
        self.enter(source, decoder, reading, finish, trust_ids=trust_ids)
        return done

    def enter(
        self,
        source: str,
        decoder: Decoder,
        reading: Entries[Any],
        finish: Callable[[Submission], None],
        *,
        trust_ids: bool,
    ) -> None:
        """Put a body's events into the log. `finish` is told what became of it, once: when every event and every
        letter of it is in the log, or when that is not known in time.

        When it was not acknowledged some of them may be in the log all the same: the sender is to send again, with
        the same ids.
        """
        submission = self._open(len(reading.rejected) + (1 if reading.read else 0), finish)
        ingest_ms = self._ingest_time.now_ms()
        if reading.rejected:
            for rejected in reading.rejected:
                self._reject(rejected, decoder.format, source, ingest_ms, submission)
        if reading.read:
            self._pending.add(source, decoder, trust_ids, reading, submission, ingest_ms)
            rules = self._rules
            if self._pending.rows >= rules.rows_max or self._pending.requests >= rules.requests_max:
                self.flush()
            else:
                self._something.set()

    def submit_rejected(self, source: str, format: str, rejected: Rejected) -> asyncio.Future[Submission]:
        """Like `submit`, for a body that is nothing but one dead letter."""
        done, finish = self._promise()
        self._reject(rejected, format, source, self._ingest_time.now_ms(), self._open(1, finish))
        return done

    def submit_columns(self, source: str, columns: Columns) -> asyncio.Future[Submission]:
        """Like `submit`, for events that are columns already. They are not packed with others."""
        return self.submit_batch(source, self._packer.to_batch(columns), accept_late=False)

    def submit_batch(
        self, source: str, batch: pa.RecordBatch, accept_late: bool
    ) -> asyncio.Future[Submission]:
        """Like `submit`, for a batch of events that exists already. It is not packed with others."""
        done, finish = self._promise()
        submission = self._open(1 if batch.num_rows else 0, finish)
        if batch.num_rows:
            ingest_ms = self._ingest_time.now_ms()
            self._log.produce(self._packer.seal_batch(source, batch, submission, ingest_ms, accept_late))
        return done

    def _promise(self) -> tuple[asyncio.Future[Submission], Callable[[Submission], None]]:
        """A future, and what settles it."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        done: asyncio.Future[Submission] = self._loop.create_future()

        def finish(submission: Submission) -> None:
            # The request may be gone: its client closed the connection.
            if not done.done():
                done.set_result(submission)

        return done, finish

    def _open(self, parts: int, finish: Callable[[Submission], None]) -> Submission:
        """A submission of so many parts; without any it is settled at once."""
        self._in_flight += 1
        self._idle.clear()

        def end(submission: Submission) -> None:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()
            finish(submission)

        submission = Submission(end, parts)
        if parts:
            deadline = self._clock.monotonic_seconds() + self._answer_timeout_seconds
            self._waiting.append((deadline, submission))
        else:
            submission.settle(True)
        return submission

    def _reject(
        self, rejected: Rejected, format: str, source: str, ingest_ms: int, submission: Submission
    ) -> None:
        """One entry into the dead letters; `submission` has a part outstanding for it."""
        submission.rejected.append(rejected)
        self._log.produce_dead(self._write_letter(rejected, format, source, ingest_ms), submission)

    def flush(self) -> None:
        """Seal what is pending and hand it to the log."""
        self._something.clear()
        if not self._pending.rows:
            return
        ingest_ms = self._ingest_time.now_ms()
        groups, refused = self._pending.take(ingest_ms)
        for entry in refused:
            entry.owner.outstanding += 1
            self._reject(entry.rejected, entry.format, entry.source, ingest_ms, entry.owner)
        self._log.produce(self._packer.seal(groups, ingest_ms))

    async def run(self) -> None:
        """Seal each group when its time is over, until cancelled.

        A record costs the same for one event as for ten, here, in the broker and in the meter, so a busy group stays
        open longer. It closes as soon as too little comes: senders that wait for their answers do not wait for each
        other.
        """
        rules = self._rules
        step_seconds = rules.delay_seconds / 2
        while True:
            await self._something.wait()
            opened = self._clock.monotonic_seconds()
            await self._clock.sleep_seconds(step_seconds)
            while True:
                rows = self._pending.rows
                await self._clock.sleep_seconds(step_seconds)
                came = self._pending.rows - rows
                waited = self._clock.monotonic_seconds() - opened
                # After a flush in between, by rows_max, what came is negative.
                if came < rules.rows_worth_waiting or waited >= rules.delay_seconds_max:
                    break
            self.flush()

    async def watch_deadlines(self) -> None:
        """Fail submissions that have waited too long, until cancelled."""
        while True:
            await self._clock.sleep_seconds(_OVERDUE_CHECK_SECONDS)
            self.expire()

    def expire(self) -> None:
        """Fail the submissions whose time is over; forget those that are settled."""
        now = self._clock.monotonic_seconds()
        while self._waiting and (self._waiting[0][1].finished or self._waiting[0][0] <= now):
            submission = self._waiting.popleft()[1]
            if not submission.finished:
                submission.settle(False)

    async def drain(self) -> None:
        """Seal what is pending and wait until every submission is settled."""
        self.flush()
        await self._idle.wait()
