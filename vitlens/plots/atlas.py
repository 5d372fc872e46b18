"""A contact sheet of features: pictures, place, tuning and scores, a row each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec, SubplotSpec
from numpy.typing import NDArray
from torch import Tensor

from vitlens.atlas.scores import KINDS, kind_of
from vitlens.atlas.stimuli import TEXTURES
from vitlens.errors import FeatureError
from vitlens.plots.heat import POSITIVE, colours, heat_on_picture
from vitlens.plots.page import INK, QUIET, literal
from vitlens.plots.tuning import draw_arcs, draw_hues, draw_orientation, draw_textures

if TYPE_CHECKING:
    from vitlens.atlas.atlas import Atlas
    from vitlens.atlas.profile import FeatureProfile, Shown
    from vitlens.atlas.tuning import Tuning

_PIXELS = 224
_ROW = 1.72  # inches
_HEAD = 0.35
_WORTH_SAYING = 0.05  # a smaller share on prefix tokens is not named
_SCORES = tuple(names[0] for names in KINDS.values())


def feature_sheet(
    atlas: Atlas,
    nodes: Sequence[tuple[int, int]],
    *,
    n_pictures: int = 6,
    title: str = "",
    width: float = 15.0,
) -> Figure:
    """Draw features one below the other, to look through.

    Parameters
    ----------
    atlas
        With pictures, or a lens and the originals.
    nodes
        (layer, feature) of each.
    n_pictures
        How many top pictures of each; below them, where the feature is active in them.
    title
        Above the sheet.
    width
        Of the figure, in inches.

    Returns
    -------
    matplotlib.figure.Figure
        Not known to pyplot. From the left: the name, the top pictures, the mean activation by
        place, the responses to the stimuli (orientations, hues, arcs, textures), and the scores,
        with a black line at the level of chance.

    Raises
    ------
    FeatureError
        If there are no features, or one does not exist.
    """
    if not nodes:
        raise FeatureError("A sheet needs at least one feature.")
    height = _HEAD + _ROW * len(nodes)
    figure = Figure(figsize=(width, height), facecolor="white")
    # Empty columns leave room for the labels of what follows them.
    grid = GridSpec(
        len(nodes), n_pictures + 7, figure=figure, left=0.005, right=0.99,
        top=1 - _HEAD / height, bottom=0.32 / height, wspace=0.04, hspace=0.2,
        width_ratios=(1.2, *(0.63,) * n_pictures, 0.05, 1.1, 0.3, 4.0, 1.0, 1.0),
    )  # fmt: skip
    place, tuning, scores = n_pictures + 2, n_pictures + 4, n_pictures + 6
    for row, (layer, feature) in enumerate(nodes):
        profile = atlas.feature(layer, feature)
        _draw_words(figure.add_subplot(grid[row, 0]), profile)
        shown = atlas.top(layer, feature, n_pictures)
        for column, one in enumerate(shown, start=1):
            _draw_picture(figure, grid[row, column], one, atlas.grid)
        _draw_place(figure.add_subplot(grid[row, place]), profile.mean_map, atlas.grid)
        if profile.tuning is not None:
            _draw_tuning(figure, grid[row, tuning], profile.tuning)
        _draw_scores(figure.add_subplot(grid[row, scores]), profile)
    figure.suptitle(literal(title), fontsize=11, x=0.005, ha="left", va="top", y=0.995)
    return figure


def _draw_words(axes: Axes, profile: FeatureProfile) -> None:
    axes.set_axis_off()
    kind = kind_of(profile.scores, profile.chance)
    on_prefix = profile.scores.get("prefix_share", 0.0)
    proposed = f"{profile.proposals[0].text}?" if profile.proposals else ""
    lines = [
        profile.name or proposed,
        str(kind),
        f"highest for {profile.best_class}" if _is_of_class(profile) else "",
        f"{profile.image_frequency:.1%} of images",
        f"{profile.frequency:.2%} of tokens",
        f"{on_prefix:.0%} on prefix tokens" if on_prefix >= _WORTH_SAYING else "",
        f"trust {profile.trust.value:.2f}",
    ]
    axes.text(
        0, 1, f"{profile.layer}/{profile.feature}", fontsize=11, weight="bold", va="top",
        color=INK, transform=axes.transAxes,
    )  # fmt: skip
    words = literal("\n".join(line[:26] for line in lines if line))
    axes.text(
        0, 0.82, words, fontsize=7.5, va="top", color=INK, linespacing=1.35,
        transform=axes.transAxes,
    )  # fmt: skip


def _is_of_class(profile: FeatureProfile) -> bool:
    (name,) = KINDS["class"]
    return profile.scores.get(name, 0.0) > profile.chance.get(name, np.inf)


def _draw_picture(figure: Figure, place: SubplotSpec, shown: Shown, grid: tuple[int, int]) -> None:
    above, below = place.subgridspec(2, 1, hspace=0.03).subplots(squeeze=False)[:, 0]
    picture, heat = shown.picture, shown.heat
    for axes in (above, below):
        axes.set_axis_off()
        axes.set_anchor("C")
    pixels = None if picture is None else np.asarray(picture.convert("RGB"))
    if pixels is not None:
        above.imshow(pixels, interpolation="antialiased")
    if heat is not None:
        n_patches = grid[0] * grid[1]
        patches = heat.double().numpy()[-n_patches:].reshape(grid) / (shown.peak or 1.0)
        size = (round(_PIXELS * grid[0] / max(grid)), round(_PIXELS * grid[1] / max(grid)))
        below.imshow(heat_on_picture(pixels, patches, size=size), interpolation="none")
    above.set_title(literal(f"{shown.peak:.3g} {shown.label}"[:14]), fontsize=6, pad=1.5)


def _draw_place(axes: Axes, mean_map: Float[Tensor, " T"], grid: tuple[int, int]) -> None:
    patches = mean_map.double().numpy()[-grid[0] * grid[1] :].reshape(grid)
    axes.imshow(patches, cmap=colours(signed=False), vmin=0, interpolation="none")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(QUIET)
    axes.spines[:].set_linewidth(0.4)
    axes.set_title(f"by place, up to {patches.max():.2g}", fontsize=6.5, pad=2)


def _draw_tuning(figure: Figure, place: SubplotSpec, tuning: Tuning) -> None:
    cells = place.subgridspec(2, 2, hspace=0.5, wspace=0.42, width_ratios=(1.3, 1)).subplots(
        squeeze=False
    )
    draws = (draw_orientation, draw_hues, draw_arcs, draw_textures)
    for axes, draw in zip(cells.ravel(), draws, strict=True):
        draw(axes, tuning)
        axes.tick_params(labelsize=5.5, length=1.5, pad=1)
    cells[1, 1].set_yticks(range(len(TEXTURES)), TEXTURES, fontsize=4.5)
    for axes in cells.ravel():
        axes.set_title("")


def _draw_scores(axes: Axes, profile: FeatureProfile) -> None:
    names = [name for name in _SCORES if name in profile.scores]
    values = np.nan_to_num([profile.scores[name] for name in names])
    chance = [profile.chance.get(name, np.nan) for name in names]
    spots = np.arange(len(names))
    beyond: NDArray[np.bool_] = values > np.array(chance)
    axes.barh(spots, values, height=0.62, color=[POSITIVE if b else "#B5B5B5" for b in beyond])
    axes.vlines(chance, spots - 0.42, spots + 0.42, color="black", lw=1.0)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(names) - 0.4, -0.6)
    words = [f"{name.replace('_', ' ')} {v:.2f}" for name, v in zip(names, values, strict=True)]
    axes.set_yticks(spots, [text.replace("-", "−") for text in words], color=INK)
    axes.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
    axes.tick_params(labelsize=6, length=1.5, pad=1)
    axes.spines[["top", "right"]].set_visible(False)
