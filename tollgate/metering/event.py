"""An event: one API call as the gateway logged it, one row of columns.

Owns the columns of contract `events/1`. It refuses to know gateways' formats and meters.

`account` is who pays: `company:<id>`, else `user:<id>`, else `key:<keyed hash>`. A captured property is one more
nullable text column named `properties.<name>`; a column absent from a record is not the same as null: the sender was
not configured to capture it.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

PROPERTY_PREFIX = "properties."

SCHEMA: pa.Schema = pa.schema(
    [
        # 64-bit xxh3 of the id, seeded with a secret: what de-duplication compares.
        pa.field("id_hash", pa.uint64(), nullable=False),
        # True when the id is a hash over fields because the gateway gave none.
        pa.field("id_weak", pa.bool_(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        # When the call happened, epoch milliseconds UTC: this alone chooses the window.
        pa.field("time_ms", pa.int64(), nullable=False),
        pa.field("account", pa.string(), nullable=False),
        pa.field("user", pa.string()),
        pa.field("company", pa.string()),
        pa.field("subscription", pa.string()),
        # A keyed hash in hex, never the key itself.
        pa.field("api_key", pa.string()),
        pa.field("gateway", pa.string(), nullable=False),
        pa.field("service", pa.string()),
        pa.field("route", pa.string()),
        pa.field("method", pa.string()),
        pa.field("host", pa.string()),
        # Without query and port.
        pa.field("path", pa.string()),
        pa.field("status", pa.int16()),
        pa.field("latency_ms", pa.int64()),
        pa.field("request_bytes", pa.int64()),
        pa.field("response_bytes", pa.int64()),
        pa.field("client_ip", pa.string()),
        pa.field("user_agent", pa.string()),
        # How many calls this row stands for (1 unless the gateway sampled).
        pa.field("weight", pa.int64(), nullable=False),
        # The governance rule that blocked the call, or `kong` when the gateway itself answered (401, 429, 502 …).
        pa.field("blocked_by", pa.string()),
    ]
)
"""The fixed columns of an event, in order."""


def event_schema(properties: Iterable[str] = ()) -> pa.Schema:
    """The schema of a record that captures `properties` (bare names), which follow the fixed columns in sorted order."""
    schema = SCHEMA
    for name in sorted(set(properties)):
        schema = schema.append(pa.field(PROPERTY_PREFIX + name, pa.string()))
    return schema
