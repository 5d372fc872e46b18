"""The published table of what circuits carry, by selection and size.

    python -m recipes.everyday.circuits
    python -m recipes.everyday.circuits --split val --images 16 --error-nodes baseline
    python -m recipes.everyday.circuits --natural

On unseen composites that the model classifies correctly (see `images.test_composites`), every
selection ranks the features of each layer; of each ranking the first 4, 8, 16, 32 and 64 features
per layer are kept, and all others are at their baselines. Reported are the answer kept alone, its
distance from 1 on each image, the share of images on which the class stays first, and the
divergence of the class probabilities; with 95 % intervals over images. For specificity, the same
features are kept on images of other classes. `--natural` takes random crops of the split's
photographs instead, with the model's answer as their class. Missing public images are downloaded.
After an interruption the run resumes; `--so-far` reports what there is.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

import vitlens
from recipes.everyday import sources
from recipes.everyday.fetch import fetch
from recipes.everyday.images import composites, natural, normalise, test_composites
from vitlens.circuits.carried import divergence, specificity
from vitlens.circuits.curves import Estimate, interval, resamples
from vitlens.circuits.faithfulness import METHODS
from vitlens.io import read_json, write_json
from vitlens.method.importance import Target, resolve_target
from vitlens.method.rankings import Case
from vitlens.method.replacement import ErrorNodes, KeepFeatures, Trace, keep_masks
from vitlens.tables import text_table

OUT = Path("build/everyday/circuits")
COUNTS = (4, 8, 16, 32, 64)
#: Rows of the table: a ranking, and the baselines that it is made and measured with.
ROWS: Mapping[str, tuple[str, str]] = {
    "walk, medians": ("rrm", "median"),
    "walk": ("rrm", "mean"),
    "path": ("path", "mean"),
    "eliminate": ("eliminate", "mean"),
    "learned": ("learned", "mean"),
    "node": ("node", "mean"),
    "plain": ("plain", "mean"),
    "cla": ("cla", "mean"),
    "activation": ("activation", "mean"),
    "random": ("random", "mean"),
}
_TRIED = 1.3  # composites per image, as some are misclassified
_OTHERS, _SPECIFIC_AT = 6, 16


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200, help="correct images (%(default)s)")
    parser.add_argument("--split", choices=("test", "val"), default="test")
    parser.add_argument("--natural", action="store_true", help="photographs, not composites")
    parser.add_argument("--error-nodes", choices=get_args(ErrorNodes), default="clean")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--saes", type=Path, help="other SAEs, with --mean their mean baselines")
    parser.add_argument("--mean", type=Path)
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread (%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--so-far", action="store_true", help="report what has been measured")
    args = parser.parse_args()
    if not args.so_far:
        fetch()
        with ProcessPoolExecutor(args.jobs) as pool:
            list(pool.map(partial(_measure, args), range(args.jobs)))
    found = [read_json(path) for path in sorted(_folder(args).glob("*.json"))]
    if not found:
        raise SystemExit("Nothing has been measured yet with these options.")
    print(report(found, args.rows))


def _folder(args: argparse.Namespace) -> Path:
    name = f"{args.split}-{args.error_nodes}" + "-natural" * args.natural
    return args.out / (name if args.saes is None else f"{name}-{args.saes.name}")


class _Images(NamedTuple):
    pixels: UInt8[np.ndarray, "n 224 224 3"]
    labels: list[int]


def _images(args: argparse.Namespace) -> _Images:
    """Images of the split, and their classes: for photographs, the model's answers."""
    n = round(_TRIED * args.images) + 24
    if not args.natural:
        made = test_composites(n, seed=1) if args.split == "test" else composites("val", n, seed=77)
        return _Images(made.pixels, made.labels.tolist())
    rng = np.random.default_rng(5)
    photographs = sources.backgrounds()[args.split]
    chosen = [photographs[i] for i in rng.integers(len(photographs), size=n)]
    pixels = np.stack([natural(path, rng) for path in chosen])
    answers = [_logits(_bundled("mean"), row).argmax() for row in pixels]
    return _Images(pixels, [int(answer) for answer in answers])


def _measure(args: argparse.Namespace, job: int) -> None:
    torch.set_num_threads(1)
    made = _images(args)
    kinds = {ROWS[row][1] for row in args.rows}
    lenses = {kind: _lens(args, kind) for kind in sorted(kinds)}
    done = 0
    for number in range(len(made.pixels)):
        lens = next(iter(lenses.values()))
        label = made.labels[number]
        if int(_logits(lens, made.pixels[number]).argmax()) != label:
            continue
        done += 1
        if done > args.images:
            return
        path = _folder(args) / f"{number:04d}.json"
        known = read_json(path) if path.exists() else {}
        missing = [row for row in args.rows if row not in known]
        if (done - 1) % args.jobs != job or not missing:
            continue
        others = [n for n in range(len(made.pixels)) if made.labels[n] != label]
        chosen = np.random.default_rng(number).choice(
            others, min(_OTHERS, len(others)), replace=False
        )
        for row in missing:
            method, kind = ROWS[row]
            known[row] = _row(args, lenses[kind], method, made, number, chosen.tolist())
        write_json(path, known)


