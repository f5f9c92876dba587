"""`tollgate maintain` as an operator runs it: what it says, what it leaves, and how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from services.cli.__main__ import cli
from tests.contract.ledger.kept_world import LATER, KeptWorld, billed_history
from tests.contract.ledger.postings_world import World
from tollgate.ledger.tables import postings, reconciliations, usage
from tollgate.ledger.verify import verify_ledger
from tollgate.runtime.clock import ManualClock

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., Result]


@pytest.fixture
def kept(sqlite_url: str) -> Iterator[KeptWorld]:
    """A month that was billed, more than a year ago."""
    made = World.make(sqlite_url)
    made.meter()
    yield billed_history(made)
    made.engine.dispose()


@pytest.fixture
def tollgate(kept: KeptWorld, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command on that ledger, more than a year later."""
    monkeypatch.setattr("services.cli.maintain.SystemClock", lambda: ManualClock(LATER))

    def run(*arguments: str, code: int = 0, **environment: str) -> Result:
        done = CliRunner().invoke(
            cli, ["maintain", *arguments], env={"TOLLGATE_LEDGER__URL": sqlite_url, **environment}
        )
        assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
        assert "\x1b" not in done.output
        return done

    return run


def test_it_says_what_would_go_and_then_what_went(kept: KeptWorld, tollgate: Run) -> None:
    """The same numbers, dry and done; afterwards there is nothing to remove."""
    dry = tollgate("--dry-run").stdout
    assert "usage                               16 rows would go" in dry
    assert "3 billing periods would be retired" in dry
    assert kept.world.count(usage) == 16
    done = tollgate("--batch-rows", "3").stdout
    assert "usage                               16 rows removed" in done
    assert "postings                            12 rows removed" in done
    assert "3 billing periods retired" in done
    assert kept.world.count(usage) == kept.world.count(postings) == 0
    assert tollgate().stdout == "Nothing to remove.\n"
    assert verify_ledger(kept.world.engine) == []


def test_programs_read_json(kept: KeptWorld, tollgate: Run) -> None:
    """Rows by table, and whether anything is left."""
    kept.bill("cus_1", verdict="drift")
    found = json.loads(tollgate("--json").stdout)
    assert found == {
        "dry_run": False,
        "finished": True,
        "out_of_time": False,
        "postponed": {},
        "removed": {"attributions": 8, "item_periods": 2, "postings": 8, "usage": 8},
        "retired_periods": 2,
        "waiting_periods": 1,
    }
    assert "1 periods are past their time and stay" in tollgate().stdout


def test_time_that_is_up_is_an_exit_code_of_its_own(
    kept: KeptWorld, tollgate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that left work says so; a later one does it."""

    class Hasty(ManualClock):
        def monotonic_seconds(self) -> float:
            self.advance_ms(1_000)
            return super().monotonic_seconds()

    with monkeypatch.context() as patched:
        patched.setattr("services.cli.maintain.SystemClock", lambda: Hasty(LATER))
        done = tollgate("--max-seconds", "8", "--batch-rows", "1", code=4)
        assert "Time is up" in done.stderr
    assert kept.world.count(usage) > 0
    assert verify_ledger(kept.world.engine) == []
    tollgate()
    assert kept.world.count(postings) == 0


def test_settings_of_retention_are_obeyed_and_checked(kept: KeptWorld, tollgate: Run) -> None:
    """Longer keeps; what does not fit together is one line and exit code 2."""
    tollgate(TOLLGATE_RETENTION__BILLED_DAYS="402", TOLLGATE_RETENTION__EVIDENCE_DAYS="500")
    assert kept.world.count(usage) == 16
    done = tollgate(code=2, TOLLGATE_RETENTION__BILLED_DAYS="30")
    assert "billed_days must be 0 (for ever) or at least 125" in done.output
    tollgate(TOLLGATE_RETENTION__BILLED_DAYS="125")
    assert kept.world.count(usage) == 0


@pytest.mark.parametrize("after_seconds", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_killed_at_any_moment_it_can_be_run_again(
    kept: KeptWorld, sqlite_url: str, after_seconds: float
) -> None:
    """SIGKILL of the real process: the law holds, and the next run ends where an undisturbed one would."""
    script = (
        "import services.cli.maintain as m, sys\n"
        "from tollgate.runtime.clock import ManualClock\n"
        f"m.SystemClock = lambda: ManualClock({LATER})\n"
        "inner = m.maintain\n"
        "def told(*a, on_progress, **k):\n"
        "    print('begun', flush=True)\n"
        "    return inner(*a, on_progress=on_progress, **k)\n"
        "m.maintain = told\n"
        "m.maintain_command(['--batch-rows', '1'])\n"
    )
    command = [sys.executable, "-c", script]
    environment = {"TOLLGATE_LEDGER__URL": sqlite_url, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        time.sleep(after_seconds)
        child.send_signal(signal.SIGKILL)
    assert verify_ledger(kept.world.engine) == []
    assert kept.maintain().finished
    assert kept.world.count(usage) == kept.world.count(postings) == 0
    assert kept.world.count(reconciliations) == 3
    assert verify_ledger(kept.world.engine) == []
