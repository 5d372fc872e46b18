"""The accumulated state of a pass over images; states merge, save and load without loss.

For every layer there are `LayerSums` (counts and sums over all images) and two `Pool`s (for every
feature, a bounded number of images, chosen by a total order). Sums are exact, and because the order
is total, a pool of some images joined with a pool of others is the pool of all of them. So merging
gives the same bits whichever part comes first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from vitlens.atlas import exact
from vitlens.atlas.exact import N_BINS, n_buckets
from vitlens.atlas.image_store import ImageRecord, ImageTable
from vitlens.errors import CheckpointError
from vitlens.io import read_result, write_tensors

_FORMAT = "vitlens.atlas.sums"
_VERSION = 3

#: The id of an empty place.
EMPTY = -1
_LAST = torch.iinfo(torch.int64).max

PoolKind = Literal["top", "sampled"]


@dataclass(frozen=True)
class ImageInfo:
    """Facts about the images of a batch that sums and pools need.

    Attributes
    ----------
    id
        Hash of its key, [n].
    group
        Number of its group, [n]; images of one group count as one in the top pools.
    label
        Its class, or -1 without one, [n].
    bucket
        Its bucket for chance levels of classes (`exact.buckets`), [n].
    shuffled_tokens
        Where each token moves when patches are shuffled, [n, T].
    """

    id: Int[Tensor, " n"]
    group: Int[Tensor, " n"]
    label: Int[Tensor, " n"]
    bucket: Int[Tensor, " n"]
    shuffled_tokens: Int[Tensor, "n T"]

    @classmethod
    def of(
        cls,
        ids: Int[Tensor, " n"],
        groups: Int[Tensor, " n"],
        labels: Int[Tensor, " n"],
        *,
        n_classes: int,
        n_prefix: int,
        n_tokens: int,
    ) -> ImageInfo:
        """Derive what is random from the images' ids."""
        return cls(
            id=ids,
            group=groups,
            label=labels,
            bucket=exact.buckets(ids, n_classes),
            shuffled_tokens=exact.shuffled_tokens(ids, n_prefix, n_tokens),
        )


