"""Usage for final invoices against the stand-in: what its invoices say, to the cent, against numbers worked by hand."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sandbox.stripe.process import StripeStandIn
from tests.contract.ledger.postings_world import HOUR_MS, T0
from tests.integration.stripe_sync_rig import Rig
from tests.parts.kafka import BrokerSettings
from tollgate.ledger.posting_rows import AT_STRIPE, PostingMode, PostingState

HOUR_S = 3600
DAY_S = 24 * HOUR_S


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[StripeStandIn]:
    """Its own, 26 hours behind: a day and its invoice's grace later it is where everybody's clock is."""
    with StripeStandIn.start(tmp_path / "state.sqlite3") as running:
        with running.control as control:
            control.set_clock(control.now_seconds() - 26 * HOUR_S)
        yield running


@pytest.fixture
def rig(
    ledger_url: str, broker_settings: BrokerSettings, stand_in: StripeStandIn, tmp_path: Path
) -> Iterator[Rig]:
    made = Rig.make(ledger_url, broker_settings, stand_in, tmp_path)
    yield made
    made.close()


ON_SQLITE = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
"""For what is about the call to Stripe or the process' death, and not about what the ledger does with it."""


class Shop:
    """One customer on a daily graduated price: 10 units at 10 cents; then 7 at once and 5 each; from 20 on half a cent.

    The subscription began yesterday, and its first day's invoice gets 8 units: 80 cents.
    """

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.meter, self.event_name = rig.meter()
        stripe_meter = next(
            m for m in rig.client.v1.billing.meters.list({"limit": 100}) if m.event_name == self.event_name
        )
        self.price: str = rig.client.v1.prices.create(
            {
                "currency": "usd",
                "product_data": {"name": "Calls"},
                "billing_scheme": "tiered",
                "tiers_mode": "graduated",
                "tiers": [
                    {"up_to": 10, "unit_amount_decimal": Decimal(10)},
                    {"up_to": 20, "unit_amount_decimal": Decimal(5), "flat_amount_decimal": Decimal(7)},
                    {"up_to": "inf", "unit_amount_decimal": Decimal("0.5")},
                ],
                "recurring": {"interval": "day", "usage_type": "metered", "meter": stripe_meter.id},
            }
        ).id
        self.customer: str = rig.client.v1.customers.create({"name": "c"}).id
        rig.world.customer(self.customer, f"user:{self.customer}")
        subscription = rig.client.v1.subscriptions.create(
            {"customer": self.customer, "items": [{"price": self.price}]}
        )
        self.item = subscription["items"].data[0]
        self.start_s: int = self.item.current_period_start
        self.end_s: int = self.item.current_period_end
        self._period(self.start_s, self.end_s, "open")

    def _period(self, start_s: int, end_s: int, state: str) -> None:
        self.rig.world.period(
            self.customer,
            self.event_name,
            start_s * 1000,
            end_s * 1000,
            state,
            item_id=self.item.id,
            price_id=self.price,
        )

    def use(self, quantity: int) -> None:
        """The count of the hour the first day begins in now stands at `quantity`."""
        number = (self.start_s * 1000 - T0) // HOUR_MS
        at_ms = self.start_s * 1000 + 500
        self.rig.world.use(self.meter, f"user:{self.customer}", quantity, window=number, at_ms=at_ms)

    def finish_the_day(self) -> None:
        """The first day's invoice is final and the second day runs, at Stripe and in the ledger."""
        self.rig.control.advance(self.end_s + 2 * HOUR_S - self.rig.control.now_seconds())
        self._period(self.start_s, self.end_s, "closed")
        self._period(self.end_s, self.end_s + DAY_S, "open")

    def finish_the_next_day(self) -> None:
        self.rig.control.advance(self.end_s + DAY_S + 2 * HOUR_S - self.rig.control.now_seconds())

    def invoices(self) -> list[list[tuple[str, Decimal, int]]]:
        """Lines of the final invoices that have any amount, oldest first: (kind, quantity, cents)."""
        found = []
        for invoice in self.rig.client.v1.invoices.list({"customer": self.customer, "limit": 100}).data:
            if invoice.status in ("open", "paid"):
                lines = [_line(line) for line in invoice.lines.data]
                found.append((invoice.created, sorted(line for line in lines if line[1] or line[2])))
        return [lines for _, lines in sorted(found) if lines]


def _line(line: Any) -> tuple[str, Decimal, int]:
    kind = "item" if line.parent.type == "invoice_item_details" else "usage"
    units = Decimal(line.metadata["tollgate_quantity"]) if kind == "item" else Decimal(line.quantity_decimal)
    return kind, units, line.amount


def _settled(rig: Rig, count: int) -> bool:
    postings = rig.world.postings()
    return len(postings) == count and all(p.state in AT_STRIPE for p in postings)


@pytest.fixture
def shop(rig: Rig) -> Shop:
    """Yesterday's shop, with the 8 units of its first day at Stripe."""
    made = Shop(rig)
    made.use(8)
    return made


