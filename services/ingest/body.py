"""A request's body: read from the connection and decompressed, never more of it than allowed.

Owns both caps, the encodings, and the bytes held meanwhile. It refuses to know what the bytes mean.
"""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import dataclass

from services.ingest.admission import Admission
from tollgate.runtime.http import Receive

_SLICE_BYTES = 1024 * 1024
"""Inflated at most this much before the cap is looked at and other requests get their turn."""

_GZIP_BITS = 31
_ZLIB_BITS = 15
_RAW_BITS = -15


class RefusedBody(Exception):
    """The body is not taken; `status` is the HTTP status that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class CorruptBody(Exception):
    """The compression does not decode: there is nothing to be had from these bytes, now or later."""


class SenderGone(Exception):
    """The connection closed before the body was complete."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """The caps on one body, in bytes, and how long it may take to arrive."""

    body_bytes_max: int
    inflated_bytes_max: int
    timeout_seconds: float


class Hold:
    """The bytes of one request, held until `release`."""

    __slots__ = ("_admission", "size")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.size = 0

    def grow(self, size: int) -> None:
        """Hold more. Raises RefusedBody(503) when this process holds too much already."""
        if not self._admission.try_hold(size):
            raise RefusedBody(503, "too much is waiting to be acknowledged")
        self.size += size

    def release(self) -> None:
        self._admission.release(self.size)
        self.size = 0


async def read_body(receive: Receive, length: int | None, limits: BodyLimits, hold: Hold) -> bytes:
    """The whole body as sent. `length` is what the sender announced.

    Raises RefusedBody (413 over the cap, 408 too slow, 503 too much held), SenderGone.
    """
    if length is not None and length > limits.body_bytes_max:
        raise RefusedBody(413, f"the body is larger than {limits.body_bytes_max} bytes")
    try:
        # From the headers on: who sends no body at all must not keep a request open for ever.
        async with asyncio.timeout(limits.timeout_seconds):
            return await _read_chunks(receive, limits.body_bytes_max, hold)
    except TimeoutError:
        raise RefusedBody(408, "the body did not arrive in time") from None


async def _read_chunks(receive: Receive, body_bytes_max: int, hold: Hold) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise SenderGone
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > body_bytes_max:
            raise RefusedBody(413, f"the body is larger than {body_bytes_max} bytes")
        hold.grow(len(chunk))
        chunks.append(chunk)
        if not message.get("more_body"):
            # The usual case: a small body arrives with its headers, in one piece, which is not copied.
            return b"".join(chunks) if len(chunks) > 1 else chunk


async def inflate(body: bytes, encoding: str, limits: BodyLimits, hold: Hold) -> bytes:
    """The body behind one content encoding: gzip, deflate (zlib-wrapped or raw), or identity.

    Raises RefusedBody (413 over the cap, 415 unknown encoding, 503 too much held), CorruptBody.
    """
    if encoding in ("", "identity"):
        return body
    if encoding in ("gzip", "x-gzip"):
        bits = _GZIP_BITS
    elif encoding == "deflate":
        # The standard says zlib-wrapped; some senders leave the wrapping out.
        wrapped = len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
        bits = _ZLIB_BITS if wrapped else _RAW_BITS
    else:
        raise RefusedBody(415, f"content encoding {encoding[:40]!r} is none of gzip, deflate, identity")
    parts: list[bytes] = []
    size = 0
    decompressor = zlib.decompressobj(bits)
    rest = body
    try:
        while True:
            part = decompressor.decompress(rest, _SLICE_BYTES)
            size += len(part)
            if size > limits.inflated_bytes_max:
                raise RefusedBody(413, f"the body inflates to more than {limits.inflated_bytes_max} bytes")
            hold.grow(len(part))
            parts.append(part)
            if decompressor.eof:
                rest = decompressor.unused_data
                if not rest or bits != _GZIP_BITS:
                    break
                # gzip files may follow one another.
                decompressor = zlib.decompressobj(bits)
            else:
                rest = decompressor.unconsumed_tail
                if not rest and not part:
                    break
            if len(part) == _SLICE_BYTES:
                await asyncio.sleep(0)
    except zlib.error as error:
        raise CorruptBody(f"{encoding}: {error}") from None
    if not decompressor.eof:
        raise CorruptBody(f"{encoding}: it ends too early")
    if rest:
        raise CorruptBody(f"{encoding}: something follows its end")
    return b"".join(parts)
