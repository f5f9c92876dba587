"""The fault matrix names what there is: tests that exist, faults the storm knows, and every row that was promised."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from docs.fault_matrix import render_fault_matrix
from tests.fault_matrix.recorded import NodeResult, Recorded, read_results
from tests.fault_matrix.rows import ROWS, Row, StormFault
from tests.simulation.sometimes import SOMETIMES
from tests.storm.schedule import Cast, Kind, Place, make_deck

ROOT = Path(__file__).resolve().parents[3]
NODES = sorted({node for row in ROWS for node in row.tests})
NOTHING = Recorded({}, {}, None)


@cache
def names_in(path: str) -> frozenset[str]:
    """The names of a file's test functions."""
    tree = ast.parse((ROOT / path).read_text())
    return frozenset(
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def test_the_rows_are_those_that_were_promised() -> None:
    """1 to 34, 36 to 38 and 40, each once and in order."""
    assert [row.number for row in ROWS] == [*range(1, 35), 36, 37, 38, 40]


@pytest.mark.parametrize("node", NODES)
def test_every_test_that_is_named_exists(node: str) -> None:
    """A renamed test would otherwise leave its row unshown, in silence."""
    path, _, name = node.partition("::")
    assert (ROOT / path).exists()
    assert name in names_in(path)


def test_every_storm_fault_that_is_named_is_in_the_deck() -> None:
    """And every fault of the deck is in a row: it is there for a reason."""
    named = {(each.place, each.kind) for row in ROWS for each in row.storm}
    dealt = {(card.place, card.kind) for card in make_deck(Cast())}
    assert named - dealt == set()
    # Senders with a slow network: no row of its own, like 1 without the lost answer.
    assert dealt - named == {(Place.CLIENTS, Kind.SLOW)}


def test_every_situation_that_is_named_is_one_the_simulator_must_meet() -> None:
    """A set of simulated runs fails when it has not met one of them."""
    assert {each for row in ROWS for each in row.situations} <= set(SOMETIMES)


def test_what_nothing_shows_is_said() -> None:
    """A row without tests, faults and situations is listed by name, and so is what a row leaves open."""
    bare = Row(1, "The sky falls", "umbrellas")
    partly = Row(
        2, "The sea rises", "boats", tests=("tests/a.py::test_boats",), uncovered="tides are not shown"
    )
    text = render_fault_matrix([bare, partly], NOTHING)
    assert "| 1 | The sky falls | umbrellas | **nothing** | - |" in text
    assert "- Row 1, the sky falls: nothing shows it." in text
    assert "- Row 2, the sea rises: tides are not shown." in text
    assert "2 rows, 1 of them shown by something." in text


def test_a_failed_test_and_a_storm_not_withstood_are_shown() -> None:
    """The last result is the worst of what was recorded; a fault the recorded storm did not have is named."""
    row = Row(
        3,
        "Rain",
        "roofs",
        tests=("tests/a.py::test_roof", "tests/a.py::test_wall"),
        storm=(StormFault(Place.KAFKA, Kind.KILL), StormFault(Place.KAFKA, Kind.CUT)),
    )
    storm = {
        "minutes": 3,
        "seed": 1,
        "events": 10,
        "lost": 1,
        "doubled": 0,
        "complaints": ["1 events lost"],
        "faults": [{"place": "kafka", "kind": "kill", "began_seconds": 1.0, "failed": ""}],
    }
    results = {
        "tests/a.py::test_roof": NodeResult("passed", 2),
        "tests/a.py::test_wall": NodeResult("failed", 1),
    }
    text = render_fault_matrix([row], Recorded({"commit": "abc"}, results, storm))
    assert "tests: failed<br>storm: 1 times, not withstood; not in it: cut (kafka)" in text
    assert "lost 1, doubled 0; NOT withstood" in text


def test_results_are_the_worst_of_a_tests_cases() -> None:
    """Parameters are cases of one test; a test that was not run has failed."""
    xml = (
        '<testsuites><testsuite><testcase classname="tests.a.test_b" name="test_c[1]"/>'
        '<testcase classname="tests.a.test_b" name="test_c[2]"><failure/></testcase>'
        '<testcase classname="tests.a.test_b" name="test_d"/></testsuite></testsuites>'
    )
    found = read_results(
        xml, ["tests/a/test_b.py::test_c", "tests/a/test_b.py::test_d", "tests/a/test_b.py::test_e"]
    )
    assert [(each.outcome, each.cases) for each in found.values()] == [
        ("failed", 2),
        ("passed", 1),
        ("failed", 0),
    ]
