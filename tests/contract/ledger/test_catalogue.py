"""Meter sets: applied in one transaction, versioned, and every past one loadable as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import Engine, func, select

from tollgate.ledger.catalogue import (
    MeterChange,
    apply_meters,
    create_source,
    hash_token,
    list_sources,
    load_meter_set,
    load_sources,
    meters_version,
    revoke_source,
)
from tollgate.ledger.engine import LedgerNotReady, read_snapshot
from tollgate.ledger.meter_changes import next_boundary
from tollgate.ledger.migrations import migrate
from tollgate.ledger.tables import meter_sets, meters
from tollgate.metering.definition import Meter, MeterVersion, StripeTarget
from tollgate.metering.metric import Metric, MetricKind
from tollgate.metering.window import WindowSize

HOUR = 3_600_000
NOW = 1_000 * HOUR + 17

CALLS = Meter(
    "calls",
    "status < 500",
    Metric(MetricKind.COUNT),
    WindowSize.HOUR,
    (),
    StripeTarget(mode="delta", send="off", event_name="calls"),
)
BYTES = Meter("bytes", None, Metric(MetricKind.SUM, "response_bytes"), WindowSize.DAY, ("route",), None)


def test_before_the_first_set_nothing_is_counted(ledger: Engine) -> None:
    """Version 0 is the empty set."""
    assert meters_version(ledger) == 0
    assert load_meter_set(ledger).meters == ()


def test_a_catalogue_without_init_says_what_to_run(empty_ledger: Engine) -> None:
    """Tables without their rows: LedgerNotReady."""
    migrate(empty_ledger)
    with pytest.raises(LedgerNotReady, match="tollgate init"):
        apply_meters(empty_ledger, [CALLS], "", NOW)


def test_new_meters_count_at_once(ledger: Engine) -> None:
    """Version 1 holds them, from the beginning of event time."""
    report = apply_meters(ledger, [CALLS, BYTES], "text", NOW)
    assert (report.version_before, report.version) == (0, 1)
    assert report.added == (MeterChange("calls", 0), MeterChange("bytes", 0))
    found = load_meter_set(ledger)
    assert found.version == meters_version(ledger) == 1
    assert [(item.meter, item.from_ms, item.to_ms) for item in found.meters] == [
        (CALLS, 0, None),
        (BYTES, 0, None),
    ]
    with read_snapshot(ledger) as connection:
        row = connection.execute(select(meter_sets)).one()
    assert (row.version, row.applied_ms, row.source) == (1, NOW, "text")


def test_applying_what_is_in_force_changes_nothing(ledger: Engine) -> None:
    """No version, no row, however often and in whichever order."""
    apply_meters(ledger, [CALLS, BYTES], "text", NOW)
    before = load_meter_set(ledger)
    report = apply_meters(ledger, [BYTES, CALLS], "the same, said differently", NOW + HOUR)
    assert (report.version_before, report.version) == (1, 1)
    assert set(report.kept) == {"calls", "bytes"}
    assert load_meter_set(ledger) == before
    with read_snapshot(ledger) as connection:
        assert connection.execute(select(func.count()).select_from(meters)).scalar_one() == 2


def test_a_changed_meter_is_two_versions_at_one_boundary(ledger: Engine) -> None:
    """Both are in the set, since late events of the old time still come; the past set is as it was."""
    apply_meters(ledger, [CALLS], "1", NOW)
    first = load_meter_set(ledger)
    stricter = replace(CALLS, where="status < 400")
    report = apply_meters(ledger, [stricter], "2", NOW)
    boundary = next_boundary(NOW, HOUR)
    assert report.changed == (MeterChange("calls", boundary),)
    old, new = load_meter_set(ledger).meters
    assert (old.meter, old.from_ms, old.to_ms) == (CALLS, 0, boundary)
    assert (new.meter, new.from_ms, new.to_ms) == (stricter, boundary, None)
    assert old.meter_id != new.meter_id
    assert load_meter_set(ledger, 1) == first
    assert load_meter_set(ledger, 0).meters == ()


def test_a_change_in_place_keeps_the_meters_id(ledger: Engine) -> None:
    """Switching sending on is a new set of the same meters."""
    apply_meters(ledger, [CALLS], "1", NOW)
    assert CALLS.stripe is not None
    live = replace(CALLS, stripe=replace(CALLS.stripe, send="live"))
    (before,) = load_meter_set(ledger).meters
    report = apply_meters(ledger, [live], "2", NOW)
    assert (report.retargeted, report.version, report.changed) == (("calls",), 2, ())
    assert load_meter_set(ledger).meters == (MeterVersion(before.meter_id, live, 0, None),)


def test_a_removed_meter_keeps_counting_what_is_before_its_end(ledger: Engine) -> None:
    """It stays in the set with an end, and comes back beyond it."""
    apply_meters(ledger, [CALLS, BYTES], "1", NOW)
    report = apply_meters(ledger, [BYTES], "2", NOW)
    boundary = next_boundary(NOW, HOUR)
    assert report.removed == (MeterChange("calls", boundary),)
    assert [(item.meter.name, item.to_ms) for item in load_meter_set(ledger).meters] == [
        ("calls", boundary),
        ("bytes", None),
    ]
    back = apply_meters(ledger, [CALLS, BYTES], "3", NOW + 1)
    assert back.added == (MeterChange("calls", boundary),)


def test_a_version_that_never_began_leaves_the_set(ledger: Engine) -> None:
    """Changed twice in a hurry: two versions remain, joined at one boundary; the set between shows what it was."""
    apply_meters(ledger, [CALLS], "1", NOW)
    apply_meters(ledger, [replace(CALLS, where="status < 400")], "2", NOW)
    apply_meters(ledger, [replace(CALLS, where="status < 300")], "3", NOW + 1)
    boundary = next_boundary(NOW, HOUR)
    assert [(item.meter.where, item.from_ms, item.to_ms) for item in load_meter_set(ledger).meters] == [
        ("status < 500", 0, boundary),
        ("status < 300", boundary, None),
    ]
    assert [(item.meter.where, item.from_ms, item.to_ms) for item in load_meter_set(ledger, 2).meters] == [
        ("status < 500", 0, boundary),
        ("status < 400", boundary, None),
    ]


def test_a_set_that_never_was_is_an_error(ledger: Engine) -> None:
    """Neither the future nor a negative version."""
    for version in (1, -1):
        with pytest.raises(LookupError):
            load_meter_set(ledger, version)


def test_an_apply_that_fails_leaves_the_set_in_force(ledger: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It dies after writing meters and before the version: nothing of it stays."""
    apply_meters(ledger, [CALLS], "1", NOW)
    before = load_meter_set(ledger)

    def die(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(
        "tollgate.ledger.catalogue.insert", lambda table: table.insert() if table is meters else die()
    )
    with pytest.raises(ZeroDivisionError):
        apply_meters(ledger, [BYTES], "2", NOW)
    monkeypatch.undo()
    assert load_meter_set(ledger) == before
    with read_snapshot(ledger) as connection:
        assert connection.execute(select(func.count()).select_from(meters)).scalar_one() == 1


def test_a_token_opens_its_source_and_only_its_hash_is_kept(ledger: Engine) -> None:
    """`tg_<token_id>_<secret>`: long, random to the end, looked up by its id, compared by its hash."""
    token = create_source(ledger, "kong-eu", ["write"], NOW)
    other = create_source(ledger, "kong-eu", ["replay", "write"], NOW + 1)
    prefix, token_id, secret = token.split("_")
    assert (prefix, len(token) >= 60, len(secret)) == ("tg", True, 48)
    assert token[-10:] != other[-10:]
    found = {source.token_id: source for source in load_sources(ledger)}
    assert len(found) == 2
    assert found[token_id].token_sha256 == hash_token(token)
    assert (found[token_id].name, found[token_id].scopes) == ("kong-eu", frozenset({"write"}))
    assert all(secret not in str(source) for source in found.values())


def test_a_revoked_token_is_listed_and_not_loaded(ledger: Engine) -> None:
    """One token of a source, or all; a second time revokes nothing."""
    first = create_source(ledger, "kong", ["write"], NOW).split("_")[1]
    second = create_source(ledger, "kong", ["write"], NOW + 1).split("_")[1]
    other = create_source(ledger, "other", ["write"], NOW).split("_")[1]
    assert revoke_source(ledger, "kong", NOW + 2, token_id=first) == 1
    assert {source.token_id for source in load_sources(ledger)} == {second, other}
    assert revoke_source(ledger, "kong", NOW + 3) == 1
    assert revoke_source(ledger, "kong", NOW + 4) == 0
    assert revoke_source(ledger, "absent", NOW) == 0
    assert {source.token_id for source in load_sources(ledger)} == {other}
    assert [(source.token_id, source.revoked_ms) for source in list_sources(ledger)] == [
        (first, NOW + 2),
        (second, NOW + 3),
        (other, None),
    ]


@pytest.mark.parametrize(
    ("name", "scopes"),
    [("", ["write"]), ("a b", ["write"]), ("x" * 65, ["write"]), ("ok", ["admin"]), ("ok", [])],
)
def test_a_source_that_makes_no_sense_is_refused(ledger: Engine, name: str, scopes: list[str]) -> None:
    """Names become headers and labels; scopes are two."""
    with pytest.raises(ValueError, match=r"source name|scopes"):
        create_source(ledger, name, scopes, NOW)
    assert list_sources(ledger) == []
