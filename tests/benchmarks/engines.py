"""Compare the engines on one image, in time and memory: ``make bench``.

Each engine runs in a process of its own, one after the other, so that its peak memory is its own.
`closed_form`, `vjp` and `jacrev` compute all edges of a pair of sites, `jvp` those of its 20
strongest sources. `jacrev` is what the published code does: reverse mode for every feature of the
dictionary, in chunks of 64. Our `vjp` leaves out features that are inactive on the image, whose
edges are 0.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vitlens.bundle import load
from vitlens.images import ImageLike, Transform
from vitlens.io import read_tensors, write_tensors
from vitlens.lens import Lens
from vitlens.method import edges as method_edges
from vitlens.method.engines import compute_edges, site_pair
from vitlens.method.importance import Importances, node_importances, resolve_target
from vitlens.method.replacement import ReplacementModel, Trace
from vitlens.models.families import create
from vitlens.saes.topk import TopKSAE
from vitlens.tables import text_table

ENGINES = ("closed_form", "vjp", "jacrev", "jvp")
N_SOURCES = 20
AIM = 25
TOLERANCE = 1e-4
_SELF = "tests.benchmarks.engines"


def main() -> int:
    arguments = _parser().parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.worker:
        subject = _random() if arguments.random_weights else _bundled()
        _work(subject, arguments.worker, arguments.pairs, arguments.repeats, Path(arguments.out))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        found = {engine: _run(engine, arguments, folder) for engine in ENGINES}
    return _report(found, arguments.threads)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {_SELF}", description=__doc__)
    parser.add_argument(
        "--pairs",
        type=int,
        metavar="N",
        help="measure only the first N pairs of sites (default: all, which takes some minutes)",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        metavar="N",
        help="repeats of the fast engines; the median counts",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="measure random weights of the bundle's shape; no bundle is needed",
    )
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    return parser


def _run(engine: str, arguments: argparse.Namespace, folder: str) -> tuple[dict[str, Tensor], dict]:
    out = Path(folder) / f"{engine}.safetensors"
    command = [sys.executable, "-m", _SELF, "--worker", engine, "--out", str(out)]
    command += ["--threads", str(arguments.threads), "--repeats", str(arguments.repeats)]
    if arguments.pairs is not None:
        command += ["--pairs", str(arguments.pairs)]
    if arguments.random_weights:
        command += ["--random-weights"]
    print(f"{engine} …", file=sys.stderr, flush=True)
    subprocess.run(command, check=True)
    return read_tensors(out)


def _report(found: dict[str, tuple[dict[str, Tensor], dict]], threads: int) -> int:
    figures = {engine: figure for engine, (_, figure) in found.items()}
    edges = {engine: tensors for engine, (tensors, _) in found.items()}
    fast = figures["closed_form"]
    n = len(fast["seconds"])
    print(fast["what"])
    print(f"CPU, {threads} threads, float32, {n} of {fast['n_pairs']} pairs of sites\n")
    worst = {
        engine: max(_difference(edges[engine], edges["vjp"], pair) for pair in range(n))
        for engine in ("closed_form", "jacrev", "jvp")
    }
    rows = []
    for engine in ENGINES:
        figure = figures[engine]
        scope = f"of {N_SOURCES} sources" if engine == "jvp" else "all"
        total, cpu = _sums(figure)
        rows.append(
            (
                engine,
                scope,
                f"{total / n:.3f} s",
                f"{total:.2f} s",
                f"{cpu:.2f} s",
                f"{figure['peak'] / 2**20:.0f} MiB",
                f"{(figure['peak'] - figure['before']) / 2**20:.0f} MiB",
                f"{worst[engine]:.1e}" if engine in worst else "",
            )
        )
    header = ("engine", "edges", "per pair", "all pairs", "CPU time", "peak memory")
    header += ("above the model", "difference to vjp")
    print(text_table(header, rows, align="ll" + "r" * (len(header) - 2)))
    print(f"\nclosed_form, in this run (aim: at least {AIM} times as fast as jacrev):")
    for engine in ("jacrev", "vjp"):
        clock, cpu = (
            slow / quick for slow, quick in zip(_sums(figures[engine]), _sums(fast), strict=True)
        )
        print(f"  {clock:.1f} times as fast as {engine}, with {cpu:.1f} times less CPU time")
    print("If other programs are running, CPU time with --threads 1 is the fairer measure.")
    if max(worst.values()) > TOLERANCE:
        print(f"The engines differ by more than {TOLERANCE:.0e}.", file=sys.stderr)
        return 1
    return 0


def _sums(figure: dict) -> tuple[float, float]:
    """Return the time over all pairs: by the clock, and of all cores."""
    return sum(clock for clock, _ in figure["seconds"]), sum(cpu for _, cpu in figure["seconds"])


def _difference(mine: dict[str, Tensor], reference: dict[str, Tensor], pair: int) -> float:
    """Largest difference, relative to the pair's largest edge, over the rows that were computed."""
    edges = mine[f"edges.{pair}"]
    expected = reference[f"edges.{pair}"]
    scale = expected.abs().max()
    rows = mine.get(f"rows.{pair}")
    if rows is not None:
        edges, expected = edges[rows], expected[rows]
    return float((edges - expected).abs().max() / scale)


