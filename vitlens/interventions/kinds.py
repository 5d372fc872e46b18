"""Interventions as values: which features, on which tokens, and their new activations.

A feature is (layer, feature), a token (row, column) from 0, or (-1, i) for prefix token i (CLS and
registers). Let z be a feature's activation on a token of the *running* stream, which interventions
on earlier layers have changed already and which is encoded again at every layer. Interventions on
one layer run one after the other, in the order given; each sees the z that the ones before it
left. The new z is decoded as it is: the SAE does not choose active features again.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, fields
from numbers import Real
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from vitlens.errors import FeatureError, check_choice
from vitlens.images import ImageLike, as_images
from vitlens.saes.base import FeatureId

#: (row, column), or (-1, i) for prefix token i.
Position: TypeAlias = tuple[int, int]

ProjectTo: TypeAlias = Literal["baseline", "zero"]
To: TypeAlias = Literal["baseline", "zero", "mean"]

_SHOWN = 4


class Intervention:
    """A change of one feature or several: `Ablate`, `Project`, `Scale`, `Clamp`, `Steer`, `Patch`.

    ``a + b`` does a, then b.
    """

    features: tuple[FeatureId, ...]
    patches: tuple[Position, ...] | None

    #: Whether z is replaced, whatever it was.
    sets: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", feature_ids(self.features))
        object.__setattr__(self, "patches", positions(self.patches))

    @property
    def only_active(self) -> bool:
        """Whether it acts only where the feature is active on the untouched model."""
        return False

    @property
    def images(self) -> tuple[ImageLike, ...]:
        """Images whose activations are needed; their mean is the `reference`."""
        return ()

    def changed(
        self, now: Float[Tensor, "n T k"], reference: Float[Tensor, "T k"] | None
    ) -> Float[Tensor, "n T k"]:
        """Return new activations of the features on every token.

        Parameters
        ----------
        now
            What they are in the running stream.
        reference
            What `Ablate` and `Patch` replace them with.
        """
        raise NotImplementedError

    def __add__(self, other: InterventionsLike) -> Interventions:
        return interventions(self, other)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(
            _same(getattr(self, f.name), getattr(other, f.name))
            for f in fields(self)  # type: ignore[arg-type]
        )

    def __hash__(self) -> int:
        return hash((type(self), self.features, self.patches))

    def __repr__(self) -> str:
        named = ", ".join(f"{layer}/{feature}" for layer, feature in self.features[:_SHOWN])
        if len(self.features) > _SHOWN:
            named += f", … ({len(self.features)} features)"
        parts = [named]
        for field in fields(self)[1:]:  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.name == "patches" and value is not None:
                parts.append(f"patches={_few(value)}")
            elif field.name in ("image", "over") and value not in (None, ()):
                parts.append(f"{field.name}=…")
            elif field.name not in ("patches", "image", "over"):
                parts.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"


@dataclass(frozen=True, eq=False, repr=False)
class Ablate(Intervention):
    """Remove features: z becomes its baseline, zero, or a mean.

    Parameters
    ----------
    features
        (layer, feature), or several; nodes of a circuit work, too.
    to
        "baseline": the lens's baseline at each position, also where the feature is not active
        (docs/method.md, "Residual replacement"); "zero"; "mean": the mean over the images `over`
        at each position.
    patches
        Tokens; None for every token.
    over
        A sample of images, for "mean".

    Raises
    ------
    FeatureError
        If there are no features or no tokens, or only one of "mean" and `over` is given.
    OptionError
        If `to` is unknown.
    ImageError
        If `over` is neither an image nor a list of images.
    """

    features: Any
    to: To = "baseline"
    _: KW_ONLY
    patches: Any = None
    over: Any = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(f"{type(self).__name__}: `to`", self.to, get_args(To))
        object.__setattr__(self, "over", tuple(as_images(self.over)))
        if (self.to == "mean") != bool(self.over):
            raise FeatureError(
                f'{self!r}: to="mean" and the images `over` belong together; give both.'
            )

    @property
    def images(self) -> tuple[ImageLike, ...]:
        """The images to take the mean over."""
        return self.over

    def changed(self, now: Tensor, reference: Tensor | None) -> Tensor:
        """The reference; without one, zero."""
        return _replaced(now, reference)


@dataclass(frozen=True, eq=False, repr=False)
class Project(Intervention):
    """Project features out of the stream: nothing is left along their decoder directions.

    `Ablate` removes what the features themselves add to the stream; other features that are not
    orthogonal to them, and the error node, still have a component along their directions.
    `Project` removes that component, too. With U an orthonormal basis of the span of the features'
    rows of W_dec at a layer, and v = x - mu - sd · b_dec the stream without the SAE's centre, v
    becomes v - U Uᵀ (v - v̄): one joint projection, so that the order of the features does not
    matter.

    Parameters
    ----------
    features, patches
        See `Ablate`.
    to
        "baseline": v̄ is what baseline features and the baseline error node give, sd · z̄ W_dec + ē;
        "zero": v̄ = 0.

    Raises
    ------
    FeatureError
        If there are no features or no tokens.
    OptionError
        If `to` is unknown.

    Notes
    -----
    Removal of a subspace, as of word vectors by Bolukbasi et al. (NeurIPS 2016, arXiv 1607.06520,
    "neutralize"), here of dictionary directions and relative to a baseline.
    """

    features: Any
    to: ProjectTo = "baseline"
    _: KW_ONLY
    patches: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(f"{type(self).__name__}: `to`", self.to, get_args(ProjectTo))

    def changed(self, now: Tensor, reference: Tensor | None) -> Tensor:
        """The reference; without one, zero."""
        return _replaced(now, reference)


class _ByNumber(Intervention):
    """An intervention whose second field is a number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name = fields(self)[1].name  # type: ignore[arg-type]
        value = finite_number(getattr(self, name))
        if value is None:
            raise FeatureError(f"{self!r}: the {name} must be a finite number without gradient.")
        object.__setattr__(self, name, value)


