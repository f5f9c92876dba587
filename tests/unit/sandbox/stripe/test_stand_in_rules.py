"""Faults, keys, versions, virtual time and signatures, without a server."""

from collections.abc import Iterator

import pytest
import stripe

from sandbox.stripe import faults, idempotency
from sandbox.stripe.clock import VirtualClock
from sandbox.stripe.delivery import signature_header
from sandbox.stripe.errors import Refusal
from sandbox.stripe.faults import Match, Rule
from sandbox.stripe.idempotency import Answer
from sandbox.stripe.state import State
from sandbox.stripe.versions import LATEST, render
from tollgate.runtime.clock import ManualClock


@pytest.fixture
def state() -> Iterator[State]:
    """An empty state in memory."""
    opened = State(":memory:")
    yield opened
    opened.close()


def test_a_rule_matches_by_every_field_it_names() -> None:
    """Method, path, customer and event name all have to fit."""
    match = Match(method="post", path="meter_events$", customer="cus_1", event_name="m")
    rule = Rule(kind="delay", match=match)
    assert rule.matches("POST", "/v1/billing/meter_events", "cus_1", "m")
    for request in (
        ("GET", "/v1/billing/meter_events", "cus_1", "m"),
        ("POST", "/v1/customers", "cus_1", "m"),
        ("POST", "/v1/billing/meter_events", "cus_2", "m"),
        ("POST", "/v1/billing/meter_events", "cus_1", None),
    ):
        assert not rule.matches(*request)


def test_times_and_skip_choose_the_hits(state: State) -> None:
    """Two hits after the first match, then none."""
    faults.add(state, Rule(kind="drop_before", times=2, skip=1))
    struck = [faults.strike(state, "GET", "/", None, None)[0] is not None for _ in range(5)]
    assert struck == [False, True, True, False, False]
    [rule] = faults.listed(state)
    assert (rule["matched"], rule["hits"]) == (5, 2)


def test_delays_add_up_beside_the_first_other_fault(state: State) -> None:
    """Every delay is suffered; of the others the first wins and the second is not used up."""
    for rule in (
        Rule(kind="delay", delay_ms=5),
        Rule(kind="conflict_409"),
        Rule(kind="delay", delay_ms=7),
        Rule(kind="drop_before"),
    ):
        faults.add(state, rule)
    chosen, delay_ms = faults.strike(state, "GET", "/", None, None)
    assert chosen is not None
    assert (chosen.kind, delay_ms) == ("conflict_409", 12)
    assert [rule["hits"] for rule in faults.listed(state)] == [1, 1, 1, 0]


def test_kept_answers_expire_and_belong_to_their_request(state: State) -> None:
    """Within 24 hours the answer comes back to its own request only."""
    answer = Answer(500, {"A": "b"}, "{}")
    idempotency.keep(state, "k", "request", 1000, answer)
    last_ms = 1000 + idempotency.KEPT_MS - 1
    assert idempotency.kept(state, "k", "request", last_ms) == answer
    assert idempotency.kept(state, "k", "request", last_ms + 1) is None
    with pytest.raises(Refusal) as caught:
        idempotency.kept(state, "k", "other", 1000)
    assert caught.value.error_type == "idempotency_error"


def test_fingerprint_ignores_order_only() -> None:
    """The same parameters in another order are the same request; any difference is not."""
    first = idempotency.fingerprint("POST", "/p", {"a": "1", "b": "2"})
    assert first == idempotency.fingerprint("POST", "/p", {"b": "2", "a": "1"})
    assert first != idempotency.fingerprint("POST", "/p", {"a": "1", "b": "3"})
    assert first != idempotency.fingerprint("POST", "/q", {"a": "1", "b": "2"})


def test_private_fields_are_never_shown() -> None:
    """A leading underscore hides a field, at any depth."""
    body = {"object": "x", "_a": 1, "b": [{"_c": 2, "d": 3}]}
    assert render(body, LATEST) == {"object": "x", "b": [{"d": 3}]}


def test_virtual_time_flows_jumps_and_freezes(state: State) -> None:
    """It follows real time at an offset, stands still when frozen, and is kept."""
    real = ManualClock(1_000_000)
    clock = VirtualClock(real, state)
    clock.move(now_seconds=None, advance_seconds=50, real=False, frozen=None)
    real.advance_ms(7)
    assert clock.now_ms() == 1_050_007
    clock.move(now_seconds=2000, advance_seconds=None, real=False, frozen=True)
    real.advance_ms(500)
    assert clock.now_ms() == 2_000_000
    assert VirtualClock(real, state).now_ms() == 2_000_000
    clock.move(now_seconds=None, advance_seconds=None, real=False, frozen=False)
    real.advance_ms(3)
    assert clock.now_ms() == 2_000_003
    assert clock.real_seconds() == 1000


def test_virtual_time_does_not_go_back(state: State) -> None:
    """Only ``real`` returns to real time, once something exists that a step back would date in the future."""
    real = ManualClock(1_000_000)
    clock = VirtualClock(real, state)
    clock.move(now_seconds=5000, advance_seconds=None, real=False, frozen=True)
    clock.move(now_seconds=4000, advance_seconds=None, real=False, frozen=None)
    assert clock.now_ms() == 4_000_000
    state.insert("customer", {"id": "cus_1", "created": 4000})
    with pytest.raises(Refusal):
        clock.move(now_seconds=3999, advance_seconds=None, real=False, frozen=None)
    clock.move(now_seconds=None, advance_seconds=None, real=True, frozen=None)
    assert clock.now_ms() == 1_000_000


def test_signatures_are_stripes() -> None:
    """The SDK verifies a header made with several secrets by any of them, and by no other."""
    header = signature_header(["whsec_new", "whsec_old"], 1_700_000_000, '{"a":1}')
    for secret in ("whsec_new", "whsec_old"):
        assert stripe.WebhookSignature.verify_header('{"a":1}', header, secret, None)
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.WebhookSignature.verify_header('{"a":1}', header, "whsec_other", None)


def test_a_transaction_is_whole_or_nothing(state: State) -> None:
    """An exception leaves no trace."""

    def stopped_half_way() -> None:
        with state.transaction():
            state.set_setting("a", 1)
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        stopped_half_way()
    assert state.setting("a") is None


class _EagerClock(ManualClock):
    """A clock that is a millisecond further at every look."""

    def now_ms(self) -> int:
        self.advance_ms(1)
        return super().now_ms()


def test_letting_a_flowing_clock_flow_is_not_going_back(state: State) -> None:
    """Time passes between two looks; a call that moves nothing must not be refused for it."""
    state.insert("customer", {"id": "cus_1", "created": 1})
    clock = VirtualClock(_EagerClock(1_000_000), state)
    before = clock.now_ms()
    clock.move(now_seconds=None, advance_seconds=None, real=False, frozen=False)
    assert clock.now_ms() > before
