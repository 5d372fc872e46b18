"""Edge importance: how much a node adds to the target through a feature of the next site.

The definition, with ``m_i = (z_i - z_bar_i) sd_i`` how far each feature moves the stream::

    E_i[f, g] = sum_{t, u} m_i[t, f] < W_dec_i[f], d z_{i+1}[u, g] / d x_i[t] > G_{i+1}[u, g]  (20)
    E_i[e, g] = sum_{t, u} < e_i[t] - e_bar_i[t],  d z_{i+1}[u, g] / d x_i[t] > G_{i+1}[u, g]  (21)

In the derivative of ``z_{i+1}`` the blocks run with LibraGrad's rules (or plainly), and the SAE's
sd and mask of active features are constants. With "leaf" error gradients the rows of E_i sum to
the node importances: ``sum_g E_i[f, g] = N_i[f]`` (22).

Two engines follow the definition, for any blocks between the two sites. With
``S_g(x_i) = sum_u G_{i+1}[u, g] z_{i+1}[u, g]``:

- `vjp`, reverse mode (24): one cotangent per target feature g, in chunks, pulled back to x_i. This
  is what the published code does with `jacrev`.
- `jvp`, forward mode (23): one tangent per source node f, all its tokens together, batched with
  `vmap`. This is the paper's trick for a pruned circuit.

`vitlens.method.closed_form` is the third and fastest, `vitlens.method.engines` chooses.

Source: Kim et al., NeurIPS 2025, arXiv 2509.17401, section 3; docs/method.md, "Edge importance".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vitlens.method.derivatives import pullback, pushforward
from vitlens.method.libragrad import Gradient, backward_rules
from vitlens.models.vision import Block
from vitlens.saes.base import SAE

_COTANGENTS = 64
_TANGENTS = 32


@dataclass(frozen=True)
class SitePair:
    """Two adjacent sites on one image: all that the engines need for equations (20) and (21).

    Attributes
    ----------
    module
        The network, for LibraGrad's rules.
    blocks
        The map from the stream at site i to the stream at site i+1, [n, T, D] -> [n, T, D].
    n_blocks
        Number of blocks in the map.
    gradient
        "libragrad" or "plain".
    stream
        x_i, [T, D].
    coefficients
        m_i, how far along its decoder row each source feature reaches, [T, F_i].
    directions
        Decoder rows of the source features, [F_i, D].
    error
        The error node's own direction, e_i - e_bar_i, [T, D].
    sae
        The SAE of site i+1.
    weights
        Weight of one unit of each target feature, G_{i+1}, [T, F_{i+1}]; 0 where the feature is
        not active.
    active
        Which features of site i+1 are active on this image, [T, F_{i+1}].
    targets
        Target features wanted, [n], in the order of the result's columns.
    """

    module: nn.Module
    blocks: Block
    n_blocks: int
    gradient: Gradient
    stream: Float[Tensor, "T D"]
    coefficients: Float[Tensor, "T F"]
    directions: Float[Tensor, "F D"]
    error: Float[Tensor, "T D"]
    sae: SAE
    weights: Float[Tensor, "T G"]
    active: Bool[Tensor, "T G"]
    targets: Int[Tensor, " n"]

    def target_sums(self, stream: Float[Tensor, "1 T D"]) -> Float[Tensor, " n"]:
        """Weighted activation of each wanted target feature, summed over tokens."""
        with backward_rules(self.module, self.gradient):
            out = self.blocks(stream)[0]
        features = self.sae.encode(out, active=self.active)
        return (features * self.weights).sum(0)[self.targets]

    def active_targets(self) -> Bool[Tensor, " n"]:
        """Which of the wanted targets are active somewhere, so that edges may lead into them."""
        return (self.weights != 0).any(0)[self.targets]

    def active_sources(self) -> Int[Tensor, " m"]:
        """Features that differ from their baseline somewhere, then F_i for the error node."""
        active = (self.coefficients != 0).any(0).nonzero().squeeze(1)
        return torch.cat([active, active.new_tensor([self.coefficients.shape[1]])])

    def source_directions(self, sources: Int[Tensor, " m"]) -> Float[Tensor, "m T D"]:
        """Direction in the stream of whole source nodes, over all tokens."""
        out = self.stream.new_empty(len(sources), *self.stream.shape)
        is_error = sources == self.coefficients.shape[1]
        features = sources[~is_error]
        out[~is_error] = self.coefficients.T[features, :, None] * self.directions[features, None]
        out[is_error] = self.error
        return out


def vjp(pair: SitePair) -> Float[Tensor, "F+1 n"]:
    """Edges from every source to the wanted targets, by reverse mode: (24).

    The error node's row is last. The cost grows with the number of targets.
    """
    n = len(pair.targets)
    columns = []
    # The forward pass runs once; each chunk pulls its cotangents back through the same graph.
    pull = pullback(pair.target_sums, pair.stream[None])
    for chunk in torch.arange(n, device=pair.stream.device).split(_COTANGENTS):
        (rows,) = torch.func.vmap(pull)(F.one_hot(chunk, n).to(pair.stream.dtype))
        rows = rows[:, 0]
        onto_features = torch.einsum("ntf,tf->fn", rows @ pair.directions.T, pair.coefficients)
        onto_error = torch.einsum("ntd,td->n", rows, pair.error)
        columns.append(torch.cat([onto_features, onto_error[None]]))
    return torch.cat(columns, dim=1)


def jvp(pair: SitePair) -> Float[Tensor, "F+1 n"]:
    """Edges from every source to the wanted targets, by forward mode: (23).

    The error node's row is last. The cost grows with the number of active sources.
    """
    stream = pair.stream[None]

    def push(tangent: Float[Tensor, "T D"]) -> Float[Tensor, " n"]:
        out: Tensor = pushforward(pair.target_sums, stream, tangent[None])
        return out

    sources = pair.active_sources()
    result = pair.stream.new_zeros(pair.coefficients.shape[1] + 1, len(pair.targets))
    for chunk in sources.split(_TANGENTS):
        result[chunk] = torch.func.vmap(push)(pair.source_directions(chunk))
    return result