@dataclass(frozen=True, eq=False, repr=False)
class Scale(_ByNumber):
    """Multiply: z becomes factor · z, so that 0 stays 0 where the feature is not active.

    Parameters
    ----------
    features, patches
        See `Ablate`.
    factor
        Any finite number.
    """

    features: Any
    factor: float
    _: KW_ONLY
    patches: Any = None

    sets = False

    def changed(self, now: Tensor, reference: Tensor | None) -> Tensor:
        """Factor times what they are."""
        return now * self.factor


@dataclass(frozen=True, eq=False, repr=False)
class Clamp(_ByNumber):
    """Set: z becomes a value.

    Parameters
    ----------
    features
        See `Ablate`.
    value
        Any finite number, in units of the SAE's activations.
    patches
        Tokens, whether the feature is active there or not; None for every token where it is active
        on the untouched model.
    """

    features: Any
    value: float
    _: KW_ONLY
    patches: Any = None

    @property
    def only_active(self) -> bool:
        """Without patches, yes."""
        return self.patches is None

    def changed(self, now: Tensor, reference: Tensor | None) -> Tensor:
        """The value."""
        return torch.full_like(now, self.value)


@dataclass(frozen=True, eq=False, repr=False)
class Steer(_ByNumber):
    """Push the stream along the feature's direction, whether it is active or not.

    The stream gets strength · sd · W_dec[f] more, with sd the token's standard deviation in the
    running stream: z becomes z + strength.

    Parameters
    ----------
    features, patches
        See `Ablate`.
    strength
        Any finite number, in units of the SAE's activations.
    """

    features: Any
    strength: float
    _: KW_ONLY
    patches: Any = None

    sets = False

    def changed(self, now: Tensor, reference: Tensor | None) -> Tensor:
        """The strength more than they are."""
        return now + self.strength


@dataclass(frozen=True, eq=False, repr=False)
class Patch(Intervention):
    """Patch in: z becomes the feature's activation on another image, at the same position.

    Parameters
    ----------
    features, patches
        See `Ablate`.
    image
        The other image; the untouched model runs on it.
    """

    features: Any
    image: ImageLike
    _: KW_ONLY
    patches: Any = None

    @property
    def images(self) -> tuple[ImageLike, ...]:
        """The other image."""
        return (self.image,)

    def changed(self, now: Tensor, reference: Tensor | None) -> Tensor:
        """What they are on the other image."""
        assert reference is not None
        return reference.expand_as(now)


@dataclass(frozen=True)
class Interventions:
    """Several interventions, in order; ``a + b`` makes one."""

    items: tuple[Intervention, ...] = ()

    def __iter__(self) -> Iterator[Intervention]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __add__(self, other: InterventionsLike) -> Interventions:
        return interventions(self, other)

    def __str__(self) -> str:
        return " + ".join(map(repr, self.items)) or "no intervention"


InterventionsLike: TypeAlias = Intervention | Interventions | Iterable[Intervention]


