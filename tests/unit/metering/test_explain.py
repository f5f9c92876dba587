from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from tests.unit.metering.rows import HOUR_MS, NOW_MS, meter
from tollgate.metering.errors import InvalidEvent, InvalidMeter
from tollgate.metering.explain import explain

CHAT = meter(
    "sum properties.tokens * 2",
    "route = '/chat' AND (status < 500 OR blocked_by IS NOT NULL) AND properties.tier = 'gold'",
    name="chat",
    group_by=("properties.model",),
)


def event(**columns: Any) -> dict[str, Any]:
    properties = {"tokens": "12.5", "tier": "gold", "model": "big"}
    return {
        "time_ms": NOW_MS,
        "account": "user:a",
        "route": "/chat",
        "status": 200,
        "properties": properties,
    } | columns


def test_a_counted_event() -> None:
    """Every clause held; value, window and dimensions are those it is counted with."""
    found = explain(CHAT, event())
    assert [clause.held for clause in found.clauses] == [True, True, True]
    assert (found.matched, found.unvalued, found.value) == (True, False, Decimal(25))
    assert found.window_start_ms == NOW_MS - NOW_MS % HOUR_MS == found.window_end_ms - HOUR_MS
    assert found.dimensions == '{"properties.model":"big"}'
    assert "adds 25" in str(found)


def test_the_clause_that_failed_is_shown_with_what_it_saw() -> None:
    """NULL and FALSE both do not hold, and the values say which it was."""
    found = explain(CHAT, event(status=None))
    assert [(clause.text, clause.held) for clause in found.clauses] == [
        ("route = '/chat'", True),
        ("(status < 500 OR blocked_by IS NOT NULL)", False),
        ("properties.tier = 'gold'", True),
    ]
    assert found.clauses[1].values == {"status": None, "blocked_by": None}
    assert (found.matched, found.value) == (False, None)
    assert "no  (status < 500 OR blocked_by IS NOT NULL)   (blocked_by: NULL, status: NULL)" in str(found)


def test_a_property_that_was_not_captured() -> None:
    """Undecided: the event is unvalued, and the clause says neither yes nor no."""
    found = explain(CHAT, event(properties={"tokens": "1", "model": "m"}))
    assert [clause.held for clause in found.clauses] == [True, True, None]
    assert (found.matched, found.unvalued) == (True, True)
    assert "properties.tier: not captured" in str(found)


@pytest.mark.parametrize("tokens", [None, "many", "-1", "600000000000"])
def test_a_value_that_does_not_count(tokens: str | None) -> None:
    """Missing, no number, negative, or past the bound once doubled."""
    found = explain(CHAT, event(properties={"tokens": tokens, "tier": "gold", "model": "m"}))
    assert (found.matched, found.unvalued, found.value) == (True, True, None)
    assert found.inputs["properties.tokens"] == tokens


def test_flat_properties_and_other_metrics() -> None:
    """Properties may be spelled flat; unique and count add one, a weighted count its weight."""
    flat = event() | {"properties.tokens": "3"}
    del flat["properties"]
    assert explain(meter("unique properties.tokens"), flat).value == 1
    assert explain(meter("count"), flat).value == 1
    assert explain(meter("sum weight"), flat | {"weight": 4}).value == 4


def test_what_is_not_an_event_is_refused() -> None:
    """By name, not by traceback; and so is a meter that is none."""
    with pytest.raises(InvalidEvent, match="time_ms is missing"):
        explain(CHAT, event(time_ms=None))
    with pytest.raises(InvalidEvent, match="status"):
        explain(CHAT, event(status="many"))
    with pytest.raises(InvalidEvent, match="status"):
        explain(CHAT, event(status=10**6))
    with pytest.raises(InvalidMeter):
        explain(meter(where="rout = 'x'"), event())
