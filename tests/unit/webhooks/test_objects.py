"""From Stripe's JSON and errors to our words."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import stripe

from services.webhooks import objects
from services.webhooks.errors import Permanent, PermanentReason, Transient, TransientReason
from services.webhooks.gateway import translate_error
from services.webhooks.pace import Pace
from services.webhooks.settings import WebhooksServiceSettings
from tests.unit.webhooks.fakes import customer_body, invoice_body, subscription_body
from tollgate.ledger.billing import Customer, InvoiceLine, Item
from tollgate.ledger.directory import DEFAULT_RULES, MappingRule
from tollgate.runtime.clock import ManualClock
from tollgate.runtime.settings import load_settings
from tollgate.runtime.settings_docs import describe_settings


def test_a_customer_is_converted_clean() -> None:
    """NUL is taken out, since PostgreSQL cannot hold it; an empty e-mail is none."""
    body = customer_body("cus_1", " a\x00@example.com ", metadata={"k\x00": "v\x00"}) | {"name": "A\x00nn"}
    assert objects.customer_to_domain(body) == Customer("cus_1", "a@example.com", "Ann", metadata={"k": "v"})
    assert objects.customer_to_domain(customer_body("cus_1", "  ")).email is None


def test_a_deleted_customer_keeps_its_id_only() -> None:
    """Stripe tells nothing else, and nothing else is kept."""
    assert objects.customer_to_domain({"id": "cus_1", "deleted": True}) == Customer("cus_1", deleted=True)


def test_a_subscription_has_its_items_periods() -> None:
    """Seconds become milliseconds; an unmetered price has no event name; references may be expanded."""
    body = subscription_body([("si_1", 10, 20)], ended_at=15) | {"customer": {"id": "cus_9"}}
    found = objects.subscription_to_domain(body, body["items"]["data"], {"price_calls": None})
    assert (found.customer_id, found.start_ms, found.ended_ms) == ("cus_9", 10_000, 15_000)
    assert found.items == (Item("si_1", "price_calls", None, 10_000, 20_000),)


@pytest.mark.parametrize("missing", ["customer", "status", "id"])
def test_a_subscription_lacking_what_it_must_have(missing: str) -> None:
    """Never guessed."""
    body = subscription_body([]) | {missing: None}
    with pytest.raises(Permanent) as raised:
        objects.subscription_to_domain(body, (), {})
    assert raised.value.reason is PermanentReason.UNEXPECTED_SHAPE


def test_an_item_without_a_period_is_of_another_api_version() -> None:
    """Before 2025-03 the bounds were on the subscription."""
    item = {"id": "si_1", "price": "price_1"}
    with pytest.raises(Permanent, match="current_period_start"):
        objects.subscription_to_domain(subscription_body([]), [item], {})


@pytest.mark.parametrize(
    ("cancel_at", "end_ms"), [(15, 15_000), (20, 20_000), (25, 20_000), (10, 20_000), (None, 20_000)]
)
def test_a_period_ends_where_its_subscription_is_set_to_end(cancel_at: int | None, end_ms: int) -> None:
    """Only inside the period: at its edges and beyond nothing is cut."""
    body = subscription_body([("si_1", 10, 20)]) | {"cancel_at": cancel_at}
    [found] = objects.subscription_to_domain(body, body["items"]["data"], {}).items
    assert (found.period_start_ms, found.period_end_ms) == (10_000, end_ms)


@pytest.mark.parametrize(
    ("previous", "expected"),
    [
        ({}, {}),
        ({"items": None}, {}),
        ({"items": {"data": "?"}}, {}),
        ({"items": {"data": [{"id": "si_1"}, "?", {"price": {"id": "p"}}]}}, {}),
        ({"items": {"data": [{"id": "si_1", "price": {"id": "p_1"}}, {"id": "si_2", "price": "p_2"}]}},
         {"si_1": "p_1", "si_2": "p_2"}),
    ],
)  # fmt: skip
def test_previous_prices_are_read_where_an_event_has_them(
    previous: dict[str, Any], expected: dict[str, str]
) -> None:
    """Whatever else is there is no reason to refuse the event."""
    assert objects.previous_prices(previous) == expected


def test_an_invoice_keeps_its_metered_lines() -> None:
    """Prorations, one-off items and unmetered prices bill no period of ours."""
    body = invoice_body("in_1", "draft", (10, 20))
    [metered] = body["lines"]["data"]
    metered |= {"id": "il_1", "quantity": 7, "quantity_decimal": "7.5"}
    proration: dict[str, Any] = {
        **metered,
        "parent": {"subscription_item_details": {"subscription_item": "si_2", "proration": True}},
    }
    one_off = {**metered, "parent": {"invoice_item_details": {"invoice_item": "ii_1"}}}
    licensed = {**metered, "pricing": {"price_details": {"price": "price_seat"}}}
    lines = [metered, proration, one_off, licensed, {}]
    found = objects.invoice_to_domain(body, lines, {"price_calls": "calls", "price_seat": None})
    assert found.lines == (InvoiceLine("si_1", "price_calls", "calls", 10_000, 20_000, "7.5", "il_1"),)
    assert (found.subscription_id, found.status, found.finalizes_ms) == ("sub_1", "draft", 3_620_000)
    assert not found.finalized


@pytest.mark.parametrize(
    ("line", "quantity"),
    [
        ({"quantity": 7}, "7"),
        ({"quantity": 7, "quantity_decimal": "7.123456789012"}, "7.123456789012"),
        ({"quantity": 0, "quantity_decimal": "1E+3"}, "1000"),
        ({"quantity": None}, "0"),
        ({}, "0"),
    ],
)
def test_a_lines_quantity_is_exact(line: dict[str, Any], quantity: str) -> None:
    """The decimal one where there is one: the other is cut off."""
    assert objects.line_quantity(line) == quantity


@pytest.mark.parametrize("written", ["many", "NaN", "Infinity", ""])
def test_a_quantity_that_is_no_number_is_refused(written: str) -> None:
    """It is not taken for nothing."""
    with pytest.raises(Permanent):
        objects.line_quantity({"quantity_decimal": written})


def test_a_price_names_its_meter() -> None:
    """Only a metered one does."""
    assert objects.price_meter_id({"recurring": {"meter": "mtr_1"}}) == "mtr_1"
    assert objects.price_meter_id({"recurring": {"meter": None}}) is None
    assert objects.price_meter_id({"recurring": None}) is None


def test_a_metered_price_without_a_meter_is_labelled() -> None:
    """It bills usage records; which meter's, only its label says."""
    legacy = {
        "recurring": {"usage_type": "metered", "meter": None},
        "metadata": {"tollgate_event_name": "calls"},
    }
    assert objects.bills_usage_records(legacy)
    assert objects.labelled_event_name(legacy) == "calls"
    assert objects.labelled_event_name({"metadata": {}}) is None
    assert not objects.bills_usage_records({"recurring": {"usage_type": "metered", "meter": "mtr_1"}})
    assert not objects.bills_usage_records({"recurring": {"usage_type": "licensed", "meter": None}})
    assert not objects.bills_usage_records({"recurring": None})


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (stripe.APIConnectionError("reset"), TransientReason.STRIPE_UNREACHABLE),  # type: ignore[no-untyped-call]
        (stripe.RateLimitError("slow", http_status=429), TransientReason.RATE_LIMITED),
        (stripe.AuthenticationError("key", http_status=401), TransientReason.UNAUTHORIZED),
        (stripe.PermissionError("scope", http_status=403), TransientReason.UNAUTHORIZED),
        (stripe.APIError("conflict", http_status=409), TransientReason.STRIPE_FAILED),
        (stripe.APIError("oops", http_status=500), TransientReason.STRIPE_FAILED),
        (stripe.APIError("oops", http_status=503), TransientReason.STRIPE_FAILED),
        (stripe.APIError("no status"), TransientReason.STRIPE_UNREACHABLE),
        (stripe.InvalidRequestError("none", "id", http_status=404), PermanentReason.NOT_FOUND),  # type: ignore[no-untyped-call]
        (stripe.InvalidRequestError("bad", "id", http_status=400), PermanentReason.REFUSED),  # type: ignore[no-untyped-call]
    ],
)
def test_each_error_says_what_to_do(
    error: stripe.StripeError, expected: TransientReason | PermanentReason
) -> None:
    """A broken key is nobody's event's fault; a 404 is no outage."""
    translated = translate_error(error)
    assert isinstance(translated, Transient if isinstance(expected, TransientReason) else Permanent)
    assert translated.reason is expected


