"""All features of a layer in a cell: sorted, searched, chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import traitlets as t
from jaxtyping import Float, Int
from numpy.typing import NDArray

from vitlens.attribution.targets import TargetLike
from vitlens.images import ImageLike
from vitlens.lens import Lens
from vitlens.widgets.atlas_table import (
    ATLAS_COLUMNS,
    chance_of,
    columns_of,
    scores_of,
    texts_of,
)
from vitlens.widgets.base import Widget
from vitlens.widgets.buffers import from_bytes, to_bytes
from vitlens.widgets.part import ScenePart, scene_of
from vitlens.widgets.scene import Node, Scene

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Columns of a list on one image; those of the atlas follow.
COLUMNS = ("importance", "max_activation", "mean_activation", "active_tokens")

_ROWS_DRAWN = 24
# Short heads, as the view has them; the others are the columns' names.
_HEADS = {"class_information": "class", "monosemanticity": "one meaning"}


class BrowserPart(ScenePart):
    """The traits behind a list of features; see `FeatureBrowser`."""

    layer = t.Int(0, min=0).tag(sync=True)
    browser = t.Dict().tag(sync=True)
    browser_table = t.Bytes(b"").tag(sync=True)
    sort = t.Enum((*COLUMNS, *ATLAS_COLUMNS, "feature", "label"), "importance").tag(sync=True)
    descending = t.Bool(True).tag(sync=True)
    query = t.Unicode("").tag(sync=True)
    active_only = t.Bool(True).tag(sync=True)
    min_activation = t.Float(0.0, min=0.0).tag(sync=True)
    at_least = t.Dict().tag(sync=True)

    def look_at(self, scene: Scene) -> None:
        """Show another scene, at the same layer where it has that."""
        super().look_at(scene)
        self.layer = min(self.layer, scene.n_layers - 1)
        self._list_layer()

    def look_without_image(self, lens: Lens) -> None:
        """Show what the lens's atlas knows of many images."""
        super().look_without_image(lens)
        if self.sort in COLUMNS:
            self.sort = "trust"
        self._list_layer()

    @property
    def listed(self) -> list[Node]:
        """The nodes of the list, in its order: filtered, searched and sorted."""
        if not self.browser:
            return []
        layer, names = self.browser["layer"], self.browser["columns"]
        found = order(
            from_bytes(self.browser_table).reshape(len(names), -1),
            {f: text for (where, f), text in self.labels.items() if where == layer},
            names=names,
            texts=self.browser["texts"],
            sort=self.sort,
            descending=self.descending,
            query=self.query,
            active_only=self.active_only,
            min_activation=self.min_activation,
            at_least=self.at_least,
        )
        return [(layer, feature) for feature in found.tolist()]

    def browser_figure(self) -> Figure:
        """Return the first rows of the list as a matplotlib figure."""
        from vitlens.plots import features_figure, table_figure

        rows = self.listed
        shown = rows[:_ROWS_DRAWN]
        title = (
            f"Layer {self.layer}: {len(shown)} of {len(rows)} features, "
            f"by {self.sort.replace('_', ' ')}"
        )
        if self._scene is None:
            names = [name for name in self.browser["columns"] if name in ATLAS_COLUMNS]
            columns = from_bytes(self.browser_table).reshape(len(names), -1)
            texts = [
                [
                    str(feature),
                    self._called(feature),
                    *(plain(value) for value in columns[:, feature].tolist()),
                ]
                for _, feature in shown
            ]
            heads = ["feature", "name", *(_HEADS.get(name, name) for name in names)]
            return table_figure(heads, texts, title=title)
        return features_figure(
            table(self._scene, self.layer)[:, [feature for _, feature in shown]],
            names=[str(feature) for _, feature in shown],
            labels=[self._called(feature) for _, feature in shown],
            positive=self._scene.positive(self.layer),
            title=title,
        )

    def _called(self, feature: int) -> str:
        """The feature's name, or what is proposed with a question mark."""
        texts = self.browser["texts"]
        proposed = f"{texts[feature]}?" if texts and texts[feature] else ""
        return self.labels.get((self.browser["layer"], feature), proposed)

    @t.validate("layer")
    def _layer_exists(self, proposal: Any) -> int:
        layer: int = proposal.value
        if self._owner is not None and layer >= len(self._owner.saes):
            raise t.TraitError(
                f"{type(self).__name__}.layer: layers with features are 0 to "
                f"{len(self._owner.saes) - 1}; there is no {layer}."
            )
        return layer

    @t.validate("at_least")
    def _columns_and_numbers(self, proposal: Any) -> dict[str, float]:
        known = (*COLUMNS, *ATLAS_COLUMNS)
        least: dict[str, float] = {}
        for name, value in proposal.value.items():
            number = isinstance(value, int | float) and math.isfinite(value)
            if name not in known or not number or isinstance(value, bool):
                raise t.TraitError(
                    f"{type(self).__name__}.at_least is a dictionary of numbers by column "
                    f"({', '.join(known)}), not {name!r}: {value!r}."
                )
            least[name] = float(value)
        return least

    @t.observe("layer")
    def _list_layer(self, _: Any = None) -> None:
        lens, scene, atlas = self._owner, self._scene, self.atlas
        if lens is None or (scene is None and atlas is None):
            return
        columns: dict[str, Any] = {}
        about: dict[str, Any] = {
            "layer": self.layer,
            "sizes": [sae.n_features for sae in lens.saes],
            "texts": [],
            "chance": {},
        }
        if scene is not None:
            columns |= dict(zip(COLUMNS, table(scene, self.layer), strict=True))
            about |= {
                "n_tokens": len(scene.trace.features[0]),
                "positive": scene.positive(self.layer),
                "target": scene.importances.target,
            }
        if atlas is not None:
            scores, unreadable = scores_of(atlas, self.layer)
            columns |= columns_of(scores)
            about |= {
                "n_images": atlas.n_images,
                "texts": [] if unreadable else texts_of(atlas, self.layer),
                "chance": chance_of(scores),
                "unreadable": unreadable,
            }
        with self.hold_sync():
            self.browser_table = to_bytes(np.stack(list(columns.values())))
            self.browser = {**about, "columns": list(columns)}

    @t.observe("selected")
    def _follow_selected(self, _: Any) -> None:
        if self.selected is not None and self._owner is not None:
            self.layer = min(self.selected[0], len(self._owner.saes) - 1)


