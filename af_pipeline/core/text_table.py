"""Tables printed as text."""

from __future__ import annotations

from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells [rows][columns] as lines: the first column to the left, the others to the right.

    Signs that move the cursor or the order of letters are shown as ``?``.
    """
    rows = [["".join(c if c.isprintable() else "?" for c in cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]


def text_table(rows: Sequence[Sequence[str]], total: bool = True) -> str:
    """`align` with a line below the first row and, of a total, one above the last."""
    lines = align(rows)
    lines.insert(1, "-" * len(lines[0]))
    if total:
        lines.insert(len(lines) - 1, lines[1])
    return "\n".join(lines)


def cell(value: float | None, form: str) -> str:
    """A number of a table; ``-`` is "not defined"."""
    return "-" if value is None or value != value else format(value, form)
