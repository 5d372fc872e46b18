"""One feature in a cell: on one image, and on the images of an atlas."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import traitlets as t
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vitlens.circuits.circuit import ERROR, TARGET
from vitlens.errors import FeatureError
from vitlens.images import ImageLike
from vitlens.lens import Lens
from vitlens.method.importance import TargetLike
from vitlens.saes.base import FeatureId
from vitlens.widgets.base import ImageTraits, Widget, encode_strip, to_bytes
from vitlens.widgets.columns import most_trusted, scores_of
from vitlens.widgets.scene import Link, Scene, ScenePart, node_title, scene_of
from vitlens.widgets.tasks import Check

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

    from vitlens.atlas.atlas import Atlas
    from vitlens.atlas.gallery import FeatureImage
    from vitlens.atlas.profile import FeatureProfile
    from vitlens.atlas.tuning import Tuning

_BINS = 20  # of the histogram
_EDGES = 6  # in each direction
_CLASSES = 6
_EFFECTS = 5  # of the logit lens, in each direction
_NEIGHBOURS = 4
_PROPOSALS = 4
_TOP = 8  # images of highest peak
_LOWER = 4  # images of lower quantiles
_SIDE = 224  # pixels of an image; its patches are shown enlarged

_LOGIT_LENS = "Logit lens: the direct effect on the read-out, bypassing the blocks above."
NO_ATLAS = (
    "This lens has no atlas, so there are no top images, frequencies or scores from other images. "
    "Atlas.build(lens, images) creates one."
)


class CardPart(ImageTraits, ScenePart):
    """The traits of a feature card; see `FeatureCard`."""

    card = t.Dict().tag(sync=True)
    card_data = t.Bytes(b"").tag(sync=True)
    mean_map = t.Bytes(b"").tag(sync=True)
    top_strip = t.Bytes(b"").tag(sync=True)
    top_heats = t.Bytes(b"").tag(sync=True)

    _gallery: tuple[tuple[FeatureImage, bool], ...] = ()

    def show_scene(self, scene: Scene) -> None:
        """Show another scene."""
        super().show_scene(scene)
        with self.hold_sync():
            self.grid, self.prefix_names = scene.grid, scene.prefix_names
            self.n_images, self.image_strip = 1, encode_strip([scene.pixels])
            self._request_card()

    def show_atlas(self, lens: Lens) -> None:
        """Show the lens's atlas, without an image."""
        super().show_atlas(lens)
        self.grid, self.prefix_names = lens.vision.grid, lens.vision.prefix_names

    def update_card(self) -> None:
        """Complete the card now, if it is still computed in the background."""
        worker = self.background("card")
        if worker.busy and self._lens is not None and self.selected is not None:
            worker.cancel()
            self._set_card(_contents(self._lens, self._scene, self.selected))
        if self.background("heats").busy:
            self.background("heats").cancel()
            self._set_heats(self._heats(self._gallery, lambda: None))

    @t.observe("selected")
    def _request_card(self, _: Any = None) -> None:
        lens, scene, node = self._lens, self._scene, self.selected
        self.background("heats").cancel()
        if lens is None:
            return
        if node is None:
            self.background("card").cancel()
            self._set_card(_Contents({}))
            return
        self.background("card").run(lambda _: _contents(lens, scene, node), self._set_card)

    def _set_card(self, found: _Contents) -> None:
        with self.hold_sync():
            self.top_heats = b""
            self.card, self.card_data = found.card, found.data
            self.mean_map, self.top_strip = found.mean_map, found.strip
        self._gallery = found.gallery
        if found.gallery:
            # The lens may have to compute them; the images are shown before.
            work = lambda check: self._heats(found.gallery, check)  # noqa: E731
            self.background("heats").run(work, self._set_heats)

    def _heats(self, gallery: tuple[tuple[FeatureImage, bool], ...], check: Check) -> bytes:
        rows, columns = self.grid
        return to_bytes(
            gallery_heats(gallery, len(self.prefix_names), rows * columns, check), "float16"
        )

    def _set_heats(self, found: bytes) -> None:
        self.top_heats = found

    def card_figure(self) -> Figure:
        """Return the selected feature as a matplotlib figure.

        Raises
        ------
        FeatureError
            When no feature is selected, or the target is.
        """
        from vitlens.plots import feature_figure

        node = self.selected
        if node is None or node[1] == TARGET:
            raise FeatureError("Select a feature to draw its card.")
        if self._scene is None and self.atlas is not None:
            return _atlas_figure(self.atlas, node)
        scene, title = self.scene, node_title(node, self.labels.get(node, ""))
        activation, importance = scene.activation(node), scene.token_importance(node)
        silent = "" if activation.any() else "not active on this image"
        if silent and not importance.any():
            return _atlas_figure(self.atlas, node, f"{title}: {silent}")
        share = (
            f"{scene.share(node):.1%} of layer {node[0]}'s positive importance for “{scene.target}”"
        )
        return feature_figure(
            scene.pixels,
            activation=activation,
            importance=importance,
            effects=scene.logit_lens(node),
            grid=scene.grid,
            prefix_names=scene.prefix_names,
            class_names=scene.class_names,
            title=title,
            subtitle=", ".join(part for part in (share, silent) if part) + "\n" + _LOGIT_LENS,
        )


