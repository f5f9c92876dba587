"""Faults on demand.

Owns: rules, which requests they match, and which of those they hit. Refuses to know: how a fault is acted out (http).
"""

import hashlib
import json
import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from sandbox.stripe.errors import JsonObject
from sandbox.stripe.state import State, new_id

Kind = Literal[
    "drop_before",
    "drop_after",
    "error_500_before",
    "error_500_after",
    "rate_limit_429",
    "lock_timeout",
    "conflict_409",
    "unauthorized_401",
    "forbidden_403",
    "delay",
]


class Match(BaseModel):
    """Which requests a rule is about; what is left out matches all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str | None = None
    path: str | None = Field(default=None, description="a regular expression, searched for in the path")
    customer: str | None = None
    event_name: str | None = None

    @field_validator("path")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            re.compile(value)
        return value


class Rule(BaseModel):
    """One fault: what it matches, what happens, and how often.

    ``times`` hits the first matches (after ``skip``); ``probability`` hits each match by a draw from ``seed``; neither
    hits every match.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    match: Match = Match()
    kind: Kind
    times: int | None = Field(default=None, ge=1)
    skip: int = Field(default=0, ge=0)
    probability: float | None = Field(default=None, gt=0, le=1)
    seed: int = 0
    saved: bool | None = Field(
        default=None,
        description="whether a 500 is kept under the idempotency key; by default only error_500_after is",
    )
    should_retry: bool | None = Field(default=None, description="the Stripe-Should-Retry header of a 429")
    reason: str | None = Field(default=None, description="Stripe-Rate-Limited-Reason of rate_limit_429")
    delay_ms: int = Field(default=0, ge=0, description="real milliseconds, for delay")

    @property
    def keeps_500(self) -> bool:
        """Whether the 500 is kept under the idempotency key."""
        return self.kind == "error_500_after" if self.saved is None else self.saved

    def matches(self, method: str, path: str, customer: str | None, event_name: str | None) -> bool:
        """Whether a request is one the rule is about."""
        match = self.match
        return (
            (match.method is None or match.method.upper() == method)
            and (match.path is None or re.search(match.path, path) is not None)
            and (match.customer is None or match.customer == customer)
            and (match.event_name is None or match.event_name == event_name)
        )

    def hits(self, number: int, hits_so_far: int) -> bool:
        """Whether the match with this number (from 0) is hit."""
        if number < self.skip or (self.times is not None and hits_so_far >= self.times):
            return False
        if self.probability is None:
            return True
        digest = hashlib.sha256(f"{self.seed}:{number}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.probability * 2**64


def add(state: State, rule: Rule) -> str:
    """Store a rule; answers its id."""
    rule_id = new_id("fault")
    state.connection.execute("INSERT INTO faults (id, rule) VALUES (?, ?)", (rule_id, rule.model_dump_json()))
    return rule_id


def clear(state: State, rule_id: str | None = None) -> int:
    """Forget one rule, or all; answers how many."""
    if rule_id is None:
        return state.connection.execute("DELETE FROM faults").rowcount
    return state.connection.execute("DELETE FROM faults WHERE id = ?", (rule_id,)).rowcount


def listed(state: State) -> list[JsonObject]:
    """Every rule with how many requests it matched and hit."""
    return [
        {"id": row["id"], **json.loads(row["rule"]), "matched": row["matched"], "hits": row["hits"]}
        for row in state.connection.execute("SELECT * FROM faults ORDER BY seq")
    ]


def strike(
    state: State, method: str, path: str, customer: str | None, event_name: str | None
) -> tuple[Rule | None, int]:
    """The fault this request meets, and the delay (real milliseconds) it suffers before.

    Every matching rule counts the match; delays add up; of the other rules the first that hits wins.
    """
    rows = state.connection.execute("SELECT seq, rule, matched, hits FROM faults ORDER BY seq").fetchall()
    chosen: Rule | None = None
    delay_ms = 0
    touched: list[tuple[int, int]] = []
    for row in rows:
        rule = Rule.model_validate_json(row["rule"])
        if not rule.matches(method, path, customer, event_name):
            continue
        hit = (rule.kind == "delay" or chosen is None) and rule.hits(row["matched"], row["hits"])
        touched.append((int(hit), row["seq"]))
        if hit and rule.kind == "delay":
            delay_ms += rule.delay_ms
        elif hit:
            chosen = rule
    if touched:
        with state.transaction():
            state.connection.executemany(
                "UPDATE faults SET matched = matched + 1, hits = hits + ? WHERE seq = ?", touched
            )
    return chosen, delay_ms
