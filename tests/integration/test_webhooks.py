"""The service as a process: real webhooks from the stand-in, a real broker, a real ledger."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.webhooks_rig import WebhooksRig, webhooks_rig
from tests.parts.kafka import BrokerSettings
from tollgate.ledger.directory import list_customers, list_mappings, resolve
from tollgate.ledger.inbox import list_rejections

DAY_SECONDS = 86_400


@pytest.fixture
def rig(tmp_path: Path, broker_settings: BrokerSettings, postgres_url: str) -> Iterator[WebhooksRig]:
    """The service's surroundings, the service itself not started."""
    with webhooks_rig(tmp_path, broker_settings, postgres_url) as made:
        yield made


def states(rig: WebhooksRig) -> dict[str, list[str]]:
    """Per item, the states of its periods in order."""
    found: dict[str, list[str]] = {}
    for item, state in rig.rows("SELECT item_id, state FROM item_periods ORDER BY item_id, period_start_ms"):
        found.setdefault(item, []).append(state)
    return found


def test_customers_follow_stripe_through_duplicates_and_disorder(rig: WebhooksRig) -> None:
    """Sign-up, a billed day, a changed e-mail, a cancellation and a deletion, each webhook perhaps twice and late."""
    rig.control.config(webhooks={"duplicate_per_10_000": 4000, "reorder_window_ms": 700, "seed": 7})
    rig.stack.start("webhooks")
    price = rig.price()
    staying, staying_subscription = rig.sign_up(price, "stay@example.com")
    leaving, leaving_subscription = rig.sign_up(price, "leave@example.com")
    gone, _ = rig.sign_up(price, "gone@example.com")
    rig.wait_projected()
    assert [payer.customer_id for payer in resolve(rig.engine, "user:stay@example.com", 0)] == [staying]
    assert set(map(tuple, states(rig).values())) == {("open",)}

    rig.control.advance(DAY_SECONDS + 60)
    rig.post(f"/v1/customers/{staying}", {"email": "moved@example.com"})
    rig.wait_projected()
    assert sorted(states(rig).values()) == [["open", "open"]] * 3, "the invoices are drafts"

    rig.control.advance(2 * 3600)
    rig.api.delete(f"/v1/subscriptions/{leaving_subscription}").raise_for_status()
    rig.api.delete(f"/v1/customers/{gone}").raise_for_status()
    rig.wait_projected()
    item_of = dict(rig.rows("SELECT customer_id, item_id FROM item_periods"))
    assert states(rig) == {
        item_of[staying]: ["closed", "open"],
        item_of[leaving]: ["closed", "removed"],
        item_of[gone]: ["closed", "removed"],
    }
    entries = {entry.customer_id: entry for entry in list_customers(rig.engine)}
    assert entries[staying].accounts == tuple(
        sorted(
            [
                f"company:{staying}",
                f"company:{staying_subscription}",
                "user:moved@example.com",
                f"user:{staying}",
            ]
        )
    )
    assert entries[leaving].subscription_ids == ()
    assert entries[gone].deleted
    assert all(row.to_ms is not None for row in list_mappings(rig.engine, customer_id=gone))
    assert rig.rows("SELECT count(*) FROM stripe_inbox WHERE outcome LIKE 'failed%%'") == [(0,)]
    deliveries = rig.control.deliveries()
    assert len(deliveries) > len({delivery["event"] for delivery in deliveries}), "some came twice"
    assert rig.stack.stop("webhooks") == {"webhooks": 0}


def test_meter_error_reports_become_rejections(rig: WebhooksRig) -> None:
    """A usage event taken with a 2xx and refused later reopens its posting by its identifier."""
    destination = rig.api.post(
        "/v2/core/event_destinations",
        json={
            "name": "thin",
            "type": "webhook_endpoint",
            "event_payload": "thin",
            "enabled_events": [
                "v1.billing.meter.error_report_triggered",
                "v1.billing.meter.no_meter_found",
            ],
            "webhook_endpoint": {"url": f"{rig.stack.url('webhooks')}/stripe/webhooks"},
            "include": ["webhook_endpoint.signing_secret"],
        },
    )
    destination.raise_for_status()
    secret = destination.json()["webhook_endpoint"]["signing_secret"]
    rig.stack.configure("webhooks", TOLLGATE_STRIPE__THIN_SECRETS=secret)
    rig.stack.start("webhooks")
    rig.price("calls")
    for identifier, event_name in (("id_customer", "calls"), ("id_meter", "no_such_meter")):
        rig.post(
            "/v1/billing/meter_events",
            {
                "event_name": event_name,
                "identifier": identifier,
                "payload[value]": "3",
                "payload[stripe_customer_id]": "cus_nobody",
            },
        )
    rig.control.advance(120)
    rig.wait(lambda: len(list_rejections(rig.engine)) == 2)
    assert {(row.identifier, row.code) for row in list_rejections(rig.engine)} == {
        ("id_customer", "meter_event_customer_not_found"),
        ("id_meter", "no_meter"),
    }