def interventions(*parts: InterventionsLike) -> Interventions:
    """Join interventions, in order.

    Raises
    ------
    FeatureError
        If something else is given, or two contradict each other: when one sets (`Ablate`,
        `Project`, `Clamp`, `Patch`) a feature on a token on which an earlier one has set or changed
        it already.
    """
    items: list[Any] = []
    for part in parts:
        items.extend([part] if isinstance(part, Intervention) else _listed(part))
    for item in items:
        if not isinstance(item, Intervention):
            raise FeatureError(
                "An intervention must be Ablate, Project, Scale, Clamp, Steer or Patch, not "
                f"{item!r}."
            )
    _check_contradictions(items)
    return Interventions(tuple(items))


def _check_contradictions(items: list[Intervention]) -> None:
    earlier: dict[FeatureId, list[Intervention]] = {}
    for item in items:
        for key in item.features:
            known = earlier.setdefault(key, [])
            for other in known if item.sets else ():
                if _overlap(other.patches, item.patches):
                    name = f"feature {key[0]}/{key[1]}"
                    raise FeatureError(
                        f"{other!r} and {item!r} contradict each other: both set {name} on the "
                        "same tokens."
                        if other.sets
                        else f"{other!r} and {item!r} contradict each other: the second sets "
                        f"{name} on the same tokens and cancels the first."
                    )
            known.append(item)


def _overlap(a: tuple[Position, ...] | None, b: tuple[Position, ...] | None) -> bool:
    return a is None or b is None or not set(a).isdisjoint(b)


def _replaced(now: Tensor, reference: Tensor | None) -> Tensor:
    return torch.zeros_like(now) if reference is None else reference.expand_as(now)


def _few(patches: tuple[Position, ...]) -> str:
    shown = ", ".join(map(str, patches[:_SHOWN]))
    return f"[{shown}{', …' if len(patches) > _SHOWN else ''}]"


def _same(a: Any, b: Any) -> bool:
    """Compare fields; images are the same when they are one object, or paths that are equal."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return a is b or (type(a) is type(b) and not hasattr(a, "shape") and bool(a == b))


def feature_ids(features: Any) -> tuple[FeatureId, ...]:
    """Features in any form that interventions accept, each once.

    Parameters
    ----------
    features
        (layer, feature), a node with a `key`, or several of them.

    Raises
    ------
    FeatureError
        If there are none, one is an error node, or something else is given.
    """
    one = _pair(getattr(features, "key", features))
    named = [features] if one else _listed(features)
    keys = []
    for item in named:
        key = _pair(getattr(item, "key", item))
        if key is None or key[0] < 0 or key[1] < -1:
            raise FeatureError(f"A feature must be (layer, feature), not {item!r}.")
        if key[1] == -1:
            raise FeatureError(
                f"({key[0]}, -1) is an error node. Use `error_nodes` to set error nodes."
            )
        keys.append(key)
    if not keys:
        raise FeatureError("An intervention needs at least one feature.")
    return tuple(dict.fromkeys(keys))


def positions(patches: Any) -> tuple[Position, ...] | None:
    """Tokens, each once: (row, column), (-1, i), or several of them; None for all.

    Raises
    ------
    FeatureError
        If there are none, or something else is given.
    """
    if patches is None:
        return None
    named = [patches] if _pair(patches) else _listed(patches)
    pairs = []
    for item in named:
        pair = _pair(item)
        if pair is None or pair[0] < -1 or pair[1] < 0:
            raise FeatureError(
                f"A patch must be (row, column), and a prefix token (-1, number), not {item!r}."
            )
        pairs.append(pair)
    if not pairs:
        raise FeatureError(
            "An intervention needs at least one patch; patches=None means every token."
        )
    return tuple(dict.fromkeys(pairs))


def finite_number(value: Any) -> float | None:
    """Return a number of Python's, NumPy's or PyTorch's; None for anything else that is given."""
    if getattr(value, "requires_grad", False):  # which would be lost
        return None
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        return None
    return float(value)


def _listed(value: Any) -> list[Any]:
    """Return the items of a collection, or a list of the one value."""
    try:
        return list(value)
    except TypeError:
        return [value]


def _pair(item: Any) -> tuple[int, int] | None:
    """Return two whole numbers as such, anything else as None."""
    try:
        first, second = item
        if isinstance(first, bool) or isinstance(second, bool):
            return None
        return operator.index(first), operator.index(second)
    except (TypeError, ValueError):
        return None
