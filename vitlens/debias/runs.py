"""A grouped set of images run once, and then again and again from the layer that changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitlens.attribution.gradients import Gradient, backward_rules
from vitlens.debias.groups import GroupedImages
from vitlens.debias.readout import last_layer, pooled
from vitlens.debias.removal import Removal
from vitlens.debias.report import GroupReport, group_report
from vitlens.errors import FeatureError
from vitlens.interventions.kinds import FeatureId
from vitlens.interventions.run import Plan, make_plan
from vitlens.lens_base import LensBase
from vitlens.models.adapter import Block
from vitlens.progress import Progress, steps
from vitlens.saes.data import batched

ABLATED = Removal()


class GroupRuns:
    """The streams of a set of images at some layers, kept, and what follows from changing them.

    Error nodes are free: only what `Removal` says is taken out of the stream. So a run starts
    at the first layer that changes, from the stream kept there.

    Parameters
    ----------
    lens
        The model.
    groups
        Its images are run once, here.
    layers
        Layers whose stream is kept, n x T x D numbers each; features of other layers cannot be
        taken out.
    batch_size
        Images that are run together.
    progress
        Show a progress bar.

    Attributes
    ----------
    logits
        Of the untouched model, [n, C].
    inputs
        What the last linear layer reads, [n, E]; None for a read-out of another kind.
    activations
        Mean over tokens of every feature, for each of the layers, [n, F_l].

    Raises
    ------
    FeatureError
        If there is no such layer.
    """

    def __init__(
        self,
        lens: LensBase,
        groups: GroupedImages,
        layers: Sequence[int],
        *,
        batch_size: int = 16,
        progress: Progress = False,
    ):
        unknown = [layer for layer in layers if not 0 <= layer < len(lens.saes)]
        if unknown or not layers:
            raise FeatureError(
                f"Layers are 0 to {len(lens.saes) - 1}, at least one; not {list(layers)}."
            )
        self.lens, self.groups, self.layers = lens, groups, tuple(sorted(set(layers)))
        self._batch_size = batch_size
        linear = last_layer(lens) is not None
        streams: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}
        means: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}
        logits, inputs = [], []
        starts = range(0, len(groups), batch_size)
        tensors = (lens.tensor(image) for image in groups.images)
        batches = batched(tensors, batch_size, lens.vision.image_size)
        with torch.no_grad():
            for _ in steps(starts, "images", progress):
                residuals = lens.vision.residuals(next(batches))
                for layer in self.layers:
                    streams[layer].append(residuals[layer])
                    means[layer].append(lens.saes[layer].encode(residuals[layer]).mean(1).cpu())
                logits.append(lens.vision.readout(residuals[-1]))
                if linear:
                    inputs.append(pooled(lens, residuals[-1]))
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
            If a feature does not exist, or is of a layer that is not kept.
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
            At least one.
        order
            Images in the order in which they are run.
        removal
            How features are taken out.
        first
            Images in the first batch, for an early answer; the next ones double until they have
            the usual size. By default all have it.
        """
        plan, blocks = self._plan(features, removal), self._blocks()
        for index in order.split(_growing(len(order), first or self._batch_size, self._batch_size)):
            with torch.no_grad():
                stream = plan.change(plan.first, self._streams[plan.first][index], None)
                for layer in range(plan.first + 1, self.lens.vision.depth):
                    stream = _changed(plan, layer, blocks[layer](stream))
                logits = self.lens.vision.readout(stream)
            yield index, logits

    def activations_of(self, feature: FeatureId, index: Sequence[int]) -> Float[Tensor, "m T"]:
        """Activation of one feature at every token of some images, on the CPU."""
        layer, column = feature
        with torch.no_grad():
            return self.lens.saes[layer].encode(self._streams[layer][index])[..., column].cpu()

    def report(
        self, features: Sequence[FeatureId], *, name: str = "", removal: Removal = ABLATED
    ) -> GroupReport:
        """Accuracy by group without some features."""
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
        """First-order change of every image's margin when a feature is taken out.

        The margin is the true class's logit minus the highest other one's. Like a node's
        importance, with the other sign and along all paths: the sum over tokens of
        ``(new - z) sd <gradient, W_dec[f]>``; for projections the stream's component along the
        feature's direction stands for z.

        Parameters
        ----------
        features
            Features of kept layers.
        given
            Features that are taken out already; the change is the one beside theirs.
        removal
            How features are taken out.
        gradient
            "libragrad" or "plain".
        progress
            Show a progress bar.
        """
        out = torch.zeros(len(self.groups), len(features), dtype=self.logits.dtype)
        if not features:
            return out
        plan, blocks = self._plan(given, removal), self._blocks()
        columns = {
            layer: [i for i, (at, _) in enumerate(features) if at == layer]
            for layer in sorted({layer for layer, _ in features})
        }
        first = min(plan.first, *columns)
        starts = range(0, len(self.groups), self._batch_size)
        for start in steps(starts, "effects", progress):
            part = slice(start, start + self._batch_size)
            stream = self._streams[first][part].detach().requires_grad_(True)
            before, after = {}, {}
            with torch.enable_grad(), backward_rules(self.lens.vision, gradient):
                for layer in range(first, self.lens.vision.depth):
                    stream = stream if layer == first else blocks[layer](stream)
                    before[layer] = stream
                    after[layer] = stream = _changed(plan, layer, stream)
                margin = margins(self.lens.vision.readout(stream), self.groups.labels[part])
                grads = torch.autograd.grad(margin.sum(), [after[layer] for layer in columns])
            for (layer, places), grad in zip(columns.items(), grads, strict=True):
                ids = [features[i][1] for i in places]
                streams = before[layer].detach(), after[layer].detach()
                change = self._first_order(layer, ids, *streams, grad, removal)
                out[part, places] = change.cpu()
        return out

    def _plan(self, features: Sequence[FeatureId], removal: Removal) -> Plan:
        lens = self.lens
        wanted = [removal.of(features)] if features else []
        plan = make_plan(
            lens.vision, lens.saes, lens.baselines, wanted, errors="free", tensor=lens.tensor
        )
        unknown = sorted({layer for layer, _ in features} - set(self.layers))
        if unknown:
            raise FeatureError(
                f"The streams of layers {unknown} are not kept, those of {list(self.layers)} are."
            )
        return plan

    def _first_order(
        self,
        layer: int,
        ids: list[int],
        before: Float[Tensor, "n T D"],
        after: Float[Tensor, "n T D"],
        grad: Float[Tensor, "n T D"],
        removal: Removal,
    ) -> Float[Tensor, "n k"]:
        """As `effects`, from a layer's stream before and after the given features went."""
        sae, base = self.lens.saes[layer], self.lens.baselines
        rows = sae.W_dec[ids]
        features, mean, std = sae.encode_with_stats(before)
        along = grad @ rows.T
        if removal.project:
            # Activations leave each other alone, directions overlap: what the others left counts.
            now = (after - mean - sae.b_dec * std) @ rows.T
            usual = base.features[layer] @ (sae.W_dec @ rows.T) * std + base.errors[layer] @ rows.T
            difference = (usual if removal.to == "baseline" else 0.0) - now
        else:
            new = base.features[layer][:, ids] if removal.to == "baseline" else 0.0
            difference = (new - features[..., ids]) * std
        return (along * difference).sum(1)

    def _blocks(self) -> tuple[Block, ...]:
        """The blocks, with all that images of this size bind to them."""
        height, width = self.lens.vision.image_size
        blank = torch.zeros(
            1, 3, height, width, dtype=self.lens.vision.dtype, device=self.lens.vision.device
        )
        with torch.no_grad():
            return self.lens.vision.embed(blank).blocks


def _changed(plan: Plan, layer: int, stream: Tensor) -> Tensor:
    return plan.change(layer, stream, None) if layer < len(plan.saes) else stream


def _growing(n: int, first: int, most: int) -> list[int]:
    """Sizes of batches that double from `first` up to `most`, n in all."""
    sizes: list[int] = []
    while (left := n - sum(sizes)) > 0:
        sizes.append(min(2 * sizes[-1] if sizes else first, most, left))
    return sizes


def margins(logits: Float[Tensor, "n C"], labels: Tensor) -> Float[Tensor, " n"]:
    """Logit of the true class minus the highest other one's."""
    index = labels.to(logits.device)[:, None]
    others = logits.scatter(1, index, float("-inf"))
    return logits.gather(1, index).squeeze(1) - others.amax(1)
