"""The webhooks service killed at each of its steps: restarted, it ends where an unharmed one would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.webhooks.faults import FaultPoint
from tests.integration.webhooks_rig import WebhooksRig, webhooks_rig
from tests.parts.kafka import BrokerSettings
from tollgate.ledger.directory import list_customers
from tollgate.runtime.faults import EXIT_CRASHED

DAY_SECONDS = 86_400


@pytest.fixture
def rig(tmp_path: Path, broker_settings: BrokerSettings, sqlite_url: str) -> Iterator[WebhooksRig]:
    """The service's surroundings, the service itself not started."""
    with webhooks_rig(tmp_path, broker_settings, sqlite_url) as made:
        yield made


def check(rig: WebhooksRig, customers: set[str]) -> None:
    """Every event once in the inbox, every customer mapped once, every period once and in its state."""
    rig.wait_projected()
    assert {entry.customer_id for entry in list_customers(rig.engine)} == customers
    outcomes = {row[0] for row in rig.rows("SELECT DISTINCT outcome FROM stripe_inbox")}
    assert outcomes <= {"projected", "superseded", "covered", "seen", "ignored"}
    periods = rig.rows("SELECT customer_id, state FROM item_periods ORDER BY customer_id, period_start_ms")
    assert sorted(periods) == sorted([(c, state) for c in customers for state in ("closed", "open")])
    accounts = [row[0] for row in rig.rows("SELECT account FROM mappings WHERE to_ms IS NULL")]
    assert len(accounts) == len(set(accounts)) == 4 * len(customers)


@pytest.mark.parametrize("point", list(FaultPoint))
@pytest.mark.parametrize("hit", [1, 3])
def test_a_death_at_any_step_changes_nothing(rig: WebhooksRig, point: FaultPoint, hit: int) -> None:
    """Stored, fetched, projected or committed: the next process goes on."""
    rig.stack.configure(
        "webhooks", TOLLGATE_WEBHOOKS__FAULT_POINT=point, TOLLGATE_WEBHOOKS__FAULT_HIT=str(hit)
    )
    rig.stack.start("webhooks")
    price = rig.price()
    customers = {rig.sign_up(price, "a@example.com")[0]}
    customers.add(rig.sign_up(price, "b@example.com")[0])
    if point is FaultPoint.COMMITTED and hit > 1:
        # Commits are one a batch: make sure that there are enough of them.
        for number in range(hit):
            rig.wait(lambda: not rig.stack.child("webhooks").running or _quiet(rig))
            rig.post(f"/v1/customers/{min(customers)}", {"name": f"name {number}"})
    child = rig.stack.child("webhooks")
    rig.wait(lambda: not child.running)
    assert child.kill() == EXIT_CRASHED
    rig.stack.configure("webhooks", TOLLGATE_WEBHOOKS__FAULT_HIT="1000000")
    rig.stack.start("webhooks")
    rig.wait_projected()
    rig.control.advance(DAY_SECONDS + 2 * 3600)
    check(rig, customers)


def _quiet(rig: WebhooksRig) -> bool:
    inbox = {row[0] for row in rig.rows("SELECT event_id FROM stripe_inbox")}
    return rig.events_at_stripe().keys() <= inbox


def test_kills_at_random_moments_change_nothing(rig: WebhooksRig) -> None:
    """SIGKILL three times, by a schedule, while customers sign up."""
    rig.control.config(webhooks={"duplicate_per_10_000": 3000, "reorder_window_ms": 300, "seed": 11})
    rig.stack.start("webhooks")
    price = rig.price()
    customers = set()
    for number in range(9):
        customers.add(rig.sign_up(price, f"{number}@example.com")[0])
        if number in (1, 4, 7):
            rig.stack.kill("webhooks")
            rig.stack.start("webhooks")
    rig.wait_projected()
    rig.control.advance(DAY_SECONDS + 2 * 3600)
    check(rig, customers)
