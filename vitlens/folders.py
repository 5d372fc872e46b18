"""Whether results can go to a folder, told before the work; loads nothing that is slow."""

import os
from collections.abc import Collection
from pathlib import Path

from vitlens.errors import VitlensError


def check_folder(path: str | Path) -> None:
    """Make sure that files can be written to a folder, before long work whose results go there.

    Parameters
    ----------
    path
        The folder; it may be missing, and is not made.

    Raises
    ------
    VitlensError
        When it is a file or inside one, or may not be written.
    """
    path = Path(path)
    there = path.absolute()
    # Path.exists raises where a folder may not be searched.
    while not os.path.exists(there):  # noqa: PTH110
        there = there.parent
    if not there.is_dir():
        raise VitlensError(f"{path} cannot be a folder: {there} is a file.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise VitlensError(f"{path} cannot be written: {there} may not be changed by this user.")


def check_replaceable(path: str | Path, replaces: Collection[str]) -> None:
    """Make sure that a folder, which may be missing, holds no other files than these.

    Raises
    ------
    VitlensError
        When there is another, or a file in the folder's place.
    """
    folder = Path(path).resolve()
    if not folder.exists():
        return
    if not folder.is_dir():
        raise VitlensError(f"{path} is a file, and a folder is to be written there.")
    for old in folder.rglob("*"):
        name = str(old.relative_to(folder))
        if name not in replaces:
            raise VitlensError(
                f"{path} already holds other files, for instance {name}. "
                "Choose a folder that is empty or does not exist yet."
            )
