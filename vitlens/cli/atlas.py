"""``vitlens atlas``: build an atlas of what features respond to, at once or in parts."""

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
Find out what every feature of every layer responds to. One pass over images collects
the images and patches on which each feature is most active, its histogram, classes
and positions. Synthetic stimuli show which features respond to edges, curves, colours
and textures. The command writes a folder for vitlens.Atlas.load.

Images come from folders (names of subfolders are class labels), image files, or
webdataset shards (.tar). An interrupted run continues when the same command is run
again. The work can be divided (--part 1/4 on one machine, --part 2/4 on another);
--merge combines the parts, with the same result as one run.
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
        commands, "atlas", "find out what every feature responds to", _TEXT, _EXAMPLES
    )
    command.add_argument(
        "images", nargs="*", type=Path, metavar="IMAGES", help="folders, image files or .tar shards"
    )
    command.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="folder for the atlas"
    )
    group = command.add_argument_group("atlas")
    for name, what in (
        ("--n-top", "images to keep per feature: those on which it is most active"),
        ("--n-sampled", "images to keep per feature: a sample of those on which it is active"),
    ):
        group.add_argument(
            name, type=positive, default=16, metavar="N", help=f"{what} (default: 16)"
        )
    group.add_argument(
        "--thumbnails",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="store small copies of the images (default), or only their paths",
    )
    group.add_argument(
        "--thumbnail-size",
        type=positive,
        default=160,
        metavar="PX",
        help="longer side in pixels (default: 160)",
    )
    group.add_argument(
        "--stimuli",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also measure responses to synthetic stimuli (default)",
    )
    group.add_argument(
        "--labels",
        choices=("auto", "predictions"),
        default="auto",
        help="class labels: those of the data if it has any (auto, the default), or predicted ones",
    )
    group.add_argument(
        "--batch-size", type=positive, default=16, metavar="N", help="images per step (default: 16)"
    )
    group.add_argument(
        "--part",
        type=_part,
        metavar="I/N",
        help="process only every N-th batch, starting with the I-th",
    )
    group.add_argument(
        "--merge", nargs="+", type=Path, metavar="FOLDER", help="atlases of parts to combine"
    )
    group.add_argument(
        "--restart",
        action="store_true",
        help="start again instead of continuing an interrupted run",
    )
    add_model_options(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    if bool(arguments.merge) == bool(arguments.images):
        raise VitlensError(
            "Give either images to build an atlas from, or atlases to combine with --merge."
        )
    lens = load_lens(arguments)
    if arguments.merge:
        atlas = _merged(arguments, lens)
    else:
        try:
            atlas = _built(arguments, lens)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "The same command continues with the remaining images."
            ) from None
    _report(atlas, arguments.out)


def _built(arguments: argparse.Namespace, lens: Lens) -> Atlas:
    from vitlens.atlas.atlas import Atlas

    if (arguments.out / "atlas.json").exists() and not arguments.restart:
        raise VitlensError(f"{arguments.out} is already an atlas. Use --restart to build it again.")
    given: Any = arguments.images[0] if len(arguments.images) == 1 else arguments.images
    return Atlas.build(
        lens,
        given,
        labels=None if arguments.labels == "auto" else arguments.labels,
        n_top=arguments.n_top,
        n_sampled=arguments.n_sampled,
        thumbnails=arguments.thumbnail_size if arguments.thumbnails else None,
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
