"""Shared state of widgets for a lens: an image with its importances, names, the selected node."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import traitlets as t
from jaxtyping import Float, UInt8
from torch import Tensor

from vitlens.circuits.circuit import ERROR, TARGET
from vitlens.errors import FeatureError, VitlensError
from vitlens.images import ImageLike
from vitlens.interventions.hooks import isolated_model
from vitlens.lens import Lens
from vitlens.method.engines import edges_into, edges_out_of
from vitlens.method.importance import Engine, ErrorGradients, Importances, TargetLike
from vitlens.method.libragrad import Gradient
from vitlens.method.logit_lens import logit_lens
from vitlens.method.replacement import Trace
from vitlens.saes.base import FeatureId
from vitlens.widgets.base import NodeTraits, Widget

if TYPE_CHECKING:
    from vitlens.atlas.atlas import Atlas
    from vitlens.atlas.names import Names
    from vitlens.circuits.graph import AttributionGraph


class Link(NamedTuple):
    """One edge of a node."""

    node: FeatureId  # at the other end
    weight: float  # in units of the target
    share: float  # of the positive importance of the edge's first layer


@dataclass(frozen=True, eq=False)
class Scene:
    """One image with what a lens computes for it; every widget shows a part of a scene.

    A node is (layer, feature), with the number of the block; feature -1 is the layer's error node.

    Attributes
    ----------
    lens
        The lens.
    trace
        Activations inside the model; the image itself is `trace.image`.
    importances
        Importance of every node, without edges.
    graph
        The nodes that circuits can reach and the edges among them; None until they are computed.
    """

    lens: Lens
    trace: Trace
    importances: Importances
    graph: AttributionGraph | None = None

    @classmethod
    def of(
        cls,
        lens: Lens,
        image: ImageLike,
        *,
        target: TargetLike = None,
        gradient: Gradient = "libragrad",
        error_gradients: ErrorGradients = "leaf",
        engine: Engine = "closed_form",
        graph: AttributionGraph | None = None,
    ) -> Scene:
        """Compute the scene of an image; the parameters are those of `Lens.importances`.

        Raises
        ------
        ImageError, TargetError, ModelError
            See `Lens.importances`.
        """
        trace, found = lens.node_importances(
            image,
            target=target,
            gradient=gradient,
            error_gradients=error_gradients,
            engine=engine,
        )
        return cls(lens, trace, found, graph)

    @property
    def layers(self) -> tuple[int, ...]:
        """Block numbers of the layers with features."""
        return self.lens.layers

    @property
    def target(self) -> str:
        """Name of what is explained."""
        return cast(str, self.importances.target)  # one image has one target

    @property
    def target_value(self) -> float:
        """Value of the target on the image."""
        return cast(float, self.importances.target_value)

    @property
    def target_index(self) -> int | None:
        """Class of the target; None for a function."""
        return cast("int | None", self.importances.target_index)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.lens.vision.grid

    @property
    def prefix_names(self) -> tuple[str, ...]:
        """Names of the tokens before the patches."""
        return self.lens.vision.prefix_names

    @property
    def pixels(self) -> UInt8[Tensor, "H W 3"] | None:
        """The image at the model's resolution; None for a transform that cannot be undone."""
        return self.lens.pixels(self.trace.image)

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class; generated where the lens has none."""
        return self.lens.logit_names

    @property
    def target_node(self) -> FeatureId:
        """The node of the target."""
        return self.layers[-1] + 1, TARGET

    def check(self, node: FeatureId) -> None:
        """Raise `FeatureError` unless this is a feature or an error node of the lens."""
        self._position(node)

    def has_node(self, node: FeatureId) -> bool:
        """Whether the scene has this feature, error node or target."""
        if node == self.target_node:
            return True
        try:
            self.check(node)
        except FeatureError:
            return False
        return True

    def activation(self, node: FeatureId) -> Float[Tensor, " T"]:
        """Activation per token; for an error node the length of its vector."""
        position, feature = self._position(node), node[1]
        if feature == ERROR:
            return self.trace.errors[position].norm(dim=1)
        return self.trace.features[position][:, feature]

    def token_importance(self, node: FeatureId) -> Float[Tensor, " T"]:
        """Importance per token, in units of the target."""
        return self.importances.tokens[self._position(node)][:, node[1]]

    def importance(self, node: FeatureId) -> float:
        """Importance, in units of the target."""
        return float(self.importances.nodes[self._position(node)][node[1]])

    def positive(self, layer: int) -> float:
        """Sum of a layer's positive importances; shares are fractions of it."""
        position = self.lens.replacement.position(layer)
        return float(self.importances.nodes[position].double().clamp(min=0).sum())

    def share(self, node: FeatureId) -> float:
        """Importance divided by the layer's positive importance; 0 where there is none."""
        return _share(self.importance(node), self.positive(node[0]))

    def most_important(self, layer: int) -> FeatureId:
        """The layer's feature of highest importance, without the error node."""
        position = self.lens.replacement.position(layer)
        return layer, int(self.importances.nodes[position][:-1].argmax())

    def logit_lens(self, node: FeatureId) -> Float[Tensor, " C"]:
        """Direct effect of the node on the logits; see `vitlens.method.logit_lens`."""
        with isolated_model(self.lens.vision):
            return logit_lens(self.lens.replacement, self.trace, *node)

    def strongest_in(self, node: FeatureId, n: int) -> tuple[Link, ...]:
        """The `n` strongest edges into a node, or into the target, strongest first."""
        if node == self.target_node:
            last = self.layers[-1]
            return self._links(self.importances.nodes[-1], last, n, shares_of=last)
        position = self._position(node)
        if position == 0:
            return ()
        with isolated_model(self.lens.vision):
            weights = edges_into(self.lens.replacement, self.trace, self.importances, *node)
        before = self.layers[position - 1]
        return self._links(weights, before, n, shares_of=before)

    def strongest_out(self, node: FeatureId, n: int) -> tuple[Link, ...]:
        """The node's `n` strongest edges into the next layer, or its edge to the target."""
        position = self._position(node)
        if position == len(self.layers) - 1:
            return (Link(self.target_node, self.importance(node), self.share(node)),)
        with isolated_model(self.lens.vision):
            weights = edges_out_of(self.lens.replacement, self.trace, self.importances, *node)
        return self._links(weights, self.layers[position + 1], n, shares_of=node[0])

    def _position(self, node: FeatureId) -> int:
        return self.lens.replacement.check_node(*node)

    def _links(self, weights: Tensor, layer: int, n: int, *, shares_of: int) -> tuple[Link, ...]:
        order = weights.abs().topk(min(n, len(weights))).indices
        ends = [int(i) for i in order[weights[order] != 0]]
        positive = self.positive(shares_of) if ends else 0.0
        error = self.lens.replacement.sae(layer).n_features
        return tuple(
            Link(
                (layer, ERROR if end == error else end),
                float(weights[end]),
                _share(float(weights[end]), positive),
            )
            for end in ends
        )


