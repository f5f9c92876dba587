"""`tollgate stripe connect` against the stand-in: one destination of each kind, its secret kept, whatever happens."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner, Result

from sandbox.stripe.process import StandInControl, StripeStandIn
from services.cli.__main__ import cli
from services.cli.destinations import CLASSIC_EVENTS, THIN_EVENTS, Kind, register
from services.cli.gateway import API_VERSION, Json, StripeGateway
from services.cli.secret_file import check_private, read_secrets, write_secrets
from services.cli.settings import StripeSettings
from services.cli.stripe_connect import VARIABLES
from tests.contract.ledger.postings_world import World

# Stripe's client posts through httpx in a way httpx would rather not see any more.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

KEY = "sk_test_connect"


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StripeStandIn]:
    """One stand-in; every test connects an address of its own."""
    with StripeStandIn.start(tmp_path_factory.mktemp("stripe") / "state.sqlite3") as running:
        yield running


@pytest.fixture
def control(stand_in: StripeStandIn) -> Iterator[StandInControl]:
    """Its control endpoints; faults end with the test."""
    with stand_in.control as client:
        yield client
        client.clear_faults()


@dataclass
class Desk:
    """The command line over a ledger pinned to the stand-in's account, and what Stripe has at one address."""

    base_url: str
    gateway: StripeGateway
    ledger_url: str
    secret_file: Path
    url: str

    def run(self, *options: str, code: int = 0, keep: bool = True, key: str = KEY) -> Result:
        words = ["stripe", "connect", "--url", self.url, *options]
        words += ["--secret-file", str(self.secret_file)] if keep else []
        done = CliRunner().invoke(
            cli,
            words,
            env={
                "TOLLGATE_LEDGER__URL": self.ledger_url,
                "TOLLGATE_STRIPE__API_BASE": self.base_url,
                "STRIPE_API_KEY": key,
                "TOLLGATE_STRIPE__API_KEY": None,
            },
        )
        assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
        return done

    def endpoints(self) -> list[Json]:
        return [each for each in self.gateway.list_all("/v1/webhook_endpoints") if each["url"] == self.url]

    def destinations(self) -> list[Json]:
        listed = self.gateway.list_all("/v2/core/event_destinations", include=["webhook_endpoint.url"])
        return [each for each in listed if each["webhook_endpoint"]["url"] == self.url]

    def secrets(self) -> dict[str, str]:
        return read_secrets(self.secret_file)


@pytest.fixture
def desk(stand_in: StripeStandIn, sqlite_url: str, tmp_path: Path) -> Iterator[Desk]:
    settings = StripeSettings.model_validate({"api_key": KEY, "api_base": stand_in.base_url})
    with StripeGateway(settings) as gateway:
        world = World.make(sqlite_url, stripe_account=gateway.account().account)
        url = f"https://{uuid4().hex[:8]}.example.com/stripe/webhooks"
        yield Desk(stand_in.base_url, gateway, sqlite_url, tmp_path / "secrets.env", url)
        world.engine.dispose()


def test_both_kinds_are_registered_and_their_secrets_kept(desk: Desk) -> None:
    """Pinned version, every event, and a file that its owner alone can read."""
    desk.run()
    (endpoint,), (destination,) = desk.endpoints(), desk.destinations()
    assert (endpoint["api_version"], sorted(endpoint["enabled_events"])) == (
        API_VERSION,
        sorted(CLASSIC_EVENTS),
    )
    assert sorted(destination["enabled_events"]) == sorted(THIN_EVENTS)
    assert set(desk.secrets()) == set(VARIABLES.values())
    assert all(secret.startswith("whsec_") for secret in desk.secrets().values())
    assert stat.S_IMODE(desk.secret_file.stat().st_mode) == 0o600


def test_connecting_again_changes_nothing(desk: Desk, control: StandInControl) -> None:
    """Not even a repeated request, once the secrets are kept."""
    desk.run()
    before, secrets = _writes(control), desk.secrets()
    again = desk.run()
    assert again.stdout.count("unchanged") == 2
    assert (_writes(control), desk.secrets()) == (before, secrets)


