"""What callers name features by: those to keep, and values to set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

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
        If there are too few or too many layers, or a feature does not exist.
    """
    if keep is None:
        return [torch.ones(sae.size, dtype=torch.bool, device=device) for sae in saes]
    if len(keep) != len(saes):
        raise FeatureError(
            f"`keep` must name the features of all {len(saes)} layers, got {len(keep)} lists."
        )
    masks = []
    for layer, (sae, kept) in enumerate(zip(saes, keep, strict=True)):
        chosen = torch.as_tensor(
            kept if isinstance(kept, Tensor) else list(kept), device=device
        ).reshape(-1)
        if chosen.dtype == torch.bool:
            if len(chosen) != sae.size:
                raise FeatureError(
                    f"The mask of layer {layer} has {len(chosen)} entries for {sae.size} features."
                )
            masks.append(chosen)
            continue
        if chosen.is_floating_point() and len(chosen):
            raise FeatureError(f"Features of layer {layer} must be whole numbers.")
        chosen = chosen.long()
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= sae.size):
            wrong = chosen[(chosen < 0) | (chosen >= sae.size)].tolist()
            raise FeatureError(
                f"Layer {layer} has features 0 to {sae.size - 1}; {wrong[:5]} do not exist."
            )
        mask = torch.zeros(sae.size, dtype=torch.bool, device=device)
        mask[chosen] = True
        masks.append(mask)
    return masks


def values_by_layer(
    saes: Sequence[TopKSAE], values: Mapping[tuple[int, int], float]
) -> list[dict[int, float]]:
    """Sort values that features are to be set to by layer.

    Parameters
    ----------
    values
        A value for each (layer, feature).

    Raises
    ------
    FeatureError
        If a feature does not exist, or a value is not finite.
    """
    by_layer: list[dict[int, float]] = [{} for _ in saes]
    for (layer, feature), value in values.items():
        if not 0 <= layer < len(saes):
            raise FeatureError(f"There are layers 0 to {len(saes) - 1}; {layer} does not exist.")
        if not 0 <= feature < saes[layer].size:
            raise FeatureError(
                f"Layer {layer} has features 0 to {saes[layer].size - 1}; {feature} does not exist."
            )
        if not math.isfinite(value):
            raise FeatureError(f"Feature {layer}/{feature} cannot be set to {value}.")
        by_layer[layer][feature] = float(value)
    return by_layer
