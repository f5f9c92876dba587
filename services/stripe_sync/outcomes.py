"""The failure table: what every answer of Stripe means for the posting that was sent, as data.

Owns `TABLE` (first row that matches wins), `REJECTIONS` (refusals that come after a 2xx) and the rule that turns an
answer into the posting's next state. It refuses to know Stripe's client: `gateway.py` describes an error as a
`Failure`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Situation(StrEnum):
    """What happened, in the words of metrics and logs."""

    DELIVERED = "delivered"
    DUPLICATE = "duplicate"
    """Stripe has this identifier: an earlier attempt arrived."""
    RATE_LIMIT = "rate_limit"
    LOCK_TIMEOUT = "lock_timeout"
    KEY_IN_USE = "key_in_use"
    """The same idempotency key is in flight: two processes hold one posting, or our own call still runs there."""
    KEY_REUSED = "key_reused"
    """The idempotency key came with other parameters: a bug of ours."""
    SERVER_ERROR = "server_error"
    UNREACHABLE = "unreachable"
    """No connection was made: nothing was sent."""
    NO_ANSWER = "no_answer"
    """The connection broke or timed out after the request may have left."""
    LOCAL_FAULT = "local_fault"
    """TLS or the client's own configuration."""
    STAMP_TOO_OLD = "stamp_too_old"
    STAMP_IN_FUTURE = "stamp_in_future"
    CUSTOMER_GONE = "customer_gone"
    METER_INACTIVE = "meter_inactive"
    METER_MISSING = "meter_missing"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    PERIOD_OVER = "period_over"
    """A usage record for a period that is not the item's current one."""
    REFUSED = "refused"
    """Any other 400."""
    UNEXPECTED = "unexpected"
    """An answer that is none of these."""


