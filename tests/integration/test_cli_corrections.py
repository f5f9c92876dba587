"""`tollgate postings` on corrections: what is late says so, what is anomalous is released by name and with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from click.testing import CliRunner, Result

from services.cli.__main__ import cli
from services.cli.operator import operator_name
from tests.contract.ledger.postings_world import HOUR_MS, T0, World
from tollgate.ledger.audit import list_audit
from tollgate.ledger.posting_rows import PostingState
from tollgate.ledger.prices import FetchedPrice, store_prices
from tollgate.metering.anomaly import AnomalyCap
from tollgate.metering.closed import ClosedPolicy
from tollgate.metering.price import Interval, Price, PriceModel

A = "user:a"
WEEK = 7 * 24
Run = Callable[..., Result]


@pytest.fixture
def world(sqlite_url: str) -> Iterator[World]:
    made = World.make(sqlite_url)
    made.customer("cus_1", A)
    yield made
    made.engine.dispose()


@pytest.fixture
def tollgate(world: World, sqlite_url: str) -> Run:
    def run(*arguments: str, code: int = 0) -> Result:
        done = CliRunner().invoke(cli, arguments, env={"TOLLGATE_LEDGER__URL": sqlite_url})
        assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
        return done

    return run


def _listed(tollgate: Run) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(tollgate("postings", "list", "--json").stdout)
    return sorted(rows, key=lambda row: str(row["posting"]))


@pytest.mark.parametrize(
    ("policy", "said"),
    [(ClosedPolicy.RESTAMP, "restamped, of "), (ClosedPolicy.INVOICE_ITEM, "invoice item, for ")],
)
def test_a_late_posting_says_how_and_for_which_period_it_is_billed(
    world: World, tollgate: Run, policy: ClosedPolicy, said: str
) -> None:
    """The ordinary one before it says nothing."""
    cents = Price(PriceModel.STANDARD, "usd", Interval("month"), unit_amount=Decimal(1))
    store_prices(world.engine, world.lease, [FetchedPrice("price_1", cents)], world.now_ms)
    world.rules = replace(world.rules, closed=policy)
    meter = world.meter()
    world.period("cus_1", start_ms=T0 - HOUR_MS, end_ms=T0 + HOUR_MS)
    world.use(meter, A, 3)
    world.settle_all()
    world.period("cus_1", start_ms=T0 - HOUR_MS, end_ms=T0 + HOUR_MS, state="closed")
    world.period("cus_1", start_ms=T0 + HOUR_MS, end_ms=T0 + 99 * HOUR_MS)
    world.use(meter, A, 5)
    world.settle_all()
    ordinary, late = _listed(tollgate)
    assert ordinary["late"] == ""
    assert str(late["late"]).startswith(said)
    assert str(late["late"]) != said


def test_an_anomaly_is_released_with_a_reason(world: World, tollgate: Run) -> None:
    """Not without one, not what is no anomaly, and not by `resume`; the trail has the name."""
    world.rules = replace(world.rules, anomaly=AnomalyCap(Decimal(2), Decimal(1), 4))
    meter = world.meter()
    world.period("cus_1", start_ms=T0 - 9 * WEEK * HOUR_MS)
    world.use(meter, A, 10, window=-WEEK)
    world.settle_all()
    world.use(meter, A, 21)
    world.settle_all()
    parked = next(p for p in world.postings() if p.state is PostingState.PARKED)
    place = f"{parked.posting_key}:{parked.seq}"
    assert "--reason" in tollgate("postings", "release", place, code=2).output
    assert "say why" in tollgate("postings", "release", place, "--reason", " ", code=2).output
    assert "is not parked" in tollgate("postings", "resume", place, code=1).output
    other = next(p for p in world.postings() if p.state is not PostingState.PARKED).posting_key
    assert "waits as an anomaly" in tollgate("postings", "release", other, "--reason", "x", code=1).output
    assert list_audit(world.engine) == []
    assert f"released {place}" in tollgate("postings", "release", place, "--reason", "a launch").output
    (entry,) = list_audit(world.engine)
    assert (entry.who, entry.reason, entry.subject) == (operator_name(), "a launch", parked.posting_key)
    world.settle_all()
    assert world.delivered() == {("cus_1", meter): Decimal(31)}
