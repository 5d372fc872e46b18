"""Insertion and deletion: how much of the output a few features carry.

The insertion curve keeps the top features of a ranking and replaces all others; the deletion curve
replaces the top ones and keeps all others. Here are also the rankings by walking back from the
target, and the table of all rankings that have a name.

Source: docs/method.md, "Faithfulness"; Kim et al., NeurIPS 2025, arXiv 2509.17401.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from vitlens.circuits.carried import divergence
from vitlens.circuits.curves import METRICS, Curves, Metric
from vitlens.circuits.prune import walk
from vitlens.circuits.selection import elimination, learned, path
from vitlens.errors import FeatureError, VitlensError, check_choice
from vitlens.io import ResumableRun, fingerprint
from vitlens.method.engines import EdgeColumns
from vitlens.method.importance import Engine, TargetLike, find_class, resolve_target
from vitlens.method.rankings import (
    Case,
    Keep,
    activation,
    cla_edges,
    cla_top_scores,
    node,
    plain,
    random,
)
from vitlens.method.replacement import ErrorNodes, KeepFeatures, ReplacementModel, keep_masks
from vitlens.progress import Progress, StepReporter

#: Chooses the features to keep on an image.
Method: TypeAlias = Callable[[Case], Keep]

#: What is measured of each image.
PARTS = ("insertion", "deletion", "untouched")


def rrm(case: Case) -> Keep:
    """Walk back over edges, again for each count (docs/method.md, "Walk")."""
    columns = EdgeColumns(case.replacement, case.trace, case.nodes, engine=case.engine)
    edges = _into_active(case, "rrm", columns)
    return lambda count: walk(case.nodes.nodes, edges, count=count, error_nodes=False)


def cla(case: Case) -> Keep:
    """Walk back over |a_m| |d a_n / d a_m| (Cross-Layer Attribution, arXiv 2404.14349)."""

    def columns(position: int, features: Tensor) -> Tensor:
        # The walk has room for error nodes, which CLA does not know: a last entry of 0.
        return F.pad(cla_edges(case, position, targets=features), (0, 0, 0, 1))

    edges = _into_active(case, "cla", columns)
    nodes = [torch.zeros(sae.n_features + 1) for sae in case.replacement.saes]
    nodes[-1] = F.pad(cla_top_scores(case), (0, 1))
    return lambda count: walk(nodes, edges, count=count, error_nodes=False)


def _into_active(
    case: Case, method: str, columns: Callable[[int, Tensor], Tensor]
) -> Callable[[int, Tensor], Tensor]:
    """Compute edges into all active features at once; those into others are 0 and not held.

    Parameters
    ----------
    case, method
        The image, and what to report.
    columns
        Gives the edges from a position into features of the next one, [F + 1, n].

    Returns
    -------
    function
        As `columns`, for any features, from what was computed.
    """
    known = []
    for position, layer in enumerate(case.replacement.layers[:-1]):
        case.report(f"{method}, layer {layer}")
        active = (case.trace.features[position + 1] > 0).any(0)
        # Features that are not active have column 0.
        edges = columns(position, active.nonzero()[:, 0])
        known.append((active.cumsum(0) * active, F.pad(edges, (1, 0))))

    def computed(position: int, features: Tensor) -> Tensor:
        column, edges = known[position]
        return edges[:, column[features.to(column.device)]]

    return computed


#: The methods that have a name.
METHODS: Mapping[str, Method] = {
    "rrm": rrm,
    "path": path,
    "eliminate": elimination,
    "learned": learned,
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
    OptionError
        When a name is unknown.
    FeatureError
        When there is no method, or two share a name.
    """
    resolved: dict[str, Method] = {}
    for method in methods:
        if isinstance(method, str):
            check_choice("method", method, METHODS)
            name, function = method, METHODS[method]
        else:
            name, function = getattr(method, "__name__", type(method).__name__), method
        if name in resolved:
            raise FeatureError(f"Two methods are called {name!r}; method names must be unique.")
        resolved[name] = function
    if not resolved:
        raise FeatureError(f"Give at least one method. The methods are {', '.join(METHODS)}.")
    return resolved