class FeatureBrowser(BrowserPart, Widget, bundle="browser"):
    """The features of a layer, to sort, filter, search and choose from.

    Parameters
    ----------
    lens
        The lens.
    image
        Any image; or a `Scene`, to share what was computed with another widget. None lists what
        the lens's atlas knows.
    layer
        The layer to begin with; by default that of `selected`, or the last.
    target
        As for `Lens.importances`.
    traits
        First values of other traits.

    Attributes
    ----------
    selected
        The feature chosen, (layer, feature), or None.
    labels
        Names people gave to nodes, {(layer, feature): text}.
    layer
        The layer listed; it follows `selected`.
    sort, descending
        The order: by "importance", "max_activation", "mean_activation" (over the tokens where the
        feature is active), "active_tokens", "feature" (its number) or "label"; with an atlas also
        by "frequency", "trust", "position", "orientation", "curvature", "hue", "selectivity",
        "class_information" or "monosemanticity". What was not measured comes last.
    query
        Shows features whose number begins with this, or whose name, proposal or best class holds
        it.
    active_only, min_activation
        Shows features active on this image, and those whose largest activation is no less.
    at_least
        The least value by column, such as ``{"orientation": 0.5}``.
    listed
        The nodes of the list, in its order.
    browser_table
        float32 [K, F], the columns that ``browser["columns"]`` names; NaN where the atlas's file
        of this layer is damaged, which ``browser["unreadable"]`` then says.

    Raises
    ------
    FeatureError
        When neither an image nor an atlas is there.
    ImageError, TargetError, ModelError
        As `Lens.importances` does.
    traitlets.TraitError
        When there is no such layer or feature.
    """

    def __init__(
        self,
        lens: Lens,
        image: ImageLike | Scene | None = None,
        *,
        layer: int | None = None,
        target: TargetLike = None,
        selected: Node | None = None,
        **traits: Any,
    ):
        super().__init__(**traits)
        scene = None if image is None else scene_of(lens, image, target)
        self._scene = scene  # from here on, traits are held against it
        self.use_lens(lens)
        self.selected = selected
        if layer is not None:
            self.layer = layer
        elif selected is None:
            self.layer = len(lens.saes) - 1
        if scene is None:
            self.look_without_image(lens)
        else:
            self.look_at(scene)

    def figure(self) -> Figure:
        """Return the first rows of the list as a matplotlib figure."""
        return self.browser_figure()


