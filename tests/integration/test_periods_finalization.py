"""A period's usage before its invoice: finalization put off, released and given up; previews; cancelling with a bill."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal

import pytest
from sqlalchemy import update

from sandbox.stripe.process import StripeStandIn
from services.cli.cancel import Cancelled, NotCancelled, flush_then_cancel
from services.cli.gateway import StripeGateway
from services.cli.settings import StripeSettings
from tests.integration.period_rig import KEY, Bill, PeriodRig, at_s, period_rig
from tests.integration.test_periods import GRADUATED
from tollgate.ledger.engine import ledger_transaction
from tollgate.ledger.finalizations import Delay, DelayState, list_delays
from tollgate.ledger.postings import park_posting, resume_posting
from tollgate.ledger.tables import pins
from tollgate.metering.finalization import Incomplete

# Stripe's client hands httpx its body the old way.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

JANUARY = ("2027-01-01", "2027-02-01")


def finalizes(rig: PeriodRig, customer: str) -> str:
    """When the customer's draft becomes final by itself, by Stripe: hours, minutes and seconds of the 1st and later."""
    [draft] = rig.get(f"/v1/invoices?customer={customer}&status=draft")["data"]
    since_s = draft["automatically_finalizes_at"] - at_s("2027-02-01")
    return f"{since_s // 3600:02}:{since_s // 60 % 60:02}:{since_s % 60:02}"


async def january(rig: PeriodRig) -> str:
    """A customer with a subscription over January and 10 calls at Stripe."""
    [customer] = await all_january(rig, 1)
    return customer


async def all_january(rig: PeriodRig, number: int) -> list[str]:
    """Several of them."""
    customers = [rig.customer() for _ in range(number)]
    for customer in customers:
        rig.subscribe(customer, rig.price(3))
    await rig.live()
    for customer in customers:
        rig.use(customer, "2027-01-10 10:00:00", 10)
    await rig.at("2027-01-10 10:01:00")
    return customers


def only_delay(rig: PeriodRig) -> Delay:
    [delay] = list_delays(rig.engine)
    return delay


async def test_a_meter_that_is_behind_puts_finalization_off_until_it_has_caught_up(
    period_stand_in: StripeStandIn, period_url: str
) -> None:
    """The log stands at 23:50. The draft is put off twice, an hour each; caught up, it is final a minute later."""
    async with period_rig(period_stand_in, period_url, "2027-01-01") as rig:
        customer = await january(rig)
        rig.ticking = False
        rig.tick("2027-01-31 23:50:00")
        await rig.at("2027-02-01 00:40:00")
        assert (finalizes(rig, customer), list_delays(rig.engine)) == ("01:00:00", [])
        await rig.at("2027-02-01 00:45:00")
        assert finalizes(rig, customer) == "02:00:00"
        assert rig.metric("period_incomplete", reason="counting") == 1
        assert rig.metric("counted_until_timestamp_seconds") == at_s("2027-01-31 23:50:00")
        await rig.at("2027-02-01 01:46:00")
        assert finalizes(rig, customer) == "03:00:00"
        assert (only_delay(rig).delays, only_delay(rig).state) == (2, DelayState.DELAYED)

        rig.use(customer, "2027-01-31 23:55:00", 5)
        rig.tick("2027-02-01 01:50:00")
        await rig.at("2027-02-01 01:51:00")
        assert finalizes(rig, customer) == "01:52:00"
        assert rig.metric("period_incomplete", reason="counting") == 0
        assert only_delay(rig).state is DelayState.RELEASED
        await rig.at("2027-02-01 01:52:00")
        assert rig.bills(customer) == [Bill(*JANUARY, "paid", 45, (("15", 45),))]
        assert rig.metric("finalizations_total", step="delay") == 2
        assert rig.metric("finalizations_total", step="release") == 1


