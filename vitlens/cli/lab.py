"""``vitlens lab``: the tutorials in JupyterLab."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

from vitlens.cli.options import Commands, add_command
from vitlens.errors import VitlensError

_TEXT = """\
Open JupyterLab on a copy of the tutorial notebooks; no network is needed.

Notebooks that already exist in the folder are not changed.
"""
_EXAMPLES = """\
  vitlens lab
  vitlens lab somewhere/else
  vitlens lab --no-browser
"""
#: Without these, Lab asks the web for news and new versions.
_QUIET = (
    "--LabApp.news_url=",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
)


def add_to(commands: Commands) -> None:
    """Add the command."""
    command = add_command(commands, "lab", "open the tutorials in JupyterLab", _TEXT, _EXAMPLES)
    command.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("vitlens-lab"),
        metavar="FOLDER",
        help="folder for the notebooks (default: vitlens-lab)",
    )
    command.add_argument(
        "--no-browser", action="store_true", help="print the address instead of opening a browser"
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    if importlib.util.find_spec("jupyterlab") is None:
        raise VitlensError(
            "JupyterLab is not installed. Install it with python -m pip install 'vitlens[lab]', "
            "or in a checkout with python -m pip install '.[lab]'."
        )
    first = copy_notebooks(arguments.folder)[0]
    print(f"The notebooks are in {arguments.folder}. Stop JupyterLab with Ctrl-C.")
    options = [f"--LabApp.default_url=/lab/tree/{first.name}", *_QUIET]
    if arguments.no_browser:
        options.append("--no-browser")
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", str(arguments.folder), *options]
    )
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:
            continue  # Lab receives it as well, and asks whether to stop
    if code:
        raise VitlensError(f"JupyterLab stopped with error code {code}; its messages are above.")


def copy_notebooks(folder: Path) -> list[Path]:
    """Copy the notebooks that a folder does not have yet; return all of them, in order.

    Raises
    ------
    VitlensError
        If the folder cannot be written.
    """
    from vitlens.io import atomic_path

    if folder.exists() and not folder.is_dir():
        raise VitlensError(f"{folder} is a file; the notebooks need a folder.")
    copies = []
    for notebook in notebooks():
        copy = folder / notebook.name
        if not copy.exists():
            with atomic_path(copy) as temporary:
                temporary.write_bytes(notebook.read_bytes())
        copies.append(copy)
    return copies


def notebooks() -> list[Path]:
    """Return the notebooks that come with the package, in order."""
    package = Path(__file__).parents[1]
    # A wheel contains them inside the package, a checkout next to it.
    for folder in (package / "notebooks", package.parent / "notebooks"):
        found = sorted(folder.glob("*.ipynb"))
        if found:
            return found
    raise VitlensError("The notebooks are missing. Reinstall vitlens.")
