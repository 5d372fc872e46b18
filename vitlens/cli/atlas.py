"""``vitlens atlas``: build an atlas of what features stand for, in one go or in parts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlens.cli.options import Commands, add_command, add_model_options, load_lens, positive
from vitlens.cli.report import count, unreadable
from vitlens.errors import VitlensError

if TYPE_CHECKING:
    from vitlens.atlas.atlas import Atlas
    from vitlens.lens import Lens

_TEXT = """\
Find out what every feature of every layer stands for: one pass over images
gathers the images and patches each feature is most active on, its histogram,
classes and positions; synthetic stimuli tell edges, curves, colours and
textures. Writes a folder that Atlas.load opens.

Images come from folders (subfolders are taken for class labels), files, or
webdataset shards (.tar). A run that was stopped goes on when the same command
is given again. Parts of the work (--part 1/4 on one machine, 2/4 on another)
are put together with --merge, and then are the same as one run.
"""
_EXAMPLES = """\
  vitlens atlas photos/ --out atlas/
  vitlens atlas photos/ --part 1/2 --out half-1/
  vitlens atlas photos/ --part 2/2 --out half-2/
  vitlens atlas --merge half-1/ half-2/ --out atlas/
"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    command = add_command(
        commands, "atlas", "find out what every feature stands for", _TEXT, _EXAMPLES
    )
    command.add_argument(
        "images", nargs="*", type=Path, metavar="PHOTOS", help="folders, image files or .tar shards"
    )
    command.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write the atlas to"
    )
    group = command.add_argument_group("atlas")
    for name, what in (
        ("--n-top", "images it is most active in"),
        ("--n-sampled", "images of a sample it is active in"),
    ):
        group.add_argument(
            name, type=positive, default=16, metavar="N", help=f"{what}, a feature (default: 16)"
        )
    group.add_argument(
        "--pictures",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="store small pictures of the images (default), or only where they were",
    )
    group.add_argument(
        "--picture-size", type=positive, default=160, metavar="PX", help="default: 160"
    )
    group.add_argument(
        "--stimuli",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show the features synthetic stimuli (default)",
    )
    group.add_argument(
        "--labels",
        choices=("auto", "predictions"),
        default="auto",
        help="classes from the data where they have any (default), or as the model predicts",
    )
    group.add_argument("--batch-size", type=positive, default=16, metavar="N", help="default: 16")
    group.add_argument(
        "--part", type=_part, metavar="I/N", help="only every N-th batch, from the I-th on"
    )
    group.add_argument(
        "--merge", nargs="+", type=Path, metavar="DIR", help="atlases of parts to put together"
    )
    group.add_argument(
        "--restart",
        action="store_true",
        help="build anew, instead of going on with a run that was stopped",
    )
    add_model_options(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    if bool(arguments.merge) == bool(arguments.images):
        raise VitlensError("Give images to build an atlas of, or atlases to --merge.")
    lens = load_lens(arguments)
    if arguments.merge:
        atlas = _merged(arguments, lens)
    else:
        try:
            atlas = _built(arguments, lens)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("The same command goes on with the images left.") from None
    _report(atlas, arguments.out)


def _built(arguments: argparse.Namespace, lens: Lens) -> Atlas:
    from vitlens.atlas.atlas import Atlas

    if (arguments.out / "atlas.json").exists() and not arguments.restart:
        raise VitlensError(f"{arguments.out} is an atlas already. --restart builds it anew.")
    given: Any = arguments.images[0] if len(arguments.images) == 1 else arguments.images
    return Atlas.build(
        lens,
        given,
        labels=None if arguments.labels == "auto" else arguments.labels,
        n_top=arguments.n_top,
        n_sampled=arguments.n_sampled,
        thumbnails=arguments.picture_size if arguments.pictures else None,
        batch_size=arguments.batch_size,
        out=arguments.out,
        resume=not arguments.restart,
        stimuli=arguments.stimuli,
        part=arguments.part,
    )


def _merged(arguments: argparse.Namespace, lens: Lens) -> Atlas:
    from vitlens.atlas.atlas import Atlas

    atlas = Atlas.merge(arguments.merge, lens=lens, stimuli=arguments.stimuli)
    atlas.save(arguments.out)
    return atlas


def _report(atlas: Atlas, out: Path) -> None:
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    features = f"{sum(atlas.sizes)} features in {atlas.n_layers} layers"
    print(f"\n{features}, {count(atlas.n_images, 'image')}: {out}, {size / 1e6:.1f} MB")
    if atlas.skipped:
        reasons = [why if key in why else f"{key}: {why}" for key, why in atlas.skipped]
        print(unreadable(reasons, rest=f": see skipped in {out}/atlas.json"))
    print(f"\n{atlas.evolution()}")


def _part(text: str) -> tuple[int, int]:
    """Return which part of how many, counted from 0, for argparse."""
    number, slash, of = text.partition("/")
    if not (slash and number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"must be like 1/4, not {text}")
    return int(number) - 1, int(of)
