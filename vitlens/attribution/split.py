"""A transformer block cut at its attention into token-wise pieces with known derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitlens.attribution.gradients import Gradient, backward_rules
from vitlens.attribution.pair import LayerPair
from vitlens.errors import ModelError
from vitlens.method.derivatives import pullback, pushforward

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Linear = Callable[..., Tensor]
# Target rows of a token that are pulled back together: bounds memory.
_ROWS = 16
#: Receiving tokens looked at together: bounds the largest tensors, [H, tokens, K, T] here.
TOKENS = 16


class KeysValues(NamedTuple):
    """Changes of keys and values, [..., H, E] each."""

    keys: Float[Tensor, "*n H E"]
    values: Float[Tensor, "*n H E"]


class PushedFeatures(NamedTuple):
    """Decoder rows seen at the attention: token t gets ``factor[t] * rows``."""

    factor: Float[Tensor, " T"]
    rows: KeysValues


class NormCorrection(NamedTuple):
    """What the norm's standard deviation takes away: ``moved[t] <at_stream[t], d>``."""

    moved: KeysValues
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
                "The exact engine knows plain softmax attention only, without masks, dropout or "
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
class SplitBlock:
    """A block on one image: ``output = post(stream, attention(pre(stream)))``.

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
        How many linear layers the block calls.
    """

    pair: LayerPair
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
        """Pull rows at the attended values of some tokens back to their attention scores."""
        reach = by_head(at_attended, self.values.transpose(-2, -1))
        mean = (at_attended * self.attended[:, tokens, None]).sum(-1, keepdim=True)
        return self.probabilities[:, tokens, None] * (reach - mean)

    def pull_output(
        self,
        rows: Float[Tensor, "n D"],
        index: Int[Tensor, "T K"],
        weight: Float[Tensor, "T K"],
    ) -> tuple[Float[Tensor, "K T D"], Float[Tensor, "K H T E"]]:
        """Pull ``weight[t, k] * rows[index[t, k]]`` at the output back, K rows a token.

        Returns the rows at the stream (attended values fixed) and at the attended values. The
        block's last linear layer is the same map for all tokens, so that `rows` go through it
        once and not once a token, unless something that differs by token follows it.
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
        """Pull rows at the attended values back to the stream by way of the queries."""
        rows = at_attended.permute(1, 2, 0, 3)
        every = torch.arange(self.output.shape[0], device=self.output.device)
        at_queries = torch.cat(
            [
                by_head(self.at_scores(rows[:, tokens], tokens), self.keys)
                for tokens in every.split(TOKENS)
            ],
            dim=1,
        )
        pull = pullback(lambda x: self._pre(x, "plain")[0], self.pair.stream)
        (at_stream,) = torch.func.vmap(pull)(at_queries.permute(2, 0, 1, 3))
        return at_stream

    def push_features(self, directions: Float[Tensor, "F D"]) -> PushedFeatures:
        """Push decoder rows to keys and values, with the norm's standard deviation fixed.

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
                'unknown to LibraGrad). Use engine="jvp" (or "vjp").'
            )
        rows = []
        for part in directions.split(n_tokens):
            padded = F.pad(part, (0, 0, 0, n_tokens - len(part)))
            pushed = self._push(padded, "libragrad")
            rows.append([(x / factor[:, None, None])[: len(part)] for x in pushed])
        return PushedFeatures(factor, KeysValues(*(torch.cat(x) for x in zip(*rows, strict=True))))

    def push_tokens(self, directions: Float[Tensor, "T D"]) -> KeysValues:
        """Push one direction a token to that token's key and value."""
        return self._push(directions, self.pair.gradient)

    def spread(self, moved: KeysValues) -> Float[Tensor, "H T E"]:
        """Change of the attended values when all tokens move their keys and values."""
        spread = self.probabilities @ moved.values.transpose(0, 1)
        if self.pair.gradient == "plain":
            scores = self.probabilities * (self.queries @ moved.keys.permute(1, 2, 0))
            spread += scores @ self.values - scores.sum(-1, keepdim=True) * self.attended
        return spread

    def norm_correction(self) -> NormCorrection:
        """How plain gradients differ from those with the norm's standard deviation fixed.

        The difference R of the two maps has rank one at every token, so that with ``a = R x``
        it is ``R d = a <R^T a, d> / <a, a>``.
        """
        stream = self.pair.stream
        fixed, plain = self._push(stream, "libragrad"), self._push(stream, "plain")
        moved = KeysValues(fixed.keys - plain.keys, fixed.values - plain.values)
        cotangents = tuple(x.transpose(0, 1) for x in moved)
        (at_fixed,) = pullback(lambda x: self._pre(x, "libragrad")[1:], stream)(cotangents)
        (at_plain,) = pullback(lambda x: self._pre(x, "plain")[1:], stream)(cotangents)
        size = (moved.keys.square() + moved.values.square()).sum((1, 2))
        # A block without a norm before its attention needs no correction: 0, not 0 / 0.
        size = size.clamp_min(torch.finfo(size.dtype).tiny)
        return NormCorrection(moved, (at_fixed - at_plain) / size[:, None])

    def _needed(self, pushed: KeysValues) -> tuple[Tensor, ...]:
        return pushed if self.pair.gradient == "plain" else (pushed.values,)

    def _push(self, directions: Float[Tensor, "T D"], gradient: Gradient) -> KeysValues:
        _, keys, values = pushforward(
            lambda x: self._pre(x, gradient), self.pair.stream, directions
        )
        return KeysValues(keys.transpose(0, 1), values.transpose(0, 1))

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
        vision = self.pair.vision
        with (
            _fused_attention(vision.module),
            backward_rules(vision, gradient),
            _Probe(attend, last_linear, self.n_linears),
        ):
            return self.pair.block(stream[None])


def by_head(rows: Float[Tensor, "H t K n"], matrix: Float[Tensor, "H n m"]) -> Tensor:
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


def split_block(pair: LayerPair) -> SplitBlock:
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

    with _fused_attention(pair.vision.module), _Probe(attend) as probe:
        output = pair.block(pair.stream[None])
    if probe.attentions != 1:
        raise ModelError(
            f"The exact engine needs a block with one softmax attention; this one "
            f"({type(pair.block).__name__}) calls it {probe.attentions} times. "
            'Use engine="jvp" (or "vjp").'
        )
    return SplitBlock(pair=pair, output=output[0], n_linears=probe.linears, **seen)
