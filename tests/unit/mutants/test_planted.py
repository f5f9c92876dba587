"""The mutants themselves: each must still fit the code, and be one line of it."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.mutants.ground import CHECKOUT, Ground
from tests.mutants.mutant import Mutant, NotThere
from tests.mutants.planted import MUTANTS
from tests.mutants.trial import run_trial

_BY_NAME = [pytest.param(mutant, id=mutant.name) for mutant in MUTANTS]


def test_there_are_enough_and_no_two_of_one_name() -> None:
    """At least forty mutants, told apart by their names."""
    assert len(MUTANTS) >= 40
    assert [name for name, count in Counter(mutant.name for mutant in MUTANTS).items() if count > 1] == []


@pytest.mark.parametrize("mutant", _BY_NAME)
def test_a_mutant_is_one_changed_line_of_the_real_code(mutant: Mutant) -> None:
    """Its text is in its file exactly once, and what it makes of it is Python that differs in one line."""
    sound = (CHECKOUT / mutant.path).read_text(encoding="utf-8")
    planted = mutant.plant(sound)
    ast.parse(planted)
    assert len(planted.splitlines()) == len(sound.splitlines())
    changed = zip(sound.splitlines(), planted.splitlines(), strict=True)
    assert sum(before != after for before, after in changed) == 1


@pytest.mark.parametrize("mutant", _BY_NAME)
def test_a_mutant_says_what_it_costs_and_who_catches_it(mutant: Mutant) -> None:
    """Every mutant names its price, and tests that are there or runs of the simulator."""
    assert mutant.costs.endswith(".")
    assert mutant.tests or mutant.seeds
    for test in mutant.tests:
        path, _, name = test.partition("::")
        source = (CHECKOUT / path).read_text(encoding="utf-8")
        assert name, f"{test}: a file is too much to run"
        assert f"def {name}(" in source, test


def test_a_few_are_marked_for_every_push() -> None:
    """The share that is tried with every push stays small."""
    assert 6 <= sum(mutant.dangerous for mutant in MUTANTS) <= 8


def test_ground_is_changed_and_restored(tmp_path: Path) -> None:
    """A planted bug is in the copy, and gone afterwards, its compiled code with it."""
    path = tmp_path / "room" / "code.py"
    compiled = path.parent / "__pycache__" / "code.cpython-311.pyc"
    compiled.parent.mkdir(parents=True)
    path.write_text("one = 1\n")
    compiled.write_bytes(b"old")
    mutant = Mutant("two", "room/code.py", "one = 1", "one = 2", "Twice the price.")
    with Ground(tmp_path).planted(mutant):
        assert path.read_text() == "one = 2\n"
        assert not compiled.exists()
        compiled.write_bytes(b"of the mutant")
    assert path.read_text() == "one = 1\n"
    assert not compiled.exists()


@pytest.mark.parametrize("source", ["", "one = 1\none = 1\n"])
def test_a_text_that_is_not_there_once_is_refused(source: str) -> None:
    """A mutant whose line is gone, or is no longer the only one, cannot be planted."""
    with pytest.raises(NotThere, match=r"two: room/code\.py"):
        Mutant("two", "room/code.py", "one = 1", "one = 2", "Twice the price.").plant(source)


@pytest.mark.slow
@pytest.mark.parametrize(("price", "caught"), [("2", True), ("1 + 0", False)])
def test_a_trial_names_the_test_that_failed_or_nobody(tmp_path: Path, price: str, caught: bool) -> None:
    """A test that fails catches a mutant; one that passes all the same lets it live."""
    (tmp_path / "shop.py").write_text("price = 1\n")
    (tmp_path / "test_shop.py").write_text("import shop\n\ndef test_price():\n    assert shop.price == 1\n")
    mutant = Mutant("price", "shop.py", "price = 1", f"price = {price}", "Money.", tests=("test_shop.py",))
    with Ground(tmp_path).planted(mutant):
        verdict = run_trial(mutant, tmp_path)
    assert verdict.caught_by == ("test_shop.py::test_price" if caught else None)
