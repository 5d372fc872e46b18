"""One look for all figures, regardless of the user's style sheet.

A new figure is a white page with dark text. It is created, drawn and saved under matplotlib's own
defaults, so that a style sheet cannot turn its text white or its images upside down. In axes or a
figure of the user's, text and lines take the colours that read well on the background found there.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias, TypeVar

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb, to_rgba
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray
from torch import Tensor

from vitlens.errors import VitlensError
from vitlens.io import atomic_path

P = ParamSpec("P")
R = TypeVar("R")
AnyFigure: TypeAlias = Figure | SubFigure

#: Okabe and Ito's palette, which any colour vision can distinguish.
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
PINK, SKY, ORANGE = "#CC79A7", "#56B4E9", "#E69F00"
GREY = "#7F7F7F"
#: What raises the target, and what lowers it.
POSITIVE, NEGATIVE = BLUE, VERMILION

_FORMATS = ("png", "svg", "pdf")
# Settings that stay the user's: programs and files, resolution, and which fonts have the glyphs of
# their language. All others are matplotlib's defaults.
_USERS = re.compile(
    r"(agg|animation|backend|date|docstring|interactive|keymap|macosx|pdf|pgf|ps|svg|timezone|tk"
    r"|toolbar|webagg)[._]|(backend|interactive|timezone|toolbar)$|figure\.(dpi|max_open|raise)"
    r"|savefig\.(dpi|directory|format)|axes\.unicode_minus"
    r"|font\.(family|serif|sans-serif|cursive|fantasy|monospace)$"
)


@dataclass(frozen=True)
class Theme:
    """Colours of what is neither data nor an image: the page, text, lines."""

    page: str
    ink: str
    quiet: str  # frames and text of less weight
    faint: str  # grid lines
    positive: str  # thin lines that raise the target
    negative: str  # and that lower it


LIGHT = Theme("#FFFFFF", "#222222", "#666666", "#E3E3E3", BLUE, VERMILION)
_DARK = Theme("#000000", "#EEEEEE", "#AAAAAA", "#444444", SKY, "#F0883E")
_MIDDLE = 0.179  # the luminance on which black and white have the same contrast (WCAG 2)


def theme_of(parent: Axes | AnyFigure) -> Theme:
    """Return the colours that read well on the background of a figure, or of some axes' figure."""
    figure = root_of(parent)
    own = parent if isinstance(parent, Figure | SubFigure) else parent.figure
    for part in (own, figure):
        ground = part.get_facecolor()
        if to_rgba(ground)[3] > 0.5:
            break
    else:
        return LIGHT
    linear = np.array(to_rgb(ground)) ** 2.2
    theme = LIGHT if linear @ (0.2126, 0.7152, 0.0722) > _MIDDLE else _DARK
    return replace(theme, page=to_hex(ground))


def root_of(parent: Axes | AnyFigure) -> Figure:
    """Return the whole figure that axes or a part of a figure belong to."""
    figure: Any = parent if isinstance(parent, Figure | SubFigure) else parent.figure
    while not isinstance(figure, Figure):
        figure = figure.figure
    return figure


def size_of(figure: AnyFigure) -> tuple[float, float]:
    """Return width and height of a figure, or of a part of one, in inches."""
    dpi = root_of(figure).dpi
    return float(figure.bbox.width) / dpi, float(figure.bbox.height) / dpi


@contextmanager
def own_style(theme: Theme = LIGHT) -> Iterator[None]:
    """Run under matplotlib's defaults with the colours of a theme; restore the user's after it."""
    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    colours = dict.fromkeys(names, theme.ink)
    ground = {"axes.facecolor": "none", "figure.facecolor": theme.page, "hatch.color": theme.quiet}
    settings: Any = {**_defaults(), **colours, **ground}
    with matplotlib.rc_context(settings):
        yield


@functools.cache
def _defaults() -> Mapping[str, Any]:
    defaults = matplotlib.rcParamsDefault
    return {name: defaults[name] for name in defaults if not _USERS.match(name)}