async def test_usage_of_an_ended_period_does_not_wait_for_the_cadence(
    period_stand_in: StripeStandIn, period_url: str
) -> None:
    """Counted in the grace: it is planned and sent at once, alone, and its invoice is complete with it."""
    async with period_rig(period_stand_in, period_url, "2027-01-01") as rig:
        customer = await january(rig)
        bystander = rig.customer()
        rig.subscribe(bystander, rig.price(3))
        await rig.at("2027-02-01 00:40:00")
        rig.use(customer, "2027-01-31 23:30:00", 5)
        rig.use(bystander, "2027-02-01 00:30:00", 9)
        rig.jump("2027-02-01 00:50:00")
        rig.tick()
        assert not rig.keeper.take_hurry()
        await rig.keeper.look()
        assert finalizes(rig, customer) == "02:00:00"
        assert rig.keeper.take_hurry()
        assert await rig.leader.plan_urgent() == 1
        assert await rig.send() == 1
        await rig.keeper.look()
        assert not rig.keeper.take_hurry()
        assert finalizes(rig, customer) == "01:00:00"
        assert {posting.customer_id for posting in rig.world.postings()} == {customer}
        await rig.live()
        await rig.at("2027-02-01 01:00:00")
        assert rig.bills(customer) == [Bill(*JANUARY, "paid", 45, (("15", 45),))]


async def test_complete_before_its_moment_it_gets_that_back(
    period_stand_in: StripeStandIn, period_url: str
) -> None:
    """Put off at 00:45 and complete at 00:50: final at 01:00, as Stripe had planned."""
    async with period_rig(period_stand_in, period_url, "2027-01-01") as rig:
        customer = await january(rig)
        rig.ticking = False
        await rig.at("2027-02-01 00:45:00")
        assert finalizes(rig, customer) == "02:00:00"
        rig.ticking = True
        await rig.at("2027-02-01 00:50:00")
        assert finalizes(rig, customer) == "01:00:00"
        await rig.at("2027-02-01 01:00:00")
        assert [bill.status for bill in rig.bills(customer)] == ["paid"]


async def test_a_parked_posting_holds_its_own_invoice_and_no_other(
    period_stand_in: StripeStandIn, period_url: str
) -> None:
    """What waits for an operator delays the invoice it belongs to, until it is let go."""
    async with period_rig(period_stand_in, period_url, "2027-01-01") as rig:
        customer, other = await all_january(rig, 2)
        rig.use(customer, "2027-01-31 10:00:00", 7)
        rig.jump("2027-01-31 10:01:00")
        rig.world.now_ms = rig.clock.now_ms()
        rig.world.plan()
        [parked] = [posting for posting in rig.world.postings() if posting.state == "planned"]
        assert park_posting(rig.engine, *parked.ref, "to look at")
        await rig.at("2027-02-01 00:46:00")
        assert finalizes(rig, customer) == "02:00:00"
        assert finalizes(rig, other) == "01:00:00"
        assert only_delay(rig).reason is Incomplete.PARKED
        assert rig.metric("period_incomplete", reason="parked") == 1
        assert resume_posting(rig.engine, *parked.ref)
        await rig.at("2027-02-01 00:47:00")
        assert finalizes(rig, customer) == "01:00:00"
        await rig.at("2027-02-01 01:00:00")
        assert rig.bills(customer) == [Bill(*JANUARY, "paid", 51, (("17", 51),))]


async def test_the_delay_ends_after_72_hours_and_the_rest_is_charged_as_late(
    period_stand_in: StripeStandIn, period_url: str
) -> None:
    """A log that stays behind: the invoice is final on the 4th without the rest, which goes to February."""
    async with period_rig(period_stand_in, period_url, "2027-01-01") as rig:
        customer = await january(rig)
        rig.ticking = False
        for hour in range(72):
            await rig.at(f"2027-02-{1 + hour // 24:02} {hour % 24:02}:50:00")
        assert finalizes(rig, customer) == "72:00:00"
        assert only_delay(rig).state is DelayState.GIVEN_UP
        await rig.at("2027-02-04 00:00:01")
        assert rig.bills(customer) == [Bill(*JANUARY, "paid", 30, (("10", 30),))]
        assert rig.metric("finalizations_total", step="give_up") == 1
        rig.use(customer, "2027-01-31 23:55:00", 5)
        rig.ticking = True
        await rig.at("2027-02-04 01:00:00")
        await rig.at("2027-03-01 00:10:00")
        await rig.at("2027-03-01 01:00:00")
        assert rig.bills(customer)[1:] == [Bill("2027-02-01", "2027-03-01", "paid", 15, (("5", 15),))]