def table(scene: Scene, layer: int) -> Float[NDArray[np.float32], "4 F"]:
    """Return `COLUMNS` of every feature of a layer, on this image."""
    activations = scene.trace.features[layer]
    active = (activations > 0).sum(0)
    columns = [
        scene.importances.nodes[layer][:-1],
        activations.amax(0),
        activations.sum(0) / active.clamp(min=1),
        active,
    ]
    return torch.stack([column.float() for column in columns]).cpu().numpy()


def plain(value: float) -> str:
    """Return a number with three figures and no power of ten, as the view writes it."""
    if math.isnan(value):
        return "–"
    if 0 < abs(value) < 1e-3:
        return "<0.001" if value > 0 else ">−0.001"
    text = np.format_float_positional(value, precision=3, fractional=False, trim="-")
    return text.replace("-", "−")


def order(
    columns: Float[NDArray[np.float32], "K F"],
    labels: Mapping[int, str],
    *,
    sort: str,
    descending: bool,
    names: Sequence[str] = COLUMNS,
    texts: Sequence[str] = (),
    query: str = "",
    active_only: bool = False,
    min_activation: float = 0.0,
    at_least: Mapping[str, float] | None = None,
) -> Int[NDArray[np.int64], " n"]:
    """Return the features of the list, in its order; the browser does the same.

    1. A feature is in it if its largest activation is `min_activation` or more, above 0 if
       `active_only`, and each column of `at_least` no less than that. Columns that are not there
       ask for nothing. The query, without surrounding blanks and in lower case, begins its number
       or is in its label or text, in lower case.
    2. Sorted by the column, NaN last whatever the direction; by the number for "feature", and
       ascending for a column that is not there; by the label in lower case for "label", features
       without one last, whatever the direction. Equal ones by number, ascending.

    Parameters
    ----------
    columns
        One row for each of `names`.
    labels
        Names by feature.
    texts
        What else the query looks at: a text a feature, or none.
    """
    column = dict(zip(names, columns, strict=True))
    keep = np.ones(columns.shape[1], dtype=bool)
    if "max_activation" in column:
        keep &= column["max_activation"] >= np.float32(min_activation)
        if active_only:
            keep &= column["max_activation"] > 0
    for name, least in (at_least or {}).items():
        if name in column:
            keep &= column[name] >= np.float32(least)
    features = np.flatnonzero(keep)
    wanted = query.strip().lower()
    if wanted:
        fits = [
            str(f).startswith(wanted)
            or wanted in labels.get(f, "").lower()
            or (bool(texts) and wanted in texts[f].lower())
            for f in features.tolist()
        ]
        features = features[np.array(fits, dtype=bool)]
    if sort == "label":
        named = [f for f in features.tolist() if f in labels]
        named.sort(key=lambda f: labels[f].lower(), reverse=descending)
        rest = [f for f in features.tolist() if f not in labels]
        return np.array(named + rest, dtype=np.int64)
    if sort == "feature":
        return features[::-1] if descending else features
    if sort not in column:
        return features
    values = column[sort][features]
    return features[np.argsort(-values if descending else values, kind="stable")]
