"""Writing figures to files."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from vitlens.errors import VitlensError
from vitlens.io import atomic_path

_FORMATS = ("png", "svg", "pdf")


def save_figure(figure: Figure, path: str | Path, *, dpi: int = 160) -> None:
    """Write a figure to a file, atomically; the same figure always gives the same bytes.

    Parameters
    ----------
    figure
        Any matplotlib figure.
    path
        The suffix says the format: ``.png``, ``.svg`` or ``.pdf``.
    dpi
        Pixels an inch, for PNG.

    Raises
    ------
    VitlensError
        When the suffix is another one, or the file cannot be written.
    """
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in _FORMATS:
        known = ", ".join(f".{name}" for name in _FORMATS)
        raise VitlensError(
            f"A figure can be written as {known}, and {path} ends with none of them."
        )
    undated = {"png": None, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[suffix]
    with atomic_path(path) as temporary, matplotlib.rc_context({"svg.hashsalt": "vitlens"}):
        figure.savefig(temporary, format=suffix, dpi=dpi, facecolor="white", metadata=undated)
