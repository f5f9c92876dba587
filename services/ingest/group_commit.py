"""Group commit: the waiting room between requests and the log.

Owns when what is pending is sealed (a few milliseconds after the first event of a group, sooner when there is much)
and when a request has waited long enough for its answer. It refuses to know what a record holds and how it is sent.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa

from services.ingest.decoded import DecodedBatch
from services.ingest.ingest_time import IngestTime
from services.ingest.packer import Packer, SealedRecord, Submission
from tollgate.contracts.dead import DeadLetter
from tollgate.runtime.clock import Clock

_OVERDUE_CHECK_SECONDS = 0.25


class RecordLog(Protocol):
    """Where records go. Neither method waits; each settles what it was given, later, once."""

    def produce(self, records: Sequence[SealedRecord]) -> None: ...

    def produce_dead(self, letter: DeadLetter, submission: Submission) -> None: ...


class GroupCommit:
    """Puts requests' events into the log together and tells each request when its own are acknowledged."""

    def __init__(
        self,
        packer: Packer,
        log: RecordLog,
        clock: Clock,
        ingest_time: IngestTime,
        *,
        delay_seconds: float,
        rows_max: int,
        answer_timeout_seconds: float,
    ) -> None:
        self._packer = packer
        self._log = log
        self._clock = clock
        self._ingest_time = ingest_time
        self._delay_seconds = delay_seconds
        self._rows_max = rows_max
        self._answer_timeout_seconds = answer_timeout_seconds
        self._pending = asyncio.Event()
        self._waiting: deque[tuple[float, Submission]] = deque()
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(
        self, source: str, decoded: DecodedBatch, letters: Sequence[DeadLetter] = ()
    ) -> asyncio.Future[bool]:
        """A future of True once every event and every letter is in the log, of False when that is not known in time.

        After False some of them may be in the log all the same: the sender is to send again, with the same ids.
        """
        submission, done = self._open(len(letters) + (1 if decoded.rows else 0))
        for letter in letters:
            self._log.produce_dead(letter, submission)
        if decoded.rows:
            self._packer.add(source, decoded.columns, decoded.rows, submission)
            if self._packer.rows >= self._rows_max:
                self.flush()
            else:
                self._pending.set()
        return done

    def submit_batch(self, source: str, batch: pa.RecordBatch, accept_late: bool) -> asyncio.Future[bool]:
        """Like `submit`, for a batch of events that exists already. It is not packed with others."""
        submission, done = self._open(1 if batch.num_rows else 0)
        if batch.num_rows:
            ingest_ms = self._ingest_time.now_ms()
            self._log.produce(self._packer.seal_batch(source, batch, submission, ingest_ms, accept_late))
        return done

    def _open(self, parts: int) -> tuple[Submission, asyncio.Future[bool]]:
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if not parts:
            done.set_result(True)
            return Submission(lambda _: None, 0), done
        self._in_flight += 1
        self._idle.clear()

        def finish(acknowledged: bool) -> None:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()
            # The request may be gone: its client closed the connection.
            if not done.done():
                done.set_result(acknowledged)

        submission = Submission(finish, parts)
        deadline = self._clock.monotonic_seconds() + self._answer_timeout_seconds
        self._waiting.append((deadline, submission))
        return submission, done

    def flush(self) -> None:
        """Seal what is pending and hand it to the log."""
        self._pending.clear()
        if self._packer.rows:
            self._log.produce(self._packer.seal(self._ingest_time.now_ms()))

    async def run(self) -> None:
        """Seal each group when its delay is over, until cancelled."""
        while True:
            await self._pending.wait()
            await self._clock.sleep_seconds(self._delay_seconds)
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
