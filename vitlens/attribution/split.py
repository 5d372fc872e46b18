"""A transformer block cut at its attention into token-wise pieces with known derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitlens.attribution.edges import LayerPair
from vitlens.attribution.gradients import backward_rules
from vitlens.errors import ModelError


class _Reached(Exception):  # noqa: N818 - control flow: the block need not run any further
    pass


class _AttentionProbe(TorchFunctionMode):
    """Notes the arguments of softmax attention and lets `replace` give its result."""

    def __init__(self, replace: Callable[[Tensor, Tensor, Tensor], Tensor]):
        super().__init__()
        self.replace = replace
        self.calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.calls += 1
        options = {k: v for k, v in (kwargs or {}).items() if v}
        if len(args) != 3 or options or args[0].shape != args[1].shape:
            raise ModelError(
                "The exact engine knows plain softmax attention only, without masks, dropout or "
                'grouped queries. Use engine="jvp" (or "vjp") for this model.'
            )
        return self.replace(*args)


@contextmanager
def _fused_attention(model: nn.Module) -> Iterator[None]:
    """Have timm's attention call the one function that the probe knows."""
    manual = [m for m in model.modules() if getattr(m, "fused_attn", True) is False]
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
        Inputs and output of the attention, [H, T, E].
    probabilities
        Attention probabilities, [H, T, T], rows are the receiving tokens.
    output
        The block's output, [1, T, D].
    """

    pair: LayerPair
    queries: Float[Tensor, "H T E"]
    keys: Float[Tensor, "H T E"]
    values: Float[Tensor, "H T E"]
    attended: Float[Tensor, "H T E"]
    probabilities: Float[Tensor, "H T T"]
    output: Float[Tensor, "1 T D"]

    @property
    def scale(self) -> float:
        """What scores are multiplied with before the softmax."""
        return float(self.queries.shape[-1] ** -0.5)

    def _run(
        self, stream: Tensor, replace: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        with (
            _fused_attention(self.pair.vit.model),
            backward_rules(self.pair.vit, self.pair.gradient),
            _AttentionProbe(replace),
        ):
            return self.pair.block(stream)

    def _post(self, stream: Float[Tensor, "T D"], attended: Float[Tensor, "H T E"]) -> Tensor:
        return self._run(stream[None], lambda q, k, v: attended[None])[0]

    def _pre(self, stream: Float[Tensor, "T D"]) -> tuple[Tensor, Tensor, Tensor]:
        seen: list[Tensor] = []

        def note(*qkv: Tensor) -> Tensor:
            seen.extend(x[0] for x in qkv)
            raise _Reached

        try:
            self._run(stream[None], note)
        except _Reached:
            pass
        queries, keys, values = seen
        return queries, keys, values

    def pull_output(
        self, cotangents: Float[Tensor, "K T D"]
    ) -> tuple[Float[Tensor, "K T D"], Float[Tensor, "K H T E"]]:
        """Pull rows at the output back to the stream (attended values fixed) and to these."""
        with torch.enable_grad():
            _, pull = torch.func.vjp(self._post, self.pair.stream, self.attended)
            return torch.func.vmap(pull)(cotangents)

    def pull_queries(self, at_attended: Float[Tensor, "K H T E"]) -> Float[Tensor, "K T D"]:
        """Pull rows at the attended values back to the stream by way of the queries."""
        reach = at_attended @ self.values.transpose(-2, -1)
        reach = reach - (at_attended * self.attended).sum(-1, keepdim=True)
        at_queries = self.scale * (self.probabilities * reach) @ self.keys
        with torch.enable_grad():
            _, pull = torch.func.vjp(lambda x: self._pre(x)[0], self.pair.stream)
            (at_stream,) = torch.func.vmap(pull)(at_queries)
        return at_stream

    def push_sources(
        self, directions: Float[Tensor, "T S D"]
    ) -> tuple[Float[Tensor, "T*S H E"], Float[Tensor, "T*S H E"]]:
        """Change of every token's own key and value along its directions."""

        def push(tangent: Float[Tensor, "T D"]) -> tuple[Tensor, Tensor]:
            _, (_, keys, values) = torch.func.jvp(self._pre, (self.pair.stream,), (tangent,))
            return keys, values

        keys, values = torch.func.vmap(push)(directions.transpose(0, 1))
        flat = (directions.shape[0] * directions.shape[1], *self.values.shape[::2])
        return (
            keys.permute(2, 0, 1, 3).reshape(flat),
            values.permute(2, 0, 1, 3).reshape(flat),
        )

    def spread(
        self,
        pushed: tuple[Float[Tensor, "P H E"], Float[Tensor, "P H E"]],
        slots: Int[Tensor, "C M"],
        tokens: Int[Tensor, "C M"],
        padded: Bool[Tensor, "C M"],
    ) -> Float[Tensor, "C H T E"]:
        """Change of the attended values of all tokens when whole sources move.

        Source c sits on the tokens ``tokens[c]``, where its keys and values move by the rows
        ``slots[c]`` of `pushed`; entries that are `padded` count nothing.
        """
        keys, values = pushed
        attention = self.probabilities.permute(2, 0, 1)[tokens].permute(0, 2, 3, 1)
        attention = attention.masked_fill(padded[:, None, None], 0)
        spread = attention @ values[slots].transpose(1, 2)
        if self.pair.gradient == "plain":
            moved = self.scale * self.queries @ keys[slots].permute(0, 2, 3, 1)
            moved = attention * moved
            origin = self.values.permute(1, 0, 2)[tokens].transpose(1, 2)
            spread = spread + moved @ origin - moved.sum(-1, keepdim=True) * self.attended
        return spread


def split_block(pair: LayerPair) -> SplitBlock:
    """Run the block once and cut it at its attention.

    Raises
    ------
    ModelError
        If the block does not call softmax attention exactly once.
    """
    seen: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        probabilities = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
        seen.extend(x[0] for x in (q, k, v, probabilities @ v, probabilities))
        return probabilities @ v

    with _fused_attention(pair.vit.model), _AttentionProbe(attend) as probe:
        output = pair.block(pair.stream[None])
    if probe.calls != 1:
        raise ModelError(
            f"The exact engine needs a block with one softmax attention; this one "
            f"({type(pair.block).__name__}) calls it {probe.calls} times. "
            'Use engine="jvp" (or "vjp").'
        )
    return SplitBlock(pair, *seen, output)