async def test_the_pace_spaces_calls() -> None:
    """At four a second, those who ask at once go a quarter of a second apart."""
    clock = ManualClock()
    pace = Pace(4, clock)
    await pace.take_turn()
    starts: list[float] = []

    async def turn() -> None:
        await pace.take_turn()
        starts.append(clock.monotonic_seconds())

    tasks = [asyncio.create_task(turn()) for _ in range(3)]
    for _ in range(100):
        await asyncio.sleep(0)
        clock.advance_ms(10)
    await asyncio.gather(*tasks)
    assert starts == [0.25, 0.5, 0.75]
    with pytest.raises(ValueError):
        Pace(0, clock)


def test_settings_read_lists_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets and rules are lists; both are easily typed."""
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_1")
    monkeypatch.setenv("TOLLGATE_STRIPE__WEBHOOK_SECRETS", "whsec_a, whsec_b")
    monkeypatch.setenv("TOLLGATE_WEBHOOKS__MAPPING_RULES", "user=customer.email,company=subscription.id")
    settings = load_settings(WebhooksServiceSettings)
    assert [secret.get_secret_value() for secret in settings.stripe.webhook_secrets] == ["whsec_a", "whsec_b"]
    assert settings.webhooks.mapping_rules == [
        MappingRule.USER_IS_CUSTOMER_EMAIL,
        MappingRule.COMPANY_IS_SUBSCRIPTION_ID,
    ]
    assert settings.http.port == 8610
    assert "whsec_a" not in repr(settings)


def test_settings_have_safe_defaults_and_are_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rule by default that two customers could share; every setting says what it is."""
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_1")
    settings = load_settings(WebhooksServiceSettings)
    assert tuple(settings.webhooks.mapping_rules) == DEFAULT_RULES
    assert settings.stripe.webhook_secrets == []
    assert settings.webhooks.fault_point is None
    assert all(entry.description for entry in describe_settings(WebhooksServiceSettings))


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({}, "STRIPE_API_KEY"),
        ({"STRIPE_API_KEY": "sk_live_1"}, "ALLOW_LIVE"),
        ({"STRIPE_API_KEY": "sk_test_1", "TOLLGATE_WEBHOOKS__MAPPING_RULES": "user=nobody"}, "MAPPING_RULES"),
    ],
)
def test_bad_settings_end_with_2_and_name_the_variable(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    named: str,
) -> None:
    """A live key needs a switch of its own."""
    for name in ("STRIPE_API_KEY", "TOLLGATE_STRIPE__API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as raised:
        load_settings(WebhooksServiceSettings)
    assert raised.value.code == 2
    assert named in capsys.readouterr().err
