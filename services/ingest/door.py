"""The door: one POST of events, from its headers to its answer.

Owns the order of the checks and what each outcome is answered. A plain ASGI callable, since a framework's share of a
request is larger than all of this, and beside it the short road for what came whole. It refuses to know any format's
insides, and how events are packed and sent.

An answer of success means: every event and every dead letter of the request is in the log. Anything else means: send
it again, with the same ids; events that got in all the same are recognised by them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import msgspec
import structlog

from services.ingest.admission import Admission
from services.ingest.body import BodyLimits, CorruptBody, Hold, RefusedBody, SenderGone, inflate, read_body
from services.ingest.decoded import BrokenBody, Rejected
from services.ingest.decoder import Decoder
from services.ingest.group_commit import GroupCommit
from services.ingest.ingest_time import IngestTime
from services.ingest.letters import RAW
from services.ingest.metrics import IngestMetrics, Route
from services.ingest.submission import Submission
from services.ingest.tokens import Caller, TokenBook
from tollgate.metering.errors import DeadReason
from tollgate.runtime.clock import Clock
from tollgate.runtime.http import Receive, Scope, Send
from tollgate.runtime.http_direct import Reply

RETRY_AFTER_SECONDS = 2
"""Long enough for a broker's change of leader, short against what gateways keep queued."""

WRITE = "write"
_JSON_HEADER = (b"content-type", b"application/json")
_log = structlog.get_logger(__name__)

