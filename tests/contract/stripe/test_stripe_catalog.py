"""Keys, errors, products, prices, customers, meters and paging."""

from decimal import Decimal

import pytest
import stripe

from sandbox.stripe.process import StandInControl, StripeStandIn
from tests.contract.stripe.target import Target, client_of
from tollgate.metering.price import Interval, Package, Price, PriceModel, Tier
from tollgate.metering.pricing import price_from_fields, price_to_fields


@pytest.mark.parametrize("key", ["sk_live_abc", "pk_test_abc", "nonsense"])
def test_only_test_keys_are_accepted(stand_in: StripeStandIn, key: str) -> None:
    """Live keys, publishable keys and nonsense are a 401."""
    with pytest.raises(stripe.AuthenticationError, match="Invalid API Key"):
        client_of(stand_in, key).v1.customers.list()


def test_restricted_test_keys_are_accepted(stand_in: StripeStandIn) -> None:
    """``rk_test_`` keys work."""
    assert client_of(stand_in, "rk_test_abc").v1.customers.list().data == []


def test_revoked_key_is_told_apart(target: Target, control: StandInControl) -> None:
    """An expired key has its own code."""
    control.add_fault("unauthorized_401", times=1)
    with pytest.raises(stripe.AuthenticationError) as caught:
        target.client.v1.customers.list()
    assert caught.value.error is not None
    assert caught.value.error.code == "api_key_expired"


def test_unknown_address_is_a_404_in_stripes_json(target: Target) -> None:
    """The SDK understands the answer, so it is JSON of Stripe's shape."""
    with pytest.raises(stripe.InvalidRequestError, match="Unrecognized request URL") as caught:
        target.client.raw_request("get", "/v1/nothing_here")
    assert caught.value.http_status == 404


def test_every_answer_has_a_request_id(target: Target) -> None:
    """Answers and refusals alike can be looked up."""
    listed = target.client.v1.customers.list()
    assert listed.last_response is not None
    assert str(listed.last_response.request_id).startswith("req_")
    with pytest.raises(stripe.InvalidRequestError) as caught:
        target.client.v1.customers.retrieve("cus_missing")
    assert str(caught.value.request_id).startswith("req_")
    assert (caught.value.http_status, caught.value.code) == (404, "resource_missing")


def test_unknown_parameters_are_refused(target: Target) -> None:
    """A misspelt parameter is named."""
    with pytest.raises(stripe.InvalidRequestError) as caught:
        target.client.v1.customers.create({"e_mail": "a@example.com"})  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.param) == ("parameter_unknown", "e_mail")


def test_account_is_the_same_every_time(target: Target) -> None:
    """The account's id pins a ledger, so it never changes."""
    first, second = (target.client.v1.accounts.retrieve_current().id for _ in range(2))
    assert first == second
    assert first.startswith("acct_")


def test_customer_life(target: Target) -> None:
    """Created, changed, found by e-mail, deleted; a deleted one answers with ``deleted`` and is not listed."""
    customers, email = target.client.v1.customers, f"{target.name('a')}@example.com"
    made = customers.create({"email": email, "metadata": {"plan": "x", "team": "y"}})
    changed = customers.update(made.id, {"metadata": {"plan": "z", "team": ""}, "name": "N"})
    assert changed.metadata is not None
    assert changed.metadata.to_dict() == {"plan": "z"}
    assert [customer.id for customer in customers.list({"email": email}).data] == [made.id]
    assert customers.delete(made.id).deleted is True
    assert customers.retrieve(made.id).deleted is True
    assert customers.list({"email": email}).data == []


def test_deleting_a_customer_cancels_its_subscriptions(target: Target) -> None:
    """Its subscriptions end at once."""
    customer = target.customer()
    subscription = target.client.v1.subscriptions.create(
        {"customer": customer, "items": [{"price": target.price(target.meter())}]}
    )
    target.client.v1.customers.delete(customer)
    assert target.client.v1.subscriptions.retrieve(subscription.id).status == "canceled"


def test_lookup_key_moves_only_when_told(target: Target) -> None:
    """A key names one price; ``transfer_lookup_key`` moves it."""
    product = target.client.v1.products.create({"name": "P"}).id
    key = target.name("key")
    params: stripe.params.PriceCreateParams = {
        "currency": "usd",
        "product": product,
        "unit_amount": 1,
        "lookup_key": key,
    }
    first = target.client.v1.prices.create(params)
    with pytest.raises(stripe.InvalidRequestError):
        target.client.v1.prices.create(params)
    second = target.client.v1.prices.create({**params, "transfer_lookup_key": True})
    assert [price.id for price in target.client.v1.prices.list({"lookup_keys": [key]}).data] == [second.id]
    assert target.client.v1.prices.retrieve(first.id).lookup_key is None


def test_metered_price_needs_a_meter(target: Target) -> None:
    """Since basil a metered price has a meter, and one that is active."""
    params: stripe.params.PriceCreateParams = {
        "currency": "usd",
        "product_data": {"name": "P"},
        "unit_amount": 1,
        "recurring": {"interval": "month", "usage_type": "metered"},
    }
    with pytest.raises(stripe.InvalidRequestError):
        target.client.v1.prices.create(params)
    meter = target.meter()
    target.client.v1.billing.meters.deactivate(meter.id)
    with pytest.raises(stripe.InvalidRequestError):
        target.price(meter)