def _always_styled(function: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with own_style():
            return function(*args, **kwargs)

    return run


class StyledFigure(Figure):
    """A figure that is drawn and saved in its own style: matplotlib makes ticks only then."""

    draw = _always_styled(Figure.draw)
    savefig = _always_styled(Figure.savefig)


def styled(function: Callable[P, Figure]) -> Callable[P, Figure]:
    """Let a function draw in its own style: on a page of its own, or in `ax=` or `figure=`."""

    @functools.wraps(function)
    def draw(*args: P.args, **kwargs: P.kwargs) -> Figure:
        given: Any = next(
            (kwargs[name] for name in ("ax", "figure") if kwargs.get(name) is not None), None
        )
        if given is None:
            with own_style():
                return function(*args, **kwargs)
        before = set(root_of(given).axes)
        with own_style(theme_of(given)):
            figure = function(*args, **kwargs)
            for axes in figure.axes:
                if axes is given or axes not in before:
                    _make_ticks(axes)
        return figure

    return draw


def _make_ticks(axes: Axes) -> None:
    # Ticks that matplotlib adds later, under the user's settings, are copies of these.
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_ticks(1)
        axis.get_minor_ticks(1)


def new_figure(width: float, height: float, *, constrained: bool = True) -> Figure:
    """Return a white figure, unknown to pyplot; sizes are in inches."""
    layout: Any = "constrained" if constrained else None
    return StyledFigure(figsize=(width, height), facecolor=LIGHT.page, layout=layout)


def axes_for(
    ax: Axes | None, width: float, height: float, *, bare: bool = False, constrained: bool = True
) -> Axes:
    """Return axes of a new figure, or those given, made as plain as new ones.

    What the given axes hold stays; `bare` axes have neither frame nor ticks, and without
    `constrained` they fill the new figure.
    """
    if ax is None:
        figure = new_figure(width, height, constrained=constrained)
        ax = figure.add_subplot() if constrained else figure.add_axes((0, 0, 1, 1))
    else:
        _make_plain(ax)
    if bare:
        ax.set_axis_off()
    return ax


def _make_plain(axes: Axes) -> None:
    theme = theme_of(axes)
    defaults = _defaults()
    axes.set_facecolor("none")
    axes.set_axisbelow(defaults["axes.axisbelow"])
    for spine in axes.spines.values():
        spine.set(visible=True, color=theme.ink, linewidth=defaults["axes.linewidth"])
    for name, axis in (("xtick", axes.xaxis), ("ytick", axes.yaxis)):
        near, far = ("bottom", "top") if name == "xtick" else ("left", "right")
        axis.set_tick_params(
            which="both", reset=True, color=theme.ink, labelcolor=theme.ink,
            **{near: True, far: False, f"label{near}": True, f"label{far}": False},
        )  # fmt: skip
        axis.label.set_color(theme.ink)
        axis.offsetText.set_color(theme.ink)
    axes.title.set_color(theme.ink)


def set_heading(
    figure: AnyFigure, text: str | None, default: str = "", *, left: bool = False
) -> None:
    """Write a heading above a figure; the default one only where there is none yet."""
    if text is None and not figure.get_suptitle():
        text = default
    if text:
        x, align = (0.01, "left") if left else (0.5, "center")
        figure.suptitle(literal(text), fontsize=11, x=x, ha=align, color=theme_of(figure).ink)


def save_figure(figure: Figure, path: str | Path, *, dpi: int = 160) -> None:
    """Write a figure to a file, atomically; the same figure always gives the same bytes.

    Parameters
    ----------
    figure
        Any matplotlib figure.
    path
        The suffix sets the format: ``.png``, ``.svg`` or ``.pdf``.
    dpi
        Pixels per inch, for PNG.

    Raises
    ------
    VitlensError
        When the suffix is another one, or the file cannot be written.
    """
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in _FORMATS:
        known = ", ".join(f".{name}" for name in _FORMATS)
        raise VitlensError(f"A figure can be saved as {known}, but not as {path}.")
    undated = {"png": None, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[suffix]
    with atomic_path(path) as temporary, matplotlib.rc_context({"svg.hashsalt": "vitlens"}):
        figure.savefig(
            temporary, format=suffix, dpi=dpi, facecolor=figure.get_facecolor(), metadata=undated
        )


def literal(text: str) -> str:
    """Return text as matplotlib draws it to the letter: a $ would begin a formula."""
    return text.replace("$", r"\$")


def numbers_of(values: Float[Tensor, "*shape"]) -> NDArray[np.float64]:
    """Return a tensor's values for matplotlib."""
    numbers: NDArray[np.float64] = values.detach().cpu().double().numpy()
    return numbers
