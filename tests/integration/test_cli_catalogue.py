"""`tollgate meters apply` against the stand-in: one product, one Billing Meter, one price, however often it is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner, Result

from sandbox.shop import Shop
from sandbox.stripe.process import StandInControl, StripeStandIn
from services.cli.__main__ import cli
from services.cli.catalogue import Declared, declare
from services.cli.catalogue_plan import plan_catalogue
from services.cli.catalogue_stripe import carry_out, find_catalogue
from services.cli.gateway import Json, StripeGateway
from services.cli.settings import StripeSettings
from tests.contract.ledger.postings_world import World
from tollgate.ledger.catalogue import load_meter_set
from tollgate.metering.meter import parse_meters

# Stripe's client posts through httpx in a way httpx would rather not see any more.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

ROOT = Path(__file__).resolve().parents[2]
KEY = "sk_test_catalogue"

FILE = """meters:
  - name: {name}
    metric: count
    stripe:
      send: live
      product: {name} calls
      price: {{ model: standard, currency: usd, interval: month, unit_amount: {amount} }}
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StripeStandIn]:
    """One stand-in; every test declares a meter of its own."""
    with StripeStandIn.start(tmp_path_factory.mktemp("stripe") / "state.sqlite3") as running:
        yield running


@pytest.fixture
def control(stand_in: StripeStandIn) -> Iterator[StandInControl]:
    """Its control endpoints; faults end with the test."""
    with stand_in.control as client:
        yield client
        client.clear_faults()


@pytest.fixture
def gateway(stand_in: StripeStandIn) -> Iterator[StripeGateway]:
    """A conversation with it."""
    with StripeGateway(
        StripeSettings.model_validate({"api_key": KEY, "api_base": stand_in.base_url})
    ) as opened:
        yield opened


@dataclass
class Bench:
    """A ledger pinned to the stand-in's account, a meters.yaml with one meter, and the command line over both."""

    world: World
    ledger_url: str
    base_url: str
    gateway: StripeGateway
    directory: Path
    name: str
    key: str | None = KEY

    def environment(self) -> dict[str, str | None]:
        return {
            "TOLLGATE_LEDGER__URL": self.ledger_url,
            "TOLLGATE_STRIPE__API_BASE": self.base_url,
            "STRIPE_API_KEY": self.key,
            "TOLLGATE_STRIPE__API_KEY": None,
        }

    def write(self, amount: int = 2, text: str | None = None) -> Path:
        path = self.directory / "meters.yaml"
        path.write_text(text or FILE.format(name=self.name, amount=amount))
        return path

    def run(self, *options: str, code: int = 0, stdin: str | None = None) -> Result:
        path = self.directory / "meters.yaml"
        done = CliRunner().invoke(
            cli, ["meters", "apply", str(path), *options], env=self.environment(), input=stdin
        )
        assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
        return done

    def declared(self) -> tuple[Declared, ...]:
        path = self.directory / "meters.yaml"
        return declare(parse_meters(path.read_text(), "meters.yaml"))

    def ledger_meters(self) -> list[str]:
        return [version.meter.name for version in load_meter_set(self.world.engine).meters]

    def at_stripe(self) -> tuple[list[Json], list[Json], list[Json]]:
        """This test's products, Billing Meters and prices, whatever their state."""
        products = [
            body for body in self.gateway.list_all("/v1/products") if body["name"] == f"{self.name} calls"
        ]
        meters = [
            body for body in self.gateway.list_all("/v1/billing/meters") if body["event_name"] == self.name
        ]
        ids = {body["id"] for body in products}
        prices = [body for body in self.gateway.list_all("/v1/prices") if body["product"] in ids]
        return products, meters, prices

    def check_one_of_each(self) -> None:
        """One product, one Billing Meter, one price, tied together."""
        products, meters, prices = self.at_stripe()
        assert (len(products), len(meters), len(prices)) == (1, 1, 1)
        (price,) = prices
        assert price["lookup_key"] == f"tollgate_{self.name}"
        assert price["recurring"]["meter"] == meters[0]["id"]
        assert products[0]["metadata"] == {"tollgate_product": f"{self.name} calls"}


