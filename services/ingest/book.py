"""What this service reads from the ledger.

Owns the reading: whether the ledger is this installation's, and the tokens. It refuses to know what either is for.
"""

from __future__ import annotations

import asyncio

import structlog

from services.ingest.tokens import Source, TokenBook
from tollgate.ledger.engine import Engine
from tollgate.ledger.errors import CommitUnknown, LedgerUnavailable
from tollgate.ledger.init import check_pins
from tollgate.ledger.sources import load_sources

_log = structlog.get_logger(__name__)


class Book:
    """What this service reads from the ledger: that it is ours, and the tokens."""

    def __init__(self, engine: Engine, tokens: TokenBook, pins: dict[str, str | int]) -> None:
        self._engine = engine
        self._tokens = tokens
        self._pins = pins

    async def read(self) -> bool:
        """Check the pins, then read the tokens. False while the ledger is away.

        Each time: an ingest that slept through a cut-over to another partition count must end. Raises PinMismatch and
        LedgerNotReady: this process must not go on.
        """
        try:
            await asyncio.to_thread(lambda: check_pins(self._engine, **self._pins))
            found = await asyncio.to_thread(load_sources, self._engine)
        except (LedgerUnavailable, CommitUnknown) as error:
            _log.warning("tokens.not_read", error=str(error), age_seconds=round(self._tokens.age_seconds))
            return False
        self._tokens.replace(
            [Source(token.name, token.token_id, token.token_sha256, token.scopes) for token in found]
        )
        return True
