"""Output of the commands."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vitlens.tables import text_table

if TYPE_CHECKING:
    from vitlens.circuits.circuit import Circuit
    from vitlens.circuits.curves import Curves

_LISTED = 5  # unreadable images


class Stopwatch:
    """Measures how long each part of a command takes."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, float]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a block."""
        start = time.perf_counter()
        yield
        self.parts.append((name, time.perf_counter() - start))

    def __str__(self) -> str:
        rows = [*self.parts, ("total", sum(seconds for _, seconds in self.parts))]
        return text_table(["step", "time"], [[name, f"{t:.1f} s"] for name, t in rows])


def prediction(ranking: list[tuple[str, float]], count: int = 3) -> str:
    """List the most probable classes in one line."""
    named = [f"{name} {probability:.1%}" for name, probability in ranking[:count]]
    return f"Prediction: {', '.join(named)}"


def indented(text: str, *, by: int = 2, width: int = 96) -> str:
    """Indent every line by `by` spaces, and wrap those longer than `width`."""
    lines = [
        textwrap.wrap(line, width) if len(line) > width else [line] for line in text.splitlines()
    ]
    return "\n".join(f"{' ' * by}{part}".rstrip() for parts in lines for part in parts)


def write_circuit(circuit: Circuit, out: Path, *, top_edges: int | None = None) -> list[Path]:
    """Write a circuit as PNG, SVG and safetensors; return the paths."""
    from vitlens.plots import circuit_figure, save_figure

    figure = circuit_figure(circuit, top_edges=top_edges)
    paths = [out / "circuit.png", out / "circuit.svg", out / "circuit.safetensors"]
    save_figure(figure, paths[0])
    save_figure(figure, paths[1])
    circuit.save(paths[2])
    return paths


def write_curves(curves: Curves, path: Path) -> Path:
    """Write curves as an image; return its path."""
    from vitlens.plots import curves_figure, save_figure

    save_figure(curves_figure(curves), path)
    return path


def count(n: int, what: str) -> str:
    """Return a number and its noun, in the plural where it needs one."""
    return f"{n:,} {what}{'s' * (n != 1)}"


def unreadable(reasons: Sequence[str], what: str = "could not be read", rest: str = "") -> str:
    """Say how many images could not be read, and why for the first few; `rest` ends the list."""
    lines = [f"{count(len(reasons), 'image')} {what}:", *(f"  {why}" for why in reasons[:_LISTED])]
    more = len(reasons) - _LISTED
    return "\n".join([*lines, f"  and {more} more{rest}"] if more > 0 else lines)


def written(paths: list[Path]) -> str:
    """List the files that were written."""
    return "Written:\n" + "\n".join(f"  {path}" for path in paths)
