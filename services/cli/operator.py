"""Who is at the keyboard, for the audit trail."""

from __future__ import annotations

import os
import pwd


def operator_name() -> str:
    """The name of the user this runs as, or its number where it has no name."""
    uid = os.getuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
