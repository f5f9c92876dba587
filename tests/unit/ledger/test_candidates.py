"""When planning may go on after a restore."""

from __future__ import annotations

from tollgate.ledger.candidates import JOURNAL_WAIT, journal_gate


def test_planning_waits_until_every_partition_has_the_counts_the_journal_was_planned_from() -> None:
    """Behind waits, reached is over, and a partition without progress is behind; other controls are nothing."""
    controls = {f"{JOURNAL_WAIT}0": "5", f"{JOURNAL_WAIT}1": "5", f"{JOURNAL_WAIT}2": "1", "scan:3": "[]"}
    assert journal_gate(controls, {0: 4, 1: 5}) == ({0: 5, 2: 1}, [f"{JOURNAL_WAIT}1"])
    assert journal_gate({}, {0: 4}) == ({}, [])
