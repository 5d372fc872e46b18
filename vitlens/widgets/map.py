"""All features of all layers as points in a cell, to colour, filter and choose with a lasso."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import traitlets as t
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vitlens.errors import FeatureError
from vitlens.lens import Lens
from vitlens.saes.base import FeatureId
from vitlens.widgets.base import Choice, NodeList, Widget, to_bytes
from vitlens.widgets.columns import MAP_COLUMNS, chance_of, columns_of, kinds_of, scores_of
from vitlens.widgets.scene import Scene, ScenePart

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vitlens.atlas.atlas import Atlas


class MapPart(ScenePart):
    """The traits of a map of all features; see `FeatureMap`."""

    map = t.Dict().tag(sync=True)
    map_points = t.Bytes(b"").tag(sync=True)
    map_columns = t.Bytes(b"").tag(sync=True)
    map_kinds = t.Bytes(b"").tag(sync=True)
    colour_by = Choice(("layer", "kind", *MAP_COLUMNS), "layer").tag(sync=True)
    map_layers = t.Tuple().tag(sync=True)
    chosen = NodeList()

    _mapped: Atlas | None = None

    def show_scene(self, scene: Scene) -> None:
        """Show another scene; the map is the same for all scenes of a lens."""
        super().show_scene(scene)
        if self.atlas is not None and self.atlas.layout is not None:
            self._show_map(self.atlas, self.atlas.layout)

    def show_atlas(self, lens: Lens) -> None:
        """Show the map of the lens's atlas.

        Raises
        ------
        FeatureError
            When the lens has no atlas, or the atlas no layout.
        """
        super().show_atlas(lens)
        assert self.atlas is not None  # the call above raises without one
        if self.atlas.layout is None:
            raise FeatureError("This atlas has no map: build it with layout=True.")
        self._show_map(self.atlas, self.atlas.layout)

    def map_figure(self) -> Figure:
        """Return the map as a matplotlib figure."""
        from vitlens.plots import map_figure

        atlas = self._mapped
        if atlas is None or atlas.layout is None:
            raise FeatureError("There is no map yet.")
        layers = self.map_layers or self.layers
        sizes = dict(zip(self.layers, atlas.sizes, strict=True))
        nodes = [(layer, feature) for layer in layers for feature in range(sizes[layer])]
        parts = dict(zip(self.layers, atlas.layout.split(list(atlas.sizes)), strict=True))
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
        layers = self.layers
        scores, unreadable = zip(*(scores_of(atlas, layer) for layer in layers), strict=True)
        columns = [columns_of(one, MAP_COLUMNS) for one in scores]
        kinds = [kind for one in scores for kind in kinds_of(one)]
        names = sorted(set(kinds) - {"none"})
        codes = {name: code for code, name in enumerate(("none", *names))}
        with self.hold_sync():
            self.map_points = to_bytes(layout)
            self.map_columns = to_bytes(
                np.stack([np.concatenate([c[name] for c in columns]) for name in MAP_COLUMNS]),
                "float16",
            )
            self.map_kinds = to_bytes([codes[kind] for kind in kinds], "uint8")
            self.map = {
                "layers": list(layers),
                "sizes": list(atlas.sizes),
                "columns": list(MAP_COLUMNS),
                "chance": [chance_of(one, MAP_COLUMNS) for one in scores],
                "kinds": list(codes),
                "behind": {kind: score for kind, (score, *_) in KINDS.items()},
                "n_images": atlas.n_images,
                "unreadable": [why for why in unreadable if why],
            }

    @t.validate("map_layers")
    def _layers_exist(self, proposal: Any) -> tuple[int, ...]:
        known = None if self._lens is None else self._lens.layers
        for layer in proposal.value:
            whole = isinstance(layer, int) and not isinstance(layer, bool)
            if not whole or layer < 0 or (known is not None and layer not in known):
                choices = "" if known is None else f" among {', '.join(map(str, known))}"
                raise t.TraitError(
                    f"{type(self).__name__}.map_layers must be a list of layers{choices}; there is "
                    f"no {layer!r}."
                )
        return tuple(sorted(set(proposal.value)))

    @t.validate("chosen")
    def _chosen_exist(self, proposal: Any) -> tuple[FeatureId, ...]:
        nodes: tuple[FeatureId, ...] = proposal.value
        for node in nodes:
            if node[1] < 0:
                raise t.TraitError(f"{type(self).__name__}.chosen: {node} is not a feature.")
            if self._lens is not None:
                try:
                    self._lens.replacement.check_node(*node)
                except FeatureError as error:
                    raise t.TraitError(f"{type(self).__name__}.chosen: {error}") from error
        return nodes


class FeatureMap(MapPart, Widget, bundle="map"):
    """All features of all layers as points; features with similar decoder rows are close.

    The map is the atlas's `layout` (t-SNE of the decoder rows): close points are similar, but
    distances between clusters mean little, and the density of a cluster means nothing.

    Parameters
    ----------
    lens
        A lens with an atlas.
    selected
        The first selected feature, (layer, feature).
    labels
        Names of nodes; they take precedence over those of the atlas, and are not saved.
    colour_by, map_layers, chosen
        First values of the attributes.
    author
        Author of the names that are saved; by default the name of the user account.

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
        The layers that are shown; () shows all.
    labels
        Names that people gave to features, {(layer, feature): text}; saved to the atlas.

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
    >>> features.chosen  # the features inside the lasso
    """

    def __init__(
        self,
        lens: Lens,
        *,
        selected: FeatureId | None = None,
        labels: Mapping[FeatureId, str] | None = None,
        colour_by: str = "layer",
        map_layers: Iterable[int] = (),
        chosen: Iterable[FeatureId] = (),
        author: str | None = None,
    ):
        super().__init__(
            {
                "labels": dict(labels or {}),
                "colour_by": colour_by,
                "author": author,
            }
        )
        self.show_atlas(lens)
        # These are checked against the lens.
        self.selected = selected
        self.map_layers, self.chosen = tuple(map_layers), tuple(chosen)

    def figure(self) -> Figure:
        """Return the map as a matplotlib figure."""
        return self.map_figure()


def _values(
    atlas: Atlas, name: str, layers: Sequence[int]
) -> list[str] | Float[NDArray[np.float32], " N"]:
    """Return the values by which the points of these layers are coloured."""
    if name == "layer":
        counts = [len(scores_of(atlas, layer)[0]) for layer in layers]
        return np.repeat(np.array(layers, np.float32), counts)
    scores = [scores_of(atlas, layer)[0] for layer in layers]
    if name == "kind":
        return [kind for one in scores for kind in kinds_of(one)]
    return np.concatenate([columns_of(one, [name])[name] for one in scores])