def _share(value: float, whole: float) -> float:
    return value / whole if whole > 0 else 0.0


class NamesPart(NodeTraits, Widget):
    """A part whose `labels` start as the names of the atlas and are saved there when edited.

    A name that is added or changed, in the browser or in Python, is saved at once. A name that is
    deleted in the browser is deleted from the atlas; setting `labels` to an empty dictionary in
    Python, as linking does, deletes nothing there (`Names.remove` does). Names of error nodes and
    of the target are not saved.

    Attributes
    ----------
    author
        Author of the names; by default the name of the user account.
    layers
        Block numbers of the layers with features; () without a lens.
    """

    author = t.Unicode()
    layers = t.Tuple().tag(sync=True)

    _lens: Lens | None = None
    _from_browser = False  # whether the current change comes from the browser
    _not_saved = False  # whether changed labels are only shown

    @property
    def atlas(self) -> Atlas | None:
        """The lens's atlas, if it has one."""
        return None if self._lens is None else self._lens.atlas

    def set_lens(self, lens: Lens) -> None:
        """Set the lens and show the names of its atlas; existing labels take precedence."""
        self._lens = lens
        self.layers = lens.layers
        self.reload_names(self.labels)

    def reload_names(self, given: dict[FeatureId, str] | None = None) -> None:
        """Show the current names of the atlas.

        Parameters
        ----------
        given
            Labels that take precedence over those of the atlas; they are not saved.
        """
        names = self._names()
        if names is None:
            return
        names.reload()
        others = {node: text for node, text in self.labels.items() if node not in names.labels}
        with self.without_saving():
            self.labels = {**others, **names.labels, **(given or {})}

    @contextmanager
    def without_saving(self) -> Iterator[None]:
        """Within this context, changed labels are shown but not saved to the atlas."""
        before, self._not_saved = self._not_saved, True
        try:
            yield
        finally:
            self._not_saved = before

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """Set values from the browser."""
        self._from_browser = True
        try:
            super().set_state(sync_data)
        finally:
            self._from_browser = False

    @t.default("author")
    def _account(self) -> str:
        try:
            return getpass.getuser()
        except (KeyError, OSError, ImportError):  # an account without a name, as in containers
            return ""

    @t.observe("labels")
    def _save_names(self, change: Any) -> None:
        names = self._names()
        if names is None or self._not_saved:
            return
        old, new = dict(change.old or {}), change.new
        changed = {node: text for node, text in new.items() if old.get(node) != text}
        deleted = [node for node in old if node not in new] if self._from_browser else []
        try:
            for node, text in changed.items():
                if node[1] >= 0 and names.get(*node) != text:
                    names.set(node[0], node[1], text, author=self.author)
            for node in deleted:
                if node[1] >= 0:
                    names.remove(node[0], node[1], author=self.author)
        except VitlensError as error:
            self.show_error(error)
            return
        remaining = {
            node: names.get(*node) for node in deleted if node[1] >= 0 and names.get(*node)
        }
        if remaining:
            with self.without_saving():
                self.labels = {**self.labels, **remaining}
            self.notice = "Another author has named this feature; that name is kept."

    def _names(self) -> Names | None:
        atlas = self.atlas
        return None if atlas is None else atlas.names


