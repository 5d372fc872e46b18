"""Time the engines against each other on one image: ``make bench``.

Every engine runs in a process of its own, one after the other, so that its peak memory is its own.
`exact`, `vjp` and `jacrev` compute all edges of a layer pair, `jvp` those of its 20 strongest
sources. `jacrev` is what the published code does, reverse mode for every feature of the dictionary
in chunks of 64; our `vjp` leaves out features that are silent on the image, whose edges are 0.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from vitlens.attribution import vjp
from vitlens.attribution.importances import Importances, importances, layer_edges
from vitlens.attribution.targets import resolve_target
from vitlens.bundle import load
from vitlens.images import ImageLike, Transform
from vitlens.io import read_tensors, write_tensors
from vitlens.lens import Lens
from vitlens.models.families import create
from vitlens.replacement import Baselines, Trace
from vitlens.saes.topk import TopKSAE

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
        help="measure only the first N layer pairs (default: all, which takes some minutes)",
    )
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="of the fast engines; medians count"
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
    exact = figures["closed_form"]
    n = len(exact["seconds"])
    print(
        f"{exact['what']}\nCPU, {threads} threads, float32, {n} of {exact['n_pairs']} layer pairs\n"
    )
    worst = {
        engine: max(_difference(edges[engine], edges["vjp"], pair) for pair in range(n))
        for engine in ("closed_form", "jacrev", "jvp")
    }
    rows = [
        ("engine", "edges", "a pair", "all pairs", "CPU time", "peak memory", "above the model",
         "difference to vjp")
    ]  # fmt: skip
    for engine in ENGINES:
        figure = figures[engine]
        scope = f"of {N_SOURCES} sources" if engine == "jvp" else "all"
        in_all, cpu = _sums(figure)
        rows.append(
            (
                engine,
                scope,
                f"{in_all / n:.3f} s",
                f"{in_all:.2f} s",
                f"{cpu:.2f} s",
                f"{figure['peak'] / 2**20:.0f} MiB",
                f"{(figure['peak'] - figure['before']) / 2**20:.0f} MiB",
                f"{worst[engine]:.1e}" if engine in worst else "",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print(
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    print(f"\nexact, in this run (aim: at least {AIM} times as fast as jacrev):")
    for engine in ("jacrev", "vjp"):
        clock, cpu = (slow / fast for slow, fast in zip(
            _sums(figures[engine]), _sums(figures["closed_form"]), strict=True
        ))  # fmt: skip
        print(f"  {clock:.1f} times as fast as {engine}, with {cpu:.1f} times less CPU time")
    print(
        "If the machine is busy with other work, CPU time with --threads 1 is the fairer measure."
    )
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
    what = f"{name}: {vision.n_tokens} tokens x {vision.d_model}, {sae.n_features} features, K {sae.k} in layer 0"
    trace = lens.trace(image)
    target = resolve_target(None, trace.logits, lens.class_names)
    known = "vjp" if engine == "jacrev" else engine
    nodes = importances(
        lens.vision, lens.saes, trace, lens.baselines, target, engine=known, edges=False
    )
    all_pairs = len(lens.saes) - 1
    pairs = range(all_pairs if n_pairs is None else min(n_pairs, all_pairs))
    if engine != "jvp":  # warm up; jvp has a fast run anyway, and takes the median
        few = torch.arange(64)
        layer_edges(lens.vision, lens.saes, trace, lens.baselines, nodes, 0, targets=few)

    _forget_peak()
    before = _peak()
    seconds, tensors = [], {}
    for pair in pairs:
        baselines = lens.baselines
        if engine == "jvp":
            rows, baselines = _few_sources(nodes, trace, lens.baselines, pair)
            tensors[f"rows.{pair}"] = rows
        times = []
        for _ in range(repeats if engine in ("closed_form", "jvp") else 1):
            start = time.perf_counter(), time.process_time()
            with _nothing_left_out() if engine == "jacrev" else nullcontext():
                edges = layer_edges(lens.vision, lens.saes, trace, baselines, nodes, pair)
            times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        seconds.append(sorted(times)[len(times) // 2])
        tensors[f"edges.{pair}"] = edges
    peak = _peak()
    figures = {
        "what": what, "seconds": seconds, "before": before, "peak": peak, "n_pairs": all_pairs
    }  # fmt: skip
    write_tensors(out, tensors, json.loads(json.dumps(figures)))


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
    nodes: Importances, trace: Trace, baselines: Baselines, layer: int
) -> tuple[Tensor, Baselines]:
    """Return the strongest sources, and baselines that silence all others: what an engine skips."""
    strongest = nodes.nodes[layer][:-1].abs().topk(N_SOURCES).indices
    features = list(baselines.features)
    silenced = trace.features[layer].clone()
    silenced[:, strongest] = features[layer][:, strongest]
    features[layer] = silenced
    return strongest, replace(baselines, features=features)


@contextmanager
def _nothing_left_out() -> Iterator[None]:
    """Have every target feature pulled back, active on the image or not."""
    where = "vitlens.attribution.importances.compute_edges"
    with patch(where, lambda pair, engine: vjp.edges(pair)), torch.no_grad():
        yield


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
