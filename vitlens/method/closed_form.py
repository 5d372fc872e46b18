"""The closed form: the edges of all pairs of two adjacent sites at once.

For blocks that are token-wise but for one softmax attention. Cut such a block at its attention,
with token-wise maps `pre` (norm, queries, keys, values) and `post` (output projection, MLP)::

    q, k, v = pre(x)        A_h = softmax(q_h k_h^T) v_h        y = post(x, A)           (25)

Let ``rows[u, g] = G[u, g] row_g / s[u]`` be the encoder row of each active target feature at its
token u, weighted with what a unit of it counts; only K rows per token are not zero. Pulled back
through `post` they give `at_stream` [D] and `at_attended` [H, E] for each of them (26). Under
LibraGrad the attention probabilities P_h are constants, and (20) falls into two paths, with
``m = (z - z_bar) sd``::

    within   E[f, g] += sum_u m[u, f] <W_dec[f], at_stream[u, g]>                        (27)
    across   received_h[u, f] = sum_t P_h[u, t] factor[t] m[t, f]
             E[f, g] += sum_{u, h} received_h[u, f] <values_h[f], at_attended_h[u, g]>   (29)

For fixed constants `pre` is one linear map for all tokens, up to a factor per token (one over the
norm's standard deviation), so that every decoder row is pushed to ``values_h[f]`` once and not once
per token (28), and the attention spreads only how much of a feature is where. No [F, T, D] tensor
is made. Plain gradients add the derivative of the probabilities (30) with respect to queries, a
part of `at_stream` (31), and to keys (32), and a correction of rank one per token for the norm
(33).

docs/method.md, "Closed form", derives each step and counts the cost: with K active features per
token, A active sources and an MLP of width 4 D about T K D (5 D + A) operations, against A passes
of the block, 12 T D^2 each, for "jvp".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitlens.errors import ModelError
from vitlens.method.derivatives import pullback, pushforward
from vitlens.method.edges import SitePair
from vitlens.method.libragrad import Gradient, backward_rules

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Linear = Callable[..., Tensor]
# Target rows of a token that are pulled back together: bounds memory.
_ROWS = 16
#: Receiving tokens processed together: bounds the largest tensors, [H, tokens, K, T] here.
_TOKENS = 16


def edges(pair: SitePair) -> Float[Tensor, "F+1 n"]:
    """Edges from every source to the wanted targets, the error node's row last: (27) and (29).

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
    block = _split_block(pair)
    rows = _pull_targets(pair, block)
    result[sources] = _within_tokens(pair, rows) + _across_tokens(pair, rows, block)
    return result


@dataclass(frozen=True)
class _Rows:
    """Gradients of the active targets of each token (26), padded with zeros to K per token."""

    index: Int[Tensor, "T K"]
    at_stream: Float[Tensor, "K T D"]
    at_attended: Float[Tensor, "H T K E"]
    n: int


def _pull_targets(pair: SitePair, block: _SplitBlock) -> _Rows:
    sae, targets = pair.sae, pair.targets
    scale = sae.input_scale_of(sae.normalize(block.output).std)
    index, weight = _strongest(pair.weights[:, targets])
    encoder = sae.encoder_rows(targets)
    at_stream, at_attended = block.pull_output(encoder, index, weight / scale)
    if pair.gradient == "plain":
        at_stream = at_stream + block.pull_queries(at_attended)
    return _Rows(index, at_stream, at_attended.permute(1, 2, 0, 3).contiguous(), len(targets))


def _strongest(x: Float[Tensor, "T F"]) -> tuple[Int[Tensor, "T K"], Float[Tensor, "T K"]]:
    """Columns and values of all entries that are not zero, padded to a common number per row."""
    index = x.abs().topk(int((x != 0).sum(1).max()), dim=1).indices
    return index, x.gather(1, index)


