"""What happens to one API request, from its bytes to its answer.

Owns: the order of authentication, faults, idempotency, locks, execution and commit. Refuses to know: sockets, and
what any endpoint does.
"""

import asyncio
import json
import re
from base64 import b64decode
from binascii import Error as Base64Error
from dataclasses import dataclass

from sandbox.stripe import faults, idempotency, schedule
from sandbox.stripe.clock import VirtualClock
from sandbox.stripe.errors import (
    JsonObject,
    Refusal,
    bad_api_key,
    expired_api_key,
    forbidden,
    invalid,
    key_in_flight,
    lock_timeout,
    no_api_key,
    rate_limited,
    server_error,
    unrecognised_url,
)
from sandbox.stripe.expansion import expand
from sandbox.stripe.forms import decode_form
from sandbox.stripe.idempotency import Answer
from sandbox.stripe.meters import find_meter_of
from sandbox.stripe.params import Params
from sandbox.stripe.routes import Route, find_route
from sandbox.stripe.settings import meter_settings
from sandbox.stripe.state import State, new_id
from sandbox.stripe.turns import Call, Turn
from sandbox.stripe.versions import LATEST, check_version

_TEST_KEY = re.compile(r"^(sk|rk)_test_[A-Za-z0-9_]+$")
_UNMATCHED = "(unrecognized)"


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came: header names in lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


class Dropped(Exception):
    """The connection must be closed without an answer."""


@dataclass(slots=True)
class _Work:
    """A request that passed its checks and is about to be executed."""

    request: Request
    request_id: str
    version: str
    route: Route
    ids: tuple[str, ...]
    values: dict[str, object]
    key: str | None
    fingerprint: str
    fault: faults.Rule | None


class Api:
    """Answers API requests, one transaction each. State in the process: only which keys and meters are in use."""

    def __init__(self, state: State, clock: VirtualClock) -> None:
        self._state = state
        self._clock = clock
        self._keys_in_flight: set[str] = set()
        self._meters_locked: set[tuple[str, str]] = set()

    async def answer(self, request: Request) -> Answer:
        """The answer to a request, committed. Raises ``Dropped`` where a fault forbids one.

        1. Identify: key, version, endpoint, parameters.  2. Meet the faults that strike before execution.
        3. Claim the idempotency key and the (customer, meter).  4. Execute in one transaction.
        """
        request_id = new_id("req")
        route_path = _UNMATCHED
        try:
            version = check_version(request.headers.get("stripe-version") or LATEST)
            found = find_route(request.method, request.path, version)
            route_path = _UNMATCHED if found is None else found[0].path
            _authenticate(request.headers)
            if found is None:
                raise unrecognised_url(request.method, request.path)
            route, ids = found
            values = _decode(request)
            customer, event_name = self._subject(ids, values)
            fault, delay_ms = faults.strike(self._state, request.method, request.path, customer, event_name)
            work = _Work(request, request_id, version, route, ids, values, _key(request), "", fault)
            work.fingerprint = idempotency.fingerprint(request.method, request.path, values)
            self._strike_before(work)
            return await self._executed(work, (customer, event_name), delay_ms)
        except Refusal as refusal:
            self._tally(request.method, route_path, _outcome(refusal.status, refusal.code))
            return _addressed(
                Answer(refusal.status, refusal.headers, json.dumps(refusal.body())), request_id, request
            )

    async def _executed(self, work: _Work, subject: tuple[str | None, str | None], delay_ms: int) -> Answer:
        """Execute; after ``drop_after`` whatever came out is not answered."""
        drops = work.fault is not None and work.fault.kind == "drop_after"
        try:
            answer = await self._claimed(work, subject, delay_ms)
        except Refusal:
            if not drops:
                raise
            self._tally(work.route.method, work.route.path, "dropped_after")
            raise Dropped from None
        if drops:
            raise Dropped
        return _addressed(answer, work.request_id, work.request)

    def _strike_before(self, work: _Work) -> None:
        """Act out the faults that leave no effect."""
        rule = work.fault
        if rule is None:
            return
        if rule.kind == "drop_before":
            self._tally(work.route.method, work.route.path, "dropped_before")
            raise Dropped
        if rule.kind == "unauthorized_401":
            raise expired_api_key()
        if rule.kind == "forbidden_403":
            raise forbidden()
        if rule.kind == "rate_limit_429":
            raise rate_limited(rule.reason or "global-rate", rule.should_retry)
        if rule.kind == "lock_timeout":
            raise lock_timeout(rule.should_retry)
        if rule.kind == "conflict_409":
            raise key_in_flight(work.key or "")
        if rule.kind == "error_500_before":
            refusal = server_error()
            if work.key is not None and rule.keeps_500:
                with self._state.transaction():
                    self._keep(work, Answer(refusal.status, {}, json.dumps(refusal.body())))
            raise refusal

    async def _claimed(self, work: _Work, subject: tuple[str | None, str | None], delay_ms: int) -> Answer:
        """Hold the idempotency key and the (customer, meter) while the call is executed."""
        if work.key is not None:
            if work.key in self._keys_in_flight:
                raise key_in_flight(work.key)
            kept = idempotency.kept(self._state, work.key, work.fingerprint, self._clock.now_ms())
            if kept is not None:
                self._tally(work.route.method, work.route.path, "replayed")
                replayed = {**kept.headers, "Idempotent-Replayed": "true"}
                return Answer(kept.status, replayed, kept.body)
            self._keys_in_flight.add(work.key)
        customer, event_name = subject
        lock = (customer, event_name) if customer is not None and event_name is not None else None
        try:
            if not work.route.locks_meter or lock is None:
                lock = None
            elif lock in self._meters_locked:
                raise lock_timeout()
            else:
                self._meters_locked.add(lock)
            try:
                latency_ms = meter_settings(self._state).latency_ms if lock is not None else 0
                if latency_ms + delay_ms > 0:
                    await asyncio.sleep((latency_ms + delay_ms) / 1000)
                return self._execute(work)
            finally:
                if lock is not None:
                    self._meters_locked.discard(lock)
        finally:
            if work.key is not None:
                self._keys_in_flight.discard(work.key)

    def _execute(self, work: _Work) -> Answer:
        """Run the endpoint and keep its answer, together or not at all."""
        now_ms = self._clock.now_ms()
        if schedule.is_due(self._state, now_ms):
            with self._state.transaction():
                schedule.run_due(self._state, now_ms)
        turn = Turn(self._state, now_ms, work.request_id, work.key)
        paths = Params(work.values).texts("expand")
        call = Call(work.request.path, work.ids, Params(work.values), work.version)
        try:
            with self._state.transaction():
                body = expand(turn, work.route.handler(turn, call), paths, work.version)
                answer = Answer(200, {}, json.dumps(body))
                if work.fault is not None and work.fault.kind == "error_500_after":
                    answer = Answer(500, {}, json.dumps(server_error().body()))
                    if work.fault.keeps_500:
                        self._keep(work, answer)
                else:
                    self._keep(work, answer)
                # In the same transaction, since a second commit would double the cost of a meter event.
                drops = work.fault is not None and work.fault.kind == "drop_after"
                outcome = "dropped_after" if drops else _outcome(answer.status, None)
                self._state.count_request(work.route.method, work.route.path, outcome)
        except Refusal as refusal:
            if refusal.executed:
                kept = Answer(refusal.status, refusal.headers, json.dumps(refusal.body()))
                with self._state.transaction():
                    self._keep(work, kept)
            raise
        return answer

    def _keep(self, work: _Work, answer: Answer) -> None:
        """Keep an answer under the request's key, with the id of the request that made it."""
        if work.key is not None and work.request.method == "POST":
            headers = {**answer.headers, "Original-Request": work.request_id}
            idempotency.keep(
                self._state,
                work.key,
                work.fingerprint,
                self._clock.now_ms(),
                Answer(answer.status, headers, answer.body),
            )

    def _tally(self, method: str, path: str, outcome: str) -> None:
        with self._state.transaction():
            self._state.count_request(method, path, outcome)

    def _subject(self, ids: tuple[str, ...], values: dict[str, object]) -> tuple[str | None, str | None]:
        """The customer and the event name a request is about, where it has them."""
        customer = values.get("customer")
        event_name = values.get("event_name")
        payload = values.get("payload")
        if isinstance(payload, dict) and isinstance(event_name, str):
            meter = find_meter_of(self._state_turn(), event_name)
            key = "stripe_customer_id" if meter is None else meter["customer_mapping"]["event_payload_key"]
            customer = payload.get(key)
        elif customer is None and ids and ids[0].startswith("cus_"):
            customer = ids[0]
        return (
            customer if isinstance(customer, str) else None,
            event_name if isinstance(event_name, str) else None,
        )

    def _state_turn(self) -> Turn:
        return Turn(self._state, self._clock.now_ms())