class Action(StrEnum):
    """What is done about it."""

    DELIVERED = "delivered"
    WAIT_ALL = "wait_all"
    """Everything slows down; this posting is tried again, same key, identifier and body."""
    WAIT_ONE = "wait_one"
    """This posting is tried again later, same key, identifier and body."""
    ASK_AGAIN = "ask_again"
    """The outcome is unknown: same key, identifier and body, soon, inside Stripe's horizon."""
    ASK_UNDER_NEW_KEY = "ask_under_new_key"
    """As ASK_AGAIN, and after some tries a new idempotency key, since a stored 500 is replayed to the old one."""
    STOP_ALL = "stop_all"
    """No call at all until Stripe takes the key again. No attempt is counted."""
    HALT_METER = "halt_meter"
    """No call for this meter until it is active at Stripe."""
    PARK = "park"
    """This posting waits for an operator."""
    TAKE_BACK = "take_back"
    """Stripe will never take it: void, unless an earlier attempt may have arrived."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed call as `gateway.py` saw it. `status` is None when no answer came."""

    status: int | None = None
    error_type: str | None = None
    code: str | None = None
    message: str = ""
    rate_limited_reason: str | None = None
    should_retry: str | None = None
    """Header Stripe-Should-Retry."""
    replayed: bool = False
    """Header Idempotent-Replayed."""
    connection: str | None = None
    """unreachable, no_answer or local_fault, when no answer came."""
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table. A field left None matches anything; `message` is looked for, case aside."""

    situation: Situation
    action: Action
    certain: bool
    """Stripe certainly did not take this attempt."""
    statuses: tuple[int, ...] | None = None
    codes: tuple[str, ...] | None = None
    error_type: str | None = None
    message: tuple[str, ...] | None = None
    connection: str | None = None

    def matches(self, failure: Failure) -> bool:
        if self.connection is not None:
            return failure.connection == self.connection
        if failure.status is None or (self.statuses is not None and failure.status not in self.statuses):
            return False
        if self.error_type is not None and failure.error_type != self.error_type:
            return False
        by_code = self.codes is not None and failure.code in self.codes
        text = failure.message.lower()
        by_message = self.message is not None and any(part in text for part in self.message)
        return (self.codes is None and self.message is None) or by_code or by_message


_SERVER_ERRORS = tuple(range(500, 600))

TABLE: tuple[Row, ...] = (
    # No answer.
    Row(Situation.UNREACHABLE, Action.WAIT_ALL, certain=True, connection="unreachable"),
    Row(Situation.NO_ANSWER, Action.ASK_AGAIN, certain=False, connection="no_answer"),
    Row(Situation.LOCAL_FAULT, Action.WAIT_ALL, certain=True, connection="local_fault"),
    # The key of the account.
    Row(Situation.UNAUTHORIZED, Action.STOP_ALL, certain=True, statuses=(401,)),
    Row(Situation.FORBIDDEN, Action.STOP_ALL, certain=True, statuses=(403,)),
    # Traffic. Limits are checked before a request is executed or stored.
    Row(Situation.LOCK_TIMEOUT, Action.WAIT_ONE, certain=True, statuses=(429,), codes=("lock_timeout",)),
    Row(Situation.RATE_LIMIT, Action.WAIT_ALL, certain=True, statuses=(429,)),
    # The request in flight under this key may be our own earlier one, and may yet succeed.
    Row(Situation.KEY_IN_USE, Action.ASK_AGAIN, certain=False, statuses=(409,)),
    Row(Situation.SERVER_ERROR, Action.ASK_UNDER_NEW_KEY, certain=False, statuses=_SERVER_ERRORS),
    # The identifier is taken: an earlier attempt arrived. Stripe documents no code for it.
    Row(
        Situation.DUPLICATE,
        Action.DELIVERED,
        certain=False,
        statuses=(400,),
        message=("an event already exists with identifier",),
    ),
    Row(Situation.KEY_REUSED, Action.PARK, certain=False, statuses=(400,), error_type="idempotency_error"),
    Row(
        Situation.METER_INACTIVE,
        Action.HALT_METER,
        certain=True,
        statuses=(400,),
        codes=("archived_meter", "billing_meter_inactive"),
        message=(
            "inactive meter",
            "meter is inactive",
            "meter is not active",
            "archived meter",
            "deactivated",
        ),
    ),
    Row(
        Situation.METER_MISSING,
        Action.HALT_METER,
        certain=True,
        statuses=(400, 404),
        codes=("no_meter",),
        message=("no such meter", "no meter found", "no active meter"),
    ),
    Row(
        Situation.STAMP_IN_FUTURE,
        Action.WAIT_ONE,
        certain=True,
        statuses=(400,),
        codes=("timestamp_in_future",),
        message=("in the future", "minutes ahead"),
    ),
    Row(
        Situation.PERIOD_OVER,
        Action.TAKE_BACK,
        certain=True,
        statuses=(400,),
        message=("last invoice period",),
    ),
    Row(
        Situation.STAMP_TOO_OLD,
        Action.PARK,
        certain=True,
        statuses=(400,),
        codes=("timestamp_too_far_in_past",),
        message=("in the past", "calendar days", "35 days"),
    ),
    Row(
        Situation.CUSTOMER_GONE,
        Action.PARK,
        certain=True,
        statuses=(400, 404),
        codes=("meter_event_customer_not_found",),
        message=("no such customer",),
    ),
    Row(Situation.NOT_FOUND, Action.PARK, certain=True, statuses=(404,)),
    Row(Situation.REFUSED, Action.PARK, certain=True, statuses=(400, 402, 413, 422)),
    Row(Situation.UNEXPECTED, Action.ASK_AGAIN, certain=False),
)
"""The failure table, in order of precedence; the last row takes whatever no other does."""


def judge(failure: Failure) -> Row:
    """The row of the table for a failure."""
    for row in TABLE:
        if row.matches(failure):
            return row
    return TABLE[-1]


# ------------------------------------------------------------------------------- refusals after a 2xx


class AfterRefusal(StrEnum):
    """What becomes of the chain after its posting was refused by a meter error report."""

    POST_AGAIN = "post_again"
    HALT_METER = "halt_meter"
    """Post again, once the meter is active."""
    PARK = "park"
    """The posting that takes its place is written down parked."""
    HOLD = "hold"
    """Nothing takes its place: what is missing is held."""


REJECTIONS: dict[str, AfterRefusal] = {
    "archived_meter": AfterRefusal.HALT_METER,
    "no_meter": AfterRefusal.HALT_METER,
    "timestamp_in_future": AfterRefusal.POST_AGAIN,
    "meter_event_customer_not_found": AfterRefusal.PARK,
    "meter_event_no_customer_defined": AfterRefusal.PARK,
    "meter_event_invalid_value": AfterRefusal.PARK,
    "meter_event_value_not_found": AfterRefusal.PARK,
    "meter_event_value_too_many_digits": AfterRefusal.PARK,
    "meter_event_dimension_count_too_high": AfterRefusal.PARK,
    "missing_dimension_payload_keys": AfterRefusal.PARK,
    "timestamp_too_far_in_past": AfterRefusal.PARK,
    str(Situation.PERIOD_OVER): AfterRefusal.HOLD,
}
"""By the code of the report. A code that is not here is parked: posting again would be refused again, for ever."""


def after_refusal(code: str) -> AfterRefusal:
    """What becomes of the chain."""
    return REJECTIONS.get(code, AfterRefusal.PARK)


def parks_successor(code: str) -> bool:
    """Whether the posting that takes a refused one's place must wait for an operator."""
    return after_refusal(code) is AfterRefusal.PARK
