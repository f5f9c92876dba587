"""Invoice items on virtual time: made once, whatever the answers, with no identifier to protect them."""

from __future__ import annotations

import json
from dataclasses import replace

from tests.unit.stripe_sync.fakes import NO_ANSWER, SERVER_ERROR, T0_MS, posting
from tests.unit.stripe_sync.test_sender import Bench
from tollgate.ledger.posting_rows import Posting, PostingMode, PostingState

HOUR_MS = 3_600_000


def _item(**changed: object) -> Posting:
    made = posting()
    body = {
        "amount": 42,
        "currency": "usd",
        "customer": made.customer_id,
        "metadata": {"tollgate_identifier": made.identifier},
    }
    values = {"mode": PostingMode.INVOICE_ITEM, "body": json.dumps(body), "for_period_ms": T0_MS - HOUR_MS}
    return replace(made, **(values | changed))  # type: ignore[arg-type]


def _keys(bench: Bench) -> set[str]:
    return {key for _, _, key in bench.stripe.calls}


async def test_it_needs_no_meter() -> None:
    """With its Billing Meter gone from Stripe an item is made all the same."""
    bench = Bench()
    bench.stripe.active.clear()
    bench.book.add(_item())
    await bench.run_until(bench.all_delivered)
    assert len(bench.stripe.items) == 1


async def test_a_lost_answer_is_asked_for_under_the_same_key() -> None:
    """Inside Stripe's horizon: one item, one key, nothing is looked for."""
    bench = Bench()
    bench.book.add(_item())
    bench.stripe.after = lambda body, key, number: NO_ANSWER if number < 3 else None
    await bench.run_until(bench.all_delivered)
    assert len(bench.stripe.items) == 1
    assert _keys(bench) == {"tg_k_1:0"}
    assert bench.stripe.looked_for == []


async def test_past_the_horizon_it_is_looked_for_and_never_made_again() -> None:
    """Unknown for 20 hours: Stripe's list has it, so it is settled; or has it not, so it is void."""
    for made, state in ((True, PostingState.SETTLED), (False, PostingState.VOID)):
        bench = Bench()
        sent_ms = T0_MS - 20 * HOUR_MS
        item = _item(
            state=PostingState.UNKNOWN,
            first_sent_ms=sent_ms,
            last_sent_ms=sent_ms,
            attempts=1,
            planned_ms=sent_ms,
        )
        bench.book.add(item)
        if made:
            bench.stripe.items.append((sent_ms, item.identifier))
        await bench.run_until(lambda b=bench, s=state: b.book.states() == {("k", 1): s})  # type: ignore[misc]
        assert bench.stripe.calls == []
        assert bench.stripe.looked_for == [item.identifier]


async def test_a_stored_500_gets_no_other_key_but_a_look() -> None:
    """Its first execution made the item and stored a 500: the list says that it is there."""
    bench = Bench()
    bench.book.add(_item())
    bench.stripe.after = lambda body, key, number: SERVER_ERROR if number == 0 else None
    settled = {("k", 1): PostingState.SETTLED}
    await bench.run_until(lambda: bench.book.states() == settled, seconds=2 * 3600, step_ms=500)
    assert len(bench.stripe.items) == 1
    assert _keys(bench) == {"tg_k_1:0"}
    assert bench.stripe.looked_for == ["tg_k_1"]


async def test_a_stored_500_that_made_nothing_is_void() -> None:
    """The key will answer 500 for a day: the chain goes on under another identifier."""
    bench = Bench()
    bench.book.add(_item())
    bench.stripe.before = lambda body, key, number: SERVER_ERROR
    void = {("k", 1): PostingState.VOID}
    await bench.run_until(lambda: bench.book.states() == void, seconds=2 * 3600, step_ms=500)
    assert bench.stripe.items == []
    assert _keys(bench) == {"tg_k_1:0"}
