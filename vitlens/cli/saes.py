"""``vitlens train-saes`` and ``vitlens tune-saes``: SAEs for a model, from a folder of images."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vitlens.cli.options import (
    Commands,
    add_command,
    add_machine_options,
    device_and_dtype,
    images_in,
    layers_of,
    positive,
    positive_number,
)
from vitlens.cli.report import count, unreadable
from vitlens.errors import ImageError

if TYPE_CHECKING:
    from torch import Tensor

    from vitlens.images import Transform
    from vitlens.lens import Lens
    from vitlens.models.vision import VisionModel
    from vitlens.saes.base import SAE
    from vitlens.training import Estimate

_TRAIN = """\
Train a sparse autoencoder (SAE) for every block of a model except the last, or for some blocks.
One pass over the images trains all of them; activations are never written to disk. The command
first prints the expected cost. At the end it measures the SAEs on images that were kept out of
training.

Ctrl-C keeps the unfinished run; the same command continues it.
"""
_TRAIN_EXAMPLES = """\
  vitlens train-saes photos/ --model vit_base_patch16_224 --out saes/
  vitlens train-saes photos/ --model everyday --out saes/ --k 48 --size-ratio 2
  vitlens train-saes photos/ --model everyday --out saes/ --layers 2,5,9 --budget 128
"""
_TUNE = """\
Tune trained sparse autoencoders (SAEs) end to end. Each SAE was trained on the model's own
residual stream; when all of them run in place and no error nodes correct them, small errors grow
from layer to layer. Tuning reduces this growth. The number of active features stays the same, and
each SAE by itself explains slightly less. The command first prints the expected cost, and compares
the SAEs before and after on images that were kept out of tuning.

Ctrl-C keeps the unfinished run; the same command continues it.
"""
_TUNE_EXAMPLES = """\
  vitlens tune-saes photos/ --model vit_base_patch16_224 --saes saes/ --out tuned/
  vitlens tune-saes photos/ --model everyday --out tuned/ --precision bfloat16
