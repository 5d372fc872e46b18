"""What the sums over a data set say about each feature: position, class, extent, sparsity.

Pure functions of tensors; T tokens (the prefix first), F features, G groups, C classes. The same
functions on the shuffled sums give the level that chance reaches.
"""

from __future__ import annotations

import torch
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
        How many images there were in all.

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
        How many images there were, and how many tokens come before the patches.

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
