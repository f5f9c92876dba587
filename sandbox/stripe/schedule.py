"""What time does: periods end, drafts close, error reports go out, each at its own instant and in order.

Owns: the order of due work. Refuses to know: HTTP and the real clock.
"""

from sandbox.stripe.invoices import finalize
from sandbox.stripe.meter_events import report_errors
from sandbox.stripe.state import State
from sandbox.stripe.subscription_cycle import roll
from sandbox.stripe.turns import Turn


def run_due(state: State, now_ms: int) -> int:
    """Do everything due by ``now_ms``, earliest first, each as of the moment it was due.

    A jump over three months so gives the same invoices as three months of waiting. Call inside a transaction.
    Answers how many objects were due.
    """
    done = 0
    while (due := state.earliest_due(now_ms // 1000)) is not None:
        kind, object_id, due_seconds = due
        turn = Turn(state, due_seconds * 1000)
        # Cleared first: an object that did not set its next moment must not be found again.
        state.set_due(object_id, None)
        if kind == "subscription":
            roll(turn, object_id)
        else:
            invoice = state.find("invoice", object_id)
            if invoice is not None and invoice["status"] == "draft":
                finalize(turn, invoice)
        done += 1
    report_errors(Turn(state, now_ms))
    return done


def is_due(state: State, now_ms: int) -> bool:
    """Whether ``run_due`` might have something to do: two index look-ups, cheap enough for every request."""
    if state.earliest_due(now_ms // 1000) is not None:
        return True
    row = state.connection.execute(
        "SELECT 1 FROM meter_events WHERE reported = 0 AND received_ms < ? LIMIT 1", (now_ms,)
    ).fetchone()
    return row is not None
