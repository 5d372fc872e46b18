"""``vitlens train-saes``: train the SAEs of all layers on a folder of images."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vitlens.cli.options import Commands, add_command, device_and_dtype, positive, positive_number
from vitlens.cli.report import count
from vitlens.cli.sae_runs import (
    ImageFiles,
    add_image_options,
    add_run_options,
    advice_on_interrupt,
    held_out_and_rest,
    read_held_out,
    transform_of,
)

if TYPE_CHECKING:
    from vitlens.images import Transform
    from vitlens.models.vision import VisionModel

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
    add_image_options(command)
    group = command.add_argument_group("SAEs")
    group.add_argument(
        "--k", type=positive, default=32, metavar="N", help="active features a token (default: 32)"
    )
    group.add_argument(
        "--size-ratio",
        type=positive_number,
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
        "--learning-rate", type=positive_number, default=2e-4, metavar="X", help="default: 0.0002"
    )
    add_run_options(command, group, "weights and order")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    held_out, training = held_out_and_rest(arguments)

    from vitlens.saes import TrainConfig, estimate, measure, train_saes

    vision, transform = _load(arguments)
    config = TrainConfig(
        sizes=max(1, round(arguments.size_ratio * vision.d_model)),
        k=arguments.k,
        epochs=arguments.epochs,
        batch_tokens=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        precision=arguments.precision,
        seed=arguments.seed,
    )
    cost = estimate(vision, config, len(training))
    print(f"{vision.depth - 1} SAEs on {count(len(training), 'image')}: {cost}", flush=True)
    images = ImageFiles(training, transform)
    with advice_on_interrupt(arguments.out):
        result = train_saes(vision, images, config, out=arguments.out)
    print(f"{images.told()}\nOn training images:\n{result}")
    if batches := read_held_out(held_out, transform):
        kept = count(sum(map(len, batches)), "image")
        print(f"\nOn {kept} kept out of training:\n{measure(vision, result.saes, batches)}")
    print(
        f"\nSAEs are in {arguments.out}. Use them:\n"
        f"  vitlens explain IMAGE --model {arguments.model} --saes {arguments.out}"
    )


def _load(arguments: argparse.Namespace) -> tuple[VisionModel, Transform]:
    """Load the model that ``--model`` names, and its transform."""
    from vitlens.bundle import bundles, load
    from vitlens.images import Transform
    from vitlens.models.vision import VisionModel
    from vitlens.models.families import create

    machine = device_and_dtype(arguments)
    if arguments.model in bundles():
        lens = load(arguments.model, **machine)
        return lens.vision, transform_of(lens)
    model = create(arguments.model).to(**machine)
    return VisionModel(model), Transform.from_timm(model)
