"""Node importance: how much every feature and error node adds to a target on one image.

With ``grad_i[t]`` the target's gradient at the stream of site i, under LibraGrad or plain::

    G_i[t, f] = sd_i[t] <grad_i[t], W_dec_i[f]>                            (15)
    N_i[f]    = sum_t G_i[t, f] (z_i[t, f] - z_bar_i[t, f])                 (16)
    N_i[error] = sum_t <grad_i[t], e_i[t] - e_bar_i[t]>   (the error node)  (17)

Two conventions say how the gradient reaches site i below the last::

    leaf      grad_i = d/dx_i  sum_{t, f} G_{i+1}[t, f] z_{i+1}[t, f](x_i)  (18)
    through   grad_i = d target / d x_i

With "leaf" (the default) error nodes receive no gradient: it flows through the features of the
next site alone, so that ``N_i[f]`` is the sum of the edges that leave f. At the last site both
are the same. In (18) the mask of active features and the SAE's sd are constants.

What the nodes of a site leave unexplained is its conservation residual::

    residual_i = target - sum_f N_i[f] - N_i[error]                        (19)

Source: Kim et al., NeurIPS 2025, arXiv 2509.17401, section 3; docs/method.md, "Node importance".
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from vitlens.errors import ModelError, TargetError, check_choice, near_matches
from vitlens.method.libragrad import Gradient, backward_rules
from vitlens.method.replacement import BaselineKind, ReplacementModel, Trace
from vitlens.models.vision import Stem
from vitlens.repr import ShapeRepr
from vitlens.saes.base import SAE

ErrorGradients = Literal["leaf", "through"]
Engine = Literal["closed_form", "jvp", "vjp"]
TargetLike: TypeAlias = int | str | Callable[[Tensor], Tensor] | None


@dataclass(frozen=True)
class Target:
    """The explained quantity: a scalar function of the logits.

    Attributes
    ----------
    name
        The class, or the function's name.
    index
        The class, or None for a function.
    function
        Logits of one image, [C], to a scalar tensor.
    """

    name: str
    index: int | None
    function: Callable[[Float[Tensor, " C"]], Float[Tensor, ""]]


def centred_logit(index: int) -> Callable[[Float[Tensor, " C"]], Float[Tensor, ""]]:
    """Return the default target of a class: its logit minus the mean of all logits."""
    return lambda logits: logits[..., index] - logits.mean(-1)


def resolve_target(
    target: TargetLike, logits: Float[Tensor, " C"], class_names: Sequence[str] | None = None
) -> Target:
    """Make a `Target` from the user's argument.

    Parameters
    ----------
    target
        A class index, a class name, a function from the logits [C] of one image to a scalar,
        or None for the predicted class.
    logits
        The model's output on the image, [C].
    class_names
        Names of the C classes, if known.

    Raises
    ------
    TargetError
        If there is no such class (near matches are named), several classes have the name, the
        function gives no finite scalar, or a class is requested but the model has a single logit.
    """
    n_classes = logits.shape[-1]
    if callable(target):
        return _of_function(target, logits)
    index = int(logits.argmax()) if target is None else find_class(target, n_classes, class_names)
    if n_classes == 1:
        raise TargetError(
            "The model has one logit. A class target is its logit minus the mean of all logits, "
            "which is always 0 here. Pass a function instead: `target=lambda y: y[0]`."
        )
    name = class_names[index] if class_names else f"class {index}"
    return Target(name, index, centred_logit(index))


def _of_function(function: Callable[[Tensor], Tensor], logits: Float[Tensor, " C"]) -> Target:
    def scalar(logits: Float[Tensor, " C"]) -> Tensor:
        # On a copy: the function may work in place.
        value = function(logits.clone())
        if not isinstance(value, Tensor) or value.numel() != 1:
            what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TargetError(
                f"A target function must return a tensor with one number, got {what}; it receives "
                f"the logits of one image, [{len(logits)}]."
            )
        return value.reshape(())

    if not torch.isfinite(scalar(logits.detach())):
        raise TargetError("The target function returned NaN or infinity on this image.")
    return Target(getattr(function, "__name__", "target"), None, scalar)


def find_class(label: int | str, n_classes: int, class_names: Sequence[str] | None = None) -> int:
    """Index of a class given by index or name; case counts only where it tells two names apart.

    Raises
    ------
    TargetError
        If there is no such class (near matches are named), or several classes have the name.
    """
    if isinstance(label, str):
        return _index_of(label, class_names)
    try:
        index = operator.index(label)
    except TypeError:
        raise TargetError(
            "A target must be a class index, a class name or a function of the logits, not "
            f"{label!r}."
        ) from None
    if not 0 <= index < n_classes:
        raise TargetError(f"The model has classes 0 to {n_classes - 1}; there is no class {index}.")
    return index


def _index_of(name: str, class_names: Sequence[str] | None) -> int:
    if not class_names:
        raise TargetError(
            f"{name!r} cannot be looked up: the lens has no class names. Give the class index, or "
            "pass `class_names` to the Lens."
        )
    exact = [i for i, known in enumerate(class_names) if known == name]
    found = exact or [i for i, known in enumerate(class_names) if known.lower() == name.lower()]
    if not found:
        few = f" Classes: {', '.join(class_names)}." if len(class_names) <= 12 else ""
        raise TargetError(f"There is no class {name!r}.{near_matches(name, class_names)}{few}")
    if len(found) > 1:
        which = " and ".join(f"{i} ({class_names[i]!r})" for i in found)
        raise TargetError(f"{name!r} matches several classes: {which}. Give the index of one.")
    return found[0]


@dataclass(frozen=True, eq=False, repr=False)
class Importances(ShapeRepr):
    """How much every feature, error node and edge adds to the target on one image.

    Sequences are ordered by site. For a batch of n images every tensor has a leading axis n,
    `target`, `target_index` and `target_value` are tuples, and ``importances[i]`` is of one
    image.

    Attributes
    ----------
    nodes
        N_i, a tensor [F_i + 1] per site, the error node last.
    edges
        E_i, a tensor [F_i + 1, F_{i+1}] for each pair of adjacent sites.
    tokens
        The node importances before the sum over tokens, [T, F_i + 1] per site.
    gradients
        The target's gradient at every feature, G_i, [T, F_i] per site.
    target, target_index, target_value
        Name of the target, its class (None for a function), and its value on the image.
    residual
        Conservation residual per site: the target's value minus the sum of the nodes, [L].
    gradient, error_gradients, engine
        The settings.
    baselines
        Kind of the baselines.
    layers
        Block number of every site.
    engines
        The engine that computed each pair of sites, of a batch's first image; see
        `vitlens.method.engines.EdgeColumns`.
    """

    nodes: tuple[Float[Tensor, "*n F+1"], ...]
    edges: tuple[Float[Tensor, "*n F+1 G"], ...]
    tokens: tuple[Float[Tensor, "*n T F+1"], ...]
    gradients: tuple[Float[Tensor, "*n T F"], ...]
    target: str | tuple[str, ...]
    target_index: int | tuple[int | None, ...] | None
    target_value: float | tuple[float, ...]
    residual: Float[Tensor, "*n L"]
    gradient: Gradient
    error_gradients: ErrorGradients
    engine: Engine
    baselines: BaselineKind
    layers: tuple[int, ...]
    engines: tuple[Engine, ...] = ()

    @property
    def batched(self) -> bool:
        """Whether there is a batch axis."""
        return isinstance(self.target, tuple)

    def __len__(self) -> int:
        if not isinstance(self.target, tuple):
            raise TypeError("These are the importances of one image; only a batch has a length.")
        return len(self.target)

    def __getitem__(self, index: int) -> Importances:
        if not -len(self) <= index < len(self):
            raise IndexError(f"The batch has {len(self)} images; there is no {index}.")
        assert isinstance(self.target, tuple) and isinstance(self.target_value, tuple)
        assert isinstance(self.target_index, tuple)
        return replace(
            self,
            nodes=tuple(x[index] for x in self.nodes),
            edges=tuple(x[index] for x in self.edges),
            tokens=tuple(x[index] for x in self.tokens),
            gradients=tuple(x[index] for x in self.gradients),
            target=self.target[index],
            target_index=self.target_index[index],
            target_value=self.target_value[index],
            residual=self.residual[index],
        )


def node_importances(
    replacement: ReplacementModel,
    trace: Trace,
    target: Target | Sequence[Target],
    *,
    gradient: Gradient = "libragrad",
    error_gradients: ErrorGradients = "leaf",
    engine: Engine = "closed_form",
) -> Importances:
    """Node importances, equations (15) to (17), and (19); their edges are left empty.

    Parameters
    ----------
    replacement
        The model, with its baselines.
    trace
        Trace of one image or of a batch.
    target
        The target to explain; one per image for a batch.
    gradient
        "libragrad" or "plain".
    error_gradients
        "leaf": error nodes receive no gradient; "through": the model's ordinary gradient.
    engine
        Which engine the edges will be computed with; it is stored.

    Raises
    ------
    OptionError
        If a setting is unknown.
    TargetError, ModelError
        See `stream_gradients`.
    """
    check_choice("engine", engine, get_args(Engine))
    targets = [target] if isinstance(target, Target) else list(target)
    batch = trace.batch()
    grads = stream_gradients(
        replacement, batch, targets, gradient=gradient, error_gradients=error_gradients
    )
    baselines = replacement.baselines
    feature_grads, tokens = [], []
    with torch.no_grad():
        for position, (sae, grad) in enumerate(zip(replacement.saes, grads, strict=True)):
            feature_grads.append(feature_gradients(sae, batch.stds[position], grad))
            moved = batch.features[position] - baselines.features[position]
            error = batch.errors[position] - baselines.errors[position]
            of_error = (grad * error).sum(-1, keepdim=True)
            tokens.append(torch.cat([feature_grads[-1] * moved, of_error], dim=-1))
        nodes = tuple(t.sum(1) for t in tokens)
        values = torch.stack(
            [t.function(logits) for t, logits in zip(targets, batch.logits, strict=True)]
        ).detach()
        residual = values[:, None] - torch.stack([n.sum(-1) for n in nodes], dim=-1)
    found = Importances(
        nodes=nodes,
        edges=(),
        tokens=tuple(tokens),
        gradients=tuple(feature_grads),
        target=tuple(t.name for t in targets),
        target_index=tuple(t.index for t in targets),
        target_value=tuple(values.tolist()),
        residual=residual,
        gradient=gradient,
        error_gradients=error_gradients,
        engine=engine,
        baselines=baselines.kind,
        layers=replacement.layers,
    )
    return found if trace.batched else found[0]


def stream_gradients(
    replacement: ReplacementModel,
    trace: Trace,
    targets: Sequence[Target],
    *,
    gradient: Gradient,
    error_gradients: ErrorGradients,
) -> tuple[Float[Tensor, "n T D"], ...]:
    """Gradient of the target at the stream of every site: equation (18), or the model's own.

    Parameters
    ----------
    replacement
        The model.
    trace
        Trace of a batch of n images.
    targets
        One per image.
    gradient
        "libragrad" or "plain".
    error_gradients
        "leaf" or "through".

    Raises
    ------
    OptionError
        If a setting is unknown.
    TargetError
        If a target has no derivative with respect to the logits.
    ModelError
        If weights or activations were made in `torch.inference_mode`.
    """
    check_choice("gradient", gradient, get_args(Gradient))
    check_choice("error_gradients", error_gradients, get_args(ErrorGradients))
    weights = (
        p for part in (replacement.vision.module, *replacement.saes) for p in part.parameters()
    )
    if any(tensor.is_inference() for tensor in (*weights, *trace.residuals)):
        raise ModelError(
            "Weights or activations were made inside torch.inference_mode, and have no gradients. "
            "Load the model and the SAEs, and trace images, outside of it."
        )
    stem = replacement.vision.embed(trace.image)
    with torch.enable_grad():
        if error_gradients == "through":
            return _through(replacement, stem, trace, targets, gradient)
        return _leaf(replacement, stem, trace, targets, gradient)


def _through(
    replacement: ReplacementModel,
    stem: Stem,
    trace: Trace,
    targets: Sequence[Target],
    gradient: Gradient,
) -> tuple[Tensor, ...]:
    vision = replacement.vision
    streams = [trace.residuals[0].detach().requires_grad_()]
    with backward_rules(vision.module, gradient):
        for position in range(1, len(replacement)):
            streams.append(replacement.advance(stem, position)(streams[-1]))
        logits = vision.readout(replacement.advance(stem, len(replacement))(streams[-1]))
    return _target_gradients(targets, logits, streams)


def _leaf(
    replacement: ReplacementModel,
    stem: Stem,
    trace: Trace,
    targets: Sequence[Target],
    gradient: Gradient,
) -> tuple[Tensor, ...]:
    vision, top = replacement.vision, len(replacement) - 1
    stream = trace.residuals[top].detach().requires_grad_()
    with backward_rules(vision.module, gradient):
        logits = vision.readout(replacement.advance(stem, top + 1)(stream))
    grads = [_target_gradients(targets, logits, [stream])[0]]
    for position in range(top, 0, -1):
        sae = replacement.saes[position]
        weights = feature_gradients(sae, trace.stds[position], grads[-1])
        stream = trace.residuals[position - 1].detach().requires_grad_()
        with backward_rules(vision.module, gradient):
            out = replacement.advance(stem, position)(stream)
        features = sae.encode(out, active=trace.features[position] > 0)
        (grad,) = torch.autograd.grad((features * weights).sum(), stream)
        grads.append(grad)
    return tuple(reversed(grads))


def _target_gradients(
    targets: Sequence[Target], logits: Float[Tensor, "n C"], streams: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    values = [t.function(row) for t, row in zip(targets, logits, strict=True)]
    lost = [t.name for t, value in zip(targets, values, strict=True) if not value.requires_grad]
    if not lost:
        grads = torch.autograd.grad(torch.stack(values).sum(), streams, allow_unused=True)
        if all(grad is not None for grad in grads):
            return grads
        lost = [targets[0].name]
    raise TargetError(
        f"The target {lost[0]!r} has no derivative with respect to the logits, so no node has an "
        "importance. Compute it from the logits that it receives, without `argmax`, `detach`, "
        "`item` or a comparison."
    )


def feature_gradients(
    sae: SAE, std: Float[Tensor, "*n T 1"], grad: Float[Tensor, "*n T D"]
) -> Float[Tensor, "*n T F"]:
    """G_i, the target's gradient at each feature: equation (15)."""
    return std * (grad @ sae.W_dec.T)
