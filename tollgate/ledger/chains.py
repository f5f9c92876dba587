"""Posting chains as they stand.

Owns the step from a chain's notable rows to `Chain`. It refuses to know what the next link will be.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, func, select

from tollgate.ledger.chunks import among, key_chunks
from tollgate.ledger.plan_rows import (
    Chain,
    VoidLink,
)
from tollgate.ledger.posting_rows import UNSETTLED, PostingMode, PostingState
from tollgate.ledger.tables import (
    postings,
)


def load_chains(connection: Connection, keys: Sequence[str]) -> dict[str, Chain]:
    """The chains of `keys` as they stand; a key without postings is absent."""
    links: dict[str, list[Any]] = defaultdict(list)
    newest = select(postings.c.posting_key, func.max(postings.c.seq).label("seq")).group_by(
        postings.c.posting_key
    )
    notable = (*UNSETTLED, PostingState.VOID, PostingState.REVERSAL, PostingState.DRY_RUN)
    for chunk in key_chunks(connection, keys):
        of_them = among(connection, [postings.c.posting_key], [(key,) for key in chunk])
        last = newest.where(of_them).subquery()
        for row in connection.execute(
            select(postings)
            .join(last, last.c.posting_key == postings.c.posting_key)
            .where(
                (postings.c.seq == last.c.seq) | postings.c.state.in_(notable),
            )
            .order_by(postings.c.posting_key, postings.c.seq)
        ):
            links[row.posting_key].append(row)
    return {key: _chain(rows) for key, rows in links.items()}


def _chain(rows: Sequence[Any]) -> Chain:
    """A chain from its notable links in order; the last of `rows` is its last link."""
    last = rows[-1]
    reversed_seqs = {
        seq for row in rows if row.mode == PostingMode.REVERSAL for seq in json.loads(row.body)["reverses"]
    }
    voids = tuple(
        VoidLink(row.seq, row.quantity_to - row.quantity_from)
        for row in rows
        if row.state == PostingState.VOID and row.seq not in reversed_seqs
    )
    rehearsed = [r.quantity_to - r.quantity_from for r in rows if r.state == PostingState.DRY_RUN]
    rejected = None
    if last.state == PostingState.REVERSAL:
        refused = json.loads(last.body)["reverses"]
        errors = [row.error or "" for row in rows if row.seq in refused]
        codes = [text.split(":")[1] for text in errors if text.startswith("rejected:")]
        rejected = codes[-1] if codes else None
    return Chain(
        last_seq=last.seq,
        last_to=last.quantity_to,
        unsettled=any(row.state in UNSETTLED for row in rows),
        blocked=any(
            row.state in UNSETTLED and (row.first_sent_ms is not None or row.state == PostingState.PARKED)
            for row in rows
        ),
        voids=voids,
        dry_run_quantity=sum(rehearsed, Decimal(0)),
        has_dry_run=bool(rehearsed),
        rejected_code=rejected,
    )
