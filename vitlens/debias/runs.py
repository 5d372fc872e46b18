"""Images in groups, run once and then again from the first layer that changes.

`GroupRuns` keeps the streams and gives logits, reports and first-order effects without some
features; `LiveReports` reports on one choice of features after another, for an interactive view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitlens.debias.groups import GroupedImages
from vitlens.debias.model import Removal
from vitlens.debias.report import GroupReport, TradeOff, group_report
from vitlens.errors import FeatureError, ModelError, check_choice
from vitlens.images import ImageLike
from vitlens.interventions.run import Plan, make_plan
from vitlens.lens import Lens
from vitlens.method.libragrad import Gradient, backward_rules
from vitlens.method.replacement import FromSite, SiteState
from vitlens.progress import Progress, steps
from vitlens.saes.base import FeatureId
from vitlens.saes.data import batched

ABLATED = Removal()

#: Called with the report on the images so far and their share of all, 0 to 1. An exception that it
#: raises ends the run.
Watch = Callable[[GroupReport, float], None]

_FIRST = 4  # images before the first interim report


def last_layer(lens: Lens) -> nn.Linear | None:
    """Return the linear layer that gives the logits; None where the read-out ends otherwise."""
    head = getattr(lens.vision.module, "head", None)
    return head if lens.vision.head is None and isinstance(head, nn.Linear) else None


def pooled(lens: Lens, stream: Float[Tensor, "n T D"]) -> Float[Tensor, "n E"]:
    """Input of the last linear layer, from the stream after the last block."""
    with torch.no_grad():
        model = lens.vision.module
        return model.forward_head(model.norm(stream), pre_logits=True)


def readout_inputs(
    lens: Lens, images: Sequence[ImageLike], *, batch_size: int = 16
) -> Float[Tensor, "n E"]:
    """Input of the last linear layer for every image, on the CPU.

    Raises
    ------
    ModelError
        If the read-out does not end in a linear layer (`model.head`).
    """
    if last_layer(lens) is None:
        raise ModelError("The model's read-out does not end in one linear layer, `model.head`.")
    tensors = (lens.tensor(image) for image in images)
    found = [
        pooled(lens, lens.vision.residuals(batch)[-1]).cpu()
        for batch in batched(tensors, batch_size, lens.vision.image_size)
    ]
    return torch.cat(found)


class GroupRuns:
    """Streams of a set of images at some layers, and runs of the model without some features.

    Error nodes are free: nothing but the features is removed from the stream. So a replaced run
    (`ReplacementModel.run`) starts at the first layer that changes, from the stream kept there.

    Parameters
    ----------
    lens
        The classifier.
    groups
        The images; the model runs on them once, here.
    layers
        Layers whose streams are kept, n x T x D numbers each; only their features can be removed.
    batch_size
        Number of images per batch.
    progress
        Show a progress bar.

    Attributes
    ----------
    logits
        Logits of the untouched model, [n, C].
    inputs
        Input of the last linear layer, [n, E]; None for a read-out of another kind.
    activations
        Mean activation over tokens of every feature, for each of the layers, [n, F_l].

    Raises
    ------
    FeatureError
        If there is no such layer.
    """

    def __init__(
        self,
        lens: Lens,
        groups: GroupedImages,
        layers: Sequence[int],
        *,
        batch_size: int = 16,
        progress: Progress = False,
    ):
        unknown = [layer for layer in layers if layer not in lens.layers]
        if unknown or not layers:
            raise FeatureError(
                f"Layers with SAEs are {', '.join(map(str, lens.layers))}; choose at least one of "
                f"them, not {list(layers)}."
            )
        self.lens, self.groups, self.layers = lens, groups, tuple(sorted(set(layers)))
        self._batch_size = batch_size
        linear = last_layer(lens) is not None
        streams: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}
        means: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}
        logits, inputs = [], []
        last = lens.vision.depth - 1
        needed = sorted({*self.layers, last})
        starts = range(0, len(groups), batch_size)
        tensors = (lens.tensor(image) for image in groups.images)
        batches = batched(tensors, batch_size, lens.vision.image_size)
        with torch.no_grad():
            for _ in steps(starts, "images", progress):
                found = lens.vision.residuals(next(batches), needed)
                residuals = dict(zip(needed, found, strict=True))
                for layer in self.layers:
                    sae = lens.replacement.sae(layer)
                    streams[layer].append(residuals[layer])
                    means[layer].append(sae.encode(residuals[layer]).mean(1).cpu())
                logits.append(lens.vision.readout(residuals[last]))
                if linear:
                    inputs.append(pooled(lens, residuals[last]))
        self._streams = {layer: torch.cat(parts) for layer, parts in streams.items()}
        self.activations = {layer: torch.cat(parts) for layer, parts in means.items()}
        self.logits: Float[Tensor, "n C"] = torch.cat(logits)
        self.inputs: Float[Tensor, "n E"] | None = torch.cat(inputs) if linear else None

    def without(
        self, features: Sequence[FeatureId], *, removal: Removal = ABLATED
    ) -> Float[Tensor, "n C"]:
        """Logits of all images without some features.

        Raises
        ------
        FeatureError
            If a feature does not exist, or its layer is not kept.
        """
        if not features:
            return self.logits
        everything = torch.arange(len(self.groups))
        parts = self.without_in_parts(features, everything, removal=removal)
        return torch.cat([logits for _, logits in parts])

    def without_in_parts(
        self,
        features: Sequence[FeatureId],
        order: Int[Tensor, " n"],
        *,
        removal: Removal = ABLATED,
        first: int | None = None,
    ) -> Iterator[tuple[Int[Tensor, " m"], Float[Tensor, "m C"]]]:
        """Yield indices of images and their logits, batch by batch; see `without`.

        Parameters
        ----------
        features
            Features to remove, at least one.
        order
            Indices of images in the order in which they are run.
        removal
            How features are removed.
        first
            Size of the first batch, for an early result; the next sizes double up to the usual
            one. By default all batches have the usual size.
        """
        plan = self._plan(features, removal)
        layer = min(layer for layer, _ in features)
        for index in order.split(_growing(len(order), first or self._batch_size, self._batch_size)):
            start = self._from(layer, self._streams[layer][index])
            yield index, self.lens.replacement.run(start, plan, error_nodes="free")

    def activations_of(self, feature: FeatureId, index: Sequence[int]) -> Float[Tensor, "m T"]:
        """Activation of one feature at every token of some images, on the CPU."""
        layer, column = feature
        with torch.no_grad():
            sae = self.lens.replacement.sae(layer)
            return sae.encode(self._streams[layer][index])[..., column].cpu()

    def report(
        self, features: Sequence[FeatureId], *, name: str = "", removal: Removal = ABLATED
    ) -> GroupReport:
        """Accuracy by group without some features; see `without`."""
        found = self.without(features, removal=removal)
        return group_report(name, found, self.groups, n_features=len(features))

    def effects(
        self,
        features: Sequence[FeatureId],
        *,
        given: Sequence[FeatureId] = (),
        removal: Removal = ABLATED,
        gradient: Gradient = "plain",
        progress: Progress = False,
    ) -> Float[Tensor, "n k"]:
        """First-order change of every image's margin when a feature is removed.

        The margin is the logit of the true class minus the highest other logit. The change is the
        sum over tokens of ``(new - z) sd <gradient, W_dec[f]>``, with the gradient of the margin
        along all paths, as a node importance with the opposite sign (docs/method.md, "Node
        importance"). For projections, the stream's component along the feature's direction takes
        the place of z.

        Parameters
        ----------
        features
            Features of kept layers.
        given
            Features that are removed already; the change is counted from there.
        removal
            How features are removed.
        gradient
            "libragrad" or "plain".
        progress
            Show a progress bar.
        """
        check_choice("gradient", gradient, get_args(Gradient))
        effects = torch.zeros(len(self.groups), len(features), dtype=self.logits.dtype)
        if not features:
            return effects
        replacement = self.lens.replacement
        plan = self._plan(given, removal)
        columns: dict[int, list[int]] = {}
        for column, (layer, _) in enumerate(features):
            columns.setdefault(layer, []).append(column)
        first = min([*columns, *(layer for layer, _ in given)])
        starts = range(0, len(self.groups), self._batch_size)
        for start in steps(starts, "effects", progress):
            part = slice(start, start + self._batch_size)
            stream = self._streams[first][part].detach().requires_grad_(True)
            seen: list[tuple[int, SiteState, Tensor]] = []

            def observe(
                state: SiteState, after: Tensor, seen: list[tuple[int, SiteState, Tensor]] = seen
            ) -> None:
                layer = replacement.layers[state.position]
                if layer in columns:
                    seen.append((layer, state, after))

            with backward_rules(self.lens.vision.module, gradient):
                logits = replacement.run(
                    self._from(first, stream), plan, error_nodes="free", observe=observe, grad=True
                )
                margin = margins(logits, self.groups.labels[part]).sum()
            grads = torch.autograd.grad(margin, [after for *_, after in seen])
            # With several reference images as baselines there is one run for each. They share the
            # stream of the first site, whose gradient is the sum over them.
            sharing = sum(after is stream for *_, after in seen)
            with torch.no_grad():
                for (layer, state, after), grad in zip(seen, grads, strict=True):
                    grad = grad / sharing if after is stream else grad
                    ids = [features[column][1] for column in columns[layer]]
                    change = _first_order(ids, state, after, grad, removal)
                    effects[part, columns[layer]] += change.cpu()
        return effects

    def _from(self, layer: int, stream: Float[Tensor, "n T D"]) -> FromSite:
        return FromSite(self.lens.replacement.position(layer), stream)

    def _plan(self, features: Sequence[FeatureId], removal: Removal) -> Plan:
        requested = [removal.of(features)] if features else []
        replacement = self.lens.replacement
        plan = make_plan(replacement, requested, error_nodes="free", tensor=self.lens.tensor)
        unknown = sorted({layer for layer, _ in features} - set(self.layers))
        if unknown:
            raise FeatureError(
                f"The streams of layers {unknown} were not kept, only those of {list(self.layers)}."
            )
        return plan


def _first_order(
    ids: list[int],
    state: SiteState,
    after: Float[Tensor, "n T D"],
    grad: Float[Tensor, "n T D"],
    removal: Removal,
) -> Float[Tensor, "n k"]:
    """As `GroupRuns.effects`, for features of one site.

    Parameters
    ----------
    ids
        Numbers of the features.
    state, after
        The site before the given features were removed, and the stream after that.
    grad
        Gradient of the margin at `after`.
    removal
        How the features are removed.
    """
    sae, usual = state.sae, state.baseline
    rows = sae.W_dec[ids]
    along = grad @ rows.T
    if removal.project:
        # Directions overlap, so the component is that of the stream without the given features.
        units = rows / rows.norm(dim=1, keepdim=True).square()
        component = (after - state.mean - sae.b_dec * state.std) @ units.T
        new = usual.features @ (sae.W_dec @ units.T) * state.std + usual.error @ units.T
        difference = (new if removal.to == "baseline" else 0.0) - component
    else:
        new = usual.features[:, ids] if removal.to == "baseline" else torch.zeros_like(along)
        difference = (new - state.features[..., ids]) * state.std
    return (along * difference).sum(1)


class LiveReports:
    """Accuracy by group without the chosen features; reports are remembered.

    Parameters
    ----------
    lens
        The classifier.
    groups
        Images to report on; the model runs on them once, here.
    layers
        Layers whose features can be chosen.
    removal
        How features are removed.
    batch_size, progress
        See `GroupRuns`.

    Raises
    ------
    GroupError
        If a group is empty, or the attribute is identical to the class.
    FeatureError
        If there is no such layer.
    """

    def __init__(
        self,
        lens: Lens,
        groups: GroupedImages,
        layers: Sequence[int],
        *,
        removal: Removal = ABLATED,
        batch_size: int = 16,
        progress: Progress = False,
    ):
        groups.check()
        self.removal, self.groups = removal, groups
        self.runs = GroupRuns(lens, groups, layers, batch_size=batch_size, progress=progress)
        self.before = group_report("nothing", self.runs.logits, groups)
        self._known: dict[frozenset[FeatureId], GroupReport] = {frozenset(): self.before}
        self._order = _evenly(groups)

    def check(self, feature: FeatureId) -> None:
        """Raise `FeatureError` unless this is a feature of one of the layers."""
        layer, column = feature
        if layer not in self.runs.layers:
            raise FeatureError(
                f"Features can be chosen in layers {', '.join(map(str, self.runs.layers))}, not in "
                f"layer {layer}."
            )
        n = self.runs.lens.replacement.sae(layer).n_features
        if not 0 <= column < n:
            raise FeatureError(f"Layer {layer} has features 0 to {n - 1}; there is no {column}.")

    def known(self, chosen: Iterable[FeatureId]) -> GroupReport | None:
        """Return the report on a choice that was evaluated before, or None."""
        return self._known.get(frozenset(chosen))

    def learn(self, path: Sequence[FeatureId], curve: TradeOff) -> bool:
        """Remember reports along a path if they are of these images; return whether they are.

        Parameters
        ----------
        path, curve
            Path and trade-off of a `Debiasing`.
        """
        first = curve.reports[0]
        if first.n_features or not _same(first, self.before):
            return False
        for report in curve.reports:
            self._known.setdefault(frozenset(path[: report.n_features]), report)
        return True

    def evaluate(self, chosen: Iterable[FeatureId], *, watch: Watch | None = None) -> GroupReport:
        """Report on all images without the chosen features.

        Parameters
        ----------
        chosen
            (layer, feature) of each feature to remove.
        watch
            Called after every batch.

        Raises
        ------
        FeatureError
            If a feature does not exist, or its layer is not kept.
        """
        features = tuple(dict.fromkeys(chosen))
        found = self.known(features)
        if found is not None:
            return found
        logits = torch.empty_like(self.runs.logits)
        done = 0
        parts = self.runs.without_in_parts(
            features, self._order, removal=self.removal, first=_FIRST
        )
        for index, part in parts:
            logits[index] = part
            done += len(index)
            if watch is not None:
                seen = self._order[:done]
                so_far = self._report(logits[seen], self.groups.subset(seen), features)
                watch(so_far, done / len(self.groups))
        report = self._report(logits, self.groups, features)
        self._known[frozenset(features)] = report
        return report

    def _report(
        self, logits: Float[Tensor, "m C"], groups: GroupedImages, features: Sequence[FeatureId]
    ) -> GroupReport:
        return group_report("removed", logits, groups, n_features=len(features))


def _growing(n: int, first: int, most: int) -> list[int]:
    """Batch sizes that double from `first` up to `most`, and add up to n."""
    sizes: list[int] = []
    while (left := n - sum(sizes)) > 0:
        sizes.append(min(2 * sizes[-1] if sizes else first, most, left))
    return sizes


def margins(logits: Float[Tensor, "n C"], labels: Tensor) -> Float[Tensor, " n"]:
    """Logit of the true class minus the highest other logit."""
    index = labels.to(logits.device)[:, None]
    others = logits.scatter(1, index, float("-inf"))
    return logits.gather(1, index).squeeze(1) - others.amax(1)


def _evenly(groups: GroupedImages) -> Int[Tensor, " n"]:
    """An order in which every beginning has the groups in about their proportions.

    One image of every group comes first, so that all groups have figures from the start.
    """
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.randperm(len(groups), generator=generator)
    of = groups.groups[shuffled]
    earlier = torch.nn.functional.one_hot(of, len(groups.counts)).cumsum(0)
    rank = earlier.gather(1, of[:, None]).squeeze(1) - 1
    return shuffled[(rank / groups.counts[of]).argsort(stable=True)]


def _same(a: GroupReport, b: GroupReport) -> bool:
    return (
        a.group_names == b.group_names
        and torch.equal(a.count, b.count)
        and torch.equal(a.right, b.right)
    )
