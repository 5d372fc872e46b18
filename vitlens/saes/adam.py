"""Adam on the weights of SAEs, whose decoder rows stay of unit length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vitlens.errors import CheckpointError
from vitlens.saes.topk import TopKSAE

_NAMES = ("W_enc", "W_dec", "b_dec")
_MOMENTS = ("exp_avg", "exp_avg_sq")


def learning_dtype(model_dtype: torch.dtype) -> torch.dtype:
    """Precision of the weights that learn: the model's own, but float32 for half precision."""
    half = model_dtype in (torch.float16, torch.bfloat16)
    return torch.float32 if half else model_dtype


class DictionaryAdam:
    """Adam for several SAEs at once.

    A step along a decoder row would only change its length, which is fixed: that part of the
    gradient is taken away before the step, and the rows are made unit rows after it.

    Parameters
    ----------
    saes
        Their weights are changed in place.
    learning_rate
        Of the first step; every `step` gives its own.

    Notes
    -----
    Kim et al., arXiv 2509.17401, appendix on training.
    """

    def __init__(self, saes: Sequence[TopKSAE], learning_rate: float) -> None:
        self.saes = tuple(saes)
        self.step_count = 0
        self.parameters = [parameter for sae in self.saes for parameter in sae.parameters()]
        device = self.parameters[0].device
        fused = device.type in ("cpu", "cuda")
        self._adam = torch.optim.Adam(self.parameters, lr=learning_rate, fused=fused)
        for parameter in self.parameters:
            self._adam.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Take one step along the `grad` of every weight, and drop these gradients."""
        for sae in self.saes:
            gradient = sae.W_dec.grad
            assert gradient is not None
            along = (gradient * sae.W_dec).sum(-1, keepdim=True)
            sae.W_dec.grad = gradient - along * sae.W_dec
        self._adam.param_groups[0]["lr"] = learning_rate
        self._adam.step()
        for sae in self.saes:
            sae.W_dec.copy_(F.normalize(sae.W_dec, dim=-1))
        for parameter in self.parameters:
            parameter.grad = None
        self.step_count += 1

    def state(self) -> dict[str, Tensor]:
        """Weights and moments by name, as a checkpoint holds them."""
        tensors = {}
        for layer, sae in enumerate(self.saes):
            for name in _NAMES:
                parameter = getattr(sae, name)
                tensors[f"{layer}.{name}"] = parameter.detach()
                for moment in _MOMENTS:
                    tensors[f"{layer}.{name}.{moment}"] = self._adam.state[parameter][moment]
        return tensors

    def load_state(self, tensors: dict[str, Tensor], step_count: int) -> None:
        """Continue from what `state` gave after `step_count` steps.

        Raises
        ------
        CheckpointError
            If a tensor is missing or has another shape.
        """
        fill(self.state(), tensors)
        for state in self._adam.state.values():
            state["step"].fill_(step_count)
        self.step_count = step_count


@torch.no_grad()
def fill(targets: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Copy tensors into the targets of the same names.

    Raises
    ------
    CheckpointError
        If one is missing or has another shape.
    """
    for name, target in targets.items():
        if name not in tensors or tensors[name].shape != target.shape:
            raise CheckpointError(f"it lacks {name} of shape {list(target.shape)}")
        target.copy_(tensors[name])
