"""The price fetcher: prices that planning wants for invoice items, from Stripe into the ledger.

Owns that each is asked for once. It refuses to know what they are for, and plans nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import structlog

from services.stripe_sync.gateway import CallFailed
from tollgate.ledger.prices import FetchedPrice
from tollgate.runtime.clock import Clock

_log = structlog.get_logger(__name__)

_AT_ONCE = 20
"""Prices fetched between two plannings. There are few, and each is fetched once in a ledger's life."""


class PriceBook(Protocol):
    """What the fetcher needs of the ledger."""

    async def wanted_prices(self) -> list[str]: ...

    async def store_prices(self, found: Sequence[FetchedPrice], now_ms: int) -> None: ...


class PriceSource(Protocol):
    """What the fetcher asks of Stripe."""

    async def price(self, price_id: str) -> FetchedPrice:
        """A price, with its tiers. Raises CallFailed."""
        ...


class PriceFetcher:
    """Fetches under one lease."""

    def __init__(self, book: PriceBook, stripe: PriceSource, clock: Clock) -> None:
        self._book = book
        self._stripe = stripe
        self._clock = clock

    async def fetch(self) -> int:
        """Fetch what is wanted; returns how many prices came. What Stripe does not give now stays wanted."""
        found = []
        for price_id in (await self._book.wanted_prices())[:_AT_ONCE]:
            try:
                price = await self._stripe.price(price_id)
            except CallFailed as error:
                _log.warning("price.not_fetched", price=price_id, situation=str(error.row.situation))
                continue
            if price.price is None:
                _log.error("price.not_usable", price=price_id, problem=price.problem)
            found.append(price)
        if found:
            await self._book.store_prices(found, self._clock.now_ms())
        return len(found)
