"""Tuning of features to orientation, curvature, hue and texture, from their responses to stimuli.

`respond` shows the stimuli to a model. Two things keep what chance finds low. Every index is a
product over the two halves of the stimuli, so that only what both agree on counts; and it is shrunk
by 1 - 1/n, n being the effective number of images behind the response, (sum r)^2 / sum r^2: one
image alone gives 0. The level that chance still reaches is measured on responses with permuted
labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vitlens.atlas import stimuli
from vitlens.atlas.stimuli import N_STIMULI, Stimuli, model_input
from vitlens.errors import FeatureError
from vitlens.images import Transform
from vitlens.interventions.hooks import isolated_model
from vitlens.progress import Progress, steps

if TYPE_CHECKING:
    from vitlens.lens import Lens


def stimuli_of(lens: Lens) -> Stimuli:
    """The stimuli in the size of a lens's model.

    Raises
    ------
    ImageError
        If the model's patches are smaller than 2 pixels.
    """
    height, width = lens.vision.image_size
    rows, columns = lens.vision.grid
    return Stimuli((height, width), (height // rows, width // columns))


def respond(
    lens: Lens, *, batch_size: int = 16, progress: Progress = True
) -> tuple[Float[Tensor, "F N"], ...]:
    """Show all stimuli to a model and return its responses.

    Parameters
    ----------
    lens
        The model with its SAEs.
    batch_size
        Number of stimuli per batch.
    progress
        Show a progress bar; or a function, see `vitlens.progress`.

    Returns
    -------
    tuple of Tensor
        For each layer, in order, [F, N_STIMULI], on the CPU in float32: a feature's largest
        activation over the patch tokens. Stimuli go in as drawn, without the transform's resizing
        and cropping; only a transform that is not a `Transform` gets them as PIL images.
    """
    stimuli = stimuli_of(lens)
    responses = [torch.zeros(sae.n_features, N_STIMULI) for sae in lens.saes]
    batches = torch.arange(N_STIMULI).split(batch_size)
    for numbers in steps(batches, "stimuli", progress):
        images = torch.stack([_input(lens, stimuli, int(i)) for i in numbers])
        with isolated_model(lens.vision), torch.no_grad():
            streams = lens.vision.residuals(images, lens.layers)
            for response, sae, stream in zip(responses, lens.saes, streams, strict=True):
                strongest = sae.encode(stream)[:, lens.vision.n_prefix :].amax(1)
                response[:, numbers] = strongest.T.float().cpu()
    return tuple(responses)


def _input(lens: Lens, stimuli: Stimuli, number: int) -> Float[Tensor, "3 H W"]:
    transform = lens.transform
    if isinstance(transform, Transform):
        ready = model_input(stimuli.pixels(number), mean=transform.mean, std=transform.std)
        return lens.tensor(ready)
    return lens.tensor(stimuli.image(number))


#: The indices of a feature, all 0 for one that does not respond.
INDICES = ("orientation", "curvature", "direction", "hue", "texture")

_STRAIGHT = len(stimuli.RADII) - 1
#: Shape of each part of `curves`, in order.
CURVES = {
    "orientation": (1 + len(stimuli.PERIODS), len(stimuli.ORIENTATIONS)),
    "direction": (len(stimuli.RADII), len(stimuli.DIRECTIONS)),
    "hue": (len(stimuli.CHROMAS), len(stimuli.HUES)),
    "grey": (len(stimuli.GREYS),),
    "texture": (len(stimuli.TEXTURES),),
    "blank": (),
}
#: Numbers per feature in `curves`.
N_CURVES = sum(int(np.prod(shape)) for shape in CURVES.values())


@dataclass(frozen=True)
class Tuning:
    """A feature's mean responses to the stimuli, in units of its activation.

    Attributes
    ----------
    orientation
        [4, 12]: to edges, and to gratings of each period in `stimuli.PERIODS`, by
        `stimuli.ORIENTATIONS`.
    direction
        [5, 8]: to arcs of each radius in `stimuli.RADII` (the last is a straight line), by
        `stimuli.DIRECTIONS`, in which they bulge.
    hue
        [2, 12]: to colours of each chroma in `stimuli.CHROMAS`, by `stimuli.HUES`.
    grey
        [4]: to fields of each lightness in `stimuli.GREYS`.
    texture
        [10]: to each of `stimuli.TEXTURES`.
    blank
        To a plain grey image.
    indices
        By name, see the function `indices`; empty if they are not known.
    """

    orientation: Float[Tensor, "4 12"]
    direction: Float[Tensor, "5 8"]
    hue: Float[Tensor, "2 12"]
    grey: Float[Tensor, " 4"]
    texture: Float[Tensor, " 10"]
    blank: float
    indices: Mapping[str, float]

    @classmethod
    def of(cls, row: Float[Tensor, " K"], indices: Mapping[str, float] | None = None) -> Tuning:
        """Tuning of one feature from its row of `curves`.

        Raises
        ------
        FeatureError
            If the row has another length.
        """
        if row.shape != (N_CURVES,):
            raise FeatureError(f"A feature's curves are {N_CURVES} numbers, not {list(row.shape)}.")
        sizes = [int(np.prod(shape)) for shape in CURVES.values()]
        parts = {
            name: part.reshape(shape)
            for (name, shape), part in zip(CURVES.items(), row.float().split(sizes), strict=True)
        }
        blank = float(parts.pop("blank"))
        return cls(**parts, blank=blank, indices=dict(indices or {}))

    @property
    def preferred(self) -> Preferred:
        """The stimuli that the feature responds to most, by their means."""
        direction = int(self.direction[:_STRAIGHT].max(0).values.argmax())
        return Preferred(
            orientation=_circular_mean(self.orientation.mean(0), stimuli.ORIENTATIONS, turn=180),
            radius=stimuli.RADII[int(self.direction.mean(1).argmax())],
            direction=stimuli.DIRECTIONS[direction],
            hue=_circular_mean(self.hue.mean(0), stimuli.HUES, turn=360),
            texture=stimuli.TEXTURES[int(self.texture.argmax())],
        )


class Preferred(NamedTuple):
    """The stimuli that a feature responds to most.

    Attributes
    ----------
    orientation, hue
        Mean angle of the curve, in degrees.
    radius, direction
        Of the arcs, in patches and degrees.
    texture
        Name of a texture.
    """

    orientation: float
    radius: float
    direction: float
    hue: float
    texture: str


def curves(responses: Float[Tensor, "F N"]) -> Float[Tensor, "F K"]:
    """Mean responses over the repeats of each condition, as `Tuning` needs them.

    Parameters
    ----------
    responses
        Responses of one layer, see `respond`.

    Returns
    -------
    Tensor
        [F, N_CURVES], the parts of `CURVES` one after the other.
    """
    by = _Conditions.of(responses)
    grey, blank = _block(responses, "grey"), _block(responses, "blank")[:, :, None]
    parts = (by.orientation, by.arc, by.hue, grey, by.texture.mean(2), blank)
    return torch.cat([part.mean(1).flatten(1).float() for part in parts], dim=1)


def indices(responses: Float[Tensor, "F N"]) -> dict[str, Float[Tensor, " F"]]:
    """How sharply each feature is tuned; each index as described in this module, by name.

    Parameters
    ----------
    responses
        Responses of one layer, see `respond`.

    Returns
    -------
    dict
        For each of `INDICES`, [F].

        - ``orientation``: 1 minus the circular variance over the orientations of edges and
          gratings (the mean over both signs and all periods), 0 to 1.
        - ``direction``: 1 minus the circular variance over the directions in which arcs bulge
          (the mean over all radii), 0 to 1. A feature of lines of one orientation has 0: such a
          line bulges to both sides alike.
        - ``curvature``: (arcs - lines) / (arcs + lines) of the mean response to arcs, of the
          radius that the *other* half prefers, and to straight lines, each the geometric mean of
          both halves, -1 to 1.
        - ``hue``: 1 minus the circular variance over hues, 0 to 1.
        - ``texture``: (best - mean) / (best + mean), the best texture being that of the other
          half, 0 to 1.

    Notes
    -----
    Circular variance as in Swindale, Biological Cybernetics 78, 1998; Ringach et al., J.
    Neuroscience 22, 2002. With both halves' resultants A and B, of total responses a and b, the
    length is sqrt(max(0, Re(A conj(B))) / (a b)).
    """
    return _indices(_Conditions.of(responses))


def shuffled_indices(
    responses: Float[Tensor, "F N"], *, repeats: int = 8, seed: int = 0
) -> dict[str, Float[Tensor, " n"]]:
    """The same indices with the stimuli's labels permuted, for the level that chance reaches.

    Parameters
    ----------
    responses
        Responses of one layer.
    repeats
        Permutations per feature.
    seed
        Seed of the permutations.

    Returns
    -------
    dict
        For each of `INDICES` [repeats x F]. Each feature has permutations of its own: of
        orientations within edges and within each period, of directions within each radius, of
        radii and directions together for the curvature, of hues within each chroma. The two
        halves of a condition stay together, so that a feature with reliable but unordered
        preferences counts as chance. Only textures, which have no order, are permuted by half.
    """
    generator = torch.Generator().manual_seed(seed)
    by = _Conditions.of(responses)
    drawn = []
    for _ in range(repeats):
        texture = by.texture.transpose(2, 3)  # feature, half, texture, instance
        drawn.append(
            _indices(
                _Conditions(
                    orientation=_permuted(by.orientation, generator),
                    arc=_permuted(by.arc, generator),
                    any_arc=_permuted(by.arc.flatten(2)[:, :, None], generator).reshape(
                        by.arc.shape
                    ),
                    hue=_permuted(by.hue, generator),
                    texture=_permuted_halves(texture, generator).transpose(2, 3),
                    evidence=by.evidence,
                )
            )
        )
    return {name: torch.cat([one[name] for one in drawn]) for name in INDICES}


class _Conditions(NamedTuple):
    """Responses by condition, the feature and the half first."""

    orientation: Float[Tensor, "F 2 4 12"]  # mean over the sides of an edge
    arc: Float[Tensor, "F 2 5 8"]  # mean over light and dark
    any_arc: Float[Tensor, "F 2 5 8"]  # the same, for the curvature
    hue: Float[Tensor, "F 2 2 12"]
    texture: Float[Tensor, "F 2 2 10"]
    evidence: Mapping[str, Float[Tensor, " F"]]  # 1 - 1/n, by block of stimuli

    @classmethod
    def of(cls, responses: Float[Tensor, "F N"]) -> _Conditions:
        if responses.ndim != 2 or responses.shape[1] != stimuli.N_STIMULI:
            raise FeatureError(
                f"Responses are [F, {stimuli.N_STIMULI}], not {list(responses.shape)}."
            )
        responses = responses.double()
        edge, grating = _block(responses, "edge"), _block(responses, "grating")
        arc, hue = _block(responses, "arc"), _block(responses, "hue")
        texture = _block(responses, "texture")
        lines = torch.cat([edge.flatten(1), grating.flatten(1)], dim=1)
        return cls(
            orientation=torch.cat([edge.mean(2, keepdim=True), grating], dim=2),
            arc=arc.mean(2),
            any_arc=arc.mean(2),
            hue=hue,
            texture=texture,
            evidence={
                "line": _evidence(lines),
                "arc": _evidence(arc.flatten(1)),
                "hue": _evidence(hue.flatten(1)),
                "texture": _evidence(texture.flatten(1)),
            },
        )


def _block(responses: Float[Tensor, "F N"], name: str) -> Float[Tensor, "F ..."]:
    return responses[:, stimuli.indices(name).to(responses.device)]


def _indices(by: _Conditions) -> dict[str, Float[Tensor, " F"]]:
    return {
        "orientation": _resultant(by.orientation.mean(2)) * by.evidence["line"],
        "curvature": _curvature(by.any_arc) * by.evidence["arc"],
        "direction": _resultant(by.arc[:, :, :_STRAIGHT].mean(2)) * by.evidence["arc"],
        "hue": _resultant(by.hue.mean(2)) * by.evidence["hue"],
        "texture": _best_over_mean(by.texture.mean(2)) * by.evidence["texture"],
    }


def _evidence(responses: Float[Tensor, "F n"]) -> Float[Tensor, " F"]:
    """1 - 1/n, with n the effective number of images behind the responses; 0 without any."""
    return _ratio(responses.sum(1) ** 2 - (responses**2).sum(1), responses.sum(1) ** 2)


def _resultant(curve: Float[Tensor, "F 2 K"]) -> Float[Tensor, " F"]:
    """Length of the mean vector that both halves of a circular curve agree on, 0 to 1.

    The K points are spread evenly over the whole turn: 180 degrees for orientations, else 360.
    """
    n = curve.shape[-1]
    angle = 2 * torch.pi * torch.arange(n, dtype=curve.dtype, device=curve.device) / n
    x, y = curve @ angle.cos(), curve @ angle.sin()
    agreed = (x.prod(1) + y.prod(1)).clamp(min=0)
    return _ratio(agreed, curve.sum(2).prod(1)).sqrt()


def _curvature(arc: Float[Tensor, "F 2 R D"]) -> Float[Tensor, " F"]:
    by_radius = arc.mean(3)
    straight = by_radius[:, :, _STRAIGHT]
    preferred = by_radius[:, :, :_STRAIGHT].argmax(2).flip(1)  # of the other half
    curved = by_radius.gather(2, preferred[..., None])[..., 0]
    curved, straight = curved.prod(1).sqrt(), straight.prod(1).sqrt()
    return _ratio(curved - straight, curved + straight)


def _best_over_mean(response: Float[Tensor, "F 2 K"]) -> Float[Tensor, " F"]:
    preferred = response.argmax(2).flip(1)
    best = response.gather(2, preferred[..., None])[..., 0].mean(1)
    mean = response.mean((1, 2))
    return _ratio(best - mean, best + mean).clamp(min=0)


def _ratio(part: Float[Tensor, " F"], whole: Float[Tensor, " F"]) -> Float[Tensor, " F"]:
    return torch.where(whole > 0, part / whole.clamp(min=1e-300), 0.0)


def _permuted(
    values: Float[Tensor, "F half G K"], generator: torch.Generator
) -> Float[Tensor, "F half G K"]:
    """Permute the last axis, once per feature and group, alike in both halves."""
    features, halves, groups, n = values.shape
    order = torch.rand(features, 1, groups, n, generator=generator).argsort(-1)
    return values.gather(3, order.to(values.device).expand(-1, halves, -1, -1))


def _permuted_halves(
    values: Float[Tensor, "F half K I"], generator: torch.Generator
) -> Float[Tensor, "F half K I"]:
    """Permute the third axis, once per feature and half."""
    order = torch.rand(values.shape[:3], generator=generator).argsort(-1)
    return values.gather(2, order.to(values.device)[..., None].expand_as(values))


def _circular_mean(curve: Float[Tensor, " K"], angles: tuple[float, ...], *, turn: float) -> float:
    """Mean angle in degrees, 0 to `turn`."""
    radians = torch.tensor(angles, dtype=torch.float64) * (2 * torch.pi / turn)
    x, y = (curve.double() * radians.cos()).sum(), (curve.double() * radians.sin()).sum()
    return float(torch.atan2(y, x)) * turn / (2 * np.pi) % turn
