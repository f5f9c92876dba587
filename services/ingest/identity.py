"""Identity: who made a call and which call it was, without keeping what identifies them in clear.

Owns keyed hashes of API keys, weak ids, and the account an event is billed to. It refuses to know any format.
"""

from __future__ import annotations

import hashlib

import xxhash

HASHED_MARK = "keyed:"
"""What stands before the hash of an API key in a dead letter, so that a replay does not hash the hash."""

WEAK_PREFIX = "weak:"


class KeyHasher:
    """Turns an API key into 32 hex digits that mean nothing without the installation's secret."""

    def __init__(self, key_seed: bytes) -> None:
        """`key_seed` may have any length of 16 bytes or more; ValueError below that."""
        if len(key_seed) < 16:
            raise ValueError("the key seed needs 16 bytes or more")
        self._keyed = hashlib.blake2b(digest_size=16, key=hashlib.sha256(key_seed).digest())

    def hash_key(self, api_key: str) -> str:
        """The keyed hash of an API key in clear."""
        digest = self._keyed.copy()
        digest.update(api_key.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def read_key(self, text: str | None, replayed: bool) -> str | None:
        """The hash for a key as an entry gives it; a replayed entry gives a hash already."""
        if not text:
            return None
        if replayed and text.startswith(HASHED_MARK):
            return text.removeprefix(HASHED_MARK)
        return self.hash_key(text)


def weak_id(*values: object) -> str:
    """An id made of values the gateway set, for an event that brings none. Equal values are taken for one event."""
    return WEAK_PREFIX + xxhash.xxh3_128_hexdigest(repr(values).encode("utf-8", "surrogatepass"))


def name_account(company: str | None, user: str | None, api_key: str | None) -> str | None:
    """Who pays: the company, else the user, else the holder of the key; None when there is nobody."""
    if company:
        return "company:" + company
    if user:
        return "user:" + user
    if api_key:
        return "key:" + api_key
    return None
