"""A backlog: records of events as ingest writes them, and an independent count of what they amount to.

Owns the made-up events and their truth, counted with NumPy while they are made: no line of it is shared with the
meter. It refuses to know Kafka.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from tollgate.contracts.events import (
    EventHeaders,
    assign_partition,
    encode_batch,
    event_schema,
    hash_id,
)

HOUR_MS = 3_600_000
ACCOUNTS = 1_000
USERS_AN_ACCOUNT = 4
PROPERTIES = ("tokens_in", "tokens_out", "model")
INSTANCE = "benchmark-1"
CAPTURE = "benchmark"

_Ints = npt.NDArray[np.int64]

_ROUTES = ("chat", "search", "documents", "health")
_ROUTE_SHARES = (0.3, 0.4, 0.2, 0.1)
_METHODS = ("POST", "GET", "PUT", "GET")
_PATHS = ("/v1/chat", "/v1/search", "/v1/documents/4711", "/health")
_STATUSES = (200, 200, 200, 200, 200, 200, 201, 304, 404, 429, 500, 502)
_AGENTS = ("curl/8.5.0", "python-requests/2.32.3", "okhttp/4.12.0", "Mozilla/5.0 (X11; Linux x86_64)")
_MODELS = ("small", "large", "vision")


@dataclass(frozen=True, slots=True)
class BacklogRecord:
    """One record, for one partition."""

    partition: int
    value: bytes
    headers: EventHeaders
    batch: pa.RecordBatch


@dataclass(slots=True)
class Truth:
    """What the meters must come to: (meter, account, window start) -> quantity, and the number of events."""

    events: int = 0
    duplicates: int = 0
    usage: dict[tuple[str, str, int], int] = field(default_factory=dict)

    def add(self, meter: str, account: str, window_ms: int, quantity: int) -> None:
        key = (meter, account, window_ms)
        self.usage[key] = self.usage.get(key, 0) + quantity


@dataclass(slots=True)
class _Columns:
    """What the truth is counted from, one entry a record, duplicates left out."""

    accounts: list[_Ints] = field(default_factory=list)
    users: list[_Ints] = field(default_factory=list)
    times_ms: list[_Ints] = field(default_factory=list)
    routes: list[_Ints] = field(default_factory=list)
    statuses: list[_Ints] = field(default_factory=list)
    requests: list[_Ints] = field(default_factory=list)
    responses: list[_Ints] = field(default_factory=list)
    latencies: list[_Ints] = field(default_factory=list)
    tokens: list[_Ints] = field(default_factory=list)


class Backlog:
    """Records of `sizes` events each, ascending in time over the two hours before `now_ms`'s own. Seeded.

    A share of `duplicates` are copies of events a record or more earlier in their partition.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        partitions: int,
        id_seed: int,
        now_ms: int,
        seed: int = 20261122,
        accounts: int = ACCOUNTS,
        duplicates: float = 0.01,
    ) -> None:
        self._sizes = sizes
        self._partitions = partitions
        self._id_seed = id_seed
        self._share = duplicates
        self._start_ms = (now_ms // HOUR_MS - 2) * HOUR_MS
        self._rng = np.random.default_rng(seed)
        self._schema = event_schema(PROPERTIES)
        self._names = np.array([f"company:acme-{number:04d}" for number in range(accounts)])
        homes = np.array([assign_partition(str(name), partitions) for name in self._names])
        self._accounts_of = [np.flatnonzero(homes == partition) for partition in range(partitions)]
        self._columns = _Columns()
        self._duplicates = 0
        self._last: dict[int, pa.RecordBatch] = {}
        self._pools = {
            "account": pa.array(self._names.tolist()),
            "company": pa.array([str(name).removeprefix("company:") for name in self._names]),
            "user": pa.array([f"user-{number:05d}" for number in range(accounts * USERS_AN_ACCOUNT)]),
            "client_ip": pa.array([f"203.0.113.{number}" for number in range(1, 255)]),
            "user_agent": pa.array(_AGENTS),
            "route": pa.array(_ROUTES),
            "method": pa.array(_METHODS),
            "path": pa.array(_PATHS),
            "number": pa.array([str(number) for number in range(4_000)]),
            "model": pa.array(_MODELS),
        }

    def records(self) -> Iterator[BacklogRecord]:
        """Every record once, partitions in turn. `truth` is complete afterwards."""
        count = len(self._sizes)
        span_ms = 2 * HOUR_MS - 60_000
        for index, size in enumerate(self._sizes):
            partition = index % self._partitions
            base_ms = self._start_ms + index * span_ms // count
            batch = self._make(partition, size, base_ms)
            headers = EventHeaders(
                source="benchmark", instance=INSTANCE, rows=size, ingest_ms=base_ms + 60_000, capture=CAPTURE
            )
            yield BacklogRecord(partition, encode_batch(batch), headers, batch)

    def _make(self, partition: int, size: int, base_ms: int) -> pa.RecordBatch:
        rng, pools, kept = self._rng, self._pools, self._columns
        fresh = size
        copies = None
        previous = self._last.get(partition)
        if previous is not None and (wanted := int(rng.binomial(size, self._share))):
            wanted = min(wanted, previous.num_rows, size)
            copies = previous.slice(0, wanted)
            fresh = size - wanted
            self._duplicates += wanted
        account = rng.choice(self._accounts_of[partition], fresh)
        user = account * USERS_AN_ACCOUNT + rng.integers(0, USERS_AN_ACCOUNT, fresh)
        time_ms = base_ms + rng.integers(0, 60_000, fresh)
        route = rng.choice(len(_ROUTES), fresh, p=_ROUTE_SHARES)
        status = rng.choice(_STATUSES, fresh)
        request = rng.integers(200, 4_000, fresh)
        response = rng.integers(100, 50_000, fresh)
        latency = 1 + rng.exponential(40, fresh).astype(np.int64)
        chat = (route == 0) & (status < 400)
        tokens_in, tokens_out = rng.integers(1, 4_000, fresh), rng.integers(1, 1_000, fresh)
        for column, values in (
            (kept.accounts, account),
            (kept.users, user),
            (kept.times_ms, time_ms),
            (kept.routes, route),
            (kept.statuses, status),
            (kept.requests, request),
            (kept.responses, response),
            (kept.latencies, latency),
            (kept.tokens, np.where(chat, tokens_in + tokens_out, 0)),
        ):
            column.append(values)
        text = rng.bytes(16 * fresh).hex()
        ids = [text[at : at + 32] for at in range(0, len(text), 32)]

        def pick(pool: str, indexes: npt.NDArray[np.int64]) -> pa.Array:
            return pools[pool].take(pa.array(indexes))

        def pick_where(pool: str, indexes: npt.NDArray[np.int64]) -> pa.Array:
            return pools[pool].take(pa.array(indexes, mask=~chat))

        arrays = {
            "id_hash": pa.array([hash_id(each, self._id_seed) for each in ids], pa.uint64()),
            "id_weak": pa.array(np.zeros(fresh, np.bool_)),
            "id": pa.array(ids),
            "time_ms": pa.array(time_ms),
            "account": pick("account", account),
            "user": pick("user", user),
            "company": pick("company", account),
            "gateway": pa.repeat("kong", fresh),
            "service": pa.repeat("api", fresh),
            "route": pick("route", route),
            "method": pick("method", route),
            "host": pa.repeat("api.example.com", fresh),
            "path": pick("path", route),
            "status": pa.array(status),
            "latency_ms": pa.array(latency),
            "request_bytes": pa.array(request),
            "response_bytes": pa.array(response),
            "client_ip": pick("client_ip", rng.integers(0, 254, fresh)),
            "user_agent": pick("user_agent", rng.integers(0, len(_AGENTS), fresh)),
            "weight": pa.array(np.ones(fresh, np.int64)),
            "blocked_by": pa.array(np.full(fresh, "rate-limit"), mask=status != 429),
            "properties.tokens_in": pick_where("number", tokens_in),
            "properties.tokens_out": pick_where("number", tokens_out),
            "properties.model": pick_where("model", rng.integers(0, len(_MODELS), fresh)),
        }
        batch = pa.RecordBatch.from_arrays(
            [
                arrays[column.name].cast(column.type)
                if column.name in arrays
                else pa.nulls(fresh, column.type)
                for column in self._schema
            ],
            schema=self._schema,
        )
        self._last[partition] = batch
        if copies is None:
            return batch
        return pa.Table.from_batches([batch, copies]).combine_chunks().to_batches()[0]

    def truth(self) -> Truth:
        """The count of everything made so far."""
        kept = self._columns
        account, user = np.concatenate(kept.accounts), np.concatenate(kept.users)
        window = np.concatenate(kept.times_ms) // HOUR_MS
        route, status = np.concatenate(kept.routes), np.concatenate(kept.statuses)
        first = int(window.min())
        key = (window - first) * len(self._names) + account
        truth = Truth(events=int(account.size) + self._duplicates, duplicates=self._duplicates)
        chat = (route == 0) & (status < 400)
        written = (route == 0) | (route == 2)
        everything = np.ones(account.size, np.bool_)
        for meter, matched, amount in (
            ("calls", everything, None),
            ("billable_calls", (status < 500) & (status != 429), None),
            ("chat_calls", chat, None),
            ("writes", written, None),
            ("failures", status >= 500, None),
            ("egress_bytes", everything, np.concatenate(kept.responses)),
            ("ingress_bytes", status < 500, np.concatenate(kept.requests)),
            ("chat_tokens", chat, np.concatenate(kept.tokens)),
        ):
            # Doubles are exact here: every sum is far below 2^53.
            weights = None if amount is None else amount[matched].astype(np.float64)
            sums = np.bincount(key[matched], weights=weights)
            for at in np.flatnonzero(sums):
                truth.add(meter, *self._name_of(int(at), first), int(sums[at]))
        slowest = np.zeros(int(key.max()) + 1, np.int64)
        served = status < 500
        np.maximum.at(slowest, key[served], np.concatenate(kept.latencies)[served])
        for at in np.flatnonzero(slowest):
            truth.add("slowest_call", *self._name_of(int(at), first), int(slowest[at]))
        pairs = np.unique(np.stack([key, user]), axis=1)[0]
        different = np.bincount(pairs)
        for at in np.flatnonzero(different):
            truth.add("active_users", *self._name_of(int(at), first), int(different[at]))
        return truth

    def _name_of(self, key: int, first: int) -> tuple[str, int]:
        return str(self._names[key % len(self._names)]), (first + key // len(self._names)) * HOUR_MS


def count_bare(frame: pl.DataFrame) -> pl.DataFrame:
    """The ten meters as one group-by, the way anybody would write it by hand: the least the rules can cost."""
    status, route, response, request = (
        pl.col(name) for name in ("status", "route", "response_bytes", "request_bytes")
    )
    chat = (route == "chat") & (status < 400)
    tokens = pl.col("properties.tokens_in").cast(pl.Int64) + pl.col("properties.tokens_out").cast(pl.Int64)
    return (
        frame.lazy()
        .group_by("account", pl.col("time_ms") // HOUR_MS)
        .agg(
            pl.len().alias("calls"),
            ((status < 500) & pl.col("blocked_by").is_null()).sum().alias("billable_calls"),
            chat.sum().alias("chat_calls"),
            pl.col("method").is_in(["POST", "PUT"]).sum().alias("writes"),
            (status >= 500).sum().alias("failures"),
            response.sum().alias("egress_bytes"),
            request.filter(status < 500).sum().alias("ingress_bytes"),
            tokens.filter(chat).sum().alias("chat_tokens"),
            pl.col("latency_ms").filter(status < 500).max().alias("slowest_call"),
            pl.col("user").n_unique().alias("active_users"),
        )
        .collect()
    )


BARE_COLUMNS = (
    "account",
    "time_ms",
    "status",
    "blocked_by",
    "route",
    "method",
    "response_bytes",
    "request_bytes",
    "latency_ms",
    "user",
    "properties.tokens_in",
    "properties.tokens_out",
)