class FeatureCard(CardPart, Widget, bundle="card"):
    """One feature of one image.

    The card shows the feature's name, its share of its layer's importance, its activation and
    importance per patch, the classes whose logits it raises and lowers directly (its logit lens),
    and its strongest edges. With an atlas it also shows the images where the feature is most
    active, and its scores. The name can be edited, an edge followed.

    Parameters
    ----------
    lens
        The lens.
    image
        Any image; or a `Scene`, to share computed values with another widget. None shows the
        lens's atlas.
    target
        See `Lens.importances`.
    selected
        The first node, (layer, feature), with feature -1 for a layer's error node; by default the
        most important feature of the last layer.
    labels
        Names of nodes; they take precedence over those of the atlas, and are not saved.
    author
        Author of the names that are saved; by default the name of the user account.

    Attributes
    ----------
    selected
        The node shown, or None.
    labels
        Names that people gave to nodes, {(layer, feature): text}.
    card
        The values shown of the node; see `vitlens.widgets.card.image_payload` and
        `vitlens.widgets.card.atlas_payload`.
    card_data
        float32 [2, T]: its activation and its importance per token.

    Raises
    ------
    ImageError, TargetError, ModelError
        See `Lens.importances`.
    traitlets.TraitError
        When there is no such node.
    """

    def __init__(
        self,
        lens: Lens,
        image: ImageLike | Scene | None = None,
        *,
        target: TargetLike = None,
        selected: FeatureId | None = None,
        labels: Mapping[FeatureId, str] | None = None,
        author: str | None = None,
    ):
        super().__init__(
            {
                "labels": dict(labels or {}),
                "author": author,
            }
        )
        last = lens.layers[-1]
        if image is None:
            self.show_atlas(lens)
            assert lens.atlas is not None  # show_atlas raises without one
            self.selected = most_trusted(lens.atlas, last) if selected is None else selected
            return
        scene = scene_of(lens, image, target)
        self.show_scene(scene)
        self.selected = scene.most_important(last) if selected is None else selected

    def figure(self) -> Figure:
        """Return the card as a matplotlib figure."""
        return self.card_figure()

    def to_html(self, path: str | Path, *, title: str = "") -> None:
        """Write the current card to one self-contained page; see `Widget.to_html`."""
        self.update_card()
        super().to_html(path, title=title)


@dataclass(frozen=True)
class _Contents:
    """The traits of a card, and the images whose heats are not computed yet."""

    card: dict[str, Any]
    data: bytes = b""
    mean_map: bytes = b""
    strip: bytes = b""
    gallery: tuple[tuple[FeatureImage, bool], ...] = ()


