"""Settings of SAE training and tuning, checked before anything runs."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

from vitlens.errors import CheckpointError, OptionError, check_choice
from vitlens.saes.base import SAE_KINDS

Precision = Literal["full", "bfloat16"]


class SAESize(NamedTuple):
    """Features F, active features K per token and active features M per image of one SAE."""

    n_features: int
    k: int
    budget: int | None


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the SAEs of one model are trained; the defaults are the paper's where it gives them.

    Attributes
    ----------
    sizes, k
        Features F_l and active features per token K_l, one number for each trained layer
        (ascending) or one for all.
    budget
        Largest number of active features per image, for each trained layer or one for all; None
        for no limit. With a budget, batches hold whole images.
    epochs
        Passes over the images.
    batch_tokens
        Tokens per step, drawn at random from the buffer (the same tokens for every layer).
    buffer_tokens
        Tokens held in memory and shuffled together. The buffer takes
        ``layers * buffer_tokens * D`` numbers.
    forward_images
        Images per forward pass of the model.
    learning_rate, warmup_steps, decay_share
        Adam's step size; steps of linear growth up to it; the last share of all steps over which
        it falls linearly to zero (0: never).
    aux_weight, aux_features, dead_after
        AuxK: weight of the loss with which up to `aux_features` dead features explain what the
        others leave over; a feature is dead when it was silent for `dead_after` batches.
    precision
        "full": everything in the model's own precision (half precision is trained in float32).
        "bfloat16": the model's forward pass and the large matrix products in bfloat16, weights,
        losses and Adam in float32; several times as fast on hardware that has it.
    seed
        Seed of the initial weights and of the shuffling.
    checkpoint_seconds
        Least time between two saves of the unfinished run.
    kind
        "topk"; SAEs of other kinds can be loaded and tuned, but not trained here.

    Raises
    ------
    CheckpointError
        If a number is out of its range.
    OptionError
        If SAEs of this kind cannot be trained, or the precision is unknown.

    Notes
    -----
    Kim et al., arXiv 2509.17401, appendix on training; AuxK after Gao et al., arXiv 2406.04093,
    section 2.4. The paper's step size suits its 50 epochs of ImageNet. On one to a few million
    tokens far fewer steps are taken, and `batch_tokens=1024, learning_rate=3e-3` with
    `warmup_steps=50, decay_share=0.3` explains more.
    """

    sizes: int | Sequence[int]
    k: int | Sequence[int]
    budget: int | Sequence[int | None] | None = None
    epochs: int = 1
    batch_tokens: int = 4096
    buffer_tokens: int = 65536
    forward_images: int = 16
    learning_rate: float = 2e-4
    warmup_steps: int = 0
    decay_share: float = 0.0
    aux_weight: float = 1 / 32
    aux_features: int = 256
    dead_after: int = 60
    precision: Precision = "full"
    seed: int = 0
    checkpoint_seconds: float = 120.0
    kind: str = "topk"

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, SAE_KINDS)
        if self.kind != "topk":
            raise OptionError(
                f'train_saes trains SAEs of kind "topk", with or without a budget, not'
                f" {self.kind!r}. SAEs of this kind trained elsewhere can be loaded and tuned."
            )
        for name in ("sizes", "k", "budget"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, int):
                numbers = tuple(None if number is None else int(number) for number in value)
                object.__setattr__(self, name, numbers)
        _check_numbers(
            self,
            at_least_one=(
                "epochs",
                "batch_tokens",
                "buffer_tokens",
                "forward_images",
                "dead_after",
            ),
            not_negative=("warmup_steps", "aux_weight", "aux_features", "checkpoint_seconds"),
        )

    def for_layers(self, layers: Sequence[int]) -> tuple[SAESize, ...]:
        """Sizes of the SAEs of these layers.

        Raises
        ------
        CheckpointError
            If there are more or fewer entries than layers, or a number is not in 1 to F.
        """
        sizes = _per_layer("sizes", self.sizes, layers)
        ks = _per_layer("k", self.k, layers)
        budgets = _per_layer("budget", self.budget, layers)
        for layer, size, k, budget in zip(layers, sizes, ks, budgets, strict=True):
            for name, number in (("k", k), ("the budget", budget)):
                if number is not None and not 1 <= number <= size:
                    raise CheckpointError(
                        f"Layer {layer}: {name} must be between 1 and its {size} features, not"
                        f" {number}."
                    )
        return tuple(map(SAESize, sizes, ks, budgets))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        return {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """How SAEs are tuned together by `vitlens.tune_saes`.

    Attributes
    ----------
    batch_images
        Images per step.
    chain_weight, output_weight
        Weights of the two losses of all SAEs together; the loss of each SAE alone has weight 1.
        The larger they are, the better the SAEs do together and the less each explains by itself.
    learning_rate, warmup_steps, decay_share
        As in `TrainConfig`.
    aux_weight, aux_features, dead_after
        AuxK, as in `TrainConfig`; a batch is `batch_images` images here.
    precision
        "full": the model's own precision (half precision is tuned in float32). "bfloat16": matrix
        products in bfloat16, weights, losses and Adam in float32.
    checkpoint_seconds
        Least time between two saves of the unfinished run.
    circuit_weight
        Weight of the loss of small circuits, equation (49) of docs/method.md: the few features of
        an image that differ most from their means shall carry the answer. 0 leaves it out; it
        takes one more replaced run per step.
    circuit_features
        Smallest and largest number of features per site in these circuits; every batch draws one,
        log-uniformly.
    circuit_error_means
        Part of the batches in which these circuits have error nodes at their means; in the others
        they have the model's own values.
    seed
        Seed of these draws.

    Raises
    ------
    CheckpointError
        If a number is out of its range.
    OptionError
        If the precision is unknown.

    Notes
    -----
    The step size is small because trained SAEs are near an optimum of their own: on `everyday` both
    losses of the chain fell over 3,200 images at 1e-4, and all three rose after some 500 at 5e-4.
    """

    batch_images: int = 16
    chain_weight: float = 0.5
    output_weight: float = 0.5
    learning_rate: float = 1e-4
    warmup_steps: int = 30
    decay_share: float = 0.6
    aux_weight: float = 1 / 32
    aux_features: int = 256
    dead_after: int = 60
    precision: Precision = "full"
    checkpoint_seconds: float = 120.0
    circuit_weight: float = 0.0
    circuit_features: tuple[int, int] = (4, 96)
    circuit_error_means: float = 1 / 3
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            low, high = (operator.index(number) for number in self.circuit_features)
        except (TypeError, ValueError):
            raise CheckpointError(
                "circuit_features must be the smallest and the largest number of features, such "
                f"as (4, 96), not {self.circuit_features!r}."
            ) from None
        if not 1 <= low <= high:
            raise CheckpointError(
                f"circuit_features must be two numbers from 1 on, in order, not {low} and {high}."
            )
        object.__setattr__(self, "circuit_features", (low, high))
        if not 0 <= self.circuit_error_means <= 1:
            raise CheckpointError(
                f"circuit_error_means must be from 0 to 1, not {self.circuit_error_means}."
            )
        _check_numbers(
            self,
            at_least_one=("batch_images", "dead_after"),
            not_negative=(
                "chain_weight",
                "output_weight",
                "circuit_weight",
                "warmup_steps",
                "aux_weight",
                "aux_features",
                "checkpoint_seconds",
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "circuit_features": list(self.circuit_features)}


def scheduled_rate(config: TrainConfig | TuneConfig, step: int, n_steps: int | None) -> float:
    """Learning rate of one step: linear growth, then constant, then linear decay to zero.

    Parameters
    ----------
    config
        Gives `learning_rate`, `warmup_steps` and `decay_share`.
    step
        Counted from 0.
    n_steps
        Number of steps of the whole run; only needed for a decay.
    """
    factor = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.decay_share:
        assert n_steps is not None
        left = (n_steps - step) / max(1.0, config.decay_share * n_steps)
        factor = min(factor, max(0.0, left))
    return config.learning_rate * factor


def _check_numbers(
    config: TrainConfig | TuneConfig,
    *,
    at_least_one: Sequence[str],
    not_negative: Sequence[str],
) -> None:
    for name in at_least_one:
        if not getattr(config, name) >= 1:
            raise CheckpointError(f"{name} must be 1 or more, not {getattr(config, name)}.")
    for name in not_negative:
        if not getattr(config, name) >= 0:
            raise CheckpointError(f"{name} must not be negative, but is {getattr(config, name)}.")
    if not config.learning_rate > 0:
        raise CheckpointError(f"learning_rate must be above 0, not {config.learning_rate}.")
    if not 0 <= config.decay_share <= 1:
        raise CheckpointError(f"decay_share must be from 0 to 1, not {config.decay_share}.")
    check_choice("precision", config.precision, get_args(Precision))


def _per_layer(name: str, value: Any, layers: Sequence[int]) -> tuple[Any, ...]:
    if value is None or isinstance(value, int):
        return (value,) * len(layers)
    if len(value) != len(layers):
        raise CheckpointError(
            f"{name} has {len(value)} entries, but there are {len(layers)} layers to train: "
            f"{', '.join(map(str, layers))}."
        )
    return tuple(value)
