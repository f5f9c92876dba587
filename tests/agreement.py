"""Do ledger and Stripe hold what the history file says, to the unit? What is lost and what is doubled, by key.

Owns the comparison that every test of the whole chain ends with. It refuses to know how the truth was counted
(`sandbox.traffic.truth`) and what went wrong on the way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from sqlalchemy import Engine

from sandbox.stripe.process import StandInControl
from sandbox.traffic.truth import Key, Truth
from tollgate.ledger.progress import load_progress
from tollgate.ledger.usage import usage_rows

OUTCOMES = ("received", "counted", "unmatched", "duplicate", "late", "dead")
TOLD_TWICE = ("duplicate", "late", "dead")
"""What a request that was sent again, since its answer was lost, may end as: its events are in the log twice."""

Totals = Mapping[tuple[str, str, int], Decimal]


@dataclass(frozen=True, slots=True)
class Difference:
    """One key of which too little or too much is there."""

    stage: str
    """ledger, or stripe."""
    meter: str
    who: str
    """The account in the ledger, the customer at Stripe."""
    window_start_ms: int
    expected: Decimal
    found: Decimal

    @property
    def lost(self) -> Decimal:
        return max(Decimal(0), self.expected - self.found)

    @property
    def doubled(self) -> Decimal:
        """What is there beyond the truth, by whatever way it came."""
        return max(Decimal(0), self.found - self.expected)

    def __str__(self) -> str:
        return (
            f"{self.stage}: {self.meter} of {self.who} in window {self.window_start_ms}: "
            f"{self.found} instead of {self.expected}"
        )


@dataclass(slots=True)
class Agreement:
    """What a comparison found."""

    outcomes: dict[str, int] = field(default_factory=dict)
    """The ledger's."""
    expected_outcomes: dict[str, int] = field(default_factory=dict)
    """The history's: each call once, however often it was sent."""
    lost_events: int = 0
    """Events with a 2xx that the ledger did not receive or did not count."""
    doubled_events: int = 0
    """Events counted beyond those with a 2xx."""
    differences: list[Difference] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """What else does not add up."""

    @property
    def holds(self) -> bool:
        """Whether everything is equal."""
        return not (self.differences or self.complaints or self.lost_events or self.doubled_events)

    def lost_units(self, stage: str) -> Decimal:
        """Over all keys of a stage: a loss here and a doubling there do not cancel out."""
        return sum((each.lost for each in self.differences if each.stage == stage), Decimal(0))

    def doubled_units(self, stage: str) -> Decimal:
        """As `lost_units`, for what is there too often."""
        return sum((each.doubled for each in self.differences if each.stage == stage), Decimal(0))

    def words(self) -> list[str]:
        """Every disagreement, in words."""
        found = list(self.complaints)
        if self.lost_events or self.doubled_events:
            found.append(f"{self.lost_events} events lost, {self.doubled_events} doubled")
        return [*found, *map(str, self.differences)]


def compare(engine: Engine, control: StandInControl, truth: Truth, repeated: int) -> Agreement:
    """Hold ledger and Stripe against the truth. `repeated`: calls in requests that were sent again.

    Raises LedgerUnavailable.
    """
    agreement = Agreement(
        outcomes=load_outcomes(engine), expected_outcomes={name: truth.outcomes[name] for name in OUTCOMES}
    )
    compare_outcomes(agreement, repeated)
    expected = {key: Decimal(value) for key, value in truth.usage.items() if value}
    agreement.differences += differences("ledger", expected, ledger_usage(engine))
    agreement.differences += differences("stripe", expected_at_stripe(truth), stripe_totals(control))
    return agreement


def compare_outcomes(agreement: Agreement, repeated: int) -> None:
    """Judge the outcomes in `agreement`. `repeated`: calls in requests that were sent again."""
    got, expected = agreement.outcomes, agreement.expected_outcomes
    counted = sum(got[name] - expected[name] for name in ("counted", "unmatched"))
    agreement.lost_events, agreement.doubled_events = max(0, -counted), max(0, counted)
    if got["unmatched"] != expected["unmatched"]:
        agreement.complaints.append(f"{got['unmatched']} unmatched instead of {expected['unmatched']}")
    # An ingest that dies between the broker's acknowledgement and its own leaves a request that is sent again: its
    # events are in the log twice, and end as duplicates (late and dead ones as what they are). Nothing else may differ.
    twice = {name: got[name] - expected[name] for name in TOLD_TWICE}
    agreement.complaints += [
        f"{-extra} too few ended as {name}" for name, extra in twice.items() if extra < 0
    ]
    extra = got["received"] - expected["received"]
    if extra != sum(twice.values()) + counted:
        agreement.complaints.append(f"{extra} received beyond the history, and outcomes that do not add up")
    if extra > repeated:
        agreement.complaints.append(
            f"{extra} received beyond the history, but only {repeated} were sent again"
        )


def load_outcomes(engine: Engine) -> dict[str, int]:
    """Events by outcome, over all partitions, and how many were received."""
    rows = load_progress(engine, None).values()
    return {name: sum(getattr(row, name) for row in rows) for name in OUTCOMES}


def ledger_usage(engine: Engine) -> dict[tuple[str, str, int], Decimal]:
    """(meter, account, window start) -> quantity, dimensions added up, rows of nothing left out."""
    totals: dict[tuple[str, str, int], Decimal] = defaultdict(Decimal)
    for row in usage_rows(engine):
        # chat_tokens is kept apart by model; every other meter has one row a window.
        totals[row.meter, row.account, row.window_start_ms] += row.quantity
    return {key: value for key, value in totals.items() if value}


def expected_at_stripe(truth: Truth) -> dict[Key, Decimal]:
    """(meter, customer, window start) -> what Stripe has to hold."""
    return {key: Decimal(quantity) for key, quantity in truth.by_customer.items() if quantity}


def stripe_totals(control: StandInControl) -> dict[tuple[str, str, int], Decimal]:
    """(meter, customer, hour) -> what the stand-in holds."""
    totals: dict[tuple[str, str, int], Decimal] = defaultdict(Decimal)
    for row in control.totals():
        key = (str(row["event_name"]), str(row["customer"]), int(row["window_start"]) * 1000)
        totals[key] += Decimal(row["quantity"])
    return dict(totals)


def differences(stage: str, expected: Totals, found: Totals) -> list[Difference]:
    """Every key of either side whose quantities are not equal."""
    zero = Decimal(0)
    return [
        Difference(stage, *key, expected.get(key, zero), found.get(key, zero))
        for key in sorted(expected.keys() | found.keys())
        if expected.get(key, zero) != found.get(key, zero)
    ]
