"""Currencies: the codes Stripe takes prices in, and how many decimal places a minor unit is.

Owns that table and the printing of amounts. It refuses to know prices. Amounts are always in the currency's minor unit
(cents; for a zero-decimal currency such as jpy the unit itself).

The source is the list of presentment currencies at https://docs.stripe.com/currencies, with the codes it has replaced
still in it. Which of them an account may use depends on its country: Stripe has the last word when a price is made.
"""

from __future__ import annotations

import difflib
from decimal import Decimal

_CODES = """
    aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bhd bif bmd bnd bob brl bsd bwp byn bzd cad cdf chf clp cny
    cop crc cve czk djf dkk dop dzd egp etb eur fjd fkp gbp gel gip gmd gnf gtq gyd hkd hnl htg huf idr ils inr isk jmd
    jod jpy kes kgs khr kmf krw kwd kyd kzt lak lbp lkr lrd lsl mad mdl mga mkd mmk mnt mop mur mvr mwk mxn myr mzn nad
    ngn nio nok npr nzd omr pab pen pgk php pkr pln pyg qar ron rsd rub rwf sar sbd scr sek sgd shp sle sos srd std stn
    szl thb tjs tnd top try ttd twd tzs uah ugx usd uyu uzs vnd vuv wst xaf xcd xcg xof xpf yer zar zmw
"""

CURRENCIES = frozenset(_CODES.split())
"""ISO 4217 codes in lower case, as Stripe writes them."""

_ZERO_DECIMAL = frozenset(
    ("bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf")
)
# ugx and isk are without decimals in life, but Stripe still takes them in hundredths.
_THREE_DECIMAL = frozenset(("bhd", "jod", "kwd", "omr", "tnd"))


def minor_places(currency: str) -> int:
    """Decimal places between the currency's unit and the minor unit of its amounts: 2 for usd, 0 for jpy."""
    if currency in _ZERO_DECIMAL:
        return 0
    return 3 if currency in _THREE_DECIMAL else 2


def format_amount(minor: Decimal | int, currency: str) -> str:
    """An amount for people: `12.34 usd`, `0.00004 usd`, `500 jpy`; never fewer places than the minor unit has."""
    places = minor_places(currency)
    sign, digits, exponent = Decimal(minor).as_tuple()
    assert isinstance(exponent, int), "an amount is finite"
    # Built anew rather than divided: a division would round to the context's precision.
    shifted = Decimal((sign, digits, exponent - places))
    whole, _, fraction = f"{shifted:,f}".partition(".")
    fraction = fraction.rstrip("0").ljust(places, "0")
    return f"{whole}{'.' if fraction else ''}{fraction} {currency}"


def nearest_currency(code: str) -> str | None:
    """The code that may have been meant, or None."""
    close = difflib.get_close_matches(code.lower(), sorted(CURRENCIES), n=1, cutoff=0.6)
    return close[0] if close else None
