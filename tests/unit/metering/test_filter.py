from __future__ import annotations

from typing import Any

import pytest

from tests.unit.metering.rows import NOW_MS, meter, meter_set, record, row
from tollgate.metering.compiled import CompiledMeters
from tollgate.metering.fold import TimeRules, fold
from tollgate.metering.refold import recount
from tollgate.metering.seen import SeenIds

EVENT: dict[str, Any] = {
    "route": "/v1/chat",
    "method": "GET",
    "path": "/users/12\n",
    "status": 200,
    "company": None,
    "latency_ms": 2**63 - 1,
    "properties": {"n": "12.5", "big": "9" * 19, "text": "gold", "quote": "it's", "empty": "", "none": None},
}

MATCHES = [
    "status = 200",
    "status <> 201",
    "200 <= status",
    "status BETWEEN 200 AND 299",
    "status NOT BETWEEN 300 AND 599",
    "status IN (200, 99999)",
    "status NOT IN (-1, 404)",
    "status < 200.5",
    "status IS DISTINCT FROM 5",
    "latency_ms > 999999999999999999",
    "properties.n = 12.5",
    "properties.n = 12.50",
    "properties.n > status - 200",
    "properties.big > 1000000000000",
    "properties.n IN (1, 12.5)",
    "-properties.n < 0",
    "properties.n * properties.n = 156.25",
    "properties.text = 'gold'",
    "properties.quote = 'it''s'",
    "properties.empty = ''",
    "properties.none IS NULL",
    "properties.none IS DISTINCT FROM 'x'",
    "route LIKE '/v1/%'",
    "route LIKE '/v_/chat'",
    "route ILIKE '/V1/CHAT'",
    "route NOT LIKE '/v2/%'",
    "path LIKE '/users/%'",
    "route ~ '^/v[0-9]/'",
    "REGEXP_LIKE(route, 'chat$')",
    "STARTS_WITH(route, '/v1') AND ENDS_WITH(route, 'chat')",
    "LOWER(method) = 'get' AND UPPER(properties.text) = 'GOLD'",
    "LENGTH(route) = 8",
    "COALESCE(company, 'nobody') = 'nobody'",
    "COALESCE(properties.text, properties.n) = 'gold'",
    "COALESCE(properties.text, 7) = 7",
    "CASE WHEN status < 300 THEN 'ok' ELSE 'bad' END = 'ok'",
    "CASE status WHEN 200 THEN TRUE ELSE FALSE END",
    "company IS NULL",
    "(company = 'x') IS NOT TRUE",
    "(company = 'x') IS NOT FALSE",
    "(status = 200) IS TRUE",
    "(company = 'x') IS NULL",
    "company = 'x' OR status = 200",
    "NOT id_weak",
    "id_weak = FALSE",
    "NOT (company = 'x' AND status = 201)",
]

DOES_NOT = [
    "status <> 200",
    "company = 'x'",
    "company <> 'x'",
    "NOT company = 'x'",
    "NOT (company = 'x' OR status = 201)",
    "company IN ('x', 'y')",
    "company NOT IN ('x', 'y')",
    "company NOT LIKE 'x%'",
    "(company = 'x') IS TRUE",
    "(company = 'x') IS FALSE",
    "properties.text > 5",
    "properties.text <> 5",
    "properties.big * 1 > 0",
    "latency_ms + 0 > 0",
    "properties.none = ''",
    "path ~ '12$'",
    "path LIKE '/users/12'",
    "route LIKE 'v1/chat'",
    "method = 'get'",
    "CASE WHEN company = 'x' THEN FALSE END",
]


@pytest.mark.parametrize(("where", "matches"), [(w, True) for w in MATCHES] + [(w, False) for w in DOES_NOT])
def test_what_a_condition_means(where: str, matches: bool) -> None:
    """SQL's three-valued logic, exact numbers, and both evaluators of one mind about them."""
    event = row(1, **EVENT)
    chosen = meter_set(meter(where=where))
    folded = fold(
        [record([event], properties=EVENT["properties"])],
        {0: SeenIds()},
        CompiledMeters.compile(chosen),
        TimeRules(),
    )
    again = recount([{**event, "partition": 0, "offset": 0, "ingest_ms": NOW_MS}], chosen, TimeRules())
    assert folded.partitions[0].outcomes.counted == again.outcomes[0].counted == matches