def test_without_a_file_the_secrets_are_printed(desk: Desk) -> None:
    """To be put where the service finds them."""
    printed = desk.run(keep=False).stdout
    assert printed.count("=whsec_") == 2
    assert not desk.secret_file.exists()


def test_secrets_lost_to_a_crash_are_asked_for_again(desk: Desk) -> None:
    """Within the day Stripe repeats its first answer: nothing new is made."""
    desk.run()
    secrets, ids = desk.secrets(), [desk.endpoints()[0]["id"], desk.destinations()[0]["id"]]
    desk.secret_file.unlink()
    desk.run()
    assert desk.secrets() == secrets
    assert [desk.endpoints()[0]["id"], desk.destinations()[0]["id"]] == ids
    assert (len(desk.endpoints()), len(desk.destinations())) == (1, 1)


def test_secrets_lost_for_longer_need_a_renewal(desk: Desk) -> None:
    """It is said, and nothing is made in secret; --renew then leaves one destination with a secret that is known."""
    desk.run()
    (endpoint,) = desk.endpoints()
    found = register(
        desk.gateway,
        Kind.CLASSIC,
        desk.url,
        "ledger_test",
        have_secret=False,
        renew=False,
        now_s=endpoint["created"] + 24 * 3600,
    )
    assert (found.secret, found.did, len(desk.endpoints())) == (None, "unchanged", 1)
    before = desk.secrets()
    desk.run("--renew")
    assert (len(desk.endpoints()), len(desk.destinations())) == (1, 1)
    assert desk.endpoints()[0]["id"] != endpoint["id"]
    assert set(desk.secrets().values()).isdisjoint(before.values())


@pytest.mark.parametrize("step", ["made", "kept", "deleted"])
def test_a_renewal_that_was_interrupted_is_gone_on_with(desk: Desk, step: str) -> None:
    """Killed after the new one was made, after its secret was kept, or while the old one is deleted: one is left."""
    desk.run()
    old, secret = desk.endpoints()[0]["id"], desk.secrets()[VARIABLES[Kind.CLASSIC]]

    class Killed(BaseException):
        """The process is gone."""

    class Dying:
        def __getattr__(self, name: str) -> Any:
            return getattr(desk.gateway, name)

        def delete(self, path: str) -> None:
            if step == "deleted":
                desk.gateway.delete(path)
            raise Killed

    def keep(secret: str) -> None:
        if step == "made":
            raise Killed
        write_secrets(desk.secret_file, {VARIABLES[Kind.CLASSIC]: secret})

    with pytest.raises(Killed):
        register(
            Dying(),
            Kind.CLASSIC,
            desk.url,
            "ledger_test",
            have_secret=True,
            renew=True,
            now_s=0,
            keep_secret=keep,
        )
    # The old one goes only once the secret of the new one is kept.
    assert (desk.secrets()[VARIABLES[Kind.CLASSIC]] == secret) is (step == "made")
    assert (old in [each["id"] for each in desk.endpoints()]) is (step != "deleted")
    desk.run("--renew")
    (left,) = desk.endpoints()
    assert left["id"] != old


def test_events_that_are_missing_are_added(desk: Desk) -> None:
    """What an operator added stays; a destination made by hand is mended, not doubled."""
    desk.gateway.update(
        "/v1/webhook_endpoints",
        url=desk.url,
        api_version=API_VERSION,
        enabled_events=["customer.created", "payout.paid"],
    )
    desk.gateway.update(
        "/v2/core/event_destinations",
        name="By hand",
        type="webhook_endpoint",
        event_payload="thin",
        enabled_events=[THIN_EVENTS[0]],
        webhook_endpoint={"url": desk.url},
    )
    assert "event types added" in desk.run().stdout
    (endpoint,), (destination,) = desk.endpoints(), desk.destinations()
    assert set(endpoint["enabled_events"]) == {*CLASSIC_EVENTS, "payout.paid"}
    assert set(destination["enabled_events"]) == set(THIN_EVENTS)
    assert desk.secrets() == {}


