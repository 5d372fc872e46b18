"""Insertion and deletion: how much of the output a few features carry.

Source: docs/method.md, "Faithfulness".
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from vitlens.attribution.baselines import activation_scores, cla_top_scores, random_scores
from vitlens.attribution.cla import cla_edges
from vitlens.attribution.edges import Engine
from vitlens.attribution.gradients import ErrorPaths, Gradient
from vitlens.attribution.importances import Importances, importances, layer_edges
from vitlens.attribution.targets import Target, TargetLike, find_class, resolve_target
from vitlens.circuits.curves import METRICS, Curves, Metric
from vitlens.circuits.prune import select, walk
from vitlens.errors import CheckpointError, FeatureError, VitlensError, check_choice, near_matches
from vitlens.io import fingerprint, read_tensors, write_tensors
from vitlens.models.vision import VisionModel
from vitlens.progress import Progress, Watch
from vitlens.replacement import Baselines, ErrorNodes, Trace, run_with, trace
from vitlens.saes.topk import TopKSAE
from vitlens.selections import keep_masks

#: Gives, for a count per layer, the features to keep: indices by layer, best first.
Keep: TypeAlias = Callable[[int], Sequence[Int[Tensor, " kept"]]]


def _say_nothing(what: str) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class Case:
    """One image and all that a method may look at to choose its features.

    Attributes
    ----------
    vit, saes, baselines
        The model, its SAEs and what features are replaced with.
    trace
        The untouched model on the image.
    target
        What is explained.
    engine
        How edges are computed.
    seed, index
        Of the experiment, and the image's number in it.
    report
        Called with what is done, before every long step of a method; what it raises ends the
        experiment.
    """

    vision: VisionModel
    saes: Sequence[TopKSAE]
    baselines: Baselines
    trace: Trace
    target: Target
    engine: Engine = "closed_form"
    seed: int = 0
    index: int = 0
    report: Callable[[str], None] = _say_nothing

    @cached_property
    def nodes(self) -> Importances:
        """Node importances with LibraGrad, error nodes as leaves; without edges."""
        return self._nodes("libragrad", "leaf")

    @cached_property
    def plain(self) -> Importances:
        """Node importances with the model's ordinary gradient; without edges."""
        return self._nodes("plain", "through")

    def _nodes(self, gradient: Gradient, errors: ErrorPaths) -> Importances:
        return importances(
            self.vision,
            self.saes,
            self.trace,
            self.baselines,
            self.target,
            gradient=gradient,
            errors=errors,
            engine=self.engine,
            edges=False,
        )


Method: TypeAlias = Callable[[Case], Keep]


def ranked(scores: Sequence[Float[Tensor, " F"]]) -> Keep:
    """Keep the features with the highest scores of each layer, lower index first among equals.

    Parameters
    ----------
    scores
        By layer, one score per feature.
    """
    orders = [select(layer, count=len(layer)) for layer in scores]
    return lambda count: [order[:count] for order in orders]


def _pairs(case: Case, method: str) -> Iterator[int]:
    """Yield each layer but the last, and report before."""
    for layer in range(len(case.saes) - 1):
        case.report(f"{method}, layer {layer}")
        yield layer


def rrm(case: Case) -> Keep:
    """Walk back over exact edges, again for each count (Kim et al., arXiv 2509.17401)."""
    edges = [
        layer_edges(case.vision, case.saes, case.trace, case.baselines, case.nodes, layer)
        for layer in _pairs(case, "rrm")
    ]
    return lambda count: walk(case.nodes.nodes, edges, count=count, error_nodes=False)