@dataclass(frozen=True)
class ActiveFeatures:
    """The active features of a batch at one layer, m of them.

    Attributes
    ----------
    index
        Where each is in [n, T, F], flattened, int64 [m].
    value
        Its activation, above 0, float32 [m].
    n_images, n_tokens, n_features
        Sizes of the batch: n, T and F.
    """

    index: Int[Tensor, " m"]
    value: Float[Tensor, " m"]
    n_images: int
    n_tokens: int
    n_features: int

    @classmethod
    def of(
        cls, activations: Float[Tensor, "n T F"], mask: Bool[Tensor, "n T F"] | None = None
    ) -> ActiveFeatures:
        """The activations above 0, of those in a mask if there is one."""
        flat = activations.float().reshape(-1)
        # Few entries are in a mask, and searching it is faster than setting all others to 0.
        index = (flat if mask is None else mask.reshape(-1)).nonzero().squeeze(1)
        value = flat[index]
        above = value > 0
        return cls(index[above], value[above], *activations.shape)

    def of_images(self, images: Int[Tensor, " n"]) -> ActiveFeatures:
        """The active features of some of the images, which are numbered again."""
        if len(images) == self.n_images:
            return replace(self)
        number = torch.full((self.n_images,), -1, device=self.index.device)
        number[images] = torch.arange(len(images), device=self.index.device)
        size = self.n_tokens * self.n_features
        image = number[self.index // size]
        kept = image >= 0
        index = image[kept] * size + self.index[kept] % size
        return replace(self, index=index, value=self.value[kept], n_images=len(images))

    @cached_property
    def image(self) -> Int[Tensor, " m"]:
        """Image of each, [m]."""
        return self.index // (self.n_tokens * self.n_features)

    @cached_property
    def token(self) -> Int[Tensor, " m"]:
        """Token of each, [m]."""
        return self.index // self.n_features % self.n_tokens

    @cached_property
    def feature(self) -> Int[Tensor, " m"]:
        """Feature number of each, [m]."""
        return self.index % self.n_features

    @cached_property
    def activations(self) -> Float[Tensor, "n F T"]:
        """All activations, most of them 0, the tokens of a feature side by side."""
        n, F, T = self.n_images, self.n_features, self.n_tokens
        dense = torch.zeros(n * F * T, device=self.value.device)
        dense[(self.image * F + self.feature) * T + self.token] = self.value
        return dense.view(n, F, T)

    @cached_property
    def peak(self) -> Float[Tensor, "n F"]:
        """Largest activation of each feature in each image, 0 where it is not active."""
        return self.activations.amax(dim=2)


@dataclass
class LayerSums:
    """Counts and sums over all images of a layer's features; everything is int64.

    Sums of activations are whole numbers of `exact.UNIT`, those of squares of
    `exact.SQUARE_UNIT` and `exact.IMAGE_SQUARE_UNIT`. Multiply by the unit to get numbers.

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
        The same with the patches of each image shuffled (`exact.shuffled_tokens`), [T, F].
    squares
        Squared activations, summed over patch tokens and images, [F].
    class_mean
        Mean activation over all tokens of an image, summed over the images of a class, [C, F].
    class_active
        Images of a class in which the feature is active, [C, F].
    bucket_mean
        Mean activation over all tokens of an image, summed over the images of a bucket, those
        without a class left out, [B, F]; `exact.deal` makes classes of it.
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

    def add(self, features: ActiveFeatures, info: ImageInfo, stds: Float[Tensor, "n T"]) -> None:
        """Count some images.

        Parameters
        ----------
        features
            Their activations at this layer.
        info
            Their classes and buckets, and how their tokens are shuffled.
        stds
            Standard deviation of the stream at each token.
        """
        T, F = self.position.shape
        n_prefix = len(self.prefix_active)
        image, token, feature = features.image, features.token, features.feature
        fixed = exact.activations_to_fixed(features.value)

        _add_at(self.n_active, feature, torch.ones_like(feature))
        on_prefix = token < n_prefix
        _add_at(self.prefix_active, (token * F + feature)[on_prefix], on_prefix[on_prefix].long())
        value_bin = exact.bin_index(features.value)
        _add_at(self.histogram, feature * N_BINS + value_bin, torch.ones_like(feature))
        _add_at(self.position, token * F + feature, fixed)
        moved = info.shuffled_tokens[image, token]
        _add_at(self.position_shuffled, moved * F + feature, fixed)
        _add_at(self.squares, feature, exact.squares(fixed) * ~on_prefix)
        self.stds += exact.to_fixed(stds).sum(dim=0)

        total = torch.zeros(features.n_images, F, dtype=torch.int64, device=fixed.device)
        _add_at(total, image * F + feature, fixed)
        active = features.peak > 0
        self._add_images(active, (total + T // 2) // T, info)
        image, feature = active.nonzero(as_tuple=True)
        peak_bin = exact.bin_index(features.peak[image, feature])
        _add_at(self.peak_histogram, feature * N_BINS + peak_bin, torch.ones_like(feature))

    def _add_images(
        self, active: Bool[Tensor, "n F"], mean: Int[Tensor, "n F"], info: ImageInfo
    ) -> None:
        """Count what has one number per image: whether a feature is active, and its mean."""
        self.n_images += active.sum(dim=0)
        self.image_mean += mean.sum(dim=0)
        self.image_squares += exact.image_squares(mean).sum(dim=0)
        known = info.label >= 0
        self.class_mean.index_add_(0, info.label[known], mean[known])
        self.class_active.index_add_(0, info.label[known], active[known].long())
        self.bucket_mean.index_add_(0, info.bucket[known], mean[known])

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
        """The sums whose `tensors` these are."""
        return cls(**{field.name: tensors[field.name] for field in fields(cls)})


def _add_at(sums: Int[Tensor, "*any"], where: Int[Tensor, " m"], what: Int[Tensor, " m"]) -> None:
    """Add numbers at flat indices; an index may occur more than once."""
    sums.view(-1).index_add_(0, where, what)


@dataclass
class Pool:
    """Images of every feature of a layer; places without an image come last.

    Attributes
    ----------
    kind
        "top": the images with the highest peaks, one of each group, the highest first (ties: the
        smaller id first). "sampled": of the images in which the feature is active, those with
        the smallest ids, the smallest first. Ids are hashes, so this is a uniform sample; it is
        coordinated, that is features share images where they can (bottom-k sketches: Cohen and
        Kaplan, PODC 2007), which keeps the images to store few.
    peak
        The feature's largest activation in the image, float32 [F, n]; 0 at empty places.
    id
        The image, int64 [F, n]; `EMPTY` at empty places.
    group
        The image's group, int64 [F, n]; `EMPTY` at empty places.
    token
        The first token with the peak, int32 [F, n]; `EMPTY` at empty places.
    heatmap
        Activations of the tokens in 255ths of the peak, rounded, uint8 [F, n, T]; T is 0 when no
        heatmaps are kept.
    """

    kind: PoolKind
    peak: Float[Tensor, "F n"]
    id: Int[Tensor, "F n"]
    group: Int[Tensor, "F n"]
    token: Int[Tensor, "F n"]
    heatmap: UInt8[Tensor, "F n T"]

    @classmethod
    def empty(
        cls,
        kind: PoolKind,
        n_features: int,
        n_places: int,
        n_tokens: int,
        device: torch.device | str | None = None,
    ) -> Pool:
        """A pool without images; `n_tokens` is 0 when no heatmaps are kept."""
        shape = (n_features, n_places)
        return cls(
            kind,
            peak=torch.zeros(shape, device=device),
            id=torch.full(shape, EMPTY, device=device),
            group=torch.full(shape, EMPTY, device=device),
            token=torch.full(shape, EMPTY, dtype=torch.int32, device=device),
            heatmap=torch.zeros(*shape, n_tokens, dtype=torch.uint8, device=device),
        )

    @property
    def n_places(self) -> int:
        """Images a feature can have, n."""
        return self.id.shape[1]

    def merge(self, other: Pool) -> Pool:
        """The pool of all images of both."""
        both = {
            name: torch.cat([tensor, getattr(other, name)], dim=1)
            for name, tensor in self.tensors().items()
        }
        order, filled = self.choose(both["peak"], both["id"], both["group"])
        return Pool(
            self.kind,
            peak=both["peak"].gather(1, order).where(filled, 0),
            id=both["id"].gather(1, order).where(filled, EMPTY),
            group=both["group"].gather(1, order).where(filled, EMPTY),
            token=both["token"].gather(1, order).where(filled, EMPTY),
            heatmap=_at(both["heatmap"], order) * filled[..., None],
        )

    def add(
        self,
        activations: Float[Tensor, "n F T"],
        peak: Float[Tensor, "n F"],
        ids: Int[Tensor, " n"],
        groups: Int[Tensor, " n"],
    ) -> Bool[Tensor, " n"]:
        """Add the images that rank above those in the pool; return which were added."""
        rows = self._improved(peak, ids).nonzero().squeeze(1)
        new = torch.zeros_like(ids, dtype=torch.bool)
        if not len(rows):
            return new
        shape = (len(rows), len(ids))
        image = torch.cat([self.id[rows], ids.expand(shape)], dim=1)
        group = torch.cat([self.group[rows], groups.expand(shape)], dim=1)
        peaks = torch.cat([self.peak[rows], peak[:, rows].T], dim=1)
        order, filled = self.choose(peaks, image, group)
        self.peak[rows] = peaks.gather(1, order).where(filled, 0)
        self.id[rows] = image.gather(1, order).where(filled, EMPTY)
        self.group[rows] = group.gather(1, order).where(filled, EMPTY)
        # Images that stay move first, then the new ones are filled in.
        stayed = order.clamp(max=self.n_places - 1)
        self.token[rows] = self.token[rows].gather(1, stayed).where(filled, EMPTY)
        self.heatmap[rows] = _at(self.heatmap[rows], stayed) * filled[..., None]
        row, place = (filled & (order >= self.n_places)).nonzero(as_tuple=True)
        feature, which = rows[row], order[row, place] - self.n_places
        tokens = activations[which, feature]
        self.token[feature, place] = tokens.argmax(dim=1).to(torch.int32)
        if self.heatmap.shape[2]:
            shares = tokens / self.peak[feature, place][:, None]
            self.heatmap[feature, place] = (255 * shares).round().to(torch.uint8)
        new[which] = True
        return new

    def _improved(self, peak: Float[Tensor, "n F"], ids: Int[Tensor, " n"]) -> Bool[Tensor, " F"]:
        """Features for which an image ranks before the last one of the pool."""
        last_id, last_peak = self.id[:, -1], self.peak[:, -1]
        earlier = ids[:, None] < last_id
        if self.kind == "top":
            better = (peak > last_peak) | ((peak == last_peak) & earlier)
        else:
            better = earlier | (last_id == EMPTY)
        return (better & (peak > 0)).any(dim=0)

    def choose(
        self,
        peak: Float[Tensor, "F m"],
        image: Int[Tensor, "F m"],
        group: Int[Tensor, "F m"],
    ) -> tuple[Int[Tensor, "F n"], Bool[Tensor, "F n"]]:
        """Which of m candidates of each feature fill its places, and which places are filled.

        A candidate with a peak of 0 does not count.
        """
        absent = peak <= 0
        order = torch.where(absent, _LAST, image).argsort(dim=1, stable=True)
        if self.kind == "top":
            by_id = peak.gather(1, order)
            order = order.gather(1, by_id.argsort(dim=1, descending=True, stable=True))
        same = group if self.kind == "top" else image
        unfit = absent.gather(1, order) | _seen_before(same.gather(1, order))
        best = unfit.to(torch.int8).argsort(dim=1, stable=True)[:, : self.n_places]
        return order.gather(1, best), ~unfit.gather(1, best)

    def to(self, device: torch.device | str) -> Pool:
        """Move to a device."""
        return Pool(self.kind, **{k: v.to(device) for k, v in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "kind"}

    @classmethod
    def from_tensors(cls, kind: PoolKind, tensors: Mapping[str, Tensor]) -> Pool:
        """The pool whose `tensors` these are."""
        return cls(kind, **{f.name: tensors[f.name] for f in fields(cls) if f.name != "kind"})


def _at(heatmap: UInt8[Tensor, "F m T"], places: Int[Tensor, "F n"]) -> UInt8[Tensor, "F n T"]:
    return heatmap.gather(1, places[..., None].expand(-1, -1, heatmap.shape[2]))


def _seen_before(group: Int[Tensor, "F m"]) -> Tensor:
    """True where a group has an earlier entry in its row."""
    order = group.argsort(dim=1, stable=True)
    ordered = group.gather(1, order)
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(again).scatter(1, order, again)


@dataclass
class LayerState:
    """Sums and pools of a layer.

    Attributes
    ----------
    sums
        Counts and sums over all images.
    top
        For every feature, the images it is most active in.
    sampled
        For every feature, a uniform sample of the images it is active in.
    """

    sums: LayerSums
    top: Pool
    sampled: Pool

    def merge(self, other: LayerState) -> LayerState:
        """The state of the images of both."""
        return LayerState(
            self.sums.merge(other.sums),
            self.top.merge(other.top),
            self.sampled.merge(other.sampled),
        )

    def to(self, device: torch.device | str) -> LayerState:
        """Move to a device."""
        return LayerState(self.sums.to(device), self.top.to(device), self.sampled.to(device))


@dataclass
class AtlasState:
    """All layers, the images they refer to, and the settings of the pass.

    Merging is associative and commutative, and exact: `save` writes the same bytes whichever way
    the parts of a data set were put together.

    Attributes
    ----------
    model
        Fingerprint of the lens.
    n_prefix, grid
        Prefix tokens, and rows and columns of the patches.
    class_names
        Names of the C classes.
    labels_from
        "data", or "predictions" of the model itself.
    settings
        How the pass was made, as JSON can hold it; only states with the same can be merged.
    layers
        Block number of each SAE, in order.
    layer_states
        Sums and pools of each SAE, in the order of `layers`.
    n_images
        Images counted.
    per_class
        Images of each class, int64 [C].
    per_bucket
        The same images by bucket (`exact.buckets`), int64 [B].
    final_stream
        The stream after the last block, summed over images, whole numbers of `exact.UNIT`,
        int64 [T, D].
    images
        By id (`exact.hash_text` of the key), those that a pool holds.
    skipped
        Keys of the images that could not be read, and the reasons, in the order of the keys.
    """

    model: str
    n_prefix: int
    grid: tuple[int, int]
    class_names: tuple[str, ...]
    labels_from: str
    settings: dict[str, Any]
    layers: tuple[int, ...]
    layer_states: tuple[LayerState, ...]
    n_images: int
    per_class: Int[Tensor, " C"]
    per_bucket: Int[Tensor, " B"]
    final_stream: Int[Tensor, "T D"]
    images: ImageTable = field(default_factory=ImageTable)
    skipped: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        self.images = ImageTable.of(self.images)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Features of each layer, in the order of `layers`."""
        return tuple(layer.sums.n_features for layer in self.layer_states)

    @property
    def n_tokens(self) -> int:
        """Prefix tokens and patches, T."""
        return len(self.final_stream)

    def to(self, device: torch.device | str) -> AtlasState:
        """Move sums and pools to a device."""
        return replace(
            self,
            layer_states=tuple(layer.to(device) for layer in self.layer_states),
            per_class=self.per_class.to(device),
            per_bucket=self.per_bucket.to(device),
            final_stream=self.final_stream.to(device),
        )

    def merge(self, other: AtlasState) -> AtlasState:
        """The state of all images of both; neither is changed.

        Raises
        ------
        CheckpointError
            If they have different models or settings, or hold the same images.
        """
        _check_alike(self, other)
        merged = replace(
            self,
            layer_states=tuple(
                mine.merge(others)
                for mine, others in zip(self.layer_states, other.layer_states, strict=True)
            ),
            n_images=self.n_images + other.n_images,
            per_class=self.per_class + other.per_class,
            per_bucket=self.per_bucket + other.per_bucket,
            final_stream=self.final_stream + other.final_stream,
            images=ImageTable({**self.images, **other.images}),
            skipped=tuple(sorted({*self.skipped, *other.skipped})),
        )
        merged.drop_unused_images()
        return merged

    def drop_unused_images(self) -> None:
        """Drop images that no pool holds any more."""
        self.images.keep(self.used_ids())

    def used_ids(self) -> set[int]:
        """Ids of the images in any pool."""
        pools = [pool for layer in self.layer_states for pool in (layer.top, layer.sampled)]
        used = torch.cat([pool.id.unique() for pool in pools]).unique() if pools else torch.empty(0)
        return set(used.tolist()) - {EMPTY}

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically.

        Raises
        ------
        VitlensError
            If the file cannot be written.
        """
        self.drop_unused_images()
        about = {"format": _FORMAT, "version": _VERSION, **self.about()}
        write_tensors(path, self.tensors(), about)

    @classmethod
    def load(cls, path: str | Path) -> AtlasState:
        """Read a state that `save` wrote.

        Raises
        ------
        CheckpointError
            If the file is missing, damaged, or holds something else.
        """
        tensors, about = read_result(
            path, what="the state of an atlas", format=_FORMAT, version=_VERSION
        )
        try:
            return cls.from_tensors(tensors, about)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is not a complete state: {error!r}.") from error

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name; see `from_tensors`."""
        tensors = {
            "per_class": self.per_class,
            "per_bucket": self.per_bucket,
            "final_stream": self.final_stream,
        }
        for layer, state in zip(self.layers, self.layer_states, strict=True):
            for name in ("sums", "top", "sampled"):
                part = getattr(state, name).tensors()
                tensors |= {f"{layer:02}.{name}.{key}": value for key, value in part.items()}
        return tensors | _image_tensors(self.images)

    def about(self) -> dict[str, Any]:
        """All other facts, as JSON can hold them; see `from_tensors`."""
        return {
            "model": self.model,
            "n_prefix": self.n_prefix,
            "grid": list(self.grid),
            "class_names": list(self.class_names),
            "labels_from": self.labels_from,
            "settings": self.settings,
            "layers": list(self.layers),
            "n_images": self.n_images,
            "images": [[r.key, r.path, r.credit] for r in self.images.values()],
            "skipped": [list(entry) for entry in self.skipped],
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> AtlasState:
        """The state whose `tensors` and facts (`about`) these are.

        Raises
        ------
        KeyError, IndexError, TypeError, ValueError
            If they are incomplete.
        """
        return cls(
            model=about["model"],
            n_prefix=about["n_prefix"],
            grid=(about["grid"][0], about["grid"][1]),
            class_names=tuple(about["class_names"]),
            labels_from=about["labels_from"],
            settings=about["settings"],
            layers=tuple(about["layers"]),
            layer_states=tuple(_layer(tensors, layer) for layer in about["layers"]),
            n_images=about["n_images"],
            per_class=tensors["per_class"],
            per_bucket=tensors["per_bucket"],
            final_stream=tensors["final_stream"],
            images=_read_images(tensors, about["images"]),
            skipped=tuple((key, why) for key, why in about["skipped"]),
        )


def merge_states(states: Sequence[AtlasState]) -> AtlasState:
    """Merge one or more states, in any order.

    Raises
    ------
    CheckpointError
        If there is none, or two do not go together.
    """
    if not states:
        raise CheckpointError("There is nothing to merge.")
    merged = states[0]
    for state in states[1:]:
        merged = merged.merge(state)
    return merged


def _check_alike(one: AtlasState, other: AtlasState) -> None:
    if one.model != other.model:
        raise CheckpointError(
            f"These parts were made with different models or SAEs ({one.model} and {other.model}), "
            "and cannot be merged."
        )
    for name in ("layers", "labels_from", "class_names", "settings"):
        mine, others = (json.dumps(getattr(state, name)) for state in (one, other))
        if mine != others:
            raise CheckpointError(
                f"These parts were made with different {name.replace('_', ' ')} ({mine} and "
                f"{others}), and cannot be merged."
            )
    both = one.images.keys() & other.images.keys()
    if both:
        key = one.images[min(both)].key
        raise CheckpointError(
            f"Both hold the image {key!r}. An image counts once: merge parts of a data set that do "
            "not overlap, and whose images have different names."
        )


def _layer(tensors: Mapping[str, Tensor], layer: int) -> LayerState:
    def part(name: str) -> dict[str, Tensor]:
        start = f"{layer:02}.{name}."
        return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}

    return LayerState(
        LayerSums.from_tensors(part("sums")),
        Pool.from_tensors("top", part("top")),
        Pool.from_tensors("sampled", part("sampled")),
    )


def _image_tensors(images: Mapping[int, ImageRecord]) -> dict[str, Tensor]:
    """Tensors of the image table; thumbnails are put end to end."""
    numbers, embeddings, lengths, thumbnails = [], [], [], bytearray()
    for image, record in images.items():
        numbers.append([image, record.label, record.group, record.width, record.height])
        embeddings.append(record.embedding)
        thumbnails += record.thumbnail or b""
        lengths.append(len(record.thumbnail or b""))
    width = len(embeddings[0]) if embeddings else 0
    joined = torch.cat(embeddings) if embeddings else torch.zeros(0, dtype=torch.float16)
    empty = torch.zeros(0, dtype=torch.uint8)
    return {
        "images.numbers": torch.tensor(numbers, dtype=torch.int64).reshape(-1, 5),
        "images.embeddings": joined.reshape(len(numbers), width),
        "images.thumbnail_ends": torch.tensor([0, *lengths]).cumsum(0),
        "images.thumbnails": torch.frombuffer(thumbnails, dtype=torch.uint8)
        if thumbnails
        else empty,
    }


def _read_images(tensors: Mapping[str, Tensor], texts: Sequence[Sequence[str]]) -> ImageTable:
    numbers = tensors["images.numbers"].tolist()
    ends = tensors["images.thumbnail_ends"].tolist()
    thumbnails = tensors["images.thumbnails"].numpy()
    found = ImageTable()
    for place, ((key, path, credit), (image, label, group, width, height)) in enumerate(
        zip(texts, numbers, strict=True)
    ):
        thumbnail = thumbnails[ends[place] : ends[place + 1]].tobytes()
        found[image] = ImageRecord(
            key=key,
            path=path,
            label=label,
            group=group,
            width=width,
            height=height,
            embedding=tensors["images.embeddings"][place],
            thumbnail=thumbnail or None,
            credit=credit,
        )
    return found
