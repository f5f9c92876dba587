"""Calendar arithmetic of billing periods, in UTC.

Owns: where the next period edge lies. Refuses to know: subscriptions and money.
"""

import calendar
from datetime import UTC, datetime, timedelta

_DAYS = {"day": 1, "week": 7}
_MONTHS = {"month": 1, "year": 12}


def edge(anchor_seconds: int, interval: str, interval_count: int, steps: int) -> int:
    """The edge ``steps`` periods after (or before) the anchor, in epoch seconds.

    Months are counted from the anchor itself, so an anchor on the 31st returns to the 31st after a short month.
    """
    anchor = datetime.fromtimestamp(anchor_seconds, UTC)
    if interval in _DAYS:
        return int((anchor + timedelta(days=_DAYS[interval] * interval_count * steps)).timestamp())
    month_index = anchor.year * 12 + anchor.month - 1 + _MONTHS[interval] * interval_count * steps
    year, month = divmod(month_index, 12)
    day = min(anchor.day, calendar.monthrange(year, month + 1)[1])
    return int(anchor.replace(year=year, month=month + 1, day=day).timestamp())


def next_edge(anchor_seconds: int, interval: str, interval_count: int, after_seconds: int) -> int:
    """The first period edge strictly after ``after_seconds``."""
    length = edge(anchor_seconds, interval, interval_count, 1) - anchor_seconds
    # A first guess by the length of one period, then a few steps to cope with months of unequal length.
    steps = (after_seconds - anchor_seconds) // length - 1
    while edge(anchor_seconds, interval, interval_count, steps) > after_seconds:
        steps -= 1
    while edge(anchor_seconds, interval, interval_count, steps) <= after_seconds:
        steps += 1
    return edge(anchor_seconds, interval, interval_count, steps)


def anchor_from_config(
    now_seconds: int, day_of_month: int, hour: int | None, minute: int | None, second: int | None
) -> int:
    """The next moment that matches a ``billing_cycle_anchor_config``; parts left out are those of now."""
    now = datetime.fromtimestamp(now_seconds, UTC)
    for months_ahead in range(3):
        year, month = divmod(now.year * 12 + now.month - 1 + months_ahead, 12)
        day = min(day_of_month, calendar.monthrange(year, month + 1)[1])
        candidate = now.replace(
            year=year,
            month=month + 1,
            day=day,
            hour=now.hour if hour is None else hour,
            minute=now.minute if minute is None else minute,
            second=now.second if second is None else second,
        )
        if candidate > now:
            return int(candidate.timestamp())
    raise AssertionError("one of three consecutive months holds the anchor")