@pytest.fixture
def bench(
    stand_in: StripeStandIn, gateway: StripeGateway, sqlite_url: str, tmp_path: Path
) -> Iterator[Bench]:
    world = World.make(sqlite_url, stripe_account=gateway.account().account)
    made = Bench(world, sqlite_url, stand_in.base_url, gateway, tmp_path, f"calls_{uuid4().hex[:12]}")
    made.write()
    yield made
    world.engine.dispose()


def writes(control: StandInControl) -> int:
    """Calls so far that could have changed something."""
    return sum(row["count"] for row in control.requests() if row["method"] != "GET")


# --------------------------------------------------------------------------------------------- once


def test_apply_twice_changes_nothing_the_second_time(bench: Bench, control: StandInControl) -> None:
    """Not one call that writes, no new version, and the plan says so."""
    assert bench.run("--plan", "--exit-code", code=3).stdout.count(": create") == 3
    assert bench.ledger_meters() == []
    bench.run()
    bench.check_one_of_each()
    before = writes(control)
    again = bench.run()
    assert writes(control) == before
    assert "nothing to do at Stripe" in again.stdout
    assert "Meters  version 1 (unchanged)" in again.stdout
    bench.run("--plan", "--exit-code")
    document = json.loads(bench.run("--json").stdout)
    assert document["done"] is True
    assert document["stripe"]["pending"] == 0
    assert {step["action"] for step in document["stripe"]["steps"]} == {"nothing"}
    assert document["ledger"]["kept"] == [bench.name]


def test_the_demo_s_meters_are_applied_and_unchanged_afterwards(bench: Bench) -> None:
    """All three models of the file are read back from Stripe as the same terms."""
    bench.write(text=(ROOT / "meters.yaml").read_text())
    bench.run()
    assert "nothing to do at Stripe" in bench.run().stdout


PERIODS = {
    "day": ("day", 1),
    "week": ("week", 1),
    "month": ("month", 1),
    "3 months": ("month", 3),
    "6 months": ("month", 6),
    "year": ("year", 1),
    "{every: 10, unit: day}": ("day", 10),
}


def test_every_billing_period_is_made_and_read_back(bench: Bench, gateway: StripeGateway) -> None:
    """Each as Stripe spells it, and none is a change the second time."""
    text = "meters:\n" + "".join(
        f"  - {{name: {bench.name}_{number}, metric: count, stripe: {{price: "
        f"{{model: standard, currency: usd, unit_amount: 2, interval: {written}}}}}}}\n"
        for number, written in enumerate(PERIODS)
    )
    bench.write(text=text)
    bench.run()
    for number, (interval, count) in enumerate(PERIODS.values()):
        (price,) = gateway.list_all("/v1/prices", lookup_keys=[f"tollgate_{bench.name}_{number}"])
        made = price["recurring"]
        assert (made["interval"], made["interval_count"], made["usage_type"]) == (interval, count, "metered")
    assert "nothing to do at Stripe" in bench.run().stdout


def test_a_changed_amount_makes_a_new_price_and_keeps_the_old(bench: Bench, stand_in: StripeStandIn) -> None:
    """The key moves; a subscriber stays on what was agreed; the meter counts on as the same version."""
    bench.run()
    _, _, (old,) = bench.at_stripe()
    with Shop(stand_in.base_url, KEY) as shop:
        shop.sign_up("Acme", "acme@example.com", [old["id"]])
    bench.write(amount=3)
    planned = bench.run("--plan").stdout
    assert f"{old['id']} stays as it is: 1 subscription keeps it" in planned
    assert "was: 0.02 usd a unit, every month" in planned
    bench.run(stdin="n\n", code=1)
    assert len(bench.at_stripe()[2]) == 1
    done = bench.run("--yes")
    assert f"~ {bench.name}, sent or priced differently" in done.stdout
    keys = {price["id"]: price["lookup_key"] for price in bench.at_stripe()[2]}
    assert len(keys) == 2
    assert keys[old["id"]] is None
    assert "nothing to do at Stripe" in bench.run().stdout
    # Back again within the day: not what the idempotency key was answered with the first time.
    bench.write(amount=2)
    bench.run("--yes")
    keys = {price["id"]: price["lookup_key"] for price in bench.at_stripe()[2]}
    assert keys[old["id"]] == f"tollgate_{bench.name}"
    assert len(keys) == 2
    (version,) = load_meter_set(bench.world.engine).meters
    assert version.from_ms == 0