#: Shares of the largest layer's dictionary to keep or to replace.
DEFAULT_Q = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def faithfulness(
    replacement: ReplacementModel,
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
    resume: bool = True,
    progress: Progress = True,
) -> Curves:
    """Measure insertion (faithfulness) and deletion (completeness) curves.

    Insertion keeps each layer's top features and puts all others at their baseline; deletion
    puts the top ones at their baseline and keeps all others. Error nodes are not counted; what
    they hold is set by `error_nodes`.

    Parameters
    ----------
    replacement
        The model with its SAEs, and the baselines that features are replaced with.
    images
        The model's inputs, each [3, H, W].
    methods
        Names out of "rrm" (walk over edges, again for each count), "path" (path-integrated
        importance), "eliminate" (repeated elimination by it), "learned" (gates trained on each
        image), "cla" (the walk with Cross-Layer Attribution's scores), "node" (node importance
        alone), "plain" (the same with the model's ordinary gradient), "activation", "random"; or
        functions of a `vitlens.method.rankings.Case` that return what to keep for a count.
    labels
        The right classes; when given, misclassified images are left out.
    target
        The target to explain; by default each image's predicted class: its logit minus the mean of
        all. The recorded logit, probability and top-1 are of the target's class, for a function
        of the predicted class.
    class_names
        To look up a target given by name.
    error_nodes
        Values of the error nodes: "clean" (the original image's values), "free", "baseline",
        "zero".
    engine
        How edges are computed.
    q
        Ascending shares from 0 to 1 of the largest layer's dictionary. Each becomes a count per
        layer, rounded, at least 1 above 0; a layer with fewer features is used up earlier.
    batch_size
        Number of replaced runs per batch.
    seed
        Seed of the random order.
    out
        A file to write. A run that was interrupted continues from its last whole image, kept in
        `out` with ".partial" appended; a finished one is loaded.
    resume
        Continue an interrupted run; if False, both files are written again.
    progress
        Show a progress bar over the images, or call this function (see `vitlens.progress`), before
        every method, every layer of "rrm" and "cla", and every batch of replaced runs.

    Returns
    -------
    Curves

    Raises
    ------
    FeatureError
        When q or the batch size is not valid, or methods share a name.
    OptionError
        When a method, `error_nodes` or the engine is unknown.
    TargetError
        When there is no such target.
    CheckpointError
        When `out` holds the results of a different run.
    VitlensError
        When no image is left to measure.
    """
    named = resolve_methods(methods)
    counts = _counts(q, replacement)
    _check(images, labels, error_nodes, engine, batch_size)
    plan = _Plan(replacement, named, counts, error_nodes, batch_size)
    reporter = StepReporter(progress, total=len(images) * plan.n_steps)
    settings: dict[str, Any] = {
        "engine": engine,
        "seed": seed,
        "baselines": replacement.baselines.kind,
    }
    done = Measured()
    run = None
    if out is not None:
        call = {
            "methods": list(named),
            "metrics": list(METRICS),
            "q": [float(share) for share in q],
            "error nodes": error_nodes,
            "engine": engine,
            "seed": seed,
        }
        identity = _identity(replacement, images, labels, target, class_names)
        run = ResumableRun(out, "measurement of curves", {**identity, "settings": call})
        settings["run"] = run.stamp()
        if resume and Path(out).exists():
            finished = Curves.load(out)
            run.check(finished.settings.get("run"), out)
            return finished
        if resume and (found := run.load()) is not None:
            done = Measured.of(*found)

    with ExitStack() as stack:
        save_if_due = None
        if run is not None:
            stack.enter_context(run.writing())
            save_if_due = stack.enter_context(run.saving(done.state))
        bar = stack.enter_context(
            tqdm(
                total=len(images),
                initial=done.seen,
                desc="curves",
                unit="image",
                disable=progress is not True,
            )
        )
        for index in range(done.seen, len(images)):
            reporter.done = index * plan.n_steps
            reporter.report("image")
            traced = replacement.trace(plan.input(images[index])[None])[0]
            explained = resolve_target(target, traced.logits, class_names)
            if labels is None or int(traced.logits.argmax()) == int(labels[index]):
                case = Case(
                    replacement,
                    traced,
                    explained,
                    engine,
                    error_nodes,
                    seed,
                    index,
                    reporter.report,
                )
                done.add(index, plan.measure(case, reporter))
            done.seen = index + 1
            if save_if_due is not None:
                save_if_due()
            bar.update()
        if callable(progress):
            progress(1.0, "curves")
        if not done.images:
            raise VitlensError(
                f"None of the {len(images)} images is classified as its label says, so there is "
                "nothing to measure. Check the labels, and that images are normalised for this "
                "model."
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
            target=_target_name(target, class_names),
            settings=settings,
        )
        if run is not None:
            curves.save(run.out)
    if run is not None:
        run.remove()
    return curves


