"""`tollgate verify --refold`: the log counted again, and held against the ledger row by row.

Owns which part of the log is counted again and how the two counts are compared. It refuses to know how either was
made: the ledger's by the meter, the other by `tollgate.metering.refold`, which shares no code with it.

What it cannot prove it says: a partition whose first records have passed their retention. An id that is used again
for another call, days after the meter has let go of it, is a duplicate here and a new event there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from services.cli.console import console, format_time
from services.cli.generations import load_generations
from services.cli.log import StoredRecord, reaching_broker, read_topic
from services.cli.logged import read_rows
from services.cli.settings import CliSettings
from services.cli.stretch import Held, NothingHeld, join_sources
from tollgate.contracts.topics import GATEWAY_EVENTS
from tollgate.ledger.catalogue import load_meter_set
from tollgate.ledger.counted import Counted, CountedUsage, UsageKey, load_counted
from tollgate.ledger.engine import Engine
from tollgate.ledger.init import read_rules
from tollgate.ledger.progress import load_epochs
from tollgate.ledger.retired import RetiredUsage
from tollgate.metering.definition import MeterSet
from tollgate.metering.metric import COMBINE_ADD
from tollgate.metering.outcome import Outcomes
from tollgate.metering.reconciliation import EXACT
from tollgate.metering.refold import Recount, RecountedUsage, Recounter
from tollgate.runtime.kafka import topic_bounds

if TYPE_CHECKING:
    from services.cli.archived import Archive
    from services.cli.verify import Findings


async def compare_recount(
    settings: CliSettings, engine: Engine, findings: Findings, archive: Archive | None = None
) -> None:
    """Count each partition from its first record to what the ledger says is counted, and report every difference.

    With `archive`, records it has are read there, and the log from where it ends.

    1. Read the ledger's side, of one moment: the meter may be running.
    2. Leave out the partitions whose log is not whole, and say so in `findings.unproven`.
    3. Count the rest again, each offset by the meter set it was counted with.
    4. Compare outcomes by partition and usage row by row; every difference is a violation.

    Raises NoSuchTopic, BrokerUnreachable, LogStalled, NotAnArchive, LedgerError.
    """
    counted = load_counted(engine)
    with reaching_broker(settings.kafka):
        bounds = await topic_bounds(settings.kafka, GATEWAY_EVENTS.name)
    archived = {} if archive is None else archive.bounds
    stop: dict[int, int] = {}
    from_log: dict[int, int] = {}
    for partition, next_offset in counted.next_offsets.items():
        try:
            begin, middle, end = join_sources(
                partition,
                Held(*archived[partition]) if partition in archived else None,
                Held(*bounds.get(partition, (0, 0))),
            )
        except NothingHeld as error:
            findings.unproven.append(f"cannot recount partition {partition}: {error}")
            continue
        if begin > 0:
            findings.unproven.append(f"cannot recount partition {partition}: the log begins at {begin}")
        elif end < next_offset:
            findings.unproven.append(
                f"cannot recount partition {partition}: the log ends at {end}, counted is {next_offset}"
            )
        else:
            stop[partition] = next_offset
            from_log[partition] = min(middle, next_offset)
    generations = load_generations(engine, counted.next_offsets)
    for partition in generations.orphans(stop):
        del stop[partition]
        findings.unproven.append(
            f"cannot recount partition {partition}: it began with the ids of one that cannot be recounted"
        )
    meters = _MetersInForce(engine, list(stop))
    recounter = Recounter(meters, read_rules(engine))
    start = dict.fromkeys(stop, 0)
    with _counting(sum(stop.values())) as on_counted:
        for step in generations.steps(stop):
            records = _records(settings, archive, from_log, start, step.stop)
            await _count_again(records, start, step.stop, recounter, findings, on_counted)
            recounter.inherit({child: parent for child, parent in step.parents.items() if child in stop})
            start |= step.stop
    recount = recounter.result()
    agreed, differences = compare_counts(counted, recount, stop.keys(), meters.name, meters.adds_up)
    findings.violations += differences
    events = sum(ended.received for ended in recount.outcomes.values())
    findings.facts.append(
        f"Recount  {events:,} events of the log, on {len(stop)} of {len(counted.next_offsets)} partitions, counted "
        f"again by other code: {agreed:,} usage rows agree, {len(differences):,} numbers differ"
    )


async def _records(
    settings: CliSettings,
    archive: Archive | None,
    from_log: Mapping[int, int],
    start: Mapping[int, int],
    stop: Mapping[int, int],
) -> AsyncGenerator[StoredRecord, None]:
    """Records of `[start, stop)`: of the archive below `from_log`, and of the log."""
    if archive is not None:
        for partition, end in stop.items():
            for record in archive.records(partition, start[partition], min(from_log[partition], end)):
                yield record
    begin = {partition: max(from_log[partition], start[partition]) for partition in stop}
    begin = {partition: at for partition, at in begin.items() if at < stop[partition]}
    if begin:
        async for record in read_topic(settings.kafka, GATEWAY_EVENTS.name, start=begin, stop=stop):
            yield record


@contextmanager
def _counting(records: int) -> Iterator[Callable[[], None]]:
    """A bar over `records`, on terminals; call what it gives for each."""
    terminal = console(stderr=True)
    columns = (TextColumn("Recounting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal, disable=not terminal.is_terminal, transient=True) as bar:
        task = bar.add_task("records", total=records)
        yield lambda: bar.advance(task)


async def _count_again(
    records: AsyncIterator[StoredRecord],
    start: Mapping[int, int],
    stop: Mapping[int, int],
    recounter: Recounter,
    findings: Findings,
    on_counted: Callable[[], None],
) -> None:
    """Feed `records`, those of `[start, stop)` without a gap, to the recount."""
    expected = {partition: start[partition] for partition in stop}
    async for record in records:
        if record.offset != expected[record.partition]:
            findings.violations.append(
                f"log: partition {record.partition} jumps from offset {expected[record.partition]} to "
                f"{record.offset}"
            )
        expected[record.partition] = record.offset + 1
        recounter.add(read_rows(record))
        on_counted()
    findings.violations += [
        f"log: partition {partition} holds nothing from offset {at} to {stop[partition]}, which was counted"
        for partition, at in expected.items()
        if at < stop[partition]
    ]


class _MetersInForce:
    """The meter set each offset was counted with."""

    def __init__(self, engine: Engine, partitions: list[int]) -> None:
        epochs = {partition: load_epochs(engine, partition) for partition in partitions}
        versions = {version for found in epochs.values() for _, version in found}
        self._sets = {version: load_meter_set(engine, version) for version in versions}
        self._offsets = {partition: [first for first, _ in found] for partition, found in epochs.items()}
        self._versions = {partition: [version for _, version in found] for partition, found in epochs.items()}

    def __call__(self, partition: int, offset: int) -> MeterSet:
        place = bisect_right(self._offsets[partition], offset) - 1
        return self._sets[self._versions[partition][max(place, 0)]]

    def adds_up(self, meter_id: int) -> bool:
        """Whether quantities of its windows add up, whatever was counted before."""
        kinds = {v.meter_id: v.meter.metric.kind for found in self._sets.values() for v in found.meters}
        return meter_id in kinds and kinds[meter_id].combine == COMBINE_ADD

    def name(self, meter_id: int) -> str:
        """The meter's name; its id where no set that counted here holds it."""
        for found in self._sets.values():
            for version in found.meters:
                if version.meter_id == meter_id:
                    return version.meter.name
        return f"#{meter_id}"