def cla(case: Case) -> Keep:
    """Walk back over |a_m| |d a_n / d a_m| (Cross-Layer Attribution, arXiv 2404.14349)."""
    # The walk has room for error nodes, which CLA does not know: a last entry of 0.
    edges = [
        F.pad(
            cla_edges(case.vision, case.saes, case.trace, layer, engine=case.engine), (0, 0, 0, 1)
        )
        for layer in _pairs(case, "cla")
    ]
    nodes = [torch.zeros(sae.n_features + 1) for sae in case.saes]
    nodes[-1] = F.pad(cla_top_scores(case.trace, case.plain.gradients[-1]), (0, 1))
    return lambda count: walk(nodes, edges, count=count, error_nodes=False)


def node(case: Case) -> Keep:
    """Rank by node importance alone."""
    return ranked([scores[:-1] for scores in case.nodes.nodes])


def plain(case: Case) -> Keep:
    """Rank by node importance with the model's ordinary gradient."""
    return ranked([scores[:-1] for scores in case.plain.nodes])


def activation(case: Case) -> Keep:
    """Rank by activation, summed over tokens."""
    return ranked(activation_scores(case.trace))


def random(case: Case) -> Keep:
    """Rank at random, again for each image."""
    sizes = [sae.n_features for sae in case.saes]
    return ranked(random_scores(sizes, seed=case.seed, image=case.index))


#: The methods that have a name.
METHODS: Mapping[str, Method] = {
    "rrm": rrm,
    "cla": cla,
    "node": node,
    "plain": plain,
    "activation": activation,
    "random": random,
}


def resolve_methods(methods: Sequence[str | Method]) -> dict[str, Method]:
    """Look methods up by name; a function has its own name.

    Raises
    ------
    FeatureError
        When a name is unknown (near matches are named), or two methods share one.
    """
    resolved: dict[str, Method] = {}
    for method in methods:
        if isinstance(method, str):
            if method not in METHODS:
                raise FeatureError(
                    f"There is no method {method!r}.{near_matches(method, METHODS)} "
                    f"Known are {', '.join(METHODS)}."
                )
            name, function = method, METHODS[method]
        else:
            name, function = getattr(method, "__name__", type(method).__name__), method
        if name in resolved:
            raise FeatureError(f"Two methods are called {name!r}; give each a name of its own.")
        resolved[name] = function
    if not resolved:
        raise FeatureError(f"Give at least one method, of {', '.join(METHODS)}.")
    return resolved


