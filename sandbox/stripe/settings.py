"""The knobs of ``/_config``: how the stand-in behaves where Stripe varies or is not documented.

Owns: names, defaults and bounds. Refuses to know: what a knob does.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sandbox.stripe.state import State

# Seconds after each failed delivery: quick at first so that a demo recovers in sight, then Stripe's three days.
_RETRY_DELAYS_SECONDS = (1, 5, 30, 300, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 28 * 3600)


class _Knobs(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WebhookSettings(_Knobs):
    """How events are delivered."""

    delay_ms: int = Field(default=0, ge=0, description="virtual milliseconds before the first attempt")
    reorder_window_ms: int = Field(default=0, ge=0, description="each delivery waits up to this much longer")
    duplicate_per_10_000: int = Field(default=0, ge=0, le=10_000, description="events delivered twice")
    seed: int = Field(default=0, description="chooses which are duplicated and how they are spread")
    retry_delays_seconds: tuple[int, ...] = Field(
        default=_RETRY_DELAYS_SECONDS, description="virtual seconds after each failed attempt; then given up"
    )
    timeout_seconds: int = Field(default=10, ge=1, description="real seconds a receiver may take")
    paused: bool = Field(default=False, description="true keeps deliveries queued")


class MeterSettings(_Knobs):
    """How meter events are taken in and summed up."""

    validation: Literal["sync", "async"] = Field(
        default="sync",
        description="whether bad timestamps, values and archived meters are refused at once (400) or only "
        "reported later; Stripe's own documents differ",
    )
    latency_ms: int = Field(
        default=1, ge=0, description="real milliseconds a call holds its (customer, meter) lock"
    )
    summary_lag_seconds: int = Field(
        default=0, ge=0, description="virtual seconds before an event shows in summaries"
    )
    error_report_window_seconds: int = Field(default=10, ge=1, description="span of one error report")
    error_report_samples: int = Field(default=5, ge=1, description="sample errors listed per code")


class InvoiceSettings(_Knobs):
    """How invoices close."""

    grace_seconds: int = Field(
        default=3600, ge=0, le=72 * 3600, description="draft to finalized, for invoices of a finished period"
    )


class Settings(_Knobs):
    """All knobs."""

    webhooks: WebhookSettings = WebhookSettings()
    meters: MeterSettings = MeterSettings()
    invoices: InvoiceSettings = InvoiceSettings()


def load(state: State) -> Settings:
    """The knobs as stored."""
    return Settings.model_validate(state.setting("config") or {})


def webhook_settings(state: State) -> WebhookSettings:
    """The webhook knobs."""
    return load(state).webhooks


def meter_settings(state: State) -> MeterSettings:
    """The meter knobs."""
    return load(state).meters


def change(state: State, changes: dict[str, dict[str, object]]) -> Settings:
    """Merge changes group by group and store them. Raises pydantic's ``ValidationError`` for a bad knob."""
    merged = load(state).model_dump(mode="json")
    for group, knobs in changes.items():
        merged[group] = {**merged.get(group, {}), **knobs}
    settings = Settings.model_validate(merged)
    state.set_setting("config", settings.model_dump(mode="json"))
    return settings
