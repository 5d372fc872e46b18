"""A map of all features: similar decoder rows lie close together.

van der Maaten and Hinton, "Visualizing data using t-SNE" (JMLR 2008), as scikit-learn has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitlens.progress import Progress, waiting
from vitlens.saes.topk import TopKSAE


def layout(
    saes: Sequence[TopKSAE],
    *,
    perplexity: float = 30.0,
    seed: int = 0,
    progress: Progress = True,
) -> Float[Tensor, "N 2"]:
    """Place the features of all layers in the plane by cosine similarity of their decoder rows.

    Parameters
    ----------
    perplexity
        About how many neighbours count; less for very few features.
    seed
        The same seed gives the same map on the same machine.
    progress
        Show what is done and for how long: scikit-learn's t-SNE does not say how far it is, and
        in pieces it would lose its momentum and give another map. Or a function, see
        `vitlens.progress`.

    Returns
    -------
    Tensor
        [F_0 + F_1 + ..., 2] in float32, layer by layer; centred, the largest coordinate 1.
        Distances between far-off groups mean nothing.
    """
    from sklearn.manifold import TSNE

    rows = torch.cat([F.normalize(sae.W_dec.detach().float(), dim=1) for sae in saes]).cpu()
    n = len(rows)
    if n < 4:
        return torch.stack([torch.linspace(-1, 1, n), torch.zeros(n)], 1)
    # On unit vectors the squared distance, which t-SNE goes by, is 2 - 2 cosine.
    tsne = TSNE(
        metric="euclidean",
        init="pca",
        perplexity=min(perplexity, (n - 1) / 3),
        random_state=seed,
        n_jobs=1,
    )
    with waiting(f"map of {n:,} features (t-SNE, a minute or more for thousands)", progress):
        placed = tsne.fit_transform(rows.numpy())
    places = torch.from_numpy(placed).float()
    places -= places.mean(0)
    return places / places.abs().max().clamp_min(1e-12)
