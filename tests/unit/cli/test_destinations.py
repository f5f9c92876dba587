"""What Stripe is asked to tell, against what its client knows and what our services read."""

from __future__ import annotations

import re
from pathlib import Path

import stripe.params

from services.cli import gateway
from services.cli.destinations import CLASSIC_EVENTS, THIN_EVENTS
from services.cli.key_scopes import READS
from services.stripe_sync.gateway import API_VERSION as SYNC_VERSION
from services.webhooks.event import THIN_TYPES
from services.webhooks.gateway import API_VERSION as WEBHOOKS_VERSION
from services.webhooks.http import PATH as WEBHOOKS_PATH

WANTED = ("customer.", "invoice.", "billing.meter.", "price.", "product.")


def test_every_event_of_the_kinds_we_need_is_asked_for() -> None:
    """The pinned client lists what can be enabled; a new version with more of them shows here."""
    source = Path(stripe.params.__file__).with_name("_webhook_endpoint_create_params.py").read_text()
    known = {name for name in re.findall(r'"([a-z0-9_.]+)"', source) if name.startswith(WANTED)}
    assert set(CLASSIC_EVENTS) == known
    assert list(CLASSIC_EVENTS) == sorted(CLASSIC_EVENTS)


def test_thin_events_are_those_the_webhooks_service_reads() -> None:
    """No more, no fewer."""
    assert sorted(THIN_EVENTS) == sorted(THIN_TYPES)


def test_one_api_version_everywhere() -> None:
    """Destinations send the shape that is read."""
    assert gateway.API_VERSION == WEBHOOKS_VERSION == SYNC_VERSION


def test_the_address_is_the_services() -> None:
    """What `connect` warns about is true."""
    from services.cli.stripe_connect import PATH

    assert PATH == WEBHOOKS_PATH


def test_every_scope_names_who_needs_it() -> None:
    """A missing scope says what will not work."""
    assert all(scope.services for scope in READS)
    assert len({scope.name for scope in READS}) == len(READS)
