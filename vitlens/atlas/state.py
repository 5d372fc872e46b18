"""All that a pass over images has gathered, so far: merged, saved and loaded without a loss."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from vitlens.atlas.image_table import ImageRecord, ImageTable
from vitlens.atlas.pools import EMPTY, Pool
from vitlens.atlas.sums import LayerSums
from vitlens.errors import CheckpointError
from vitlens.io import read_result, write_tensors

_FORMAT = "vitlens.atlas.state"
_VERSION = 2


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
        """Of the images of both."""
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
    """All layers, the images they refer to, and what was asked for.

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
        One a SAE.
    n_images
        Images counted.
    per_class
        Images of each class, int64 [C].
    per_bucket
        The same images by bucket (`chance.buckets`), int64 [B].
    final_stream
        The stream after the last block, summed over images, whole numbers of `bins.UNIT`,
        int64 [T, D].
    images
        By id (`bins.hash_text` of the key), those that a pool holds.
    skipped
        Keys of the images that could not be read, and why, in the order of the keys.
    """

    model: str
    n_prefix: int
    grid: tuple[int, int]
    class_names: tuple[str, ...]
    labels_from: str
    settings: dict[str, Any]
    layers: tuple[LayerState, ...]
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
        """Features of each layer."""
        return tuple(layer.sums.n_features for layer in self.layers)

    @property
    def n_tokens(self) -> int:
        """Prefix tokens and patches, T."""
        return len(self.final_stream)

    def to(self, device: torch.device | str) -> AtlasState:
        """Move sums and pools to a device."""
        return replace(
            self,
            layers=tuple(layer.to(device) for layer in self.layers),
            per_class=self.per_class.to(device),
            per_bucket=self.per_bucket.to(device),
            final_stream=self.final_stream.to(device),
        )

    def merge(self, other: AtlasState) -> AtlasState:
        """The state of all images of both; neither is changed.

        Raises
        ------
        CheckpointError
            If they are of other models or settings, or hold the same images.
        """
        _check_alike(self, other)
        merged = replace(
            self,
            layers=tuple(
                mine.merge(others) for mine, others in zip(self.layers, other.layers, strict=True)
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
        """Forget images that no pool holds any more."""
        self.images.keep(self.used_ids())

    def used_ids(self) -> set[int]:
        """Ids of the images in any pool."""
        pools = [pool for layer in self.layers for pool in (layer.top, layer.sampled)]
        used = torch.cat([pool.id.unique() for pool in pools]).unique() if pools else torch.empty(0)
        return set(used.tolist()) - {EMPTY}

    def save(self, path: str | Path, *, progress: Mapping[str, Any] | None = None) -> None:
        """Write one safetensors file, atomically.

        Parameters
        ----------
        path
            The file.
        progress
            Where an unfinished pass is to go on; see `load_with_progress`.

        Raises
        ------
        VitlensError
            If the file cannot be written.
        """
        self.drop_unused_images()
        write_tensors(path, self._tensors(), self._metadata() | {"progress": progress})

    @classmethod
    def load(cls, path: str | Path) -> AtlasState:
        """Read what `save` wrote.

        Raises
        ------
        CheckpointError
            If the file is missing, damaged, or holds something else.
        """
        return cls.load_with_progress(path)[0]

    @classmethod
    def load_with_progress(cls, path: str | Path) -> tuple[AtlasState, dict[str, Any] | None]:
        """Read what `save` wrote, and where the pass is to go on; None when it was finished."""
        tensors, about = read_result(
            path, what="the state of an atlas", format=_FORMAT, version=_VERSION
        )
        try:
            state = cls(
                model=about["model"],
                n_prefix=about["n_prefix"],
                grid=(about["grid"][0], about["grid"][1]),
                class_names=tuple(about["class_names"]),
                labels_from=about["labels_from"],
                settings=about["settings"],
                layers=tuple(_layer(tensors, layer) for layer in range(about["n_layers"])),
                n_images=about["n_images"],
                per_class=tensors["per_class"],
                per_bucket=tensors["per_bucket"],
                final_stream=tensors["final_stream"],
                images=_read_images(tensors, about["images"]),
                skipped=tuple((key, why) for key, why in about["skipped"]),
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is not a complete state: {error!r}.") from error
        return state, about["progress"]

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {
            "per_class": self.per_class,
            "per_bucket": self.per_bucket,
            "final_stream": self.final_stream,
        }
        for layer, state in enumerate(self.layers):
            for name in ("sums", "top", "sampled"):
                part = getattr(state, name).tensors()
                tensors |= {f"{layer:02}.{name}.{key}": value for key, value in part.items()}
        return tensors | _image_tensors(self.images)

    def _metadata(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "model": self.model,
            "n_prefix": self.n_prefix,
            "grid": list(self.grid),
            "class_names": list(self.class_names),
            "labels_from": self.labels_from,
            "settings": self.settings,
            "n_layers": len(self.layers),
            "n_images": self.n_images,
            "images": [[r.key, r.path, r.credit] for r in self.images.values()],
            "skipped": [list(entry) for entry in self.skipped],
        }


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
            f"These are of two models or sets of SAEs ({one.model} and {other.model}), and cannot "
            "be merged."
        )
    for name in ("labels_from", "class_names", "settings"):
        mine, others = (json.dumps(getattr(state, name)) for state in (one, other))
        if mine != others:
            raise CheckpointError(
                f"These were made with different {name.replace('_', ' ')} ({mine} and {others}), "
                "and cannot be merged."
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
    """Numbers of the image table; pictures are put end to end."""
    numbers, embeddings, lengths, pictures = [], [], [], bytearray()
    for image, record in images.items():
        numbers.append([image, record.label, record.group, record.width, record.height])
        embeddings.append(record.embedding)
        pictures += record.picture or b""
        lengths.append(len(record.picture or b""))
    width = len(embeddings[0]) if embeddings else 0
    joined = torch.cat(embeddings) if embeddings else torch.zeros(0, dtype=torch.float16)
    empty = torch.zeros(0, dtype=torch.uint8)
    return {
        "images.numbers": torch.tensor(numbers, dtype=torch.int64).reshape(-1, 5),
        "images.embeddings": joined.reshape(len(numbers), width),
        "images.picture_ends": torch.tensor([0, *lengths]).cumsum(0),
        "images.pictures": torch.frombuffer(pictures, dtype=torch.uint8) if pictures else empty,
    }


def _read_images(tensors: Mapping[str, Tensor], texts: Sequence[Sequence[str]]) -> ImageTable:
    numbers = tensors["images.numbers"].tolist()
    ends = tensors["images.picture_ends"].tolist()
    pictures = tensors["images.pictures"].numpy()
    found = ImageTable()
    for place, ((key, path, credit), (image, label, group, width, height)) in enumerate(
        zip(texts, numbers, strict=True)
    ):
        picture = pictures[ends[place] : ends[place + 1]].tobytes()
        found[image] = ImageRecord(
            key=key,
            path=path,
            label=label,
            group=group,
            width=width,
            height=height,
            embedding=tensors["images.embeddings"][place],
            picture=picture or None,
            credit=credit,
        )
    return found
