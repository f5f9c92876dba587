"""Bugs between the log and the fold: records skipped, read twice, or taken from another log."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

READING: tuple[Mutant, ...] = (
    Mutant(
        "gap-off-by-one",
        "services/meter/intake.py",
        before="        if record.offset == buffer.next_offset:",
        after="        if record.offset in (buffer.next_offset, buffer.next_offset + 1):",
        costs="One record is skipped for good: its calls are never billed.",
        tests=("tests/unit/meter/test_intake.py::test_drops_what_lies_beyond_a_gap",),
    ),
    Mutant(
        "gap-is-a-replay",
        "services/meter/intake.py",
        before="        if record.offset > buffer.next_offset:",
        after="        if record.offset > buffer.next_offset + 1:",
        costs="A record missing by one is taken for a replay: counting stands still unseen.",
        tests=("tests/unit/meter/test_intake.py::test_drops_what_lies_beyond_a_gap",),
    ),
    Mutant(
        "replay-is-taken",
        "services/meter/intake.py",
        before="        if record.offset == buffer.next_offset:",
        after="        if record.offset <= buffer.next_offset:",
        costs="Records read again are folded again at other offsets: counted twice.",
        tests=("tests/unit/meter/test_intake.py::test_drops_replays_and_says_so",),
    ),
    Mutant(
        "rewritten-replay-unseen",
        "services/meter/intake.py",
        before="            and record_fingerprint(record.offset, record.value) != buffer.base_fingerprint",
        after='            and record_fingerprint(record.offset, record.value) == ""',
        costs="A topic made anew under a running meter is read on: the first part of it is never billed.",
        tests=("tests/unit/meter/test_intake.py::test_recognises_a_log_that_was_rewritten",),
    ),
    Mutant(
        "fingerprint-unchecked",
        "services/meter/partition.py",
        before="    if found != fingerprint:",
        after="    if found is None:",
        costs="Another log is counted on at the old offset: what lies before it is never billed.",
        tests=("tests/unit/meter/test_partition.py::test_only_the_counted_log_is_counted_on",),
    ),
    Mutant(
        "truncated-by-one",
        "services/meter/partition.py",
        before="    if bounds.start > next_offset:",
        after="    if bounds.start > next_offset + 1:",
        costs="A record that retention deleted uncounted goes unnoticed.",
        tests=("tests/unit/meter/test_partition.py::test_only_the_counted_log_is_counted_on",),
    ),
    Mutant(
        "too-short-by-one",
        "services/meter/partition.py",
        before="    if bounds.end < next_offset:",
        after="    if bounds.end < next_offset - 1:",
        costs="A log that lost its last record is counted on: the record that replaces it is never billed.",
        tests=("tests/unit/meter/test_partition.py::test_only_the_counted_log_is_counted_on",),
    ),
    Mutant(
        "stale-memory-kept",
        "services/meter/assignment.py",
        before="            if kept.seen.committed_offset == found.next_offset:",
        after="            if kept.seen.committed_offset <= found.next_offset:",
        costs="After another worker's turn its ids are unknown: their copies count twice.",
        tests=(
            "tests/unit/meter/test_assignment.py::test_seen_ids_are_kept_only_while_they_are_the_ledgers",
        ),
    ),
    Mutant(
        "tail-kept-at-reassignment",
        "services/meter/assignment.py",
        before="            await self._of_pipeline.on_folding_thread(kept.seen.discard_tail)",
        after="            pass",
        costs="Ids of a flush that never committed stay seen: read again, its calls are duplicates and never billed.",
        tests=(
            "tests/unit/meter/test_assignment.py::test_what_was_staged_and_never_committed_is_not_remembered",
        ),
    ),
    Mutant(
        "ids-not-staged",
        "services/meter/flush.py",
        before="        assigned.seen.stage(of_partition.next_offset, of_partition.seen_ids)",
        after="        assigned.seen.stage(of_partition.next_offset, {})",
        costs="Copies in later flushes are not recognised: retries of a gateway are billed.",
        tests=("tests/unit/meter/test_pipeline.py::test_duplicates_are_found_across_flushes",),
    ),
    Mutant(
        "tail-kept-when-folded-again",
        "services/meter/flush.py",
        before="            assigned.seen.discard_tail()",
        after="            pass",
        costs="A flush folded again finds its own ids seen: all of it is duplicates and never billed.",
        tests=("tests/unit/meter/test_pipeline.py::test_changed_meters_are_folded_with_from_then_on",),
    ),
    Mutant(
        "fold-behind-a-stale-one",
        "services/meter/folding.py",
        before="return bool(self.live(flush)) and (flush.meters is not self._meters or flush.epoch != self._epoch)",
        after="return bool(self.live(flush)) and flush.meters is not self._meters",
        costs="Ids staged for the flush behind are thrown away unseen: their later copies are billed.",
        tests=(
            "tests/unit/meter/test_pipeline.py::test_a_flush_folded_in_time_behind_a_stale_one_is_folded_again",
        ),
    ),
    Mutant(
        "lost-commit-taken-for-done",
        "services/meter/booking.py",
        before="        return frozenset(p for p in live if offsets.get(p) != flush.chunks[p].next_offset)",
        after="        return frozenset()",
        costs="A commit somebody else got in differs from ours, and we believe it was ours.",
        tests=(
            "tests/unit/meter/test_pipeline.py::test_an_unknown_commit_another_worker_got_ahead_of_is_a_miss",
        ),
    ),
    Mutant(
        "unknown-commit-taken-for-done",
        "services/meter/booking.py",
        before="        if all(offsets.get(p) == flush.chunks[p].from_offset for p in live):",
        after="        if False:",
        costs="A commit that never happened is not tried again.",
        tests=("tests/unit/meter/test_pipeline.py::test_an_unknown_commit_is_read_back",),
    ),
    Mutant(
        "dead-letters-unwritten",
        "services/meter/booking.py",
        before="            await self._dead.bury(letters)",
        after="            pass",
        costs="Events that were late or dead exist nowhere: they can never be accepted and billed.",
        tests=("tests/unit/meter/test_pipeline.py::test_dead_events_are_buried_before_the_ledger_knows",),
    ),
    Mutant(
        "dead-letter-empty",
        "tollgate/metering/summary.py",
        before="            payload=record.value,",
        after='            payload=b"",',
        costs="An undecodable record's letter holds nothing to replay.",
        tests=("tests/unit/metering/test_fold.py::test_a_record_nobody_can_decode_is_dead_alone",),
    ),
)