#: Shares of the largest layer's dictionary to keep or to replace.
DEFAULT_Q = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def faithfulness(
    vision: VisionModel,
    saes: Sequence[TopKSAE],
    baselines: Baselines,
    images: Sequence[Float[Tensor, "3 H W"]],
    *,
    methods: Sequence[str | Method] = ("rrm", "cla", "random"),
    labels: Sequence[int] | None = None,
    target: TargetLike = None,
    class_names: Sequence[str] | None = None,
    error_nodes: ErrorNodes = "clean",
    engine: Engine = "closed_form",
    q: Sequence[float] = DEFAULT_Q,
    batch_size: int = 16,
    seed: int = 0,
    out: str | Path | None = None,
    progress: Progress = True,
) -> Curves:
    """Measure insertion (faithfulness) and deletion (completeness) curves.

    Insertion keeps each layer's top features and puts all others at their baseline; deletion
    puts the top ones at their baseline and keeps all others. Error nodes are not counted; what
    they hold is set by `error_nodes`. Source: Kim et al., NeurIPS 2025, arXiv 2509.17401.

    Parameters
    ----------
    vit, saes, baselines
        The model, one SAE a layer but the last, and what features are replaced with.
    images
        The model's inputs, each [3, H, W].
    methods
        Names out of "rrm" (walk over exact edges, again for each count), "cla" (the same walk
        with Cross-Layer Attribution's scores), "node" (node importance alone), "plain" (the
        same with the model's ordinary gradient), "activation", "random"; or functions of a
        `Case` that return what to keep for a count.
    labels
        The right classes; when given, misclassified images are left out.
    target
        What to explain, by default each image's predicted class: its logit minus the mean of
        all. The recorded logit, probability and top-1 are of the target's class, for a function
        of the predicted class.
    class_names
        To look up a target given by name.
    error_nodes
        What error nodes hold: "clean" (the original image's values), "free", "baseline".
    engine
        How edges are computed.
    q
        Ascending shares from 0 to 1 of the largest layer's dictionary. Each becomes a count a
        layer, rounded, at least 1 above 0; a layer with fewer features is used up earlier.
    batch_size
        How many replaced runs go through the model at once.
    seed
        Of the random order.
    out
        A file to write. A run that was cut off goes on from the last whole image, kept in
        `out` with ".partial" appended; a finished one is loaded.
    progress
        Show a progress bar over the images, or call this function (see `vitlens.progress`), before
        every method, every layer of "rrm" and "cla", and every batch of replaced runs.

    Returns
    -------
    Curves

    Raises
    ------
    FeatureError
        When a method is unknown, or q or the batch size is not valid.
    OptionError
        When `error_nodes` is unknown.
    TargetError
        When there is no such target.
    CheckpointError
        When `out` holds something else than this very run.
    VitlensError
        When no image is left to measure.
    """
    named = resolve_methods(methods)
    counts = _counts(q, saes)
    _check(images, labels, error_nodes, batch_size)
    plan = _Plan(vision, saes, baselines, named, counts, error_nodes, batch_size)
    watch = Watch(progress, total=len(images) * plan.n_steps)
    settings: dict[str, Any] = {"engine": engine, "seed": seed}
    done = Measured()
    if out is not None:
        call = {
            "methods": list(named),
            "q": [float(share) for share in q],
            "labels": None if labels is None else [int(label) for label in labels],
            # A class by its number: with other class names the same name is another class.
            "target": (
                find_class(target, vision.n_classes, class_names)
                if isinstance(target, str)
                else _plain(target)
            ),
            "error_nodes": error_nodes,
        }
        explained: list[float] = []
        if callable(target) or not (vision.head is None or isinstance(vision.head, nn.Module)):
            first = vision.logits(images[0][None].to(vision.device, vision.dtype))[0]
            value = resolve_target(target, first, class_names).function(first)
            explained = [*first.tolist(), float(value)]
        settings["run"] = run_key(vision, saes, baselines, images, explained, call | settings)
        finished = load_finished(out, settings["run"])
        if finished is not None:
            return finished
        done = Measured.load(out, settings["run"])

    with tqdm(
        total=len(images),
        initial=done.seen,
        desc="curves",
        unit="image",
        disable=progress is not True,
    ) as bar:
        for index in range(done.seen, len(images)):
            watch.done = index * plan.n_steps
            watch.tell("image")
            traced = trace(vision, saes, images[index].to(vision.device, vision.dtype))
            wanted = resolve_target(target, traced.logits, class_names)
            if labels is None or int(traced.logits.argmax()) == int(labels[index]):
                case = Case(
                    vision, saes, baselines, traced, wanted, engine, seed, index, watch.tell
                )
                done.add(index, plan.measure(case, watch))
            done.seen = index + 1
            if out is not None:
                done.save(out, settings["run"])
            bar.update()
    if callable(progress):
        progress(1.0, "curves")
    if not done.images:
        raise VitlensError(
            f"None of the {len(images)} images is classified as its label says, so there is "
            "nothing to measure. Check the labels, and that images are normalised for this model."
        )
    insertion, deletion, untouched = (done.by_metric(part) for part in PARTS)
    curves = Curves(
        methods=tuple(named),
        q=tuple(float(share) for share in q),
        counts=counts,
        insertion=insertion,
        deletion=deletion,
        untouched=untouched,
        images=tuple(done.images),
        n_given=len(images),
        error_nodes=error_nodes,
        target=_name(target, class_names),
        settings=settings,
    )
    if out is not None:
        curves.save(out)
        done.remove(out)
    return curves


