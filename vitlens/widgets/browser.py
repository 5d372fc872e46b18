"""The features of one layer in a cell, to sort, filter and search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import traitlets as t
from jaxtyping import Float, Int
from numpy.typing import NDArray

from vitlens.errors import FeatureError
from vitlens.images import ImageLike
from vitlens.lens import Lens
from vitlens.method.importance import TargetLike
from vitlens.saes.base import FeatureId
from vitlens.widgets.base import Choice, Widget, from_bytes, to_bytes
from vitlens.widgets.columns import ATLAS_COLUMNS, chance_of, columns_of, scores_of, texts_of
from vitlens.widgets.scene import Scene, ScenePart, scene_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Columns of a list for one image; those of the atlas follow.
COLUMNS = ("importance", "max_activation", "mean_activation", "active_tokens")

_ROWS_DRAWN = 24
# Short headers, as in the view; the others are the names of the columns.
_HEADERS = {"class_information": "class", "monosemanticity": "one meaning"}


class BrowserPart(ScenePart):
    """The traits of a list of features; see `FeatureBrowser`."""

    layer = t.Int(0, min=0).tag(sync=True)
    browser = t.Dict().tag(sync=True)
    browser_table = t.Bytes(b"").tag(sync=True)
    sort = Choice((*COLUMNS, *ATLAS_COLUMNS, "feature", "label"), "importance").tag(sync=True)
    descending = t.Bool(True).tag(sync=True)
    query = t.Unicode("").tag(sync=True)
    active_only = t.Bool(True).tag(sync=True)
    min_activation = t.Float(0.0, min=0.0).tag(sync=True)
    at_least = t.Dict().tag(sync=True)

    def show_scene(self, scene: Scene) -> None:
        """Show another scene, at the same layer or else at the last."""
        super().show_scene(scene)
        if self.layer not in scene.layers:
            self.layer = scene.layers[-1]
        self._list_layer()

    def show_atlas(self, lens: Lens) -> None:
        """Show the lens's atlas, without an image."""
        super().show_atlas(lens)
        if self.sort in COLUMNS:
            self.sort = "trust"
        self._list_layer()

    @property
    def listed(self) -> list[FeatureId]:
        """The nodes of the list in its order: filtered, searched and sorted."""
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
        drawn = rows[:_ROWS_DRAWN]
        title = (
            f"Layer {self.layer}: {len(drawn)} of {len(rows)} features, "
            f"by {self.sort.replace('_', ' ')}"
        )
        if self._scene is None:
            names = [name for name in self.browser["columns"] if name in ATLAS_COLUMNS]
            columns = from_bytes(self.browser_table).reshape(len(names), -1)
            texts = [
                [
                    str(feature),
                    self._name_of(feature),
                    *(plain(value) for value in columns[:, feature].tolist()),
                ]
                for _, feature in drawn
            ]
            headers = ["feature", "name", *(_HEADERS.get(name, name) for name in names)]
            return table_figure(headers, texts, title=title)
        return features_figure(
            table(self._scene, self.layer)[:, [feature for _, feature in drawn]],
            names=[str(feature) for _, feature in drawn],
            labels=[self._name_of(feature) for _, feature in drawn],
            positive=self._scene.positive(self.layer),
            title=title,
        )

    def _name_of(self, feature: int) -> str:
        """The feature's name, or a proposal with a question mark."""
        texts = self.browser["texts"]
        proposed = f"{texts[feature]}?" if texts and texts[feature] else ""
        return self.labels.get((self.browser["layer"], feature), proposed)

    @t.validate("layer")
    def _layer_exists(self, proposal: Any) -> int:
        layer: int = proposal.value
        if self._lens is not None:
            try:
                self._lens.replacement.position(layer)
            except FeatureError as error:
                raise t.TraitError(f"{type(self).__name__}.layer: {error}") from error
        return layer

    @t.validate("at_least")
    def _columns_and_numbers(self, proposal: Any) -> dict[str, float]:
        known = (*COLUMNS, *ATLAS_COLUMNS)
        least: dict[str, float] = {}
        for name, value in proposal.value.items():
            number = isinstance(value, int | float) and math.isfinite(value)
            if name not in known or not number or isinstance(value, bool):
                raise t.TraitError(
                    f"{type(self).__name__}.at_least must be a dictionary of numbers by column "
                    f"({', '.join(known)}), not {name!r}: {value!r}."
                )
            least[name] = float(value)
        return least

    @t.observe("layer")
    def _list_layer(self, _: Any = None) -> None:
        lens, scene, atlas = self._lens, self._scene, self.atlas
        if lens is None or (scene is None and atlas is None) or self.layer not in lens.layers:
            return
        columns: dict[str, Any] = {}
        payload: dict[str, Any] = {
            "layer": self.layer,
            "layers": list(lens.layers),
            "n_features": lens.replacement.sae(self.layer).n_features,
            "texts": [],
            "chance": {},
        }
        if scene is not None:
            columns |= dict(zip(COLUMNS, table(scene, self.layer), strict=True))
            payload |= {
                "n_tokens": len(scene.trace.features[0]),
                "positive": scene.positive(self.layer),
                "target": scene.target,
            }
        if atlas is not None:
            scores, unreadable = scores_of(atlas, self.layer)
            columns |= columns_of(scores)
            payload |= {
                "n_images": atlas.n_images,
                "texts": [] if unreadable else texts_of(atlas, self.layer),
                "chance": chance_of(scores),
                "unreadable": unreadable,
            }
        with self.hold_sync():
            self.browser_table = to_bytes(np.stack(list(columns.values())))
            self.browser = {**payload, "columns": list(columns)}

    @t.observe("selected")
    def _follow_selected(self, _: Any) -> None:
        if self.selected is not None and self._lens is not None:
            layer = self.selected[0]
            self.layer = layer if layer in self._lens.layers else self._lens.layers[-1]