def _authenticate(headers: dict[str, str]) -> None:
    """Accept any test key, by Bearer or as the user of Basic; refuse everything else, live keys above all."""
    scheme, _, credential = headers.get("authorization", "").partition(" ")
    key = ""
    if scheme.lower() == "bearer":
        key = credential.strip()
    elif scheme.lower() == "basic":
        try:
            key = b64decode(credential, validate=True).decode("latin-1").partition(":")[0]
        except (Base64Error, ValueError):
            key = ""
    if not key:
        raise no_api_key()
    if not _TEST_KEY.match(key):
        raise bad_api_key(key)


def _key(request: Request) -> str | None:
    """The idempotency key of a POST; other methods ignore it."""
    key = request.headers.get("idempotency-key")
    if not key or request.method != "POST":
        return None
    if len(key) > idempotency.KEY_LENGTH_MAX:
        raise invalid(f"Idempotency keys may be at most {idempotency.KEY_LENGTH_MAX} characters long.")
    return key


def _decode(request: Request) -> dict[str, object]:
    """Parameters from query and body: forms for v1, JSON for v2."""
    values = decode_form(request.query) if request.query else {}
    if not request.body:
        return values
    if not request.path.startswith("/v2/"):
        try:
            return values | decode_form(request.body.decode())
        except UnicodeDecodeError as error:
            raise invalid("Invalid request: the body is not UTF-8.") from error
    try:
        decoded = json.loads(request.body)
    except ValueError as error:
        raise invalid(f"Invalid request: the body is not JSON ({error}).") from error
    if not isinstance(decoded, dict):
        raise invalid("Invalid request: the body must be a JSON object.")
    return values | decoded


def _outcome(status: int, code: str | None) -> str:
    return str(status) if code is None else f"{status} {code}"


def _addressed(answer: Answer, request_id: str, request: Request) -> Answer:
    """Add the headers every answer has."""
    headers = {
        "Request-Id": request_id,
        "Stripe-Version": request.headers.get("stripe-version") or LATEST,
        **answer.headers,
    }
    key = request.headers.get("idempotency-key")
    if key:
        headers["Idempotency-Key"] = key
    return Answer(answer.status, headers, answer.body)


def account_of(state: State, now_seconds: int) -> JsonObject:
    """Make sure the state file is an account; its id never changes."""
    if state.setting("account_id") is None:
        state.set_setting("account_id", new_id("acct").replace("acct_", "acct_1", 1)[:21])
        state.set_setting("account_created", now_seconds)
    return {"id": state.setting("account_id")}
