"""One feature of one image in a cell: where it is, what it says, what it is connected to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import traitlets as t

from vitlens.attribution.targets import TargetLike
from vitlens.circuits.circuit import TARGET
from vitlens.errors import FeatureError
from vitlens.images import ImageLike
from vitlens.lens import Lens
from vitlens.widgets import atlas_card, card
from vitlens.widgets.atlas_table import most_trusted, scores_of
from vitlens.widgets.base import Widget
from vitlens.widgets.buffers import encode_strip, to_bytes
from vitlens.widgets.part import ScenePart, scene_of
from vitlens.widgets.scene import Node, Scene
from vitlens.widgets.tasks import Check
from vitlens.widgets.traits import ImageTraits

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

    from vitlens.atlas.atlas import Atlas
    from vitlens.atlas.gallery import FeatureImage

_LENS = "Logit lens: straight to the read-out, past the blocks above."
_SIDE = 224  # pixels of a picture: its patches are shown enlarged


class CardPart(ImageTraits, ScenePart):
    """The traits behind a feature card; see `FeatureCard`."""

    card = t.Dict().tag(sync=True)
    card_data = t.Bytes(b"").tag(sync=True)
    mean_map = t.Bytes(b"").tag(sync=True)
    top_pictures = t.Bytes(b"").tag(sync=True)
    top_heats = t.Bytes(b"").tag(sync=True)

    def look_at(self, scene: Scene) -> None:
        """Show another scene."""
        super().look_at(scene)
        with self.hold_sync():
            self.grid, self.prefix_names = scene.grid, scene.prefix_names
            self.n_images, self.picture = 1, encode_strip([scene.picture])
            self._ask_for_card()

    def look_without_image(self, lens: Lens) -> None:
        """Show what the lens's atlas knows of many images."""
        super().look_without_image(lens)
        self.grid, self.prefix_names = lens.vision.grid, lens.vision.prefix_names

    def update_card(self) -> None:
        """Fill the card now, if it is still being made in the background."""
        worker = self.background("card")
        if worker.busy and self._owner is not None and self.selected is not None:
            worker.cancel()
            self._fill_card(_fill(self._owner, self._scene, self.selected))
        if self.background("heats").busy:
            self.background("heats").cancel()
            self._fill_heats(self._heats(self._shown, lambda: None))

    _shown: tuple[tuple[FeatureImage, bool], ...] = ()

    @t.observe("selected")
    def _ask_for_card(self, _: Any = None) -> None:
        lens, scene, node = self._owner, self._scene, self.selected
        self.background("heats").cancel()
        if lens is None:
            return
        if node is None:
            self.background("card").cancel()
            self._fill_card(_Filled({}))
            return
        self.background("card").run(lambda _: _fill(lens, scene, node), self._fill_card)

    def _fill_card(self, found: _Filled) -> None:
        with self.hold_sync():
            self.top_heats = b""
            self.card, self.card_data = found.card, found.data
            self.mean_map, self.top_pictures = found.mean_map, found.pictures
        self._shown = found.shown
        if found.shown:
            # They may have to be computed by the lens: the pictures do not wait for them.
            work = lambda check: self._heats(found.shown, check)  # noqa: E731
            self.background("heats").run(work, self._fill_heats)

    def _heats(self, shown: tuple[tuple[FeatureImage, bool], ...], check: Check) -> bytes:
        rows, columns = self.grid
        return to_bytes(
            atlas_card.heats(shown, len(self.prefix_names), rows * columns, check), "float16"
        )

    def _fill_heats(self, found: bytes) -> None:
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
        scene, title = self.scene, _title(node, self.labels.get(node, ""))
        activation, importance = scene.activation(node), scene.token_importance(node)
        silent = "" if activation.any() else "not active on this image"
        if silent and not importance.any():
            return _atlas_figure(self.atlas, node, f"{title}: {silent}")
        share = (
            f"{scene.share(node):.1%} of layer {node[0]}'s positive importance for "
            f"“{scene.importances.target}”"
        )
        return feature_figure(
            scene.picture,
            activation=activation,
            importance=importance,
            effects=scene.logit_lens(node),
            grid=scene.grid,
            prefix_names=scene.prefix_names,
            class_names=scene.class_names,
            title=title,
            subtitle=", ".join(part for part in (share, silent) if part) + "\n" + _LENS,
        )


