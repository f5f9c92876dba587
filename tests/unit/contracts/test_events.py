"""Where an account's events go: the same for every process, host and version."""

from __future__ import annotations

import pytest

from tollgate.contracts.events import assign_partition, hash_id


@pytest.mark.parametrize(
    ("account", "of_12", "of_24"),
    [
        ("company:acme", 8, 8),
        ("user:cus_1", 10, 22),
        ("key:0f", 8, 20),
        ("user:zoë", 9, 21),
        ("user:\ud800", 8, 20),
    ],
)
def test_an_accounts_partition_never_changes(account: str, of_12: int, of_24: int) -> None:
    """Written down once: another ingest, or the next release, that sent an account elsewhere would count retries twice."""
    assert (assign_partition(account, 12), assign_partition(account, 24)) == (of_12, of_24)


def test_an_ids_hash_never_changes() -> None:
    """Written down once: ids in the ledger are known by it, and only under the seed they were hashed with."""
    assert hash_id("req-1", 7) == 13226888923464965593
    assert hash_id("req-1", 8) == 3731068699295373160
