"""A submission: what one request put in, and what became of it.

Owns the count of parts not yet acknowledged and the moment it is settled. It refuses to know what the parts are.
"""

from __future__ import annotations

from collections.abc import Callable

from services.ingest.decoded import Rejected


class Submission:
    """What one request waits for: the acknowledgement of everything it put into the log."""

    __slots__ = ("_finish", "accepted", "acknowledged", "oldest_ms", "outstanding", "rejected")

    def __init__(self, finish: Callable[[Submission], None], parts: int) -> None:
        self._finish: Callable[[Submission], None] | None = finish
        self.outstanding = parts
        """Parts not yet acknowledged."""
        self.acknowledged = False
        """Whether everything is in the log. When it is False after the end, some of it may be all the same."""
        self.accepted = 0
        """Entries that became events. Complete once settled, as what follows."""
        self.oldest_ms: int | None = None
        """Time of the oldest event."""
        self.rejected: list[Rejected] = []
        """Entries that became dead letters."""

    @property
    def finished(self) -> bool:
        return self._finish is None

    def accept(self, rows: int, oldest_ms: int) -> None:
        """`rows` of its entries are events, the oldest of `oldest_ms`."""
        self.accepted += rows
        self.oldest_ms = oldest_ms if self.oldest_ms is None else min(self.oldest_ms, oldest_ms)

    def settle(self, acknowledged: bool) -> None:
        """One part was acknowledged, or will not be in time: then the request has failed whatever else happens."""
        self.outstanding -= 1
        if self._finish is not None and (not acknowledged or self.outstanding <= 0):
            finish, self._finish = self._finish, None
            self.acknowledged = acknowledged
            finish(self)
