"""The example configurations of Kong are what Kong and this service expect of each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from services.ingest.http import entrances
from services.ingest.tokens import read_tokens
from tests.unit.ingest.decoders import cloudevents_decoder, kong_decoder, moesif_decoder

KONG = Path(__file__).parents[3] / "deploy" / "kong"


def plugin(file: str, name: str) -> dict[str, Any]:
    document = yaml.safe_load((KONG / file).read_text())
    assert document["_format_version"] == "3.0"
    (found,) = [plugin for plugin in document["plugins"] if plugin["name"] == name]
    config: dict[str, Any] = found["config"]
    return config


def test_http_log_posts_batches_to_a_route_there_is() -> None:
    """The path exists, the token is in a header that is read, and the queue outlives an outage."""
    config = plugin("kong.yaml", "http-log")
    routes = entrances({d.format: d for d in (kong_decoder(), moesif_decoder(), cloudevents_decoder())})
    path = "/" + config["http_endpoint"].split("/", 3)[3]
    entrance = routes[path]
    assert entrance.content_types is not None
    assert config["content_type"] in entrance.content_types
    assert entrance.success < 300
    headers = {name.lower().encode(): value.encode() for name, value in config["headers"].items()}
    assert len(read_tokens(headers)) == 1
    queue = config["queue"]
    assert (queue["max_batch_size"], queue["max_coalescing_delay"]) == (500, 1)
    assert queue["max_entries"] == 1_000_000
    assert queue["max_retry_time"] >= 4 * 3600


def test_the_moesif_plugin_is_told_nothing_but_a_base_url_and_a_token() -> None:
    """It appends its own paths, and waits longer for an answer than this service takes to give up."""
    config = plugin("kong-moesif.yaml", "moesif")
    assert config["api_endpoint"].count("/") == 2
    assert config["application_id"]
    assert config["send_timeout"] == 8000