async def test_a_key_without_the_scope_delays_nothing_and_stops_nothing(
    period_stand_in: StripeStandIn, period_url: str
) -> None:
    """Stripe forbids the change: it shows, postings go on, and it is tried again ten minutes later."""
    async with period_rig(period_stand_in, period_url, "2027-01-01") as rig:
        customer = await january(rig)
        rig.ticking = False
        rig.control.add_fault("forbidden_403", {"path": "/v1/invoices/in_", "method": "POST"}, times=1)
        rig.use(customer, "2027-01-31 10:00:00", 7)
        await rig.at("2027-02-01 00:46:00")
        assert finalizes(rig, customer) == "01:00:00"
        assert only_delay(rig).state is DelayState.REFUSED
        assert rig.metric("finalization_failures_total") == 1
        assert rig.get(f"/v1/invoices?customer={customer}&status=draft")["data"][0]["total"] == 51
        await rig.at("2027-02-01 00:50:00")
        assert finalizes(rig, customer) == "01:00:00"
        await rig.at("2027-02-01 00:56:00")
        assert finalizes(rig, customer) == "02:00:00"
        assert (only_delay(rig).state, only_delay(rig).delays) == (DelayState.DELAYED, 1)


async def test_a_draft_somebody_holds_by_hand_is_left_alone(
    period_stand_in: StripeStandIn, period_url: str
) -> None:
    """Without automatic finalization there is nothing to put off."""
    async with period_rig(period_stand_in, period_url, "2027-01-01") as rig:
        customer = await january(rig)
        await rig.at("2027-02-01 00:10:00")
        [draft] = rig.get(f"/v1/invoices?customer={customer}&status=draft")["data"]
        rig.post(f"/v1/invoices/{draft['id']}", {"auto_advance": "false"})
        rig.ticking = False
        await rig.at("2027-02-01 00:50:00")
        assert list_delays(rig.engine) == []


# ---------------------------------------------------------------------------------------------- previews


async def test_a_preview_spells_tiers_out_and_agrees_with_stripe(
    period_stand_in: StripeStandIn, period_url: str
) -> None:
    """150 posted, 5 counted since: 155 are coming, 100 at 10 cents and 55 at 5; Stripe has 150 by now."""
    async with period_rig(period_stand_in, period_url, "2027-01-01") as rig:
        customer = rig.customer()
        rig.subscribe(customer, rig.price(**GRADUATED))
        await rig.live()
        rig.use(customer, "2027-01-10 10:00:00", 150)
        await rig.at("2027-01-10 10:01:00")
        rig.use(customer, "2027-01-11 10:00:00", 5)
        code, [subscription] = rig.preview(customer)
        [item] = subscription["items"]
        assert code == 0
        assert (item["posted"], item["pending"], item["held"], item["coming"]) == ("150", "5", {}, "155")
        assert [(tier["units"], tier["amount"]) for tier in item["tiers"]] == [("100", "1000"), ("55", "275")]
        assert (item["amount"], subscription["our_total"], subscription["stripe_total"]) == (1275, 1275, 1250)
        assert item["stripe"] == {"quantity": "150", "amount": 1250}
        assert (item["result"], item["why"]) == ("agrees", ["5 on their way"])
        code, text = rig.command("preview", customer)
        assert code == 0
        for words in ("1 to 100", "from 101 on", "10.00 usd", "2.75 usd", "ours 12.75 usd, Stripe 12.50 usd"):
            assert words in text


