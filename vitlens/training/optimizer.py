"""One step of learning: hand-written gradients, Adam with fixed decoder lengths, dead features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitlens.errors import CheckpointError
from vitlens.saes.base import SAE
from vitlens.saes.topk import TopKSAE, budget_mask

#: Tensors of an SAE that learn, where it has them; masks and normalisation are constants.
_LEARNING = ("W_enc", "W_dec", "b_dec", "b_enc")
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Gradients:
    """Gradients of one layer's loss, and what the step needs to know of the batch.

    Attributes
    ----------
    W_enc, W_dec, b_dec
        Gradients of the loss, in the parameters' shapes.
    active
        Which features were active on at least one token.
    squared_error, total_square
        Sums over the batch of ``|xn - x_hat|^2`` and ``|xn - mean(xn)|^2``.
    """

    W_enc: Float[Tensor, "D F"]
    W_dec: Float[Tensor, "F D"]
    b_dec: Float[Tensor, " D"]
    active: Bool[Tensor, " F"]
    squared_error: Float[Tensor, ""]
    total_square: Float[Tensor, ""]


def gradients(
    sae: TopKSAE,
    tokens: Float[Tensor, "*n T D"],
    dead: Int[Tensor, " n_dead"],
    *,
    aux_weight: float,
    aux_features: int,
    matmul_dtype: torch.dtype,
) -> Gradients:
    """Gradients of the training loss of one top-k SAE, by hand.

    The loss is ``mean (x_hat - xn)^2 + aux_weight * mean (e_hat - e)^2`` over tokens and channels:
    ``e = xn - x_hat`` is taken as a constant, and ``e_hat`` is its reconstruction from the
    `aux_features` strongest of the dead features (AuxK, arXiv 2406.04093, section 2.4). Dead
    features take part in AuxK whatever the image's budget allows.

    Parameters
    ----------
    sae
        Its weights are read only.
    tokens
        Normalised tokens xn: any [N, D], or whole images [n, T, D] for an image budget.
    dead
        Indices of the dead features.
    aux_weight, aux_features
        Weight of the AuxK loss; most dead features that take part on one token.
    matmul_dtype
        Precision of the large products. Sums of squares and updates keep the weights' precision.
    """
    W_enc, W_dec = sae.W_enc.to(matmul_dtype), sae.W_dec.to(matmul_dtype)
    shape = tokens.shape[:-1]
    tokens = tokens.flatten(0, -2).to(sae.b_dec.dtype)
    centred = (tokens - sae.b_dec).to(matmul_dtype)
    pre = centred @ W_enc

    candidates = pre
    if sae.budget is not None:
        allowed = budget_mask(pre.relu().to(sae.b_dec.dtype).view(*shape, -1), sae.budget)
        candidates = pre.view(*shape, -1).masked_fill(~allowed, 0).view_as(pre)
    top, index = candidates.topk(sae.k, dim=-1, sorted=False)
    values = top.relu().to(sae.b_dec.dtype)
    # Only k rows per token are summed; a dense product would multiply mostly zeros.
    reconstruction = F.embedding_bag(index, sae.W_dec, per_sample_weights=values, mode="sum")
    error = reconstruction + sae.b_dec - tokens
    error_low = error.to(matmul_dtype)

    # put_ with flat indices: on the CPU 20 times as fast as scatter_ along a dimension
    flat = index + torch.arange(len(index), device=index.device)[:, None] * sae.n_features
    features = torch.zeros_like(pre).put_(flat, values.to(matmul_dtype))
    d_values = (error_low @ W_dec.T).gather(-1, index) * (top > 0)
    d_pre = torch.zeros_like(pre).put_(flat, d_values)
    d_dec = (features.T @ error_low).to(sae.W_dec.dtype)

    if len(dead) and aux_weight and aux_features:
        aux_top, aux_index = pre[:, dead].topk(min(aux_features, len(dead)), -1, sorted=False)
        aux = torch.zeros_like(pre[:, dead]).scatter_(-1, aux_index, aux_top.relu())
        aux_error = aux_weight * (aux @ W_dec[dead] + error_low)
        d_dec.index_add_(0, dead, (aux.T @ aux_error).to(d_dec.dtype))
        d_pre.index_add_(1, dead, (aux_error @ W_dec[dead].T) * (aux > 0))

    scale = 2 / tokens.numel()
    d_pre_sum = (d_pre.new_ones(1, len(d_pre)) @ d_pre)[0].to(sae.b_dec.dtype)
    d_bias = error.sum(0) - sae.W_enc @ d_pre_sum
    return Gradients(
        W_enc=(centred.T @ d_pre).to(sae.W_enc.dtype) * scale,
        W_dec=d_dec * scale,
        b_dec=d_bias * scale,
        active=torch.bincount(index.flatten(), (values > 0).flatten(), sae.n_features) > 0,
        squared_error=error.square().sum(),
        total_square=tokens.square().sum() - len(tokens) * tokens.mean(0).square().sum(),
    )


class Learner:
    """SAEs that learn together: Adam, and a count of silent batches for every feature.

    A step along a decoder row would only change its length, which is fixed: that part of the
    gradient is removed before the step, and the rows get their lengths back after it.

    Parameters
    ----------
    saes
        Their `W_enc`, `W_dec`, `b_dec` and `b_enc` are changed in place; thresholds and a stored
        normalisation stay as they are.
    layers
        Their layers, which name the tensors of `state`.
    learning_rate
        Learning rate of the first step; every `step` gives its own.
    dead_after
        A feature is dead when it was silent for so many batches.

    Attributes
    ----------
    step_count
        Steps taken.
    silent
        Per SAE, batches since each feature was last active, [F].
    parameters
        All that learn.

    Notes
    -----
    Kim et al., arXiv 2509.17401, appendix on training.
    """

    def __init__(
        self, saes: Sequence[SAE], layers: Sequence[int], *, learning_rate: float, dead_after: int
    ) -> None:
        self.saes, self.layers = tuple(saes), tuple(layers)
        self.step_count = 0
        self._dead_after = dead_after
        self._named = {
            f"{layer}.{name}": parameter
            for layer, sae in zip(self.layers, self.saes, strict=True)
            for name in _LEARNING
            if (parameter := getattr(sae, name)) is not None
        }
        self.parameters = list(self._named.values())
        device = self.parameters[0].device
        self._lengths = [_row_lengths(sae) for sae in self.saes]
        self.silent = tuple(
            torch.zeros(sae.n_features, dtype=torch.int64, device=device) for sae in self.saes
        )
        fused = device.type in ("cpu", "cuda")
        self._adam = torch.optim.Adam(self.parameters, lr=learning_rate, fused=fused)
        for parameter in self.parameters:
            self._adam.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def dead(self) -> list[Int[Tensor, " n_dead"]]:
        """Indices of the dead features of each SAE."""
        return [(counts >= self._dead_after).nonzero().flatten() for counts in self.silent]

    @torch.no_grad()
    def step(self, learning_rate: float, active: Sequence[Bool[Tensor, " F"]]) -> None:
        """Take one step along the `grad` of every parameter, and drop these gradients.

        Parameters
        ----------
        learning_rate
            Learning rate of this step.
        active
            Per SAE, True for features active on a token of the batch.
        """
        for sae in self.saes:
            gradient = sae.W_dec.grad
            assert gradient is not None
            unit = F.normalize(sae.W_dec, dim=-1)
            sae.W_dec.grad = gradient - (gradient * unit).sum(-1, keepdim=True) * unit
        self._adam.param_groups[0]["lr"] = learning_rate
        self._adam.step()
        for sae, length in zip(self.saes, self._lengths, strict=True):
            sae.W_dec.copy_(F.normalize(sae.W_dec, dim=-1) * length)
        for parameter in self.parameters:
            parameter.grad = None
        for counts, seen in zip(self.silent, active, strict=True):
            counts.add_(1).masked_fill_(seen, 0)
        self.step_count += 1

    def state(self) -> dict[str, Tensor]:
        """Weights, moments and counts by name, as a run keeps them."""
        tensors = {}
        for name, parameter in self._named.items():
            tensors[name] = parameter.detach()
            for moment in _MOMENTS:
                tensors[f"{name}.{moment}"] = self._adam.state[parameter][moment]
        counts = zip(self.layers, self.silent, strict=True)
        return tensors | {f"{layer}.silent": count for layer, count in counts}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor], step_count: int) -> None:
        """Continue from what `state` gave after `step_count` steps.

        Raises
        ------
        CheckpointError
            If a tensor is missing or has another shape.
        """
        for name, target in self.state().items():
            if name not in tensors or tensors[name].shape != target.shape:
                raise CheckpointError(f"it lacks {name} of shape {list(target.shape)}")
            target.copy_(tensors[name])
        for state in self._adam.state.values():
            state["step"].fill_(step_count)
        self.step_count = step_count


def _row_lengths(sae: SAE) -> Float[Tensor, "F 1"]:
    """Lengths of the decoder's rows; exactly 1 where they were unit rows before rounding."""
    lengths = sae.W_dec.detach().norm(dim=-1, keepdim=True)
    return torch.where((lengths - 1).abs() < 1e-3, 1.0, lengths)


def learning_dtype(model_dtype: torch.dtype) -> torch.dtype:
    """Precision of the weights that learn: the model's own, but float32 for half precision."""
    half = model_dtype in (torch.float16, torch.bfloat16)
    return torch.float32 if half else model_dtype


def new_sae(
    d_model: int, n_features: int, k: int, budget: int | None, generator: torch.Generator
) -> TopKSAE:
    """A top-k SAE to train: random unit decoder rows, and the encoder their transpose."""
    # float64 so that the same seed gives the same weights in every precision
    directions = torch.randn(n_features, d_model, generator=generator, dtype=torch.float64)
    W_dec = F.normalize(directions, dim=-1)
    b_dec = torch.zeros(d_model, dtype=W_dec.dtype)
    return TopKSAE.from_weights(W_enc=W_dec.T, W_dec=W_dec, b_dec=b_dec, k=k, budget=budget)