def test_amounts_that_go_back_and_forth_never_get_a_stale_answer(
    bench: Bench, gateway: StripeGateway
) -> None:
    """When the old price is archived, its terms need a new one, although the same was asked for an hour ago."""
    for amount in (2, 3, 2, 3):
        bench.write(amount=amount)
        bench.run("--yes")
        holders = gateway.list_all("/v1/prices", lookup_keys=[f"tollgate_{bench.name}"])
        assert [price["unit_amount"] for price in holders] == [amount]
        for price in bench.at_stripe()[2]:
            if price["lookup_key"] is None and price["active"]:
                gateway.update(f"/v1/prices/{price['id']}", active=False)
    assert len(bench.at_stripe()[2]) == 4


def test_a_product_deleted_since_is_made_again(bench: Bench, gateway: StripeGateway) -> None:
    """The idempotency key is still answered with the deleted one; that answer is not believed."""
    bench.write(
        text=f"meters: [{{name: {bench.name}, metric: count, stripe: {{product: {bench.name} calls}}}}]"
    )
    bench.run()
    ((gone,), _, _) = bench.at_stripe()
    gateway.delete(f"/v1/products/{gone['id']}")
    bench.run()
    ((made,), _, _) = bench.at_stripe()
    assert made["id"] != gone["id"]


# --------------------------------------------------------------------------------- what was there before


def test_what_a_company_has_already_is_adopted(bench: Bench, gateway: StripeGateway) -> None:
    """Made by hand in the dashboard: nothing is made beside it."""
    product = gateway.update("/v1/products", name=f"{bench.name} calls")["id"]
    meter = gateway.update(
        "/v1/billing/meters",
        display_name="By hand",
        event_name=bench.name,
        default_aggregation={"formula": "sum"},
    )["id"]
    price = gateway.update(
        "/v1/prices",
        product=product,
        currency="usd",
        unit_amount=2,
        recurring={"interval": "month", "usage_type": "metered", "meter": meter},
    )["id"]
    done = bench.run()
    assert done.stdout.count(": adopt") == 3
    bench.check_one_of_each()
    assert [body[0]["id"] for body in bench.at_stripe()] == [product, meter, price]
    assert "nothing to do at Stripe" in bench.run().stdout


@pytest.mark.parametrize(
    ("meter", "reason"),
    [
        ({"default_aggregation": {"formula": "last"}}, "its formula is last, and postings need sum"),
        ({"default_aggregation": {"formula": "count"}}, "its formula is count"),
        ({"event_time_window": "hour"}, "one value an hour"),
        ({"value_settings": {"event_payload_key": "tokens"}}, "reads the value from 'tokens'"),
    ],
)
def test_a_meter_that_does_not_fit_is_refused_before_anything_changes(
    bench: Bench, gateway: StripeGateway, control: StandInControl, meter: dict[str, Any], reason: str
) -> None:
    """Neither Stripe nor the ledger is touched; the product that could have been made is not."""
    gateway.update(
        "/v1/billing/meters",
        **{
            "display_name": "By hand",
            "event_name": bench.name,
            "default_aggregation": {"formula": "sum"},
            **meter,
        },
    )
    before = writes(control)
    refused = bench.run(code=1)
    assert reason in refused.stderr
    assert "nothing was changed" in refused.stderr
    assert (writes(control), bench.ledger_meters()) == (before, [])


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ("price: {model: standard, currency: usdd, unit_amount: 1}", "'usdd' is none that Stripe knows"),
        (
            (
                "price: {model: graduated, currency: usd, tiers: "
                "[{up_to: 20, unit_amount: 5}, {up_to: 10, unit_amount: 4}, {up_to: inf, unit_amount: 3}]}"
            ),
            "up_to 10 is not above the 20",
        ),
        ("event_name: {name}", "event_name '{name}' is taken by meter '{name}'"),
    ],
    ids=["unknown-currency", "tiers-out-of-order", "one-event-name-twice"],
)
def test_a_file_that_is_wrong_in_one_meter_changes_nothing_for_any(
    bench: Bench, control: StandInControl, second: str, reason: str
) -> None:
    """The meter before it is right, and is not made either: neither at Stripe nor in the ledger."""
    other = f"  - {{name: other, metric: count, stripe: {{{second.replace('{name}', bench.name)}}}}}\n"
    bench.write(text=FILE.format(name=bench.name, amount=2) + other)
    before = writes(control)
    refused = bench.run(code=1)
    assert reason.replace("{name}", bench.name) in refused.stderr
    assert "meter 'other'" in refused.stderr
    assert (writes(control), bench.ledger_meters()) == (before, [])
    assert bench.at_stripe() == ([], [], [])


