"""The report of a storm: what was sent, what went wrong, what came out; as data and as tables.

Owns its shape and the verdict. It refuses to know how anything was measured.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

_WORDS_MAX = 40


@dataclass(slots=True)
class FaultReport:
    """One fault as it was carried out; seconds since the storm's beginning."""

    place: str
    kind: str
    target: str
    began_seconds: float | None
    ended_seconds: float | None
    recovery_seconds: float | None
    """From its end until all is fresh, whatever else was in force then; None when another fault began before that."""
    failed: str = ""
    not_run: str = ""
    """Why this machine does not permit it; empty when it was carried out."""


@dataclass(slots=True)
class ExitReport:
    """A process that ended though nobody ended it."""

    at_seconds: float
    name: str
    code: int | None
    last_words: str
    excused_by: str
    """The fault that explains it, of which the service says that it gives up and is to be started again; empty: a defect."""


@dataclass(slots=True)
class StormReport:
    """Everything about one storm."""

    seed: int
    minutes: float
    events_per_second: float
    machine: Mapping[str, object] = field(default_factory=dict)
    processes: Mapping[str, int] = field(default_factory=dict)
    """How many of each."""
    disk_full_by: str = ""
    schedule: Sequence[Mapping[str, object]] = ()
    events: int = 0
    """Calls in requests with a 2xx."""
    requests_repeated: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)
    lost: int = 0
    """Events with a 2xx that are not in the ledger."""
    doubled: int = 0
    """Events counted more than once."""
    lost_units: Mapping[str, str] = field(default_factory=dict)
    """By stage (ledger, stripe): units missing, over all keys."""
    doubled_units: Mapping[str, str] = field(default_factory=dict)
    keys_compared: Mapping[str, int] = field(default_factory=dict)
    postings: Mapping[str, int] = field(default_factory=dict)
    law_checks: int = 0
    """How often the law was looked at while the storm blew."""
    connections_cut: int = 0
    faults: list[FaultReport] = field(default_factory=list)
    exits: list[ExitReport] = field(default_factory=list)
    exit_codes: Mapping[str, int] = field(default_factory=dict)
    """After the last SIGTERM."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each part of the run took."""
    verified: dict[str, bool] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    """What is off, in words; empty when the storm was withstood."""

    @property
    def withstood(self) -> bool:
        """Whether nothing is off."""
        return not self.complaints

    def write(self, path: Path) -> None:
        """As JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def print_report(console: Console, report: StormReport) -> None:
    """Tables, and the verdict last."""
    console.print(_fault_table(report.faults))
    for fault in report.faults:
        if fault.not_run:
            console.print(
                f"[yellow]NOT RUN[/]   {fault.kind} {fault.target}: {fault.not_run}", highlight=False
            )
    if report.exits:
        console.print(_exit_table(report.exits))
    console.print(_outcome_table(report))
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report.seconds.items())
    console.print(f"Took      {parts}")
    for word in report.complaints[:_WORDS_MAX]:
        console.print(f"[red]OFF[/]       {word}", highlight=False)
    if len(report.complaints) > _WORDS_MAX:
        console.print(f"[red]OFF[/]       and {len(report.complaints) - _WORDS_MAX} more")
    carried_out = sum(fault.began_seconds is not None for fault in report.faults)
    style = "green" if report.withstood else "red"
    console.print(
        f"[{style}]{report.events:,} events, {carried_out} faults: lost {report.lost}, "
        f"doubled {report.doubled}. {'Withstood.' if report.withstood else 'NOT withstood.'}[/] Seed {report.seed}."
    )


@dataclass(frozen=True, slots=True)
class Recovery:
    """The recoveries from one kind of fault in one place."""

    place: str
    kind: str
    times: int
    lasted: tuple[float, ...]
    """Seconds from its beginning until what it hit served again, ascending."""
    seen: tuple[float, ...]
    """Seconds, ascending, of those whose recovery could be seen."""

    @property
    def middle(self) -> str:
        """The median, in words."""
        return f"{self.seen[len(self.seen) // 2]:.1f} s" if self.seen else "next one came first"

    @property
    def middle_length(self) -> str:
        """The median of how long it lasted, in words."""
        return f"{self.lasted[len(self.lasted) // 2]:.1f} s" if self.lasted else ""

    @property
    def longest(self) -> str:
        """The maximum, in words."""
        return f"{self.seen[-1]:.1f} s" if self.seen else ""


def recoveries(faults: Iterable[FaultReport]) -> list[Recovery]:
    """By place and kind."""
    grouped: dict[tuple[str, str], list[FaultReport]] = defaultdict(list)
    for fault in faults:
        if fault.began_seconds is None:
            continue
        grouped[fault.place, fault.kind].append(fault)
    return [
        Recovery(
            place,
            kind,
            len(group),
            tuple(
                sorted(
                    each.ended_seconds - each.began_seconds
                    for each in group
                    if each.ended_seconds is not None and each.began_seconds is not None
                )
            ),
            tuple(sorted(each.recovery_seconds for each in group if each.recovery_seconds is not None)),
        )
        for (place, kind), group in sorted(grouped.items())
    ]


def _fault_table(faults: Sequence[FaultReport]) -> Table:
    table = Table("where", "fault", "times", "lasted, median", "recovery, median", "longest", title="Faults")
    for row in recoveries(faults):
        table.add_row(row.place, row.kind, str(row.times), row.middle_length, row.middle, row.longest)
    return table


def _exit_table(exits: Sequence[ExitReport]) -> Table:
    table = Table("at", "process", "code", "because of", "last words", title="Ended by themselves")
    for each in exits:
        table.add_row(
            f"{each.at_seconds:.0f} s",
            each.name,
            str(each.code),
            each.excused_by or "[red]nothing[/]",
            each.last_words[:80],
        )
    return table


def _outcome_table(report: StormReport) -> Table:
    table = Table("", "compared", "lost", "doubled", title="Against the history")
    table.add_row("events", f"{report.events:,}", str(report.lost), str(report.doubled))
    for stage, keys in report.keys_compared.items():
        table.add_row(
            f"units, {stage}", f"{keys:,} keys", report.lost_units[stage], report.doubled_units[stage]
        )
    return table