def _within_tokens(pair: SitePair, rows: _Rows) -> Float[Tensor, "F+1 n"]:
    """Equation (27): what stays on its token.

    With baselines of 0 few sources reach anywhere on a token, and only their decoder rows are
    taken; with others nearly all do, and one product with all rows is cheaper.
    """
    n_features = pair.coefficients.shape[1]
    result = pair.stream.new_zeros(n_features + 1, rows.n)
    index, reach = _strongest(pair.coefficients)
    dense = 2 * index.shape[1] > n_features
    for tokens in torch.arange(len(index), device=index.device).split(_TOKENS):
        at_stream = rows.at_stream[:, tokens].transpose(0, 1)
        ends = rows.index[tokens]
        of_error = (at_stream * pair.error[tokens, None]).sum(-1)
        result[-1].index_add_(0, ends.reshape(-1), of_error.reshape(-1))
        if dense:
            products = pair.directions @ at_stream.flatten(0, 1).T
            products *= pair.coefficients[tokens].T.repeat_interleave(ends.shape[1], 1)
            result[:-1].index_add_(1, ends.reshape(-1), products)
        else:
            directions = reach[tokens, :, None] * pair.directions[index[tokens]]
            products = directions @ at_stream.transpose(1, 2)
            cells = index[tokens, :, None] * rows.n + ends[:, None, :]
            result.view(-1).index_add_(0, cells.reshape(-1), products.reshape(-1))
    return result


def _across_tokens(pair: SitePair, rows: _Rows, block: _SplitBlock) -> Float[Tensor, "F+1 n"]:
    """What crosses the attention: (29), with plain gradients (32) and (33), too."""
    pushed = block.push_features(pair.directions)
    amount = pair.coefficients * pushed.factor[:, None]
    received = block.probabilities @ amount
    features = rows.at_stream.new_zeros(rows.n, amount.shape[1])
    for tokens in torch.arange(len(amount), device=amount.device).split(_TOKENS):
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
    """Features move values: token u gets a feature's row as often as it attends to it (29)."""
    spread = received.permute(1, 2, 0)[..., None] * values
    contract = rows.at_attended[:, tokens].permute(1, 2, 0, 3)
    return contract.flatten(2) @ spread.flatten(2).transpose(1, 2)


def _key_path(
    keys: Float[Tensor, "F H E"],
    amount: Float[Tensor, "T F"],
    rows: _Rows,
    block: _SplitBlock,
    tokens: Int[Tensor, " t"],
) -> Float[Tensor, "t K F"]:
    """Features move keys, and so the attention probabilities of token u (32)."""
    moved = block.at_scores(rows.at_attended[:, tokens], tokens) @ amount
    scores = torch.einsum("hte,fhe->htf", block.queries[:, tokens], keys)
    return (moved * scores[:, :, None]).sum(0)


def _from_tokens(moved: _KeysValues, rows: _Rows, block: _SplitBlock) -> Float[Tensor, "n T"]:
    """Change of every target when token t alone moves its key and value, for (33)."""
    n_tokens = block.output.shape[0]
    result = rows.at_stream.new_zeros(rows.n, n_tokens)
    for tokens in torch.arange(n_tokens, device=result.device).split(_TOKENS):
        at_attended = rows.at_attended[:, tokens]
        reach = _by_head(at_attended, moved.values.permute(1, 2, 0))
        scores = block.queries[:, tokens] @ moved.keys.permute(1, 2, 0)
        change = (reach * block.probabilities[:, tokens, None]).sum(0)
        change += (block.at_scores(at_attended, tokens) * scores[:, :, None]).sum(0)
        result.index_add_(0, rows.index[tokens].reshape(-1), change.flatten(0, 1))
    return result


class _KeysValues(NamedTuple):
    """Changes of keys and values, [..., H, E] each."""

    keys: Float[Tensor, "*n H E"]
    values: Float[Tensor, "*n H E"]


class _PushedFeatures(NamedTuple):
    """Decoder rows seen at the attention: token t gets ``factor[t] * rows``."""

    factor: Float[Tensor, " T"]
    rows: _KeysValues


class _NormCorrection(NamedTuple):
    """What the norm's standard deviation takes away: ``moved[t] <at_stream[t], d>``."""

    moved: _KeysValues
    at_stream: Float[Tensor, "T D"]


class _Reached(Exception):  # noqa: N818 - the block need not run any further; nothing is wrong
    pass


