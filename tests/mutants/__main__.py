"""`python -m tests.mutants`: plant every bug in a copy of the checkout, one at a time, and see that it is caught.

Owns the command line. Exit code 0 when all were caught, 1 when one survived, 2 when one's text is no longer in the code
or the tests fail without any bug.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.mutants.ground import CHECKOUT, Ground
from tests.mutants.mutant import Mutant, NotThere
from tests.mutants.planted import MUTANTS
from tests.mutants.trial import Unsound, Verdict, check_sound, run_trial


@click.command(help=__doc__.split("\n")[0] if __doc__ else None)
@click.option("--only", multiple=True, help="A mutant by name; may be given several times.")
@click.option("--ci", is_flag=True, help="The few most dangerous ones alone.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the verdicts here as well.")
def main(only: tuple[str, ...], ci: bool, json_path: Path | None) -> None:
    console = Console(width=None if sys.stdout.isatty() else 200)
    chosen = [m for m in MUTANTS if (not only or m.name in only) and (m.dangerous or not ci)]
    unknown = set(only) - {mutant.name for mutant in MUTANTS}
    if unknown or not chosen:
        console.print(f"no such mutant: {', '.join(sorted(unknown)) or 'none is left'}")
        sys.exit(2)
    try:
        for mutant in chosen:
            mutant.plant((CHECKOUT / mutant.path).read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory(prefix="tollgate-mutants-") as directory:
            ground = Ground.copy_to(Path(directory))
            verdicts = list(_watched(console, chosen, ground))
    except (NotThere, Unsound) as error:
        console.print(str(error), markup=False)
        sys.exit(2)
    _tell(console, verdicts)
    if json_path is not None:
        json_path.write_text(json.dumps([_as_json(verdict) for verdict in verdicts], indent=1) + "\n")
    sys.exit(0 if all(verdict.caught_by for verdict in verdicts) else 1)


def _watched(console: Console, mutants: Sequence[Mutant], ground: Ground) -> Iterator[Verdict]:
    """Each mutant's verdict, under a bar on a terminal, a line each elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("without any bug", total=len(mutants))
        if not console.is_terminal:
            console.print(f"{len(mutants)} mutants; first their tests without any bug")
        check_sound(mutants, ground.root)
        for mutant in mutants:
            progress.update(task, description=mutant.name)
            with ground.planted(mutant):
                verdict = run_trial(mutant, ground.root)
            progress.advance(task)
            if verdict.caught_by is None or not console.is_terminal:
                console.print(
                    f"{mutant.name}: {verdict.caught_by or 'SURVIVED'} ({verdict.seconds:.1f} s)",
                    markup=False,
                )
            if verdict.detail:
                console.print(verdict.detail, markup=False)
            yield verdict


def _tell(console: Console, verdicts: Sequence[Verdict]) -> None:
    table = Table("mutant", "caught by", "seconds", "what it would have cost")
    for verdict in verdicts:
        caught_by = verdict.caught_by or "[bold red]SURVIVED[/]"
        table.add_row(
            verdict.mutant.name,
            caught_by.replace("tests/", "").replace("[sqlite", "\\[sqlite"),
            f"{verdict.seconds:.1f}",
            verdict.mutant.costs,
        )
    console.print(table)
    survived = sum(verdict.caught_by is None for verdict in verdicts)
    console.print(f"{len(verdicts)} planted, {len(verdicts) - survived} caught, {survived} survived")


def _as_json(verdict: Verdict) -> dict[str, object]:
    return {
        "mutant": verdict.mutant.name,
        "path": verdict.mutant.path,
        "costs": verdict.mutant.costs,
        "caught_by": verdict.caught_by,
        "seconds": round(verdict.seconds, 1),
    }


if __name__ == "__main__":
    main()