def _finish_first_day(rig: Rig, shop: Shop, **settings: object) -> None:
    """Post the first day's usage, then let it end; the process goes on in the second day, which is today."""
    rig.start(TOLLGATE_SYNC__SUMMARY_LAG_SECONDS=0.5, **settings)
    rig.wait(lambda: _settled(rig, 1), "the first day's usage at Stripe")
    shop.finish_the_day()


def test_restamped_usage_is_billed_with_the_next_day_once(rig: Rig, shop: Shop) -> None:
    """5 late units, then 2 more: the final invoice stays at 80 cents, the next one bills 7 units at 10 cents."""
    _finish_first_day(rig, shop)
    shop.use(13)
    rig.wait(lambda: _settled(rig, 2), "the late usage at Stripe")
    shop.use(15)
    rig.wait(lambda: _settled(rig, 3), "the rest of it")
    shop.finish_the_next_day()
    assert shop.invoices() == [[("usage", Decimal(8), 80)], [("usage", Decimal(7), 70)]]
    rig.world.check_chains()


def test_an_invoice_item_charges_what_the_final_invoice_lacks(rig: Rig, shop: Shop) -> None:
    """13 units would have cost 100 + 7 + 15 = 122, 25 of them 100 + 7 + 50 + 2.5 = 159.5, so 160.

    80 cents were invoiced: the items are 42 and 38. Together both invoices say 160.
    """
    _finish_first_day(rig, shop, TOLLGATE_SYNC__CLOSED="invoice_item")
    shop.use(13)
    rig.wait(lambda: _settled(rig, 2), "the first item")
    shop.use(25)
    rig.wait(lambda: _settled(rig, 3), "the second item")
    shop.finish_the_next_day()
    assert shop.invoices() == [
        [("usage", Decimal(8), 80)],
        [("item", Decimal(5), 42), ("item", Decimal(12), 38)],
    ]
    assert rig.at_stripe(shop.event_name) == {shop.customer: Decimal(8)}


def test_held_usage_is_on_no_invoice(rig: Rig, shop: Shop) -> None:
    """hold: it is visible with its reason, and nothing is charged."""
    _finish_first_day(rig, shop, TOLLGATE_SYNC__CLOSED="hold")
    shop.use(13)
    rig.wait(lambda: list(rig.world.held().values()) == [("closed", Decimal(5))], "the hold")
    shop.finish_the_next_day()
    assert shop.invoices() == [[("usage", Decimal(8), 80)]]


@ON_SQLITE
@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "drop_before", "times": 2},
        {"kind": "drop_after", "times": 2},
        {"kind": "error_500_before", "times": 2},
        {"kind": "error_500_after", "times": 1},
        {"kind": "error_500_before", "times": 1, "saved": True},
        {"kind": "error_500_after", "times": 1, "saved": True},
        {"kind": "rate_limit_429", "times": 2, "reason": "global-rate"},
        {"kind": "conflict_409", "times": 2},
    ],
    ids=lambda fault: "-".join(str(value) for value in fault.values()),
)
def test_an_item_is_made_once_whatever_happens_to_the_call(
    rig: Rig, shop: Shop, fault: dict[str, object]
) -> None:
    """A stored 500 is settled by Stripe's list of items; everything else by asking again under the same key."""
    _finish_first_day(rig, shop, TOLLGATE_SYNC__CLOSED="invoice_item")
    details = {key: value for key, value in fault.items() if key != "kind"}
    rig.control.add_fault(str(fault["kind"]), {"path": "/v1/invoiceitems$", "method": "POST"}, **details)
    shop.use(13)

    def over() -> bool:
        items = [p for p in rig.world.postings() if p.mode is PostingMode.INVOICE_ITEM]
        return bool(items) and items[-1].state in AT_STRIPE

    rig.wait(over, "the item")
    shop.finish_the_next_day()
    assert shop.invoices() == [[("usage", Decimal(8), 80)], [("item", Decimal(5), 42)]]
    states = {p.state for p in rig.world.postings()}
    assert states <= {*AT_STRIPE, PostingState.VOID, PostingState.REVERSAL}
    rig.world.check_chains()


@ON_SQLITE
@pytest.mark.parametrize(
    "step", ["after_plan", "after_journal", "after_mark_sending", "after_send", "after_record"]
)
def test_an_item_is_made_once_wherever_the_process_dies(rig: Rig, shop: Shop, step: str) -> None:
    """Killed at each step of the item's way and started again: one item of 42 cents."""
    _finish_first_day(rig, shop, TOLLGATE_SYNC__CLOSED="invoice_item")
    assert rig.processes[-1].end() == 0
    shop.use(13)
    dying = rig.start(TOLLGATE_SYNC__CLOSED="invoice_item", TOLLGATE_SYNC__FAULT_POINT=step)
    rig.wait(lambda: dying.child.poll() is not None, f"the process to die {step}")
    rig.start(TOLLGATE_SYNC__CLOSED="invoice_item")
    rig.wait(lambda: _settled(rig, 2), "the item")
    shop.finish_the_next_day()
    assert shop.invoices() == [[("usage", Decimal(8), 80)], [("item", Decimal(5), 42)]]
