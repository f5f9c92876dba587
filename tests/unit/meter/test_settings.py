"""The meter's settings: documented, consistent, harmless by default."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from services.meter.settings import FlushSettings, GroupSettings, MeterSettings
from tollgate.runtime.settings_docs import describe_settings


def test_every_setting_is_documented() -> None:
    """The generated documents need a description for each."""
    names = [each.env for each in describe_settings(MeterSettings)]
    assert "TOLLGATE_FLUSH__INTERVAL_MS" in names
    assert "TOLLGATE_FAULT__POINT" in names


def test_no_fault_is_armed_by_default() -> None:
    """Dying is asked for."""
    assert MeterSettings.model_fields["fault"].default.point is None


def test_bounds_must_fit_into_each_other() -> None:
    """A flush cannot take more than may be held."""
    with pytest.raises(ValidationError, match="eager_bytes <= bytes_max"):
        FlushSettings(bytes_max=1_000_000_000)
    with pytest.raises(ValidationError, match="third"):
        GroupSettings(session_timeout_seconds=6, heartbeat_seconds=3)
