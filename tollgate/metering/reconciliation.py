"""Reconciliation: what was counted, posted, held by Stripe and invoiced for one (customer, meter, period), compared.

Owns the words: what is compared, what a difference is called, how bad it is. The comparing is done by
`tollgate.metering.comparison` (postings with what was counted, and with the invoice) and `tollgate.metering.drift`
(postings with Stripe's summaries). It refuses to know where any of the numbers were read. Times are epoch
milliseconds, those of Stripe's stamps and hours epoch seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal
from enum import StrEnum

EXACT = Context(prec=100)
"""Quantities have 38 digits, and Stripe's doubles as text up to 17: sums of them never round here."""

HOUR_S = 3600
NOTHING = Decimal(0)

PARKED_STATE = "parked"


class Verdict(StrEnum):
    """How bad it is. In order: the worst finding is the subject's verdict."""

    AGREES = "agrees"
    SETTLING = "settling"
    """A difference that goes away by itself: postings under way, or delivered so lately that summaries may lag."""
    EXPLAINED = "explained"
    """A difference with a known cause that an operator may want to do something about."""
    UNCHECKED = "unchecked"
    """Something could not be asked."""
    DRIFT = "drift"
    """A difference that nothing explains."""


_SEVERITY = {verdict: place for place, verdict in enumerate(Verdict)}


class Cause(StrEnum):
    """Why two numbers differ."""

    NOT_PLANNED = "not_planned"
    """Counted since the last planning."""
    HELD = "held"
    """Counted, and not posted for a named reason."""
    WAITING = "waiting"
    """Written down, and not sent yet."""
    IN_FLIGHT = "in_flight"
    """Sent, and Stripe's answer is not known."""
    PARKED = "parked"
    """Written down, and stopped until an operator decides."""
    REHEARSED = "rehearsed"
    """Written down by a dry run."""
    ELSEWHERE = "elsewhere"
    """Billed by other means than the meter, as by an invoice item."""
    UNPOSTED = "unposted"
    """Counted and planned past, and no posting covers it: a fault of ours."""
    LAGGING = "lagging"
    """Delivered lately, and not in Stripe's summary yet."""
    ARRIVED = "arrived"
    """Its answer was lost, and Stripe's summary shows that it arrived."""
    MISSING = "missing"
    """Delivered, and not in Stripe's summary."""
    EXTRA = "extra"
    """In Stripe's summary, and not among what was delivered."""
    NOT_ASKED = "not_asked"
    """Stripe was not asked, and why."""
    AFTER_FINAL = "after_final"
    """Delivered after its invoice was final: on no invoice."""
    NOT_INVOICED = "not_invoiced"
    """Delivered in time, and not on the invoice."""
    OVER_INVOICED = "over_invoiced"
    """On the invoice, and not among what was delivered."""


VERDICTS: Mapping[Cause, Verdict] = {
    Cause.NOT_PLANNED: Verdict.SETTLING,
    Cause.HELD: Verdict.EXPLAINED,
    Cause.WAITING: Verdict.SETTLING,
    Cause.IN_FLIGHT: Verdict.SETTLING,
    Cause.PARKED: Verdict.EXPLAINED,
    Cause.REHEARSED: Verdict.EXPLAINED,
    Cause.ELSEWHERE: Verdict.EXPLAINED,
    Cause.UNPOSTED: Verdict.DRIFT,
    Cause.LAGGING: Verdict.SETTLING,
    Cause.ARRIVED: Verdict.SETTLING,
    Cause.MISSING: Verdict.DRIFT,
    Cause.EXTRA: Verdict.DRIFT,
    Cause.NOT_ASKED: Verdict.UNCHECKED,
    Cause.AFTER_FINAL: Verdict.EXPLAINED,
    Cause.NOT_INVOICED: Verdict.DRIFT,
    Cause.OVER_INVOICED: Verdict.DRIFT,
}


class Remedy(StrEnum):
    """What an operator may do about each posting that a finding names. Never done unasked."""

    RESUME = "resume"
    SETTLE_DELIVERED = "settle_delivered"
    SETTLE_NOT_DELIVERED = "settle_not_delivered"
    VOID = "void"
    """Take a delivered posting back, so that its quantity is posted again under a new identifier."""


