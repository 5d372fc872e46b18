"""What callers name features by: those to keep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from vitlens.errors import FeatureError
from vitlens.saes.topk import TopKSAE


def keep_masks(
    saes: Sequence[TopKSAE],
    keep: Sequence[Iterable[int] | Tensor] | None,
    device: torch.device,
) -> list[Bool[Tensor, " F"]]:
    """Turn feature indices a layer into boolean masks.

    Parameters
    ----------
    keep
        For each layer the indices of the features to keep, or a boolean mask [F_l]; None keeps
        all.

    Raises
    ------
    FeatureError
        If there are too few or too many layers, a layer's features are not one list, or a
        feature does not exist.
    """
    if keep is None:
        return [torch.ones(sae.n_features, dtype=torch.bool, device=device) for sae in saes]
    if len(keep) != len(saes):
        raise FeatureError(
            f"`keep` must name the features of all {len(saes)} layers, got {len(keep)} lists."
        )
    masks = []
    for layer, (sae, kept) in enumerate(zip(saes, keep, strict=True)):
        given = kept if isinstance(kept, Tensor | int) else list(kept)
        chosen = torch.as_tensor(given, device=device)
        # What `mask.nonzero()` gives is a column, and a mask may have kept its batch dimension.
        if chosen.ndim == 2 and (chosen.shape[1] == 1 or chosen.shape == (1, sae.n_features)):
            chosen = chosen.flatten()
        if chosen.ndim != 1:
            raise FeatureError(
                f"keep[{layer}] must be one list of feature numbers of layer {layer} (or a mask), "
                f"not of shape {tuple(chosen.shape)}; the list's place says the layer."
            )
        if chosen.dtype == torch.bool:
            if len(chosen) != sae.n_features:
                raise FeatureError(
                    f"The mask of layer {layer} has {len(chosen)} entries for {sae.n_features} features."
                )
            masks.append(chosen)
            continue
        if chosen.is_floating_point() and len(chosen):
            raise FeatureError(f"Features of layer {layer} must be whole numbers.")
        if chosen.dtype == torch.uint8 and len(chosen) == sae.n_features:
            raise FeatureError(f"A mask of layer {layer} must hold booleans: give `mask.bool()`.")
        chosen = chosen.long()
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= sae.n_features):
            wrong = chosen[(chosen < 0) | (chosen >= sae.n_features)].tolist()
            raise FeatureError(
                f"Layer {layer} has features 0 to {sae.n_features - 1}; {wrong[:5]} do not exist."
            )
        mask = torch.zeros(sae.n_features, dtype=torch.bool, device=device)
        mask[chosen] = True
        masks.append(mask)
    return masks