async def test_a_preview_names_what_is_held_and_finds_what_nothing_explains(
    period_stand_in: StripeStandIn, period_url: str
) -> None:
    """Units somebody else sent to Stripe's meter are a difference, and the exit code says so."""
    async with period_rig(period_stand_in, period_url, "2027-01-01") as rig:
        customer = await january(rig)
        rig.post(
            "/v1/billing/meter_events",
            {
                "event_name": "calls",
                "payload[stripe_customer_id]": customer,
                "payload[value]": 4,
                "timestamp": at_s("2027-01-09"),
            },
        )
        code, [subscription] = rig.preview(customer)
        assert code == 1
        assert subscription["items"][0]["result"] == "differs"
        assert subscription["items"][0]["why"] == ["Stripe has 4 more than was posted"]
        code, output = rig.command("preview", "cus_nobody")
        assert (code, "knows no customer cus_nobody" in output) == (1, True)


async def test_a_preview_after_a_price_change_is_of_the_part_that_is_open(
    period_stand_in: StripeStandIn, period_url: str
) -> None:
    """10 at the old 3 cents are an invoice item of 30; 4 at the new 5 cents are the line."""
    async with period_rig(period_stand_in, period_url, "2027-01-01") as rig:
        customer = rig.customer()
        made = rig.subscribe(customer, rig.price(3))
        await rig.live()
        rig.use(customer, "2027-01-10 10:00:00", 10)
        await rig.at("2027-01-16 12:30:00")
        item = made["items"]["data"][0]["id"]
        rig.post(f"/v1/subscription_items/{item}", {"price": rig.price(5)})
        await rig.live()
        rig.use(customer, "2027-01-17 10:00:00", 4)
        await rig.at("2027-01-17 10:01:00")
        code, [subscription] = rig.preview(customer)
        assert code == 0
        [line] = subscription["items"]
        assert (line["posted"], line["amount"], line["stripe"]["amount"]) == ("4", 20, 20)
        assert [other["amount"] for other in subscription["other_lines"]] == [30]
        assert subscription["our_total"] == subscription["stripe_total"] == 50


async def test_a_preview_within_a_trial_comes_to_nothing(
    period_stand_in: StripeStandIn, period_url: str
) -> None:
    """10 posted in a trial are free, at Stripe and here."""
    async with period_rig(period_stand_in, period_url, "2027-01-01") as rig:
        customer = rig.customer()
        rig.subscribe(customer, rig.price(3), trial_period_days=14)
        await rig.live()
        rig.use(customer, "2027-01-10 10:00:00", 10)
        await rig.at("2027-01-10 10:01:00")
        code, [subscription] = rig.preview(customer)
        assert code == 0
        assert subscription["items"][0]["posted"] == "10"
        assert subscription["our_total"] == subscription["stripe_total"] == 0


# ----------------------------------------------------------------------------------- cancel with a bill


async def cancel(
    rig: PeriodRig,
    stand_in: StripeStandIn,
    subscription: str,
    meanwhile: Callable[[], None] = lambda: None,
    *,
    anyway: bool = False,
) -> tuple[Cancelled | NotCancelled, list[str]]:
    """Cancel beside living services; what came of it and what was said. Time passes only while it waits."""
    loop, said = asyncio.get_running_loop(), list[str]()

    async def wait(seconds: float) -> None:
        rig.clock.seconds += max(1, int(seconds))
        rig.control.set_clock(rig.clock.seconds, frozen=True)
        meanwhile()
        await rig.live()

    def run() -> Cancelled | NotCancelled:
        settings = StripeSettings.model_validate({"api_key": KEY, "api_base": stand_in.base_url})
        with StripeGateway(settings) as stripe:
            try:
                return flush_then_cancel(
                    rig.engine,
                    stripe,
                    subscription,
                    now_ms=rig.clock.now_ms,
                    wait=lambda seconds: asyncio.run_coroutine_threadsafe(wait(seconds), loop).result(60),
                    say=said.append,
                    drain_ms=3000,
                    timeout_ms=60_000,
                    anyway=anyway,
                )
            except NotCancelled as refused:
                return refused

    return await asyncio.to_thread(run), said


