"""Closed-form engine: all pairs of two layers at once.

It serves blocks that are token-wise but for one softmax attention. Such a block is cut there (see
`split`): ``output = post(x, attention(pre(x)))``, with token-wise `pre` and `post`. Three steps
give the edges of METHOD "Three engines":

1. The encoder rows of active target features are pulled back through `post`, K_{l+1} rows a
   token: to the stream, and to the attended values.
2. What stays on its token is a K_l x K_{l+1} block of inner products a token.
3. What crosses tokens: for fixed constants `pre` is one linear map for all tokens, up to a factor
   a token (one over the norm's standard deviation). So every decoder row is pushed once, not
   once a token, and the attention probabilities spread only how much of a feature is where.

No [F, T, D] tensor is made. Plain gradients add the derivative of the probabilities with respect
to queries (step 2) and keys (step 3), and a rank-one correction a token for the norm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitlens.attribution.pair import LayerPair
from vitlens.attribution.split import TOKENS, KeysValues, SplitBlock, by_head, split_block


def edges(pair: LayerPair) -> Float[Tensor, "F+1 n"]:
    """Edges from every source to the wanted targets; see `LayerPair` for the shapes.

    Raises
    ------
    ModelError
        If the block cannot be cut at one softmax attention.
    """
    result = pair.stream.new_zeros(pair.coefficients.shape[1] + 1, len(pair.targets))
    sources = pair.active_sources()
    active = sources[:-1]
    pair = replace(
        pair, coefficients=pair.coefficients[:, active], directions=pair.directions[active]
    )
    block = split_block(pair)
    rows = _pull_targets(pair, block)
    result[sources] = _within_tokens(pair, rows) + _across_tokens(pair, rows, block)
    return result


@dataclass(frozen=True)
class _Rows:
    """Gradients of the active target features of each token, padded with zeros to K a token."""

    index: Int[Tensor, "T K"]
    at_stream: Float[Tensor, "K T D"]
    at_attended: Float[Tensor, "H T K E"]
    n: int


def _pull_targets(pair: LayerPair, block: SplitBlock) -> _Rows:
    sae, targets = pair.sae, pair.targets
    std = sae.normalize(block.output).std
    index, weight = _strongest(pair.weights[:, targets])
    encoder = sae.encoder_rows()[targets]
    scale = sae.input_scale_of(std)
    at_stream, at_attended = block.pull_output(encoder, index, weight / scale)
    if pair.gradient == "plain":
        at_stream = at_stream + block.pull_queries(at_attended)
    return _Rows(index, at_stream, at_attended.permute(1, 2, 0, 3).contiguous(), len(targets))


def _strongest(x: Float[Tensor, "T F"]) -> tuple[Int[Tensor, "T K"], Float[Tensor, "T K"]]:
    """Columns and values of all entries that are not zero, padded to a common number a row."""
    index = x.abs().topk(int((x != 0).sum(1).max()), dim=1).indices
    return index, x.gather(1, index)


def _within_tokens(pair: LayerPair, rows: _Rows) -> Float[Tensor, "F+1 n"]:
    index, reach = _strongest(pair.coefficients)
    n_features = pair.coefficients.shape[1]
    directions = torch.cat([reach[..., None] * pair.directions[index], pair.error[:, None]], dim=1)
    index = torch.cat([index, index.new_full((len(index), 1), n_features)], dim=1)
    products = directions @ rows.at_stream.permute(1, 2, 0)
    places = index[:, :, None] * rows.n + rows.index[:, None, :]
    result = products.new_zeros((n_features + 1) * rows.n)
    result.scatter_add_(0, places.reshape(-1), products.reshape(-1))
    return result.reshape(n_features + 1, rows.n)


def _across_tokens(pair: LayerPair, rows: _Rows, block: SplitBlock) -> Float[Tensor, "F+1 n"]:
    pushed = block.push_features(pair.directions)
    amount = pair.coefficients * pushed.factor[:, None]
    received = block.probabilities @ amount
    features = rows.at_stream.new_zeros(rows.n, amount.shape[1])
    for tokens in torch.arange(len(amount), device=amount.device).split(TOKENS):
        products = _value_path(pushed.rows.values, received[:, tokens], rows, tokens)
        if pair.gradient == "plain":
            products += _key_path(pushed.rows.keys, amount, rows, block, tokens)
        features.index_add_(0, rows.index[tokens].reshape(-1), products.flatten(0, 1))
    if pair.gradient == "plain":
        norm = block.norm_correction()
        along = pair.coefficients * (norm.at_stream @ pair.directions.T)
        features -= _from_tokens(norm.moved, rows, block) @ along
    spread = block.spread(block.push_tokens(pair.error))
    products = (rows.at_attended * spread[:, :, None]).sum((0, 3))
    error = features.new_zeros(rows.n).index_add_(0, rows.index.flatten(), products.flatten())
    return torch.cat([features.T, error[None]])


def _value_path(
    values: Float[Tensor, "F H E"],
    received: Float[Tensor, "H t F"],
    rows: _Rows,
    tokens: Int[Tensor, " t"],
) -> Float[Tensor, "t K F"]:
    """Features move values: token t' gets a feature's row as often as it attends to it."""
    spread = received.permute(1, 2, 0)[..., None] * values
    contract = rows.at_attended[:, tokens].permute(1, 2, 0, 3)
    return contract.flatten(2) @ spread.flatten(2).transpose(1, 2)


def _key_path(
    keys: Float[Tensor, "F H E"],
    amount: Float[Tensor, "T F"],
    rows: _Rows,
    block: SplitBlock,
    tokens: Int[Tensor, " t"],
) -> Float[Tensor, "t K F"]:
    """Features move keys, and so the attention probabilities of token t'."""
    moved = block.at_scores(rows.at_attended[:, tokens], tokens) @ amount
    scores = torch.einsum("hte,fhe->htf", block.queries[:, tokens], keys)
    return (moved * scores[:, :, None]).sum(0)


def _from_tokens(moved: KeysValues, rows: _Rows, block: SplitBlock) -> Float[Tensor, "n T"]:
    """Change of every target when token t alone moves its key and value, for plain gradients."""
    n_tokens = block.output.shape[0]
    result = rows.at_stream.new_zeros(rows.n, n_tokens)
    for tokens in torch.arange(n_tokens, device=result.device).split(TOKENS):
        at_attended = rows.at_attended[:, tokens]
        reach = by_head(at_attended, moved.values.permute(1, 2, 0))
        scores = block.queries[:, tokens] @ moved.keys.permute(1, 2, 0)
        change = (reach * block.probabilities[:, tokens, None]).sum(0)
        change += (block.at_scores(at_attended, tokens) * scores[:, :, None]).sum(0)
        result.index_add_(0, rows.index[tokens].reshape(-1), change.flatten(0, 1))
    return result