@dataclass
class Measured:
    """What has been measured so far.

    Attributes
    ----------
    seen
        Number of images that have been measured or left out.
    images
        Which of them were measured.
    parts
        By part, a tensor [..., metric] for each measured image.
    """

    seen: int = 0
    images: list[int] = field(default_factory=list)
    parts: dict[str, list[Tensor]] = field(default_factory=lambda: {part: [] for part in PARTS})

    def add(self, image: int, measured: Mapping[str, Float[Tensor, "... metric"]]) -> None:
        """Add the values of one more image."""
        self.images.append(image)
        for part in PARTS:
            self.parts[part].append(measured[part])

    def by_metric(self, part: str) -> dict[str, Tensor]:
        """Return the values of all images by metric: [method, image, q], or [image]."""
        # The image comes before the steps, and after the methods where there are any.
        values = self.parts[part]
        stacked = torch.stack(values, dim=min(1, values[0].ndim - 1))
        return {metric: stacked[..., i].contiguous() for i, metric in enumerate(METRICS)}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return tensors and state for a file; None while there is nothing to keep."""
        if not self.seen:
            return None
        tensors = {part: torch.stack(v) for part, v in self.parts.items() if v}
        return tensors, {"seen": self.seen, "images": list(self.images)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Measured:
        """Return what `state` gave."""
        parts = {part: list(tensors.get(part, ())) for part in PARTS}
        return cls(state["seen"], state["images"], parts)


@dataclass(frozen=True)
class Cost:
    """The cost of a run, estimated from one image.

    Attributes
    ----------
    seconds
        Duration for all images.
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
    replacement: ReplacementModel,
    image: Float[Tensor, "3 H W"],
    n_images: int,
    *,
    methods: Sequence[str | Method] = ("rrm", "cla", "random"),
    error_nodes: ErrorNodes = "clean",
    engine: Engine = "closed_form",
    q: Sequence[float] = DEFAULT_Q,
    batch_size: int = 16,
) -> Cost:
    """Measure one image to estimate the cost of `faithfulness` on many.

    Parameters
    ----------
    replacement, methods, error_nodes, engine, q, batch_size
        See `faithfulness`.
    image
        One of the images, [3, H, W].
    n_images
        Number of images.
    """
    named = resolve_methods(methods)
    counts = _counts(q, replacement)
    _check([image], None, error_nodes, engine, batch_size)
    plan = _Plan(replacement, named, counts, error_nodes, batch_size)
    start = time.perf_counter()
    traced = replacement.trace(plan.input(image)[None])[0]
    case = Case(replacement, traced, resolve_target(None, traced.logits), engine, error_nodes)
    plan.measure(case, StepReporter(False, total=plan.n_steps))
    seconds = time.perf_counter() - start
    vision, saes = replacement.vision, replacement.saes
    widest = max(sae.n_features for sae in saes)
    # A block holds about a dozen numbers per channel at once, an SAE its pre-activations,
    # activations and masks; the edges of one walk into active features are all held.
    running = batch_size * vision.n_tokens * (12 * vision.d_model + 4 * widest)
    active = [int((z > 0).any(0).sum()) for z in traced.features]
    edges = sum((sae.n_features + 1) * n for sae, n in zip(saes, active[1:], strict=False))
    return Cost(
        seconds=seconds * n_images,
        runs=plan.n_runs * n_images,
        memory=(running + edges) * traced.logits.element_size(),
    )


@dataclass(frozen=True)
class _Plan:
    """What to run for every image: each method's kept sets, for each count, both ways."""

    replacement: ReplacementModel
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

    def input(self, image: Float[Tensor, "3 H W"]) -> Float[Tensor, "3 H W"]:
        """Return an image as the model takes it."""
        return image.to(self.replacement.vision.device, self.replacement.vision.dtype)

    def measure(self, case: Case, reporter: StepReporter) -> dict[str, Float[Tensor, "... metric"]]:
        """Return insertion and deletion, [method, q, metric], and the untouched model's metrics."""
        kept = [keep_masks(self.replacement, None)]
        for name, method in reporter.each(self.methods.items()):
            reporter.report(name)
            if not self.inner_counts:
                continue
            keep = method(case)
            kept += [keep_masks(self.replacement, keep(n)) for n in self.inner_counts]
        masks = [
            torch.cat([torch.stack(site), ~torch.stack(site)]) for site in zip(*kept, strict=True)
        ]
        values = _metrics(self._run(case, masks, reporter), case)
        inserted, deleted = values.chunk(2)
        full, empty = inserted[0], deleted[0]
        return {
            "insertion": self._spread(inserted[1:], empty, full),
            "deletion": self._spread(deleted[1:], full, empty),
            "untouched": _metrics(case.trace.logits[None], case)[0],
        }

    def _run(
        self, case: Case, masks: Sequence[Bool[Tensor, "n F"]], reporter: StepReporter
    ) -> Float[Tensor, "n C"]:
        logits = []
        for start in reporter.each(range(0, len(masks[0]), self.batch_size)):
            reporter.report("replaced runs")
            change = KeepFeatures([mask[start : start + self.batch_size] for mask in masks])
            logits.append(self.replacement.run(case.trace, change, error_nodes=self.error_nodes))
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
    """Return every metric of every run, float64 on the CPU."""
    index = case.target.index
    if index is None:
        index = int(case.trace.logits.argmax())
    by_name: dict[Metric, Tensor] = {
        "target": torch.stack([case.target.function(row) for row in logits]),
        "logit": logits[:, index],
        "probability": logits.softmax(1)[:, index],
        "top1": logits.argmax(1) == index,
        "divergence": divergence(case.trace.logits, logits),
    }
    return torch.stack([by_name[metric].detach().cpu().double() for metric in METRICS], dim=1)