@dataclass(frozen=True)
class Cost:
    """What a run will take, as measured on one image.

    Attributes
    ----------
    seconds
        For all images.
    runs
        Replaced runs of the model for all images.
    memory
        Bytes, about, on top of the model.
    """

    seconds: float
    runs: int
    memory: int

    def __str__(self) -> str:
        minutes = self.seconds / 60
        duration = f"{minutes:.0f} min" if minutes >= 2 else f"{self.seconds:.0f} s"
        return (
            f"about {duration}, {self.runs} replaced runs, {self.memory / 2**30:.1f} GiB of memory"
        )


def estimate(
    vision: VisionModel,
    saes: Sequence[TopKSAE],
    baselines: Baselines,
    image: Float[Tensor, "3 H W"],
    n_images: int,
    *,
    methods: Sequence[str | Method] = ("rrm", "cla", "random"),
    error_nodes: ErrorNodes = "clean",
    engine: Engine = "closed_form",
    q: Sequence[float] = DEFAULT_Q,
    batch_size: int = 16,
) -> Cost:
    """Measure one image to say what `faithfulness` on many will take.

    Parameters
    ----------
    vit, saes, baselines, methods, error_nodes, engine, q, batch_size
        As for `faithfulness`.
    image
        One of the images, [3, H, W].
    n_images
        How many there will be.
    """
    named = resolve_methods(methods)
    counts = _counts(q, saes)
    _check([image], None, error_nodes, batch_size)
    plan = _Plan(vision, saes, baselines, named, counts, error_nodes, batch_size)
    start = time.perf_counter()
    traced = trace(vision, saes, image.to(vision.device, vision.dtype))
    case = Case(vision, saes, baselines, traced, resolve_target(None, traced.logits), engine)
    plan.measure(case, Watch(False, total=plan.n_steps))
    seconds = time.perf_counter() - start
    widest = max(sae.n_features for sae in saes)
    # A block holds about a dozen numbers a channel at once, an SAE its pre-activations,
    # activations and masks; the edges of one walk are all held.
    running = batch_size * vision.n_tokens * (12 * vision.d_model + 4 * widest)
    edges = sum((a.n_features + 1) * b.n_features for a, b in pairwise(saes))
    return Cost(
        seconds=seconds * n_images,
        runs=plan.n_runs * n_images,
        memory=(running + edges) * traced.logits.element_size(),
    )


@dataclass(frozen=True)
class _Plan:
    """What to run for every image: each method's kept sets, for each count, both ways."""

    vision: VisionModel
    saes: Sequence[TopKSAE]
    baselines: Baselines
    methods: Mapping[str, Method]
    counts: tuple[int, ...]
    error_nodes: ErrorNodes
    batch_size: int

    @property
    def inner_counts(self) -> list[int]:
        """Counts that are neither the empty nor the full model, each once."""
        return sorted(set(self.counts) - {self.counts[0], self.counts[-1]})

    @property
    def n_runs(self) -> int:
        """Replaced runs for one image."""
        return 2 + 2 * len(self.methods) * len(self.inner_counts)

    @property
    def n_steps(self) -> int:
        """Steps for one image: methods, and batches of replaced runs."""
        return len(self.methods) + len(range(0, self.n_runs, self.batch_size))

    def measure(self, case: Case, watch: Watch) -> dict[str, Float[Tensor, "... metric"]]:
        """Return insertion and deletion, [method, q, metric], and the untouched model's metrics."""
        everything = [torch.ones(sae.n_features, dtype=torch.bool) for sae in self.saes]
        kept = [everything]
        for name, method in watch.each(self.methods.items()):
            watch.tell(name)
            keep = method(case)
            kept += [keep_masks(self.saes, keep(n), torch.device("cpu")) for n in self.inner_counts]
        masks = [
            torch.cat([torch.stack(layer), ~torch.stack(layer)])
            for layer in zip(*kept, strict=True)
        ]
        values = _metrics(self._run(case, masks, watch), case)
        inserted, deleted = values.chunk(2)
        full, empty = inserted[0], deleted[0]
        return {
            "insertion": self._spread(inserted[1:], empty, full),
            "deletion": self._spread(deleted[1:], full, empty),
            "untouched": _metrics(case.trace.logits[None], case)[0],
        }

    def _run(
        self, case: Case, masks: Sequence[Bool[Tensor, "n F"]], watch: Watch
    ) -> Float[Tensor, "n C"]:
        logits = []
        for start in watch.each(range(0, len(masks[0]), self.batch_size)):
            watch.tell("replaced runs")
            chunk = [mask[start : start + self.batch_size].to(self.vision.device) for mask in masks]
            logits.append(
                run_with(
                    self.vision,
                    self.saes,
                    case.trace.image.expand(len(chunk[0]), -1, -1, -1),
                    chunk,
                    self.baselines,
                    errors=self.error_nodes,
                    clean_errors=case.trace.errors,
                )
            )
        return torch.cat(logits)

    def _spread(
        self, inner: Float[Tensor, "runs metric"], first: Tensor, last: Tensor
    ) -> Float[Tensor, "method q metric"]:
        """Put runs at their steps of q, between the end points that all methods share."""
        by_method = inner.reshape(len(self.methods), len(self.inner_counts), len(METRICS))
        steps = []
        for count in self.counts:
            if count in self.inner_counts:
                steps.append(by_method[:, self.inner_counts.index(count)])
            else:
                end = first if count == self.counts[0] else last
                steps.append(end.expand(len(self.methods), -1))
        return torch.stack(steps, dim=1)