Headers = Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; the body is JSON, or empty."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def all_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """With the type of the body, when there is one."""
        return (*self.headers, _JSON_HEADER) if self.body else self.headers


@dataclass(frozen=True, slots=True)
class Entrance:
    """What differs between the routes that take events."""

    route: Route
    decoder: Decoder
    success: int
    content_types: frozenset[str] | None
    """Media types accepted; None: whatever the header says, it is JSON."""
    quarantine_broken: bool = False
    """A body that cannot be read is kept as a dead letter and answered with success, since its sender would repeat
    it for ever."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """On every success."""


class Refusal(Exception):
    """The request is answered without anything stored."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def refuse(status: int, message: str, **more: object) -> Answer:
    """An answer that says in JSON why not."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if status == 503:
        headers = ((b"retry-after", str(RETRY_AFTER_SECONDS).encode()),)
    if status == 401:
        headers = ((b"www-authenticate", b"Bearer"),)
    return Answer(status, msgspec.json.encode({"error": message, **more}), headers)


async def send_answer(answer: Answer, send: Send) -> None:
    """Write an answer to the connection."""
    headers = list(answer.all_headers)
    if answer.status != 204:
        headers.append((b"content-length", b"%d" % len(answer.body)))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


class Gate:
    """What every request passes first: who calls, and how much is waiting already."""

    def __init__(self, tokens: TokenBook, admission: Admission) -> None:
        self.tokens = tokens
        self.admission = admission

    def admit(self, headers: Headers, scope: str) -> Caller:
        """The caller, who may do `scope`. Raises Refusal (401, 403, 503)."""
        if not self.tokens.known:
            raise Refusal(refuse(503, "tokens have not been read yet"))
        caller = self.tokens.identify(headers)
        if caller is None:
            raise Refusal(refuse(401, "no token in force"))
        if scope not in caller.scopes:
            raise Refusal(refuse(403, f"this token has no scope {scope!r}"))
        return caller

    def recognise(self, headers: Headers, scope: str) -> Caller | None:
        """The caller, who may do `scope`; None when `admit` would refuse."""
        caller = self.tokens.identify(headers) if self.tokens.known else None
        return caller if caller is not None and scope in caller.scopes else None


class Door:
    """Handles the POSTs of one entrance."""

    def __init__(
        self,
        entrance: Entrance,
        *,
        gate: Gate,
        commit: GroupCommit,
        limits: BodyLimits,
        clock: Clock,
        ingest_time: IngestTime,
        metrics: IngestMetrics,
        untrusted_id_sources: frozenset[str] = frozenset(),
    ) -> None:
        self._entrance = entrance
        self._gate = gate
        self._commit = commit
        self._limits = limits
        self._clock = clock
        self._ingest_time = ingest_time
        self._metrics = metrics
        self._untrusted_id_sources = untrusted_id_sources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        started = self._clock.monotonic_seconds()
        hold = Hold(self._gate.admission)
        try:
            answer = await self._serve(scope, receive, hold)
        except Refusal as refusal:
            answer = refusal.answer
        except RefusedBody as refused:
            answer = refuse(refused.status, str(refused))
        except SenderGone:
            return
        finally:
            hold.release()
        self._metrics.count_request(
            self._entrance.route, answer.status, self._clock.monotonic_seconds() - started
        )
        await send_answer(answer, send)

    def expect(self, headers: Headers, size: int) -> bool:
        """Whether `enter` is likely to take a body that is still coming."""
        return size <= self._limits.body_bytes_max and self._recognise(headers) is not None

    def hold(self, size: int) -> bool:
        """Admit `size` bytes of such a body."""
        return self._gate.admission.try_hold(size)

    def forget(self, size: int) -> None:
        """Let go of what `hold` admitted."""
        self._gate.admission.release(size)

    def enter(self, headers: Headers, body: bytes, reply: Reply) -> bool:
        """Serve a request that came whole and has nothing unusual about it; False hands it back untouched.

        The same road as `__call__`'s, without what takes waiting: whatever is refused there is handed back here.
        """
        entrance, gate = self._entrance, self._gate
        caller = self._recognise(headers)
        if caller is None or len(body) > self._limits.body_bytes_max:
            return False
        try:
            reading = entrance.decoder.read(body)
        except BrokenBody:
            return False
        size = len(body)
        if not gate.admission.try_hold(size):
            return False
        started = self._clock.monotonic_seconds()
        arrived_ms = self._ingest_time.now_ms()

        def finish(outcome: Submission) -> None:
            gate.admission.release(size)
            answer = self._answer_outcome(outcome, size, arrived_ms)
            self._metrics.count_request(
                entrance.route, answer.status, self._clock.monotonic_seconds() - started
            )
            reply(answer.status, answer.body, answer.all_headers)

        self._commit.enter(
            caller.source,
            entrance.decoder,
            reading,
            finish,
            trust_ids=caller.source not in self._untrusted_id_sources,
        )
        return True

    def _recognise(self, headers: Headers) -> Caller | None:
        """The caller of a request nothing is unusual about, by its headers."""
        caller = self._gate.recognise(headers, WRITE)
        return caller if b"content-encoding" not in headers and self._takes(headers) else None

    async def _serve(self, scope: Scope, receive: Receive, hold: Hold) -> Answer:
        """1. The request's right to be here. 2. Its body. 3. Its events. 4. The log. 5. The answer."""
        if scope["method"] != "POST":
            raise Refusal(Answer(405, b'{"error":"only POST"}', ((b"allow", b"POST"),)))
        headers: dict[bytes, bytes] = dict(scope["headers"])
        caller = self._gate.admit(headers, WRITE)
        encoding = self._check_headers(headers)

        body = await read_body(receive, _length(headers), self._limits, hold)
        entrance = self._entrance
        try:
            if encoding:
                body = await inflate(body, encoding, self._limits, hold)
            reading = entrance.decoder.read(body)
        except (BrokenBody, CorruptBody) as broken:
            return await self._answer_broken(body, broken, caller)
        size = len(body)
        # The reading alone keeps the bytes, and only until its group is sealed.
        del body
        arrived_ms = self._ingest_time.now_ms()
        waiting = self._commit.submit(
            caller.source,
            entrance.decoder,
            reading,
            trust_ids=caller.source not in self._untrusted_id_sources,
        )
        del reading
        return self._answer_outcome(await waiting, size, arrived_ms)

    def _answer_outcome(self, outcome: Submission, size: int, arrived_ms: int) -> Answer:
        if not outcome.acknowledged:
            return refuse(503, "not acknowledged in time: send it again")
        self._count(outcome, size, arrived_ms)
        return self._answer_counts(outcome.accepted, len(outcome.rejected))

    def _takes(self, headers: Headers) -> bool:
        """Whether this entrance takes the content type."""
        accepted = self._entrance.content_types
        return accepted is None or _media_type(headers.get(b"content-type", b"")) in accepted

    def _check_headers(self, headers: Headers) -> str:
        """The content encoding. Raises Refusal(415) for a content type this entrance does not take."""
        if not self._takes(headers):
            media_type = _media_type(headers.get(b"content-type", b""))
            accepted = ", ".join(sorted(self._entrance.content_types or ()))
            raise Refusal(refuse(415, f"content type {media_type[:80]!r} is none of {accepted}"))
        return headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()

    async def _answer_broken(self, body: bytes, broken: BrokenBody | CorruptBody, caller: Caller) -> Answer:
        if not self._entrance.quarantine_broken:
            position = {"position": broken.position} if isinstance(broken, BrokenBody) else {}
            return refuse(400, f"not JSON: {broken}", reason=DeadReason.BAD_JSON.value, **position)
        whole = Rejected(DeadReason.BAD_JSON, str(broken), body)
        outcome = await self._commit.submit_rejected(caller.source, RAW, whole)
        if not outcome.acknowledged:
            return refuse(503, "not acknowledged in time: send it again")
        self._metrics.count_rejected(self._entrance.route, whole.reason)
        return self._answer_counts(0, 1)

    def _count(self, outcome: Submission, body_bytes: int, arrived_ms: int) -> None:
        age_ms = None if outcome.oldest_ms is None else arrived_ms - outcome.oldest_ms
        self._metrics.count_events(self._entrance.route, body_bytes, outcome.accepted, age_ms)
        if not outcome.rejected:
            return
        for rejected in outcome.rejected:
            self._metrics.count_rejected(self._entrance.route, rejected.reason)
        _log.info(
            "events.rejected",
            route=self._entrance.route.value,
            rejected=len(outcome.rejected),
            accepted=outcome.accepted,
            reasons=sorted({rejected.reason.value for rejected in outcome.rejected}),
        )

    def _answer_counts(self, accepted: int, rejected: int) -> Answer:
        entrance = self._entrance
        if entrance.success == 204:
            counts = ((b"x-tollgate-accepted", b"%d" % accepted), (b"x-tollgate-rejected", b"%d" % rejected))
            return Answer(204, b"", counts + entrance.headers)
        body = b'{"accepted":%d,"rejected":%d}' % (accepted, rejected)
        return Answer(entrance.success, body, entrance.headers)


Handler = Callable[[Scope, Receive, Send], Awaitable[None]]


@lru_cache(maxsize=256)
def _media_type(content_type: bytes) -> str:
    return content_type.decode("latin-1").partition(";")[0].strip().lower()


def _length(headers: Headers) -> int | None:
    announced = headers.get(b"content-length", b"")
    return int(announced) if announced.isdigit() else None
