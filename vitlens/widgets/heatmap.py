"""Values of a feature over the patches of images, and the features that are active at a patch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import torch
import traitlets as t
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vitlens.errors import FeatureError, ImageError
from vitlens.images import ImageLike, open_image
from vitlens.lens import Lens
from vitlens.method.importance import TargetLike
from vitlens.method.replacement import Trace
from vitlens.saes.base import FeatureId
from vitlens.widgets.base import (
    Choice,
    ImageTraits,
    Widget,
    decode_strip,
    encode_strip,
    from_bytes,
    to_bytes,
)
from vitlens.widgets.scene import Scene, ScenePart, node_title, scene_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Show = Literal["activation", "importance"]
Colours = Literal["heat", "cividis"]

_RANKED = 12  # features per layer


class HeatmapPart(ImageTraits, ScenePart):
    """The traits of a heatmap, and its answers to the browser.

    Attributes
    ----------
    values
        float32 [n_images, T]: per token, prefix tokens first; see `array`.
    value_name
        Name of the values, for the colour bar.
    signed
        Whether the colours distinguish values below 0.
    limits
        The values of the weakest and the strongest colour; None derives them from the values, the
        same for all images. Signed colours are always symmetric about 0.
    show
        "activation" or "importance" of `selected`, for a heatmap of a scene.
    opacity
        Opacity of the strongest colour, 0 to 1.
    colours
        "heat" (blue is positive, orange is negative) or "cividis" (one direction).
    smooth
        Interpolate between the centres of patches.
    show_grid
        Draw the borders of the patches.
    grey
        Show the image in pale grey, so that only the heat has a colour.
    title, image_titles
        Title of the heatmap, and of each image.
    """

    values = t.Bytes(b"").tag(sync=True)
    value_name = t.Unicode("value").tag(sync=True)
    signed = t.Bool(False).tag(sync=True)
    limits = t.Tuple(t.Float(), t.Float(), default_value=None, allow_none=True).tag(sync=True)
    show = Choice(get_args(Show), default_value="importance").tag(sync=True)
    opacity = t.Float(0.8, min=0.0, max=1.0).tag(sync=True)
    colours = Choice(get_args(Colours), default_value="heat").tag(sync=True)
    smooth = t.Bool(False).tag(sync=True)
    show_grid = t.Bool(False).tag(sync=True)
    grey = t.Bool(True).tag(sync=True)
    title = t.Unicode("").tag(sync=True)
    image_titles = t.Tuple().tag(sync=True)

    _scenes: tuple[Scene, ...] = ()

    @property
    def array(self) -> Float[NDArray[np.float32], "n T"]:
        """The values as an array, prefix tokens first."""
        return from_bytes(self.values, "float32", (self.n_images, -1))

    def show_scene(self, scene: Scene) -> None:
        """Show the selected node, or else the most important of the last layer, on one image."""
        super().show_scene(scene)
        self.show_scenes([scene])

    def show_scenes(self, scenes: Sequence[Scene]) -> None:
        """Show the selected node on several images of one lens, on one scale."""
        self._scenes = tuple(scenes)
        first = scenes[0]
        with self.hold_trait_notifications():
            self.n_images = len(scenes)
            self.grid = first.grid
            self.prefix_names = first.prefix_names
            self.patches = ()
            self.image_strip = encode_strip([scene.pixels for scene in scenes])
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
            Per token, prefix tokens first.
        name
            Name of the values.
        signed
            Whether the colours distinguish values below 0; by default whether there are any.
        title
            Title of the heatmap.

        Raises
        ------
        ImageError
            When the shape does not match the images, or values are not finite.
        """
        tokens = len(self.prefix_names) + self.grid[0] * self.grid[1]
        if tuple(values.shape) != (self.n_images, tokens):
            raise ImageError(
                f"{self.n_images} images of {tokens} tokens need values of that shape, "
                f"not {list(values.shape)}."
            )
        if not torch.isfinite(values).all():
            raise ImageError("A heatmap needs finite values; these include NaN or infinity.")
        with self.hold_trait_notifications():
            self.values = to_bytes(values)
            self.value_name = name
            self.signed = bool((values < 0).any()) if signed is None else signed
            self.title = title

    def heatmap_figure(self) -> Figure:
        """Return the images and their heat as a matplotlib figure."""
        from vitlens.plots import heatmaps_figure
        from vitlens.plots.heatmap import Scale

        values = torch.from_numpy(self.array)
        patches = values[:, len(self.prefix_names) :].reshape(self.n_images, *self.grid)
        low, limit = self.limits or (None, None)
        if self.signed and self.limits is not None:  # symmetric about 0
            low, limit = None, max(abs(x) for x in self.limits)
        return heatmaps_figure(
            decode_strip(self.image_strip, self.n_images),
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
        first = self._scenes[0]
        node = self.selected or first.most_important(first.layers[-1])
        if node == first.target_node:
            return  # it has no values per patch
        if self.show == "activation":
            values, unit = [scene.activation(node) for scene in self._scenes], "activation"
        else:
            values = [scene.token_importance(node) for scene in self._scenes]
            targets = {scene.target for scene in self._scenes}
            unit = f"importance for {targets.pop() if len(targets) == 1 else 'its target'}"
        self.set_values(
            torch.stack(values).detach().cpu(),
            name=unit,
            signed=self.show == "importance",
            title=node_title(node, self.labels.get(node, "")),
        )

    @t.validate("values")
    def _one_value_per_token(self, proposal: Any) -> Any:
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
                f"{type(self).__name__}.limits must be (low, high) with low < high, not {limits}."
            )
        return limits

    def _answer_features_at(self, payload: Mapping[str, int], buffers: object) -> dict[str, Any]:
        return self.features_at(payload["token"], image=payload["image"])

    def features_at(self, token: int, *, image: int = 0) -> dict[str, Any]:
        """Return the features that are active at a token.

        Parameters
        ----------
        token
            Prefix tokens come first, then the patches row by row.
        image
            Index of the image.

        Returns
        -------
        dict
            See `token_features`.

        Raises
        ------
        FeatureError
            When the heatmap is of bare values, or there is no such token or image.
        """
        if not self._scenes:
            raise FeatureError(
                "This heatmap holds values only. `PatchHeatmap.of(lens, ...)` also lists features."
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
                answer["features"] = [
                    # a page shows four digits; rounding halves its size
                    [[feature, float(f"{x:.4g}"), label] for feature, x, label in ranked]
                    for ranked in answer["features"]
                ]
                known.append(({"image": image, "token": token}, answer))
        return {**super().offline_answers(), "features_at": known}


class PatchHeatmap(HeatmapPart, Widget, bundle="heatmap"):
    """Images with values per patch.

    Parameters
    ----------
    images
        An image, or None for a plain background; or a list of images of the same size.
    values
        One value per patch, [rows, columns]; or [n, rows, columns] for n images.
    prefix
        Values of the prefix tokens, [P] or [n, P].
    prefix_names
        Their names, such as ("CLS",).
    value_name
        Name of the values, for the colour bar.
    signed
        Whether the colours distinguish values below 0; by default whether there are any.
    title, image_titles, limits, opacity, colours, smooth, show_grid, grey, patches
        First values of the attributes.

    Attributes
    ----------
    values
        float32 [n_images, T]: per token, prefix tokens first; see `array`.
    value_name, signed
        Name of the values, and whether the colours distinguish values below 0.
    limits
        The values of the weakest and the strongest colour; None derives them from the values, the
        same for all images.
    opacity
        Opacity of the strongest colour, 0 to 1.
    colours
        "heat" (blue is positive, orange is negative) or "cividis" (one direction).
    smooth, show_grid, grey
        Interpolate between patches; draw their borders; show the image in pale grey.
    title, image_titles
        Title of the heatmap, and of each image.
    selected, show
        The feature shown, (layer, feature), and whether its "activation" or "importance"; setting
        them shows others.
    patches
        The selected patches, ((row, column), ...); prefix token i is (-1, i).

    Raises
    ------
    ImageError
        When an image cannot be read, shapes do not match, or values are not finite.

    Examples
    --------
    >>> heatmap = PatchHeatmap.of(lens, image, layer=8, feature=213)
    >>> heatmap.observe(lambda change: print(change.new), "patches")
    """

    def __init__(
        self,
        images: ImageLike | Sequence[ImageLike | None] | None = None,
        values: ArrayLike | Tensor | None = None,
        *,
        prefix: ArrayLike | Tensor | None = None,
        prefix_names: Iterable[str] = (),
        value_name: str = "value",
        signed: bool | None = None,
        title: str = "",
        image_titles: Iterable[str] = (),
        limits: tuple[float, float] | None = None,
        opacity: float = 0.8,
        colours: Colours = "heat",
        smooth: bool = False,
        show_grid: bool = False,
        grey: bool = True,
        patches: Iterable[tuple[int, int]] = (),
    ) -> None:
        super().__init__(
            {
                "title": title,
                "image_titles": tuple(image_titles),
                "limits": limits,
                "opacity": opacity,
                "colours": colours,
                "smooth": smooth,
                "show_grid": show_grid,
                "grey": grey,
            }
        )
        if values is None:
            return
        opened = _listed(images)
        heat = _stacked(values, len(opened), "values", ends=2)
        names = tuple(prefix_names)
        before = torch.zeros(len(opened), 0) if prefix is None else prefix
        before = _stacked(before, len(opened), "prefix", ends=1)
        if before.shape[1] != len(names):
            raise ImageError(
                f"{before.shape[1]} prefix values need as many prefix_names, not {names}."
            )
        strip = encode_strip(
            [None if image is None else np.asarray(open_image(image)) for image in opened]
        )
        with self.hold_trait_notifications():
            self.n_images = len(opened)
            self.grid = (heat.shape[1], heat.shape[2])
            self.prefix_names = names
            self.image_strip = strip
            self.set_values(
                torch.cat([before, heat.flatten(1)], dim=1),
                name=value_name,
                signed=signed,
                title=title,
            )
            self.patches = tuple(patches)

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
        labels: Mapping[FeatureId, str] | None = None,
        image_titles: Iterable[str] | None = None,
        limits: tuple[float, float] | None = None,
        opacity: float = 0.8,
        colours: Colours = "heat",
        smooth: bool = False,
        show_grid: bool = False,
        grey: bool = True,
        patches: Iterable[tuple[int, int]] = (),
    ) -> PatchHeatmap:
        """Show a feature on one image or on several; setting `selected` shows another feature.

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
            See `Lens.importances`; by default each image's predicted class.
        labels
            Names of nodes, {(layer, feature): text}; they are not saved.
        image_titles
            By default each image's target, where there are several images.
        limits, opacity, colours, smooth, show_grid, grey, patches
            First values of the attributes.

        Raises
        ------
        FeatureError
            When there is no such feature.
        ImageError, TargetError
            When an image cannot be read, or there is no such target.
        """
        scenes = [scene_of(lens, image, target) for image in _listed(images)]
        scenes[0].check((layer, feature))
        if image_titles is None:  # each image may have a target of its own
            image_titles = [s.target for s in scenes] if len(scenes) > 1 else ()
        heatmap = cls(
            image_titles=image_titles,
            limits=limits,
            opacity=opacity,
            colours=colours,
            smooth=smooth,
            show_grid=show_grid,
            grey=grey,
        )
        heatmap._scene = scenes[0]
        heatmap.labels = dict(labels or {})
        heatmap.set_lens(lens)
        heatmap.selected, heatmap.show = (layer, feature), show
        heatmap.show_scenes(scenes)
        heatmap.patches = tuple(patches)
        return heatmap

    def figure(self) -> Figure:
        """Return the images and their heat as a matplotlib figure."""
        return self.heatmap_figure()


def _listed(images: Any) -> list[Any]:
    """Return one image or a list of images as a list."""
    several = list(images) if isinstance(images, list | tuple) else [images]
    if not several:
        raise ImageError("At least one image is needed.")
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


def token_features(trace: Trace, token: int, labels: Mapping[FeatureId, str]) -> dict[str, Any]:
    """Return the features that are active at a token, by layer, most active first.

    Parameters
    ----------
    trace
        Trace of the image.
    token
        Prefix tokens come first, then the patches row by row.
    labels
        Names of features, by (layer, feature).

    Returns
    -------
    dict
        ``layers``, the block numbers; ``features``, for each layer a list of [feature,
        activation, label]; ``counts``, for each layer how many features are active there, of
        which the list holds the first 12.
    """
    listed, counts = [], []
    for layer, features in zip(trace.layers, trace.features, strict=True):
        active = int((features[token] > 0).sum())
        values, indices = features[token].topk(min(_RANKED, active))
        ranked = zip(indices.tolist(), values.tolist(), strict=True)
        listed.append([[f, z, labels.get((layer, f), "")] for f, z in ranked])
        counts.append(active)
    return {"layers": list(trace.layers), "features": listed, "counts": counts}
