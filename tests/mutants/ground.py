"""The ground bugs are planted in: a copy of the checkout's packages in a temporary directory.

Owns what is copied, planting and restoring. It refuses to touch the checkout itself, and to know what is run here.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.mutants.mutant import Mutant

CHECKOUT = Path(__file__).resolve().parents[2]

COPIED = (
    "tollgate",
    "services",
    "sandbox",
    "tests",
    "docs",
    "deploy",
    "benchmarks",
    "pyproject.toml",
    "meters.yaml",
)
"""All that tests read."""

_LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*_cache", ".hypothesis", "results", "node_modules")


class Ground:
    """One copy, changed by one mutant at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def copy_to(cls, root: Path) -> Ground:
        """A fresh copy of the checkout under `root`."""
        for name in COPIED:
            source = CHECKOUT / name
            if source.is_dir():
                shutil.copytree(source, root / name, ignore=_LEFT_OUT)
            else:
                shutil.copy2(source, root / name)
        return cls(root)

    @contextmanager
    def planted(self, mutant: Mutant) -> Iterator[None]:
        """With the bug in the copy; afterwards the copy is as it was. Raises NotThere."""
        path = self.root / mutant.path
        sound = path.read_text(encoding="utf-8")
        try:
            self._write(path, mutant.plant(sound))
            yield
        finally:
            self._write(path, sound)

    def _write(self, path: Path, source: str) -> None:
        path.write_text(source, encoding="utf-8")
        # Compiled code is told apart by size and whole seconds: too coarse for two versions in one second.
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()
