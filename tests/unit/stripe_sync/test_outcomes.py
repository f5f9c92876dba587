"""The failure table, row by row, and what each row makes of a posting."""

from __future__ import annotations

import pytest

from services.stripe_sync.attempt import (
    HORIZON_MS,
    Pace,
    conclude_delivered,
    conclude_failed,
    conclude_not_tried,
    deadline_ms,
    is_past_horizon,
)
from services.stripe_sync.outcomes import (
    REJECTIONS,
    TABLE,
    Action,
    AfterRefusal,
    Failure,
    Situation,
    after_refusal,
    judge,
    parks_successor,
)
from tests.unit.stripe_sync.fakes import PERIOD_OVER, T0_MS, posting
from tollgate.ledger.posting_rows import PostingState
from tollgate.runtime.backoff import Backoff

PACE = Pace(Backoff(1.0, 60.0, jitter=0.0))
J, U, P = PostingState.JOURNALLED, PostingState.UNKNOWN, PostingState.PARKED

CASES: list[tuple[Failure, Situation, Action, PostingState, PostingState]] = [
    # failure, situation, action, state of a posting never sent before, state of one that may be at Stripe
    (Failure(connection="unreachable"), Situation.UNREACHABLE, Action.WAIT_ALL, J, U),
    (Failure(connection="no_answer"), Situation.NO_ANSWER, Action.ASK_AGAIN, U, U),
    (Failure(connection="local_fault"), Situation.LOCAL_FAULT, Action.WAIT_ALL, J, U),
    (Failure(401, code="api_key_expired"), Situation.UNAUTHORIZED, Action.STOP_ALL, J, U),
    (Failure(403), Situation.FORBIDDEN, Action.STOP_ALL, J, U),
    (Failure(429, code="lock_timeout"), Situation.LOCK_TIMEOUT, Action.WAIT_ONE, J, U),
    (
        Failure(429, code="rate_limit", rate_limited_reason="global-rate"),
        Situation.RATE_LIMIT,
        Action.WAIT_ALL,
        J,
        U,
    ),
    (Failure(429), Situation.RATE_LIMIT, Action.WAIT_ALL, J, U),
    (Failure(409, code="idempotency_key_in_use"), Situation.KEY_IN_USE, Action.ASK_AGAIN, U, U),
    (Failure(500, error_type="api_error"), Situation.SERVER_ERROR, Action.ASK_UNDER_NEW_KEY, U, U),
    (Failure(503), Situation.SERVER_ERROR, Action.ASK_UNDER_NEW_KEY, U, U),
    (
        Failure(400, error_type="idempotency_error", message="Keys for idempotent requests"),
        Situation.KEY_REUSED,
        Action.PARK,
        P,
        P,
    ),
    (
        Failure(400, message="The meter for calls is inactive.", code="archived_meter"),
        Situation.METER_INACTIVE,
        Action.HALT_METER,
        J,
        U,
    ),
    (Failure(400, code="no_meter"), Situation.METER_MISSING, Action.HALT_METER, J, U),
    (Failure(400, code="timestamp_in_future"), Situation.STAMP_IN_FUTURE, Action.WAIT_ONE, J, U),
    (
        Failure(400, message="Invalid timestamp: must be no more than 5 minutes in the future."),
        Situation.STAMP_IN_FUTURE,
        Action.WAIT_ONE,
        J,
        U,
    ),
    (Failure(400, code="timestamp_too_far_in_past"), Situation.STAMP_TOO_OLD, Action.PARK, P, P),
    (
        Failure(404, code="resource_missing", message="No such customer: 'cus_1'"),
        Situation.CUSTOMER_GONE,
        Action.PARK,
        P,
        P,
    ),
    (PERIOD_OVER, Situation.PERIOD_OVER, Action.TAKE_BACK, PostingState.VOID, U),
    (Failure(404, code="resource_missing"), Situation.NOT_FOUND, Action.PARK, P, P),
    (Failure(400, message="Invalid integer"), Situation.REFUSED, Action.PARK, P, P),
    (Failure(302), Situation.UNEXPECTED, Action.ASK_AGAIN, U, U),
]


@pytest.mark.parametrize(("failure", "situation", "action", "fresh", "doubtful"), CASES)
def test_each_answer_has_its_row_and_its_state(
    failure: Failure, situation: Situation, action: Action, fresh: PostingState, doubtful: PostingState
) -> None:
    """What happened, what is done, and where a posting stands afterwards, sent before or not."""
    row = judge(failure)
    assert (row.situation, row.action) == (situation, action)
    never = conclude_failed(posting(), row, failure, PACE, T0_MS)
    assert never.state is fresh
    before = conclude_failed(
        posting(state=U, first_sent_ms=T0_MS - 1000, attempts=2), row, failure, PACE, T0_MS
    )
    assert before.state is doubtful
    assert not before.certain, "a doubtful attempt is never forgotten"
    assert never.certain == row.certain
    assert never.attempted == (action not in (Action.STOP_ALL, Action.HALT_METER))