class FeatureBrowser(BrowserPart, Widget, bundle="browser"):
    """The features of one layer, to sort, filter, search and select.

    Parameters
    ----------
    lens
        The lens.
    image
        Any image; or a `Scene`, to share computed values with another widget. None lists the
        columns of the lens's atlas.
    layer
        The first layer; by default that of `selected`, or the last.
    target
        See `Lens.importances`.
    labels
        Names of nodes; they take precedence over those of the atlas, and are not saved.
    sort, descending, query, active_only, min_activation, at_least
        First values of the attributes.
    author
        Author of the names that are saved; by default the name of the user account.

    Attributes
    ----------
    selected
        The selected feature, (layer, feature), or None.
    labels
        Names that people gave to nodes, {(layer, feature): text}.
    layer
        The layer listed; it follows `selected`.
    sort, descending
        The order: by "importance", "max_activation", "mean_activation" (over the tokens where the
        feature is active), "active_tokens", "feature" (its number) or "label"; with an atlas also
        by "frequency", "trust", "position", "orientation", "curvature", "hue", "selectivity",
        "class_information" or "monosemanticity". Values that were not measured come last.
    query
        Shows features whose number starts with this text, or whose name or proposed name contains
        it.
    active_only, min_activation
        Shows only features that are active on this image, and only those with at least this
        largest activation.
    at_least
        Minimum by column, such as ``{"orientation": 0.5}``.
    listed
        The nodes of the list, in its order.
    browser_table
        float32 [K, F], the columns named in ``browser["columns"]``; NaN where the atlas's file of
        this layer is damaged, and ``browser["unreadable"]`` then gives the reason.

    Raises
    ------
    FeatureError
        When there is neither an image nor an atlas.
    ImageError, TargetError, ModelError
        See `Lens.importances`.
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
        selected: FeatureId | None = None,
        labels: Mapping[FeatureId, str] | None = None,
        sort: str = "importance",
        descending: bool = True,
        query: str = "",
        active_only: bool = True,
        min_activation: float = 0.0,
        at_least: Mapping[str, float] | None = None,
        author: str | None = None,
    ):
        super().__init__(
            {
                "labels": dict(labels or {}),
                "sort": sort,
                "descending": descending,
                "query": query,
                "active_only": active_only,
                "min_activation": min_activation,
                "at_least": dict(at_least or {}),
                "author": author,
            }
        )
        scene = None if image is None else scene_of(lens, image, target)
        self._scene = scene  # from here on, traits are checked against it
        self.set_lens(lens)
        self.selected = selected
        if layer is not None:
            self.layer = layer
        elif selected is None:
            self.layer = lens.layers[-1]
        if scene is None:
            self.show_atlas(lens)
        else:
            self.show_scene(scene)

    def figure(self) -> Figure:
        """Return the first rows of the list as a matplotlib figure."""
        return self.browser_figure()


def table(scene: Scene, layer: int) -> Float[NDArray[np.float32], "4 F"]:
    """Return `COLUMNS` of every feature of a layer, for this image."""
    position = scene.lens.replacement.position(layer)
    activations = scene.trace.features[position]
    active = (activations > 0).sum(0)
    columns = [
        scene.importances.nodes[position][:-1],
        activations.amax(0),
        activations.sum(0) / active.clamp(min=1),
        active,
    ]
    return torch.stack([column.float() for column in columns]).cpu().numpy()


def plain(value: float) -> str:
    """Return a number with three digits and no power of ten, as the view writes it."""
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
    """Return the features of the list in its order; the browser applies the same rules.

    1. A feature is listed if its largest activation is at least `min_activation`, and above 0 with
       `active_only`, and each column of `at_least` has at least that value. Conditions on missing
       columns are ignored. The query, stripped and in lower case, is the start of its number or
       part of its label or text, in lower case.
    2. The list is sorted by the column, NaN last in both directions; by the number for "feature",
       and ascending for a missing column; by the label in lower case for "label", features
       without a label last in both directions. Ties are sorted by number, ascending.

    Parameters
    ----------
    columns
        One row for each of `names`.
    labels
        Names by feature.
    texts
        Further text per feature that the query searches, or none.
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