def compare_counts(
    counted: Counted,
    recount: Recount,
    partitions: Collection[int],
    name_of: Callable[[int], str],
    adds_up: Callable[[int], bool] = lambda _: True,
) -> tuple[int, list[str]]:
    """How many usage rows of `partitions` agree, and every difference, each with both numbers.

    What the ledger lacks of windows that lost rows for their age must come to what it removed, by partition and meter:
    events and unvalued ones, and quantities of meters that `adds_up` says add up.
    """
    differences: list[str] = []
    for partition in sorted(partitions):
        again = recount.outcomes.get(partition, Outcomes())
        differences += [
            f"recount: partition {partition}: {name} in the ledger is {held}, the log comes to {getattr(again, name)}"
            for name, held in counted.outcomes[partition].items()
            if held != getattr(again, name)
        ]
    agreed = 0
    held_keys = {key for key in counted.usage if key[0] in partitions}
    lacking: dict[tuple[int, int], _Lacking] = defaultdict(_Lacking)
    for key in sorted(held_keys | recount.usage.keys()):
        found = list(_differences(counted.usage.get(key), recount.usage.get(key)))
        agreed += not found
        gone = counted.retired.get(key[:2])
        if found and gone is not None and key[2] < gone.before_ms and key in recount.usage:
            lacking[key[:2]].add(counted.usage.get(key), recount.usage[key])
            continue
        differences += [f"recount: {_describe(key, name_of)}: {difference}" for difference in found]
    for (partition, meter_id), gone in sorted(counted.retired.items()):
        if partition in partitions:
            subject = f"recount: partition {partition}, meter {name_of(meter_id)}"
            differences += [
                f"{subject}: {name} of the usage rows removed was {kept:f}, the log comes to {again:f} of what is not there"
                for name, kept, again in lacking[partition, meter_id].against(gone, adds_up(meter_id))
            ]
    return agreed, differences


@dataclass(slots=True)
class _Lacking:
    """What the log comes to and the ledger has not, of the windows that lost rows."""

    quantity: Decimal = Decimal(0)
    events: int = 0
    unvalued: int = 0

    def add(self, held: CountedUsage | None, again: RecountedUsage) -> None:
        there = held or CountedUsage(Decimal(0), 0, 0, 0)
        self.quantity = EXACT.add(self.quantity, EXACT.subtract(again.quantity, there.quantity))
        self.events += again.events - there.events
        self.unvalued += again.unvalued - there.unvalued

    def against(self, gone: RetiredUsage, adds_up: bool) -> Iterator[tuple[str, Decimal, Decimal]]:
        """Each number that is not what was removed: its name, what was, what is lacking."""
        for name in ("quantity", "events", "unvalued") if adds_up else ("events", "unvalued"):
            kept, again = Decimal(getattr(gone, name)), Decimal(getattr(self, name))
            if kept != again:
                yield name, kept, again


def _differences(held: CountedUsage | None, again: RecountedUsage | None) -> Iterator[str]:
    if held is None:
        assert again is not None, "the key came from one of them"
        yield f"the ledger has no such row, the log comes to {again.quantity:f} of {again.events} events"
        return
    if again is None:
        yield f"quantity in the ledger is {held.quantity:f} of {held.events} events, the log comes to none"
        return
    for name in ("quantity", "events", "unvalued", "latest_event_ms"):
        one, other = getattr(held, name), getattr(again, name)
        if one != other:
            yield (
                f"{name} in the ledger is {one:f}, the log comes to {other:f}"
                if name == "quantity"
                else (f"{name} in the ledger is {one}, the log comes to {other}")
            )


def _describe(key: UsageKey, name_of: Callable[[int], str]) -> str:
    partition, meter_id, window_start_ms, account, dimensions = key
    text = f"partition {partition}, meter {name_of(meter_id)}, account {account}, window {format_time(window_start_ms)}"
    return f"{text}, {dimensions}" if dimensions else text
