"""Closed-form engine: all pairs of two layers at once, for blocks that are token-wise but for one
softmax attention.

Such a block is cut at its attention into `pre` (stream to queries, keys, values) and `post` (stream
and attended values to output), both token-wise. Three steps give the edges of METHOD "Three
engines":

1. The rows of active target features are pulled back through `post`: K_{l+1} rows a token, for
   the stream and for the attended values.
2. The part that stays on its token is a K_l x K_{l+1} block of inner products a token.
3. The part that crosses tokens: active decoder rows are pushed through `pre`, spread over the
   tokens with the attention probabilities, summed over each source feature's tokens, and
   contracted with the rows of step 1.

No [F, T, D] tensor is made. For plain gradients the derivative of the attention probabilities
is added to steps 2 (queries) and 3 (keys).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitlens.attribution.edges import LayerPair
from vitlens.attribution.split import SplitBlock, split_block

# Numbers held at once while spreading source features over the tokens (4 bytes each).
_SPREAD_BUDGET = 24_000_000


def edges(pair: LayerPair) -> Float[Tensor, "F+1 n"]:
    """Edges from every source to the wanted targets; see `LayerPair` for the shapes.

    Raises
    ------
    ModelError
        If the block cannot be cut at one softmax attention.
    """
    with torch.no_grad():
        block = split_block(pair)
        rows = _pull_targets(pair, block)
        sources = _Sources.of(pair)
        result = _within_tokens(sources, rows)
        result += _across_tokens(sources, rows, block)
        return result.narrow(1, 0, len(pair.targets))


@dataclass(frozen=True)
class _Sources:
    """Active sources of each token, padded to a common number S with zero directions."""

    index: Int[Tensor, "T S"]
    directions: Float[Tensor, "T S D"]
    n: int

    @classmethod
    def of(cls, pair: LayerPair) -> _Sources:
        n_features = pair.coefficients.shape[1]
        widest = max(int((pair.coefficients != 0).sum(1).max()), 1)
        index = pair.coefficients.abs().topk(widest, dim=1).indices
        reach = pair.coefficients.gather(1, index)
        error = torch.full_like(index[:, :1], n_features)
        return cls(
            index=torch.cat([index, error], dim=1),
            directions=torch.cat(
                [reach[..., None] * pair.directions[index], pair.error[:, None]], dim=1
            ),
            n=n_features + 1,
        )


@dataclass(frozen=True)
class _Rows:
    """Gradients of the active target features of each token, padded to a common number K."""

    index: Int[Tensor, "T K"]
    at_stream: Float[Tensor, "K T D"]
    at_attended: Float[Tensor, "K H T E"]
    n: int


def _pull_targets(pair: LayerPair, block: SplitBlock) -> _Rows:
    sae, targets = pair.sae, pair.targets
    features, _, std = sae.encode_with_stats(block.output[0])
    weights = torch.where(features > 0, pair.weights, 0)[:, targets]
    widest = max(int((weights != 0).sum(1).max()), 1)
    index = weights.abs().topk(widest, dim=1).indices
    weight = weights.gather(1, index)
    encoder = sae.W_enc[:, targets].T
    encoder = encoder - encoder.mean(1, keepdim=True)
    cotangents = encoder[index] * (weight / (std + sae.std_eps))[..., None]
    at_stream, at_attended = block.pull_output(cotangents.transpose(0, 1))
    if pair.gradient == "plain":
        at_stream = at_stream + block.pull_queries(at_attended)
    return _Rows(index, at_stream, at_attended, len(targets))


def _within_tokens(sources: _Sources, rows: _Rows) -> Float[Tensor, "F+1 n"]:
    products = sources.directions @ rows.at_stream.permute(1, 2, 0)
    flat = sources.index[:, :, None] * rows.n + rows.index[:, None, :]
    result = products.new_zeros(sources.n * rows.n)
    return result.index_add_(0, flat.reshape(-1), products.reshape(-1)).reshape(sources.n, rows.n)


def _across_tokens(sources: _Sources, rows: _Rows, block: SplitBlock) -> Float[Tensor, "F+1 n"]:
    pushed = block.push_sources(sources.directions)
    slot, token = _by_feature(sources)
    heads, n_tokens, _ = block.attended.shape
    contract = rows.at_attended.permute(2, 1, 3, 0).reshape(n_tokens, -1, rows.index.shape[1])
    columns = rows.index.reshape(-1)
    result = contract.new_zeros(rows.n, sources.n)

    counts = torch.bincount(sources.index.reshape(-1)[slot], minlength=sources.n)
    starts = counts.cumsum(0) - counts
    # Sources with like numbers of tokens go together, so that little of a chunk is padding.
    order = counts.argsort()
    order = order[counts[order] > 0]
    for chunk in _chunks(counts[order].tolist(), block):
        chosen = order[chunk]
        place = torch.arange(int(counts[chosen].max()), device=slot.device)
        padded = place >= counts[chosen, None]
        take = (starts[chosen, None] + place).masked_fill(padded, 0)
        spread = block.spread(pushed, slot[take], token[take], padded)
        spread = spread.permute(2, 0, 1, 3).reshape(n_tokens, len(chosen), -1)
        products = torch.bmm(spread, contract).permute(0, 2, 1).reshape(-1, len(chosen))
        result[:, chosen] = result.new_zeros(rows.n, len(chosen)).index_add_(0, columns, products)
    return result.T


def _by_feature(sources: _Sources) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """Slots (token x S + place) and tokens of all active pairs, sorted by source."""
    active = sources.directions.abs().amax(-1).reshape(-1) > 0
    slots = active.nonzero().squeeze(1)
    slots = slots[sources.index.reshape(-1)[slots].argsort(stable=True)]
    return slots, slots // sources.index.shape[1]


def _chunks(counts: list[int], block: SplitBlock) -> list[slice]:
    """Cut ascending token counts into runs whose tensors stay within the budget."""
    heads, n_tokens, width = block.attended.shape
    chunks, start = [], 0
    for stop in range(1, len(counts) + 1):
        size = (stop + 1 - start) * heads * n_tokens * (width + counts[min(stop, len(counts) - 1)])
        if stop == len(counts) or size > _SPREAD_BUDGET:
            chunks.append(slice(start, stop))
            start = stop
    return chunks
