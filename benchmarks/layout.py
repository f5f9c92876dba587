"""Tables of text: columns side by side for a terminal, and Markdown for documents.

Owns widths, alignment and the form of a number. It refuses to know what the cells say.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

Cells = Sequence[Sequence[str]]
"""The headings, then the lines; all as many."""


def align(cells: Cells, texts: Collection[int] = (0,)) -> str:
    """Aligned columns, the headings underlined; ends with a newline. `texts`: columns of words, which begin at the left."""
    widths = _widths(cells)
    lines = [
        "  ".join(
            text.ljust(width) if column in texts else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(lines) + "\n"


def markdown(cells: Cells, texts: Collection[int] = (0,)) -> str:
    """The same as a Markdown table; ends with a newline."""
    rule = tuple("---" if column in texts else "---:" for column in range(len(cells[0])))
    return "\n".join("| " + " | ".join(line) + " |" for line in (cells[0], rule, *cells[1:])) + "\n"


def aligned_markdown(cells: Cells) -> str:
    """A Markdown table of numbers that reads well in a terminal too; ends with a newline."""
    widths = _widths(cells)
    lines = [
        "| " + " | ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join(lines) + "\n"


def three_digits(value: float) -> str:
    """As many digits as mean something."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _widths(cells: Cells) -> list[int]:
    return [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