@cache
def _bundled(kind: str) -> vitlens.Lens:
    return vitlens.load("everyday", baselines=kind)


def _lens(args: argparse.Namespace, kind: str) -> vitlens.Lens:
    if args.saes is None:
        return _bundled(kind)
    return vitlens.load("everyday", saes=args.saes, baselines=args.mean)


def _trace(lens: vitlens.Lens, made: _Images, number: int) -> Trace:
    return lens.replacement.trace(normalise(made.pixels[number : number + 1]))[0]


def _logits(lens: vitlens.Lens, pixels: UInt8[np.ndarray, "224 224 3"]) -> Tensor:
    return lens.vision.logits(normalise(pixels[None]))[0]


def _row(
    args: argparse.Namespace,
    lens: vitlens.Lens,
    method: str,
    made: _Images,
    number: int,
    others: Sequence[int],
) -> dict[str, Any]:
    replacement = lens.replacement
    trace = _trace(lens, made, number)
    target = resolve_target(None, trace.logits, lens.class_names)
    case = Case(replacement, trace, target, error_nodes=args.error_nodes, index=number)
    keep = METHODS[method](case)
    masks = {count: keep_masks(replacement, keep(count)) for count in COUNTS}
    measured = _alone(replacement, trace, target, [masks[c] for c in COUNTS], args.error_nodes)
    found = specificity(
        replacement,
        trace,
        target,
        masks[_SPECIFIC_AT],
        ((n, _trace(lens, made, n)) for n in others),
        n_random=0,
        error_nodes=args.error_nodes,
    )
    return {**measured, "others": list(found.others), "top1_others": found.top1_others}


def _alone(
    replacement: Any,
    trace: Trace,
    target: Target,
    kept: Sequence[Sequence[Tensor]],
    error_nodes: ErrorNodes,
) -> dict[str, Any]:
    """Target, top-1 and divergence for every kept set, of the empty model and of the full one."""
    empty = [torch.zeros_like(mask) for mask in kept[0]]
    full = [torch.ones_like(mask) for mask in kept[0]]
    rows = [torch.stack(site) for site in zip(empty, full, *kept, strict=True)]
    logits = replacement.run(trace, KeepFeatures(rows), error_nodes=error_nodes)
    values = [float(target.function(row)) for row in logits]
    return {
        "empty": values[0],
        "full": values[1],
        "values": values[2:],
        "top1": (logits[2:].argmax(-1) == target.index).tolist(),
        "divergence": divergence(trace.logits, logits[2:]).tolist(),
    }


def report(found: Sequence[Mapping[str, Any]], rows: Sequence[str]) -> str:
    """The tables: kept alone, distance from 1, top-1, divergence, specificity."""
    rows = [row for row in rows if any(row in image for image in found)]
    found = [image for image in found if all(row in image for row in rows)]
    n = len(found)
    draws = resamples(n)
    parts = [f"{n} images, features per layer: {', '.join(map(str, COUNTS))}"]

    def table(title: str, cell: Any) -> None:
        lines = [[row, *(str(cell(row, i)) for i in range(len(COUNTS)))] for row in rows]
        parts.append(f"{title}\n{text_table(['selection', *map(str, COUNTS)], lines)}")

    def column(row: str, key: str, i: int) -> np.ndarray:
        return np.array([float(image[row][key][i]) for image in found])

    def mean(values: np.ndarray) -> Estimate:
        return interval(float(values.mean()), draws @ values, n)

    def ends(row: str) -> tuple[np.ndarray, np.ndarray]:
        return tuple(np.array([image[row][end] for image in found]) for end in ("empty", "full"))

    def kept(row: str, i: int) -> Estimate:
        # The means are divided, so that an image without a span counts little: equation (36).
        (low, high), values = ends(row), column(row, "values", i)
        share = (values - low).mean() / (high - low).mean()
        drawn = (draws @ (values - low)) / (draws @ (high - low))
        return interval(float(share), drawn, n)

    def distance(row: str, i: int) -> Estimate:
        (low, high), values = ends(row), column(row, "values", i)
        off = np.abs(values - high)
        drawn = (draws @ off) / (draws @ (high - low))
        return interval(float(off.mean() / (high - low).mean()), drawn, n)

    table("Kept alone", kept)
    table("Distance from the full answer, image by image", distance)
    table("Share of images on which the class stays first", lambda r, i: mean(column(r, "top1", i)))
    table(
        "Divergence of the class probabilities, nats", lambda r, i: mean(column(r, "divergence", i))
    )
    lines = []
    for row in rows:
        others = np.array([np.nanmean(image[row]["others"]) for image in found])
        own = kept(row, COUNTS.index(_SPECIFIC_AT)).value
        first = np.array([image[row]["top1_others"] for image in found])
        ratio = np.nanmean(others) / own
        lines.append([row, str(mean(np.nan_to_num(others))), f"{ratio:.2f}", str(mean(first))])
    header = ["selection", "answer on other classes' images", "of its own", "class first there"]
    parts.append(f"Specificity, {_SPECIFIC_AT} features per layer\n{text_table(header, lines)}")
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
