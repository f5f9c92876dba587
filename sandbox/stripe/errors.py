"""How Stripe says no: every refusal the stand-in can answer, in Stripe's own JSON shape.

Owns: statuses, types, codes and messages. Refuses to know: why a request was refused.
"""

from typing import Any

JsonObject = dict[str, Any]

_DOCS = "https://stripe.com/docs/api"


class Refusal(Exception):
    """An answer with an error body.

    ``executed`` says that the endpoint had begun its work: only then is the answer kept under the request's
    idempotency key. Validation failures, conflicts and rate limits are answered before that point.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        error_type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        executed: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.error_type = error_type
        self.code = code
        self.param = param
        self.headers = headers or {}
        self.executed = executed

    def body(self) -> JsonObject:
        """Stripe's error object; fields that do not apply are absent, as they are at Stripe."""
        error: JsonObject = {"message": self.message, "type": self.error_type}
        if self.code is not None:
            error["code"] = self.code
            error["doc_url"] = f"https://stripe.com/docs/error-codes/{self.code.replace('_', '-')}"
        if self.param is not None:
            error["param"] = self.param
        return {"error": error}


def invalid(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """A request refused by validation, before anything was executed: never kept under an idempotency key."""
    return Refusal(400, message, param=param, code=code)


def refused(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """A request that was well formed but that the present state forbids: kept under the idempotency key."""
    return Refusal(400, message, param=param, code=code, executed=True)


def no_such(noun: str, object_id: str, param: str = "id") -> Refusal:
    """The object named in the path does not exist."""
    return Refusal(404, f"No such {noun}: '{object_id}'", code="resource_missing", param=param, executed=True)


def no_such_reference(noun: str, object_id: str, param: str) -> Refusal:
    """The object named by a parameter does not exist: Stripe answers 400 for these."""
    return Refusal(400, f"No such {noun}: '{object_id}'", code="resource_missing", param=param, executed=True)


def missing_parameter(param: str) -> Refusal:
    """A required parameter is absent."""
    return invalid(f"Missing required param: {param}.", param, "parameter_missing")


def unknown_parameter(param: str) -> Refusal:
    """A parameter Stripe, or this stand-in, does not know."""
    return invalid(f"Received unknown parameter: {param}", param, "parameter_unknown")


def unrecognised_url(method: str, path: str) -> Refusal:
    """No endpoint at this address (in this API version)."""
    return Refusal(
        404,
        f"Unrecognized request URL ({method}: {path}). If you are trying to list objects, remove the "
        f"trailing slash. If you are trying to retrieve an object, make sure you passed a valid (non-empty) "
        f"identifier in your code. Please see {_DOCS}.",
    )


def no_api_key() -> Refusal:
    """The request carries no key at all."""
    return Refusal(
        401,
        "You did not provide an API key. You need to provide your API key in the Authorization header, "
        "using Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY').",
        headers={"WWW-Authenticate": 'Bearer realm="Stripe"'},
    )


def bad_api_key(key: str) -> Refusal:
    """The key is not one of this account's test keys; all but its ends is masked, as Stripe does."""
    masked = f"{key[:8]}{'*' * max(4, len(key) - 12)}{key[-4:]}" if len(key) > 12 else "*" * len(key)
    return Refusal(
        401, f"Invalid API Key provided: {masked}", headers={"WWW-Authenticate": 'Bearer realm="Stripe"'}
    )


def expired_api_key() -> Refusal:
    """The key was revoked."""
    return Refusal(401, "Expired API Key provided.", code="api_key_expired")


def forbidden() -> Refusal:
    """A restricted key that lacks the scope for this endpoint."""
    return Refusal(
        403,
        "The provided key does not have the required permissions for this endpoint on this account.",
        code="more_permissions_required_for_application",
    )


def rate_limited(reason: str | None, should_retry: bool | None) -> Refusal:
    """Too many requests; ``reason`` becomes ``Stripe-Rate-Limited-Reason``."""
    headers: dict[str, str] = {}
    if reason is not None:
        headers["Stripe-Rate-Limited-Reason"] = reason
    if should_retry is not None:
        headers["Stripe-Should-Retry"] = "true" if should_retry else "false"
    return Refusal(
        429,
        "Request rate limit exceeded. You can learn more about rate limits here "
        "https://stripe.com/docs/rate-limits.",
        code="rate_limit",
        headers=headers,
    )


def lock_timeout(should_retry: bool | None = None) -> Refusal:
    """Another request holds the object; unlike a rate limit there is no reason header."""
    headers = {} if should_retry is None else {"Stripe-Should-Retry": "true" if should_retry else "false"}
    return Refusal(
        429,
        "This object cannot be accessed right now because another API request or Stripe process is currently "
        "accessing it. If you see this error intermittently, retry the request.",
        code="lock_timeout",
        headers=headers,
    )


def key_in_flight(key: str) -> Refusal:
    """A request with the same idempotency key has not been answered yet."""
    return Refusal(
        409,
        f"There is currently another in-progress request using this Stripe-Idempotent-Key (that probably means "
        f"you submitted twice, and the other request is still going through): {key}. If you're sure no such "
        f"request is currently in progress, try again with a different key.",
        code="idempotency_key_in_use",
    )


def key_reused(key: str) -> Refusal:
    """The idempotency key was first used with another endpoint or other parameters."""
    return Refusal(
        400,
        f"Keys for idempotent requests can only be used with the same parameters they were first used with. "
        f"Try using a key other than '{key}' if you meant to execute a different request.",
        error_type="idempotency_error",
    )


def duplicate_identifier(identifier: str) -> Refusal:
    """A meter event with this identifier was received within the last 24 hours."""
    return Refusal(
        400,
        f"An event already exists with identifier {identifier}.",
        headers={"Stripe-Should-Retry": "false"},
        executed=True,
    )


def server_error() -> Refusal:
    """Stripe itself failed."""
    return Refusal(
        500,
        "An unknown error occurred. Please contact support@stripe.com if this error persists.",
        error_type="api_error",
    )
