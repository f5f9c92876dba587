"""Admission: how many bytes this process may hold that nobody has acknowledged yet.

Owns one number and its bound. Everything held counts: bodies being read, inflated or waiting for their answer, and
records on their way to the broker. It refuses to know what the bytes are.
"""

from __future__ import annotations


class Admission:
    """A bounded count of bytes held. One event loop, no locks."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes_held = 0

    def try_hold(self, size: int) -> bool:
        """Hold `size` more bytes if that stays within the bound."""
        if self.bytes_held + size > self.bytes_max:
            return False
        self.bytes_held += size
        return True

    def hold(self, size: int) -> None:
        """Hold `size` more bytes in any case: they are made of bytes that were admitted."""
        self.bytes_held += size

    def release(self, size: int) -> None:
        """Let go of `size` bytes held before."""
        self.bytes_held -= size
        assert self.bytes_held >= 0, "more bytes released than held"