def _contents(lens: Lens, scene: Scene | None, node: FeatureId) -> _Contents:
    """Return the contents of a card: of the scene's image, and of the atlas."""
    feature: dict[str, Any] = {"node": list(node), "kind": "feature"}
    payload = feature if scene is None else image_payload(scene, node)
    data = b"" if scene is None else to_bytes(token_values(scene, node))
    if node[1] < 0:
        return _Contents(payload, data)
    atlas = lens.atlas
    if atlas is None:
        top = {"available": False, "why": NO_ATLAS, "items": []}
        return _Contents({**payload, "top_images": top}, data)
    _, unreadable = scores_of(atlas, node[0])
    if unreadable:
        top = {"available": False, "why": unreadable, "items": []}
        return _Contents({**payload, "top_images": top}, data)
    gallery = gallery_of(atlas, node)
    return _Contents(
        {
            **payload,
            "top_images": gallery_payload(gallery, lens.vision.prefix_names),
            "atlas": atlas_payload(atlas, node),
        },
        data,
        to_bytes(atlas.feature(*node).mean_map),
        encode_strip(gallery_images(gallery), side=_SIDE),
        gallery,
    )


def _atlas_figure(atlas: Atlas | None, node: FeatureId, title: str = "") -> Figure:
    """Return a figure of what the atlas holds of a feature."""
    from vitlens.plots import feature_sheet, text_figure

    unreadable = "" if atlas is None else scores_of(atlas, node[0])[1]
    if atlas is None or unreadable:
        return text_figure(". ".join(part for part in (title, unreadable) if part))
    return feature_sheet(atlas, [node], title=title)


def image_payload(scene: Scene, node: FeatureId) -> dict[str, Any]:
    """Return what a card shows of a node on the scene's image.

    Returns
    -------
    dict
        ``node``, ``kind`` ("feature", "error" or "target") and ``is_first``, whether it is in the
        first layer with features; ``importance`` and ``share`` for the
        ``target``; ``active``, the number of tokens where it is active, of ``n_tokens``;
        ``peak``, its largest activation; ``histogram`` of the activations of active tokens,
        ``edges`` and ``counts``; ``up`` and ``down``, [class, effect] of its logit lens, largest
        effect first; ``edges_in`` and ``edges_out``, [layer, feature, weight, share].

    Raises
    ------
    FeatureError
        When there is no such node.
    """
    if node == scene.target_node:
        return _target_payload(scene)
    activation = scene.activation(node)
    up, down = _strongest_classes(scene, node)
    return {
        "node": list(node),
        "kind": "error" if node[1] == ERROR else "feature",
        "is_first": node[0] == scene.layers[0],
        "importance": scene.importance(node),
        "share": scene.share(node),
        "target": scene.target,
        "n_tokens": len(activation),
        "active": int((activation > 0).sum()),
        "peak": float(activation.max()),
        "histogram": _image_histogram(activation),
        "up": up,
        "down": down,
        "edges_in": _edges_payload(scene.strongest_in(node, _EDGES)),
        "edges_out": _edges_payload(scene.strongest_out(node, _EDGES)),
    }


def token_values(scene: Scene, node: FeatureId) -> Float[Tensor, "2 T"]:
    """Return the node's activation and importance per token; the target has neither, [2, 0]."""
    if node[1] == TARGET:
        return torch.zeros(2, 0)
    return torch.stack([scene.activation(node), scene.token_importance(node)])


def _target_payload(scene: Scene) -> dict[str, Any]:
    target = scene.target_node
    return {
        "node": list(target),
        "kind": "target",
        "target": scene.target,
        "importance": scene.target_value,
        "edges_in": _edges_payload(scene.strongest_in(target, 2 * _EDGES)),
    }


