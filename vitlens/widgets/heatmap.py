"""Values of a feature over the patches of images; and from a patch to its features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import torch
import traitlets as t
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vitlens.attribution.targets import TargetLike
from vitlens.errors import FeatureError, ImageError
from vitlens.images import ImageLike, open_image
from vitlens.lens import Lens
from vitlens.widgets.base import Widget
from vitlens.widgets.buffers import decode_strip, encode_strip, from_bytes, to_bytes
from vitlens.widgets.part import ScenePart, scene_of
from vitlens.widgets.scene import Scene
from vitlens.widgets.token_features import token_features
from vitlens.widgets.traits import ImageTraits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Show = Literal["activation", "importance"]


class HeatmapPart(ImageTraits, ScenePart):
    """The traits of a heatmap, and its answers.

    Attributes
    ----------
    values
        float32 [n_images, T]: by token, those before the patches first. `array` reads them.
    value_name
        What the values are, for the colour bar.
    signed
        Whether the colours show both sides of 0.
    limits
        The values of the weakest and the strongest colour; None takes them from the values, the
        same for all images. Signed colours are always symmetric about 0.
    show
        "activation" or "importance" of `selected`; for a heatmap of a scene.
    opacity
        Of the strongest colour, 0 to 1.
    colours
        "heat" (blue adds, orange takes away) or "cividis", which shows only sizes.
    smooth
        Interpolate between the patches' centres.
    show_grid
        Draw the borders of the patches.
    grey
        Show the picture in pale greys, so that only heat has a colour.
    title, image_titles
        Above everything, and above every image.
    n_layers
        Layers whose features a click on a patch brings; 0 where only values are known.
    """

    values = t.Bytes(b"").tag(sync=True)
    value_name = t.Unicode("value").tag(sync=True)
    signed = t.Bool(False).tag(sync=True)
    limits = t.Tuple(t.Float(), t.Float(), default_value=None, allow_none=True).tag(sync=True)
    show = t.Enum(get_args(Show), default_value="importance").tag(sync=True)
    opacity = t.Float(0.8, min=0.0, max=1.0).tag(sync=True)
    colours = t.Enum(("heat", "cividis"), default_value="heat").tag(sync=True)
    smooth = t.Bool(False).tag(sync=True)
    show_grid = t.Bool(False).tag(sync=True)
    grey = t.Bool(True).tag(sync=True)
    title = t.Unicode("").tag(sync=True)
    image_titles = t.Tuple().tag(sync=True)
    n_layers = t.Int(0, min=0).tag(sync=True)

    _scenes: tuple[Scene, ...] = ()

    @property
    def array(self) -> Float[NDArray[np.float32], "n T"]:
        """The values as an array; tokens before the patches come first."""
        return from_bytes(self.values, "float32", (self.n_images, -1))

    def look_at(self, scene: Scene) -> None:
        """Show the selected node, or else the most important of the last layer, on one image."""
        super().look_at(scene)
        self.look_at_all([scene])

    def look_at_all(self, scenes: Sequence[Scene]) -> None:
        """Show the selected node on several images of one lens, on one scale."""
        self._scenes = tuple(scenes)
        first = scenes[0]
        with self.hold_trait_notifications():
            self.n_images = len(scenes)
            self.grid = first.grid
            self.prefix_names = first.prefix_names
            self.patches = ()
            self.picture = encode_strip([scene.picture for scene in scenes])
            self.n_layers = first.n_layers
            self._draw_node()

    def set_values(
        self,
        values: Float[Tensor, "n T"],
        *,
        name: str,
        signed: bool | None = None,
        title: str = "",
    ) -> None:
        """Show other values on the same images.

        Parameters
        ----------
        values
            By token, those before the patches first.
        name
            What the values are.
        signed
            By default, whether one is below 0.
        title
            Above everything.

        Raises
        ------
        ImageError
            When the values do not fit the images or are not finite.
        """
        tokens = len(self.prefix_names) + self.grid[0] * self.grid[1]
        if tuple(values.shape) != (self.n_images, tokens):
            raise ImageError(
                f"{self.n_images} images of {tokens} tokens need values of that shape, "
                f"not {list(values.shape)}."
            )
        if not torch.isfinite(values).all():
            raise ImageError("A heatmap must be finite, and holds NaN or infinite values.")
        with self.hold_trait_notifications():
            self.values = to_bytes(values)
            self.value_name = name
            self.signed = bool((values < 0).any()) if signed is None else signed
            self.title = title

    def heatmap_figure(self) -> Figure:
        """Return the images and their heat, for a page."""
        from vitlens.plots import heatmaps_figure
        from vitlens.plots.heatmap import Scale

        values = torch.from_numpy(self.array)
        patches = values[:, len(self.prefix_names) :].reshape(self.n_images, *self.grid)
        low, limit = self.limits or (None, None)
        if self.signed and self.limits is not None:  # symmetric about 0
            low, limit = None, max(abs(x) for x in self.limits)
        return heatmaps_figure(
            decode_strip(self.picture, self.n_images),
            patches,
            prefix=values[:, : len(self.prefix_names)],
            prefix_names=self.prefix_names,
            label=self.value_name,
            title=self.title,
            titles=self.image_titles,
            limit=limit,
            low=low,
            signed=self.signed,
            scale="heat" if self.signed else cast(Scale, self.colours),  # as the trait allows
            opacity=self.opacity,
        )

    @t.observe("selected", "show", "labels")
    def _node_changed(self, change: Any) -> None:
        if self._scenes:
            self._draw_node()

    def _draw_node(self) -> None:
        node = self.selected or self._scenes[0].most_important(self.n_layers - 1)
        if node[0] >= self.n_layers:
            return  # the target is on no patch
        if self.show == "activation":
            values, unit = [scene.activation(node) for scene in self._scenes], "activation"
        else:
            values = [scene.token_importance(node) for scene in self._scenes]
            targets = {scene.importances.target for scene in self._scenes}
            unit = f"importance for {targets.pop() if len(targets) == 1 else 'its target'}"
        self.set_values(
            torch.stack(values).detach().cpu(),
            name=unit,
            signed=self.show == "importance",
            title=_title(node, self.labels),
        )

    @t.validate("values")
    def _values_of_every_token(self, proposal: Any) -> Any:
        tokens = len(self.prefix_names) + self.grid[0] * self.grid[1]
        if len(proposal.value) not in (0, 4 * self.n_images * tokens):
            raise t.TraitError(
                f"{type(self).__name__}.values needs {4 * self.n_images * tokens} bytes, float32 "
                f"for {self.n_images} images of {tokens} tokens, not {len(proposal.value)}."
            )
        return proposal.value

    @t.validate("limits")
    def _limits_in_order(self, proposal: Any) -> Any:
        limits = proposal.value
        if limits is not None and not (np.isfinite(limits).all() and limits[0] < limits[1]):
            raise t.TraitError(
                f"{type(self).__name__}.limits are (low, high) with low < high, not {limits}."
            )
        return limits

    def _answer_features_at(self, payload: Mapping[str, int], buffers: object) -> dict[str, Any]:
        return self.features_at(payload["token"], image=payload["image"])

    def features_at(self, token: int, *, image: int = 0) -> dict[str, Any]:
        """Return the features active at a token; see `vitlens.widgets.token_features`.

        Parameters
        ----------
        token
            Those before the patches come first, then the patches row by row.
        image
            Which of the images.

        Raises
        ------
        FeatureError
            When the heatmap was made of bare values, or there is no such token or image.
        """
        if not self._scenes:
            raise FeatureError(
                "This heatmap was made of bare values; `PatchHeatmap.of(lens, ...)` knows features."
            )
        if not 0 <= image < len(self._scenes):
            raise FeatureError(f"There is no image {image}; there are {len(self._scenes)}.")
        trace = self._scenes[image].trace
        if not 0 <= token < len(trace.features[0]):
            raise FeatureError(f"There is no token {token}; there are {len(trace.features[0])}.")
        return token_features(trace, token, self.labels)

    def offline_answers(self) -> dict[str, list[tuple[Any, Any]]]:
        """Return the features at every token, for an exported page."""
        tokens = len(self.prefix_names) + self.grid[0] * self.grid[1]
        known = []
        for image in range(len(self._scenes)):
            for token in range(tokens):
                answer = self.features_at(token, image=image)
                answer["layers"] = [
                    # four figures are all a page shows, and halve it
                    [[feature, float(f"{x:.4g}"), label] for feature, x, label in ranked]
                    for ranked in answer["layers"]
                ]
                known.append(({"image": image, "token": token}, answer))
        return {**super().offline_answers(), "features_at": known}


class PatchHeatmap(HeatmapPart, Widget, bundle="heatmap"):
    """Images with values over their patches.

    Parameters
    ----------
    pictures
        An image, or None for a plain ground; or several images of one size.
    values
        One value a patch, [rows, columns]; or [n, rows, columns] for n images.
    prefix
        Values of tokens that are no patches, [P] or [n, P].
    prefix_names
        Their names, such as ("CLS",).
    value_name
        What the values are, for the colour bar.
    traits
        Any trait of `HeatmapPart`.

    Raises
    ------
    ImageError
        When an image cannot be read, the shapes do not fit, or values are not finite.

    Examples
    --------
    >>> heatmap = PatchHeatmap.of(lens, image, layer=8, feature=213)
    >>> heatmap.observe(lambda change: print(change.new), "patches")
    """

    def __init__(
        self,
        pictures: ImageLike | Sequence[ImageLike | None] | None = None,
        values: Any = None,
        *,
        prefix: Any = None,
        prefix_names: Iterable[str] = (),
        value_name: str = "value",
        **traits: Any,
    ) -> None:
        patches = traits.pop("patches", ())  # can only be checked once there is a grid
        super().__init__(**traits)
        if values is None:
            return
        images = _listed(pictures)
        heat = _stacked(values, len(images), "values", ends=2)
        names = tuple(prefix_names)
        before = torch.zeros(len(images), 0) if prefix is None else prefix
        before = _stacked(before, len(images), "prefix", ends=1)
        if before.shape[1] != len(names):
            raise ImageError(f"{before.shape[1]} prefix values need as many names, not {names}.")
        strip = encode_strip(
            [None if image is None else np.asarray(open_image(image)) for image in images]
        )
        with self.hold_trait_notifications():
            self.n_images = len(images)
            self.grid = (heat.shape[1], heat.shape[2])
            self.prefix_names = names
            self.picture = strip
            self.set_values(
                torch.cat([before, heat.flatten(1)], dim=1),
                name=value_name,
                signed=traits.get("signed"),
                title=self.title,
            )
            self.patches = patches

    @classmethod
    def of(
        cls,
        lens: Lens,
        images: ImageLike | Scene | Sequence[ImageLike | Scene],
        layer: int,
        feature: int,
        *,
        show: Show = "importance",
        target: TargetLike = None,
        **traits: Any,
    ) -> PatchHeatmap:
        """Show a feature on one image or on several; setting `selected` shows another one.

        Parameters
        ----------
        lens
            The lens.
        images
            One image or scene, or a list of them.
        layer, feature
            The feature; -1 is the layer's error node.
        show
            "activation", or "importance" for the target.
        target
            As for `Lens.importances`; by default each image's predicted class.
        traits
            Any trait of `HeatmapPart`.

        Raises
        ------
        FeatureError
            When there is no such feature.
        ImageError, TargetError
            When an image cannot be read, or there is no such target.
        """
        scenes = [scene_of(lens, image, target) for image in _listed(images)]
        scenes[0].check((layer, feature))
        if len(scenes) > 1:  # each may have its own target
            traits.setdefault("image_titles", [scene.importances.target for scene in scenes])
        patches = traits.pop("patches", ())
        heatmap = cls(selected=(layer, feature), show=show, **traits)
        heatmap._scene = scenes[0]
        heatmap.look_at_all(scenes)
        heatmap.patches = patches
        return heatmap

    def figure(self) -> Figure:
        """Return the images and their heat, for a page."""
        return self.heatmap_figure()


def _listed(images: Any) -> list[Any]:
    """Return one thing or several as a list."""
    several = list(images) if isinstance(images, list | tuple) else [images]
    if not several:
        raise ImageError("There must be an image.")
    return several


def _stacked(values: Any, n: int, name: str, *, ends: int) -> Float[Tensor, "n ..."]:
    """Return values as a tensor with one leading dimension for the images."""
    try:
        tensor = torch.as_tensor(np.asarray(values) if isinstance(values, list) else values)
        tensor = tensor.detach().cpu().float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ImageError(f"{name} must be numbers: {error}.") from error
    if tensor.ndim == ends:
        tensor = tensor[None]
    if tensor.ndim != ends + 1 or len(tensor) != n or (ends == 2 and not tensor.numel()):
        shape = "n, rows, columns" if ends == 2 else "n, P"
        raise ImageError(f"{name} must be [{shape}] for n = {n} images, not {list(tensor.shape)}.")
    return tensor


def _title(node: tuple[int, int], labels: Mapping[tuple[int, int], str]) -> str:
    layer, feature = node
    name = f"Layer {layer}, error node" if feature < 0 else f"Layer {layer}, feature {feature}"
    label = labels.get(node, "")
    return f"{name}: {label}" if label else name