def test_a_deactivated_meter_is_refused_until_it_is_reactivated(bench: Bench, gateway: StripeGateway) -> None:
    """Said in the plan, with what to do."""
    bench.run()
    _, (meter,), _ = bench.at_stripe()
    gateway.update(f"/v1/billing/meters/{meter['id']}/deactivate")
    assert "deactivated at Stripe: reactivate it" in bench.run("--plan", code=1).stderr
    gateway.update(f"/v1/billing/meters/{meter['id']}/reactivate")
    assert "nothing to do at Stripe" in bench.run().stdout


# ------------------------------------------------------------------------------------------- without Stripe


def test_without_a_key_the_ledger_half_is_done_and_said_to_be_all(bench: Bench) -> None:
    """As before Stripe came into it; later, with a key, the rest."""
    bench.key = None
    done = bench.run()
    assert "Stripe  not done: there is no key; set STRIPE_API_KEY and apply again" in done.stdout
    assert bench.ledger_meters() == [bench.name]
    bench.key = KEY
    assert "3 to create" in bench.run().stdout
    bench.check_one_of_each()


def test_stripe_can_be_left_out(bench: Bench, control: StandInControl) -> None:
    """--ledger-only asks Stripe nothing."""
    before = control.requests()
    assert "left out, as asked" in bench.run("--ledger-only").stdout
    assert control.requests() == before


def test_an_unreachable_stripe_leaves_the_ledger_alone(bench: Bench) -> None:
    """One line, exit 1, and the ways on."""
    bench.base_url = "http://127.0.0.1:9"
    failed = bench.run(code=1)
    assert "no answer" in failed.stderr
    assert "--ledger-only" in failed.stderr
    assert bench.ledger_meters() == []


@pytest.mark.parametrize("pinned", [{"stripe_account": "acct_other"}, {"stripe_mode": "live"}])
def test_a_key_of_another_account_or_mode_is_refused_first(
    stand_in: StripeStandIn,
    gateway: StripeGateway,
    control: StandInControl,
    tmp_path: Path,
    pinned: dict[str, str],
) -> None:
    """A test key on a live ledger is not even tried out."""
    url = f"sqlite:///{tmp_path / 'other.sqlite3'}"
    pins: dict[str, Any] = {"stripe_account": gateway.account().account, **pinned}
    world = World.make(url, **pins)
    bench = Bench(world, url, stand_in.base_url, gateway, tmp_path, f"calls_{uuid4().hex[:12]}")
    bench.write()
    before = writes(control)
    refused = bench.run(code=1)
    assert next(iter(pinned)) in refused.stderr
    assert (writes(control), bench.ledger_meters()) == (before, [])
    world.engine.dispose()


# ---------------------------------------------------------------------------------------------- killed


class Killed(BaseException):
    """The process is gone: nothing after this line happened."""


class Dying:
    """A conversation whose process dies at one call, before it is sent or after it was answered."""

    def __init__(self, gateway: StripeGateway, at: int, *, after: bool) -> None:
        self._gateway = gateway
        self._left = at
        self._after = after

    def _through(self, call: Callable[[], Any]) -> Any:
        self._left -= 1
        if self._left == 0 and not self._after:
            raise Killed
        answer = call()
        if self._left == 0:
            raise Killed
        return answer

    def list_all(self, path: str, **params: Any) -> Any:
        return self._through(lambda: self._gateway.list_all(path, **params))

    def first_page(self, path: str, **params: Any) -> Any:
        return self._through(lambda: self._gateway.first_page(path, **params))

    def create_once(
        self, path: str, params: Json, key: str, find: Callable[[], Json | None] = lambda: None
    ) -> Any:
        return self._through(lambda: self._gateway.create_once(path, params, key, find))

    def update(self, path: str, **params: Any) -> Any:
        return self._through(lambda: self._gateway.update(path, **params))


