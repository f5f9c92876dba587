"""The history file: what was sent and how it was answered, one JSON array a line. It is the truth others are held to.

Owns writing and reading that file. It refuses to know what ought to come out: that is `truth.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import msgspec

from sandbox.traffic.calls import Call, Identity, Kind
from sandbox.traffic.formats import Format

_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Sent:
    """One call in one acknowledged request."""

    call: Call
    format: Format


class HistoryWriter:
    """Appends acknowledged batches. A batch is written once its 2xx has arrived, so the file holds accepted calls only."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")

    def __enter__(self) -> HistoryWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, calls: list[Call], wire: Format) -> None:
        """Write these calls down as accepted."""
        self._file.writelines(_encoder.encode(_to_row(call, wire)) + b"\n" for call in calls)
        self._file.flush()


def _to_row(call: Call, wire: Format) -> list[object]:
    return [
        wire,
        call.kind,
        call.id,
        call.time_ms,
        call.identity.customer,
        call.identity.user,
        call.identity.company,
        call.route,
        call.method,
        call.path,
        call.status,
        call.latency_ms,
        call.request_bytes,
        call.response_bytes,
        call.client_ip,
        call.user_agent,
        call.answered_by_gateway,
        call.tokens_in,
        call.tokens_out,
        call.model,
    ]


def read_history(path: Path) -> Iterator[Sent]:
    """Every accepted call of the file, in the order their answers came."""
    decoder = msgspec.json.Decoder(list[object])
    with path.open("rb") as lines:
        for line in lines:
            wire, kind, id_, time_ms, customer, user, company, *rest = decoder.decode(line)
            identity = Identity(str(customer), user, company)  # type: ignore[arg-type]
            call = Call(Kind(str(kind)), str(id_), int(str(time_ms)), identity, *rest)  # type: ignore[arg-type]
            yield Sent(call, Format(str(wire)))
