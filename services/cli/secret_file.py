"""The file signing secrets are kept in: `NAME=value` lines, as env files have them, readable by its owner alone.

Owns reading it and replacing it as a whole. It refuses to know what the names mean.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path


def read_secrets(path: Path) -> dict[str, str]:
    """The names and values in the file; none when it is not there. Raises OSError."""
    if not path.exists():
        return {}
    found = {}
    for line in path.read_text().splitlines():
        name, separator, value = line.partition("=")
        if separator and not name.lstrip().startswith("#"):
            found[name.strip()] = value.strip()
    return found


def write_secrets(path: Path, changed: Mapping[str, str]) -> None:
    """Set names in the file, keeping its other lines, with mode 0600; whole or not at all, also after a power cut.

    Raises OSError.
    """
    left = dict(changed)
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        name = line.partition("=")[0].strip()
        lines.append(f"{name}={left.pop(name)}" if name in left else line)
    lines += [f"{name}={value}" for name, value in left.items()]
    # mkstemp makes a file for its owner alone, so no secret is ever readable by others, not even for a moment.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def check_private(path: Path) -> str | None:
    """Why the file cannot take secrets, or None: others can read it, or it cannot be written."""
    if path.exists() and not path.is_file():
        return f"{path} is no file"
    if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
        return f"{path} can be read by others: chmod 600 {path}"
    if not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        return f"{path.absolute().parent} is no directory that can be written to"
    return None
