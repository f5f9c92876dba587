"""Amounts worked out by hand from the rules Stripe documents, for every model, shape of tiers and bound.

A tier is (its last unit or None, cents a unit, flat cents). A row is (…, quantity, cents on the invoice).
"""

from __future__ import annotations

ONE_TIER = ((None, "7", "300"),)
"""A flat fee of 3.00 and 7 cents a unit, with no end."""
FREE_THEN_PAID = ((100, "0", "0"), (None, "0.5", "0"))
"""A hundred units free, half a cent each beyond."""
STEPS = ((10, "100", "500"), (20, "50", "0"), (None, "10.5", "7"))
"""Flat fees on the first and the last step, a fraction of a cent on the last."""


STANDARD = [
    ("2", "0", 0),
    ("2", "1", 2),
    ("2", "1000000", 2_000_000),
    ("0.5", "0", 0),
    ("0.5", "1", 1),  # half a cent rounds up
    ("0.5", "2", 1),
    ("0.5", "3", 2),  # 1.5
    ("0.5", "1000001", 500_001),  # 500,000.5
    ("0.4", "1", 0),
    ("0.4", "4", 2),  # 1.6
    ("0.000009", "0", 0),
    ("0.000009", "1", 0),
    ("0.000009", "55555", 0),  # 0.499995
    ("0.000009", "55556", 1),  # 0.500004
    ("0.000009", "1000000000", 9_000),
    ("0.000000000001", "500000000000", 1),  # exactly half a cent, at the twelfth place
    ("0.000000000001", "499999999999", 0),
    ("3", "2.5", 8),  # 7.5
    ("0.1", "0.000000049", 0),
    ("3", "-5", 0),  # below zero nothing is due
]
"""(cents a unit, quantity, amount)."""

PACKAGES = [
    ("up", "0", 0),
    ("up", "1", 1),
    ("up", "999", 1),
    ("up", "1000", 1),
    ("up", "1000.000000001", 2),
    ("up", "1001", 2),
    ("up", "123456789012", 123_456_790),
    ("down", "0", 0),
    ("down", "1", 0),
    ("down", "999", 0),
    ("down", "999.999999999", 0),
    ("down", "1000", 1),
    ("down", "1001", 1),
    ("down", "123456789012", 123_456_789),
]
"""(rounding, quantity, packages of a thousand)."""

DOZENS = [
    ("0", 0),
    ("1", 3),  # 2.5
    ("11", 3),
    ("12", 3),
    ("13", 5),
    ("24", 5),
    ("25", 8),  # 7.5
    ("1000000", 208_335),  # 83,334 dozens begun, at 2.5
]
"""(quantity, amount), at 2.5 cents for each twelve that are begun."""

GRADUATED = [
    # One tier: 300 + 7 q.
    (ONE_TIER, "0", 300),
    (ONE_TIER, "1", 307),
    (ONE_TIER, "1000", 7_300),
    (ONE_TIER, "1000000", 7_000_300),
    (ONE_TIER, "0.5", 304),  # 303.5
    # Free, then half a cent.
    (FREE_THEN_PAID, "0", 0),
    (FREE_THEN_PAID, "1", 0),
    (FREE_THEN_PAID, "99", 0),
    (FREE_THEN_PAID, "100", 0),
    (FREE_THEN_PAID, "101", 1),  # 0.5
    (FREE_THEN_PAID, "100.9", 0),  # 0.45
    (FREE_THEN_PAID, "1000000", 499_950),
    # Steps.
    (STEPS, "0", 500),
    (STEPS, "1", 600),
    (STEPS, "9", 1_400),
    (STEPS, "10", 1_500),
    (STEPS, "10.1", 1_505),
    (STEPS, "11", 1_550),
    (STEPS, "19", 1_950),  # 500 + 10 x 100 + 9 x 50
    (STEPS, "20", 2_000),
    (STEPS, "20.000000001", 2_007),  # the last step's fee is due with the first part of a unit
    (STEPS, "21", 2_018),  # 2000 + 7 + 10.5 = 2017.5
    (STEPS, "22", 2_028),
    (STEPS, "1000000", 10_501_797),  # 2000 + 7 + 999,980 x 10.5 = 10,501,797
]

VOLUME = [
    (ONE_TIER, "0", 300),
    (ONE_TIER, "1", 307),
    (ONE_TIER, "1000", 7_300),
    (ONE_TIER, "1000000", 7_000_300),
    (ONE_TIER, "0.5", 304),
    (FREE_THEN_PAID, "0", 0),
    (FREE_THEN_PAID, "1", 0),
    (FREE_THEN_PAID, "99", 0),
    (FREE_THEN_PAID, "100", 0),
    (FREE_THEN_PAID, "101", 51),  # all 101 at half a cent: 50.5
    (FREE_THEN_PAID, "100.9", 50),  # 50.45
    (FREE_THEN_PAID, "1000000", 500_000),
    (STEPS, "0", 500),
    (STEPS, "1", 600),
    (STEPS, "9", 1_400),
    (STEPS, "10", 1_500),
    (STEPS, "10.1", 505),
    (STEPS, "11", 550),
    (STEPS, "19", 950),  # all 19 at 50
    (STEPS, "20", 1_000),
    (STEPS, "20.000000001", 217),  # 7 + 210.0000000105
    (STEPS, "21", 228),  # 7 + 220.5 = 227.5
    (STEPS, "22", 238),
    (STEPS, "1000000", 10_500_007),
]
