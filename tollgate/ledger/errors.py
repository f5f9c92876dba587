"""What can go wrong with the ledger, and what to do about each.

LedgerError
  LedgerUnavailable   nothing was written; try again later (connection lost, busy, deadlock, serialization)
  CommitUnknown       the commit may or may not have happened: read back before going on
  LedgerRefused       the database said no and will say no again: a bug, or a missing privilege
  LedgerNotReady      the schema or a row that `tollgate init` makes is missing: run it
  PinMismatch         this ledger belongs to another cluster, topic, Stripe account or seed: stop

Owns the names. It refuses to know SQL: `engine.py` is where a driver's error becomes one of these.
"""

from __future__ import annotations

from collections.abc import Mapping


class LedgerError(Exception):
    """Base of everything the ledger raises."""


class LedgerUnavailable(LedgerError):
    """Nothing was written, and the same call may work later."""


class CommitUnknown(LedgerError):
    """The connection was lost during COMMIT: the transaction is in the ledger whole, or not at all."""


class LedgerRefused(LedgerError):
    """The database refused for a reason that trying again does not change. Nothing was written."""


class LedgerNotReady(LedgerError):
    """The ledger lacks what `tollgate init` makes. The message says what to run."""


class PinMismatch(LedgerError):
    """The ledger is pinned to something else. `differences` maps each pin to (pinned, found)."""

    def __init__(self, differences: Mapping[str, tuple[str, str]]) -> None:
        self.differences = dict(differences)
        super().__init__(
            "this ledger belongs to something else: "
            + "; ".join(
                f"{name} is pinned to {pinned!r} but here it is {found!r}"
                for name, (pinned, found) in sorted(self.differences.items())
            )
        )


class MetersChanged(LedgerError):
    """The meter set moved since the fold began: reload it and fold again. Nothing was written."""

    def __init__(self, current: int) -> None:
        self.current = current
        super().__init__(f"the meter set in force is now version {current}")
