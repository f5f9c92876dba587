from __future__ import annotations

import json

import pytest

from tollgate.metering.errors import InvalidMeter
from tollgate.metering.meter import Meter, Metric, MetricKind, WindowSize, lint_meters, parse_meters

GOOD = """
meters:
  - name: chat_tokens
    where: route = '/v1/chat' AND status < 500 AND blocked_by IS NULL
    metric: { sum: properties.tokens_in + properties.tokens_out }
    window: day
    group_by: [properties.model]
    stripe:
      mode: delta
      send: off
      event_name: chat
      product: Chat
      price: { model: graduated, currency: usd, tiers: [{ up_to: 5, unit_amount: 2 }, { up_to: inf, unit_amount_decimal: 0.25 }] }
  - name: calls
    metric: count
  - name: weights
    metric: { count: weight }
"""
PROPERTIES = ("tokens_in", "tokens_out", "model")


def test_a_file_becomes_meters() -> None:
    """Every key is read, a bare `off` included, and defaults are an hour and no Stripe."""
    chat, calls, weights = parse_meters(GOOD, "meters.yaml", PROPERTIES)
    assert chat.stripe is not None
    assert (chat.stripe.send, chat.stripe.event_name, chat.stripe.product) == ("off", "chat", "Chat")
    assert (chat.window, chat.group_by) == (WindowSize.DAY, ("properties.model",))
    assert calls == Meter("calls", None, Metric(MetricKind.COUNT), WindowSize.HOUR, (), None)
    assert weights.metric == Metric(MetricKind.COUNT, None, weighted=True)


def test_documents_round_trip_through_json() -> None:
    """What the ledger keeps gives the same meter back."""
    for meter in parse_meters(GOOD, "meters.yaml"):
        assert Meter.from_document(json.loads(json.dumps(meter.to_document()))) == meter


def test_all_problems_are_reported_with_their_lines() -> None:
    """File, line, meter and the nearest valid name, for every mistake at once."""
    text = """meters:
  - name: chat
    where: rout = '/v1/chat'
    metric: count
  - name: chat
    metrics: count
    metric: { summ: status }
    window: week
    stripe: { send: lve, event_name: a }
  - name: other
    metric: { sum: user }
    stripe: { event_name: a }
"""
    with pytest.raises(InvalidMeter) as caught:
        parse_meters(text, "meters.yaml", PROPERTIES)
    assert caught.value.problems == [
        "meters.yaml:3: meter 'chat': where: no column 'rout': did you mean route?",
        "meters.yaml:6: meter 'chat': unknown key 'metrics': did you mean metric?",
        "meters.yaml:5: meter 'chat': the name is taken by the meter of line 2",
        "meters.yaml:7: meter 'chat': unknown metric 'summ': use one of count, sum, max, min, latest, unique",
        "meters.yaml:8: meter 'chat': window: 'week' is none of minute, hour, day",
        "meters.yaml:9: meter 'chat': send: 'lve' is none of off, dry_run, live: did you mean live?",
        "meters.yaml:12: meter 'other': event_name 'a' is taken by meter 'chat'",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("meters: [", "meters.yaml:1: not YAML"),
        ("", "a mapping with the key 'meters'"),
        ("[]", "a mapping with the key 'meters'"),
        ("meters: 5", "a list is wanted"),
        ("meters: [5]", "a meter is a mapping"),
        ("meters: [{metric: count}]", "needs a name"),
        ("meters: [{name: a}]", "a metric is wanted"),
        ("meters: [{name: A, metric: count}]", "a name is lower-case"),
        ("meters: [{name: a, name: b, metric: count}]", "given twice"),
        ("meters: [{name: a, metric: {sum: user}}]", "sum: user is text, not a number"),
        ("meters: [{name: a, metric: {sum: 5}}]", "needs an expression"),
        ("meters: [{name: a, metric: {count: status}}]", "count counts events"),
        ("meters: [{name: a, metric: count, where: status}]", "not a condition"),
        ("meters: [{name: a, metric: count, where: 5}]", "a text is wanted"),
        ("meters: [{name: a, metric: count, group_by: route}]", "a list of columns"),
        ("meters: [{name: a, metric: count, group_by: [route, route]}]", "named twice"),
        (
            "meters: [{name: a, metric: count, stripe: {mode: usage}}]",
            "none of delta, window_total, usage_record",
        ),
        ("meters: [{name: a, metric: count, stripe: {price: 5}}]", "price: a mapping"),
        ("meters: !!python/object:os.system {}", "a list is wanted"),
    ],
)
def test_malformed_files_are_refused_in_words(text: str, problem: str) -> None:
    """No malformed file ends in a traceback."""
    with pytest.raises(InvalidMeter, match=problem):
        parse_meters(text, "meters.yaml")


def test_lint_warns_where_a_negation_drops_nulls() -> None:
    """A negated test of a column that may be NULL is pointed out, unless NULL is spoken of or impossible."""

    def warned(where: str) -> bool:
        return bool(lint_meters([Meter("m", where, Metric(MetricKind.COUNT))]))

    assert warned("route <> '/health'")
    assert warned("NOT (route LIKE '/int%')")
    assert warned("route NOT LIKE '/int%'")
    assert warned("status NOT IN (401, 403)")
    assert not warned("route <> '/health' OR route IS NULL")
    assert not warned("account <> 'user:test'")
    assert not warned("route = '/chat' AND blocked_by IS NOT NULL")


def test_a_metric_is_complete_or_refused() -> None:
    """A sum needs an expression, a count takes none, and only a count has a weight."""
    for kind, expression, weighted in (
        (MetricKind.SUM, None, False),
        (MetricKind.COUNT, "status", False),
        (MetricKind.SUM, "status", True),
    ):
        with pytest.raises(ValueError, match=r"metric|count"):
            Metric(kind, expression, weighted)
