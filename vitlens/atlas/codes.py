"""A batch of images as the sums and pools take it in: sparse activations, and image marks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitlens.atlas import bins, chance
from vitlens.saes.topk import TopKSAE


@dataclass(frozen=True)
class ImageMarks:
    """What stands for each image of a batch.

    Attributes
    ----------
    id
        Hash of its key, [n].
    group
        Images of one group count as one in the top pools, [n].
    label
        Its class, or -1 without one, [n].
    bucket
        Where its class is exchanged for another (`chance.buckets`), [n].
    shuffled_tokens
        Where each token goes when patches are shuffled, [n, T].
    """

    id: Int[Tensor, " n"]
    group: Int[Tensor, " n"]
    label: Int[Tensor, " n"]
    bucket: Int[Tensor, " n"]
    shuffled_tokens: Int[Tensor, "n T"]

    @classmethod
    def of(
        cls,
        ids: Int[Tensor, " n"],
        groups: Int[Tensor, " n"],
        labels: Int[Tensor, " n"],
        *,
        n_classes: int,
        n_prefix: int,
        n_tokens: int,
    ) -> ImageMarks:
        """Draw what is random by the images' ids."""
        return cls(
            id=ids,
            group=groups,
            label=labels,
            bucket=chance.buckets(ids, n_classes),
            shuffled_tokens=bins.shuffled_tokens(ids, n_prefix, n_tokens),
        )


@dataclass(frozen=True)
class Codes:
    """The active features of a batch at one layer, m of them.

    Attributes
    ----------
    image, token, feature
        Where each is, [m].
    value
        Its activation, above 0, float32 [m].
    n_images, n_tokens, n_features
        Sizes of the batch.
    """

    image: Int[Tensor, " m"]
    token: Int[Tensor, " m"]
    feature: Int[Tensor, " m"]
    value: Float[Tensor, " m"]
    n_images: int
    n_tokens: int
    n_features: int

    @classmethod
    def of(
        cls, values: Float[Tensor, "n T k"], features: Int[Tensor, "n T k"], n_features: int
    ) -> Codes:
        """Of the strongest features of each token, as `strongest_features` gives them."""
        n, T, k = values.shape
        flat = values.reshape(-1)
        active = (flat > 0).nonzero().squeeze(1)
        place = active // k
        return cls(
            image=place // T,
            token=place % T,
            feature=features.reshape(-1)[active],
            value=flat[active],
            n_images=n,
            n_tokens=T,
            n_features=n_features,
        )

    @cached_property
    def activations(self) -> Float[Tensor, "n F T"]:
        """All activations, most of them 0, the tokens of a feature side by side."""
        n, F, T = self.n_images, self.n_features, self.n_tokens
        dense = torch.zeros(n * F * T, device=self.value.device)
        dense[(self.image * F + self.feature) * T + self.token] = self.value
        return dense.view(n, F, T)

    @cached_property
    def peak(self) -> Float[Tensor, "n F"]:
        """Largest activation of each feature in each image, 0 where it is not active."""
        return self.activations.amax(dim=2)


def strongest_features(
    sae: TopKSAE, stream: Float[Tensor, "n T D"]
) -> tuple[Float[Tensor, "n T k"], Int[Tensor, "n T k"], Float[Tensor, "n T"]]:
    """The k strongest features of each token: what `TopKSAE.encode` keeps, without the zeros.

    Returns
    -------
    values
        Activations in float32, 0 where fewer than k features are active.
    features
        Which features they are of.
    stds
        Standard deviation of each token of the stream.
    """
    tokens, _, std = sae.normalize(stream)
    activations = torch.relu((tokens - sae.b_dec) @ sae.W_enc)
    values, features = activations.topk(sae.k, dim=-1, sorted=False)
    return values.float(), features, std.squeeze(-1)
