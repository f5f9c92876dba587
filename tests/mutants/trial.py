"""A trial: a mutant's tests, then its simulated runs, on the ground; who caught it, and how long that took.

Owns the commands, their limits and the reading of their ends. It refuses to know how ground is changed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.mutant import Mutant

LIMIT_SECONDS = 90
"""Of one mutant's tests. Most need three; a run that is cut off has shown nothing."""

TEST_SECONDS = 15
"""Of one test: a bug that makes one hang is caught by it."""

SOUND_SECONDS = 400
"""Of all tests together on sound code."""

_FAILED = re.compile(r"^(?:FAILED|ERROR) (?P<test>.+?)(?: - .*)?$", re.MULTILINE)
_TESTS_FAILED = 1


class Unsound(Exception):
    """The tests fail without any bug planted: what they say about mutants is worth nothing."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one mutant."""

    mutant: Mutant
    caught_by: str | None
    """The first test that failed, or the simulator; None: it survived."""
    seconds: float
    detail: str = ""
    """The end of what the tests said, of a survivor."""


def run_trial(mutant: Mutant, root: Path) -> Verdict:
    """Try a planted mutant: the first failing test catches it, else a simulated run that fails."""
    began = time.monotonic()
    caught_by, detail = None, ""
    if mutant.tests:
        code, said = _pytest(mutant.tests, root, LIMIT_SECONDS)
        found = _FAILED.search(said)
        if code == _TESTS_FAILED and found is not None:
            caught_by = found["test"]
        detail = _tail(said, code)
    if caught_by is None and mutant.seeds:
        seeds = ",".join(map(str, mutant.seeds))
        command = ["-m", "tests.simulation", "--only", seeds, "--no-shrink", "--no-sometimes"]
        code, said = _run(command, root, LIMIT_SECONDS)
        if code == 1 and "Traceback" not in said:
            caught_by = f"simulator, seeds {seeds}"
        detail = _tail(said, code)
    return Verdict(mutant, caught_by, time.monotonic() - began, "" if caught_by else detail)


def check_sound(mutants: Sequence[Mutant], root: Path) -> None:
    """Raises Unsound unless everything named passes while nothing is planted."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    if tests:
        code, said = _pytest(tests, root, SOUND_SECONDS)
        if code != 0:
            raise Unsound(_tail(said, code))
    seeds = sorted({seed for mutant in mutants for seed in mutant.seeds})
    if seeds:
        chosen = ",".join(map(str, seeds))
        code, said = _run(
            ["-m", "tests.simulation", "--only", chosen, "--no-shrink", "--no-sometimes"], root, SOUND_SECONDS
        )
        if code != 0:
            raise Unsound(_tail(said, code))


def _pytest(tests: Sequence[str], root: Path, limit_seconds: float) -> tuple[int | None, str]:
    """SQLite says what PostgreSQL says of a rule, and starts in no time."""
    options = ["-q", "-x", "--no-header", "--tb=line", "-p", "no:randomly", "-p", "no:cacheprovider"]
    options += ["--timeout", str(TEST_SECONDS), "-k", "not postgresql"]
    return _run(["-m", "pytest", *options, *tests], root, limit_seconds)


def _run(command: Sequence[str], root: Path, limit_seconds: float) -> tuple[int | None, str]:
    """Exit code (None: cut off) and output of a Python command on the ground."""
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=root,
        env={**surroundings, "PYTHONPATH": str(root), "COLUMNS": "300"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=limit_seconds)
    except BaseException as error:
        # Of its own group, so that nothing it started outlives it.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            return None, f"cut off after {limit_seconds:.0f} s"
        raise
    return process.returncode, said


def _tail(said: str, code: int | None) -> str:
    lines = [line for line in said.strip().splitlines() if line.strip()]
    return f"exit code {code}\n" + "\n".join(lines[-12:])
