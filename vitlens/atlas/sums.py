"""What is counted and summed of every feature of a layer: exact, and the same in any order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitlens.atlas import bins
from vitlens.atlas.bins import N_BINS
from vitlens.atlas.chance import n_buckets
from vitlens.atlas.codes import Codes, ImageMarks


@dataclass
class LayerSums:
    """Counts and sums over all images of a layer's features; everything is int64.

    Sums of activations are whole numbers of `bins.UNIT`, those of squares of
    `bins.SQUARE_UNIT` and `bins.IMAGE_SQUARE_UNIT`. Multiply by the unit to get numbers.

    Attributes
    ----------
    n_active
        Tokens on which the feature is active, [F].
    prefix_active
        The same for each prefix token (CLS, registers), [n_prefix, F].
    n_images
        Images in which it is active anywhere, [F].
    histogram, peak_histogram
        Active tokens, and images it is active in, by activation and by peak, [F, N_BINS].
    position
        Activation by token, summed over images, [T, F].
    position_shuffled
        The same with the patches of each image shuffled (`bins.shuffled_tokens`), [T, F].
    squares
        Squared activations, summed over patch tokens and images, [F].
    class_mean
        Mean activation over all tokens of an image, summed over the images of a class, [C, F].
    class_active
        Images of a class in which the feature is active, [C, F].
    bucket_mean
        Mean activation over all tokens of an image, summed over the images of a bucket, those
        without a class left out, [B, F]; `chance.dealt` makes classes of it.
    image_mean
        Mean activation over all tokens, summed over all images, with or without a class, [F].
    image_squares
        Its square, summed over images, [F].
    stds
        Standard deviation of the stream at each token, summed over images, [T].
    """

    n_active: Int[Tensor, " F"]
    prefix_active: Int[Tensor, "prefix F"]
    n_images: Int[Tensor, " F"]
    histogram: Int[Tensor, "F bins"]
    peak_histogram: Int[Tensor, "F bins"]
    position: Int[Tensor, "T F"]
    position_shuffled: Int[Tensor, "T F"]
    squares: Int[Tensor, " F"]
    class_mean: Int[Tensor, "C F"]
    class_active: Int[Tensor, "C F"]
    bucket_mean: Int[Tensor, "B F"]
    image_mean: Int[Tensor, " F"]
    image_squares: Int[Tensor, " F"]
    stds: Int[Tensor, " T"]

    @classmethod
    def zeros(
        cls,
        *,
        n_tokens: int,
        n_prefix: int,
        n_features: int,
        n_classes: int,
        device: torch.device | str | None = None,
    ) -> LayerSums:
        """Sums over no images."""
        T, F, C = n_tokens, n_features, n_classes
        shapes: dict[str, tuple[int, ...]] = {
            "n_active": (F,),
            "prefix_active": (n_prefix, F),
            "n_images": (F,),
            "histogram": (F, N_BINS),
            "peak_histogram": (F, N_BINS),
            "position": (T, F),
            "position_shuffled": (T, F),
            "squares": (F,),
            "class_mean": (C, F),
            "class_active": (C, F),
            "bucket_mean": (n_buckets(C), F),
            "image_mean": (F,),
            "image_squares": (F,),
            "stds": (T,),
        }
        return cls(
            **{
                name: torch.zeros(shape, dtype=torch.int64, device=device)
                for name, shape in shapes.items()
            }
        )

    @property
    def n_features(self) -> int:
        """F."""
        return len(self.n_active)

    def add(self, codes: Codes, marks: ImageMarks, stds: Float[Tensor, "n T"]) -> None:
        """Count some images.

        Parameters
        ----------
        codes
            Their activations at this layer.
        marks
            Their classes and buckets, and how their tokens are shuffled.
        stds
            Standard deviation of the stream at each token.
        """
        T, F = self.position.shape
        n_prefix = len(self.prefix_active)
        token, feature = codes.token, codes.feature
        fixed = bins.activations_to_fixed(codes.value)

        _add_at(self.n_active, feature, torch.ones_like(feature))
        on_prefix = token < n_prefix
        _add_at(self.prefix_active, (token * F + feature)[on_prefix], on_prefix[on_prefix].long())
        _add_at(
            self.histogram, feature * N_BINS + bins.bin_index(codes.value), torch.ones_like(feature)
        )
        _add_at(self.position, token * F + feature, fixed)
        moved = marks.shuffled_tokens[codes.image, token]
        _add_at(self.position_shuffled, moved * F + feature, fixed)
        _add_at(self.squares, feature, bins.squares(fixed) * ~on_prefix)
        self.stds += bins.to_fixed(stds).sum(dim=0)

        total = torch.zeros(codes.n_images, F, dtype=torch.int64, device=fixed.device)
        _add_at(total, codes.image * F + feature, fixed)
        active = codes.peak > 0
        self._add_images(active, (total + T // 2) // T, marks)
        image, feature = active.nonzero(as_tuple=True)
        peak_bin = bins.bin_index(codes.peak[image, feature])
        _add_at(self.peak_histogram, feature * N_BINS + peak_bin, torch.ones_like(feature))

    def _add_images(
        self, active: Bool[Tensor, "n F"], mean: Int[Tensor, "n F"], marks: ImageMarks
    ) -> None:
        """Count what has one number an image: whether a feature is active, and its mean."""
        self.n_images += active.sum(dim=0)
        self.image_mean += mean.sum(dim=0)
        self.image_squares += bins.image_squares(mean).sum(dim=0)
        known = marks.label >= 0
        self.class_mean.index_add_(0, marks.label[known], mean[known])
        self.class_active.index_add_(0, marks.label[known], active[known].long())
        self.bucket_mean.index_add_(0, marks.bucket[known], mean[known])

    def to(self, device: torch.device | str) -> LayerSums:
        """Move to a device."""
        return LayerSums(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def merge(self, other: LayerSums) -> LayerSums:
        """Sums over the images of both."""
        mine, others = self.tensors(), other.tensors()
        return LayerSums(**{name: mine[name] + others[name] for name in mine})

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> LayerSums:
        """The sums that `tensors` was taken of."""
        return cls(**{field.name: tensors[field.name] for field in fields(cls)})


def _add_at(sums: Int[Tensor, "*any"], where: Int[Tensor, " m"], what: Int[Tensor, " m"]) -> None:
    """Add numbers at flat indices; an index may come more than once."""
    sums.view(-1).index_add_(0, where, what)
