"""Cursor paging over stored objects.

Owns: ``limit``, ``starting_after``, ``ending_before``. Refuses to know: what is listed.
"""

from collections.abc import Callable
from itertools import islice

from sandbox.stripe.errors import JsonObject
from sandbox.stripe.turns import Call, Turn, page

_LIMIT_DEFAULT = 10
_LIMIT_MAX = 100


def list_objects(
    turn: Turn,
    call: Call,
    kind: str,
    *,
    keep: Callable[[JsonObject], bool] | None = None,
    customer: str | None = None,
    parent: str | None = None,
    created_since: int = 0,
) -> JsonObject:
    """One page of a kind, newest first, with bodies as stored; ``keep`` filters before the limit applies.

    Reads the paging parameters and ``created`` and then refuses unknown ones: read your own filters first.
    """
    limit = call.params.integer("limit", 1, _LIMIT_MAX) or _LIMIT_DEFAULT
    after, before = call.params.text("starting_after"), call.params.text("ending_before")
    low, high = call.params.created_range()
    call.params.finish()
    rows = turn.state.scan(
        kind,
        customer=customer,
        parent=parent,
        newest_first=before is None,
        after=before or after,
        created=(max(low, created_since), high),
    )
    found = list(islice((row for row in rows if keep is None or keep(row)), limit + 1))
    data, has_more = found[:limit], len(found) > limit
    if before is not None:
        data.reverse()
    return page(call, data, has_more)