def test_a_stripe_that_fails_delays_and_skips_nothing(rig: WebhooksRig) -> None:
    """500, 429, 401 and dropped connections on reads: every event is projected in the end, none is parked."""
    rig.stack.start("webhooks")
    price = rig.price()
    for kind in ("error_500_before", "rate_limit_429", "unauthorized_401", "drop_before"):
        rig.control.add_fault(kind, {"method": "GET", "path": "^/v1/(customers|subscriptions)/"}, times=2)
    rig.sign_up(price, "a@example.com")
    rig.wait_projected()
    assert all(rule["hits"] == 2 for rule in rig.control.faults())
    assert rig.rows("SELECT count(*) FROM stripe_inbox WHERE outcome LIKE 'failed%%'") == [(0,)]
    assert len(list_customers(rig.engine)) == 1


def test_what_webhooks_missed_is_polled(rig: WebhooksRig) -> None:
    """The endpoint was unknown to Stripe while everything happened; the list of events has it all."""
    for endpoint in rig.get("/v1/webhook_endpoints")["data"]:
        rig.api.delete(f"/v1/webhook_endpoints/{endpoint['id']}").raise_for_status()
    customer, _ = rig.sign_up(rig.price(), "a@example.com")
    rig.stack.configure(
        "webhooks",
        TOLLGATE_WEBHOOKS__POLL_INTERVAL_SECONDS="1",
        TOLLGATE_WEBHOOKS__POLL_SETTLING_SECONDS="0",
    )
    rig.stack.start("webhooks")
    rig.wait(lambda: [entry.customer_id for entry in list_customers(rig.engine)] == [customer])
    rig.wait(lambda: [*states(rig).values()] == [["open"]])


def test_existing_customers_are_imported(rig: WebhooksRig) -> None:
    """Before any webhook, twice: the same rows, and nothing changes the second time."""
    price = rig.price()
    made = {rig.sign_up(price, f"{number}@example.com") for number in range(3)}
    command = [sys.executable, "-m", "services.webhooks", "import"]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=rig.stack.environment("webhooks"),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    first = run()
    assert first.returncode == 0, first.stderr
    assert "imported 3 customers and 3 subscriptions" in first.stdout
    assert {(e.customer_id, e.subscription_ids[0]) for e in list_customers(rig.engine)} == made
    assert [*states(rig).values()] == [["open"]] * 3
    version = rig.rows("SELECT version FROM directory_state")
    assert run().returncode == 0
    assert rig.rows("SELECT version FROM directory_state") == version


def test_a_ledger_of_another_account_is_refused(rig: WebhooksRig) -> None:
    """Nothing is projected into it; the process ends and says why."""
    with rig.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE pins SET value = 'acct_other' WHERE name = 'stripe_account'")
    rig.stack.start("webhooks", wait=False)
    child = rig.stack.child("webhooks")
    rig.wait(lambda: not child.running)
    assert child.stop(signal.SIGTERM, 1) == 1
    assert "acct_other" in child.output()


def test_a_bad_signature_is_refused_over_the_wire(rig: WebhooksRig) -> None:
    """400, and the topic stays empty; the operators' routes answer."""
    rig.stack.start("webhooks")
    url = rig.stack.url("webhooks")
    answer = httpx.post(
        f"{url}/stripe/webhooks",
        content=b'{"id":"evt_forged"}',
        headers={"Content-Type": "application/json", "Stripe-Signature": "t=1,v1=00"},
        trust_env=False,
    )
    assert answer.status_code == 400
    metrics = httpx.get(f"{url}/metrics", trust_env=False).text
    assert 'tollgate_webhooks_requests_total{outcome="too_old"} 1.0' in metrics
    assert rig.rows("SELECT count(*) FROM stripe_inbox") == [(0,)]
