"""A log in memory that acknowledges when it is told to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.ingest.packer import SealedRecord
from services.ingest.submission import Submission
from tollgate.contracts.dead import DeadLetter
from tollgate.contracts.events import decode_batch


class FakeLog:
    """Holds what was produced; `answer(True)` acknowledges all of it, `answer(False)` fails it."""

    def __init__(self, *, at_once: bool | None = None) -> None:
        self.at_once = at_once
        self.records: list[SealedRecord] = []
        self.letters: list[DeadLetter] = []
        self._waiting: list[SealedRecord | Submission] = []

    def produce(self, records: Sequence[SealedRecord]) -> None:
        self.records += records
        self._waiting += records
        if self.at_once is not None:
            self.answer(self.at_once)

    def produce_dead(self, letter: DeadLetter, submission: Submission) -> None:
        self.letters.append(letter)
        self._waiting.append(submission)
        if self.at_once is not None:
            self.answer(self.at_once)

    def answer(self, acknowledged: bool, count: int | None = None) -> None:
        for waiting in self._waiting[:count]:
            waiting.settle(acknowledged)
        del self._waiting[:count]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for record in self.records for row in decode_batch(record.value).to_pylist()]
