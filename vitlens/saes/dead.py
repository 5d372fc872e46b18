"""Features that were active on no token of the last batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vitlens.saes.adam import fill
from vitlens.saes.topk import TopKSAE


class SilentFeatures:
    """Counts, for several SAEs, how many batches each feature has been silent.

    Parameters
    ----------
    saes
        Give numbers of features and the device.
    dead_after
        A feature is dead when it was silent for so many batches.

    Attributes
    ----------
    batches
        Per layer, batches since each feature was last active, [F].
    """

    def __init__(self, saes: Sequence[TopKSAE], dead_after: int) -> None:
        self._dead_after = dead_after
        self.batches = tuple(
            torch.zeros(sae.n_features, dtype=torch.int64, device=sae.W_enc.device) for sae in saes
        )

    def dead(self) -> list[Int[Tensor, " n_dead"]]:
        """Per layer, indices of the dead features."""
        return [(counts >= self._dead_after).nonzero().flatten() for counts in self.batches]

    def update(self, active: Sequence[Bool[Tensor, " F"]]) -> None:
        """Count one batch; per layer, `active` is True for features active on one of its tokens."""
        for counts, seen in zip(self.batches, active, strict=True):
            counts.add_(1).masked_fill_(seen, 0)

    def state(self) -> dict[str, Tensor]:
        """The counts by name, as a checkpoint holds them."""
        return {f"{layer}.silent": counts for layer, counts in enumerate(self.batches)}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Continue from what `state` gave.

        Raises
        ------
        CheckpointError
            If a layer's counts are missing or have another shape.
        """
        fill(self.state(), tensors)
