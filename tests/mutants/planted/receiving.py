"""Bugs at the door: events lost, or promised to be in the log when they are not."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

RECEIVING: tuple[Mutant, ...] = (
    Mutant(
        "answer-at-the-first-record",
        "services/ingest/submission.py",
        before="if self._finish is not None and (not acknowledged or self.outstanding <= 0):",
        after="if self._finish is not None:",
        costs="A gateway is told its calls are safe before the broker has them: lost with the broker, never billed.",
        tests=("tests/unit/ingest/test_group_commit.py::test_concurrent_requests_share_a_record",),
        dangerous=True,
    ),
    Mutant(
        "refused-record-is-success",
        "services/ingest/log.py",
        before="            record.settle(acknowledged)",
        after="            record.settle(True)",
        costs="Records the broker refused are answered with success: their calls are never billed.",
        tests=(
            "tests/unit/ingest/test_log.py::test_a_refused_record_fails_its_requests_and_replaces_the_producer",
        ),
    ),
    Mutant(
        "no-answer-in-time-is-success",
        "services/ingest/group_commit.py",
        before="                submission.settle(False)",
        after="                submission.settle(True)",
        costs="With the brokers away, calls are answered as accepted and are lost.",
        tests=("tests/unit/ingest/test_group_commit.py::test_no_answer_in_time_is_a_failure",),
    ),
    Mutant(
        "count-what-was-not-acknowledged",
        "services/ingest/log.py",
        before=("            if acknowledged:\n                self._acknowledged["),
        after=("            if True:\n                self._acknowledged["),
        costs="Ticks promise rows the log never got: the law cries loss where nothing was lost.",
        tests=(
            "tests/unit/ingest/test_log.py::test_a_refused_record_fails_its_requests_and_replaces_the_producer",
        ),
    ),
    Mutant(
        "tick-ahead-of-what-is-under-way",
        "services/ingest/log.py",
        before="tick = Tick(self._instance, min(now_ms, oldest_ms), rows)",
        after="tick = Tick(self._instance, now_ms, rows)",
        costs="A period is called complete while records of it are still on their way: the invoice lacks them.",
        tests=("tests/unit/ingest/test_log.py::test_ticks_count_what_was_acknowledged_and_nothing_else",),
    ),
    Mutant(
        "rows-of-other-partitions",
        "services/ingest/packer.py",
        before="            batch = batch.take(pa.array(order))",
        after="            batch = batch",
        costs="Accounts' events land on partitions that are not theirs: a repeated id is counted on each.",
        tests=("tests/unit/ingest/test_group_commit.py::test_every_row_is_on_its_accounts_partition_once",),
    ),
    Mutant(
        "wrong-request-waits",
        "services/ingest/packer.py",
        before="            owner_of_row = owner_of_row[order]",
        after="            owner_of_row = owner_of_row[:]",
        costs="Requests are answered for each other's records: one is told yes whose own was refused.",
        tests=(
            "tests/unit/ingest/test_group_commit.py::test_one_refused_record_fails_the_requests_in_it_and_no_other",
        ),
    ),
    Mutant(
        "partition-by-chance",
        "tollgate/contracts/events.py",
        before='xxhash.xxh3_64_intdigest(account.encode("utf-8", "surrogatepass")) % partitions',
        after="hash(account) % partitions",
        costs="Each ingest process has its own idea of an account's partition: retries elsewhere count twice.",
        tests=("tests/unit/contracts/test_events.py::test_an_accounts_partition_never_changes",),
    ),
    Mutant(
        "weak-id-called-strong",
        "services/ingest/gateways/kong.py",
        before="            weak[row] = True",
        after="            weak[row] = False",
        costs="Duplicates by guessed ids hide among the sure ones: nobody sees calls that were dropped wrongly.",
        tests=("tests/unit/ingest/test_kong.py::test_a_weak_id_is_stable_and_tells_different_calls_apart",),
    ),
    Mutant(
        "letter-keeps-secrets",
        "services/ingest/letters.py",
        before="    payload = redactor.redact(rejected.payload, gateway_entry=format != cloudevents.FORMAT)",
        after="    payload = rejected.payload",
        costs="Callers' keys lie readable in the dead letters: whoever reads them calls at others' expense.",
        tests=("tests/unit/ingest/test_hostile.py::test_a_planted_secret_never_reaches_a_row_or_a_letter",),
    ),
    Mutant(
        "letter-without-its-refusal",
        "services/ingest/group_commit.py",
        before="        self._log.produce_dead(self._write_letter(rejected, format, source, ingest_ms), submission)",
        after="        submission.settle(True)",
        costs="A bad entry is gone without a letter: it can never be mended and billed.",
        tests=(
            "tests/unit/ingest/test_group_commit.py::test_a_request_is_answered_when_its_last_record_is_acknowledged",
        ),
    ),
)
