from __future__ import annotations

import pytest

from tollgate.metering.window import DAY_MS, WindowSize, assign_window, epoch_day


@pytest.mark.parametrize("size", WindowSize)
def test_windows_are_half_open(size: WindowSize) -> None:
    """A window's start belongs to it, its end to the next."""
    start = 1_700_006_400_000 // DAY_MS * DAY_MS
    assert assign_window(start, size.size_ms) == start
    assert assign_window(start + size.size_ms - 1, size.size_ms) == start
    assert assign_window(start + size.size_ms, size.size_ms) == start + size.size_ms
    assert DAY_MS % size.size_ms == 0


def test_windows_before_1970() -> None:
    """Times below zero round down, not towards zero."""
    assert assign_window(-1, 60_000) == -60_000
    assert epoch_day(-1) == -1
