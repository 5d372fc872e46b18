"""The base of all sparse autoencoders: equations, derivative conventions, storage, registry.

For a token ``x`` of the residual stream (docs/method.md, "SAE")::

    xn    = (x - mu) / (sd + 1e-5)                      (1) input normalisation
    a     = ReLU((xn - b_dec) W_enc + b_enc)            (2) pre-activations, rectified
    z     = a where the kind's mask is true, else 0     (3) feature activations
    x_hat = (z W_dec + b_dec) sd + mu                   (4) reconstruction
    e     = x - x_hat                                   (5) the error node

``mu`` and ``sd`` depend on `normalization`: "layer" takes the mean and the Bessel-corrected
standard deviation of each token, "none" is ``mu = 0, sd = 1`` without the 1e-5, "fixed" a stored
mean [D] and a stored scale. ``b_enc`` may be absent, and ``b_dec`` may be left out of (2).

In every derivative ``sd`` and the mask are constants; ``mu`` is not. Under this convention an
active feature is linear in its token, whatever the kind: that is all the engines need to know.

A kind is one subclass with `active_mask`, its settings, and one `register` line.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vitlens.errors import CheckpointError, VitlensError, check_choice

#: A feature, (layer, feature), with the number of the block; feature -1 is the layer's error node.
FeatureId: TypeAlias = tuple[int, int]
Normalization = Literal["layer", "none", "fixed"]

STD_EPS = 1e-5


# Named tuples and not dataclasses: torch.func takes them through jvp, vjp and vmap as they are.
class Normalized(NamedTuple):
    """Normalised tokens, and the mean and scale that were taken out of them."""

    values: Float[Tensor, "*batch D"]
    mean: Float[Tensor, "*batch 1"]
    std: Float[Tensor, "*batch 1"]


class Encoded(NamedTuple):
    """Feature activations, with the statistics that `SAE.decode` needs."""

    features: Float[Tensor, "*batch F"]
    mean: Float[Tensor, "*batch 1"]
    std: Float[Tensor, "*batch 1"]


class SAEOutput(NamedTuple):
    """One pass through the autoencoder; ``reconstruction + error`` is the input."""

    features: Float[Tensor, "*batch F"]
    reconstruction: Float[Tensor, "*batch D"]
    error: Float[Tensor, "*batch D"]
    mean: Float[Tensor, "*batch 1"]
    std: Float[Tensor, "*batch 1"]


class SAE(nn.Module, ABC):
    """A sparse autoencoder of the residual stream; see the module for its equations.

    The parameters do not require gradients: explaining needs only the input's gradient.

    Parameters
    ----------
    tensors
        `W_enc` [D, F], `W_dec` [F, D], `b_dec` [D]; optionally `b_enc` [F]; for
        ``normalization="fixed"`` also `input_mean` [D] and `input_scale` []; and what the kind
        adds. They are copied.
    normalization
        "layer", "none" or "fixed".
    subtract_b_dec
        Whether `b_dec` is subtracted before encoding.

    Raises
    ------
    CheckpointError
        If shapes do not fit together, a value is not finite, or the weights are not floating
        point of one dtype.
    OptionError
        If the normalisation is unknown.
    """

    kind: ClassVar[str]
    #: Tensors of the kind besides those of every SAE, and their shapes ("F" or "").
    extra_tensors: ClassVar[Mapping[str, str]] = {}

    W_enc: Float[Tensor, "D F"]
    W_dec: Float[Tensor, "F D"]
    b_dec: Float[Tensor, " D"]
    b_enc: Float[Tensor, " F"] | None
    input_mean: Float[Tensor, " D"] | None
    input_scale: Float[Tensor, ""] | None

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        *,
        normalization: Normalization = "layer",
        subtract_b_dec: bool = True,
    ) -> None:
        super().__init__()
        check_choice("normalization", normalization, get_args(Normalization))
        needed = ["W_enc", "W_dec", "b_dec", *self.extra_tensors]
        if normalization == "fixed":
            needed += ["input_mean", "input_scale"]
        given = {n: torch.as_tensor(t).detach() for n, t in tensors.items() if t is not None}
        _check_tensors(given, needed, self.extra_tensors)
        self.normalization: Normalization = normalization
        self.subtract_b_dec = bool(subtract_b_dec)
        for name in (*needed, *(["b_enc"] if "b_enc" in given else [])):
            # Contiguous, so that products round as they do after saving and loading.
            value = given[name].clone(memory_format=torch.contiguous_format)
            self.register_parameter(name, nn.Parameter(value, requires_grad=False))
        for name in ("b_enc", "input_mean", "input_scale"):
            if name not in self._parameters:
                self.register_parameter(name, None)

    @property
    def d_model(self) -> int:
        """D, the width of the residual stream."""
        return self.W_enc.shape[0]

    @property
    def n_features(self) -> int:
        """F, the number of features."""
        return self.W_enc.shape[1]

    @property
    def max_active(self) -> int:
        """Largest number of features that can be active per token."""
        return self.n_features

    @property
    def needs_whole_images(self) -> bool:
        """Whether the mask of a token depends on the other tokens of its image."""
        return False

    @abstractmethod
    def active_mask(self, activations: Float[Tensor, "*batch F"]) -> Bool[Tensor, "*batch F"]:
        """Which entries of the rectified pre-activations (2) stay; a constant in derivatives.

        Parameters
        ----------
        activations : Tensor [..., F]
            The axis before the last holds the tokens of one image.
        """

    def kind_settings(self) -> dict[str, Any]:
        """Settings of the kind, as JSON can hold them; arguments of its constructor."""
        return {}

    def settings(self) -> dict[str, Any]:
        """All settings besides the tensors, as JSON can hold them; see `from_tensors`."""
        return {
            "kind": self.kind,
            "normalization": self.normalization,
            "subtract_b_dec": self.subtract_b_dec,
            **self.kind_settings(),
        }

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> SAE:
        """Build an SAE of any kind from its `state_dict` and `settings`.

        Raises
        ------
        CheckpointError
            If the kind is unknown, or tensors or settings do not fit it.
        """
        others = dict(settings)
        kind = others.pop("kind", None)
        if not isinstance(kind, str) or kind not in SAE_KINDS:
            raise CheckpointError(
                f"There is no SAE of kind {kind!r}; known kinds are {', '.join(SAE_KINDS)}."
            )
        try:
            return SAE_KINDS[kind](tensors, **others)
        except VitlensError:
            raise
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"The settings do not fit an SAE of kind {kind!r}.") from error

    def extra_repr(self) -> str:
        """Sizes and settings shown by `repr`."""
        parts = {"d_model": self.d_model, "n_features": self.n_features, **self.kind_settings()}
        if self.normalization != "layer":
            parts["normalization"] = self.normalization
        return ", ".join(f"{name}={value}" for name, value in parts.items() if value is not None)

    def normalize(self, x: Float[Tensor, "*batch D"], *, constant_std: bool = True) -> Normalized:
        """Normalise tokens, equation (1).

        Parameters
        ----------
        x : Tensor [..., D]
            Residual stream, in its own units.
        constant_std
            Whether the std is a constant in the backward pass, as importances take it.

        Returns
        -------
        Normalized
            Values [..., D], mean [..., 1] (or [..., D] for "fixed") and std [..., 1]. The mean is
            never a constant in the backward pass.

        Raises
        ------
        CheckpointError
            If the tokens' width is not the SAE's.
        """
        if x.shape[-1] != self.d_model:
            raise CheckpointError(
                f"This SAE reads a residual stream of width {self.d_model}, but the tokens have "
                f"width {x.shape[-1]}: it was trained for another model."
            )
        if self.normalization == "layer":
            return normalize_tokens(x, constant_std=constant_std)
        ones = x.new_ones(*x.shape[:-1], 1)
        if self.normalization == "none":
            return Normalized(x, torch.zeros_like(ones), ones)
        assert self.input_mean is not None and self.input_scale is not None
        mean, scale = self.input_mean, self.input_scale
        return Normalized((x - mean) / scale, mean.expand_as(x), ones * scale)

    def encode(
        self, x: Float[Tensor, "*batch D"], *, active: Bool[Tensor, "*batch F"] | None = None
    ) -> Float[Tensor, "*batch F"]:
        """Feature activations of tokens x [..., D]; see `encode_with_stats`."""
        return self.encode_with_stats(x, active=active).features

    def encode_with_stats(
        self,
        x: Float[Tensor, "*batch D"],
        *,
        active: Bool[Tensor, "*batch F"] | None = None,
        constant_std: bool = True,
    ) -> Encoded:
        """Feature activations of tokens x [..., D], with their mean and std.

        Parameters
        ----------
        x : Tensor [..., D]
            Residual stream, in its own units.
        active : Tensor [..., F], optional
            True for features that may be active, in place of the kind's own mask.
        constant_std
            See `normalize`.
        """
        values, mean, std = self.normalize(x, constant_std=constant_std)
        return Encoded(self.encode_normalized(values, active=active), mean, std)

    def pre_activations(self, values: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch F"]:
        """Pre-activations of normalised tokens, equation (2) before the ReLU."""
        centred = values - self.b_dec if self.subtract_b_dec else values
        pre = centred @ self.W_enc
        return pre if self.b_enc is None else pre + self.b_enc

    def encode_normalized(
        self, values: Float[Tensor, "*batch D"], *, active: Bool[Tensor, "*batch F"] | None = None
    ) -> Float[Tensor, "*batch F"]:
        """Feature activations of normalised tokens, equations (2) and (3)."""
        activations = torch.relu(self.pre_activations(values))
        mask = self.active_mask(activations.detach()) if active is None else active
        return torch.where(mask, activations, 0.0)

    def decode(
        self,
        features: Float[Tensor, "*batch F"],
        mean: Float[Tensor, "*batch 1"],
        std: Float[Tensor, "*batch 1"],
    ) -> Float[Tensor, "*batch D"]:
        """Residual stream [..., D] that the features represent, equation (4)."""
        return (features @ self.W_dec + self.b_dec) * std + mean

    def forward(self, x: Float[Tensor, "*batch D"]) -> SAEOutput:
        """Encode and decode tokens x [..., D]."""
        features, mean, std = self.encode_with_stats(x)
        reconstruction = self.decode(features, mean, std)
        return SAEOutput(features, reconstruction, x - reconstruction, mean, std)

    def encoder_rows(self, features: Int[Tensor, " n"] | None = None) -> Float[Tensor, "n D"]:
        """Gradient of pre-activations with respect to their token, times `input_scale_of`.

        Parameters
        ----------
        features : Tensor [n], optional
            Which features; all by default.
        """
        rows = self.W_enc.T if features is None else self.W_enc[:, features].T
        # The mean back-propagates, so that a token's constant part has no effect.
        return rows - rows.mean(1, keepdim=True) if self.normalization == "layer" else rows

    def input_scale_of(self, std: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch 1"]:
        """What equation (1) divides by, from the `std` of `normalize`."""
        return std + STD_EPS if self.normalization == "layer" else std


#: SAE kinds by name.
SAE_KINDS: dict[str, type[SAE]] = {}


def register(sae: type[SAE]) -> type[SAE]:
    """Register a kind of SAE, so that files and `SAE.from_tensors` find it."""
    SAE_KINDS[sae.kind] = sae
    return sae


def normalize_tokens(x: Float[Tensor, "*batch D"], *, constant_std: bool = True) -> Normalized:
    """Take mean and (Bessel-corrected) standard deviation out of each token."""
    mean = x.mean(dim=-1, keepdim=True)
    std = (x.detach() if constant_std else x).std(dim=-1, keepdim=True)
    return Normalized((x - mean) / (std + STD_EPS), mean, std)


def check_widths(saes: Sequence[SAE], layers: Sequence[int], *, d_model: int) -> None:
    """Raise `CheckpointError` where an SAE has another width than the model."""
    for layer, sae in zip(layers, saes, strict=True):
        if sae.d_model != d_model:
            raise CheckpointError(
                f"The SAE of layer {layer} has width {sae.d_model}, the model {d_model}: it was"
                " trained for another model."
            )


def _check_tensors(
    tensors: Mapping[str, Tensor], needed: Sequence[str], extra: Mapping[str, str]
) -> None:
    allowed = {*needed, "b_enc"}
    missing, unknown = set(needed) - tensors.keys(), tensors.keys() - allowed
    if missing or unknown:
        raise CheckpointError(
            f"This SAE needs the tensors {', '.join(needed)}"
            f"{f'; missing: {sorted(missing)}' if missing else ''}"
            f"{f'; not expected: {sorted(unknown)}' if unknown else ''}."
        )
    shapes = ", ".join(f"{name} {list(weight.shape)}" for name, weight in tensors.items())
    W_enc = tensors["W_enc"]
    if W_enc.ndim != 2 or 0 in W_enc.shape:
        raise CheckpointError(f"Expected W_enc [D, F], W_dec [F, D], b_dec [D], got {shapes}.")
    d_model, n_features = W_enc.shape
    expected: dict[str, tuple[int, ...]] = {
        "W_enc": (d_model, n_features),
        "W_dec": (n_features, d_model),
        "b_dec": (d_model,),
        "b_enc": (n_features,),
        "input_mean": (d_model,),
        "input_scale": (),
        **{name: (n_features,) if shape == "F" else () for name, shape in extra.items()},
    }
    if any(tensor.shape != expected[name] for name, tensor in tensors.items()):
        raise CheckpointError(f"Expected W_enc [D, F], W_dec [F, D], b_dec [D], got {shapes}.")
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) > 1 or not W_enc.is_floating_point():
        names = ", ".join(sorted(str(dtype) for dtype in dtypes))
        raise CheckpointError(f"SAE weights must share one floating-point dtype, got {names}.")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{name} holds values that are not finite (NaN or infinity).")
    scale = tensors.get("input_scale")
    if scale is not None and float(scale) <= 0:
        raise CheckpointError(f"The input scale must be above 0, not {float(scale)}.")
