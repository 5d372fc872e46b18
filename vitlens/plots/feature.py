"""Features one by one: on an image, on synthetic stimuli, and in a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec, SubplotSpec
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox
from numpy.typing import NDArray
from torch import Tensor

from vitlens.atlas import stimuli
from vitlens.atlas.scores import KINDS, kind_of
from vitlens.atlas.tuning import Tuning
from vitlens.errors import FeatureError
from vitlens.plots.heatmap import colours, heat_on_image
from vitlens.plots.style import (
    BLUE,
    GREEN,
    NEGATIVE,
    POSITIVE,
    SKY,
    AnyFigure,
    literal,
    new_figure,
    numbers_of,
    root_of,
    set_heading,
    size_of,
    styled,
    theme_of,
)
from vitlens.saes.base import FeatureId

if TYPE_CHECKING:
    from vitlens.atlas.atlas import Atlas
    from vitlens.atlas.gallery import FeatureImage
    from vitlens.atlas.profile import FeatureProfile

_PIXELS = 336  # of the longer side of a heatmap
_TOP_PIXELS = 224  # of a top image
_BINS = 20
_CLASSES = 5
# Edges in the ink of the theme, then gratings from fine to coarse: dashes and markers differ too.
# None is dotted, as the response to the blank is.
_LINES: tuple[tuple[str, str | None, str, str | tuple[int, tuple[int, ...]]], ...] = (
    ("edges", None, "o", "-"),
    ("fine gratings", SKY, "v", (0, (4, 1, 1, 1, 1, 1))),
    ("middle gratings", BLUE, "s", "--"),
    ("coarse gratings", GREEN, "^", "-."),
)
# The sheet; in inches.
_SHEET_WIDTH = 15.0
_TITLE = 0.3
_HEAD = 0.66
_ROW = 1.75  # of the panels
_FOOT = 0.38  # the labels below the last row
_BETWEEN = 0.58  # labels below a row, and the line before the next one
_ABOVE = 0.18  # from that line to the next row's panels
_HEADINGS = {
    "feature": ("feature", "layer/number"),
    "images": ("top images", "peak activation, class; below: where active"),
    "position": ("by position", "mean activation"),
    "shapes": ("orientations; below: arcs", ""),
    "colours": ("hues; below: textures", ""),
    "scores": ("scores", "line: chance; blue: above"),
}
_NOTEWORTHY = 0.05  # a smaller share on prefix tokens is not mentioned
_SCORES = tuple(names[0] for names in KINDS.values())


@styled
def feature_figure(
    image: UInt8[Tensor, "H W 3"] | None,
    *,
    activation: Float[Tensor, " T"],
    importance: Float[Tensor, " T"],
    effects: Float[Tensor, " C"],
    grid: tuple[int, int],
    prefix_names: Sequence[str] = (),
    class_names: Sequence[str],
    title: str = "",
    subtitle: str = "",
    width: float = 10.0,
    figure: AnyFigure | None = None,
) -> Figure:
    """Draw one feature on one image: activation, importance, histogram, logit lens.

    Parameters
    ----------
    image
        [H, W, 3] as the model saw it; None for a plain background.
    activation, importance
        Per token, [T], prefix tokens first.
    effects
        The feature's direct effect on each logit, [C]; see `Lens.logit_lens`.
    grid, prefix_names
        Rows and columns of patches, and the names of the tokens before them.
    class_names
        One per class.
    title, subtitle
        Title above the figure.
    width
        Width of a new figure, in inches.
    figure
        Figure or subfigure to draw in; by default a new figure.

    Returns
    -------
    matplotlib.figure.Figure
        Blue is above 0, orange below.

    Raises
    ------
    FeatureError
        When the numbers of tokens or classes do not match.
    """
    tokens = len(prefix_names) + grid[0] * grid[1]
    if not len(activation) == len(importance) == tokens:
        raise FeatureError(
            f"The image has {tokens} tokens, not {len(activation)} activations and "
            f"{len(importance)} importances."
        )
    if len(effects) != len(class_names):
        raise FeatureError(f"{len(effects)} effects do not match {len(class_names)} classes.")
    if figure is None:
        figure = new_figure(width, 0.36 * width)
    axes = figure.subplots(1, 4, width_ratios=(1.15, 1.15, 1, 1))
    _draw_heat(axes[0], image, numbers_of(activation), grid, prefix_names, "activation")
    _draw_heat(axes[1], image, numbers_of(importance), grid, prefix_names, "importance")
    _draw_histogram(axes[2], numbers_of(activation))
    _draw_effects(axes[3], numbers_of(effects), class_names)
    heading = "\n".join(line for line in (title, subtitle) if line)
    set_heading(figure, heading, left=True)
    return root_of(figure)


def _draw_heat(
    axes: Axes,
    image: UInt8[Tensor, "H W 3"] | None,
    values: NDArray[np.float64],
    grid: tuple[int, int],
    prefix_names: Sequence[str],
    name: str,
) -> None:
    strongest = float(np.abs(values).max()) or 1.0
    values = values / strongest
    n = len(prefix_names)
    longer = max(grid)
    size = (round(_PIXELS * grid[0] / longer), round(_PIXELS * grid[1] / longer))
    pixels = None if image is None else torch.as_tensor(image).cpu().numpy()
    axes.imshow(heat_on_image(pixels, values[n:].reshape(grid), size=size), interpolation="none")
    axes.set_axis_off()
    axes.set_title(f"{name}, strongest {strongest:.3g}", fontsize=9)
    side = size[0] / 12
    for number, token in enumerate(prefix_names):
        x, y = -1.5 * side, number * 1.9 * side
        colour = colours()(0.5 + 0.5 * values[number])
        axes.add_patch(
            Rectangle((x, y), side, side, fc=colour, ec=theme_of(axes).quiet, lw=0.6, clip_on=False)
        )
        axes.text(-0.4 * side, y + 1.1 * side, literal(token), fontsize=6, ha="right", va="top")


def _draw_histogram(axes: Axes, activation: NDArray[np.float64]) -> None:
    active = activation[activation > 0]
    axes.set_title(f"active on {len(active)} of {len(activation)} tokens", fontsize=9)
    if not len(active):
        axes.set_axis_off()
        return
    axes.hist(active, bins=_BINS, range=(0, float(active.max())), color=POSITIVE)
    axes.set_xlabel("activation", fontsize=8)
    axes.set_ylabel("tokens", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def _draw_effects(axes: Axes, effects: NDArray[np.float64], class_names: Sequence[str]) -> None:
    order = np.argsort(-effects, kind="stable")
    up = [i for i in order[:_CLASSES] if effects[i] > 0]
    down = [i for i in order[::-1][:_CLASSES] if effects[i] < 0][::-1]
    shown = [*up, *down]
    axes.set_title("logit lens", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(3))  # more labels would touch
    if not shown:
        axes.set_axis_off()
        return
    bars = [POSITIVE if effects[i] > 0 else NEGATIVE for i in shown]
    axes.barh(range(len(shown)), effects[shown], color=bars)
    names = [literal(class_names[i][:24]) for i in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(0, color=theme_of(axes).quiet, lw=0.6)
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right", "left"]].set_visible(False)


@styled
def tuning_figure(
    tuning: Tuning, *, title: str = "", width: float = 11.0, figure: AnyFigure | None = None
) -> Figure:
    """Draw a feature's mean responses to the synthetic stimuli.

    Parameters
    ----------
    tuning
        The feature's responses and indices.
    title
        Title above the figure.
    width
        Width of a new figure, in inches.
    figure
        Figure or subfigure to draw in; by default a new figure.

    Returns
    -------
    matplotlib.figure.Figure
        Orientations of edges and gratings, radii and directions of arcs, hues and greys in their
        own colours, and textures; the dotted line is the response to a blank image. Radii are in
        patches.
    """
    if figure is None:
        figure = new_figure(width, 0.27 * width)
    axes = figure.subplots(1, 4, width_ratios=(1.1, 1, 1.25, 1))
    _draw_orientation(axes[0], tuning)
    _draw_arcs(axes[1], tuning)
    _draw_hues(axes[2], tuning)
    _draw_textures(axes[3], tuning)
    axes[0].legend(fontsize=6.5, frameon=False)
    headings = {
        "orientation": ("orientation",),
        "arcs": ("direction", "curvature"),
        "hue": ("hue",),
        "texture": ("texture",),
    }
    for one, (heading, names) in zip(axes, headings.items(), strict=True):
        figures = [f"{name} {tuning.indices[name]:.2f}" for name in names if name in tuning.indices]
        one.set_title((", ".join(figures) or heading).replace("-", "−"), fontsize=9)
    set_heading(figure, title, left=True)
    return root_of(figure)


def _draw_orientation(axes: Axes, tuning: Tuning, *, size: float = 8) -> None:
    """Draw the response to each orientation, one line for edges and one per grating.

    The legend is left to the caller; in all panels, `size` is that of the text, in points.
    """
    # The first point again at the end: orientations are a circle.
    angles = [*stimuli.ORIENTATIONS, 180 + stimuli.ORIENTATIONS[0]]
    for row, (name, colour, marker, dash) in zip(
        numbers_of(tuning.orientation), _LINES, strict=True
    ):
        axes.plot(
            angles,
            [*row, row[0]],
            color=colour or theme_of(axes).ink,
            marker=marker,
            ls=dash,
            ms=2.5,
            lw=1.1,
            label=name,
        )
    _frame_responses(axes, tuning, size)
    axes.set_xlim(0, 195)
    axes.set_xticks((0, 45, 90, 135, 180), [f"{a}°" for a in (0, 45, 90, 135, 180)])
    axes.set_xlabel("orientation", fontsize=size, labelpad=1)
    axes.set_ylabel("activation", fontsize=size)


def _draw_arcs(axes: Axes, tuning: Tuning, *, size: float = 8) -> None:
    """Draw the response to arcs by radius and direction; the last row is straight lines."""
    axes.imshow(numbers_of(tuning.direction), cmap=colours(signed=False), vmin=0, aspect="auto")
    radii = [f"{radius:g}" for radius in stimuli.RADII[:-1]]
    axes.set_yticks(range(len(stimuli.RADII)), [*radii, "line"])
    arrows = ("→", "↗", "↑", "↖", "←", "↙", "↓", "↘")
    axes.set_xticks(range(len(stimuli.DIRECTIONS)), arrows)
    axes.tick_params(labelsize=size - 1, length=0, pad=2)
    scale = f"darkest: {float(tuning.direction.max()):.2g}"
    axes.set_xlabel(f"direction of the bulge ({scale})", fontsize=size, labelpad=1)
    axes.set_ylabel("radius in patches", fontsize=size)


def _draw_hues(axes: Axes, tuning: Tuning, *, size: float = 8) -> None:
    """Draw the response to pale and strong hues, and to greys, as bars in their colours."""
    pale, strong = numbers_of(tuning.hue)
    spots = np.arange(len(stimuli.HUES))
    for shift, values, chroma in (
        (0.0, pale, stimuli.CHROMAS[0]),
        (0.4, strong, stimuli.CHROMAS[1]),
    ):
        shades = [stimuli.oklch(stimuli.HUE_LIGHTNESS, chroma, hue) for hue in stimuli.HUES]
        axes.bar(
            spots + shift,
            values,
            width=0.4,
            align="edge",
            color=shades,
            ec=theme_of(axes).quiet,
            lw=0.3,
        )
    greys = [stimuli.oklch(grey, 0, 0) for grey in stimuli.GREYS]
    where = len(spots) + 0.8 + 0.9 * np.arange(len(greys))
    axes.bar(
        where,
        numbers_of(tuning.grey),
        width=0.8,
        align="edge",
        color=greys,
        ec=theme_of(axes).quiet,
        lw=0.3,
    )
    _frame_responses(axes, tuning, size)
    names = ["hues: pale, strong", "grey"]
    axes.set_xticks([6.0, float(where.mean()) + 0.4], names, fontsize=size)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("activation", fontsize=size)


def _draw_textures(axes: Axes, tuning: Tuning, *, size: float = 8) -> None:
    """Draw the response to each texture as a bar."""
    values = numbers_of(tuning.texture)
    axes.barh(range(len(values)), values, color=POSITIVE)
    axes.invert_yaxis()
    axes.set_yticks(range(len(values)), stimuli.TEXTURES)
    axes.set_xlim(0, max(float(values.max()), tuning.blank) * 1.05 or 1.0)
    axes.axvline(tuning.blank, color=theme_of(axes).ink, ls=":", lw=0.8)
    axes.tick_params(labelsize=size - 1, length=2, pad=2)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("activation", fontsize=size, labelpad=1)


def _frame_responses(axes: Axes, tuning: Tuning, size: float) -> None:
    axes.set_ylim(0, axes.get_ylim()[1] or 1.0)
    axes.axhline(tuning.blank, color=theme_of(axes).ink, ls=":", lw=0.8, label="blank")
    axes.tick_params(labelsize=size - 1, length=2, pad=2)
    axes.spines[["top", "right"]].set_visible(False)


@styled
def feature_sheet(
    atlas: Atlas,
    features: Sequence[FeatureId],
    *,
    n_images: int = 6,
    title: str = "",
    width: float = _SHEET_WIDTH,
    figure: AnyFigure | None = None,
) -> Figure:
    """Draw a contact sheet of features, one row each.

    Parameters
    ----------
    atlas
        With stored images, or with a lens and the original files.
    features
        (layer, feature) of each.
    n_images
        Number of top images per feature; below each, where the feature is active.
    title
        Title above the sheet.
    width
        Width of a new figure, in inches.
    figure
        Figure or subfigure to draw in; by default a new figure.

    Returns
    -------
    matplotlib.figure.Figure
        From the left: the name, the top images, the mean activation by position, the responses to
        the stimuli (orientations and arcs, hues and textures), and the scores, with a dark line
        at the level of chance. Radii of arcs are in patches.

    Raises
    ------
    FeatureError
        When there are no features, or one does not exist.
    """
    if not features:
        raise FeatureError("A sheet needs at least one feature.")
    head = _HEAD + (_TITLE if title else 0.0)
    needed = head + _ROW * len(features) + _BETWEEN * (len(features) - 1) + _FOOT
    scale = 1.0
    if figure is None:
        figure = new_figure(width, needed, constrained=False)
    else:
        given = size_of(figure)
        scale = min(1.0, given[0] / _SHEET_WIDTH, given[1] / needed)
    before = set(figure.findobj())
    inch = scale / size_of(figure)[1]
    slots = max(n_images, 4)  # fewer would be narrower than their heading
    columns = _columns(slots)
    grid = GridSpec(
        len(features), len(columns), left=0.005, right=0.99, wspace=0, hspace=_BETWEEN / _ROW,
        top=1 - head * inch, bottom=1 - (needed - _FOOT) * inch,
        width_ratios=list(columns.values()),
    )  # fmt: skip
    at = {name: number for number, name in enumerate(columns)}
    for row, (layer, feature) in enumerate(features):
        profile = atlas.feature(layer, feature)
        _describe(_axes_at(figure, grid[row, at["feature"]]), profile)
        cells = grid[row, at["images"]].subgridspec(1, slots, wspace=0.06)
        for column, one in enumerate(atlas.top(layer, feature, n_images)):
            _draw_top_image(figure, cells[0, column], one, atlas.grid)
        _draw_mean_map(_axes_at(figure, grid[row, at["position"]]), profile.mean_map, atlas.grid)
        if profile.tuning is not None:
            shapes, colours = grid[row, at["shapes"]], grid[row, at["colours"]]
            _draw_tuning(figure, shapes, colours, profile.tuning)
        _draw_scores(_axes_at(figure, grid[row, at["scores"]]), profile)
        if row:
            y = _box(figure, grid[row, 0]).y1 + _ABOVE * inch
            figure.add_artist(Line2D((0.005, 0.99), (y, y), color=theme_of(figure).faint, lw=0.6))
    lines = {
        label: line
        for axes in figure.axes
        if axes not in before
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    for text in set(figure.findobj(Text)) - before:
        text.set_fontsize(scale * float(text.get_fontsize()))
    boxes = {name: _box(figure, grid[0, number]) for name, number in at.items()}
    _draw_head(figure, boxes, lines, inch, scale)
    figure.text(0.005, 1 - 0.06 * inch, literal(title), fontsize=11 * scale, va="top")
    return root_of(figure)


def _box(figure: AnyFigure, cell: SubplotSpec) -> Bbox:
    """Where a cell lies, as parts of the figure."""
    return cell.get_position(cast(Figure, figure))  # the stubs know no subfigures


def _axes_at(figure: AnyFigure, cell: SubplotSpec) -> Axes:
    """Axes that layout engines leave where they are."""
    return figure.add_axes(_box(figure, cell).bounds)


def _columns(slots: int) -> dict[str, float]:
    """Widths of the columns, in inches at the default width; blank names are gaps."""
    columns = {
        "feature": 1.4,
        "images": min(0.82 * slots, 4.7),
        " ": 0.15,
        "position": 1.35,
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


def _draw_head(
    figure: AnyFigure,
    columns: dict[str, Bbox],
    lines: dict[str, Artist],
    inch: float,
    scale: float,
) -> None:
    """Write a heading above each column, and the legend of the tuning curves."""
    top = columns["feature"].y1 + _ABOVE * inch
    for name, (heading, note) in _HEADINGS.items():
        if name in ("shapes", "colours") and not lines:
            continue
        x = columns[name].x0
        figure.text(x, top + 0.26 * inch, heading, fontsize=9 * scale, weight="bold")
        figure.text(x, top + 0.1 * inch, note, fontsize=7 * scale)
    if lines:
        x = columns["shapes"].x0
        figure.legend(
            [*lines.values()], [*lines], loc="lower left", bbox_to_anchor=(x, top + 0.07 * inch),
            ncols=len(lines), fontsize=7 * scale, frameon=False, borderpad=0, borderaxespad=0,
            handlelength=2.4, handletextpad=0.4, columnspacing=1.2,
        )  # fmt: skip


def _describe(axes: Axes, profile: FeatureProfile) -> None:
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
        f"{on_prefix:.0%} on prefix tokens" if on_prefix >= _NOTEWORTHY else "",
        f"trust {profile.trust.value:.2f}",
    ]
    axes.text(
        0, 1, f"{profile.layer}/{profile.feature}", fontsize=11, weight="bold", va="top",
        transform=axes.transAxes,
    )  # fmt: skip
    text = literal("\n".join(line[:26] for line in lines if line))
    axes.text(
        0, 0.82, text, fontsize=7.5, va="top", linespacing=1.35, transform=axes.transAxes,
    )  # fmt: skip


def _is_of_class(profile: FeatureProfile) -> bool:
    (name,) = KINDS["class"]
    return profile.scores.get(name, 0.0) > profile.chance.get(name, np.inf)


def _draw_top_image(
    figure: AnyFigure, cell: SubplotSpec, shown: FeatureImage, grid: tuple[int, int]
) -> None:
    halves = cell.subgridspec(2, 1, hspace=0.03)
    above, below = (_axes_at(figure, halves[row, 0]) for row in range(2))
    image, heat = shown.image, shown.heatmap
    for axes in (above, below):
        axes.set_axis_off()
        axes.set_anchor("N")
    pixels = None if image is None else np.asarray(image.convert("RGB"))
    if pixels is not None:
        above.imshow(pixels, interpolation="antialiased")
    if heat is not None:
        n_patches = grid[0] * grid[1]
        patches = heat.double().numpy()[-n_patches:].reshape(grid) / (shown.peak or 1.0)
        size = (round(_TOP_PIXELS * grid[0] / max(grid)), round(_TOP_PIXELS * grid[1] / max(grid)))
        below.imshow(heat_on_image(pixels, patches, size=size), interpolation="none")
    above.set_title(literal(f"{shown.peak:.3g} {shown.label}"[:14]), fontsize=6, pad=1.5)


def _draw_mean_map(axes: Axes, mean_map: Float[Tensor, " T"], grid: tuple[int, int]) -> None:
    patches = mean_map.double().numpy()[-grid[0] * grid[1] :].reshape(grid)
    axes.imshow(patches, cmap=colours(signed=False), vmin=0, interpolation="none")
    axes.set_anchor("N")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(theme_of(axes).quiet)
    axes.spines[:].set_linewidth(0.4)
    axes.set_title(f"darkest: {patches.max():.2g}", fontsize=6.5, pad=2)


def _draw_tuning(
    figure: AnyFigure, shapes: SubplotSpec, colours: SubplotSpec, tuning: Tuning
) -> None:
    # Hues are low, so that each of the textures has room for its name.
    for cell, heights, draws in (
        (shapes, (1.1, 1), (_draw_orientation, _draw_arcs)),
        (colours, (0.7, 1.4), (_draw_hues, _draw_textures)),
    ):
        panels = cell.subgridspec(2, 1, hspace=0.52, height_ratios=heights)
        for row, draw in enumerate(draws):
            draw(_axes_at(figure, panels[row, 0]), tuning, size=6.5)


def _draw_scores(axes: Axes, profile: FeatureProfile) -> None:
    names = [name for name in _SCORES if name in profile.scores]
    values = np.nan_to_num([profile.scores[name] for name in names])
    chance = [profile.chance.get(name, np.nan) for name in names]
    spots = np.arange(len(names))
    beyond: NDArray[np.bool_] = values > np.array(chance)
    axes.barh(spots, values, height=0.62, color=[POSITIVE if b else "#B5B5B5" for b in beyond])
    axes.vlines(chance, spots - 0.42, spots + 0.42, color=theme_of(axes).ink, lw=1.0)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(names) - 0.4, -0.6)
    labels = [f"{name.replace('_', ' ')} {v:.2f}" for name, v in zip(names, values, strict=True)]
    axes.set_yticks(spots, [text.replace("-", "−") for text in labels])
    axes.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
    axes.tick_params(labelsize=6, length=1.5, pad=1)
    axes.spines[["top", "right"]].set_visible(False)
