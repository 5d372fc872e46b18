"""Quality of SAEs: explained variance, dead features, and the accuracy that remains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from vitlens.errors import ImageError
from vitlens.method.replacement import FromSite, ReplacementModel
from vitlens.models.vision import VisionModel, as_vision_model
from vitlens.saes.base import SAE
from vitlens.saes.data import batch_of
from vitlens.saes.io import resolve_saes
from vitlens.tables import text_table


@dataclass(frozen=True)
class SAEHealth:
    """Figures of the SAE of one layer, over all tokens of the measured images.

    Attributes
    ----------
    layer, n_features, max_active
        The layer, its number of features F, and most active features per token (K for top-k).
    explained_variance
        ``1 - sum |x - x_hat|^2 / sum |x - mean(x)|^2`` in the raw residual stream, the mean
        taken over images and positions.
    explained_variance_normalized
        The same of tokens as the SAE normalises them; with its layer normalisation, each token
        counts the same.
    dead_fraction
        Share of features that were active on no token.
    mean_active
        Active features per token.
    accuracy_kept
        Top-1 accuracy, 0 to 1, when this SAE alone replaces the stream, without an error node.
    """

    layer: int
    n_features: int
    max_active: int
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
        One `SAEHealth` per layer with an SAE.
    accuracy
        Top-1 accuracy of the model itself (1 without labels).
    accuracy_all
        When all SAEs replace the stream together, without error nodes.
    n_images
        Number of images that were measured.
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
        header = ["layer", "features", "most active", "explained", "normalised", "dead", "active"]
        header.append("accuracy" if self.labelled else "agreement")
        rows = [
            [
                str(h.layer),
                str(h.n_features),
                str(h.max_active),
                f"{h.explained_variance:.3f}",
                f"{h.explained_variance_normalized:.3f}",
                f"{h.dead_fraction:.1%}",
                f"{h.mean_active:.1f}",
                f"{h.accuracy_kept:.1%}",
            ]
            for h in self.layers
        ]
        images = f"{self.n_images:,} image{'' if self.n_images == 1 else 's'}"
        against = "accuracy against labels" if self.labelled else "agreement with the model"
        return (
            f"{text_table(header, rows, align='r' * len(header))}\n"
            f"all layers replaced: {self.accuracy_all:.1%}, model: {self.accuracy:.1%}"
            f" ({images}, {against})"
        )


def measure(
    vision: nn.Module | VisionModel,
    saes: Mapping[int, SAE] | Iterable[SAE] | str | Path,
    batches: Iterable[Any],
) -> HealthReport:
    """Measure SAEs on images they were not trained on.

    Parameters
    ----------
    vision
        The model, or a `VisionModel` of it.
    saes
        By layer; or one for every block but the last; or a folder or hub name to load them from.
    batches
        Model inputs [n, 3, H, W], or pairs of them and labels [n] (class indices). The measurement
        takes one pass and stores only sums.

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
    layers, found = resolve_saes(saes, vision)
    together = ReplacementModel(vision, found, layers)
    each = [
        ReplacementModel(vision, [sae], [layer]) for layer, sae in zip(layers, found, strict=True)
    ]
    sums = [_LayerSums(sae) for sae in found]
    right_model, right_all = 0, 0
    n_images = 0
    labelled: bool | None = None
    for item in tqdm(batches, desc="SAE health", unit="batch"):
        labels = item[1] if isinstance(item, tuple | list) and len(item) > 1 else None
        if labelled not in (None, labels is not None):
            raise ImageError("Some batches have labels and others do not.")
        labelled = labels is not None
        images = batch_of(item).to(device=vision.device, dtype=vision.dtype)
        n_images += len(images)
        with torch.no_grad():
            streams = vision.residuals(images, (*layers, vision.depth - 1))
            own = vision.readout(streams[-1]).argmax(-1)
            truth = own if labels is None else torch.as_tensor(labels, device=vision.device)
            right_model += int((own == truth).sum())
            for alone, layer_sums, stream in zip(each, sums, streams[: len(layers)], strict=True):
                replaced = FromSite(0, layer_sums.add(stream), changed=True)
                logits = alone.run(replaced, error_nodes="zero")
                layer_sums.right += int((logits.argmax(-1) == truth).sum())
            logits = together.run(FromSite(0, streams[0]), error_nodes="zero")
            right_all += int((logits.argmax(-1) == truth).sum())
    if n_images == 0:
        raise ImageError("There are no images to measure SAEs on.")
    return HealthReport(
        layers=tuple(s.health(layer, n_images) for layer, s in zip(layers, sums, strict=True)),
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
    def __init__(self, sae: SAE) -> None:
        self.sae = sae
        self.raw, self.normalized = _Variance(), _Variance()
        self.missed = self.missed_normalized = 0.0
        self.seen = torch.zeros(sae.n_features, dtype=torch.bool, device=sae.W_enc.device)
        self.n_active = 0
        self.right = 0

    def add(self, stream: Float[Tensor, "n T D"]) -> Float[Tensor, "n T D"]:
        """Add one batch's stream and return its reconstruction."""
        sae = self.sae
        out = sae(stream)
        values = sae.normalize(stream).values.flatten(0, 1)
        features = out.features.flatten(0, 1)
        missed = values - (features @ sae.W_dec + sae.b_dec)
        self.raw.add(stream.flatten(0, 1))
        self.normalized.add(values)
        self.missed += float(out.error.double().square().sum())
        self.missed_normalized += float(missed.double().square().sum())
        active = features > 0
        self.seen |= active.any(0)
        self.n_active += int(active.sum())
        return out.reconstruction

    def health(self, layer: int, n_images: int) -> SAEHealth:
        return SAEHealth(
            layer=layer,
            n_features=self.sae.n_features,
            max_active=self.sae.max_active,
            explained_variance=_explained(self.missed, self.raw.total),
            explained_variance_normalized=_explained(self.missed_normalized, self.normalized.total),
            dead_fraction=1 - float(self.seen.double().mean()),
            mean_active=self.n_active / self.raw.count,
            accuracy_kept=self.right / n_images,
        )


def _explained(missed: float, total: float) -> float:
    """Share explained; nothing varies in a constant stream, and then nothing is to explain."""
    return 1 - missed / total if total else float(missed == 0)
