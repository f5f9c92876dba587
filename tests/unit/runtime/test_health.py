"""Health: started, alive and ready are three different answers."""

from __future__ import annotations

from tollgate.runtime.clock import ManualClock
from tollgate.runtime.health import Health


def test_not_ready_before_it_has_started() -> None:
    """A process that is starting is alive and neither started nor ready."""
    health = Health(ManualClock())
    assert [probe()[0] for probe in (health.livez, health.startupz, health.readyz)] == [200, 503, 503]
    health.mark_started()
    assert [probe()[0] for probe in (health.livez, health.startupz, health.readyz)] == [200, 200, 200]


def test_one_part_that_cannot_work_makes_it_unready_and_not_dead() -> None:
    """A broken dependency stops traffic and does not ask for a restart; repaired, traffic comes back."""
    health = Health(ManualClock())
    health.mark_started()
    health.set_ready("kafka", True, "3 brokers")
    health.set_ready("ledger", False, "connection refused")
    status, body = health.readyz()
    assert status == 503
    assert body["parts"]["ledger"] == {"ok": False, "detail": "connection refused"}
    assert health.livez()[0] == 200
    health.set_ready("ledger", True)
    assert health.readyz()[0] == 200


def test_draining_is_not_ready_for_good() -> None:
    """A draining process is alive and takes no new work, whatever its parts say."""
    health = Health(ManualClock())
    health.mark_started()
    health.mark_draining()
    health.set_ready("kafka", True)
    assert (health.readyz()[0], health.livez()[0], health.startupz()[0]) == (503, 200, 200)


def test_missed_heartbeat_is_not_alive() -> None:
    """A watched part that makes no progress for longer than allowed makes the process not alive, by name."""
    clock = ManualClock()
    health = Health(clock)
    health.watch("flush", max_age_seconds=30)
    health.watch("ticks", max_age_seconds=60)
    clock.advance_ms(30_000)
    assert health.livez()[0] == 200
    clock.advance_ms(1)
    assert health.livez() == (
        503,
        {"alive": False, "stuck": ["flush"], "heartbeat_age_seconds": {"flush": 30.001, "ticks": 30.001}},
    )
    health.heartbeat("flush")
    assert health.livez()[0] == 200


def test_unwatched_part_may_be_silent() -> None:
    """What is not watched any more, or never was, is not waited for."""
    clock = ManualClock()
    health = Health(clock)
    health.watch("partition 3", max_age_seconds=1)
    health.heartbeat("somebody else")
    health.unwatch("partition 3")
    clock.advance_ms(3_600_000)
    assert health.livez() == (200, {"alive": True, "stuck": [], "heartbeat_age_seconds": {}})


def test_wall_clock_steps_kill_nobody() -> None:
    """Heartbeats are measured in elapsed time: a stepped wall clock is no missed heartbeat."""
    clock = ManualClock(now_ms=1_000)
    health = Health(clock)
    health.watch("flush", max_age_seconds=1)
    clock.set_now_ms(10_000_000)
    assert health.livez()[0] == 200