async def test_cancel_waits_for_the_usage_and_bills_it(
    period_stand_in: StripeStandIn, period_url: str
) -> None:
    """5 more are counted while it waits: the last invoice has 10 + 5, and nothing is left."""
    async with period_rig(period_stand_in, period_url, "2027-01-01") as rig:
        customer = rig.customer()
        subscription = rig.subscribe(customer, rig.price(3))["id"]
        await rig.live()
        rig.use(customer, "2027-01-10 10:00:00", 10)
        await rig.at("2027-01-10 10:01:00")
        late = [lambda: rig.use(customer, "2027-01-10 10:00:59", 5)]
        ended, said = await cancel(rig, period_stand_in, subscription, lambda: late.pop()() if late else None)
        assert isinstance(ended, Cancelled)
        assert (ended.customer_id, ended.amount, ended.currency) == (customer, 45, "usd")
        assert said[0].startswith("waiting until everything ingested is counted")
        assert [(bill.cents, bill.status) for bill in rig.bills(customer)] == [(45, "paid")]
        await rig.live()
        assert rig.held() == {}
        again, _ = await cancel(rig, period_stand_in, subscription)
        assert isinstance(again, NotCancelled)


@pytest.mark.parametrize("pinned", [{"stripe_account": "acct_other"}, {"stripe_mode": "live"}])
async def test_a_key_of_another_account_or_mode_previews_and_cancels_nothing(
    period_stand_in: StripeStandIn, period_url: str, pinned: dict[str, str]
) -> None:
    """The subscription is there for that key, and no usage of it here: it is neither compared nor ended."""
    async with period_rig(period_stand_in, period_url, "2027-01-01") as rig:
        customer = rig.customer()
        subscription = rig.subscribe(customer, rig.price(3))["id"]
        await rig.live()
        (name, value), *_ = pinned.items()
        with ledger_transaction(rig.engine) as connection:
            connection.execute(update(pins).where(pins.c.name == name).values(value=value))
        before = sum(row["count"] for row in rig.control.requests())
        for words in (("preview", customer), ("customers", "cancel", subscription, "--yes", "--anyway")):
            code, output = rig.command(*words)
            assert code == 1
            assert name in output
        asked = sum(row["count"] for row in rig.control.requests()) - before
        assert asked == {"stripe_account": 2, "stripe_mode": 0}[name], "whose key it is, and nothing else"
        assert rig.get(f"/v1/subscriptions/{subscription}")["status"] == "active"


async def test_cancel_changes_nothing_while_usage_cannot_be_sent(
    period_stand_in: StripeStandIn, period_url: str
) -> None:
    """A meter that does not catch up, and usage that is held: it says so and the subscription goes on."""
    async with period_rig(period_stand_in, period_url, "2027-01-01") as rig:
        customer = rig.customer()
        subscription = rig.subscribe(customer, rig.price(3))["id"]
        await rig.live()
        rig.use(customer, "2027-01-10 10:00:00", 10)
        await rig.at("2027-01-10 10:01:00")
        rig.ticking = False
        refused, _ = await cancel(rig, period_stand_in, subscription)
        assert isinstance(refused, NotCancelled)
        assert "counted" in str(refused)
        rig.ticking = True
        rig.use(customer, "2027-01-10 10:30:00", -2)
        await rig.live()
        assert rig.held() == {"negative": Decimal(-2)}
        refused, _ = await cancel(rig, period_stand_in, subscription)
        assert isinstance(refused, NotCancelled)
        assert "held" in str(refused)
        assert rig.get(f"/v1/subscriptions/{subscription}")["status"] == "active"
        ended, _ = await cancel(rig, period_stand_in, subscription, anyway=True)
        assert isinstance(ended, Cancelled)
        assert ended.amount == 30
