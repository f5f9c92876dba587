"""Which tests a machine can run: those that need Kafka are left out, out loud, where there is none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

KAFKA_FIXTURES = frozenset({"kafka", "kafka_settings"})
OWN_KAFKA_FIXTURES = frozenset({"own_kafka"})


@dataclass(slots=True)
class Selection:
    """What this session did not run, and why."""

    kafka_absent: str | None = None
    own_kafka_absent: str | None = None
    not_run: list[str] = field(default_factory=list)
    on_embedded: set[str] = field(default_factory=set)

    def report(self) -> list[str]:
        """The lines for the end of the run; empty when everything ran on the real thing."""
        if not (self.not_run or self.on_embedded):
            return []
        lines = [f"There is no Apache Kafka here: {self.kafka_absent or self.own_kafka_absent}"]
        if self.not_run:
            lines.append(f"{len(self.not_run)} tests did NOT run:")
            lines += [f"  {name}" for name in sorted(self.not_run)]
        if self.on_embedded:
            lines.append(f"{len(self.on_embedded)} tests ran on the embedded broker instead:")
            lines += [f"  {name}" for name in sorted(self.on_embedded)]
        return lines


def needs_kafka(fixtures: Iterable[str], marks: Iterable[str]) -> bool:
    """Whether a test with these fixtures and marks can run on nothing but Kafka."""
    return bool(KAFKA_FIXTURES & set(fixtures)) or "kafka" in marks


def needs_own_kafka(fixtures: Iterable[str]) -> bool:
    """Whether a test kills or stops the broker, so that somebody else's will not do."""
    return bool(OWN_KAFKA_FIXTURES & set(fixtures))


def touches_broker(fixtures: Sequence[str]) -> bool:
    """Whether a test takes Kafka where there is one and the embedded broker otherwise."""
    return "broker_settings" in fixtures
