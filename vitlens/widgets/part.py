"""What the widgets that show a scene share."""

from __future__ import annotations

from typing import Any

import traitlets as t

from vitlens.attribution.logit_lens import check_node
from vitlens.attribution.targets import TargetLike
from vitlens.circuits.circuit import TARGET
from vitlens.errors import FeatureError
from vitlens.images import ImageLike
from vitlens.lens import Lens
from vitlens.widgets.naming import NamesPart
from vitlens.widgets.scene import Scene


class ScenePart(NamesPart):
    """A part that shows nodes of a `Scene`.

    `look_at` is cooperative: a widget made of several parts shows a scene in all of them with one
    call.
    """

    _scene: Scene | None = None

    @property
    def scene(self) -> Scene:
        """What is shown.

        Raises
        ------
        FeatureError
            When no image was given yet.
        """
        if self._scene is None:
            raise FeatureError("There is no image to look at yet.")
        return self._scene

    def look_at(self, scene: Scene) -> None:
        """Show another scene; a selected node that it does not have is let go."""
        self._scene = scene
        if self._owner is scene.lens:
            self.read_names()
        else:
            self.use_lens(scene.lens)
        if self.selected is not None and not has_node(scene, self.selected):
            self.selected = None

    def look_without_image(self, lens: Lens) -> None:
        """Show what the lens's atlas knows of many images.

        Raises
        ------
        FeatureError
            When the lens has no atlas.
        """
        self.use_lens(lens)
        if self.atlas is None:
            raise FeatureError("Without an image this needs a lens with an atlas; see Atlas.build.")

    @t.validate("selected")
    def _selected_exists(self, proposal: Any) -> Any:
        node = proposal.value
        if node is not None:
            try:
                self._check_node(node)
            except FeatureError as error:
                raise t.TraitError(f"{type(self).__name__}.selected: {error}") from error
        return node

    def _check_node(self, node: tuple[int, int]) -> None:
        """Raise `FeatureError` unless the node can be shown."""
        scene = self._scene
        if scene is None:
            if self._owner is not None:
                _check_feature(self._owner, node)
        elif node != (scene.n_layers, TARGET):
            scene.check(node)


def _check_feature(lens: Lens, node: tuple[int, int]) -> None:
    """Raise `FeatureError` unless this is a feature of the lens."""
    check_node(lens.saes, *node)
    if node[1] < 0:
        raise FeatureError("Without an image only features can be shown, no error nodes.")


def has_node(scene: Scene, node: tuple[int, int]) -> bool:
    """Whether the scene has this feature, error node or target."""
    if node == (scene.n_layers, TARGET):
        return True
    try:
        scene.check(node)
    except FeatureError:
        return False
    return True


def scene_of(lens: Lens, image: ImageLike | Scene, target: TargetLike) -> Scene:
    """Return a scene as it is, or look at an image.

    Raises
    ------
    FeatureError
        When the scene is another lens's, or a target is given beside it.
    """
    if not isinstance(image, Scene):
        return Scene.of(lens, image, target=target)
    if image.lens is not lens or target is not None:
        raise FeatureError("A Scene comes with its own lens and target.")
    return image
