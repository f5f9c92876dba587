"""The currencies a price may be in.

Owns: the list, which shares nothing with the program under test. Refuses to know: minor units; amounts are in them.
"""

from sandbox.stripe.errors import invalid

_CODES = """
    usd aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bhd bif bmd bnd bob brl bsd bwp byn bzd cad
    cdf chf clp cny cop crc cve czk djf dkk dop dzd egp etb eur fjd fkp gbp gel gip gmd gnf gtq gyd hkd hnl
    htg huf idr ils inr isk jmd jod jpy kes kgs khr kmf krw kwd kyd kzt lak lbp lkr lrd lsl mad mdl mga mkd
    mmk mnt mop mur mvr mwk mxn myr mzn nad ngn nio nok npr nzd omr pab pen pgk php pkr pln pyg qar ron rsd
    rub rwf sar sbd scr sek sgd shp sle sos srd std stn szl thb tjs tnd top try ttd twd tzs uah ugx uyu uzs
    vnd vuv wst xaf xcd xcg xof xpf yer zar zmw
"""
_KNOWN = frozenset(_CODES.split())


def check_currency(code: str) -> str:
    """The code in lower case; raises ``Refusal`` (400) for one that does not exist."""
    if code.lower() not in _KNOWN:
        raise invalid(f"Invalid currency: {code.lower()}.", "currency")
    return code.lower()
