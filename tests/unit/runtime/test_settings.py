"""Settings: read once, layered in a known order, wrong ones told all at once and without their values."""

from __future__ import annotations

import pytest
from pydantic import Field, SecretStr, ValidationError

from tollgate.runtime.settings import (
    HttpSettings,
    KafkaSettings,
    ServiceSettings,
    SettingsGroup,
    load_settings,
)
from tollgate.runtime.settings_docs import describe_settings, render_env, render_markdown


class GateSettings(SettingsGroup):
    """A service's own group, as a service would write it."""

    token: SecretStr = Field(description="Opens the gate.")
    routes: list[str] = Field(default=["a", "b"], description="Which routes.")


class GateService(ServiceSettings):
    """A service's own settings: a port of its own, a group with something required."""

    http: HttpSettings = Field(default=HttpSettings(port=8600), description="Where the gate listens.")
    gate: GateSettings = Field(description="The gate.")


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


def test_defaults_listen_on_loopback() -> None:
    """With nothing set, a service listens on loopback and reaches for local parts."""
    settings = load_settings(ServiceSettings)
    assert settings.http.host == "127.0.0.1"
    assert settings.kafka.bootstrap_servers == "127.0.0.1:9092"
    assert settings.ledger.url.get_secret_value() == "sqlite:///./tollgate.sqlite3"
    assert not settings.ephemeral


def test_layers_win_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the caller says beats our own variable, which beats the conventional one, which beats the default."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "conventional:1")
    assert load_settings(ServiceSettings).kafka.bootstrap_servers == "conventional:1"
    monkeypatch.setenv("TOLLGATE_KAFKA__BOOTSTRAP_SERVERS", "own:1")
    assert load_settings(ServiceSettings).kafka.bootstrap_servers == "own:1"
    told = load_settings(ServiceSettings, kafka={"bootstrap_servers": "told:1"})
    assert told.kafka.bootstrap_servers == "told:1"


def test_groups_are_filled_from_several_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group given in part keeps the rest, from a service's own default too."""
    monkeypatch.setenv("TOLLGATE_HTTP__HOST", "0.0.0.0")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "broker:9")
    settings = load_settings(GateService, gate={"token": "t"}, kafka={"topic_prefix": "x."})
    assert (settings.http.host, settings.http.port) == ("0.0.0.0", 8600)
    assert (settings.kafka.bootstrap_servers, settings.kafka.topic_name("gate")) == ("broker:9", "x.gate")


def test_empty_and_unknown_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable is one that is not set, and other services' variables disturb nobody."""
    monkeypatch.setenv("DATABASE_URL", "")
    monkeypatch.setenv("TOLLGATE_HTTP__PORT", "")
    monkeypatch.setenv("TOLLGATE_ELSEWHERE__X", "1")
    settings = load_settings(ServiceSettings)
    assert (settings.http, settings.ledger.url.get_secret_value()) == (
        HttpSettings(port=0),
        "sqlite:///./tollgate.sqlite3",
    )


def test_all_mistakes_are_told_at_once_without_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every mistake is one line naming its variable, no line shows a value, and the exit code is 2."""
    monkeypatch.setenv("TOLLGATE_HTTP__PORT", "s3cret1")
    monkeypatch.setenv("TOLLGATE_KAFKA__REQUEST_TIMEOUT_MS", "s3cret2")
    monkeypatch.setenv("TOLLGATE_LOG", "s3cret3 is no JSON")
    monkeypatch.setenv("TOLLGATE_GATE__ROUTES", "s3cret4 is no JSON")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "fine:1")
    with pytest.raises(SystemExit) as stop:
        load_settings(GateService)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.split(": ")[0] for line in lines) == [
        "TOLLGATE_GATE__ROUTES",
        "TOLLGATE_GATE__TOKEN",
        "TOLLGATE_HTTP__PORT",
        "TOLLGATE_KAFKA__REQUEST_TIMEOUT_MS",
        "TOLLGATE_LOG",
    ]
    assert "s3cret" not in "\n".join(lines)


def test_mistake_names_the_conventional_variable_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where two variables set a field, a mistake names both."""
    with pytest.raises(SystemExit):
        load_settings(ServiceSettings, kafka={"bootstrap_servers": ""})
    assert capsys.readouterr().err.startswith(
        "TOLLGATE_KAFKA__BOOTSTRAP_SERVERS or KAFKA_BOOTSTRAP_SERVERS: "
    )


def test_sasl_needs_credentials() -> None:
    """Authentication without a user and a password is refused at the start, not by the broker."""
    with pytest.raises(ValidationError, match="needs sasl_username and sasl_password"):
        KafkaSettings(security_protocol="SASL_SSL")
    assert KafkaSettings.model_validate({"security_protocol": "ssl"}).security_protocol == "SSL"


def test_settings_are_frozen_and_keep_secrets_out_of_text() -> None:
    """Nothing changes after the start, and printing settings shows no password."""
    settings = load_settings(ServiceSettings, ledger={"url": "postgresql://u:hidden@h/d"})
    with pytest.raises(ValidationError, match="frozen"):
        settings.kafka.topic_prefix = "y"
    assert "hidden" not in f"{settings} {settings!r}"


def test_every_setting_is_described() -> None:
    """Every setting has a name, a type in words, a default and a meaning."""
    documented = {each.env: each for each in describe_settings(GateService)}
    assert documented["TOLLGATE_HTTP__PORT"].default == "8600"
    assert documented["TOLLGATE_GATE__TOKEN"].default is None
    assert documented["TOLLGATE_GATE__TOKEN"].secret
    assert documented["TOLLGATE_GATE__ROUTES"].type == "JSON list of text"
    assert documented["TOLLGATE_LOG__LEVEL"].type == "one of debug, info, warning, error"
    assert documented["TOLLGATE_KAFKA__SASL_PASSWORD"].type == "secret text"
    assert documented["TOLLGATE_LEDGER__URL"].also == ("DATABASE_URL",)


def test_undescribed_setting_is_refused() -> None:
    """A setting without a description cannot be documented."""

    class Silent(ServiceSettings):
        mystery: int = 0

    with pytest.raises(ValueError, match="mystery has no description"):
        describe_settings(Silent)


def test_documents_show_what_a_service_changes_only() -> None:
    """Shared settings appear once; a service's section holds its own and its other defaults."""
    shared, own = describe_settings(ServiceSettings), describe_settings(GateService)
    markdown = render_markdown(shared, {"gate": own, "nothing new": shared})
    assert markdown.count("TOLLGATE_KAFKA__TOPIC_PREFIX") == 1
    assert markdown.count("TOLLGATE_HTTP__PORT") == 2
    assert "| `TOLLGATE_GATE__TOKEN` | secret text | required | Opens the gate. |" in markdown
    assert "nothing new" not in markdown


def test_example_file_changes_nothing() -> None:
    """Every line of the example file is a comment or empty."""
    example = render_env(describe_settings(ServiceSettings), {"gate": describe_settings(GateService)})
    assert "# TOLLGATE_HTTP__PORT=8600" in example
    assert all(not line or line.startswith("#") for line in example.splitlines())