def _counts(q: Sequence[float], replacement: ReplacementModel) -> tuple[int, ...]:
    steps = list(q)
    if len(steps) < 2 or steps[0] != 0 or steps[-1] != 1 or steps != sorted(set(steps)):
        raise FeatureError(f"q must be ascending shares that start with 0 and end with 1, not {q}.")
    widest = max(sae.n_features for sae in replacement.saes)
    return tuple(0 if share == 0 else max(1, math.floor(share * widest + 0.5)) for share in steps)


def _check(
    images: Sequence[Tensor],
    labels: Sequence[int] | None,
    error_nodes: ErrorNodes,
    engine: Engine,
    batch_size: int,
) -> None:
    if not len(images):
        raise FeatureError("There are no images to measure.")
    if labels is not None and len(labels) != len(images):
        raise FeatureError(f"{len(images)} images need as many labels, not {len(labels)}.")
    check_choice("error_nodes", error_nodes, get_args(ErrorNodes))
    check_choice("engine", engine, get_args(Engine))
    if batch_size < 1:
        raise FeatureError(f"The batch size must be at least 1, not {batch_size}.")


def _identity(
    replacement: ReplacementModel,
    images: Sequence[Float[Tensor, "3 H W"]],
    labels: Sequence[int] | None,
    target: TargetLike,
    class_names: Sequence[str] | None,
) -> dict[str, Any]:
    """Return what the curves depend on besides the settings; your own methods count by name.

    Heads and targets that are functions have no hash: what they give for the first image tells
    them apart.
    """
    vision, baselines = replacement.vision, replacement.baselines
    model = {f"model.{name}": value for name, value in vision.module.state_dict().items()}
    if isinstance(vision.head, nn.Module):
        model |= {f"head.{name}": value for name, value in vision.head.state_dict().items()}
    saes: dict[str, Tensor] = {}
    for layer, sae in zip(replacement.layers, replacement.saes, strict=True):
        saes |= {f"{layer}.{name}": value for name, value in sae.state_dict().items()}
    replaced: dict[str, Tensor] = {}
    for number, one in enumerate(baselines.runs):
        for position, (z, e) in enumerate(zip(one.features, one.errors, strict=True)):
            replaced |= {f"{number}.{position}.z": z, f"{number}.{position}.e": e}
    explained: list[str] = []
    if callable(target) or not (vision.head is None or isinstance(vision.head, nn.Module)):
        first = vision.logits(images[0][None].to(vision.device, vision.dtype))[0]
        value = resolve_target(target, first, class_names).function(first)
        explained = [f"{number:.3g}" for number in (*first.tolist(), float(value))]
    # A class by its number: with other class names the same name is another class.
    named = find_class(target, vision.n_classes, class_names) if isinstance(target, str) else target
    return {
        "model": fingerprint(model),
        "SAEs": fingerprint(saes, [sae.settings() for sae in replacement.saes]),
        "layers": list(replacement.layers),
        "baselines": fingerprint(replaced, baselines.kind),
        "images": fingerprint({str(number): image for number, image in enumerate(images)}),
        "labels": [] if labels is None else [int(label) for label in labels],
        "target": [_plain(named), *explained],
    }


def _plain(target: TargetLike) -> int | str | None:
    """Return a target as JSON can hold it; a function as its name."""
    if target is None or isinstance(target, str):
        return target
    if callable(target):
        return getattr(target, "__name__", type(target).__name__)
    return operator.index(target)


def _target_name(target: TargetLike, class_names: Sequence[str] | None) -> str:
    plain_target = _plain(target)
    if isinstance(plain_target, int):
        return class_names[plain_target] if class_names else f"class {plain_target}"
    return plain_target or "predicted class"
