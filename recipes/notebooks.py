"""Run the notebooks and store them with images of their widgets: ``python -m recipes.notebooks``.

Further arguments are names of the notebooks to run; by default all.

A stored widget shows nothing on a page without a kernel, and takes a megabyte. An image of its
final state can be read everywhere.
"""

import base64
import io
import json
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
WIDTH = 1100  # largest width of an image of a widget, in pixels
HEAVY = 400_000  # figures whose PNG has at least as many characters are stored as JPEG
FIGURE_WIDTH = 1100  # largest width of such a figure, in pixels
VIEW = "application/vnd.jupyter.widget-view+json"
_PNG = """
import base64 as _b, ipywidgets.widgets.widget as _w
print(_b.b64encode(_w._instances[{model_id!r}]._png()).decode())
"""


def execute(path: Path, *, seconds: int = 600) -> nbformat.NotebookNode:
    """Return the notebook, run in a new kernel; widgets become images."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=seconds,
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=False,
        coalesce_streams=True,  # the split of printed text depends on time
    )
    with client.setup_kernel(env={**os.environ, "HF_HUB_OFFLINE": "1"}):
        for number, cell in enumerate(notebook.cells):
            client.execute_cell(cell, number)
        client.coalesce_streams = False  # takes minutes with an image in one line
        for output in _outputs(notebook):
            if VIEW in output.get("data", {}):
                model_id = output["data"].pop(VIEW)["model_id"]
                output["data"]["image/png"] = _png(client, model_id)
            else:
                _lighten(output)
    _forget_the_run(notebook)
    return notebook


def _png(client: NotebookClient, model_id: str) -> str:
    """Return an image of a widget as it is now, in base64, small enough for git."""
    cells = client.nb.cells
    cells.append(nbformat.v4.new_code_cell(_PNG.format(model_id=model_id)))
    try:
        cell = client.execute_cell(cells[-1], len(cells) - 1, store_history=False)
    finally:
        cells.pop()
    text = "".join(output["text"] for output in cell.outputs if output.get("name") == "stdout")
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        image.thumbnail((WIDTH, image.height), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        image.convert("RGB").save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _lighten(output: nbformat.NotebookNode) -> None:
    """Store a large figure as JPEG, which takes a fifth of its size as PNG."""
    encoded = output.get("data", {}).get("image/png", "")
    if len(encoded) < HEAVY:
        return
    file = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        image.thumbnail((FIGURE_WIDTH, image.height), Image.Resampling.LANCZOS)
        image.convert("RGB").save(file, "JPEG", quality=54, optimize=True)
    del output["data"]["image/png"]
    output["data"]["image/jpeg"] = base64.b64encode(file.getvalue()).decode()


def _outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def _forget_the_run(notebook: nbformat.NotebookNode) -> None:
    """Remove what differs from run to run, and what the kernel says about itself."""
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]


def main() -> None:
    wanted = [NOTEBOOKS / name for name in sys.argv[1:]]
    for path in wanted or sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = execute(path)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    sys.exit(main())
