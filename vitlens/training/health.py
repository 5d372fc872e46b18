"""Quality of SAEs: explained variance, dead features, the accuracy that remains, small circuits.

A small circuit C holds, for each image, the M active features of every site that differ most from
their means, as in equation (49). What it carries is measured as in (42), with the means over
images taken first, as in (36)::

    alone(M) = mean(r(C) - r(empty)) / mean(r(all) - r(empty))

Source: docs/method.md, "SAEs for small circuits" and "What a circuit carries".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from vitlens.circuits.curves import Estimate, adjusted, interval, resamples
from vitlens.errors import FeatureError, ImageError
from vitlens.io import finite_values
from vitlens.method.importance import centred_logit
from vitlens.method.replacement import (
    BaselineKind,
    Baselines,
    FromSite,
    KeepFeatures,
    ReplacementModel,
    Trace,
)
from vitlens.models.vision import VisionModel, as_vision_model
from vitlens.saes.base import SAE
from vitlens.saes.data import batch_of
from vitlens.saes.io import resolve_saes
from vitlens.tables import text_table
from vitlens.training.losses import strongest

#: Features kept per layer in the small circuits of a report.
CIRCUIT_SIZES = (4, 8, 16, 32, 64)

# The share of the answer for which a report says how many features are needed.
_SHARE = 0.8


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
class CarriedBySize:
    """What the M strongest features of every layer carry alone, for several M.

    The target is the centred logit of the model's own top-1 class, and error nodes hold the
    model's own values. Shares are NaN where the full model is not above the empty one with
    confidence.

    Attributes
    ----------
    sizes
        M, features kept per layer, ascending. A layer with fewer active features keeps those.
    alone
        The share of the target that they carry, 0 for none and 1 for all features, with its 95 %
        interval over images.
    distance
        Mean distance from the full model, above or below, on the same scale.
    top1
        Share of images on which the class stays first.
    baselines
        Kind of the baselines, which all other features hold.
    """

    sizes: tuple[int, ...]
    alone: tuple[Estimate, ...]
    distance: tuple[float, ...]
    top1: tuple[float, ...]
    baselines: BaselineKind

    def needed(self, share: float = _SHARE) -> float | None:
        """Return how many features per layer carry a share of the target.

        Parameters
        ----------
        share
            The share.

        Returns
        -------
        float or None
            Where the line through the measured shares, over log M, first reaches it; the smallest
            M where that reaches it already; None where no measured M does.
        """
        before: tuple[float, float] | None = None
        for size, estimate in zip(self.sizes, self.alone, strict=True):
            here = math.log(size), estimate.value
            if estimate.value >= share:
                if before is None:
                    return float(size)
                part = (share - before[1]) / (here[1] - before[1])
                return math.exp(before[0] + part * (here[0] - before[0]))
            before = here
        return None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with `needed` for a share of .8; NaN as None."""
        values: dict[str, Any] = finite_values(asdict(self))
        return values | {"needed": self.needed()}

    def __str__(self) -> str:
        header = ["features per layer", "alone", "from 1", "class first"]
        rows = [
            [str(size), str(alone), f"{distance:.3f}", f"{top1:.1%}"]
            for size, alone, distance, top1 in zip(
                self.sizes, self.alone, self.distance, self.top1, strict=True
            )
        ]
        return (
            "what the strongest features carry alone (error nodes: clean, baselines: "
            f"{self.baselines})\n{text_table(header, rows, align='r' * len(header))}\n"
            f"needed for {_SHARE:g} of the answer: {self._needed_text()}"
        )

    def _needed_text(self) -> str:
        if any(math.isnan(estimate.value) for estimate in self.alone):
            return "no share, as the full model is not clearly above the empty one"
        needed = self.needed()
        if needed is None:
            return f"more than {self.sizes[-1]} features per layer"
        if needed == self.sizes[0]:
            return f"at most {self.sizes[0]} features per layer"
        return f"{needed:.1f} features per layer"


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
    carried
        What the strongest features carry alone; None where no baselines were given.
    """

    layers: tuple[SAEHealth, ...]
    accuracy: float
    accuracy_all: float
    n_images: int
    labelled: bool
    carried: CarriedBySize | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **asdict(self),
            "layers": [asdict(layer) for layer in self.layers],
            "carried": None if self.carried is None else self.carried.to_dict(),
        }

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
        text = (
            f"{text_table(header, rows, align='r' * len(header))}\n"
            f"all layers replaced: {self.accuracy_all:.1%}, model: {self.accuracy:.1%}"
            f" ({images}, {against})"
        )
        return text if self.carried is None else f"{text}\n\n{self.carried}"


def measure(
    vision: nn.Module | VisionModel,
    saes: Mapping[int, SAE] | Iterable[SAE] | str | Path,
    batches: Iterable[Any],
    *,
    baselines: Baselines | None = None,
    circuit_sizes: Sequence[int] = CIRCUIT_SIZES,
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
    baselines
        Of these SAEs, best their means on training images: see `fit_baselines`. With them, the
        report says what small circuits carry. This holds the features of all layers for one batch,
        and runs the model once more for each of `circuit_sizes` and for the empty model.
    circuit_sizes
        M, features that a small circuit keeps per layer.

    Returns
    -------
    HealthReport

    Raises
    ------
    CheckpointError
        If the SAEs do not fit the model.
    FeatureError
        If `circuit_sizes` are not whole numbers from 1, ascending.
    ImageError
        If there is no image, a batch is not of floats, or some batches have labels and others not.
    ModelError
        If the baselines do not fit the SAEs.
    """
    vision = as_vision_model(vision)
    layers, found = resolve_saes(saes, vision)
    together = ReplacementModel(vision, found, layers, baselines)
    circuits = None if baselines is None else _SmallCircuits(together, circuit_sizes)
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
            if circuits is not None:
                circuits.add(together.trace(images))
    if n_images == 0:
        raise ImageError("There are no images to measure SAEs on.")
    return HealthReport(
        layers=tuple(s.health(layer, n_images) for layer, s in zip(layers, sums, strict=True)),
        accuracy=right_model / n_images,
        accuracy_all=right_all / n_images,
        n_images=n_images,
        labelled=bool(labelled),
        carried=None if circuits is None else circuits.carried(),
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


class _SmallCircuits:
    """Target and top-1 answer of every image with none, the M strongest, and all features."""

    def __init__(self, replacement: ReplacementModel, sizes: Sequence[int]) -> None:
        self.replacement, self.sizes = replacement, tuple(sizes)
        whole = all(isinstance(size, int) and size >= 1 for size in self.sizes)
        if not self.sizes or not whole or list(self.sizes) != sorted(set(self.sizes)):
            raise FeatureError(
                f"circuit_sizes must be whole numbers from 1, ascending, not {list(sizes)}."
            )
        self.targets: list[Float[Tensor, "n steps"]] = []
        self.first: list[Float[Tensor, "n sizes"]] = []

    def add(self, trace: Trace) -> None:
        """Run the circuits of a batch of images."""
        replacement, means = self.replacement, self.replacement.baselines.features
        runs = [
            replacement.run(trace, KeepFeatures(strongest(trace.features, means, size)))
            for size in (0, *self.sizes)
        ]
        logits = torch.stack([*runs, trace.logits], dim=1).double().cpu()
        own = logits[:, -1].argmax(-1)
        of_class = [
            centred_logit(index)(row) for index, row in zip(own.tolist(), logits, strict=True)
        ]
        self.targets.append(torch.stack(of_class))
        self.first.append((logits[:, 1:-1].argmax(-1) == own[:, None]).double())

    def carried(self) -> CarriedBySize:
        targets, first = torch.cat(self.targets).numpy(), torch.cat(self.first)
        empty, kept, full = targets[:, 0], targets[:, 1:-1], targets[:, -1]
        draws = resamples(len(targets))
        shares, resampled = adjusted(kept, empty, full, draws)
        apart = abs(kept - full[:, None]) + empty[:, None]
        distance, _ = adjusted(apart, empty, full, draws)
        return CarriedBySize(
            sizes=self.sizes,
            alone=tuple(
                interval(float(share), resampled[:, place], len(targets))
                for place, share in enumerate(shares)
            ),
            distance=tuple(distance.tolist()),
            top1=tuple(first.mean(0).tolist()),
            baselines=self.replacement.baselines.kind,
        )


def _explained(missed: float, total: float) -> float:
    """Share explained; nothing varies in a constant stream, and then nothing is to explain."""
    return 1 - missed / total if total else float(missed == 0)
