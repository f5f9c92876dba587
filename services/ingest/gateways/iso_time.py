"""ISO 8601 instants as gateways and SDKs write them.

Owns their reading to epoch milliseconds. It refuses to know who sent one; the one sender whose fractions mean
something else is asked for by `unpadded_ms`.
"""

from __future__ import annotations

import calendar
import re
from functools import lru_cache

_INSTANT = re.compile(
    r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d):(\d\d)(?:[.,](\d{1,9}))?(?:([Zz])|([+-])(\d\d):?(\d\d))?", re.ASCII
)


def parse_instant(text: str, *, unpadded_ms: bool = False) -> int | None:
    """Epoch milliseconds of an instant; None when it is none. Without a zone it is UTC.

    `unpadded_ms`: one or two digits of fraction and no zone are a number of milliseconds, as Kong's Moesif plugin
    writes them (".5" is 5 ms); anywhere else ".5" is half a second. Finer than milliseconds is cut off.
    """
    found = _INSTANT.fullmatch(text)
    if found is None:
        return None
    minute, seconds, fraction, zulu, sign, hours, minutes = found.groups()
    minute_ms = _minute_ms(minute)
    # 60 is a leap second: it counts as the first of the next minute.
    if minute_ms is None or int(seconds) > 60:
        return None
    instant_ms = minute_ms + int(seconds) * 1000
    if fraction:
        if unpadded_ms and len(fraction) < 3 and not zulu and not sign:
            instant_ms += int(fraction)
        else:
            instant_ms += int(fraction[:3].ljust(3, "0"))
    if sign:
        if int(hours) > 23 or int(minutes) > 59:
            return None
        offset_ms = (int(hours) * 60 + int(minutes)) * 60_000
        instant_ms += offset_ms if sign == "-" else -offset_ms
    return instant_ms if instant_ms >= 0 else None


@lru_cache(maxsize=4096)
def _minute_ms(minute: str) -> int | None:
    """Epoch milliseconds of `YYYY-MM-DDTHH:MM`. Cached: the events of a minute share it."""
    year, month, day = int(minute[:4]), int(minute[5:7]), int(minute[8:10])
    hour, minute_of_hour = int(minute[11:13]), int(minute[14:16])
    if not (year and 1 <= month <= 12 and hour < 24 and minute_of_hour < 60):
        return None
    if not 1 <= day <= calendar.monthrange(year, month)[1]:
        return None
    return calendar.timegm((year, month, day, hour, minute_of_hour, 0)) * 1000
