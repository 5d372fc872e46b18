"""All features of all layers as points in a cell: coloured, filtered, chosen with a lasso."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import traitlets as t
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vitlens.attribution.logit_lens import check_node
from vitlens.errors import FeatureError
from vitlens.lens import Lens
from vitlens.widgets.atlas_table import (
    MAP_COLUMNS,
    chance_of,
    columns_of,
    kinds_of,
    scores_of,
)
from vitlens.widgets.base import Widget
from vitlens.widgets.buffers import to_bytes
from vitlens.widgets.part import ScenePart
from vitlens.widgets.scene import Scene
from vitlens.widgets.traits import FeatureId, NodeList

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vitlens.atlas.atlas import Atlas


class MapPart(ScenePart):
    """The traits behind a map of all features; see `FeatureMap`."""

    map = t.Dict().tag(sync=True)
    map_points = t.Bytes(b"").tag(sync=True)
    map_columns = t.Bytes(b"").tag(sync=True)
    map_kinds = t.Bytes(b"").tag(sync=True)
    colour_by = t.Enum(("layer", "kind", *MAP_COLUMNS), "layer").tag(sync=True)
    map_layers = t.Tuple().tag(sync=True)
    chosen = NodeList()

    _mapped: Atlas | None = None

    def look_at(self, scene: Scene) -> None:
        """Show another scene; the map is the same for all scenes of a lens."""
        super().look_at(scene)
        if self.atlas is not None and self.atlas.layout is not None:
            self._show_map(self.atlas, self.atlas.layout)

    def look_without_image(self, lens: Lens) -> None:
        """Show the map of the lens's atlas.

        Raises
        ------
        FeatureError
            When the lens has no atlas, or the atlas no layout.
        """
        super().look_without_image(lens)
        assert self.atlas is not None  # or it had raised
        if self.atlas.layout is None:
            raise FeatureError("This atlas has no map: build it with layout=True.")
        self._show_map(self.atlas, self.atlas.layout)

    def map_figure(self) -> Figure:
        """Return the map as a matplotlib figure."""
        from vitlens.plots import map_figure

        atlas = self._mapped
        if atlas is None or atlas.layout is None:
            raise FeatureError("There is no map to draw.")
        layers = self.map_layers or tuple(range(len(atlas.sizes)))
        nodes = [(layer, feature) for layer in layers for feature in range(atlas.sizes[layer])]
        parts = atlas.layout.split(list(atlas.sizes))
        chosen = set(self.chosen)
        return map_figure(
            torch.cat([parts[layer] for layer in layers]).numpy(),
            _values(atlas, self.colour_by, layers),
            name=self.colour_by,
            chosen=np.array([node in chosen for node in nodes]),
            logarithmic=self.colour_by == "frequency",
            title=f"{len(nodes):,} features, by {self.colour_by}",
        )

    def _show_map(self, atlas: Atlas, layout: Float[Tensor, "N 2"]) -> None:
        if self._mapped is atlas:
            return
        from vitlens.atlas.scores import KINDS

        self._mapped = atlas
        layers = range(len(atlas.sizes))
        scores, unreadable = zip(*(scores_of(atlas, layer) for layer in layers), strict=True)
        columns = [columns_of(one, MAP_COLUMNS) for one in scores]
        kinds = [kind for one in scores for kind in kinds_of(one)]
        names = sorted(set(kinds) - {"none"})
        places = {name: place for place, name in enumerate(("none", *names))}
        with self.hold_sync():
            self.map_points = to_bytes(layout)
            self.map_columns = to_bytes(
                np.stack([np.concatenate([c[name] for c in columns]) for name in MAP_COLUMNS]),
                "float16",
            )
            self.map_kinds = to_bytes([places[kind] for kind in kinds], "uint8")
            self.map = {
                "sizes": list(atlas.sizes),
                "columns": list(MAP_COLUMNS),
                "chance": [chance_of(one, MAP_COLUMNS) for one in scores],
                "kinds": list(places),
                "behind": {kind: score for kind, (score, *_) in KINDS.items()},
                "n_images": atlas.n_images,
                "unreadable": [why for why in unreadable if why],
            }

    @t.validate("map_layers")
    def _layers_exist(self, proposal: Any) -> tuple[int, ...]:
        n = None if self._owner is None else len(self._owner.saes)
        for layer in proposal.value:
            whole = isinstance(layer, int) and not isinstance(layer, bool)
            if not whole or layer < 0 or (n is not None and layer >= n):
                raise t.TraitError(
                    f"{type(self).__name__}.map_layers are numbers of layers"
                    + ("" if n is None else f", 0 to {n - 1}")
                    + f"; there is no {layer!r}."
                )
        return tuple(sorted(set(proposal.value)))

    @t.validate("chosen")
    def _chosen_exist(self, proposal: Any) -> tuple[FeatureId, ...]:
        nodes: tuple[FeatureId, ...] = proposal.value
        for node in nodes:
            if node[1] < 0:
                raise t.TraitError(f"{type(self).__name__}.chosen: {node} is no feature.")
            if self._owner is not None:
                try:
                    check_node(self._owner.saes, *node)
                except FeatureError as error:
                    raise t.TraitError(f"{type(self).__name__}.chosen: {error}") from error
        return nodes


class FeatureMap(MapPart, Widget, bundle="map"):
    """All features of all layers as points; those with similar decoder rows lie together.

    The map is the atlas's `layout` (t-SNE of the decoder rows): near points are similar, but
    distances between groups mean little, and how dense a group is, nothing.

    Parameters
    ----------
    lens
        A lens with an atlas.
    selected
        The feature to begin with, (layer, feature).
    traits
        First values of other traits.

    Attributes
    ----------
    selected, hovered
        One feature, (layer, feature), or None.
    chosen
        The features inside the lasso, ((layer, feature), ...); set it to show others.
    colour_by
        "layer", "kind" (the score that is most above its chance level), "frequency", or a score:
        "trust", "position", "orientation", "curvature", "direction", "hue", "texture",
        "selectivity", "class_information", "monosemanticity".
    map_layers
        The layers shown; () shows all.
    labels
        Names people gave to features, {(layer, feature): text}; written to the atlas.

    Raises
    ------
    FeatureError
        When the lens has no atlas, or the atlas no layout.
    traitlets.TraitError
        When there is no such layer or feature.

    Examples
    --------
    >>> features = FeatureMap(lens, colour_by="orientation")
    >>> link((features, "selected"), (card, "selected"))
    >>> features.chosen  # what the lasso holds
    """

    def __init__(self, lens: Lens, *, selected: FeatureId | None = None, **traits: Any):
        super().__init__(**traits)
        self.look_without_image(lens)
        self.selected = selected
        # Once more: now they are held against the lens.
        self.map_layers, self.chosen = self.map_layers, self.chosen

    def figure(self) -> Figure:
        """Return the map as a matplotlib figure."""
        return self.map_figure()


def _values(
    atlas: Atlas, name: str, layers: Sequence[int]
) -> list[str] | Float[NDArray[np.float32], " N"]:
    """What the points of some layers are coloured by."""
    if name == "layer":
        return np.repeat(np.array(layers, np.float32), [atlas.sizes[layer] for layer in layers])
    scores = [scores_of(atlas, layer)[0] for layer in layers]
    if name == "kind":
        return [kind for one in scores for kind in kinds_of(one)]
    return np.concatenate([columns_of(one, [name])[name] for one in scores])
