"""The load: single requests and small bodies in three formats at a bounded rate, until it is told to stop.

Owns who calls and how it is mixed. It refuses to know what goes wrong: every request is repeated until it has its 2xx,
and the history file then holds what was accepted.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.demo.cast import LOOKUP_KEYS
from sandbox.shop import Shop, Shopper
from sandbox.stripe.process import StandInControl
from sandbox.traffic.calls import HOUR_MS, Call, Identity, Mix, generate_calls
from sandbox.traffic.formats import Format
from sandbox.traffic.history import HistoryWriter
from sandbox.traffic.sender import Sending, Target, send_calls

CUSTOMERS = 6
GIVE_UP_SECONDS = 240.0
"""A request without its 2xx for so long is a failure of its own: no fault lasts that long."""

_ENDLESS = 10**9
_SINGLES_SHARE = 0.4
_BODY_CALLS = 20
_SINGLES_CONNECTIONS = 24
_BODY_CONNECTIONS = 6
_CATCH_UP_SECONDS = 1.0
"""What an outage held back is not sent in a burst: the rate is bounded."""
_FORMATS = (Format.KONG, Format.MOESIF, Format.CLOUDEVENTS)
_MIX = Mix(duplicate=0.02, late=0.001, future=0.0005, malformed=0.001)


@dataclass(slots=True)
class Load:
    """What is sent. `run()` blocks until the end; the numbers may be read from other threads meanwhile."""

    urls: tuple[str, ...]
    token: str
    seed: int
    calls_per_second: float
    history: Path
    singles: Sending = field(default_factory=Sending)
    bodies: Sending = field(default_factory=Sending)

    @property
    def accepted(self) -> int:
        """Calls in requests with a 2xx."""
        return self.singles.accepted + self.bodies.accepted

    @property
    def retries(self) -> int:
        return self.singles.retries + self.bodies.retries

    @property
    def repeated(self) -> int:
        """Calls in requests that were sent again."""
        return self.singles.repeated + self.bodies.repeated

    def waiting_seconds(self) -> float:
        """How long the request has been under way that has waited longest."""
        return max(self.singles.waiting_seconds(), self.bodies.waiting_seconds())

    def run(
        self, identities: list[Identity], seconds: float, on_progress: Callable[[], None] = lambda: None
    ) -> None:
        """Send for `seconds`, then wait for the last 2xx. Raises Refused, TimeoutError."""
        until = time.monotonic() + seconds
        now_ms = int(time.time() * 1000)
        target = Target(self.urls, self.token)

        def calls(number: int) -> Iterator[Call]:
            endless = generate_calls(
                _ENDLESS,
                seed=self.seed * 2 + number,
                identities=identities,
                now_ms=now_ms,
                spread_ms=3 * HOUR_MS,
                mix=_MIX,
            )
            return itertools.takewhile(lambda _: time.monotonic() < until, endless)

        async def send() -> None:
            with HistoryWriter(self.history) as history:
                await asyncio.gather(
                    *(
                        send_calls(
                            calls(number),
                            target,
                            history,
                            formats=_FORMATS,
                            batch_size=size,
                            concurrency=connections,
                            calls_per_second=self.calls_per_second * share,
                            catch_up_seconds=_CATCH_UP_SECONDS,
                            give_up_seconds=GIVE_UP_SECONDS,
                            on_progress=lambda _: on_progress(),
                            sending=sending,
                        )
                        for number, (size, connections, share, sending) in enumerate(
                            (
                                (1, _SINGLES_CONNECTIONS, _SINGLES_SHARE, self.singles),
                                (_BODY_CALLS, _BODY_CONNECTIONS, 1 - _SINGLES_SHARE, self.bodies),
                            )
                        )
                    )
                )

        asyncio.run(send())


@dataclass(slots=True)
class Customers:
    """Who is billed: most are known by their customer id, some by an address Stripe learns of on the way."""

    shop: Shop
    known: list[Shopper]
    unknown: list[Shopper]

    @property
    def identities(self) -> list[Identity]:
        """How the gateways name them."""
        found = [Identity(customer=shopper.customer, user=shopper.customer) for shopper in self.known]
        found.append(Identity(customer=self.known[0].customer, user=self.known[0].email))
        # Known to the gateway by an address Stripe has not heard of yet: held until it has.
        return found + [Identity(customer=each.customer, user=f"new-{each.email}") for each in self.unknown]

    def learn_next(self) -> None:
        """Stripe hears of one more address."""
        shopper = self.unknown_left.pop(0)
        self.shop.change_email(shopper, f"new-{shopper.email}")

    unknown_left: list[Shopper] = field(default_factory=list)


def sign_up_customers(shop: Shop, control: StandInControl) -> Customers:
    """Customers with one subscription over every meter that is posted; Stripe's clock then shows the real time."""
    prices = shop.find_prices(LOOKUP_KEYS)
    shoppers = [shop.sign_up(f"c{n}", f"c{n}@example.com", prices) for n in range(CUSTOMERS)]
    control.real_time()
    return Customers(shop, shoppers[:-2], shoppers[-2:], unknown_left=shoppers[-2:])