def test_every_row_of_the_table_is_exercised() -> None:
    """No row is there without a case above (a duplicate is a success, tested below)."""
    covered = {situation for _, situation, _, _, _ in CASES} | {Situation.DUPLICATE}
    assert {row.situation for row in TABLE} == covered


def test_a_duplicate_identifier_is_a_delivery() -> None:
    """The 400 that names our identifier says that an earlier attempt arrived."""
    row = judge(Failure(400, message="An event already exists with identifier tg_1_ab."))
    assert (row.situation, row.action) == (Situation.DUPLICATE, Action.DELIVERED)
    assert conclude_delivered(posting(), "req_1", True).state is PostingState.DELIVERED


def test_only_server_errors_change_the_key_and_never_the_identifier() -> None:
    """Three 5xx under one key, or one that Stripe says is replayed, bring a new key made from the identifier."""
    failure = Failure(500)
    row = judge(failure)
    keys = [conclude_failed(posting(attempts=n), row, failure, PACE, T0_MS).idempotency_key for n in range(6)]
    assert keys == [None, None, "tg_k_1:3", None, None, "tg_k_1:6"]
    replayed = Failure(500, replayed=True)
    assert conclude_failed(posting(), row, replayed, PACE, T0_MS).idempotency_key == "tg_k_1:1"
    timeout = Failure(connection="no_answer")
    for attempts in range(6):
        outcome = conclude_failed(posting(attempts=attempts), judge(timeout), timeout, PACE, T0_MS)
        assert outcome.idempotency_key is None


def test_waits_grow_with_the_attempts() -> None:
    """Each failed try doubles the wait, up to the most."""
    failure = Failure(429, code="lock_timeout")
    waits = []
    for attempts in (0, 1, 2, 20):
        outcome = conclude_failed(posting(attempts=attempts), judge(failure), failure, PACE, T0_MS)
        assert outcome.retry_ms is not None
        waits.append(outcome.retry_ms - T0_MS)
    assert waits == [1000, 2000, 4000, 60_000]


def test_the_horizon_counts_from_the_first_doubtful_attempt() -> None:
    """Twenty hours after it nothing is sent any more; one never sent has no horizon."""
    doubtful = posting(first_sent_ms=T0_MS)
    assert not is_past_horizon(doubtful, T0_MS + HORIZON_MS - 1)
    assert is_past_horizon(doubtful, T0_MS + HORIZON_MS)
    assert not is_past_horizon(posting(), T0_MS + 10 * HORIZON_MS)


def test_the_deadline_is_the_nearest_of_horizon_and_period_end() -> None:
    """What must not be missed first is sent first."""
    assert deadline_ms(posting(), T0_MS + 5) == T0_MS + 5
    assert deadline_ms(posting(first_sent_ms=T0_MS), T0_MS + 2 * HORIZON_MS) == T0_MS + HORIZON_MS
    assert deadline_ms(posting(), None) == T0_MS + 35 * 24 * 3_600_000


@pytest.mark.parametrize("code", sorted(REJECTIONS))
def test_each_late_refusal_has_its_consequence(code: str) -> None:
    """Only a refusal that may not repeat is posted again by itself."""
    again = {"timestamp_in_future", "archived_meter", "no_meter"}
    assert parks_successor(code) == (code not in again and code != "period_over")
    assert (after_refusal(code) is AfterRefusal.HOLD) == (code == "period_over")


def test_an_unknown_late_refusal_is_parked() -> None:
    """Posting it again could go on for ever."""
    assert after_refusal("something_new") is AfterRefusal.PARK


@pytest.mark.parametrize("doubtful", [False, True])
def test_what_was_not_tried_is_as_doubtful_as_it_was(doubtful: bool) -> None:
    """A call that was not made after all says nothing about one that was made before."""
    first_sent_ms = T0_MS - 1000 if doubtful else None
    state = PostingState.UNKNOWN if doubtful else PostingState.JOURNALLED
    outcome = conclude_not_tried(posting(first_sent_ms=first_sent_ms), "the meter was halted")
    assert (outcome.state, outcome.certain, outcome.attempted) == (state, not doubtful, False)