class _Probe(TorchFunctionMode):
    """Lets `attend` take the place of softmax attention, `linear` that of one linear layer.

    Linear layers are counted from 1 in the order of their calls; `cut` is the one to replace.
    """

    def __init__(self, attend: Attend, linear: Linear = F.linear, cut: int = 0):
        super().__init__()
        self.attend, self.linear, self.cut = attend, linear, cut
        self.attentions = self.linears = 0

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            self.linears += 1
            return (self.linear if self.linears == self.cut else func)(*args, **kwargs)
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.attentions += 1
        if len(args) != 3 or any(kwargs.values()) or args[0].shape != args[1].shape:
            raise ModelError(
                "The closed form supports plain softmax attention only, without masks, dropout or "
                'grouped queries. Use engine="jvp" (or "vjp") for this model.'
            )
        return self.attend(*args)


@contextmanager
def _fused_attention(model: nn.Module) -> Iterator[None]:
    """Have timm's attention layers call the one function that the probe knows."""
    manual: list[Any] = [m for m in model.modules() if getattr(m, "fused_attn", True) is False]
    for module in manual:
        module.fused_attn = True
    try:
        yield
    finally:
        for module in manual:
            module.fused_attn = False


@dataclass(frozen=True)
class _SplitBlock:
    """A block on one image, cut at its attention: equation (25).

    Attributes
    ----------
    pair
        Where the block is, and with which gradient.
    queries, keys, values, attended
        Inputs and output of the attention, [H, T, E]; the scores' scale is in the queries.
    probabilities
        Attention probabilities, [H, T, T]; rows are the receiving tokens.
    output
        The block's output, [T, D].
    n_linears
        Number of linear layers that the block calls.
    """

    pair: SitePair
    queries: Float[Tensor, "H T E"]
    keys: Float[Tensor, "H T E"]
    values: Float[Tensor, "H T E"]
    attended: Float[Tensor, "H T E"]
    probabilities: Float[Tensor, "H T T"]
    output: Float[Tensor, "T D"]
    n_linears: int

    def at_scores(
        self, at_attended: Float[Tensor, "H t K E"], tokens: Int[Tensor, " t"]
    ) -> Float[Tensor, "H t K T"]:
        """Pull rows at the attended values of some tokens back to their attention scores (30)."""
        reach = _by_head(at_attended, self.values.transpose(-2, -1))
        mean = (at_attended * self.attended[:, tokens, None]).sum(-1, keepdim=True)
        return self.probabilities[:, tokens, None] * (reach - mean)

    def pull_output(
        self,
        rows: Float[Tensor, "n D"],
        index: Int[Tensor, "T K"],
        weight: Float[Tensor, "T K"],
    ) -> tuple[Float[Tensor, "K T D"], Float[Tensor, "K H T E"]]:
        """Pull ``weight[t, k] * rows[index[t, k]]`` at the output back, K rows per token (26).

        Returns the rows at the stream (attended values fixed) and at the attended values. The
        block's last linear layer is the same map for all tokens, so that `rows` go through it
        once and not once per token, unless something that differs by token follows it.
        """
        hidden_rows = self._through_last_linear(rows)
        if hidden_rows is None:
            pull = pullback(self._post, self.pair.stream, self.attended)
        else:
            pull = pullback(self._before_last_linear, self.pair.stream, self.attended)
        pulled = []
        for chunk, amount in zip(index.T.split(_ROWS), weight.T.split(_ROWS), strict=True):
            cotangents = rows[chunk] * amount[..., None]
            if hidden_rows is None:
                pulled.append(torch.func.vmap(pull)(cotangents))
            else:
                hidden = hidden_rows[chunk] * amount[..., None]
                pulled.append(torch.func.vmap(pull)((cotangents, hidden)))
        at_stream, at_attended = (torch.cat(x) for x in zip(*pulled, strict=True))
        return at_stream, at_attended

    def pull_queries(self, at_attended: Float[Tensor, "K H T E"]) -> Float[Tensor, "K T D"]:
        """Pull rows at the attended values back to the stream through the queries (31)."""
        rows = at_attended.permute(1, 2, 0, 3)
        every = torch.arange(self.output.shape[0], device=self.output.device)
        at_queries = torch.cat(
            [
                _by_head(self.at_scores(rows[:, tokens], tokens), self.keys)
                for tokens in every.split(_TOKENS)
            ],
            dim=1,
        )
        pull = pullback(lambda x: self._pre(x, "plain")[0], self.pair.stream)
        (at_stream,) = torch.func.vmap(pull)(at_queries.permute(2, 0, 1, 3))
        return at_stream

    def push_features(self, directions: Float[Tensor, "F D"]) -> _PushedFeatures:
        """Push decoder rows to keys and values, with the norm's standard deviation fixed (28).

        Raises
        ------
        ModelError
            If the map is not the same for all tokens up to a factor.
        """
        n_tokens = self.output.shape[0]
        seen = self._push(_probe_direction(directions).expand(n_tokens, -1), "libragrad")
        # Keys matter for plain gradients only: with LibraGrad they may be rotated or normalised.
        flat = torch.cat([x.flatten(1) for x in self._needed(seen)], dim=1)
        size = flat[0].square().sum()
        # Where weights are zero nothing is pushed, whatever the factor.
        factor = (flat @ flat[0]) / size if size > 0 else flat.new_ones(n_tokens)
        if _differ(flat, factor[:, None] * flat[0]):
            raise ModelError(
                f"The {self.pair.gradient} gradient of this block's attention inputs differs from "
                "token to token (rotary embeddings or key norms with plain gradients, or a norm "
                'that LibraGrad does not support). Use engine="jvp" (or "vjp").'
            )
        rows = []
        for part in directions.split(n_tokens):
            padded = F.pad(part, (0, 0, 0, n_tokens - len(part)))
            pushed = self._push(padded, "libragrad")
            rows.append([(x / factor[:, None, None])[: len(part)] for x in pushed])
        return _PushedFeatures(
            factor, _KeysValues(*(torch.cat(x) for x in zip(*rows, strict=True)))
        )

    def push_tokens(self, directions: Float[Tensor, "T D"]) -> _KeysValues:
        """Push one direction per token to that token's key and value."""
        return self._push(directions, self.pair.gradient)

    def spread(self, moved: _KeysValues) -> Float[Tensor, "H T E"]:
        """Change of the attended values when all tokens move their keys and values."""
        spread = self.probabilities @ moved.values.transpose(0, 1)
        if self.pair.gradient == "plain":
            scores = self.probabilities * (self.queries @ moved.keys.permute(1, 2, 0))
            spread += scores @ self.values - scores.sum(-1, keepdim=True) * self.attended
        return spread

    def norm_correction(self) -> _NormCorrection:
        """How plain gradients differ from those with the norm's standard deviation fixed (33).

        The difference R of the two maps has rank one at every token, so that with ``a = R x``
        it is ``R d = a <R^T a, d> / <a, a>``.
        """
        stream = self.pair.stream
        fixed, plain = self._push(stream, "libragrad"), self._push(stream, "plain")
        moved = _KeysValues(fixed.keys - plain.keys, fixed.values - plain.values)
        cotangents = tuple(x.transpose(0, 1) for x in moved)
        (at_fixed,) = pullback(lambda x: self._pre(x, "libragrad")[1:], stream)(cotangents)
        (at_plain,) = pullback(lambda x: self._pre(x, "plain")[1:], stream)(cotangents)
        size = (moved.keys.square() + moved.values.square()).sum((1, 2))
        # A block without a norm before its attention needs no correction: 0, not 0 / 0.
        size = size.clamp_min(torch.finfo(size.dtype).tiny)
        return _NormCorrection(moved, (at_fixed - at_plain) / size[:, None])

    def _needed(self, pushed: _KeysValues) -> tuple[Tensor, ...]:
        return pushed if self.pair.gradient == "plain" else (pushed.values,)

    def _push(self, directions: Float[Tensor, "T D"], gradient: Gradient) -> _KeysValues:
        _, keys, values = pushforward(
            lambda x: self._pre(x, gradient), self.pair.stream, directions
        )
        return _KeysValues(keys.transpose(0, 1), values.transpose(0, 1))

    def _post(self, stream: Float[Tensor, "T D"], attended: Float[Tensor, "H T E"]) -> Tensor:
        return self._run(stream, lambda q, k, v: attended[None], self.pair.gradient)[0]

    def _before_last_linear(
        self, stream: Float[Tensor, "T D"], attended: Float[Tensor, "H T E"]
    ) -> tuple[Tensor, Tensor]:
        """The output without the last linear layer, and what that layer reads."""
        hidden: list[Tensor] = []

        def leave_out(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            hidden.append(x[0])
            return x.new_zeros(*x.shape[:-1], len(weight))

        rest = self._run(stream, lambda q, k, v: attended[None], self.pair.gradient, leave_out)
        return rest[0], hidden[0]

    def _through_last_linear(self, rows: Float[Tensor, "n D"]) -> Tensor | None:
        """Pull rows at the output back to the last linear layer's input, [n, M].

        None if the map from there to the output is not the same for all tokens.
        """
        _, hidden = self._before_last_linear(self.pair.stream, self.attended)

        def rest(hidden: Float[Tensor, "T M"]) -> Tensor:
            return self._run(
                self.pair.stream,
                lambda q, k, v: self.attended[None],
                self.pair.gradient,
                lambda x, weight, bias=None: F.linear(hidden[None], weight, bias),
            )[0]

        pull = pullback(rest, hidden)
        n_tokens = len(hidden)
        (seen,) = pull(_probe_direction(rows).expand(n_tokens, -1))
        if _differ(seen, seen[:1].expand_as(seen)):
            return None
        parts = [
            pull(F.pad(part, (0, 0, 0, n_tokens - len(part))))[0][: len(part)]
            for part in rows.split(n_tokens)
        ]
        return torch.cat(parts)

    def _pre(self, stream: Float[Tensor, "T D"], gradient: Gradient) -> tuple[Tensor, ...]:
        seen: list[Tensor] = []

        def note(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            seen.extend((q[0] * q.shape[-1] ** -0.5, k[0], v[0]))
            raise _Reached

        with suppress(_Reached):
            self._run(stream, note, gradient)
        return tuple(seen)

    def _run(
        self,
        stream: Float[Tensor, "T D"],
        attend: Attend,
        gradient: Gradient,
        last_linear: Linear = F.linear,
    ) -> Tensor:
        module = self.pair.module
        with (
            _fused_attention(module),
            backward_rules(module, gradient),
            _Probe(attend, last_linear, self.n_linears),
        ):
            return self.pair.blocks(stream[None])


def _by_head(rows: Float[Tensor, "H t K n"], matrix: Float[Tensor, "H n m"]) -> Tensor:
    """Multiply all rows of a head with its matrix, [H, t, K, m], without copies of the matrix."""
    return torch.bmm(rows.flatten(1, 2), matrix).unflatten(1, rows.shape[1:3])


def _probe_direction(like: Float[Tensor, "n D"]) -> Float[Tensor, " D"]:
    """A fixed direction without any symmetry."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape[1], generator=generator).to(like)


def _differ(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors differ by more than rounding."""
    tolerance = min(100 * torch.finfo(found.dtype).eps ** 0.75, 0.05)  # else 2.6 in bfloat16
    return bool((found - expected).norm() > tolerance * found.norm())


def _split_block(pair: SitePair) -> _SplitBlock:
    """Run the block once and cut it at its attention.

    Raises
    ------
    ModelError
        If the block does not call softmax attention exactly once.
    """
    seen: dict[str, Tensor] = {}

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries = q * q.shape[-1] ** -0.5
        probabilities = (queries @ k.transpose(-2, -1)).softmax(-1)
        attended = probabilities @ v
        seen.update(queries=queries[0], keys=k[0], values=v[0])
        seen.update(attended=attended[0], probabilities=probabilities[0])
        return attended

    with _fused_attention(pair.module), _Probe(attend) as probe:
        output = pair.blocks(pair.stream[None])
    if probe.attentions != 1:
        raise ModelError(
            f"The closed form needs a block with one softmax attention; this one "
            f"({type(pair.blocks).__name__}) calls it {probe.attentions} times. "
            'Use engine="jvp" (or "vjp").'
        )
    return _SplitBlock(pair=pair, output=output[0], n_linears=probe.linears, **seen)
