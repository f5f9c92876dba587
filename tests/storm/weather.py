"""Weather: what a stretch of network does to the bytes that pass it.

Owns the kinds of trouble and their numbers. It refuses to know sockets.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Weather:
    """Nothing set: bytes pass as they come."""

    cut: bool = False
    """Connections are reset, new ones too."""
    frozen: bool = False
    """Nothing passes and nothing breaks, as when packets are lost; what was held passes afterwards."""
    latency_ms: int = 0
    """Each piece of data waits so long."""
    jitter_ms: int = 0
    """And up to so much longer."""
    bytes_per_second: int = 0
    """How much passes in one direction of one connection; 0: everything."""
    lost_replies_percent: int = 0
    """Of the answers, how many are swallowed: the question has arrived, and the connection is reset."""
    cut_after: bytes = b""
    """A question that contains this arrives, and the connection is reset before the answer."""


CALM = Weather()
