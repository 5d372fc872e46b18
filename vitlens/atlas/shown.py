"""Pictures of a feature: which to show, and their heat."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from vitlens.atlas.bins import bin_edges
from vitlens.atlas.pictures import Pictures, decode
from vitlens.atlas.profile import Shown
from vitlens.atlas.store import Header
from vitlens.atlas.table import LayerTable, ShownTable
from vitlens.errors import ImageError
from vitlens.images import ImageLike, Transform, open_image

if TYPE_CHECKING:
    from vitlens.lens_base import LensBase

_KEPT_TRACES = 32


class Gallery:
    """The images of an atlas: their pictures, their originals, and activations on them.

    Parameters
    ----------
    header
        With the image table.
    pictures
        Those that are stored.
    folder
        Where originals are looked for that are not at their old place, by the key.
    """

    def __init__(self, header: Header, pictures: Pictures, folder: Path | None = None):
        self.header, self.pictures, self.folder = header, pictures, folder
        self.lens: LensBase | None = None
        self._features: OrderedDict[int, tuple[Tensor, ...]] = OrderedDict()
        self._tracing = Lock()  # a widget asks from its own thread

    def show(
        self, table: LayerTable, shown: ShownTable, layer: int, feature: int, place: int
    ) -> Shown:
        """One entry of a feature's pictures."""
        row = int(shown.row[feature, place])
        image = self.header.images[row]
        peak = float(shown.peak[feature, place])
        heat = None if shown.heat is None else shown.heat[feature, place] * (peak / 255)
        return Shown(
            key=image.key,
            path=image.path,
            label=self.header.class_names[image.label] if image.label >= 0 else "",
            credit=image.credit,
            peak=peak,
            quantile=quantile(table.peak_histogram[feature], peak),
            token=int(shown.token[feature, place]),
            _encoded=partial(self.pictures.get, row),
            _picture=partial(self.picture, row),
            _heat=partial(self._heat, row, layer, feature, heat),
            _original=partial(self.original, row),
        )

    def picture(self, row: int) -> Image.Image | None:
        """What is stored, else the original as the model sees it, else None."""
        encoded = self.pictures.get(row)
        if encoded is not None:
            return decode(encoded)
        original = self.original(row)
        if original is None:
            return None
        try:
            picture = open_image(original)
        except ImageError:  # the file was there when the atlas was built, and is damaged now
            return None
        transform = None if self.lens is None else self.lens.transform
        return transform.crop(picture) if isinstance(transform, Transform) else picture

    def original(self, row: int) -> Path | None:
        """The file, at its old place or in `folder`, None if it is in neither."""
        image = self.header.images[row]
        places = [Path(image.path)] if image.path else []
        if self.folder is not None:
            places.append(self.folder / image.key)
        return next((place for place in places if place.is_file()), None)

    def _heat(
        self, row: int, layer: int, feature: int, stored: Float[Tensor, " T"] | None
    ) -> Float[Tensor, " T"] | None:
        if stored is not None:
            return stored
        with self._tracing:
            features = self._traced(row)
        if features is None:
            return None
        return features[layer].index_select(1, torch.tensor([feature])).to_dense()[:, 0]

    def _traced(self, row: int) -> tuple[Tensor, ...] | None:
        """Activations of all layers on an image, sparse; the latest are kept."""
        if row in self._features:
            self._features.move_to_end(row)
            return self._features[row]
        if self.lens is None:
            return None
        image = self._input(row, self.lens)
        if image is None:
            return None
        trace = self.lens.trace(image)
        self._features[row] = tuple(z.float().cpu().to_sparse() for z in trace.features)
        if len(self._features) > _KEPT_TRACES:
            self._features.popitem(last=False)
        return self._features[row]

    def _input(self, row: int, lens: LensBase) -> ImageLike | None:
        """What the model saw, or the nearest to it that is here."""
        encoded, original = self.pictures.get(row), self.original(row)
        stored = None if encoded is None else decode(encoded)
        height, width = lens.vision.image_size
        if stored is not None and (original is None or stored.size == (width, height)):
            # It was cropped before it was stored, and must not be again.
            if isinstance(lens.transform, Transform):
                return replace(lens.transform, crop_pct=1.0)(stored)
            return stored
        return original


def quantile(peaks: Int[Tensor, " bins"], peak: float) -> float:
    """Share of the images whose peak is lower, read off a histogram of peaks.

    Within a bin the images are taken to lie evenly on its logarithmic scale.
    """
    total = int(peaks.sum())
    if not total or peak <= 0:
        return 0.0
    edges = bin_edges()
    index = int(torch.bucketize(torch.tensor(peak), edges[1:-1], right=True))
    low, high = edges[index].log2(), edges[index + 1].log2()
    within = float(((torch.tensor(peak).log2() - low) / (high - low)).clamp(0, 1))
    return (float(peaks[:index].sum()) + within * float(peaks[index])) / total


def spread(peaks: Float[Tensor, " n"], n: int) -> list[int]:
    """Places of about `n` evenly spread quantiles of the peaks above 0, the highest first."""
    order = [int(i) for i in peaks.argsort(descending=True, stable=True) if peaks[i] > 0]
    n = min(n, len(order))
    return [order[int((step + 0.5) * len(order) / n)] for step in range(n)]
