"""The report: what a set of runs has shown, on a terminal and where there is none.

Owns the words. It refuses to know how runs are made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tests.simulation.plan import Plan
from tests.simulation.sometimes import SOMETIMES, missing
from tests.simulation.world import Outcome

FAILURES_SHOWN = 12


@dataclass(slots=True)
class Tally:
    """Sums over a set."""

    runs: int = 0
    failed: list[Outcome] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    struck: Counter[str] = field(default_factory=Counter)
    flushes: int = 0
    flushes_min: int | None = None
    events: int = 0
    postings: int = 0
    met: dict[int, frozenset[str]] = field(default_factory=dict)
    """Situations of the list by seed, of runs that held."""

    def add(self, outcome: Outcome) -> None:
        """Count one run in."""
        self.runs += 1
        if outcome.failures:
            self.failed.append(outcome)
        else:
            self.met[outcome.plan.seed] = frozenset(n for n in SOMETIMES if outcome.seen.get(n))
        self.seen += outcome.seen
        self.struck += outcome.struck
        self.flushes += outcome.flushes
        self.flushes_min = min(
            outcome.flushes, outcome.flushes if self.flushes_min is None else self.flushes_min
        )
        self.events += outcome.events
        self.postings += outcome.postings

    def cover(self) -> list[int]:
        """Few seeds that together met all that was met: the one that adds most, again and again."""
        left: set[str] = set().union(*self.met.values()) if self.met else set()
        chosen: list[int] = []
        while left:
            best = max(self.met, key=lambda seed: len(self.met[seed] & left))
            chosen.append(best)
            left -= self.met[best]
        return chosen

    @property
    def never(self) -> list[str]:
        """Situations of the list that no run met."""
        return missing(self.seen)


def watched(console: Console, outcomes: Iterable[Outcome], total: int) -> Iterator[Outcome]:
    """The outcomes as they come: behind a bar on a terminal, with nothing in between elsewhere."""
    if not console.is_terminal:
        yield from outcomes
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("seeds", total=total)
        failed = 0
        for outcome in outcomes:
            failed += bool(outcome.failures)
            progress.update(task, advance=1, description=f"seeds, {failed} failed" if failed else "seeds")
            yield outcome


def tell_failure(console: Console, outcome: Outcome) -> None:
    """A failing run: its plan, what is wrong, and how to see it again."""
    console.print(str(outcome.plan), markup=False, highlight=False, soft_wrap=True)
    for failure in outcome.failures[:FAILURES_SHOWN]:
        console.print(f"FAILED {failure}", markup=False, highlight=False, soft_wrap=True)
    if len(outcome.failures) > FAILURES_SHOWN:
        console.print(f"FAILED and {len(outcome.failures) - FAILURES_SHOWN} more")
    console.print(f"again: python -m tests.simulation --seed {outcome.plan.seed}", highlight=False)


def tell_shrunk(console: Console, plan: Plan) -> None:
    """What is left of a plan that still fails."""
    console.print("shrunk to:", style="bold")
    console.print(str(plan), markup=False, highlight=False, soft_wrap=True)


def tell_tally(console: Console, tally: Tally, cpu_seconds: float, *, whole_set: bool) -> None:
    """The table at the end. `whole_set`: rare situations are expected of it."""
    table = Table(title=f"{tally.runs} runs", title_justify="left")
    table.add_column("sometimes")
    table.add_column("met", justify="right")
    for name in SOMETIMES:
        found = tally.seen.get(name, 0)
        table.add_row(
            name, str(found) if found else "never", style=None if found or not whole_set else "bold red"
        )
    console.print(table)
    others = {name: count for name, count in tally.seen.items() if name not in SOMETIMES}
    if others:
        console.print("also met: " + ", ".join(f"{name} ({count})" for name, count in sorted(others.items())))
    runs = max(1, tally.runs)
    console.print(
        f"{len(tally.failed)} failed; {sum(tally.struck.values())} faults struck; {tally.events} events, "
        f"{tally.postings} events at Stripe; {tally.flushes / runs:.1f} flushes a run, {tally.flushes_min} at least; "
        f"{cpu_seconds / runs * 1000:.0f} ms of CPU a run"
    )
    if whole_set and tally.never:
        console.print(f"never met: {'; '.join(tally.never)}", style="bold red")
