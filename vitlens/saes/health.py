"""How good SAEs are: what they explain, what is dead, and what accuracy they leave."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from vitlens.errors import ImageError
from vitlens.models.vision import VisionModel, as_vision_model
from vitlens.saes.data import batch_of
from vitlens.saes.io import resolve_saes
from vitlens.saes.topk import TopKSAE


@dataclass(frozen=True)
class SAEHealth:
    """Figures of the SAE of one layer, over all tokens of the measured images.

    Attributes
    ----------
    layer, size, k
        The layer, its number of features F and of active features K.
    explained_variance
        ``1 - sum |x - x_hat|^2 / sum |x - mean(x)|^2`` in the raw residual stream, the mean
        taken over images and positions.
    explained_variance_normalized
        The same of normalised tokens, where each token weighs the same.
    dead_fraction
        Share of features that were active on no token.
    mean_active
        Active features a token.
    accuracy_kept
        Top-1 accuracy, 0 to 1, when this SAE alone replaces the stream, without an error node.
    """

    layer: int
    size: int
    k: int
    explained_variance: float
    explained_variance_normalized: float
    dead_fraction: float
    mean_active: float
    accuracy_kept: float


@dataclass(frozen=True)
class HealthReport:
    """Figures of the SAEs of a model.

    Attributes
    ----------
    layers
        One `SAEHealth` a layer.
    accuracy
        Top-1 accuracy of the model itself (1 without labels).
    accuracy_all
        When all SAEs replace the stream together, without error nodes.
    n_images
        How many images were measured.
    labelled
        Whether accuracies are against labels. If not, they are agreement with the model's own
        top-1 answer.
    """

    layers: tuple[SAEHealth, ...]
    accuracy: float
    accuracy_all: float
    n_images: int
    labelled: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "layers": [asdict(layer) for layer in self.layers]}

    def __str__(self) -> str:
        kept = "accuracy" if self.labelled else "agreement"
        rows = [
            f"{h.layer:5d}  {h.size:8d}  {h.k:4d}  {h.explained_variance:9.3f}"
            f"  {h.explained_variance_normalized:10.3f}  {h.dead_fraction:6.1%}"
            f"  {h.mean_active:6.1f}  {h.accuracy_kept:9.1%}"
            for h in self.layers
        ]
        return "\n".join(
            [
                "layer  features     k  explained  normalised    dead  active  " + f"{kept:>9}",
                *rows,
                f"all layers replaced: {self.accuracy_all:.1%}, model: {self.accuracy:.1%}"
                f" ({self.n_images:,} image{'' if self.n_images == 1 else 's'}, "
                + ("accuracy against labels)" if self.labelled else "agreement with the model)"),
            ]
        )


def measure(
    vision: nn.Module | VisionModel, saes: Sequence[TopKSAE], batches: Iterable[Any]
) -> HealthReport:
    """Measure SAEs on images they were not trained on.

    Parameters
    ----------
    vit
        The model, or a `VisionModel` of it.
    saes
        Of layers 0 to B-2.
    batches
        Model inputs [n, 3, H, W], or pairs of them and labels [n] (class indices). One pass is
        made, and nothing is kept but sums.

    Returns
    -------
    HealthReport

    Raises
    ------
    CheckpointError
        If the SAEs do not fit the model.
    ImageError
        If there is no image, a batch is not of floats, or some batches have labels and others not.
    """
    vision = as_vision_model(vision)
    saes = resolve_saes(saes, vision)[1]
    sums = [_LayerSums(sae) for sae in saes]
    right_model, right_all = 0, 0
    n_images = 0
    labelled: bool | None = None
    for item in tqdm(batches, desc="SAE health", unit="batch"):
        labels = item[1] if isinstance(item, tuple | list) and len(item) > 1 else None
        if labelled not in (None, labels is not None):
            raise ImageError("Some batches have labels and others do not.")
        labelled = labels is not None
        images = batch_of(item)
        n_images += len(images)
        with torch.no_grad():
            images = images.to(device=vision.device, dtype=vision.dtype)
            stem = vision.embed(images)
            residuals = vision.residuals(images)
            own = vision.readout(residuals[-1]).argmax(-1)
            truth = own if labels is None else torch.as_tensor(labels, device=vision.device)
            right_model += int((own == truth).sum())
            for layer, (sae, layer_sums) in enumerate(zip(saes, sums, strict=True)):
                replaced = layer_sums.add(sae, residuals[layer])
                for block in stem.blocks[layer + 1 :]:
                    replaced = block(replaced)
                layer_sums.right += int((vision.readout(replaced).argmax(-1) == truth).sum())
            stream = stem.tokens
            for block, sae in zip(stem.blocks[:-1], saes, strict=True):
                stream = sae(block(stream)).reconstruction
            right_all += int((vision.readout(stem.blocks[-1](stream)).argmax(-1) == truth).sum())
    if n_images == 0:
        raise ImageError("There are no images to measure SAEs on.")
    return HealthReport(
        layers=tuple(
            layer_sums.health(layer, sae, n_images)
            for layer, (sae, layer_sums) in enumerate(zip(saes, sums, strict=True))
        ),
        accuracy=right_model / n_images,
        accuracy_all=right_all / n_images,
        n_images=n_images,
        labelled=bool(labelled),
    )


class _Variance:
    """Sum of squared distances to the mean, in one pass (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.total = 0.0

    def add(self, x: Float[Tensor, "N D"]) -> None:
        x = x.double()
        mean, count = x.mean(0), self.count + len(x)
        shift = mean - self.mean
        between = float(shift.square().sum()) * self.count * len(x) / count
        self.total += float((x - mean).square().sum()) + between
        self.mean = self.mean + shift * (len(x) / count)
        self.count = count


class _LayerSums:
    def __init__(self, sae: TopKSAE) -> None:
        self.raw, self.normalized = _Variance(), _Variance()
        self.missed = self.missed_normalized = 0.0
        self.seen = torch.zeros(sae.n_features, dtype=torch.bool, device=sae.W_enc.device)
        self.n_active = 0
        self.right = 0

    def add(self, sae: TopKSAE, stream: Float[Tensor, "n T D"]) -> Float[Tensor, "n T D"]:
        """Take in one batch's stream and return its reconstruction."""
        out = sae(stream)
        tokens, error = stream.flatten(0, 1), out.error.flatten(0, 1)
        values = sae.normalize(tokens).values
        missed = values - (out.features.flatten(0, 1) @ sae.W_dec + sae.b_dec)
        self.raw.add(tokens)
        self.normalized.add(values)
        self.missed += float(error.double().square().sum())
        self.missed_normalized += float(missed.double().square().sum())
        active = out.features.flatten(0, 1) > 0
        self.seen |= active.any(0)
        self.n_active += int(active.sum())
        return out.reconstruction

    def health(self, layer: int, sae: TopKSAE, n_images: int) -> SAEHealth:
        return SAEHealth(
            layer=layer,
            size=sae.n_features,
            k=sae.k,
            explained_variance=_explained(self.missed, self.raw.total),
            explained_variance_normalized=_explained(self.missed_normalized, self.normalized.total),
            dead_fraction=1 - float(self.seen.double().mean()),
            mean_active=self.n_active / self.raw.count,
            accuracy_kept=self.right / n_images,
        )


def _explained(missed: float, total: float) -> float:
    """Share explained; nothing varies in a constant stream, and then nothing is to explain."""
    return 1 - missed / total if total else float(missed == 0)
