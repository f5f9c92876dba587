"""The clock: virtual time stands still, moves when told, and wakes sleepers in order."""

from __future__ import annotations

import asyncio

import pytest

from tollgate.runtime.clock import ManualClock, SystemClock


async def turn_loop() -> None:
    """Let everything that is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_sleepers_wake_when_due_and_not_before() -> None:
    """Sleepers wake in the order they are due, each no earlier than asked."""
    clock = ManualClock(now_ms=1_000)
    woken: list[str] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep_seconds(seconds)
        woken.append(name)

    tasks = [asyncio.create_task(sleeper("late", 2.0)), asyncio.create_task(sleeper("early", 1.0))]
    await turn_loop()
    assert clock.sleepers == 2
    clock.advance_ms(999)
    await turn_loop()
    assert woken == []
    clock.advance_ms(1)
    await turn_loop()
    assert woken == ["early"]
    clock.advance_ms(5_000)
    await turn_loop()
    assert woken == ["early", "late"]
    assert (clock.now_ms(), clock.monotonic_seconds(), clock.sleepers) == (7_000, 6.0, 0)
    await asyncio.gather(*tasks)


async def test_one_advance_wakes_all_in_due_order() -> None:
    """A long step wakes everybody due, the earliest first."""
    clock = ManualClock()
    woken: list[int] = []

    async def sleeper(seconds: int) -> None:
        await clock.sleep_seconds(seconds)
        woken.append(seconds)

    tasks = [asyncio.create_task(sleeper(seconds)) for seconds in (3, 1, 2)]
    await turn_loop()
    clock.advance_ms(3_000)
    await asyncio.gather(*tasks)
    assert woken == [1, 2, 3]


async def test_cancelled_sleeper_is_forgotten() -> None:
    """A cancelled sleep neither counts nor disturbs the others."""
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep_seconds(1))
    await turn_loop()
    task.cancel()
    await turn_loop()
    assert clock.sleepers == 0
    clock.advance_ms(2_000)
    assert task.cancelled()


async def test_fractions_are_never_cut_short() -> None:
    """A sleep of one and a half milliseconds lasts two, and a sleep of none lasts a turn of the loop."""
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep_seconds(0.0015))
    await turn_loop()
    clock.advance_ms(1)
    await turn_loop()
    assert not task.done()
    clock.advance_ms(1)
    await task
    await clock.sleep_seconds(0)


def test_wall_time_steps_alone() -> None:
    """Stepping the wall clock back does not move elapsed time; time cannot be advanced backwards."""
    clock = ManualClock(now_ms=5_000)
    clock.advance_ms(10)
    clock.set_now_ms(1)
    assert (clock.now_ms(), clock.monotonic_seconds()) == (1, 0.01)
    with pytest.raises(ValueError, match="-1 ms"):
        clock.advance_ms(-1)


async def test_system_clock_is_in_milliseconds() -> None:
    """The machine's clock tells milliseconds of this century, and its elapsed time never goes back."""
    clock = SystemClock()
    assert 1_700_000_000_000 < clock.now_ms() < 4_000_000_000_000
    before = clock.monotonic_seconds()
    await clock.sleep_seconds(-1)
    assert clock.monotonic_seconds() >= before