"""


def add_to(commands: Commands) -> None:
    """Add both commands."""
    _add_train(commands)
    _add_tune(commands)


def _add_train(commands: Commands) -> None:
    command = add_command(commands, "train-saes", "train SAEs for a model", _TRAIN, _TRAIN_EXAMPLES)
    _add_image_options(command)
    group = command.add_argument_group("SAEs")
    group.add_argument(
        "--layers",
        type=layers_of,
        metavar="L,L,…",
        help="blocks after which to train an SAE, counted from 0 (default: all except the last)",
    )
    group.add_argument(
        "--k",
        type=positive,
        default=32,
        metavar="N",
        help="active features per token (default: 32)",
    )
    group.add_argument(
        "--budget",
        type=positive,
        metavar="N",
        help="at most N active features per image as well (default: no limit)",
    )
    group.add_argument(
        "--size-ratio",
        type=positive_number,
        default=1.0,
        metavar="X",
        help="number of features as a multiple of the model's width (default: 1)",
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
        help="tokens per step (default: 4096)",
    )
    group.add_argument(
        "--learning-rate", type=positive_number, default=2e-4, metavar="X", help="default: 0.0002"
    )
    _add_run_options(command, group, "the initial weights and the order of the images")
    command.set_defaults(run=train)


def _add_tune(commands: Commands) -> None:
    command = add_command(
        commands, "tune-saes", "tune trained SAEs to work together", _TUNE, _TUNE_EXAMPLES
    )
    _add_image_options(command)
    command.add_argument(
        "--saes",
        metavar="FOLDER",
        help="the trained SAEs: a folder or a name on the Hugging Face hub (default: those that"
        ' come with "everyday")',
    )
    group = command.add_argument_group("tuning")
    group.add_argument(
        "--chain-weight",
        type=float,
        default=0.5,
        metavar="X",
        help="weight of the reconstruction error with the earlier SAEs in place; the error of each"
        " SAE by itself has weight 1 (default: 0.5)",
    )
    group.add_argument(
        "--output-weight",
        type=float,
        default=0.5,
        metavar="X",
        help="weight of the divergence of the model's output (default: 0.5)",
    )
    group.add_argument(
        "--circuit-weight",
        type=float,
        default=0.0,
        metavar="X",
        help="weight of the loss of small circuits: a few features of an image shall carry the"
        " answer (default: 0, without)",
    )
    group.add_argument(
        "--circuit-features",
        type=positive,
        nargs=2,
        default=(4, 96),
        metavar=("LOW", "HIGH"),
        help="range of the number of features per layer in these circuits (default: 4 96)",
    )
    group.add_argument(
        "--budget",
        type=positive,
        metavar="M",
        help="give the SAEs an image budget: at most M active features per image (top-k SAEs only;"
        " default: as they are)",
    )
    group.add_argument(
        "--batch-size", type=positive, default=16, metavar="N", help="images per step (default: 16)"
    )
    group.add_argument(
        "--learning-rate", type=positive_number, default=1e-4, metavar="X", help="default: 0.0001"
    )
    _add_run_options(command, group, "the order of the images")
    command.set_defaults(run=tune)


def train(arguments: argparse.Namespace) -> None:
    """Run ``train-saes``."""
    held_out, training = held_out_and_rest(arguments)

    from vitlens.training import TrainConfig, estimate, train_saes

    vision, transform = _model_to_train(arguments)
    config = TrainConfig(
        sizes=max(1, round(arguments.size_ratio * vision.d_model)),
        k=arguments.k,
        budget=arguments.budget,
        epochs=arguments.epochs,
        batch_tokens=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        precision=arguments.precision,
        seed=arguments.seed,
    )
    layers = range(vision.depth - 1) if arguments.layers is None else arguments.layers
    cost = estimate(vision, config, len(training), layers=layers)
    print(_cost(len(layers), len(training), cost), flush=True)
    images = ImageFiles(training, transform)
    with _advice_on_interrupt(arguments.out):
        result = train_saes(vision, images, config, out=arguments.out, layers=layers)
    print(f"{images.report()}\nOn the training images:\n{result}")
    if batches := read_held_out(held_out, transform, "training"):
        _print_health("On {} kept out of training:", vision, result.saes, batches)
    _print_next_step(arguments)


def tune(arguments: argparse.Namespace) -> None:
    """Run ``tune-saes``."""
    held_out, rest = held_out_and_rest(arguments)

    from vitlens.bundle import load
    from vitlens.saes.topk import with_budget
    from vitlens.training import TuneConfig, estimate_tuning, tune_saes

    config = TuneConfig(
        batch_images=arguments.batch_size,
        chain_weight=arguments.chain_weight,
        output_weight=arguments.output_weight,
        circuit_weight=arguments.circuit_weight,
        circuit_features=tuple(arguments.circuit_features),
        seed=arguments.seed,
        learning_rate=arguments.learning_rate,
        precision=arguments.precision,
    )
    lens = load(arguments.model, saes=arguments.saes, **device_and_dtype(arguments))
    vision, transform = lens.vision, _transform_of(lens)
    saes = dict(zip(lens.layers, lens.saes, strict=True))
    if arguments.budget is not None:
        saes = {layer: with_budget(sae, arguments.budget) for layer, sae in saes.items()}
    cost = estimate_tuning(vision, saes, config, len(rest))
    print(_cost(len(saes), len(rest), cost), flush=True)
    images = ImageFiles(rest, transform)
    with _advice_on_interrupt(arguments.out):
        result = tune_saes(vision, saes, images, config, out=arguments.out)
    print(f"{images.report()}\nOn the tuning images:\n{result}")
    if batches := read_held_out(held_out, transform, "tuning"):
        _print_health("On {} kept out of tuning, before:", vision, saes, batches)
        _print_health("and after:", vision, result.saes, batches)
    _print_next_step(arguments)


# What both commands share


def _add_image_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "images", type=Path, metavar="FOLDER", help="folder of images; subfolders are included"
    )
    command.add_argument(
        "--model", required=True, metavar="NAME", help='a timm model, or "everyday"'
    )
    command.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="folder for the SAEs; an unfinished run is kept next to it",
    )
    command.add_argument(
        "--limit", type=positive, metavar="N", help="use only N images, chosen at random"
    )
    command.add_argument(
        "--held-out",
        type=int,
        default=64,
        metavar="N",
        help="number of images kept for the final report, at most a tenth of all;"
        " 0 for no report (default: 64)",
    )


def _add_run_options(
    command: argparse.ArgumentParser, group: argparse._ArgumentGroup, seeds: str
) -> None:
    group.add_argument(
        "--precision",
        choices=("full", "bfloat16"),
        default="full",
        help="bfloat16 is faster on hardware that supports it (default: full)",
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help=f"seed for {seeds} (default: 0)"
    )
    add_machine_options(command)


def held_out_and_rest(arguments: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    """Shuffle the images (folders are often sorted by class) and keep some for the report."""
    paths = images_in([arguments.images])
    random.Random(arguments.seed).shuffle(paths)
    paths = paths[: arguments.limit]
    n_held_out = min(max(arguments.held_out, 0), len(paths) // 10)
    return paths[:n_held_out], paths[n_held_out:]


def _model_to_train(arguments: argparse.Namespace) -> tuple[VisionModel, Transform]:
    """Load the model that ``--model`` names, and its transform."""
    from vitlens.bundle import bundles, load
    from vitlens.images import Transform
    from vitlens.models.families import create
    from vitlens.models.vision import VisionModel

    machine = device_and_dtype(arguments)
    if arguments.model in bundles():
        lens = load(arguments.model, **machine)
        return lens.vision, _transform_of(lens)
    model = create(arguments.model).to(**machine)
    return VisionModel(model), Transform.from_timm(model)


def _transform_of(lens: Lens) -> Transform:
    """The transform of a lens, which must be a `Transform` of vitlens."""
    from vitlens.images import Transform

    if not isinstance(lens.transform, Transform):
        raise ImageError(f"The transform of {lens.about.name!r} cannot be used for training.")
    return lens.transform


@contextmanager
def _advice_on_interrupt(out: Path) -> Iterator[None]:
    """Let Ctrl-C say how to continue, if the unfinished run was kept."""
    from vitlens.io import partial_path

    try:
        yield
    except KeyboardInterrupt:
        path = partial_path(out)
        advice = f"{path} is kept; the same command continues from there." if path.exists() else ""
        raise KeyboardInterrupt(advice) from None


def read_held_out(
    paths: Sequence[Path], transform: Transform, purpose: str, size: int = 8
) -> list[Tensor]:
    """Read the images kept out of training or tuning, in batches; report unreadable ones."""
    import torch

    from vitlens.images import to_tensor

    each, reasons = [], []
    for path in paths:
        try:
            each.append(to_tensor(path, transform))
        except ImageError as error:
            reasons.append(str(error))
    if reasons:
        print(f"\n{unreadable(reasons, f'kept out of {purpose} could not be read')}")
    return [torch.stack(each[start : start + size]) for start in range(0, len(each), size)]


def _cost(n_saes: int, n_images: int, cost: Estimate) -> str:
    return f"{count(n_saes, 'SAE')} on {count(n_images, 'image')}: {cost}"


def _print_health(
    title: str, vision: VisionModel, saes: Mapping[int, SAE], batches: Sequence[Tensor]
) -> None:
    from vitlens.training import measure

    title = title.format(count(sum(map(len, batches)), "image"))
    print(f"\n{title}\n{measure(vision, saes, batches)}")


def _print_next_step(arguments: argparse.Namespace) -> None:
    print(
        f"\nThe SAEs are in {arguments.out}. Use them with:\n"
        f"  vitlens explain IMAGE --model {arguments.model} --saes {arguments.out}"
    )


class ImageFiles(Sequence["Tensor"]):
    """Image files as model inputs, each read when it is needed.

    An unreadable file is replaced by the next readable one. A resumed run is identified by its
    number of images among other things, so that number must not depend on what can be read.

    Parameters
    ----------
    paths
        The files.
    transform
        The model's.

    Attributes
    ----------
    unreadable
        What is wrong with the unreadable files met so far, by path.
    """

    def __init__(self, paths: Sequence[Path], transform: Transform) -> None:
        self.paths, self.transform = paths, transform
        self.unreadable: dict[Path, str] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # only whole numbers come
        from vitlens.images import to_tensor

        wanted = self.paths[index]
        for candidate in range(index, index + len(self.paths)):
            path = self.paths[candidate % len(self.paths)]
            try:
                return to_tensor(path, self.transform)
            except ImageError as error:
                self.unreadable[path] = str(error)
        raise ImageError(f"No image could be read. {self.unreadable[wanted]}")

    def report(self) -> str:
        """Report which files could not be read; "" when all could."""
        if not self.unreadable:
            return ""
        what = "could not be read; the next one was used instead"
        return f"\n{unreadable(list(self.unreadable.values()), what)}"
