"""Path-integrated node importance: what a feature adds on the way from the empty model to the full.

Let the model run with every feature i, f behind a gate::

    z~_i[f] = z_bar_i[f] + gamma_{i,f} (z'_i[f] - z_bar_i[f])

with the running stream encoded again at every site. With ``r`` the target as a function of the
gates, and S steps between the empty model (all gates 0) and the full one (all gates 1)::

    P_i[f] = 1/S sum_{s=1..S} d r / d gamma_{i,f}  at all gates = (s - 1/2) / S    (43)

The derivative is the replacement model's own: plain, with the SAEs' sd and active masks constant.
Where only the features of a set are kept, gates outside of it stay 0, and the path leads from the
empty model to that set. For SAEs that do not normalise their input the sum of P over all sites
approaches ``r(set) - r(empty)`` as S grows; a constant sd leaves its own changes out.

Source: docs/method.md, "Path-integrated node importance"; after Sundararajan et al., "Axiomatic
attribution for deep networks", arXiv 1703.01365.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vitlens.errors import TargetError, check_count
from vitlens.method.importance import Target
from vitlens.method.replacement import (
    Change,
    ErrorNodes,
    ReplacementModel,
    SiteState,
    Trace,
)


@dataclass(frozen=True, eq=False)
class GateFeatures(Change):
    """Features between their baselines (gate 0) and the running model's activations (gate 1).

    Attributes
    ----------
    gates
        By site, [n, F_i] for n runs at once.
    """

    gates: Sequence[Float[Tensor, "n F"]]

    @property
    def rows(self) -> int:
        """The number of runs."""
        return len(self.gates[0])

    def touches(self, position: int) -> bool:
        """Every site, since there are gates for every site."""
        return True

    def features(self, state: SiteState) -> Float[Tensor, "n T F"]:
        """Activations behind their gates."""
        gate = self.gates[state.position].unsqueeze(-2)
        return torch.lerp(state.baseline.features, state.features, gate)


def path_importances(
    replacement: ReplacementModel,
    trace: Trace,
    target: Target,
    *,
    steps: int = 8,
    within: Sequence[Bool[Tensor, " F"]] | None = None,
    error_nodes: ErrorNodes = "clean",
    batch_size: int = 4,
) -> tuple[Float[Tensor, " F"], ...]:
    """Path-integrated node importance on one image, equation (43).

    Parameters
    ----------
    replacement
        The model, with its baselines.
    trace
        Trace of one image.
    target
        The target to explain.
    steps
        S, steps on the path.
    within
        By site, the features whose gates open, a mask [F_i]; all by default. The others stay at
        their baselines, but have importances as well: what they would add.
    error_nodes
        Values of the error nodes.
    batch_size
        Steps that run together.

    Returns
    -------
    tuple of Tensor
        [F_i] per site, in units of the target.

    Raises
    ------
    FeatureError
        If `steps` is below 1.
    TargetError
        If the target has no derivative with respect to the logits.
    """
    check_count("steps", steps)
    like = trace.residuals[0]
    levels = (torch.arange(steps, dtype=like.dtype, device=like.device) + 0.5) / steps
    total = [like.new_zeros(sae.n_features) for sae in replacement.saes]
    for part in levels.split(batch_size):
        gates = []
        for position, sae in enumerate(replacement.saes):
            opened = like.new_ones(sae.n_features) if within is None else within[position]
            gates.append((part[:, None] * opened.to(like.dtype)).requires_grad_())
        logits = replacement.run(trace, GateFeatures(gates), error_nodes=error_nodes, grad=True)
        value = torch.stack([target.function(row) for row in logits]).sum()
        if not value.requires_grad:
            raise TargetError(
                f"The target {target.name!r} has no derivative with respect to the logits, so no "
                "node has an importance."
            )
        grads = torch.autograd.grad(value, gates)
        total = [t + grad.sum(0) / steps for t, grad in zip(total, grads, strict=True)]
    return tuple(total)
