"""Three days without a single webhook: the polls of Stripe's lists bring the ledger to the state they would have."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.webhooks_rig import WebhooksRig, webhooks_rig
from tests.parts.kafka import BrokerSettings
from tests.parts.postgres import PostgresPart

DAY_SECONDS = 86_400
HOUR_SECONDS = 3600
REPORTS = ("v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found")

State = dict[str, list[tuple[Any, ...]]]
FreshLedger = Callable[[str], str]


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh_ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FreshLedger]:
    """Makes the URL of an empty database of one kind: a story told twice needs two of them."""
    if request.param == "sqlite":
        yield lambda name: f"sqlite:///{tmp_path / name}.sqlite3"
        return
    postgres: PostgresPart = request.getfixturevalue("postgres")
    made: list[str] = []

    def fresh(_: str) -> str:
        made.append(postgres.fresh())
        return made[-1]

    yield fresh
    for url in made:
        postgres.drop(url)


def _listen_for_reports(rig: WebhooksRig) -> None:
    """An event destination for meter error reports, and its secret for the service."""
    answer = rig.api.post(
        "/v2/core/event_destinations",
        json={
            "name": "thin",
            "type": "webhook_endpoint",
            "event_payload": "thin",
            "enabled_events": list(REPORTS),
            "webhook_endpoint": {"url": f"{rig.stack.url('webhooks')}/stripe/webhooks"},
            "include": ["webhook_endpoint.signing_secret"],
        },
    )
    answer.raise_for_status()
    secret = answer.json()["webhook_endpoint"]["signing_secret"]
    rig.stack.configure("webhooks", TOLLGATE_STRIPE__THIN_SECRETS=secret)


def _use(rig: WebhooksRig, customer: str, identifier: str, quantity: int) -> None:
    rig.post(
        "/v1/billing/meter_events",
        {
            "event_name": "calls",
            "identifier": identifier,
            "timestamp": rig.control.now_seconds(),
            "payload[value]": quantity,
            "payload[stripe_customer_id]": customer,
        },
    )


def _sign_up(rig: WebhooksRig) -> tuple[str, dict[str, tuple[str, str]]]:
    """What every story begins with; the price, and customers with their subscriptions."""
    price = rig.price()
    return price, {name: rig.sign_up(price, f"{name}@example.com") for name in ("stays", "leaves", "goes")}


def _three_days(rig: WebhooksRig, price: str, customers: dict[str, tuple[str, str]]) -> None:
    """Usage billed each day, a newcomer, a changed address, a cancellation, a deletion, a refused meter event."""
    control = rig.control
    _use(rig, customers["stays"][0], "first", 5)
    control.advance(DAY_SECONDS + 2 * HOUR_SECONDS)
    newcomer, _ = rig.sign_up(price, "comes@example.com")
    _use(rig, newcomer, "second", 7)
    _use(rig, "cus_nobody", "refused", 3)
    rig.post(f"/v1/customers/{customers['stays'][0]}", {"email": "moved@example.com"})
    control.advance(DAY_SECONDS)
    rig.api.delete(f"/v1/subscriptions/{customers['leaves'][1]}").raise_for_status()
    rig.api.delete(f"/v1/customers/{customers['goes'][0]}").raise_for_status()
    control.advance(DAY_SECONDS)


def _state(rig: WebhooksRig) -> State:
    """What others read, with Stripe's ids taken out: they differ from run to run."""
    named = "SELECT customer_id, COALESCE(email, 'gone') FROM customers"
    names = dict(rig.rows(named))

    def of(sql: str) -> list[tuple[Any, ...]]:
        return sorted((names[row[0]], *row[1:]) for row in rig.rows(sql))

    return {
        "customers": sorted(rig.rows("SELECT COALESCE(email, 'gone'), deleted FROM customers")),
        "subscriptions": of("SELECT customer_id, status, start_ms, ended_ms FROM subscriptions"),
        "periods": of(
            "SELECT customer_id, event_name, period_start_ms, period_end_ms, state FROM item_periods"
        ),
        "mappings": of("SELECT customer_id, rule, from_ms > 0, to_ms IS NULL FROM mappings"),
        "invoices": of(
            "SELECT customer_id, status, billing_reason, period_start_ms, period_end_ms, finalized_ms "
            "FROM invoices"
        ),
        "lines": of(
            "SELECT customer_id, event_name, period_start_ms, period_end_ms, quantity FROM invoice_lines"
        ),
        "rejections": sorted(rig.rows("SELECT identifier, code FROM rejections")),
        "parked": rig.rows("SELECT event_id FROM stripe_inbox WHERE outcome LIKE 'failed%%'"),
    }


def test_three_lost_days_are_filled_by_the_polls(
    tmp_path: Path, broker_settings: BrokerSettings, fresh_ledger: FreshLedger
) -> None:
    """The same story told with webhooks and without: one state, quantities on the invoices and refusals included."""
    began_s = int(time.time()) - 4 * DAY_SECONDS - 2 * HOUR_SECONDS
    states: dict[str, State] = {}
    for way in ("delivered", "lost"):
        directory = tmp_path / way
        directory.mkdir()
        settings = broker_settings.model_copy(
            update={"topic_prefix": f"{broker_settings.topic_prefix}{way}."}
        )
        with webhooks_rig(directory, settings, fresh_ledger(way), began_s) as rig:
            _listen_for_reports(rig)
            rig.stack.start("webhooks")
            price, customers = _sign_up(rig)
            rig.wait_projected()
            if way == "lost":
                assert rig.stack.stop("webhooks") == {"webhooks": 0}
                # Each delivery is tried once and given up, as after Stripe's last retry.
                rig.control.config(webhooks={"retry_delays_seconds": []})
            _three_days(rig, price, customers)
            rig.control.real_time()
            if way == "lost":
                rig.control.wait_deliveries()
                assert {d["state"] for d in rig.control.deliveries()} >= {"failed"}
                seen = rig.rows("SELECT count(*) FROM stripe_inbox")
                rig.stack.configure(
                    "webhooks",
                    TOLLGATE_WEBHOOKS__POLL_INTERVAL_SECONDS="1",
                    TOLLGATE_WEBHOOKS__POLL_SETTLING_SECONDS="0",
                )
                rig.stack.start("webhooks")
                rig.wait(lambda seen=seen: rig.rows("SELECT count(*) FROM stripe_inbox") > seen)  # type: ignore[misc]
            rig.wait_projected()
            rig.wait(lambda rig=rig: rig.rows("SELECT identifier FROM rejections") == [("refused",)])  # type: ignore[misc]
            states[way] = _state(rig)
    assert states["delivered"]["lines"], "usage was billed"
    assert any(row[-1] == "7" for row in states["delivered"]["lines"])
    assert states["lost"] == states["delivered"]