class ScenePart(NamesPart):
    """A part that shows nodes of a `Scene`.

    `show_scene` is cooperative: one call shows a scene in all parts of a widget.
    """

    _scene: Scene | None = None

    @property
    def scene(self) -> Scene:
        """The scene that is shown.

        Raises
        ------
        FeatureError
            When there is no image yet.
        """
        if self._scene is None:
            raise FeatureError("There is no image yet.")
        return self._scene

    def show_scene(self, scene: Scene) -> None:
        """Show another scene; a selected node that it does not have is deselected."""
        self._scene = scene
        if self._lens is scene.lens:
            self.reload_names()
        else:
            self.set_lens(scene.lens)
        if self.selected is not None and not scene.has_node(self.selected):
            self.selected = None

    def show_atlas(self, lens: Lens) -> None:
        """Show the lens's atlas, without an image.

        Raises
        ------
        FeatureError
            When the lens has no atlas.
        """
        self.set_lens(lens)
        if self.atlas is None:
            raise FeatureError(
                "Without an image, this widget needs a lens with an atlas; see Atlas.build."
            )

    @t.validate("selected")
    def _selected_exists(self, proposal: Any) -> Any:
        node = proposal.value
        if node is not None:
            try:
                self._check_node(node)
            except FeatureError as error:
                raise t.TraitError(f"{type(self).__name__}.selected: {error}") from error
        return node

    def _check_node(self, node: FeatureId) -> None:
        """Raise `FeatureError` unless the node can be shown."""
        scene = self._scene
        if scene is None:
            if self._lens is not None:
                _check_feature(self._lens, node)
        elif node != scene.target_node:
            scene.check(node)


def _check_feature(lens: Lens, node: FeatureId) -> None:
    """Raise `FeatureError` unless this is a feature of the lens."""
    lens.replacement.check_node(*node)
    if node[1] < 0:
        raise FeatureError("Without an image, only features can be shown, not error nodes.")


def scene_of(lens: Lens, image: ImageLike | Scene, target: TargetLike) -> Scene:
    """Return a scene unchanged, or the scene of an image.

    Raises
    ------
    FeatureError
        When the scene is of another lens, or a target is given in addition to it.
    """
    if not isinstance(image, Scene):
        return Scene.of(lens, image, target=target)
    if image.lens is not lens or target is not None:
        raise FeatureError(
            "A Scene has its own lens and target; give neither another lens nor a target."
        )
    return image


def node_title(node: FeatureId, label: str) -> str:
    """Return a title such as "Layer 3, feature 12: fur"."""
    layer, feature = node
    name = f"Layer {layer}, " + ("error node" if feature < 0 else f"feature {feature}")
    return f"{name}: {label}" if label else name
