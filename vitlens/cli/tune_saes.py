"""``vitlens tune-saes``: tune the SAEs of all layers so that they also work together."""

from __future__ import annotations

import argparse

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

_TEXT = """\
Tune trained sparse autoencoders (SAEs) end to end. Trained one by one, each knows only the model's
own stream; with all of them in place and no error nodes, small errors grow from layer to layer.
Tuning keeps the number of active features, and costs each SAE a little of what it explains alone.
Says first what it will cost, and compares before and after on images kept out of it.

Ctrl-C keeps a checkpoint: the same command goes on from there.
"""
_EXAMPLES = """\
  vitlens tune-saes photos/ --model vit_base_patch16_224 --saes saes/ --out tuned/
  vitlens tune-saes photos/ --model everyday --out tuned/ --precision bfloat16
"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    command = add_command(
        commands, "tune-saes", "tune trained SAEs to work together", _TEXT, _EXAMPLES
    )
    add_image_options(command)
    command.add_argument(
        "--saes",
        metavar="FOLDER",
        help='the trained SAEs: a folder or a name on the Hugging Face hub (for "everyday": its'
        " own)",
    )
    group = command.add_argument_group("tuning")
    group.add_argument(
        "--chain-weight",
        type=float,
        default=0.5,
        metavar="X",
        help="of what is left unexplained with the earlier SAEs in place; alone weighs 1"
        " (default: 0.5)",
    )
    group.add_argument(
        "--output-weight",
        type=float,
        default=0.5,
        metavar="X",
        help="of the divergence of the output (default: 0.5)",
    )
    group.add_argument(
        "--batch-size", type=positive, default=16, metavar="N", help="images a step (default: 16)"
    )
    group.add_argument(
        "--learning-rate", type=positive_number, default=1e-4, metavar="X", help="default: 0.0001"
    )
    add_run_options(command, group, "the order")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    held_out, rest = held_out_and_rest(arguments)

    from vitlens.bundle import load
    from vitlens.saes import TuneConfig, estimate_tuning, measure, tune_saes

    config = TuneConfig(
        batch_images=arguments.batch_size,
        chain_weight=arguments.chain_weight,
        output_weight=arguments.output_weight,
        learning_rate=arguments.learning_rate,
        precision=arguments.precision,
    )
    lens = load(arguments.model, saes=arguments.saes, **device_and_dtype(arguments))
    vision, saes, transform = lens.vision, lens.saes, transform_of(lens)
    cost = estimate_tuning(vision, saes, config, len(rest))
    print(f"{len(saes)} SAEs on {count(len(rest), 'image')}: {cost}", flush=True)
    images = ImageFiles(rest, transform)
    with advice_on_interrupt(arguments.out):
        result = tune_saes(vision, saes, images, config, out=arguments.out)
    print(f"{images.told()}\nOn the images of tuning:\n{result}")
    if batches := read_held_out(held_out, transform):
        kept = count(sum(map(len, batches)), "image")
        print(f"\nOn {kept} kept out of tuning, before:\n{measure(vision, saes, batches)}")
        print(f"\nand after:\n{measure(vision, result.saes, batches)}")
    print(
        f"\nSAEs are in {arguments.out}. Use them:\n"
        f"  vitlens explain IMAGE --model {arguments.model} --saes {arguments.out}"
    )
