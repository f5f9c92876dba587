"""Kill schedules, held as data: which service dies when, drawn from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

KILLS_EACH = 3


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL `service` once this share of the events has been acknowledged."""

    at: float
    service: str


def draw_schedule(seed: int, services: tuple[str, ...], kills_each: int = KILLS_EACH) -> tuple[Kill, ...]:
    """Each service `kills_each` times, in a random order, spread over the run with jitter."""
    rng = random.Random(seed)
    victims = [service for service in services for _ in range(kills_each)]
    rng.shuffle(victims)
    step = 0.9 / len(victims)
    return tuple(
        Kill(at=0.05 + step * (index + rng.random() * 0.8), service=service)
        for index, service in enumerate(victims)
    )
