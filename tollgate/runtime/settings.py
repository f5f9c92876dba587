"""Settings: what an operator may choose, read once from the environment, all mistakes told at once.

Owns the groups every service shares (Kafka, ledger, HTTP, logs) and the reading of the environment. It refuses
to know what a service does with them. Nothing outside a process' `__main__` calls `load_settings`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

ENV_PREFIX = "TOLLGATE_"
ENV_DELIMITER = "__"


@dataclass(frozen=True, slots=True)
class AlsoFrom:
    """Put in a field's `Annotated[...]`: a conventional variable read when the field's own name is not set."""

    env: str


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


class SettingsGroup(BaseModel):
    """A named group of settings: `TOLLGATE_<GROUP>__<FIELD>`. Unknown names are ignored, values are frozen."""

    model_config = ConfigDict(frozen=True, extra="ignore", validate_default=True, hide_input_in_errors=True)


class KafkaSettings(SettingsGroup):
    """How to reach Kafka, and the prefix that lets several installations share one."""

    bootstrap_servers: Annotated[str, AlsoFrom("KAFKA_BOOTSTRAP_SERVERS")] = Field(
        default="127.0.0.1:9092",
        min_length=1,
        description="Brokers to ask first: host:port, separated by commas.",
    )
    topic_prefix: str = Field(
        default="",
        pattern=r"^[a-zA-Z0-9._-]{0,100}$",
        description="Put in front of every topic and consumer group, so that installations can share a broker.",
    )
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], BeforeValidator(_upper)
    ] = Field(default="PLAINTEXT", description="How connections are encrypted and authenticated.")
    sasl_mechanism: Annotated[Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"], BeforeValidator(_upper)] = (
        Field(default="PLAIN", description="SASL mechanism, used with the SASL_ protocols.")
    )
    sasl_username: str | None = Field(default=None, description="SASL user name.")
    sasl_password: SecretStr | None = Field(default=None, description="SASL password.")
    ssl_ca_file: Path | None = Field(
        default=None,
        description="PEM file of the authorities trusted for the brokers; the system's without it.",
    )
    request_timeout_ms: int = Field(
        default=30_000,
        ge=100,
        description="Milliseconds until one request to a broker, and the delivery of one record, has failed.",
    )

    @model_validator(mode="after")
    def _sasl_needs_credentials(self) -> KafkaSettings:
        if self.security_protocol.startswith("SASL_") and not (self.sasl_username and self.sasl_password):
            raise ValueError(f"{self.security_protocol} needs sasl_username and sasl_password")
        return self

    def topic_name(self, name: str) -> str:
        """The name on the broker of the topic called `name` in the contracts."""
        return self.topic_prefix + name

    def group_name(self, name: str) -> str:
        """The name on the broker of the consumer group called `name`."""
        return self.topic_prefix + name


class LedgerSettings(SettingsGroup):
    """How to reach the ledger's database."""

    url: Annotated[SecretStr, AlsoFrom("DATABASE_URL")] = Field(
        default=SecretStr("sqlite:///./tollgate.sqlite3"),
        description="SQLAlchemy URL: postgresql://user:password@host/name, or sqlite:///file for one host.",
    )
    pool_size: int = Field(
        default=5,
        ge=1,
        le=1000,
        description="Connections this process keeps at most (PostgreSQL). Every process has its own pool.",
    )
    statement_timeout_ms: int = Field(
        default=30_000,
        ge=0,
        description="Milliseconds after which PostgreSQL gives up a statement; 0 waits for ever.",
    )


class HttpSettings(SettingsGroup):
    """Where this process listens: its own routes, health and metrics."""

    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on. Loopback unless chosen otherwise: metrics and health carry no password.",
    )
    port: int = Field(
        default=0, ge=0, le=65_535, description="TCP port to listen on; 0 takes any free one and logs which."
    )


class LogSettings(SettingsGroup):
    """What is logged, and how it looks."""

    level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = Field(
        default="info", description="The least severe level that is written."
    )
    format: Annotated[Literal["auto", "json", "console"], BeforeValidator(_lower)] = Field(
        default="auto", description="auto: text on a terminal, one JSON object a line otherwise."
    )
    no_color: Annotated[str, AlsoFrom("NO_COLOR")] = Field(
        default="",
        description="Any text turns colours off (https://no-color.org). They are off in pipes anyway.",
    )


class ServiceSettings(BaseSettings):
    """What every service can be told. A service adds its own groups and overrides defaults in a subclass:

    `http: HttpSettings = Field(default=HttpSettings(port=8600), description=...)`. A group given in part in the
    environment keeps the rest of that default.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_DELIMITER,
        # A compose file passes a variable that is not set as an empty one.
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        nested_model_default_partial_update=True,
        validate_default=True,
    )

    kafka: KafkaSettings = Field(default=KafkaSettings(), description="Kafka.")
    ledger: LedgerSettings = Field(default=LedgerSettings(), description="The ledger's database.")
    http: HttpSettings = Field(default=HttpSettings(), description="Where this service listens.")
    log: LogSettings = Field(default=LogSettings(), description="Logs.")
    shutdown_seconds: float = Field(
        default=20.0,
        gt=0,
        description="Seconds from SIGTERM until the process is ended by force. Keep it under the supervisor's "
        "own grace period (Kubernetes: 30).",
    )
    ephemeral: bool = Field(
        default=False,
        description="The broker forgets on restart and knows no idempotent producer (the sandbox's embedded "
        "broker). Never with a ledger that is kept.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order of trust: what the caller says, our own names, the conventional names. No files."""
        return init_settings, _Environment(settings_cls), _ConventionalNames(settings_cls)


class _Environment(EnvSettingsSource):
    """Reads the environment; text that is no JSON stays text, for validation to name with all other mistakes."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


class _ConventionalNames(PydanticBaseSettingsSource):
    """Reads the variables named by `AlsoFrom`."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path, field in leaves(self.settings_cls):
            for also in also_from(field):
                value = os.environ.get(also)
                if value:
                    group = found
                    for name in path[:-1]:
                        group = group.setdefault(name, {})
                    group[path[-1]] = value
        return found


S = TypeVar("S", bound=ServiceSettings)


def load_settings(cls: type[S], **overrides: Any) -> S:
    """Settings from the environment, `overrides` (field=value, groups as dicts) winning over it.

    On mistakes prints every one of them to stderr, a line each with the variable's name and never its value,
    and raises SystemExit(2).
    """
    try:
        return cls(**overrides)
    except ValidationError as error:
        also = {path: also_from(field) for path, field in leaves(cls)}
        for mistake in error.errors(include_url=False, include_input=False):
            path = tuple(str(part) for part in mistake["loc"])
            name = " or ".join([env_name(path), *also.get(path, ())])
            sys.stderr.write(f"{name}: {mistake['msg']}\n")
        raise SystemExit(2) from None


def env_name(path: tuple[str, ...]) -> str:
    """The variable that sets the field at `path`."""
    return ENV_PREFIX + ENV_DELIMITER.join(path).upper()


def also_from(field: FieldInfo) -> list[str]:
    """The conventional variables that set `field` too."""
    return [entry.env for entry in field.metadata if isinstance(entry, AlsoFrom)]


def leaves(
    model: type[BaseModel], parents: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Each field that is no group, with the names that lead to it."""
    for name, field in model.model_fields.items():
        path = (*parents, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, SettingsGroup):
            yield from leaves(field.annotation, path)
        else:
            yield path, field