CALLS = 6
"""Billing Meters, products, prices by lookup key; then one creation each of product, meter and price."""


def _apply_through(conversation: Dying, declared: tuple[Declared, ...]) -> None:
    carry_out(conversation, plan_catalogue(declared, find_catalogue(conversation, declared)))


def test_a_first_apply_makes_as_many_calls_as_are_killed_below(bench: Bench) -> None:
    """Lest a call be added that no test kills at."""
    dying = Dying(bench.gateway, CALLS, after=True)
    with pytest.raises(Killed):
        _apply_through(dying, bench.declared())
    bench.check_one_of_each()
    _apply_through(Dying(bench.gateway, 1_000, after=True), bench.declared())


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, CALLS + 1))
def test_killed_at_any_call_and_applied_again_ends_in_one_of_each(bench: Bench, at: int, after: bool) -> None:
    """The ledger comes last, so it has nothing yet; the second run finds what the first one left."""
    with pytest.raises(Killed):
        _apply_through(Dying(bench.gateway, at, after=after), bench.declared())
    assert bench.ledger_meters() == []
    bench.run()
    bench.check_one_of_each()
    assert bench.ledger_meters() == [bench.name]
    assert "nothing to do at Stripe" in bench.run().stdout


@pytest.mark.parametrize("path", ["/v1/products$", "/v1/billing/meters$", "/v1/prices$"])
def test_killed_while_a_call_is_on_its_way(bench: Bench, control: StandInControl, path: str) -> None:
    """SIGKILL of the real process; Stripe carries the call out afterwards, while the second run is at it."""
    fault = control.add_fault("delay", {"method": "POST", "path": path}, delay_ms=1500, times=1)
    process = subprocess.Popen(
        [sys.executable, "-m", "services.cli", "meters", "apply", str(bench.directory / "meters.yaml")],
        env={name: value for name, value in {**_plain_environment(), **bench.environment()}.items() if value},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while not any(rule["id"] == fault and rule["hits"] for rule in control.faults()):
            assert time.monotonic() < deadline, "the call was never made"
            assert process.poll() is None, "the command ended before its call"
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    bench.run()
    time.sleep(1.6)  # past the delayed call, should it still have an effect
    bench.check_one_of_each()
    assert "nothing to do at Stripe" in bench.run().stdout


def _plain_environment() -> dict[str, str]:
    import os

    return {
        name: value for name, value in os.environ.items() if not name.startswith(("TOLLGATE_", "STRIPE_"))
    }


@pytest.mark.parametrize("path", ["/v1/products$", "/v1/billing/meters$", "/v1/prices$"])
@pytest.mark.parametrize("kind", ["drop_before", "drop_after"])
def test_a_call_that_is_never_answered_is_found_by_the_next_run(
    bench: Bench, control: StandInControl, kind: str, path: str
) -> None:
    """All three attempts of the first run end without an answer; whether they had an effect, the second run sees."""
    control.add_fault(kind, {"method": "POST", "path": path}, times=3)
    assert "The ledger was not changed" in bench.run(code=1).stderr
    assert bench.ledger_meters() == []
    bench.run()
    bench.check_one_of_each()


@pytest.mark.parametrize("path", ["/v1/products$", "/v1/billing/meters$", "/v1/prices$"])
@pytest.mark.parametrize("kind", ["error_500_before", "error_500_after"])
def test_a_failure_stripe_keeps_answering_with_is_got_past(
    bench: Bench, control: StandInControl, kind: str, path: str
) -> None:
    """Kept under the idempotency key for a day: looked up whether it had an effect, and asked anew if not."""
    control.add_fault(kind, {"method": "POST", "path": path}, times=1, saved=True)
    bench.run()
    bench.check_one_of_each()
    assert bench.ledger_meters() == [bench.name]
