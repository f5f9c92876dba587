"""Which partition count was in force where, and what has to be counted again before what."""

from __future__ import annotations

from services.cli.generations import Generations, Step

LAYOUTS = {0: 2, 1: 2, 2: 2, 3: 4, 4: 4, 5: 8}
EPOCHS = {
    0: [(0, 1), (10, 2), (20, 4), (30, 5)],
    1: [(0, 2), (7, 3)],  # nothing came after the second cut-over
    2: [(0, 3), (4, 5)],
    3: [(0, 0)],  # nothing ever came
    6: [(0, 5)],
}


def made() -> Generations:
    return Generations(LAYOUTS, EPOCHS)


def test_the_count_in_force_is_told_by_place() -> None:
    """It changes at the first offset that was folded by the new count, in each partition by itself."""
    generations = made()
    assert [generations.at(0, offset) for offset in (0, 9, 10, 19, 20, 29, 30, 999)] == [2] * 4 + [4] * 2 + [
        8
    ] * 2
    assert [generations.at(1, offset) for offset in (6, 7, 999)] == [2, 4, 4]
    assert generations.at(9, 0) == 0


def test_parents_are_counted_before_their_children_begin() -> None:
    """Each step ends where a cut-over came, or where the partition ends; then children take their parents' ids."""
    stop = {0: 40, 1: 9, 2: 6, 3: 0, 6: 5}
    assert list(made().steps(stop)) == [
        Step({0: 20, 1: 7}, {2: 0, 3: 1}),
        Step({0: 30, 1: 9, 2: 4, 3: 0}, {4: 0, 5: 1, 6: 2, 7: 3}),
        Step(stop, {}),
    ]


def test_a_range_that_ends_before_a_cut_over_stops_there() -> None:
    """What is asked for is never read past."""
    steps = list(made().steps({0: 15, 2: 2}))
    assert [step.stop for step in steps] == [{0: 15}, {0: 15, 2: 2}, {0: 15, 2: 2}]


def test_who_began_with_unknown_ids_is_an_orphan() -> None:
    """A partition whose parent, or grandparent, is missing cannot be counted again."""
    assert made().orphans([0, 1, 2, 3, 6]) == []
    assert made().orphans([1, 2, 3, 6]) == [2, 6]
    assert made().orphans([0, 3]) == [3]


def test_a_log_that_was_never_cut_over_has_one_step() -> None:
    """Also where its sets do not say how many partitions they counted."""
    for layouts in ({1: 0, 2: 0}, {1: 0, 2: 2, 3: 2}, {}):
        generations = Generations(layouts, {0: [(0, 1), (5, 2)]})
        assert list(generations.steps({0: 9})) == [Step({0: 9}, {})]
        assert generations.orphans([0]) == []
