"""Text tables: the one way in which results print rows and columns."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, align: str = "") -> str:
    """Lay out cells in columns, two spaces apart.

    Parameters
    ----------
    header
        One title per column.
    rows
        One sequence of cells per row, as many as there are columns.
    align
        One letter per column, "l" (left) or "r" (right); by default the first column is left
        and all others are right.

    Returns
    -------
    str
        Lines without trailing spaces, the header first.
    """
    sides = align or "l" + "r" * (len(header) - 1)
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if side == "l" else cell.rjust(width)
            for cell, width, side in zip(line, widths, sides, strict=True)
        ).rstrip()
        for line in lines
    )
