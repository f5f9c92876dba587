"""Settings of this service. Owns their names, units and defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, SecretStr, field_validator

from services.ingest.capture import parse_capture
from tollgate.runtime.settings import HttpSettings, ServiceSettings

_MIB = 1024 * 1024


def _split(value: object) -> object:
    """`a,b` -> `("a", "b")`: lists are easier to write with commas than as JSON."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Words = Annotated[tuple[str, ...], BeforeValidator(_split)]


class IngestSettings(ServiceSettings):
    """What ingest can be told, beyond what every service can."""

    http: HttpSettings = Field(default=HttpSettings(port=8600), description="Where ingest listens.")
    name: str = Field(
        default="ingest",
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="Name of this instance; every start adds a random part of its own.",
    )
    id_seed: SecretStr = Field(
        min_length=16,
        description="Secret by which event ids are hashed, 16 characters or more. The same on every instance, for ever: "
        "with another one every retry would be counted twice.",
    )
    key_seed: SecretStr = Field(
        min_length=16,
        description="Secret by which API keys are hashed, 16 characters or more. The same on every instance: with another "
        "one the holder of a key becomes another account.",
    )
    capture: Words = Field(
        default=(),
        description="Properties kept of each event, separated by commas: header:NAME, response_header:NAME, query:NAME, "
        "body:PATH and request_body:PATH (Moesif), metadata:PATH (Moesif), data:PATH (CloudEvents), each with =NAME "
        "for another name. Nothing else of a call is kept.",
    )
    api_key_headers: Words = Field(
        default=("apikey",),
        description="Request headers that may hold the caller's API key, which is kept as a keyed hash.",
    )
    api_key_queries: Words = Field(
        default=("apikey",),
        description="Query parameters that may hold the caller's API key, which is kept as a keyed hash.",
    )
    untrusted_id_sources: Words = Field(
        default=(),
        description="Names of sources whose Moesif transaction_id is not believed, since their callers can write it "
        "(browsers). A server SDK makes its own.",
    )
    snapshot_path: Path = Field(
        default=Path("tollgate-sources.json"),
        description="File that holds the hashed tokens of the last run, so that ingest starts while the ledger is down.",
    )
    tokens_refresh_seconds: float = Field(
        default=3.0,
        gt=0,
        le=3600,
        description="Seconds between two readings of the tokens: how long a revoked one still works.",
    )
    body_bytes_max: int = Field(
        default=16 * _MIB, ge=1024, description="Largest body accepted, in bytes as sent."
    )
    inflated_bytes_max: int = Field(
        default=64 * _MIB, ge=1024, description="Largest body accepted, in bytes after decompression."
    )
    body_timeout_seconds: float = Field(
        default=30.0, gt=0, description="Seconds a sender has to send the whole of a body."
    )
    unacknowledged_bytes_max: int = Field(
        default=256 * _MIB,
        ge=_MIB,
        description="Bytes held that the broker has not acknowledged, above which requests are answered 503.",
    )
    group_commit_ms: float = Field(
        default=4.0,
        ge=0,
        le=1000,
        description="Milliseconds an event waits for others to share its record.",
    )
    group_commit_max_ms: float = Field(
        default=12.0,
        ge=0,
        le=1000,
        description="Milliseconds an event may wait while many others keep coming. Larger records cost less here, in "
        "the broker and in the meter; no longer than group_commit_ms switches it off.",
    )
    group_commit_rows: int = Field(
        default=4096, ge=1, description="Events waiting, above which nobody waits any longer."
    )
    answer_timeout_seconds: float = Field(
        default=8.0,
        gt=0,
        description="Seconds without an acknowledgement until a request is answered 503. Below the ten seconds after "
        "which Kong gives up and sends again anyway.",
    )

    @field_validator("capture")
    @classmethod
    def _capture_can_be_read(cls, capture: tuple[str, ...]) -> tuple[str, ...]:
        parse_capture(capture)
        return capture
