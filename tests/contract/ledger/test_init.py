"""`initialise` makes a ledger once, and refuses one that belongs to something else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import Engine, delete, select, update

from tests.contract.ledger.conftest import PARTITIONS, PINS
from tollgate.ledger.catalogue import meters_version
from tollgate.ledger.engine import LedgerNotReady, PinMismatch, ledger_transaction, read_snapshot
from tollgate.ledger.init import Pins, check_pins, initialise, read_pins, read_rules
from tollgate.ledger.migrations import required_version, schema_version
from tollgate.ledger.progress import load_epochs, load_progress
from tollgate.ledger.tables import catalogue_state, directory_state, pins, progress, stripe_sequence
from tollgate.metering.outcome import TimeRules


def test_a_new_ledger_has_everything_a_service_needs(empty_ledger: Engine) -> None:
    """Schema, pins, a progress row a partition at offset 0, and the single-row states."""
    report = initialise(empty_ledger, PINS, PARTITIONS, now_ms=1_000)
    assert (report.schema_version, report.pins, report.partitions_added) == (
        required_version(),
        PINS,
        PARTITIONS,
    )
    assert len(report.pinned) == 9
    assert read_pins(empty_ledger) == PINS
    found = load_progress(empty_ledger)
    assert sorted(found) == list(range(PARTITIONS))
    assert {(row.next_offset, row.fingerprint, row.received) for row in found.values()} == {(0, "", 0)}
    assert load_epochs(empty_ledger, 0) == [(0, 0)]
    assert meters_version(empty_ledger) == 0
    with read_snapshot(empty_ledger) as connection:
        for table in (catalogue_state, directory_state, stripe_sequence):
            assert len(connection.execute(select(table)).all()) == 1


def test_a_second_time_changes_nothing(ledger: Engine) -> None:
    """What is there is kept: progress is not set back."""
    with ledger_transaction(ledger) as connection:
        connection.execute(update(progress).values(next_offset=9))
        connection.execute(update(catalogue_state).values(meters_version=3))
    report = initialise(ledger, PINS, PARTITIONS, now_ms=2_000)
    assert (report.pinned, report.partitions_added) == ((), 0)
    assert {row.next_offset for row in load_progress(ledger).values()} == {9}
    assert meters_version(ledger) == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kafka_cluster_id", "cluster-2"),
        ("events_topic", "other.events"),
        ("stripe_account", "acct_2"),
        ("stripe_mode", "live"),
        ("id_seed_fingerprint", "1e1e"),
        ("ledger_id", "ledger_2"),
    ],
)
def test_another_pin_is_refused_naming_both(ledger: Engine, name: str, value: str) -> None:
    """Neither `initialise` nor a service's check goes on."""
    other = replace(PINS, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(PinMismatch) as caught:
        initialise(ledger, other, PARTITIONS, now_ms=2_000)
    assert caught.value.differences == {name: (getattr(PINS, name), value)}
    assert getattr(PINS, name) in str(caught.value)
    assert value in str(caught.value)
    with pytest.raises(PinMismatch):
        check_pins(ledger, **{name: value})
    assert read_pins(ledger) == PINS


def test_another_partition_count_is_refused(ledger: Engine) -> None:
    """Accounts would move to other partitions: a topic's count is part of its generation."""
    with pytest.raises(PinMismatch, match="partitions"):
        initialise(ledger, replace(PINS, partitions=8), 8, now_ms=2_000)
    with pytest.raises(ValueError, match="partitions"):
        initialise(ledger, PINS, 8, now_ms=2_000)
    assert len(load_progress(ledger)) == PARTITIONS


def test_a_ledger_that_is_not_ours_is_not_migrated(ledger: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pins are compared before the schema is touched."""
    monkeypatch.setattr("tollgate.ledger.init.migrate", lambda engine: pytest.fail("migrated"))
    with pytest.raises(PinMismatch):
        initialise(ledger, replace(PINS, kafka_cluster_id="cluster-2"), PARTITIONS, now_ms=2_000)


def test_what_is_not_known_yet_is_pinned_later(empty_ledger: Engine) -> None:
    """No Stripe key at first: the account is pinned when it is known, and not before."""
    first = initialise(empty_ledger, replace(PINS, stripe_account="", ledger_id=""), PARTITIONS, now_ms=1_000)
    assert first.pins.ledger_id.startswith("ledger_")
    with pytest.raises(LedgerNotReady, match="stripe_account"):
        check_pins(empty_ledger, stripe_account="acct_1")
    second = initialise(empty_ledger, replace(PINS, ledger_id=""), PARTITIONS, now_ms=2_000)
    assert second.pinned == ("stripe_account",)
    assert second.pins == replace(PINS, ledger_id=first.pins.ledger_id)
    check_pins(empty_ledger, stripe_account="acct_1", partitions=PARTITIONS)


def test_a_service_on_an_empty_ledger_is_told_what_to_run(empty_ledger: Engine) -> None:
    """No table, no pins: LedgerNotReady."""
    assert schema_version(empty_ledger) is None
    with pytest.raises(LedgerNotReady, match="tollgate init"):
        read_pins(empty_ledger)
    with pytest.raises(LedgerNotReady, match="tollgate init"):
        check_pins(empty_ledger, stripe_mode="test")


def test_a_name_that_is_no_pin_is_a_mistake(ledger: Engine) -> None:
    """A misspelt pin would otherwise check nothing."""
    with pytest.raises(ValueError, match="stripe_acount"):
        check_pins(ledger, stripe_acount="acct_1")


def test_the_rules_of_lateness_are_the_ledgers(empty_ledger: Engine) -> None:
    """Whoever counts or recounts reads them back, and no later `initialise` may name others."""
    own = replace(PINS, accept_age_hours=1, future_seconds=0)
    initialise(empty_ledger, own, PARTITIONS, now_ms=1_000)
    assert read_rules(empty_ledger) == TimeRules(accept_age_ms=3_600_000, future_ms=0)
    for name, value in (("accept_age_hours", 2), ("future_seconds", 1)):
        other = replace(own, **{name: value})  # type: ignore[arg-type]
        with pytest.raises(PinMismatch) as caught:
            initialise(empty_ledger, other, PARTITIONS, now_ms=2_000)
        assert caught.value.differences == {name: (str(getattr(own, name)), str(value))}
        with pytest.raises(PinMismatch, match=name):
            check_pins(empty_ledger, **{name: value})
    assert read_rules(empty_ledger) == TimeRules(accept_age_ms=3_600_000, future_ms=0)


def test_rules_said_nowhere_are_those_of_the_core() -> None:
    """A ledger made without naming them counts as `TimeRules` does by itself."""
    made = Pins("cluster", "topic", 1, "", "", "", "")
    assert made.accept_age_hours is not None
    assert made.future_seconds is not None
    assert TimeRules(made.accept_age_hours * 3_600_000, made.future_seconds * 1_000) == TimeRules()


def test_a_ledger_without_rules_counts_nothing(ledger: Engine) -> None:
    """No default steps in where two workers could have different ones."""
    with ledger_transaction(ledger) as connection:
        connection.execute(delete(pins).where(pins.c.name == "accept_age_hours"))
    with pytest.raises(LedgerNotReady, match="tollgate init"):
        read_rules(ledger)