def _metrics(logits: Float[Tensor, "n C"], case: Case) -> Float[Tensor, "n metric"]:
    """Return target, logit, probability and whether the class is first, float64 on the CPU."""
    index = case.target.index
    if index is None:
        index = int(case.trace.logits.argmax())
    by_name: dict[Metric, Tensor] = {
        "target": torch.stack([case.target.function(row) for row in logits]),
        "logit": logits[:, index],
        "probability": logits.softmax(1)[:, index],
        "top1": logits.argmax(1) == index,
    }
    return torch.stack([by_name[metric].detach().cpu().double() for metric in METRICS], dim=1)


def _counts(q: Sequence[float], saes: Sequence[TopKSAE]) -> tuple[int, ...]:
    steps = list(q)
    if len(steps) < 2 or steps[0] != 0 or steps[-1] != 1 or steps != sorted(set(steps)):
        raise FeatureError(f"q must be ascending shares that start with 0 and end with 1, not {q}.")
    widest = max(sae.n_features for sae in saes)
    return tuple(0 if share == 0 else max(1, math.floor(share * widest + 0.5)) for share in steps)


def _check(
    images: Sequence[Tensor], labels: Sequence[int] | None, error_nodes: ErrorNodes, batch_size: int
) -> None:
    if not len(images):
        raise FeatureError("There are no images to measure.")
    if labels is not None and len(labels) != len(images):
        raise FeatureError(f"{len(images)} images need as many labels, not {len(labels)}.")
    check_choice("error_nodes", error_nodes, get_args(ErrorNodes))
    if batch_size < 1:
        raise FeatureError(f"The batch size must be at least 1, not {batch_size}.")


def _plain(target: TargetLike) -> int | str | None:
    """Return a target as JSON can hold it; a function by its name."""
    if target is None or isinstance(target, str):
        return target
    if callable(target):
        return getattr(target, "__name__", type(target).__name__)
    return operator.index(target)


def _name(target: TargetLike, class_names: Sequence[str] | None) -> str:
    plain = _plain(target)
    if isinstance(plain, int):
        return class_names[plain] if class_names else f"class {plain}"
    return plain or "predicted class"


#: What is measured of each image.
PARTS = ("insertion", "deletion", "untouched")

_FORMAT = "vitlens.curves.partial"


