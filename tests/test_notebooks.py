"""The notebooks run from top to bottom, offline, and are stored so that they read well anywhere."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import nbformat
import pytest

from recipes.notebooks import NOTEBOOKS, VIEW, execute

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
#: What a notebook must have found out, by its name.
SAYS = {
    "01-ten-minutes.ipynb": "predicted: mammal",
    "02-the-atlas.ipynb": "Share of live features per kind",
    "03-change-and-debias.ipynb": "as in the table: True",
}
#: How long a student on two cores should wait for one, in seconds.
PATIENCE = {"03-change-and-debias.ipynb": 180}
#: Widgets that a notebook shows, by the names they have in it.
SHOWN = ("explorer", "plot", "browser", "card", "feature_map", "heatmap", "panel")


def test_there_are_notebooks() -> None:
    assert [path.name for path in PATHS] == list(SAYS)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    start = kernel_seconds()
    notebook = execute(Path(shutil.copy(path, tmp_path)), seconds=300)
    seconds = kernel_seconds() - start
    print(f"{path.name}: {seconds:.0f} s of processor time")  # noqa: T201
    stored = nbformat.read(path, as_version=4)
    assert [kinds(cell) for cell in notebook.cells] == [kinds(cell) for cell in stored.cells]
    words = "".join(output.get("text", "") for cell in notebook.cells for output in outputs(cell))
    assert SAYS[path.name] in words
    # Processor time on two cores, since other tests run at the same time.
    assert seconds < 2 * PATIENCE.get(path.name, 120)


def kernel_seconds() -> float:
    """Processor time of all child processes that have ended, such as kernels."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_it_is_stored_to_be_read_without_a_kernel(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text) < 3e6
    assert "widget-state" not in text
    assert VIEW not in text
    assert str(Path.home()) not in text
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(outputs(cell) for cell in code)
    assert not any(output.output_type == "error" for cell in code for output in outputs(cell))
    shown = [cell for cell in code if cell.source.rstrip().endswith(SHOWN)]
    assert len(shown) >= 2
    assert all("image/png" in outputs(cell)[-1].data for cell in shown)
    json.loads(text)


def outputs(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return cell.get("outputs", [])


def kinds(cell: nbformat.NotebookNode) -> list[str]:
    return [output.output_type for output in outputs(cell)]
