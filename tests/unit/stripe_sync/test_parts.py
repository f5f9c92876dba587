"""The small parts: bucket, settlement, fault points, meters' fitness, settings, translation of the client's errors."""

from __future__ import annotations

import ssl
from dataclasses import replace
from decimal import Decimal

import httpx
import pytest
import stripe
from pydantic import SecretStr, ValidationError

from services.stripe_sync.bucket import TokenBucket
from services.stripe_sync.gateway import BillingMeter, Permanent, Transient, UnknownOutcome, translate
from services.stripe_sync.journal import entry_from_posting
from services.stripe_sync.meter_watch import MeterWatch
from services.stripe_sync.outcomes import Situation
from services.stripe_sync.settings import StripeSettings
from services.stripe_sync.settlement import Verdict, compare_summary
from tests.unit.stripe_sync.fakes import T0_MS, FakeBook, FakeStripe, posting
from tollgate.contracts.journal import decode_journal_entry, encode_journal_entry
from tollgate.ledger.posting_rows import PostingMode
from tollgate.runtime.clock import ManualClock


def test_the_bucket_spaces_what_exceeds_the_burst() -> None:
    """Two at once, then one every tenth of a second; saved up again while idle, never above the burst."""
    bucket = TokenBucket(10, 2, 100.0)
    assert [round(bucket.reserve(100.0), 3) for _ in range(4)] == [0, 0, 0.1, 0.2]
    assert bucket.reserve(200.0) == 0
    assert bucket.reserve(200.0) == 0
    assert bucket.reserve(200.0) > 0


def test_a_closed_bucket_makes_everybody_wait() -> None:
    """Until then no token is used, and none is saved up."""
    bucket = TokenBucket(10, 5, 0.0)
    bucket.close(0.0, 3.0)
    assert bucket.is_closed(2.9)
    assert bucket.reserve(1.0) == 2.0
    assert not bucket.is_closed(3.0)


@pytest.mark.parametrize(
    ("summary", "others", "verdict"),
    [
        ("12", [], Verdict.DELIVERED),
        ("7", [], Verdict.NOT_DELIVERED),
        ("9", [], Verdict.UNDECIDED),
        ("15", ["3"], Verdict.DELIVERED),
        ("10", ["3"], Verdict.NOT_DELIVERED),
        ("12", ["3"], Verdict.DELIVERED),
        ("12", ["5"], Verdict.UNDECIDED),
        ("17", ["5"], Verdict.DELIVERED),
        ("12.0000000001", [], Verdict.DELIVERED),
        ("12", ["1"] * 13, Verdict.UNDECIDED),
    ],
)
def test_a_summary_decides_only_what_it_proves(summary: str, others: list[str], verdict: Verdict) -> None:
    """7 were delivered before, 5 are in question; others may or may not be in the sum."""
    found = compare_summary(Decimal(summary), Decimal(7), Decimal(5), [Decimal(o) for o in others])
    assert found is verdict


FIT = BillingMeter("mtr_1", "calls", True, "sum", "stripe_customer_id", "value", None)


@pytest.mark.parametrize(
    ("meter", "mode", "word"),
    [
        (FIT, PostingMode.DELTA, None),
        (replace(FIT, active=False), PostingMode.DELTA, "active"),
        (replace(FIT, formula="count"), PostingMode.DELTA, "count"),
        (replace(FIT, time_window="hour"), PostingMode.DELTA, "is hour"),
        (replace(FIT, customer_key="who"), PostingMode.DELTA, "who"),
        (replace(FIT, value_key="much"), PostingMode.DELTA, "much"),
        (FIT, PostingMode.WINDOW_TOTAL, "is unset"),
        (replace(FIT, time_window="hour"), PostingMode.WINDOW_TOTAL, None),
        (replace(FIT, time_window="day"), PostingMode.WINDOW_TOTAL, "is day"),
        (replace(FIT, time_window="hour", formula="last"), PostingMode.WINDOW_TOTAL, "last"),
    ],
)
def test_a_meter_that_would_miscount_is_unfit(
    meter: BillingMeter, mode: PostingMode, word: str | None
) -> None:
    """Inactive, not summing, replacing or not as the mode needs it, or reading other keys."""
    reason = meter.unfit(mode)
    assert (reason is None) == (word is None)
    assert word is None or word in str(reason)


