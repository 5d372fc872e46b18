"""What the commands that train and tune SAEs share: images, interruption, report."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vitlens.cli.options import add_machine_options, images_in, positive
from vitlens.cli.report import unreadable
from vitlens.errors import ImageError

if TYPE_CHECKING:
    from torch import Tensor

    from vitlens.images import Transform
    from vitlens.lens import Lens


def add_image_options(command: argparse.ArgumentParser) -> None:
    """Add the images, the model and the folder for the SAEs."""
    command.add_argument(
        "images", type=Path, metavar="FOLDER", help="images; subfolders are searched too"
    )
    command.add_argument(
        "--model", required=True, metavar="NAME", help='a model of timm, or "everyday"'
    )
    command.add_argument(
        "--out", required=True, type=Path, metavar="FOLDER", help="for the SAEs and the checkpoint"
    )
    command.add_argument("--limit", type=positive, metavar="N", help="use N images, at random")
    command.add_argument(
        "--held-out",
        type=int,
        default=64,
        metavar="N",
        help="images kept for the report, at most a tenth of them; 0 for no report (default: 64)",
    )


def add_run_options(
    command: argparse.ArgumentParser, group: argparse._ArgumentGroup, seeds: str
) -> None:
    """Add precision, seed (of what it says) and where to run."""
    group.add_argument(
        "--precision",
        choices=("full", "bfloat16"),
        default="full",
        help="bfloat16 is faster on hardware that has it (default: full)",
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help=f"of {seeds} (default: 0)")
    add_machine_options(command)


def held_out_and_rest(arguments: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    """Shuffle the images (folders are often sorted by class) and keep some for the report."""
    paths = images_in([arguments.images])
    random.Random(arguments.seed).shuffle(paths)
    paths = paths[: arguments.limit]
    n_held_out = min(max(arguments.held_out, 0), len(paths) // 10)
    return paths[:n_held_out], paths[n_held_out:]


def transform_of(lens: Lens) -> Transform:
    """The transform of a lens, which must be one of ours.

    Raises
    ------
    ImageError
        If it is any other function.
    """
    from vitlens.images import Transform

    if not isinstance(lens.transform, Transform):
        raise ImageError(f"The transform of {lens.about.name!r} cannot be used for training.")
    return lens.transform


@contextmanager
def advice_on_interrupt(out: Path) -> Iterator[None]:
    """Let Ctrl-C say how to go on, where a checkpoint was kept."""
    from vitlens.saes.checkpoint import CHECKPOINT

    try:
        yield
    except KeyboardInterrupt:
        checkpoint = out / CHECKPOINT
        kept = checkpoint.is_file()
        advice = f"{checkpoint} is kept; the same command goes on from there." if kept else ""
        raise KeyboardInterrupt(advice) from None


def read_held_out(paths: Sequence[Path], transform: Transform, size: int = 8) -> list[Tensor]:
    """Read the images kept out of training, in batches; tell which cannot be read."""
    import torch

    from vitlens.images import to_tensor

    each, reasons = [], []
    for path in paths:
        try:
            each.append(to_tensor(path, transform))
        except ImageError as error:
            reasons.append(str(error))
    if reasons:
        print(f"\n{unreadable(reasons, 'kept out of training could not be read')}")
    return [torch.stack(each[start : start + size]) for start in range(0, len(each), size)]


class ImageFiles(Sequence["Tensor"]):
    """Image files as model inputs, each read when it is asked for.

    The next file takes the place of one that cannot be read: the number of images is part of what
    a run goes on by, and so must not depend on what is found on the way.

    Parameters
    ----------
    paths
        The files.
    transform
        The model's.

    Attributes
    ----------
    unreadable
        What is wrong with files so far, by path.
    """

    def __init__(self, paths: Sequence[Path], transform: Transform) -> None:
        self.paths, self.transform = paths, transform
        self.unreadable: dict[Path, str] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # only whole numbers come
        from vitlens.images import to_tensor

        wanted = self.paths[index]
        for place in range(index, index + len(self.paths)):
            path = self.paths[place % len(self.paths)]
            try:
                return to_tensor(path, self.transform)
            except ImageError as error:
                self.unreadable[path] = str(error)
        raise ImageError(f"No image could be read. {self.unreadable[wanted]}")

    def told(self) -> str:
        """Say which files could not be read; "" when all could."""
        if not self.unreadable:
            return ""
        what = "could not be read; the next stood in"
        return f"\n{unreadable(list(self.unreadable.values()), what)}"
