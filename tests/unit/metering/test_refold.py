from __future__ import annotations

from decimal import Decimal
from typing import Any

from tests.unit.metering.rows import DAY_MS, HOUR_MS, NOW_MS, meter, meter_set, row
from tollgate.metering.fold import Outcomes, TimeRules
from tollgate.metering.meter import Meter
from tollgate.metering.refold import Recount, recount

RULES = TimeRules()
WINDOW = NOW_MS - NOW_MS % HOUR_MS


def logged(event: dict[str, Any], offset: int = 0, **of_record: Any) -> dict[str, Any]:
    return {**event, "partition": 0, "offset": offset, "ingest_ms": NOW_MS, **of_record}


def count(meters: Meter, *rows: dict[str, Any]) -> Recount:
    return recount(rows, meter_set(meters), RULES)


def test_outcomes() -> None:
    """Each row ends once, undecodable records by their header."""
    done = count(
        meter(where="status = 200"),
        logged(row(1, status=200)),
        logged(row(1, status=200, id_weak=True)),
        logged(row(2)),
        logged(row(3, time_ms=NOW_MS + DAY_MS)),
        logged(row(4, time_ms=0)),
        logged(row(5, time_ms=0, status=200), 1, accept_late=True),
        {"partition": 0, "offset": 2, "undecodable": 7},
    )
    assert done.outcomes == {
        0: Outcomes(received=13, counted=2, unmatched=1, duplicate=1, weak_duplicate=1, late=1, dead=8)
    }


def test_usage_by_hand() -> None:
    """A sum of two, one of them unvalued for its property is text."""
    done = count(
        meter("sum properties.x * 0.5 + 1", "LOWER(route) LIKE '/chat%'"),
        logged(row(1, route="/Chat/1", properties={"x": "3"})),
        logged(row(2, route="/chat", properties={"x": "three"})),
        logged(row(3, route="/other", properties={"x": "3"})),
    )
    (held,) = done.usage.values()
    assert list(done.usage) == [(0, 1, WINDOW, "user:ada", "")]
    assert (held.quantity, held.events, held.unvalued) == (Decimal("2.5"), 1, 1)


def test_a_dollar_means_the_very_end() -> None:
    """As in the engine that counts: not before a final line break."""
    done = count(meter(where="route ~ 'a$'"), logged(row(1, route="a")), logged(row(2, route="a\n")))
    assert done.outcomes[0].counted == 1


def test_each_offset_is_counted_by_the_meters_of_its_time() -> None:
    """A recount uses the set that offset was folded with."""
    old, new = meter_set(meter(where="status = 200")), meter_set(meter(where="status = 500"))
    rows = [logged(row(1, status=200), 0), logged(row(2, status=200), 1)]
    new = type(new)(2, new.meters)
    done = recount(rows, lambda partition, offset: old if offset < 1 else new, RULES)
    assert done.outcomes[0] == Outcomes(received=2, counted=1, unmatched=1)