def _image_histogram(activation: Float[Tensor, " T"]) -> dict[str, list[float]]:
    active = activation[activation > 0].cpu().double()
    if not len(active):
        return {"edges": [], "counts": []}
    top = float(active.max())
    counts = torch.histc(active, _BINS, 0.0, top)
    return {"edges": torch.linspace(0, top, _BINS + 1).tolist(), "counts": counts.tolist()}


def _strongest_classes(
    scene: Scene, node: FeatureId
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Return the classes with raised and with lowered logits, and the effects."""
    effects = scene.logit_lens(node)
    names = scene.class_names
    order = effects.argsort(descending=True).tolist()
    ranked = [(names[i], float(effects[i])) for i in order]
    up = [(name, effect) for name, effect in ranked if effect > 0]
    down = [(name, effect) for name, effect in reversed(ranked) if effect < 0]
    return up[:_EFFECTS], down[:_EFFECTS]


def _edges_payload(links: tuple[Link, ...]) -> list[list[float]]:
    return [[*link.node, link.weight, link.share] for link in links]


def atlas_payload(atlas: Atlas, node: FeatureId) -> dict[str, Any]:
    """Return what a card shows of a feature from the atlas; NaN becomes None.

    Returns
    -------
    dict
        ``n_images``, ``labels_from``; ``frequency`` and ``image_frequency``; ``token_kinds``,
        [name, share] of the active tokens; ``active`` tokens of ``n_tokens``; ``histogram``,
        ``edges`` and ``counts``; ``up`` and ``down``, [class, effect] of the logit lens;
        ``classes``, [class, mean activation, share of its images]; ``scores``,
        [name, value, chance level]; ``tuning`` (see `tuning_curves`); ``neighbours``, [layer,
        feature, cosine] by "before", "same" and "after"; ``proposals``, [text, score, source];
        ``trust`` and ``why_trust``.
    """
    profile = atlas.feature(*node)
    up = [[name, effect] for name, effect in profile.logit_lens if effect > 0]
    down = [[name, effect] for name, effect in profile.logit_lens if effect < 0]
    return {
        "n_images": atlas.n_images,
        "labels_from": atlas.labels_from,
        "frequency": profile.frequency,
        "image_frequency": profile.image_frequency,
        "token_kinds": [[name, share] for name, share in profile.token_kinds.items()],
        "active": int(profile.histogram.counts.sum()),
        "n_tokens": atlas.n_images * len(profile.mean_map),
        "histogram": _atlas_histogram(profile),
        "up": up[:_EFFECTS],
        "down": down[::-1][:_EFFECTS],
        "classes": [[c.name, c.mean, c.share] for c in profile.classes[:_CLASSES] if c.mean > 0],
        "scores": [
            [name, _plain(value), _plain(profile.chance.get(name, math.nan))]
            for name, value in profile.scores.items()
        ],
        "tuning": None if profile.tuning is None else tuning_curves(profile.tuning),
        "neighbours": {
            where: [[*other, cosine] for other, cosine in near[:_NEIGHBOURS]]
            for where, near in profile.neighbours.items()
        },
        "proposals": [[p.text, _plain(p.score), p.source] for p in profile.proposals[:_PROPOSALS]],
        "trust": _plain(profile.trust.value),
        "why_trust": str(profile.trust),
    }


def gallery_of(atlas: Atlas, node: FeatureId) -> tuple[tuple[FeatureImage, bool], ...]:
    """Return the images of a card: those of highest peak, then some of lower quantiles.

    Returns
    -------
    tuple
        (image, whether it is one of the lower quantiles) for each image.
    """
    top = atlas.top(*node, n=_TOP)
    seen = {shown.key for shown in top}
    lower = [shown for shown in atlas.sampled(*node, n=2 * _LOWER) if shown.key not in seen]
    spread = spread_quantiles(lower, _LOWER)
    return (*((one, False) for one in top), *((one, True) for one in spread))


def spread_quantiles(shown: Sequence[FeatureImage], n: int) -> tuple[FeatureImage, ...]:
    """Return at most `n` of the images, evenly spread over their quantiles, highest first."""
    ordered = sorted(shown, key=lambda one: -one.quantile)
    if len(ordered) <= n:
        return tuple(ordered)
    places = np.linspace(0, len(ordered) - 1, n).round().astype(int)
    return tuple(ordered[place] for place in places)


def gallery_payload(
    shown: Sequence[tuple[FeatureImage, bool]], prefix_names: Sequence[str]
) -> dict[str, Any]:
    """Return the card's ``top_images``.

    Returns
    -------
    dict
        ``available`` and ``items``: ``label``, ``activation`` (its peak), ``quantile``, ``lower``
        (whether it is one of the lower quantiles), ``token`` (the name of the prefix token of the
        peak, "" for a patch), ``patch`` (the patch of the peak, or -1), ``title``.
    """
    n_prefix = len(prefix_names)
    items = [
        {
            "label": one.label,
            "activation": one.peak,
            "quantile": one.quantile,
            "lower": lower,
            "token": prefix_names[one.token] if one.token < n_prefix else "",
            "patch": max(-1, one.token - n_prefix),
            "title": "\n".join(part for part in (one.key, one.credit) if part),
        }
        for one, lower in shown
    ]
    return {"available": True, "items": items}


def gallery_images(shown: Sequence[tuple[FeatureImage, bool]]) -> list[NDArray[np.uint8] | None]:
    """Return the images, [H, W, 3] each; None where there is none."""
    found = [one.image for one, _ in shown]
    return [None if image is None else np.asarray(image.convert("RGB")) for image in found]


def gallery_heats(
    shown: Sequence[tuple[FeatureImage, bool]], n_prefix: int, n_patches: int, check: Check
) -> Float[Tensor, "n P"]:
    """Return activations per patch; NaN where neither heat nor an image is stored."""
    rows = []
    for one, _ in shown:
        check()
        heat = one.heatmap
        rows.append(torch.full((n_patches,), torch.nan) if heat is None else heat[n_prefix:].cpu())
    return torch.stack(rows) if rows else torch.zeros(0, n_patches)


def tuning_curves(tuning: Tuning) -> dict[str, Any]:
    """Return the responses to synthetic stimuli, in units of activation.

    Returns
    -------
    dict
        ``orientation``, ``angles`` and ``values``, the mean over edges and gratings; ``arcs``,
        ``directions``, ``radii`` (None for a straight line) and ``values`` by radius and
        direction; ``hue``, ``angles`` and ``values``, the mean over both chromas; ``texture``,
        ``names`` and ``values``; ``blank``, the response to a plain grey image.
    """
    from vitlens.atlas import stimuli

    return {
        "orientation": {
            "angles": list(stimuli.ORIENTATIONS),
            "values": tuning.orientation.mean(0).tolist(),
        },
        "arcs": {
            "directions": list(stimuli.DIRECTIONS),
            "radii": [_plain(radius) for radius in stimuli.RADII],
            "values": tuning.direction.tolist(),
        },
        "hue": {"angles": list(stimuli.HUES), "values": tuning.hue.mean(0).tolist()},
        "texture": {"names": list(stimuli.TEXTURES), "values": tuning.texture.tolist()},
        "blank": tuning.blank,
    }


def _atlas_histogram(profile: FeatureProfile) -> dict[str, list[float]]:
    """Return the bins from the first to the last that is not empty."""
    counts = profile.histogram.counts.tolist()
    filled = [i for i, count in enumerate(counts) if count]
    if not filled:
        return {"edges": [], "counts": []}
    first, last = filled[0], filled[-1]
    edges = profile.histogram.edges.tolist()
    return {"edges": edges[first : last + 2], "counts": counts[first : last + 1]}


def _plain(value: float | None) -> float | None:
    """Return None for NaN and infinity, which JSON cannot hold."""
    return None if value is None or not math.isfinite(value) else float(value)
