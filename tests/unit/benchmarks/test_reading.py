"""What benchmarks read from others: HTTP answers, Prometheus text, and the truth of a backlog."""

from __future__ import annotations

import pytest

from benchmarks.backlog import Backlog, Truth
from benchmarks.load import answer_size
from benchmarks.metrics import parse_samples, quantile
from tollgate.contracts.events import decode_batch

TEXT = """# TYPE age histogram
age_bucket{le="1.0"} 50
age_bucket{le="2.0"} 90
age_bucket{le="+Inf"} 100
age_sum 1
age_count 100
# TYPE events counter
events_total{outcome="a",route="x"} 3
events_total{outcome="a",route="y"} 4
events_total{outcome="b",route="y"} 5
"""


def test_answer_size_is_head_and_body() -> None:
    """An answer ends where its announced length ends; an incomplete head has no size yet."""
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx: y\r\n\r\nhello"
    assert answer_size(answer) == len(answer)
    assert answer_size(answer[:30]) is None
    assert answer_size(b"HTTP/1.1 204 No Content\r\n\r\n") == 27


def test_totals_add_up_over_the_labels_not_given() -> None:
    """A series is summed over every label that is not asked for."""
    samples = parse_samples(TEXT)
    assert samples.total("events_total", outcome="a") == 7
    assert samples.total("events_total") == 12


def test_quantile_is_interpolated_within_its_bucket() -> None:
    """Half way through a bucket's observations is half way through the bucket; beyond the last bound, the bound."""
    buckets = parse_samples(TEXT).buckets("age")
    assert quantile(buckets, 0.25) == 0.5
    assert quantile(buckets, 0.7) == 1.5
    assert quantile(buckets, 0.99) == 2.0
    with pytest.raises(ValueError, match="no quantile"):
        quantile([], 0.5)


def test_truth_of_a_backlog_equals_a_count_row_by_row() -> None:
    """The vectorised truth agrees with a naive loop over the decoded records."""
    backlog = Backlog([40, 60, 50, 70, 30], partitions=2, id_seed=1, now_ms=1_795_392_000_000)
    rows = [row for record in backlog.records() for row in decode_batch(record.value).to_pylist()]
    naive = Truth(events=len(rows))
    seen: set[int] = set()
    users: dict[tuple[str, int], set[str]] = {}
    for row in rows:
        if row["id_hash"] in seen:
            naive.duplicates += 1
            continue
        seen.add(row["id_hash"])
        key = (row["account"], row["time_ms"] // 3_600_000 * 3_600_000)
        naive.add("calls", *key, 1)
        if row["status"] < 500 and row["blocked_by"] is None:
            naive.add("billable_calls", *key, 1)
        if row["route"] == "chat" and row["status"] < 400:
            naive.add("chat_calls", *key, 1)
            tokens = int(row["properties.tokens_in"]) + int(row["properties.tokens_out"])
            naive.add("chat_tokens", *key, tokens)
        if row["method"] in ("POST", "PUT"):
            naive.add("writes", *key, 1)
        naive.add("egress_bytes", *key, row["response_bytes"])
        if row["status"] >= 500:
            naive.add("failures", *key, 1)
        else:
            naive.add("ingress_bytes", *key, row["request_bytes"])
            slowest = ("slowest_call", *key)
            naive.usage[slowest] = max(naive.usage.get(slowest, 0), row["latency_ms"])
        users.setdefault(key, set()).add(row["user"])
    for (account, window), found in users.items():
        naive.add("active_users", account, window, len(found))
    assert backlog.truth() == naive
    assert naive.duplicates > 0