def test_a_live_key_is_refused_unless_allowed() -> None:
    """And anything that is no Stripe key always."""
    for key in ("sk_live_1", "rk_live_1"):
        with pytest.raises(ValidationError, match="live key"):
            StripeSettings(api_key=SecretStr(key))
        assert StripeSettings(api_key=SecretStr(key), allow_live=True).mode == "live"
    assert StripeSettings(api_key=SecretStr("rk_test_1")).mode == "test"
    with pytest.raises(ValidationError, match="must begin"):
        StripeSettings(api_key=SecretStr("pk_test_1"))


def test_the_journal_keeps_a_posting_whole() -> None:
    """What is read back says the same, to the byte of its body."""
    entry = entry_from_posting(posting())
    assert decode_journal_entry(encode_journal_entry(entry)) == entry
    assert entry.body == posting().body
    assert (entry.quantity_to, entry.customer) == ("5", "cus_1")


def _caused(cause: Exception) -> stripe.StripeError:
    error = stripe.APIConnectionError("Unexpected\n\n(Network error)", should_retry=True)  # type: ignore[no-untyped-call]
    error.__cause__ = cause
    return error


def test_a_connection_never_made_has_carried_nothing() -> None:
    """Refused and unresolved hosts, and TLS faults, are certain; a lost answer is not."""
    refused = translate(_caused(httpx.ConnectError("refused")))
    assert isinstance(refused, Transient)
    assert refused.row.situation is Situation.UNREACHABLE
    handshake = httpx.ConnectError("tls")
    handshake.__cause__ = ssl.SSLCertVerificationError("self-signed")
    assert translate(_caused(handshake)).row.situation is Situation.LOCAL_FAULT
    for cause in (httpx.ReadTimeout("t"), httpx.RemoteProtocolError("closed"), httpx.ReadError("reset")):
        lost = translate(_caused(cause))
        assert isinstance(lost, UnknownOutcome)
        assert lost.row.situation is Situation.NO_ANSWER


def test_an_error_bodys_code_is_read_where_the_client_hides_it() -> None:
    """For 429 and others the client's own code is empty."""
    body = {"error": {"type": "invalid_request_error", "code": "lock_timeout", "message": "locked"}}
    error = stripe.RateLimitError("locked", None, 429, body, {"Request-Id": "req_1"})
    found = translate(error)
    assert isinstance(found, Transient)
    assert found.row.situation is Situation.LOCK_TIMEOUT
    refused = stripe.InvalidRequestError("no", None, None, None, 400, {})  # type: ignore[no-untyped-call]
    assert isinstance(translate(refused), Permanent)


def test_a_replayed_answer_is_recognised() -> None:
    """Stripe says so in a header, whatever its case."""
    error = stripe.APIError("sorry", None, 500, {"error": {"message": "x"}}, {"Idempotent-Replayed": "true"})
    assert translate(error).failure.replayed


async def test_a_meter_is_fit_for_the_mode_of_its_postings() -> None:
    """Totals need an hourly meter, usage records none; one halted by an earlier process is judged by what is declared."""
    clock = ManualClock(T0_MS)
    book, stripe_side = FakeBook(), FakeStripe(clock)
    watch = MeterWatch(book, stripe_side, clock, 60.0)
    await watch.check([("calls", PostingMode.DELTA), ("old", PostingMode.USAGE_RECORD)])
    assert watch.is_fit("calls", PostingMode.DELTA)
    assert watch.is_fit("old", PostingMode.USAGE_RECORD)
    await watch.check([("calls", PostingMode.WINDOW_TOTAL)])
    assert "event_time_window is unset" in book.halts["calls"]
    later = MeterWatch(book, stripe_side, clock, 60.0)
    book.declared = {"calls": {PostingMode.WINDOW_TOTAL}}
    await later.check([])
    assert "calls" in book.halts
    stripe_side.time_window = "hour"
    clock.advance_ms(61_000)
    await later.check([])
    assert book.halts == {}
    assert later.is_fit("calls", PostingMode.WINDOW_TOTAL)
