"""The repair of one posting: what the last finding on it calls for, once an operator says so.

Owns which operator's action a remedy is, and a finding in words. It refuses to decide what is wrong: a reconciliation
did.
"""

from __future__ import annotations

from collections.abc import Callable

import click

from services.cli.console import format_time
from tollgate.ledger.engine import Engine
from tollgate.ledger.postings import resume_posting, settle_posting
from tollgate.ledger.reconciliations import find_posting_findings, void_missing_posting
from tollgate.metering.reconciliation import Finding, Remedy
from tollgate.runtime.clock import SystemClock

NAMED_MAX = 3
"""Postings spelled out in a table's cell; JSON has them all."""

DOES = {
    Remedy.RESUME: "let it go on, under its old identifier",
    Remedy.SETTLE_DELIVERED: "settle it as delivered: Stripe's summary holds it",
    Remedy.SETTLE_NOT_DELIVERED: "settle it as not delivered, and post its quantity again",
    Remedy.VOID: "take it back as missing at Stripe, and post its quantity again under a new identifier",
}


def spell_finding(finding: Finding) -> str:
    """A finding in words, on one line."""
    words = [str(finding.cause)]
    if finding.quantity:
        words.append(f"{finding.quantity:,f}")
    if finding.hour_s is not None:
        words.append(f"in {format_time(finding.hour_s * 1000)}")
    if finding.detail:
        words.append(f"({finding.detail})")
    if finding.postings:
        named = ", ".join(finding.postings[:NAMED_MAX])
        more = len(finding.postings) - NAMED_MAX
        words.append(named + (f" and {more} more" if more > 0 else ""))
    return " ".join(words)


def repair_posting(engine: Engine, posting: str, yes: bool) -> None:
    """What the newest finding with a remedy calls for. Stripe's own word comes before the ledger's."""
    key, _, text = posting.rpartition(":")
    if not key or not text.isdigit():
        raise click.BadParameter(f"{posting!r} is not KEY:SEQ as `postings list` prints it")
    found = find_posting_findings(engine, posting)
    if not found:
        raise click.ClickException(
            f"no reconciliation says what to do about {posting}; run `tollgate reconcile` first, or see "
            "`tollgate postings` for park, resume and settle"
        )
    kept, finding = min(found, key=lambda pair: pair[1].remedy is Remedy.RESUME)
    assert finding.remedy is not None
    click.echo(f"{posting}: {spell_finding(finding)}, checked {format_time(kept.checked_ms)}")
    if not yes:
        click.confirm(f"Shall I {DOES[finding.remedy]}?", abort=True)
    now_ms = SystemClock().now_ms()
    seq = int(text)
    do: dict[Remedy, Callable[[], bool]] = {
        Remedy.RESUME: lambda: resume_posting(engine, key, seq),
        Remedy.SETTLE_DELIVERED: lambda: settle_posting(engine, key, seq, delivered=True, now_ms=now_ms),
        Remedy.SETTLE_NOT_DELIVERED: lambda: settle_posting(engine, key, seq, delivered=False, now_ms=now_ms),
        Remedy.VOID: lambda: void_missing_posting(engine, key, seq, kept.checked_ms, now_ms),
    }
    if not do[finding.remedy]():
        raise click.ClickException(
            f"{posting} has changed since it was checked; run `tollgate reconcile` again"
        )
    click.echo(f"done: {DOES[finding.remedy]}")
