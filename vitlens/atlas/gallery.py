"""Images of a feature: which ones an atlas shows, and the feature's activation on them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from vitlens.atlas.exact import bin_edges
from vitlens.atlas.image_store import Thumbnails, decode
from vitlens.atlas.store import FeatureImages, Header, LayerTable
from vitlens.errors import ImageError
from vitlens.images import ImageLike, Transform, open_image

if TYPE_CHECKING:
    from vitlens.lens import Lens

_KEPT_TRACES = 32


@dataclass(frozen=True)
class FeatureImage:
    """One image of a feature.

    Attributes
    ----------
    key
        Name of the image in its source.
    path
        Path of the original, "" if it was not a file.
    label
        Name of its class, from `Atlas.labels_from`.
    credit
        Its author and licence, "" if unknown.
    peak
        The feature's largest activation over all tokens of the image.
    quantile
        Share of the images in which the feature is active whose peak is lower, 0 to 1.
    token
        Token of the peak.
    """

    key: str
    path: str
    label: str
    credit: str
    peak: float
    quantile: float
    token: int
    _encoded: Callable[[], bytes | None] = field(repr=False, compare=False)
    _image: Callable[[], Image.Image | None] = field(repr=False, compare=False)
    _heatmap: Callable[[], Tensor | None] = field(repr=False, compare=False)
    _original: Callable[[], Path | None] = field(repr=False, compare=False)

    @property
    def encoded(self) -> bytes | None:
        """The stored thumbnail as WebP bytes, None if none is stored."""
        return self._encoded()

    @property
    def image(self) -> Image.Image | None:
        """The image as the model sees it, stored or made from the original; None without both."""
        return self._image()

    @property
    def heatmap(self) -> Float[Tensor, " T"] | None:
        """Activation per token, [T]; None if it is neither stored nor can be computed.

        Stored with 8 bits below the peak, or computed by the lens from the image.
        """
        return self._heatmap()

    @property
    def original(self) -> Path | None:
        """The file of the original, None if it is no longer there."""
        return self._original()


class Gallery:
    """The images of an atlas: their thumbnails, originals and activations.

    Parameters
    ----------
    header
        Header with the image table.
    thumbnails
        Stored thumbnails by row of the image table.
    folder
        Folder to search, by key, for originals that are no longer at their path.
    """

    def __init__(self, header: Header, thumbnails: Thumbnails, folder: Path | None = None):
        self.header, self.thumbnails, self.folder = header, thumbnails, folder
        self.lens: Lens | None = None
        self._features: OrderedDict[int, tuple[Tensor, ...]] = OrderedDict()
        self._tracing = Lock()  # widgets use it from threads of their own

    def entry(
        self, table: LayerTable, images: FeatureImages, layer: int, feature: int, rank: int
    ) -> FeatureImage:
        """One image of a feature: entry `rank` of its images."""
        row = int(images.row[feature, rank])
        image = self.header.images[row]
        peak = float(images.peak[feature, rank])
        heatmap = None if images.heatmap is None else images.heatmap[feature, rank] * (peak / 255)
        return FeatureImage(
            key=image.key,
            path=image.path,
            label=self.header.class_names[image.label] if image.label >= 0 else "",
            credit=image.credit,
            peak=peak,
            quantile=quantile(table.peak_histogram[feature], peak),
            token=int(images.token[feature, rank]),
            _encoded=partial(self.thumbnails.get, row),
            _image=partial(self.image, row),
            _heatmap=partial(self._heatmap, row, layer, feature, heatmap),
            _original=partial(self.original, row),
        )

    def image(self, row: int) -> Image.Image | None:
        """The thumbnail, else the original as the model sees it, else None."""
        encoded = self.thumbnails.get(row)
        if encoded is not None:
            return decode(encoded)
        original = self.original(row)
        if original is None:
            return None
        try:
            image = open_image(original)
        except ImageError:  # the file has been damaged since the atlas was built
            return None
        transform = None if self.lens is None else self.lens.transform
        return transform.crop(image) if isinstance(transform, Transform) else image

    def original(self, row: int) -> Path | None:
        """The file, at its path or in `folder`; None if it is in neither."""
        image = self.header.images[row]
        paths = [Path(image.path)] if image.path else []
        if self.folder is not None:
            paths.append(self.folder / image.key)
        return next((path for path in paths if path.is_file()), None)

    def _heatmap(
        self, row: int, layer: int, feature: int, stored: Float[Tensor, " T"] | None
    ) -> Float[Tensor, " T"] | None:
        if stored is not None:
            return stored
        with self._tracing:
            features = self._traced(row)
        if features is None:
            return None
        features_of_layer = features[self.header.position(layer)]
        return features_of_layer.index_select(1, torch.tensor([feature])).to_dense()[:, 0]

    def _traced(self, row: int) -> tuple[Tensor, ...] | None:
        """Activations of all layers on an image, sparse; the most recent are kept."""
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

    def _input(self, row: int, lens: Lens) -> ImageLike | None:
        """The image the model saw, or the nearest available."""
        encoded, original = self.thumbnails.get(row), self.original(row)
        stored = None if encoded is None else decode(encoded)
        height, width = lens.vision.image_size
        if stored is not None and (original is None or stored.size == (width, height)):
            # It was cropped before it was stored; do not crop it again.
            if isinstance(lens.transform, Transform):
                return replace(lens.transform, crop_pct=1.0)(stored)
            return stored
        return original


def quantile(peaks: Int[Tensor, " bins"], peak: float) -> float:
    """Share of the images whose peak is lower, from a histogram of peaks.

    Within a bin images are assumed to be uniform on the logarithmic scale.
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
    """Indices of about `n` evenly spaced quantiles of the peaks above 0, the highest first."""
    order = [int(i) for i in peaks.argsort(descending=True, stable=True) if peaks[i] > 0]
    n = min(n, len(order))
    return [order[int((step + 0.5) * len(order) / n)] for step in range(n)]
