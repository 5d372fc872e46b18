"""A contact sheet of features: pictures, place, tuning and scores, a row each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec, SubplotSpec
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch import Tensor

from vitlens.atlas.scores import KINDS, kind_of
from vitlens.errors import FeatureError
from vitlens.plots.heat import POSITIVE, colours, heat_on_picture
from vitlens.plots.page import INK, QUIET, literal
from vitlens.plots.tuning import draw_arcs, draw_hues, draw_orientation, draw_textures

if TYPE_CHECKING:
    from vitlens.atlas.atlas import Atlas
    from vitlens.atlas.gallery import FeatureImage
    from vitlens.atlas.profile import FeatureProfile
    from vitlens.atlas.tuning import Tuning

_PIXELS = 224
# Heights in inches.
_TITLE = 0.3
_HEAD = 0.66
_ROW = 1.75  # of the panels
_FOOT = 0.38  # the labels below the last row
_BETWEEN = 0.58  # labels below a row, and the line before the next one
_ABOVE = 0.18  # from that line to the next row's panels
_HEADINGS = {
    "feature": ("feature", "layer/number"),
    "pictures": ("top pictures", "largest activation, class; below, blue where active"),
    "place": ("by place", "mean activation"),
    "shapes": ("orientations; below, arcs", ""),
    "colours": ("hues; below, textures", ""),
    "scores": ("scores", "line: chance; blue: above"),
}
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
        place, the responses to the stimuli (orientations and arcs, hues and textures), and the
        scores, with a black line at the level of chance. Radii of arcs are in patches.

    Raises
    ------
    FeatureError
        If there are no features, or one does not exist.
    """
    if not nodes:
        raise FeatureError("A sheet needs at least one feature.")
    head = _HEAD + (_TITLE if title else 0.0)
    height = head + _ROW * len(nodes) + _BETWEEN * (len(nodes) - 1) + _FOOT
    figure = Figure(figsize=(width, height), facecolor="white")
    slots = max(n_pictures, 4)  # fewer would be narrower than their heading
    columns = _columns(slots)
    grid = GridSpec(
        len(nodes), len(columns), figure=figure, left=0.005, right=0.99, wspace=0,
        top=1 - head / height, bottom=_FOOT / height, hspace=_BETWEEN / _ROW,
        width_ratios=list(columns.values()),
    )  # fmt: skip
    at = {name: number for number, name in enumerate(columns)}
    for row, (layer, feature) in enumerate(nodes):
        profile = atlas.feature(layer, feature)
        _draw_words(figure.add_subplot(grid[row, at["feature"]]), profile)
        places = grid[row, at["pictures"]].subgridspec(1, slots, wspace=0.06)
        for column, one in enumerate(atlas.top(layer, feature, n_pictures)):
            _draw_picture(figure, places[0, column], one, atlas.grid)
        _draw_place(figure.add_subplot(grid[row, at["place"]]), profile.mean_map, atlas.grid)
        if profile.tuning is not None:
            shapes, colours = grid[row, at["shapes"]], grid[row, at["colours"]]
            _draw_tuning(figure, shapes, colours, profile.tuning)
        _draw_scores(figure.add_subplot(grid[row, at["scores"]]), profile)
        if row:
            y = 1 - (head + (_ROW + _BETWEEN) * row - _ABOVE) / height
            figure.add_artist(Line2D((0.005, 0.99), (y, y), color="#C8C8C8", lw=0.6))
    _draw_head(figure, {name: grid[0, number] for name, number in at.items()})
    figure.suptitle(literal(title), fontsize=11, x=0.005, ha="left", va="top", y=1 - 0.06 / height)
    return figure


def _columns(slots: int) -> dict[str, float]:
    """Widths of the columns, in inches at the default width; those named by a blank are gaps."""
    columns = {
        "feature": 1.4,
        "pictures": min(0.82 * slots, 4.7),
        " ": 0.15,
        "place": 1.35,
        "  ": 0.5,
        "shapes": 1.8,
        "   ": 0.85,
        "colours": 1.6,
        "    ": 1.2,
        "scores": 1.15,
    }
    spare = max(14.8 - sum(columns.values()), 0.0)
    for name, share in (("shapes", 0.4), ("colours", 0.35), ("scores", 0.25)):
        columns[name] += share * spare
    return columns


def _draw_head(figure: Figure, places: dict[str, SubplotSpec]) -> None:
    """Head each column, and explain once what all rows show."""
    inch = 1 / figure.get_figheight()
    top = places["feature"].get_position(figure).y1 + _ABOVE * inch
    lines = {
        label: line
        for axes in figure.axes
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    for name, (heading, words) in _HEADINGS.items():
        if name in ("shapes", "colours") and not lines:
            continue
        x = places[name].get_position(figure).x0
        figure.text(x, top + 0.26 * inch, heading, fontsize=9, weight="bold", color=INK)
        figure.text(x, top + 0.1 * inch, words, fontsize=7, color=INK)
    if lines:
        x = places["shapes"].get_position(figure).x0
        figure.legend(
            lines.values(), lines.keys(), loc="lower left", bbox_to_anchor=(x, top + 0.07 * inch),
            ncols=len(lines), fontsize=7, frameon=False, borderpad=0, borderaxespad=0,
            handlelength=2.4, handletextpad=0.4, columnspacing=1.2,
        )  # fmt: skip


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


def _draw_picture(
    figure: Figure, place: SubplotSpec, shown: FeatureImage, grid: tuple[int, int]
) -> None:
    above, below = place.subgridspec(2, 1, hspace=0.03).subplots(squeeze=False)[:, 0]
    picture, heat = shown.image, shown.heatmap
    for axes in (above, below):
        axes.set_axis_off()
        axes.set_anchor("N")
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
    axes.set_anchor("N")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(QUIET)
    axes.spines[:].set_linewidth(0.4)
    axes.set_title(f"blue up to {patches.max():.2g}", fontsize=6.5, pad=2)


def _draw_tuning(figure: Figure, shapes: SubplotSpec, colours: SubplotSpec, tuning: Tuning) -> None:
    # Hues are low, so that each of the textures has room for its name.
    for place, heights, draws in (
        (shapes, (1.1, 1), (draw_orientation, draw_arcs)),
        (colours, (0.7, 1.4), (draw_hues, draw_textures)),
    ):
        cells = place.subgridspec(2, 1, hspace=0.52, height_ratios=heights)
        for row, draw in enumerate(draws):
            draw(figure.add_subplot(cells[row, 0]), tuning, size=6.5)


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