def test_metered_item_takes_no_quantity(target: Target) -> None:
    """Quantity belongs to licensed prices."""
    with pytest.raises(stripe.InvalidRequestError):
        target.client.v1.subscriptions.create(
            {
                "customer": target.customer(),
                "items": [{"price": target.price(target.meter()), "quantity": 1}],
            }
        )


def test_event_name_belongs_to_one_meter(target: Target) -> None:
    """A second meter with the name is refused; only the display name of the first can change."""
    meter = target.meter()
    with pytest.raises(stripe.InvalidRequestError):
        target.client.v1.billing.meters.create(
            {
                "display_name": "Twin",
                "event_name": meter.event_name,
                "default_aggregation": {"formula": "sum"},
            }
        )
    assert target.client.v1.billing.meters.update(meter.id, {"display_name": "B"}).display_name == "B"


def test_lists_page_both_ways(target: Target) -> None:
    """The SDK's automatic paging sees everything once, newest first."""
    product = target.client.v1.products.create({"name": "P"}).id
    made = [
        target.client.v1.prices.create({"currency": "usd", "product": product, "unit_amount": amount}).id
        for amount in range(1, 8)
    ]
    pages = target.client.v1.prices.list({"product": product, "limit": 3})
    assert [price.id for price in pages.auto_paging_iter()] == made[::-1]
    before = target.client.v1.prices.list({"product": product, "limit": 2, "ending_before": made[2]})
    assert [price.id for price in before.data] == [made[4], made[3]]


def test_expand_puts_objects_in_place_of_ids(target: Target) -> None:
    """``expand`` answers the customer instead of its id."""
    customer = target.customer()
    subscription = target.client.v1.subscriptions.create(
        {
            "customer": customer,
            "items": [{"price": target.price(target.meter())}],
            "expand": ["customer", "latest_invoice"],
        }
    )
    assert isinstance(subscription.customer, stripe.Customer)
    assert isinstance(subscription.latest_invoice, stripe.Invoice)
    assert subscription.customer.id == customer


@pytest.mark.parametrize(
    ("terms", "units", "amount"),
    [
        ({"unit_amount_decimal": "0.15"}, 1001, 150),
        ({"unit_amount": 100, "transform_quantity": {"divide_by": 1000, "round": "up"}}, 1001, 200),
        ({"unit_amount": 100, "transform_quantity": {"divide_by": 1000, "round": "down"}}, 1999, 100),
    ],
)
def test_price_models_in_a_preview(target: Target, terms: dict[str, object], units: int, amount: int) -> None:
    """Unit and package prices come out by their formula."""
    meter, customer = target.meter(), target.customer()
    price = target.price(meter, **terms)
    subscription = target.client.v1.subscriptions.create({"customer": customer, "items": [{"price": price}]})
    target.send(meter, customer, units)
    assert target.eventually(
        lambda: target.client.v1.invoices.create_preview({"subscription": subscription.id}).total == amount
    )


@pytest.mark.parametrize(("mode", "amount"), [("graduated", 100 * 10 + 50 * 5), ("volume", 150 * 5)])
def test_tiered_prices_in_a_preview(target: Target, mode: str, amount: int) -> None:
    """Graduated bills each unit in its tier, volume all units in one."""
    meter, customer = target.meter(), target.customer()
    price = target.price(
        meter,
        billing_scheme="tiered",
        tiers_mode=mode,
        tiers=[{"up_to": 100, "unit_amount": 10}, {"up_to": "inf", "unit_amount": 5}],
    )
    subscription = target.client.v1.subscriptions.create({"customer": customer, "items": [{"price": price}]})
    target.send(meter, customer, 150)
    assert target.eventually(
        lambda: target.client.v1.invoices.create_preview({"subscription": subscription.id}).total == amount
    )


@pytest.mark.parametrize(
    "price",
    [
        Price(PriceModel.STANDARD, "usd", Interval("month"), Decimal("0.000000000001")),
        Price(PriceModel.PACKAGE, "jpy", Interval("year"), Decimal(5), Package(1000, "down")),
        Price(
            PriceModel.GRADUATED,
            "eur",
            Interval("month", 3),
            tiers=(Tier(10, Decimal(0)), Tier(None, Decimal("10.5"), Decimal(7))),
            description="Calls",
        ),
        Price(PriceModel.VOLUME, "usd", Interval("day", 45), tiers=(Tier(None, Decimal(1), Decimal(300)),)),
    ],
    ids=lambda price: str(price.model),
)
def test_metered_price_reads_back_as_it_was_made(target: Target, price: Price) -> None:
    """Found by lookup key and by meter, with its tiers when they are asked for."""
    meter, key = target.meter(), target.name("key")
    params = price_to_fields(price)
    params |= {
        "product_data": {"name": "Contract"},
        "recurring": {**params["recurring"], "meter": meter.id},
        "lookup_key": key,
    }
    made = target.client.raw_request("post", "/v1/prices", **params).data
    for by in ({"lookup_keys": [key]}, {"recurring": {"meter": meter.id}}):
        (found,) = target.client.raw_request("get", "/v1/prices", expand=["data.tiers"], **by).data["data"]
        assert found["id"] == made["id"]
        assert price_from_fields(found) == price


def test_unknown_currency_is_refused(target: Target) -> None:
    """Named, and nothing is made."""
    with pytest.raises(stripe.InvalidRequestError, match="Invalid currency") as caught:
        target.price(target.meter(), currency="zzz", unit_amount=1)
    assert caught.value.param == "currency"
