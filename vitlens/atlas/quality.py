"""How well a feature's pictures belong together, and how far to trust what they show.

Monosemanticity: mean cosine similarity of image embeddings among the pictures a feature responds
to most, after Pach et al., "Sparse autoencoders learn monosemantic features in vision-language
models" (arXiv 2504.02821), here without weights and less the mean over random pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

#: A feature active in fewer images than this is as good as dead: there are no two to compare.
FEWEST_IMAGES = 2


@dataclass(frozen=True)
class Trust:
    """How far a feature's pictures can be trusted to show what it stands for.

    The value is the product of the parts that are known, each from 0 to 1.

    Attributes
    ----------
    value
        The product; 0 for a feature that is dead or nearly so (active in fewer than 2 images).
    coherence
        How alike its pictures are: monosemanticity / (1 - similarity of random pairs), not below
        0. At 0 they are no more alike than any pictures, at 1 they are the same.
    images
        How many of the pictures that an atlas keeps of a feature there are: min(1, images in
        which it is active / `n_top`).
    rarity
        1 - share of tokens in which it is active. A few pictures say little of a feature that is
        active nearly everywhere.
    health
        What share of the stream's variance the layer's SAE explains, None if it was not measured.
    """

    value: float
    coherence: float
    images: float
    rarity: float
    health: float | None

    def __str__(self) -> str:
        """The formula with its numbers."""
        parts = f"coherence {self.coherence:.2f} × images {self.images:.2f}"
        parts += f" × rarity {self.rarity:.2f}"
        parts += " × SAE health unknown" if self.health is None else f" × health {self.health:.2f}"
        dead = self.value == 0 < self.coherence * self.images * self.rarity
        return f"{self.value:.2f} = {parts}" + (" (0: active in too few images)" if dead else "")


def trust(
    *,
    monosemanticity: Float[Tensor, " F"],
    random_similarity: float,
    n_images: Int[Tensor, " F"],
    frequency: Float[Tensor, " F"],
    n_top: int,
    health: float | None = None,
) -> tuple[Trust, ...]:
    """Trust in each feature of a layer; see `Trust` for the formula.

    Parameters
    ----------
    monosemanticity
        See `monosemanticity`; NaN counts as 0.
    random_similarity
        See `random_similarity`.
    n_images
        In how many images each is active.
    frequency
        Share of tokens in which each is active.
    n_top
        How many pictures an atlas keeps of a feature.
    health
        Explained variance of the layer's SAE, None if it was not measured.
    """
    room = max(1 - random_similarity, 1e-6)
    coherence = (monosemanticity.nan_to_num(0.0) / room).clamp(0, 1)
    images = (n_images / n_top).clamp(max=1)
    rarity = 1 - frequency
    known = None if health is None else min(max(float(health), 0.0), 1.0)
    value = coherence * images * rarity * (1.0 if known is None else known)
    value = torch.where(n_images < FEWEST_IMAGES, 0.0, value)
    columns = (column.tolist() for column in (value, coherence, images, rarity))
    return tuple(
        Trust(product, alike, many, rare, known)
        for product, alike, many, rare in zip(*columns, strict=True)
    )


def monosemanticity(
    embeddings: Float[Tensor, "N D"], rows: Int[Tensor, "F n"], random_similarity: float
) -> Float[Tensor, " F"]:
    """How much more alike the pictures of each feature are than random pictures.

    Parameters
    ----------
    embeddings
        Of images, of any length.
    rows
        The images of each feature; -1 for none.
    random_similarity
        What to take off; see `random_similarity`.

    Returns
    -------
    Tensor
        [F], mean cosine over all pairs of a feature's pictures less that of random pairs; NaN
        with fewer than two pictures.
    """
    units = F.normalize(embeddings.double(), dim=-1)
    there = rows >= 0
    n = there.sum(1)
    # The squared length of a sum of unit vectors holds every ordered pair, and each with itself.
    total = torch.stack([units[row[mask]].sum(0) for row, mask in zip(rows, there, strict=True)])
    own = torch.stack(
        [units[row[mask]].square().sum() for row, mask in zip(rows, there, strict=True)]
    )
    similarity = (total.square().sum(1) - own) / (n * (n - 1))
    return torch.where(n < FEWEST_IMAGES, torch.nan, similarity - random_similarity).float()


def random_similarity(embeddings: Float[Tensor, "N D"]) -> float:
    """Mean cosine over all pairs of images, NaN for fewer than two."""
    units = F.normalize(embeddings.double(), dim=-1)
    n = len(units)
    if n < FEWEST_IMAGES:
        return float("nan")
    total = units.sum(0).square().sum() - units.square().sum()
    return float(total / (n * (n - 1)))
