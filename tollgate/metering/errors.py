"""What can go wrong with an event or a meter, and what to do about each.

MeteringError
  InvalidEvent(reason)   dead-letter it; never retry
  InvalidMeter           refuse to start or to apply
  InvariantViolated      a bug: stop the process
"""

from __future__ import annotations

from enum import StrEnum


class DeadReason(StrEnum):
    """Why an event ended as dead (or late). Written by ingest unless said otherwise."""

    BAD_JSON = "bad_json"
    """The body, or one entry of it, is not JSON."""
    NOT_AN_OBJECT = "not_an_object"
    """An entry of the array is not a JSON object."""
    NO_IDENTITY = "no_identity"
    """Neither company, user nor API key: nobody to bill."""
    NO_TIME = "no_time"
    BAD_TIME = "bad_time"
    NO_ID = "no_id"
    """CloudEvents without id or source: nothing to recognise a retry by."""
    BAD_TYPE = "bad_type"
    """A field we need has the wrong JSON type."""
    OUT_OF_RANGE = "out_of_range"
    """A number outside its column: negative size, status beyond 16 bits, 1e999, NaN."""
    TOO_LARGE = "too_large"
    """One event's kept part is past its cap."""
    TOO_DEEP = "too_deep"
    """Nested beyond the decoder's limit."""
    UNSUPPORTED = "unsupported"
    """Well-formed, but of a kind that is not metered (a TCP stream entry, an unknown CloudEvents specversion)."""
    FUTURE = "future"
    """More than five minutes ahead of its record's ingest time (meter)."""
    LATE = "late"
    """Older than accept_age at its record's ingest time (meter); outcome `late`, kept here for an explicit command."""
    UNDECODABLE_RECORD = "undecodable_record"
    """A whole record whose value is not what its headers promise (meter)."""
    MISPLACED = "misplaced"
    """Written by an ingest that knew another partition count than was in force: where its retries are looked for,
    nobody knows (meter)."""
    EVALUATION_FAILED = "evaluation_failed"
    """A meter's expression raised on this event and on it alone (meter)."""


class MeteringError(Exception):
    """Base of everything the rules raise."""


class InvalidEvent(MeteringError):
    """This event cannot be counted, now or ever: it becomes a dead letter with this reason."""

    def __init__(self, reason: DeadReason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail


class InvalidMeter(MeteringError):
    """The meters cannot be applied. `problems` names all of them, one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class InvariantViolated(MeteringError):
    """Something that cannot be, is. Going on would falsify counts: stop the process."""