def _work(
    subject: tuple[str, Lens, ImageLike], engine: str, n_pairs: int | None, repeats: int, out: Path
) -> None:
    name, lens, image = subject
    vision, sae = lens.vision, lens.saes[0]
    what = (
        f"{name}: {vision.n_tokens} tokens x {vision.d_model}, {sae.n_features} features, at most "
        f"{sae.max_active} active per token in layer {lens.layers[0]}"
    )
    trace = lens.trace(image)
    target = resolve_target(None, trace.logits, lens.class_names)
    nodes = node_importances(lens.replacement, trace, target)
    all_pairs = len(lens.replacement) - 1
    pairs = range(all_pairs if n_pairs is None else min(n_pairs, all_pairs))
    if engine != "jvp":  # warm up; jvp has a fast run anyway, and takes the median
        _edges(lens.replacement, trace, nodes, 0, engine, targets=torch.arange(64))

    _forget_peak()
    before = _peak()
    seconds, tensors = [], {}
    for pair in pairs:
        replacement = lens.replacement
        if engine == "jvp":
            rows, replacement = _few_sources(replacement, nodes, trace, pair)
            tensors[f"rows.{pair}"] = rows
        times = []
        for _ in range(repeats if engine in ("closed_form", "jvp") else 1):
            start = time.perf_counter(), time.process_time()
            edges = _edges(replacement, trace, nodes, pair, engine)
            times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        seconds.append(sorted(times)[len(times) // 2])
        tensors[f"edges.{pair}"] = edges
    peak = _peak()
    figures = {
        "what": what, "seconds": seconds, "before": before, "peak": peak, "n_pairs": all_pairs
    }  # fmt: skip
    write_tensors(out, tensors, json.loads(json.dumps(figures)))


def _edges(
    replacement: ReplacementModel,
    trace: Trace,
    nodes: Importances,
    position: int,
    engine: str,
    targets: Tensor | None = None,
) -> Tensor:
    pair = site_pair(replacement, trace, nodes, position, targets=targets)
    if engine != "jacrev":
        return compute_edges(pair, engine)
    with torch.no_grad():
        return method_edges.vjp(pair)  # without leaving out inactive features


def _bundled() -> tuple[str, Lens, ImageLike]:
    lens = load("everyday")
    path = lens.samples[0].path
    return f"everyday, sample {path.name}", lens, path


def _random() -> tuple[str, Lens, ImageLike]:
    torch.manual_seed(0)
    model = create("vit_small_patch14_dinov2", pretrained=False, img_size=224, num_classes=10)
    saes = []
    for _ in range(11):
        rows = torch.nn.functional.normalize(torch.randn(768, 384), dim=1)
        saes.append(
            TopKSAE.from_weights(W_enc=rows.T.clone(), W_dec=rows, b_dec=torch.zeros(384), k=32)
        )
    plain = Transform(size=(224, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return "random weights", Lens(model, saes, transform=plain), torch.randn(3, 224, 224)


def _few_sources(
    replacement: ReplacementModel, nodes: Importances, trace: Trace, position: int
) -> tuple[Tensor, ReplacementModel]:
    """Return the strongest sources, and baselines at which all others are: engines skip those."""
    strongest = nodes.nodes[position][:-1].abs().topk(N_SOURCES).indices
    features = list(replacement.baselines.features)
    others = trace.features[position].clone()
    others[:, strongest] = features[position][:, strongest]
    features[position] = others
    baselines = replace(replacement.baselines, features=features)
    return strongest, ReplacementModel(
        replacement.vision, replacement.saes, replacement.layers, baselines
    )


def _forget_peak() -> None:
    """Count the peak from here on, where Linux lets a process do so."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Return the most memory this process has held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    sys.exit(main())
