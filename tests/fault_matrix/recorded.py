"""The last recorded results: of the matrix' tests, and of the storm.

Owns running the tests of the matrix and both files. It refuses to know how they are shown (`docs/`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TESTS_PATH = ROOT / "docs" / "recorded" / "fault-matrix.json"
STORM_PATH = ROOT / "docs" / "recorded" / "storm.json"

_WORST_FIRST = ("failed", "skipped", "passed")


@dataclass(frozen=True, slots=True)
class NodeResult:
    """Of one node id, over all its parameters."""

    outcome: str
    """passed, skipped or failed: the worst of its cases."""
    cases: int


@dataclass(frozen=True, slots=True)
class Recorded:
    """Both files, as far as they are there."""

    machine: Mapping[str, Any]
    tests: Mapping[str, NodeResult]
    storm: Mapping[str, Any] | None
    """A report of `tests.storm`."""

    def storm_faults(self) -> dict[tuple[str, str], int]:
        """How often each kind was carried out in each place."""
        times: dict[tuple[str, str], int] = defaultdict(int)
        for fault in (self.storm or {}).get("faults", ()):
            if fault["began_seconds"] is not None and not fault["failed"]:
                times[fault["place"], fault["kind"]] += 1
        return dict(times)

    @property
    def storm_withstood(self) -> bool:
        return self.storm is not None and not self.storm["complaints"]


def load_recorded() -> Recorded:
    """What was recorded last; empty where nothing was."""
    document = json.loads(TESTS_PATH.read_text()) if TESTS_PATH.exists() else {"machine": {}, "tests": {}}
    storm = json.loads(STORM_PATH.read_text()) if STORM_PATH.exists() else None
    return Recorded(
        document["machine"], {name: NodeResult(**row) for name, row in document["tests"].items()}, storm
    )


def record_tests(node_ids: Iterable[str], machine: Mapping[str, object], scratch: Path) -> bool:
    """Run the tests and write their results down; whether all passed."""
    wanted = sorted(set(node_ids))
    xml = scratch / "results.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", f"--junit-xml={xml}", *wanted]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    results = read_results(xml.read_text(), wanted)
    document = {
        "machine": dict(machine),
        "tests": {name: {"outcome": each.outcome, "cases": each.cases} for name, each in results.items()},
    }
    TESTS_PATH.parent.mkdir(parents=True, exist_ok=True)
    TESTS_PATH.write_text(json.dumps(document, indent=1) + "\n")
    return code == 0 and all(each.outcome == "passed" for each in results.values())


def read_results(xml: str, wanted: Iterable[str]) -> dict[str, NodeResult]:
    """The result of each wanted node id out of a JUnit file; one that is not in it has failed."""
    cases: dict[str, list[str]] = defaultdict(list)
    # Written by our own pytest a moment ago.
    for case in ET.fromstring(xml).iter("testcase"):
        path = case.attrib["classname"].replace(".", "/") + ".py"
        name = case.attrib["name"].partition("[")[0]
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        cases[f"{path}::{name}"].append(outcome)
    return {
        node: NodeResult(min(cases[node], key=_WORST_FIRST.index, default="failed"), len(cases[node]))
        for node in wanted
    }
