"""Stripe's prices, as far as invoice items need them: asked for by planning, fetched by the leader, kept for good.

Owns the rows of `prices` and the controls that ask for one. It refuses to know Stripe and what a price comes to.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, select

from tollgate.ledger.candidates import look_at_holds_again
from tollgate.ledger.chunks import chunks
from tollgate.ledger.controls import load_controls, read_controls, write_controls
from tollgate.ledger.engine import ledger_transaction
from tollgate.ledger.insertion import put
from tollgate.ledger.leases import Lease, fence
from tollgate.ledger.tables import prices
from tollgate.metering.price import Price

PRICE_WANTED = "price_wanted:"
"""Control, followed by a price id: an invoice item is to be worked out from it."""


@dataclass(frozen=True, slots=True)
class FetchedPrice:
    """A price as Stripe has it; None when it has terms that nothing here can express, as `problem` says."""

    price_id: str
    price: Price | None
    problem: str = ""


def load_prices(connection: Connection, price_ids: Collection[str]) -> dict[str, FetchedPrice]:
    """Those of `price_ids` that have been fetched."""
    found = {}
    for chunk in chunks(sorted(set(price_ids))):
        for row in connection.execute(select(prices).where(prices.c.price_id.in_(chunk))):
            price = None if row.terms is None else Price.from_document(row.terms)
            found[row.price_id] = FetchedPrice(row.price_id, price, row.problem)
    return found


def wanted_prices(engine: Engine) -> list[str]:
    """Ids of prices that planning has asked for."""
    names = load_controls(engine)
    return sorted(name.removeprefix(PRICE_WANTED) for name in names if name.startswith(PRICE_WANTED))


def store_prices(engine: Engine, lease: Lease, found: Collection[FetchedPrice], now_ms: int) -> None:
    """Keep prices; the next planning looks at what was held for want of them. Raises LeaseLost."""
    with ledger_transaction(engine) as connection:
        fence(connection, lease)
        put(
            connection,
            prices,
            [
                {
                    "price_id": entry.price_id,
                    "terms": None if entry.price is None else entry.price.to_document(),
                    "problem": entry.problem,
                    "fetched_ms": now_ms,
                }
                for entry in found
            ],
        )
        controls: dict[str, str | None] = dict.fromkeys(f"{PRICE_WANTED}{p.price_id}" for p in found)
        write_controls(connection, controls | look_at_holds_again(read_controls(connection)), now_ms)
