"""Where on the image a node acts, in plain words."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

_WORDS = (
    ("upper left", "top", "upper right"),
    ("left", "centre", "right"),
    ("lower left", "bottom", "lower right"),
)
# A node counts as spread out when its distance from its centre is this much of what the same
# importance on every patch would give.
_SPREAD = 0.85


def token_names(n_prefix: int) -> tuple[str, ...]:
    """Return names for prefix tokens: CLS first, then registers counted from 1."""
    return ("CLS", *(f"register {i}" for i in range(1, n_prefix)))[:n_prefix]


def place(
    importances: Float[Tensor, " T"], grid: tuple[int, int], prefix_names: tuple[str, ...]
) -> str:
    """Say in a few words where a node's importance lies.

    Only importances of the sum's sign count, as shares of their total. A prefix token with at
    least half of it gives its name. Otherwise the place is the third of the image, across and
    down, that holds the centroid of the patches; "spread over the image" when the root mean
    squared distance from the centroid is over .85 of that of an even spread.

    Parameters
    ----------
    importances
        Per-token importances, prefix tokens first, then the patches row by row.
    grid
        Rows and columns of patches.
    prefix_names
        Names of the prefix tokens, such as "CLS" or "register 2".

    Returns
    -------
    str
        For instance "CLS token", "upper left", "centre", "spread over the image"; "nowhere" for
        a node without importance.
    """
    values = importances.detach().cpu().double()
    mass = (values if values.sum() >= 0 else -values).clamp(min=0)
    if not mass.sum() > 0:
        return "nowhere"
    mass = mass / mass.sum()
    strongest = int(mass.argmax())
    if strongest < len(prefix_names) and mass[strongest] >= 0.5:
        name = prefix_names[strongest]
        return name if " " in name else f"{name} token"
    patches = mass[len(prefix_names) :].reshape(grid)
    if not patches.sum() > 0:
        return "prefix tokens"
    row, column, radius = _centre(patches)
    even = _centre(torch.ones_like(patches))[2]
    if even > 0 and radius > _SPREAD * even:
        return "spread over the image"
    return _WORDS[_third(row, grid[0])][_third(column, grid[1])]


def _centre(patches: Tensor) -> tuple[float, float, float]:
    """Return the centroid's row and column, and the root mean squared distance from it."""
    shares = patches / patches.sum()
    rows = torch.arange(patches.shape[0], dtype=shares.dtype)[:, None]
    columns = torch.arange(patches.shape[1], dtype=shares.dtype)[None, :]
    row, column = float((shares * rows).sum()), float((shares * columns).sum())
    square = float((shares * ((rows - row) ** 2 + (columns - column) ** 2)).sum())
    return row, column, math.sqrt(square)


def _third(position: float, length: int) -> int:
    """Return 0, 1 or 2: the third of `length` patches that the centre of one lies in."""
    return min(int(3 * (position + 0.5) / length), 2)