class Standing(StrEnum):
    """Where a posting stands as seen from Stripe."""

    AT_STRIPE = "at_stripe"
    DOUBTFUL = "doubtful"
    """Tried: Stripe may have it or not."""
    WAITING = "waiting"
    PARKED = "parked"
    """Stopped before it was ever tried."""
    REHEARSED = "rehearsed"
    VOID = "void"
    REVERSAL = "reversal"
    SUPERSEDED = "superseded"
    """Never sent, since a later total of its chain replaces it."""


class Effect(StrEnum):
    """What a posting's mode does to Stripe's count."""

    ADDS = "adds"
    REPLACES_HOUR = "replaces_hour"
    """Its value replaces what the customer's UTC hour held."""
    REPLACES_STAMP = "replaces_stamp"
    """Its value replaces what was recorded under the same second."""
    ELSEWHERE = "elsewhere"
    """It does not go through the meter."""


EFFECTS: Mapping[str, Effect] = {
    "delta": Effect.ADDS,
    "window_total": Effect.REPLACES_HOUR,
    "usage_record": Effect.REPLACES_STAMP,
}
"""By posting mode. A mode that is not here bills by other means."""


@dataclass(frozen=True, slots=True, order=True)
class Subject:
    """What is reconciled: one customer's usage of one Billing Meter in one period `[start, end)`."""

    customer_id: str
    event_name: str
    period_start_ms: int
    period_end_ms: int


@dataclass(frozen=True, slots=True)
class Link:
    """One posting of a chain. `quantity` is what it adds to the chain, `sent` the value its body tells Stripe."""

    posting_key: str
    seq: int
    stamp_s: int
    quantity: Decimal
    sent: Decimal
    effect: Effect
    standing: Standing
    state: str
    last_sent_ms: int | None = None
    settled_ms: int | None = None

    @property
    def ref(self) -> str:
        """As operators write it."""
        return f"{self.posting_key}:{self.seq}"

    @property
    def hour_s(self) -> int:
        """The UTC hour its stamp lies in."""
        return self.stamp_s - self.stamp_s % HOUR_S


@dataclass(frozen=True, slots=True)
class Missing:
    """The part of a chain's usage that no posting covers. `due`: planning has read past all of it."""

    posting_key: str
    quantity: Decimal
    hold_reason: str | None
    due: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference and its cause. `postings` are KEY:SEQ; `hour_s` the UTC hour it was found in, if in one."""

    cause: Cause
    quantity: Decimal
    detail: str = ""
    postings: tuple[str, ...] = ()
    hour_s: int | None = None
    remedy: Remedy | None = None

    @property
    def verdict(self) -> Verdict:
        """How bad it is."""
        return VERDICTS[self.cause]

    def to_document(self) -> dict[str, object]:
        """As it is kept."""
        return {
            "cause": str(self.cause),
            "quantity": f"{self.quantity:f}",
            "detail": self.detail,
            "postings": list(self.postings),
            "hour_s": self.hour_s,
            "remedy": None if self.remedy is None else str(self.remedy),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> Finding:
        """Inverse of `to_document`."""
        hour_s, remedy, postings = document["hour_s"], document["remedy"], document["postings"]
        assert isinstance(postings, list)
        assert hour_s is None or isinstance(hour_s, int)
        return cls(
            cause=Cause(str(document["cause"])),
            quantity=Decimal(str(document["quantity"])),
            detail=str(document["detail"]),
            postings=tuple(str(ref) for ref in postings),
            hour_s=hour_s,
            remedy=None if remedy is None else Remedy(str(remedy)),
        )


@dataclass(frozen=True, slots=True)
class Posted:
    """What the ledger says of a subject. `counted` is its usage, `delivered` what of it Stripe should hold."""

    counted: Decimal
    delivered: Decimal
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class InvoiceLines:
    """What a final invoice bills for a subject: the sum of its lines over `[start, end)`, finalized when."""

    invoice_id: str
    start_ms: int
    end_ms: int
    quantity: Decimal
    finalized_ms: int


def worst(findings: Iterable[Finding]) -> Verdict:
    """The verdict over all findings; `agrees` over none."""
    return max((finding.verdict for finding in findings), key=_SEVERITY.__getitem__, default=Verdict.AGREES)


def add_up(quantities: Iterable[Decimal]) -> Decimal:
    """Their exact sum."""
    total = NOTHING
    for quantity in quantities:
        total = EXACT.add(total, quantity)
    return total
