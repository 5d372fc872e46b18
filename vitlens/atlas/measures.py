"""Measures of each feature over a data set: position, class, extent, sparsity, coherence.

Pure functions of tensors; T tokens (the prefix first), F features, G groups, C classes. The same
functions on the shuffled sums give the level that chance reaches.

Monosemanticity: mean cosine similarity of image embeddings among the images a feature responds to
most, after Pach et al., "Sparse autoencoders learn monosemantic features in vision-language models"
(arXiv 2504.02821), here without weights and less the mean over random pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vitlens.errors import FeatureError

# A smaller part of the mean square is what the rounding of the sums leaves.
_LEAST_VARIANCE = 1e-6


def omega_squared(
    sums: Float[Tensor, "G F"], sizes: Int[Tensor, " G"], squares: Float[Tensor, " F"]
) -> Float[Tensor, " F"]:
    """Share of each feature's variance that the group explains, corrected for bias.

    Of a one-way analysis of variance (Hays, Statistics for Psychologists, 1963)::

        omega^2 = (SS_between - df_between MS_within) / (SS_total + MS_within)

    Parameters
    ----------
    sums
        Sum of the values in each group, [G, F].
    sizes
        Number of values in each group, [G]; empty groups are left out.
    squares
        Sum of the squared values over all groups, [F].

    Returns
    -------
    Tensor
        [F], at most 1, about 0 (also a little below) where the group says nothing; 0 for a
        feature that does not vary, and where there is one group or one value a group.
    """
    filled = sizes > 0
    sums, sizes = sums[filled].double(), sizes[filled].double()[:, None]
    n, groups = float(sizes.sum()), len(sizes)
    if groups < 2 or n <= groups:
        return torch.zeros_like(squares, dtype=torch.float64)
    centre = sums.sum(0) ** 2 / n
    total = (squares.double() - centre).clamp(min=0)
    between = (sums**2 / sizes).sum(0) - centre
    within = (total - between).clamp(min=0) / (n - groups)
    share = (between - (groups - 1) * within) / (total + within)
    return torch.where(total > _LEAST_VARIANCE * squares, share, 0.0).nan_to_num(0.0)


def class_information(
    sums: Float[Tensor, "C F"],
    sizes: Int[Tensor, " C"],
    *,
    total: Float[Tensor, " F"],
    squares: Float[Tensor, " F"],
    n_images: int,
) -> Float[Tensor, " F"]:
    """Share of the variance of an image's mean activation which its class explains.

    Parameters
    ----------
    sums
        Sum over each class's images of the image's mean activation, [C, F].
    sizes
        Images of each class, [C]; classes without images are left out.
    total, squares
        Sum of the mean activation and of its square over all images, also those of no class, [F].
    n_images
        Total number of images.

    Returns
    -------
    Tensor
        [F], `omega_squared` of the images that have a class. Where some have none, the variance
        within a class is taken to be the same as among those, for only the sum of all is known.
    """
    filled = sizes > 0
    sums, sizes = sums[filled].double(), sizes[filled].double()[:, None]
    labelled, classes = float(sizes.sum()), len(sizes)
    others = n_images - labelled
    freedom = n_images - classes - (others > 0)
    if classes < 2 or freedom < 1:
        return torch.zeros_like(squares, dtype=torch.float64)
    explained = (sums**2 / sizes).sum(0)
    between = explained - sums.sum(0) ** 2 / labelled
    rest = (total - sums.sum(0)) ** 2 / others if others > 0 else 0.0
    within = (squares - explained - rest).clamp(min=0) / freedom
    whole = between + within * (labelled - classes + 1)
    share = (between - (classes - 1) * within) / whole
    return torch.where(whole > _LEAST_VARIANCE * squares, share, 0.0).nan_to_num(0.0)


def position_share(
    position: Float[Tensor, "T F"], squares: Float[Tensor, " F"], *, n_images: int, n_prefix: int
) -> Float[Tensor, " F"]:
    """Share of the activation's variance over patch tokens which the patch's place explains.

    Parameters
    ----------
    position
        Sum of the activation over the images, by token, [T, F].
    squares
        Sum of the squared activation over the images' patch tokens, [F].
    n_images, n_prefix
        Number of images, and number of tokens before the patches.

    Returns
    -------
    Tensor
        [F], see `omega_squared`.
    """
    patches = position[n_prefix:]
    sizes = torch.full((len(patches),), n_images, device=patches.device)
    return omega_squared(patches, sizes, squares)


def class_selectivity(sums: Float[Tensor, "C F"], sizes: Int[Tensor, " C"]) -> Float[Tensor, " F"]:
    """Class selectivity index (Morcos et al., ICLR 2018, arXiv 1803.06959, section 2.3).

    Parameters
    ----------
    sums
        Sum over each class's images of the image's mean activation, [C, F].
    sizes
        Images of each class, [C]; classes without images are left out.

    Returns
    -------
    Tensor
        [F]: (best - rest) / (best + rest), of the mean activation of the best class and the mean
        of all other classes' means. 0 is alike for all classes, 1 active for one class only. 0
        for a feature that is never active, and where there is one class. A feature active on one
        image has 1: compare with what shuffled labels give.
    """
    filled = sizes > 0
    means = sums[filled].double() / sizes[filled].double()[:, None]
    if len(means) < 2:
        return torch.zeros(sums.shape[1], dtype=torch.float64, device=sums.device)
    best = means.max(0).values
    rest = (means.sum(0) - best) / (len(means) - 1)
    return _ratio(best - rest, best + rest)


def extent(
    active_patches: Int[Tensor, " F"], active_images: Int[Tensor, " F"], *, n_patches: int
) -> Float[Tensor, " F"]:
    """Mean share of an image's patches on which a feature is active, where it is active at all.

    Parameters
    ----------
    active_patches
        Patch tokens on which it is active, over all images, [F].
    active_images
        Images in which it is active on any token, [F].
    n_patches
        Patches of an image.
    """
    return _ratio(active_patches.double(), active_images.double() * n_patches)


def prefix_share(position: Float[Tensor, "T F"], *, n_prefix: int) -> Float[Tensor, " F"]:
    """Share of a feature's activation that falls on prefix tokens (CLS, registers), [F]."""
    return _ratio(position[:n_prefix].double().sum(0), position.double().sum(0))


