"""The generator: the same seed gives the same calls, in the shares asked for."""

from __future__ import annotations

from collections import Counter

from sandbox.traffic.calls import DAY_MS, DUPLICATE_REACH, HOUR_MS, Call, Identity, Kind, Mix, generate_calls

NOW_MS = 1_800_000_000_000
IDENTITIES = (Identity("cus_1", user="cus_1"), Identity("cus_2", company="acme"))


def calls(count: int, seed: int = 7, mix: Mix | None = None) -> list[Call]:
    return list(generate_calls(count, seed=seed, identities=IDENTITIES, now_ms=NOW_MS, mix=mix))


def test_the_same_seed_gives_the_same_calls() -> None:
    """A history can be made again from its seed."""
    assert calls(500) == calls(500)
    assert calls(500) != calls(500, seed=8)


def test_shares_of_trouble_are_kept() -> None:
    """Each kind comes about as often as asked for; the draw is seeded, so the counts are exact here."""
    kinds = Counter(call.kind for call in calls(20_000, mix=Mix(0.1, 0.05, 0.02, 0.03)))
    assert kinds.total() == 20_000
    for kind, share in (
        (Kind.DUPLICATE, 0.1),
        (Kind.LATE, 0.05),
        (Kind.FUTURE, 0.02),
        (Kind.MALFORMED, 0.03),
    ):
        assert abs(kinds[kind] / 20_000 - share) < 0.01


def test_a_duplicate_repeats_an_earlier_call_within_reach() -> None:
    """Same id, same content as a normal call not far before it."""
    seen: list[Call] = []
    duplicates = 0
    for call in calls(5_000, mix=Mix(duplicate=0.2, late=0, future=0, malformed=0)):
        if call.kind is Kind.DUPLICATE:
            duplicates += 1
            original = next(earlier for earlier in reversed(seen) if earlier.id == call.id)
            assert (original.time_ms, original.identity, original.path) == (
                call.time_ms,
                call.identity,
                call.path,
            )
        else:
            seen.append(call)
            seen[:] = seen[-DUPLICATE_REACH:]
    assert duplicates > 500


def test_times_lie_where_their_kind_says() -> None:
    """Normal calls before now, late ones days before, future ones ahead."""
    for call in calls(5_000, mix=Mix(0, 0.2, 0.2, 0)):
        if call.kind is Kind.NORMAL:
            assert NOW_MS - 3 * HOUR_MS <= call.time_ms < NOW_MS
        elif call.kind is Kind.LATE:
            assert call.time_ms < NOW_MS - 4 * DAY_MS
        else:
            assert call.time_ms > NOW_MS + 5 * 60_000


def test_an_account_is_the_company_before_the_user() -> None:
    """Who pays, as the contract names it."""
    assert Identity("c", user="u").account == "user:u"
    assert Identity("c", user="u", company="co").account == "company:co"