@dataclass
class Measured:
    """What has been measured so far.

    Attributes
    ----------
    seen
        How many images are behind, the ones left out included.
    images
        Which of them were measured.
    parts
        By part, a tensor [..., metric] for each measured image.
    """

    seen: int = 0
    images: list[int] = field(default_factory=list)
    parts: dict[str, list[Tensor]] = field(default_factory=lambda: {part: [] for part in PARTS})

    def add(self, image: int, measured: Mapping[str, Float[Tensor, "... metric"]]) -> None:
        """Note the values of one more image."""
        self.images.append(image)
        for part in PARTS:
            self.parts[part].append(measured[part])

    def by_metric(self, part: str) -> dict[str, Tensor]:
        """Return the values of all images by metric: [method, image, q], or [image]."""
        # The image goes before the steps, and after the methods where there are any.
        values = self.parts[part]
        stacked = torch.stack(values, dim=min(1, values[0].ndim - 1))
        return {metric: stacked[..., i].contiguous() for i, metric in enumerate(METRICS)}

    def save(self, out: str | Path, run: str) -> None:
        """Write the partial file that belongs to `out`, atomically."""
        tensors = {part: torch.stack(v) for part, v in self.parts.items() if v}
        metadata = {"format": _FORMAT, "run": run, "seen": self.seen, "images": self.images}
        write_tensors(partial_path(out), tensors, metadata)

    @classmethod
    def load(cls, out: str | Path, run: str) -> Measured:
        """Read the partial file that belongs to `out`; nothing done yet when there is none.

        Raises
        ------
        CheckpointError
            When the file is damaged, or of another run.
        """
        path = partial_path(out)
        if not path.exists():
            return cls()
        tensors, metadata = read_tensors(path)
        if metadata.get("format") != _FORMAT or metadata.get("run") != run:
            raise CheckpointError(
                f"{path} belongs to a run with other images, weights or settings. Remove it to "
                "start again, or choose another file to write."
            )
        parts = {part: list(tensors.get(part, ())) for part in PARTS}
        return cls(metadata["seen"], metadata["images"], parts)

    def remove(self, out: str | Path) -> None:
        """Remove the partial file that belongs to `out`."""
        partial_path(out).unlink(missing_ok=True)


def partial_path(out: str | Path) -> Path:
    """Return where the unfinished state of `out` is kept."""
    return Path(out).with_name(Path(out).name + ".partial")


def load_finished(out: str | Path, run: str) -> Curves | None:
    """Return the curves in `out` when it exists.

    Raises
    ------
    CheckpointError
        When the file holds something else, or the result of another run.
    """
    if not Path(out).exists():
        return None
    curves = Curves.load(out)
    if curves.settings.get("run") != run:
        raise CheckpointError(
            f"{out} holds curves of other images, weights or settings. Remove it, or choose "
            "another file to write."
        )
    return curves


def run_key(
    vision: VisionModel,
    saes: Sequence[TopKSAE],
    baselines: Baselines,
    images: Sequence[Float[Tensor, "3 H W"]],
    explained: Sequence[float],
    settings: Mapping[str, Any],
) -> str:
    """Return a hash of everything the curves depend on; methods of your own count by name.

    Heads and targets that are functions have no hash: `explained`, what they give for the first
    image, tells them apart, and is empty where there is none.
    """
    tensors = {f"model.{name}": value for name, value in vision.module.state_dict().items()}
    if isinstance(vision.head, nn.Module):
        tensors |= {f"head.{name}": value for name, value in vision.head.state_dict().items()}
    for layer, sae in enumerate(saes):
        tensors |= {f"sae.{layer}.{name}": value for name, value in sae.state_dict().items()}
        tensors[f"baseline.{layer}.features"] = baselines.features[layer]
        tensors[f"baseline.{layer}.errors"] = baselines.errors[layer]
    parts = {
        "settings": dict(settings),
        "explained": [f"{value:.3g}" for value in explained],
        "top_k": [sae.k for sae in saes],
        "weights": fingerprint(tensors),
        "images": [fingerprint({"image": image}) for image in images],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
