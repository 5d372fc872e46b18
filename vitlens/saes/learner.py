"""One training step of the SAEs of all layers: loss, hand-written gradients, Adam."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitlens.saes.adam import DictionaryAdam
from vitlens.saes.config import TrainConfig
from vitlens.saes.dead import SilentFeatures
from vitlens.saes.topk import TopKSAE


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


@dataclass(frozen=True)
class StepReport:
    """One step over all layers: explained variance and dead features, each [layers]."""

    explained_variance: Float[Tensor, " layers"]
    dead_fraction: Float[Tensor, " layers"]


def gradients(
    sae: TopKSAE,
    tokens: Float[Tensor, "N D"],
    dead: Int[Tensor, " n_dead"],
    *,
    aux_weight: float,
    aux_features: int,
    matmul_dtype: torch.dtype,
) -> Gradients:
    """Gradients of the training loss of one SAE, by hand.

    The loss is ``mean (x_hat - xn)^2 + aux_weight * mean (e_hat - e)^2`` over tokens and channels:
    ``e = xn - x_hat`` is taken as a constant, and ``e_hat`` is its reconstruction from the
    `aux_features` strongest of the dead features (AuxK, arXiv 2406.04093, section 2.4).

    Parameters
    ----------
    sae
        Its weights are read only.
    tokens
        Normalised tokens xn [N, D].
    dead
        Indices of the dead features.
    aux_weight, aux_features
        Weight of the AuxK loss; most dead features that take part on one token.
    matmul_dtype
        Precision of the large products. Sums of squares and updates keep the weights' precision.
    """
    W_enc, W_dec = sae.W_enc.to(matmul_dtype), sae.W_dec.to(matmul_dtype)
    tokens = tokens.to(sae.b_dec.dtype)
    centred = (tokens - sae.b_dec).to(matmul_dtype)
    pre = centred @ W_enc

    top, index = pre.topk(sae.k, dim=-1, sorted=False)
    values = top.relu().to(sae.b_dec.dtype)
    # Only k rows a token are summed; a dense product would multiply mostly zeros.
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
    """SAEs of all layers under training, with their Adam moments and dead-feature counters.

    Parameters
    ----------
    width
        D of the model.
    config
        Settings; `config.layers(n_layers)` gives sizes and k.
    n_layers
        How many SAEs.
    dtype, device
        Of the weights and moments.
    """

    def __init__(
        self,
        width: int,
        config: TrainConfig,
        n_layers: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.config = config
        generator = torch.Generator().manual_seed(config.seed)
        self.saes = tuple(
            _fresh_sae(width, size, k, generator).to(device=device, dtype=dtype)
            for size, k in config.layers(n_layers)
        )
        self.silent = SilentFeatures(self.saes, config.dead_after)
        self._matmul_dtype = torch.bfloat16 if config.precision == "bfloat16" else dtype
        self._adam = DictionaryAdam(self.saes, config.learning_rate)

    @property
    def step_count(self) -> int:
        """Steps taken."""
        return self._adam.step_count

    @torch.no_grad()
    def step(self, batches: Sequence[Float[Tensor, "N D"]], learning_rate: float) -> StepReport:
        """Train every layer on one batch of its normalised tokens."""
        explained, active = [], []
        all_dead = self.silent.dead()
        for sae, dead, tokens in zip(self.saes, all_dead, batches, strict=True):
            if self.step_count == 0:
                sae.b_dec.copy_(tokens.to(sae.b_dec.dtype).mean(0))
            grads = gradients(
                sae,
                tokens,
                dead,
                aux_weight=self.config.aux_weight,
                aux_features=self.config.aux_features,
                matmul_dtype=self._matmul_dtype,
            )
            sae.W_enc.grad, sae.W_dec.grad = grads.W_enc, grads.W_dec
            sae.b_dec.grad = grads.b_dec
            active.append(grads.active)
            explained.append(1 - grads.squared_error / grads.total_square)
        self.silent.update(active)
        self._adam.step(learning_rate)
        shares = [len(dead) / sae.n_features for dead, sae in zip(all_dead, self.saes, strict=True)]
        return StepReport(torch.stack(explained), torch.tensor(shares, device=explained[0].device))

    def state(self) -> dict[str, Tensor]:
        """Everything a checkpoint needs, by name: weights, moments, counters."""
        return {**self._adam.state(), **self.silent.state()}

    def load_state(self, tensors: dict[str, Tensor], step_count: int) -> None:
        """Continue from what `state` gave after `step_count` steps.

        Raises
        ------
        CheckpointError
            If a tensor is missing or has another shape.
        """
        self._adam.load_state(tensors, step_count)
        self.silent.load_state(tensors)


def _fresh_sae(width: int, size: int, k: int, generator: torch.Generator) -> TopKSAE:
    # float64 so that the same seed gives the same weights in every precision
    directions = torch.randn(size, width, generator=generator, dtype=torch.float64)
    W_dec = F.normalize(directions, dim=-1)
    return TopKSAE.from_weights(
        W_enc=W_dec.T.contiguous(), W_dec=W_dec, b_dec=torch.zeros(width, dtype=W_dec.dtype), k=k
    )