def test_what_was_disabled_is_enabled(desk: Desk) -> None:
    """Stripe disables a destination that has failed for days."""
    desk.run()
    desk.gateway.update(f"/v1/webhook_endpoints/{desk.endpoints()[0]['id']}", disabled=True)
    desk.gateway.update(f"/v2/core/event_destinations/{desk.destinations()[0]['id']}/disable")
    assert desk.run().stdout.count("enabled") == 2
    assert [desk.endpoints()[0]["status"], desk.destinations()[0]["status"]] == ["enabled", "enabled"]


def test_another_api_version_is_refused_and_renewed_on_request(desk: Desk) -> None:
    """It is fixed when an endpoint is made."""
    desk.gateway.update("/v1/webhook_endpoints", url=desk.url, api_version="2020-08-27", enabled_events=["*"])
    assert "--renew makes another" in desk.run(code=1).stderr
    desk.run("--renew")
    assert [each["api_version"] for each in desk.endpoints()] == [API_VERSION]


def test_two_endpoints_at_one_address_are_refused(desk: Desk) -> None:
    """Every event would come twice."""
    for _ in range(2):
        desk.gateway.update(
            "/v1/webhook_endpoints", url=desk.url, api_version=API_VERSION, enabled_events=["*"]
        )
    assert "more than once" in desk.run(code=1).stderr
    desk.run("--renew")
    assert len(desk.endpoints()) == 1


def test_scopes_the_key_lacks_are_named(desk: Desk, control: StandInControl) -> None:
    """By scope and by the services that need it; writes are not tried."""
    control.add_fault("forbidden_403", {"method": "GET", "path": "^/v1/invoices$"})
    control.add_fault("forbidden_403", {"method": "GET", "path": "event_summaries"})
    printed = desk.run(code=1).stdout
    assert "9 of 11 reads allowed" in printed
    assert "missing: Invoices: read, needed by webhooks, stripe_sync" in printed
    assert "missing: Billing meter event summaries: read, needed by stripe_sync" in printed
    assert "not proven" in printed


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [("ftp://x", 2, "no address"), ("nonsense", 2, "no address"), ("http://localhost:1/x", 0, "warning:")],
)
def test_addresses_are_looked_at(desk: Desk, url: str, code: int, words: str) -> None:
    """One that cannot be is refused, one that may not be meant is warned about."""
    desk.url = url
    assert words in desk.run(code=code).stderr


def test_a_live_key_on_a_test_ledger_is_refused(desk: Desk, control: StandInControl) -> None:
    """Before Stripe is asked anything."""
    before = control.requests()
    assert "stripe_mode" in desk.run(code=1, key="sk_live_x").stderr
    assert control.requests() == before


# ------------------------------------------------------------------------------------------ secret file


def test_other_lines_of_the_file_stay(tmp_path: Path) -> None:
    """It may be an env file with more in it."""
    path = tmp_path / "all.env"
    path.write_text("# mine\nA=1\nSECRET=old\n")
    path.chmod(0o600)
    write_secrets(path, {"SECRET": "new", "MORE": "x=y"})
    assert path.read_text() == "# mine\nA=1\nSECRET=new\nMORE=x=y\n"
    assert read_secrets(path) == {"A": "1", "SECRET": "new", "MORE": "x=y"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_others_can_read_is_refused(desk: Desk, tmp_path: Path) -> None:
    """Before anything is made whose secret would have nowhere to go."""
    desk.secret_file.write_text("")
    desk.secret_file.chmod(0o644)
    assert "chmod 600" in desk.run(code=2).stderr
    assert desk.endpoints() == []
    assert check_private(tmp_path / "absent" / "file") is not None


def _writes(control: StandInControl) -> int:
    return sum(row["count"] for row in control.requests() if row["method"] != "GET")