def frequency(active: Int[Tensor, " F"], of: int) -> Float[Tensor, " F"]:
    """Share of `of` tokens, or images, on which a feature is active, [F].

    Raises
    ------
    FeatureError
        If there were none.
    """
    if of < 1:
        raise FeatureError("An atlas of no images has no frequencies.")
    return active.double() / of


def relative(response: Float[Tensor, " F"], usual: Float[Tensor, " F"]) -> Float[Tensor, " F"]:
    """Responses over the usual activation, [F]; 0 where a feature has no usual activation."""
    return _ratio(response.double(), usual.double())


def _ratio(part: Float[Tensor, " F"], whole: Float[Tensor, " F"]) -> Float[Tensor, " F"]:
    """Parts of wholes, and 0 of nothing."""
    return torch.where(whole > 0, part / whole.clamp(min=1e-300), 0.0)


#: A feature active in fewer images than this is as good as dead: there are no two to compare.
FEWEST_IMAGES = 2


@dataclass(frozen=True)
class Trust:
    """How well a feature's images show what it represents.

    The value is the product of the parts that are known, each from 0 to 1.

    Attributes
    ----------
    value
        The product; 0 for a feature that is dead or nearly so (active in fewer than 2 images).
    coherence
        How alike its images are: monosemanticity / (1 - similarity of random pairs), not below
        0. At 0 they are no more alike than any images, at 1 they are the same.
    images
        How many of the images that an atlas keeps of a feature there are: min(1, images in
        which it is active / `n_top`).
    rarity
        1 - share of tokens in which it is active. A few images say little of a feature that is
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
        Number of images in which each feature is active.
    frequency
        Share of tokens in which each is active.
    n_top
        Number of images that an atlas keeps per feature.
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
    """How much more alike the images of each feature are than random images.

    Parameters
    ----------
    embeddings
        Embeddings of images, of any length.
    rows
        The images of each feature; -1 for none.
    random_similarity
        What to take off; see `random_similarity`.

    Returns
    -------
    Tensor
        [F], mean cosine over all pairs of a feature's images less that of random pairs; NaN
        with fewer than two images.
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
