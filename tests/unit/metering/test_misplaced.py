"""Records of an ingest that knew another partition count: dead whole, for the fold and for the recount alike."""

from __future__ import annotations

import random

from services.cli.archived_rows import BESIDE_COLUMNS, ArchivedRows
from services.cli.logged import read_rows
from services.cli.shadow import Shadow
from services.ingest.replay import _read_events
from tests.fakes.logged import events_record, tick_record
from tests.unit.metering.rows import meter, meter_set, row
from tollgate.contracts.archive_rows import RestoredRecord, join_rows, tabulate
from tollgate.contracts.events import instance_name
from tollgate.contracts.records import decode_records, misplacement
from tollgate.metering.definition import MeterSet
from tollgate.metering.errors import DeadReason
from tollgate.metering.fold import CompiledMeters, fold
from tollgate.metering.outcome import Outcomes, TickSeen, TimeRules
from tollgate.metering.refold import Recounter
from tollgate.metering.seen import SeenIds

RULES = TimeRules()
METERS = meter_set(meter())
OLD, NEW = instance_name("i", 4), instance_name("i", 12)


def _log(rng: random.Random) -> list[RestoredRecord]:
    """Retries of the same events by three kinds of ingest, in any order."""
    return [
        events_record(
            offset, [row(rng.randrange(40)) for _ in range(3)], instance=rng.choice([OLD, NEW, "older"])
        )
        for offset in range(60)
    ]


def test_a_record_for_another_count_is_dead_and_leaves_no_ids() -> None:
    """Its events can come again by the right count, and its instance's account of rows holds."""
    stale = [row(1), row(2)]
    records = [
        events_record(0, stale, instance=OLD),
        RestoredRecord(*(getattr(tick_record(1, acknowledged=2), n) for n in RestoredRecord.__slots__)),
        events_record(2, [row(1)], instance=NEW),
    ]
    done = fold(decode_records(records, 12), {0: SeenIds()}, CompiledMeters.compile(METERS), RULES)
    part = done.partitions[0]
    assert part.outcomes == Outcomes(received=3, counted=1, dead=2)
    assert sum(map(len, part.seen_ids.values())) == 1
    assert part.instances[OLD].rows_received == 2
    assert part.instances["ingest-1"].tick == TickSeen(records[1].timestamp_ms, 2, 0)
    (letter,) = done.dead
    assert (letter.reason, letter.rows, letter.format) == (DeadReason.MISPLACED, 2, "events/1")
    assert letter.detail == "written for 4 partitions, the log has 12"
    assert _read_events(letter.payload).num_rows == 2, "what a replay makes of the letter"


def test_nothing_is_misplaced_where_a_count_is_not_known() -> None:
    """Instances of older releases do not say, and sets of older ledgers do not ask."""
    assert misplacement("older", 12) == misplacement(OLD, 0) == misplacement(NEW, 12) == ""
    assert misplacement(OLD, 12)


def _count_at(_partition: int, offset: int) -> int:
    """Four partitions in the first half of the log, twelve in the second."""
    return 4 if offset < 30 else 12


def _set_at(partition: int, offset: int) -> MeterSet:
    return MeterSet(1 + (offset >= 30), METERS.meters, _count_at(partition, offset))


def test_fold_recount_and_archive_agree_on_what_is_misplaced() -> None:
    """The same log by three readings, with the count changing in the middle: the same outcomes, and they are right."""
    for seed in range(20):
        log = _log(random.Random(seed))
        wrong = {
            each.offset
            for each in log
            if dict(each.headers)["instance"].decode() == (NEW if each.offset < 30 else OLD)
        }
        folded = fold(decode_records(log, _count_at), {0: SeenIds()}, CompiledMeters.compile(METERS), RULES)
        recounter = Recounter(_set_at, RULES)
        for each in log:
            recounter.add(read_rows(each))
        shadow = Shadow(METERS, RULES, lambda usage: usage)
        table = join_rows(tabulate(log), []).select(
            sorted(BESIDE_COLUMNS & set(join_rows(tabulate(log), []).schema.names))
        )
        rows = ArchivedRows(table, _count_at)
        shadow.fold(rows.records, rows)
        ended = folded.partitions[0].outcomes
        assert ended == recounter.result().outcomes[0] == shadow.outcomes[0]
        assert ended.dead == 3 * len(wrong) > 0


def test_a_new_partition_knows_its_parents_ids_and_keeps_its_own() -> None:
    """For the recount and for the shadow: retries of what the parent had are duplicates; the parent learns nothing."""
    before = [events_record(0, [row(1), row(2)], partition=0)]
    after = [
        events_record(0, [row(1), row(3)], partition=4),
        events_record(1, [row(3), row(4)], partition=0),
    ]
    recounter = Recounter(METERS, RULES)
    shadow = Shadow(METERS, RULES, lambda usage: usage)
    for each in before:
        recounter.add(read_rows(each))
    shadow.fold(decode_records(before))
    for counting in (recounter, shadow):
        counting.inherit({4: 0, 5: 1})
    for each in after:
        recounter.add(read_rows(each))
    shadow.fold(decode_records(after))
    wanted = {
        0: Outcomes(received=4, counted=4),
        4: Outcomes(received=2, counted=1, duplicate=1),
    }
    assert recounter.result().outcomes == shadow.outcomes == wanted