class FeatureCard(CardPart, Widget, bundle="card"):
    """One feature of one image.

    It shows the feature's name, its share of its layer in this image, where it is active and
    where it matters, how strongly, which classes it pushes up and down by itself (its logit
    lens), and its strongest edges. The name can be edited, an edge followed.

    Parameters
    ----------
    lens
        The lens.
    image
        Any image; or a `Scene`, to share what was computed with another widget.
    target
        As for `Lens.importances`.
    selected
        The node to begin with, (layer, feature), with feature -1 for a layer's error node; by
        default the most important feature of the last layer.
    traits
        First values of other traits.

    Attributes
    ----------
    selected
        The node shown, or None.
    labels
        Names people gave to nodes, {(layer, feature): text}.
    card
        What is said of the node; see `vitlens.widgets.card.describe`.
    card_data
        float32 [2, T]: its activation and its importance by token.

    Raises
    ------
    ImageError, TargetError, ModelError
        As `Lens.importances` does.
    traitlets.TraitError
        When there is no such node.
    """

    def __init__(
        self,
        lens: Lens,
        image: ImageLike | Scene | None = None,
        *,
        target: TargetLike = None,
        selected: tuple[int, int] | None = None,
        **traits: Any,
    ):
        super().__init__(**traits)
        top = len(lens.saes) - 1
        if image is None:
            self.look_without_image(lens)
            assert lens.atlas is not None  # or it had raised
            self.selected = most_trusted(lens.atlas, top) if selected is None else selected
            return
        scene = scene_of(lens, image, target)
        self.look_at(scene)
        self.selected = scene.most_important(top) if selected is None else selected

    def figure(self) -> Figure:
        """Return the card as a matplotlib figure."""
        return self.card_figure()

    def to_html(self, path: str | Path, *, title: str = "") -> None:
        """Write the card as it is now to one self-contained page; see `Widget.to_html`."""
        self.update_card()
        super().to_html(path, title=title)


@dataclass(frozen=True)
class _Filled:
    """The traits of a card, and the images whose heats are still to come."""

    card: dict[str, Any]
    data: bytes = b""
    mean_map: bytes = b""
    pictures: bytes = b""
    shown: tuple[tuple[FeatureImage, bool], ...] = ()


def _fill(lens: Lens, scene: Scene | None, node: Node) -> _Filled:
    """What is known of a node, on the scene's image and over the atlas's."""
    feature: dict[str, Any] = {"node": list(node), "kind": "feature"}
    said = feature if scene is None else card.describe(scene, node)
    data = b"" if scene is None else to_bytes(card.heats(scene, node))
    if node[1] < 0:
        return _Filled(said, data)
    atlas = lens.atlas
    if atlas is None:
        top = {"available": False, "why": atlas_card.NO_ATLAS, "items": []}
        return _Filled({**said, "top_images": top}, data)
    _, unreadable = scores_of(atlas, node[0])
    if unreadable:
        top = {"available": False, "why": unreadable, "items": []}
        return _Filled({**said, "top_images": top}, data)
    shown = atlas_card.shown_images(atlas, node)
    return _Filled(
        {
            **said,
            "top_images": atlas_card.describe_images(shown, lens.vision.prefix_names),
            "atlas": atlas_card.describe(atlas, node),
        },
        data,
        to_bytes(atlas.feature(*node).mean_map),
        encode_strip(atlas_card.pictures(shown), side=_SIDE),
        shown,
    )


def _atlas_figure(atlas: Atlas | None, node: Node, title: str = "") -> Figure:
    """What is known of a feature without an image."""
    from vitlens.plots import feature_sheet, text_figure

    unreadable = "" if atlas is None else scores_of(atlas, node[0])[1]
    if atlas is None or unreadable:
        return text_figure(". ".join(part for part in (title, unreadable) if part))
    return feature_sheet(atlas, [node], title=title)


def _title(node: tuple[int, int], label: str) -> str:
    layer, feature = node
    name = f"Layer {layer}, " + ("error node" if feature < 0 else f"feature {feature}")
    return f"{name}: {label}" if label else name
