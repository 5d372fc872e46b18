"""What an atlas holds and can be asked for without working anything out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from vitlens.atlas.contents import Contents
from vitlens.atlas.identity import check_lens
from vitlens.atlas.names import Names
from vitlens.atlas.shown import Gallery
from vitlens.atlas.state import AtlasState
from vitlens.atlas.table import LayerTable
from vitlens.errors import CheckpointError, FeatureError

if TYPE_CHECKING:
    from vitlens.lens_base import LensBase


class AtlasBase:
    """The facts of an atlas, its lens, and its layers; see `Atlas`."""

    def __init__(self, contents: Contents, *, path: Path | None, names: Names):
        self._contents = contents
        self._header = contents.header
        self._gallery = Gallery(contents.header, contents.pictures)
        self._tables: dict[int, LayerTable] = {}
        self.path = path
        self.names = names

    @property
    def lens(self) -> LensBase | None:
        """The lens; setting it checks that the atlas is of its model and SAEs."""
        return self._gallery.lens

    @lens.setter
    def lens(self, lens: LensBase | None) -> None:
        if lens is not None:
            check_lens(self._header, lens, str(self.path or "This atlas"))
        self._gallery.lens = lens

    @property
    def images_folder(self) -> Path | None:
        """Where originals are looked for that are not at their old place."""
        return self._gallery.folder

    @images_folder.setter
    def images_folder(self, folder: Path | None) -> None:
        self._gallery.folder = folder

    @property
    def model(self) -> str:
        """Fingerprint of the lens it was built with."""
        return self._header.model

    @property
    def sizes(self) -> tuple[int, ...]:
        """Features of each layer."""
        return self._header.sizes

    @property
    def n_layers(self) -> int:
        """Layers with SAEs, L."""
        return len(self._header.sizes)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self._header.grid

    @property
    def prefix_names(self) -> tuple[str, ...]:
        """Names of the tokens before the patches."""
        return self._header.prefix_names

    @property
    def n_images(self) -> int:
        """Images it was made of."""
        return self._header.n_images

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self._header.class_names

    @property
    def labels_from(self) -> str:
        """Whether classes are from the "data", or "predictions" of the model."""
        return self._header.labels_from

    @property
    def settings(self) -> Mapping[str, Any]:
        """How the pass was made."""
        return self._header.settings

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """Images that could not be read, and why."""
        return self._header.skipped

    @property
    def health(self) -> tuple[float | None, ...]:
        """By layer, the share of variance that the SAE explains; None where it is not known."""
        return self._header.health

    @property
    def state(self) -> AtlasState:
        """The exact sums; raises `CheckpointError` when it was saved without them."""
        state = self._contents.state()
        if state is None:
            raise CheckpointError(
                f"{self.path} was saved without its sums (mergeable=False): it cannot be merged, "
                "and has no logit lens but the stored one."
            )
        return state

    @property
    def layout(self) -> Float[Tensor, "N 2"] | None:
        """Places of all features in the plane, layer by layer; None if they were not computed."""
        return self._contents.layout()

    def __repr__(self) -> str:
        return (
            f"Atlas({sum(self.sizes)} features of {self.n_layers} layers on {self.n_images} "
            f"images, classes from {self.labels_from})"
        )

    def _table(self, layer: int) -> LayerTable:
        if layer not in self._tables:
            self._tables[layer] = self._contents.table(layer)
        return self._tables[layer]

    def _checked_table(self, layer: int, feature: int) -> LayerTable:
        if not 0 <= layer < self.n_layers:
            raise FeatureError(f"The atlas has layers 0 to {self.n_layers - 1}, not {layer}.")
        if not 0 <= feature < self.sizes[layer]:
            raise FeatureError(
                f"Layer {layer} has features 0 to {self.sizes[layer] - 1}, not {feature}."
            )
        return self._table(layer)

    def _lens_for(self, what: str) -> LensBase:
        if self.lens is None:
            raise CheckpointError(
                f"{what.capitalize()} need the lens: Atlas.load(path, lens), or lens.atlas = atlas."
            )
        return self.lens
