"""The watchdog's judgement, second by second."""

from __future__ import annotations

from services.meter.watchdog import Judge, Pulse


def _judge() -> Judge:
    return Judge(stuck_seconds=10, outage_seconds=100)


def _seconds_until_verdict(judge: Judge, pulses: list[Pulse], step: float = 1.0) -> tuple[int, str] | None:
    for second, pulse in enumerate(pulses):
        reason = judge.verdict(step, pulse)
        if reason is not None:
            return second, reason
    return None


def test_progress_is_no_reason() -> None:
    """A partition with a backlog that moves is well, however long the backlog lasts."""
    pulses = [Pulse(beats, {0: beats}, None) for beats in range(500)]
    assert _seconds_until_verdict(_judge(), pulses) is None


def test_an_idle_log_is_no_reason() -> None:
    """Nothing waits, nothing moves."""
    assert _seconds_until_verdict(_judge(), [Pulse(beats, {}, None) for beats in range(500)]) is None


def test_lag_without_progress_is() -> None:
    """One partition that stands still is enough, though others move."""
    found = _seconds_until_verdict(_judge(), [Pulse(beats, {0: 5, 1: beats}, None) for beats in range(500)])
    assert found is not None
    assert found[0] == 11
    assert "partition 0" in found[1]


def test_a_hung_event_loop_is() -> None:
    """The pulse stands still with the loop, whatever it last said."""
    found = _seconds_until_verdict(_judge(), [Pulse(7, {}, "the broker is away")] * 500)
    assert found is not None
    assert found[0] == 11
    assert "event loop" in found[1]


def test_an_outage_is_only_after_its_own_time() -> None:
    """With broker or ledger away a partition may stand still for as long as an outage may last."""
    pulses = [Pulse(beats, {0: 5}, "the broker is away") for beats in range(500)]
    found = _seconds_until_verdict(_judge(), pulses)
    assert found is not None
    assert found[0] == 101
    assert "the broker is away" in found[1]


def test_an_outage_does_not_count_as_standing_still() -> None:
    """After an outage the partition has its full time to move again."""
    away = [Pulse(beats, {0: 5}, "away") for beats in range(50)]
    back = [Pulse(50 + beats, {0: 5}, None) for beats in range(10)]
    assert _seconds_until_verdict(_judge(), away + back) is None


def test_a_suspended_process_is_given_time() -> None:
    """After a minute of SIGSTOP the first look is no verdict."""
    judge = _judge()
    judge.verdict(1.0, Pulse(1, {0: 5}, None))
    assert judge.verdict(60.0, Pulse(1, {0: 5}, None)) is None


def test_a_group_that_never_assigns_is() -> None:
    """A worker that waits for its group for ever consumes nothing for ever."""
    found = _seconds_until_verdict(_judge(), [Pulse(beats, {}, None, True) for beats in range(500)])
    assert found is not None
    assert "assignment" in found[1]
