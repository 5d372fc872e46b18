"""One feature of one image in a cell: where it is, what it says, what it is connected to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import traitlets as t

from vitlens.attribution.targets import TargetLike
from vitlens.circuits.circuit import TARGET
from vitlens.errors import FeatureError
from vitlens.images import ImageLike
from vitlens.lens import Lens
from vitlens.widgets import card
from vitlens.widgets.base import Widget
from vitlens.widgets.buffers import encode_strip, to_bytes
from vitlens.widgets.part import ScenePart, scene_of
from vitlens.widgets.scene import Scene
from vitlens.widgets.traits import ImageTraits

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure


class CardPart(ImageTraits, ScenePart):
    """The traits behind a feature card; see `FeatureCard`."""

    card = t.Dict().tag(sync=True)
    card_data = t.Bytes(b"").tag(sync=True)
    top_pictures = t.Bytes(b"").tag(sync=True)
    top_heats = t.Bytes(b"").tag(sync=True)

    def look_at(self, scene: Scene) -> None:
        """Show another scene."""
        super().look_at(scene)
        with self.hold_sync():
            self.grid, self.prefix_names = scene.grid, scene.prefix_names
            self.n_images, self.picture = 1, encode_strip([scene.picture])
            self._ask_for_card()

    def update_card(self) -> None:
        """Fill the card now, if it is still being made in the background."""
        worker = self.background("card")
        if worker.busy and self._scene is not None and self.selected is not None:
            worker.cancel()
            self._fill_card(_card(self._scene, self.selected))

    @t.observe("selected")
    def _ask_for_card(self, _: Any = None) -> None:
        scene, node = self._scene, self.selected
        if scene is None:
            return
        if node is None:
            self.background("card").cancel()
            self._fill_card(({}, b""))
            return
        self.background("card").run(lambda _: _card(scene, node), self._fill_card)

    def _fill_card(self, found: tuple[dict[str, Any], bytes]) -> None:
        with self.hold_sync():
            self.card, self.card_data = found

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
        scene = self.scene
        return feature_figure(
            scene.picture,
            activation=scene.activation(node),
            importance=scene.token_importance(node),
            effects=scene.logit_lens(node),
            grid=scene.grid,
            prefix_names=scene.prefix_names,
            class_names=scene.class_names,
            title=_title(node, self.labels.get(node, "")),
            subtitle=f"{scene.share(node):.1%} of layer {node[0]}'s positive importance for "
            f"“{scene.importances.target}”",
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
        image: ImageLike | Scene,
        *,
        target: TargetLike = None,
        selected: tuple[int, int] | None = None,
        **traits: Any,
    ):
        super().__init__(**traits)
        scene = scene_of(lens, image, target)
        self.look_at(scene)
        top = scene.n_layers - 1
        self.selected = scene.most_important(top) if selected is None else selected

    def figure(self) -> Figure:
        """Return the card as a matplotlib figure."""
        return self.card_figure()

    def to_html(self, path: str | Path, *, title: str = "") -> None:
        """Write the card as it is now to one self-contained page; see `Widget.to_html`."""
        self.update_card()
        super().to_html(path, title=title)


def _card(scene: Scene, node: tuple[int, int]) -> tuple[dict[str, Any], bytes]:
    return card.describe(scene, node), to_bytes(card.heats(scene, node))


def _title(node: tuple[int, int], label: str) -> str:
    layer, feature = node
    name = f"Layer {layer}, " + ("error node" if feature < 0 else f"feature {feature}")
    return f"{name}: {label}" if label else name
