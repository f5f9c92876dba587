"""Where an account's events go: the same for every process, host and version."""

from __future__ import annotations

import pytest

from tollgate.contracts.events import assign_partition, hash_id, instance_name, written_for


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


@pytest.mark.parametrize(
    ("instance", "partitions"),
    [
        (instance_name("ingest-0a1b", 4), 4),
        (instance_name("a/b/24", 12), 12),
        ("ingest-0a1b", 0),  # an older release's
        ("x/12-0a1b", 0),  # an older release's, of somebody's naming
        ("x/", 0),
        ("x/012", 0),
        ("x/١٢", 0),
        ("x/1234567", 0),
        ("", 0),
    ],
)
def test_an_instance_says_by_how_many_partitions_it_assigns(instance: str, partitions: int) -> None:
    """By the end of its name, and nothing that only looks like it; the recount reads the same by itself."""
    assert written_for(instance) == partitions


def test_an_account_stays_or_goes_to_a_child_of_its_partition() -> None:
    """What a cut-over to a multiple rests on."""
    for number in range(200):
        account = f"user:{number}"
        assert assign_partition(account, 12) % 4 == assign_partition(account, 4)
