"""A mutant: one line of the real code, made wrong in a way that would cost somebody money.

Owns its fields and what planting it does to a text. It refuses to know where files are and how tests are run.
"""

from __future__ import annotations

from dataclasses import dataclass


class NotThere(Exception):
    """The text to be changed is not in its file exactly once: the code moved on, and the mutant must follow."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A bug as data. `before` may be several lines, so that it is unique; `after` differs from it in one."""

    name: str
    path: str
    """Of the file, from the root of the checkout."""
    before: str
    after: str
    costs: str
    """What it would do to somebody's money, were it real."""
    tests: tuple[str, ...] = ()
    """What is expected to catch it: pytest's node ids, or files."""
    seeds: tuple[int, ...] = ()
    """Of the simulator's runs, for what no test sees."""
    dangerous: bool = False
    """Among the few that every push is tried with."""

    def plant(self, source: str) -> str:
        """`source` with the bug in it. Raises NotThere."""
        if source.count(self.before) != 1:
            raise NotThere(
                f"{self.name}: {self.path} holds the text {source.count(self.before)} times, not once"
            )
        return source.replace(self.before, self.after)
