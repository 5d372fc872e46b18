"""What an atlas keeps of one layer: the tensors that profiles are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float, Int, UInt8
from torch import Tensor


@dataclass(frozen=True)
class ShownTable:
    """Pictures of every feature of a layer.

    Attributes
    ----------
    row
        Row of the atlas's image table, int64 [F, n]; -1 where there is none.
    peak
        The feature's largest activation in the image, float32 [F, n].
    token
        Where that is, int64 [F, n].
    heat
        Activations in 255ths of the peak, [F, n, T]; None when they are not kept.
    """

    row: Int[Tensor, "F n"]
    peak: Float[Tensor, "F n"]
    token: Int[Tensor, "F n"]
    heat: UInt8[Tensor, "F n T"] | None


@dataclass(frozen=True)
class LayerTable:
    """What an atlas keeps of the features of one layer, on the CPU.

    Attributes
    ----------
    n_active, n_images
        Tokens and images in which a feature is active, [F].
    prefix_active
        Active tokens at each prefix token, [n_prefix, F].
    histogram, peak_histogram
        Active tokens by activation, and images by peak, [F, BINS].
    mean_map
        Mean activation by position, [T, F].
    map_error
        Standard error of these means, over patch tokens, [F].
    class_mean, class_share
        Mean activation by class, and share of the class's images in which the feature is
        active, [C, F].
    effects, effect_classes
        Logit lens: the largest and smallest effects of each feature and their classes, [F, m],
        best first.
    scores
        Measures by name, [F] each.
    chance
        Their 99 % levels on shuffled data.
    curves
        Tuning curves, [F, points]; None when there were no stimuli.
    top, sampled
        The strongest pictures, and a uniform sample of those in which the feature is active.
    """

    n_active: Int[Tensor, " F"]
    n_images: Int[Tensor, " F"]
    prefix_active: Int[Tensor, "prefix F"]
    histogram: Int[Tensor, "F bins"]
    peak_histogram: Int[Tensor, "F bins"]
    mean_map: Float[Tensor, "T F"]
    map_error: Float[Tensor, " F"]
    class_mean: Float[Tensor, "C F"]
    class_share: Float[Tensor, "C F"]
    effects: Float[Tensor, "F m"]
    effect_classes: Int[Tensor, "F m"]
    scores: Mapping[str, Float[Tensor, " F"]]
    chance: Mapping[str, float]
    curves: Float[Tensor, "F points"] | None
    top: ShownTable
    sampled: ShownTable

    @property
    def size(self) -> int:
        """F."""
        return len(self.n_active)
