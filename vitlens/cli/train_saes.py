"""``vitlens train-saes``: train the SAEs of all layers on a folder of images."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitlens.cli.options import (
    Commands,
    add_command,
    add_machine_options,
    device_and_dtype,
    images_in,
    positive,
)
from vitlens.errors import ImageError

if TYPE_CHECKING:
    from torch import Tensor

    from vitlens.images import Transform
    from vitlens.models.adapter import ViT

_TEXT = """\
Train a sparse autoencoder (SAE) for every layer of a model but the last, all in one pass over the
images; activations are never written to disk. Says first what it will cost, and at the end how
good the SAEs are, on images kept out of training.

Ctrl-C keeps a checkpoint: the same command goes on from there.
"""
_EXAMPLES = """\
  vitlens train-saes photos/ --model vit_base_patch16_224 --out saes/
  vitlens train-saes photos/ --model everyday --out saes/ --k 48 --size-ratio 2
"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    command = add_command(
        commands, "train-saes", "train SAEs for a model of yours", _TEXT, _EXAMPLES
    )
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
    group = command.add_argument_group("SAEs")
    group.add_argument(
        "--k", type=positive, default=32, metavar="N", help="active features a token (default: 32)"
    )
    group.add_argument(
        "--size-ratio",
        type=float,
        default=1.0,
        metavar="X",
        help="features as a multiple of the model's width (default: 1)",
    )
    group = command.add_argument_group("training")
    group.add_argument(
        "--epochs",
        type=positive,
        default=1,
        metavar="N",
        help="passes over the images (default: 1)",
    )
    group.add_argument(
        "--batch-size",
        type=positive,
        default=4096,
        metavar="N",
        help="tokens a step (default: 4096)",
    )
    group.add_argument(
        "--learning-rate", type=float, default=2e-4, metavar="X", help="default: 0.0002"
    )
    group.add_argument(
        "--precision",
        choices=("full", "bfloat16"),
        default="full",
        help="bfloat16 is faster on hardware that has it (default: full)",
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of weights and order (default: 0)"
    )
    add_machine_options(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    paths = images_in([arguments.images])
    random.Random(arguments.seed).shuffle(paths)  # folders are often sorted by class
    paths = paths[: arguments.limit]

    from vitlens.saes import TrainConfig, estimate, measure, train_saes
    from vitlens.saes.train import CHECKPOINT

    vit, transform = _load(arguments)
    config = TrainConfig(
        sizes=max(1, round(arguments.size_ratio * vit.width)),
        k=arguments.k,
        epochs=arguments.epochs,
        batch_tokens=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        precision=arguments.precision,
        seed=arguments.seed,
    )
    n_held_out = min(max(arguments.held_out, 0), len(paths) // 10)
    held_out, training = paths[:n_held_out], paths[n_held_out:]
    cost = estimate(vit, config, len(training))
    print(f"{vit.depth - 1} SAEs on {len(training)} images: {cost}", flush=True)
    try:
        result = train_saes(vit, ImageFiles(training, transform), config, out=arguments.out)
    except KeyboardInterrupt:
        checkpoint = arguments.out / CHECKPOINT
        kept = checkpoint.is_file()
        advice = f"{checkpoint} is kept; the same command goes on from there." if kept else ""
        raise KeyboardInterrupt(advice) from None
    print(f"\nOn training images:\n{result}")
    if held_out:
        report = measure(vit, result.saes, _batches(ImageFiles(held_out, transform)))
        print(f"\nOn {len(held_out)} images kept out of training:\n{report}")
    print(
        f"\nSAEs are in {arguments.out}. Use them:\n"
        f"  vitlens explain IMAGE --model {arguments.model} --saes {arguments.out}"
    )


class ImageFiles(Sequence["Tensor"]):
    """Image files as model inputs, each read when it is asked for.

    Parameters
    ----------
    paths
        The files.
    transform
        The model's.
    """

    def __init__(self, paths: Sequence[Path], transform: Transform) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # only whole numbers come
        from vitlens.images import to_tensor

        return to_tensor(self.paths[index], self.transform)


def _load(arguments: argparse.Namespace) -> tuple[ViT, Transform]:
    from vitlens.bundle import bundles, load
    from vitlens.images import Transform
    from vitlens.models.adapter import ViT
    from vitlens.models.registry import create

    machine = device_and_dtype(arguments)
    if arguments.model in bundles():
        lens = load(arguments.model, **machine)
        if not isinstance(lens.transform, Transform):
            raise ImageError(f"The transform of {arguments.model!r} cannot be used for training.")
        return lens.vit, lens.transform
    model = create(arguments.model).to(**machine)
    return ViT(model), Transform.from_timm(model)


def _batches(images: ImageFiles, size: int = 8) -> list[Tensor]:
    import torch

    each = [images[index] for index in range(len(images))]
    return [torch.stack(each[start : start + size]) for start in range(0, len(each), size)]
