"""A classifier without some of its features, to use in its place."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitlens.errors import CheckpointError, FeatureError, OptionError, check_choice
from vitlens.images import ImageLike, to_tensor
from vitlens.interventions.kinds import Ablate, FeatureId, Project, ProjectTo
from vitlens.interventions.run import Plan, make_plan
from vitlens.io import read_json, write_json
from vitlens.method.replacement import Baselines, ReplacementModel

if TYPE_CHECKING:
    from vitlens.lens import Lens

_FORMAT, _VERSION = "vitlens debiased model", 3


@dataclass(frozen=True)
class Removal:
    """One way to remove features, for any features.

    Attributes
    ----------
    to
        "baseline" or "zero"; see `vitlens.interventions.kinds.Ablate`.
    project
        Whether the stream's whole component along the features' decoder directions is removed, as
        `Project` does; otherwise only what the features themselves add, as `Ablate` does.

    Raises
    ------
    OptionError
        If `to` or `project` has another value.
    """

    to: ProjectTo = "baseline"
    project: bool = False

    def __post_init__(self) -> None:
        check_choice("to", self.to, get_args(ProjectTo))
        if not isinstance(self.project, bool):
            raise OptionError(f"project must be True or False, not {self.project!r}.")

    def of(self, features: Iterable[FeatureId]) -> Ablate | Project:
        """Return the intervention that removes these features, at least one."""
        return (Project if self.project else Ablate)(tuple(features), self.to)

    def __str__(self) -> str:
        return f"{'projected out' if self.project else 'ablated'}, to {self.to}"


class DebiasedModel(nn.Module):
    """The model of a lens without some features: images in, logits out.

    Error nodes are free, so that nothing but the features is removed from the stream.

    The module holds its own copy of model, SAEs and baselines. Nothing done to it, such as `to` or
    training, reaches the lens or the user's model, and nothing done to those reaches it.
    `parameters` gives the parameters of the model's copy (`module`, and `head` if the lens has a
    head that is a module); SAEs and baselines are buffers, so that an optimizer leaves them as they
    are. `state_dict` holds all of them.

    Gradients flow to the images and to the parameters. As everywhere in vitlens, the SAEs' standard
    deviation and choice of active features are constants in them.

    The copy always runs in `eval` mode: `train` sets the module's own `training` flag and nothing
    else, so that results are never random. Weights can be fine-tuned all the same.

    Parameters
    ----------
    lens
        The model with its SAEs and baselines.
    features
        (layer, feature) of each feature to remove; with none it is the model itself.
    to, project
        How features are removed; see `Removal`.

    Raises
    ------
    FeatureError
        If a feature does not exist.
    OptionError
        If `to` or `project` is unknown.
    """

    saes: nn.ModuleList

    def __init__(
        self,
        lens: Lens,
        features: Iterable[FeatureId],
        *,
        to: ProjectTo = "baseline",
        project: bool = False,
    ):
        super().__init__()
        self.features = tuple((int(layer), int(feature)) for layer, feature in features)
        self.removal = Removal(to, project)
        self.class_names = lens.logit_names
        self._transform = lens.transform
        self._origin = lens.fingerprint, lens.about.name
        # One deep copy for the adapter and its module, so that both stay the same object.
        self._vision = copy.deepcopy(lens.vision)
        self.module: nn.Module = self._vision.module
        if isinstance(self._vision.head, nn.Module):
            self.head = self._vision.head
        self.layers = lens.layers
        self.saes = nn.ModuleList(_constant(copy.deepcopy(sae)) for sae in lens.saes)
        self.baselines = _StoredBaselines(lens.baselines)
        self.eval()
        self._planned()

    def forward(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n C"]:
        """Logits of a batch of model inputs."""
        replacement, plan = self._planned()
        return replacement.run(images, plan, error_nodes="free", grad=torch.is_grad_enabled())

    def predict(self, image: ImageLike) -> list[tuple[str, float]]:
        """Return class names and probabilities of any image, best first.

        Raises
        ------
        ImageError
            If the image cannot be read.
        """
        with torch.no_grad():
            probabilities = self(self._tensor(image)[None])[0].softmax(-1)
        order = probabilities.argsort(descending=True).tolist()
        return [(self.class_names[i], float(probabilities[i])) for i in order]

    def train(self, mode: bool = True) -> DebiasedModel:
        """Set `training`; the copies of model and SAEs stay in `eval` mode."""
        super().train(False)
        self.training = mode
        return self

    def extra_repr(self) -> str:
        """Text shown by `repr`."""
        n = len(self.features)
        return f"{n} feature{'' if n == 1 else 's'} {self.removal}"

    def __str__(self) -> str:
        return f"{type(self.module).__name__} with {self.extra_repr()}"

    def save(self, path: str | Path) -> None:
        """Write feature ids and settings to a JSON file.

        Weights are not written: `load` takes those of the lens. Keep weights that were changed
        since with `state_dict`.

        Raises
        ------
        VitlensError
            If the file cannot be written.
        """
        fingerprint, name = self._origin
        write_json(
            path,
            {
                "format": _FORMAT,
                "version": _VERSION,
                "model": fingerprint,
                "name": name,
                "features": self.features,
                "to": self.removal.to,
                "project": self.removal.project,
                "error_nodes": "free",
            },
        )

    @classmethod
    def load(cls, path: str | Path, lens: Lens) -> DebiasedModel:
        """Read a file written by `save`.

        Parameters
        ----------
        path
            The file.
        lens
            The lens that the model was made from, or an equal one.

        Raises
        ------
        CheckpointError
            If the file is missing or damaged, or belongs to another model or other SAEs.
        """
        facts = read_json(path)
        if not isinstance(facts, dict) or facts.get("format") != _FORMAT:
            raise CheckpointError(f"{path} does not hold a debiased model saved by vitlens.")
        if facts.get("version") != _VERSION:
            raise CheckpointError(
                f"{path} has format {facts.get('version')}; this version of vitlens reads "
                f"format {_VERSION}."
            )
        if facts.get("model") != lens.fingerprint:
            raise CheckpointError(
                f"{path} belongs to another lens ({facts.get('name') or 'unnamed'}); its feature "
                "numbers do not fit this one."
            )
        try:
            features = [(int(layer), int(feature)) for layer, feature in facts["features"]]
            removal = Removal(facts["to"], facts["project"])
        except (KeyError, TypeError, ValueError, FeatureError) as error:
            raise CheckpointError(f"{path} is not complete: {error!r}.") from error
        return cls(lens, features, to=removal.to, project=removal.project)

    def _planned(self) -> tuple[ReplacementModel, Plan]:
        """The removal for the weights as they are now; `to` or loading may have changed them."""
        replacement = ReplacementModel(
            self._vision,
            tuple(self.saes),  # type: ignore[arg-type]
            self.layers,
            self.baselines.baselines(),
        )
        removed = [self.removal.of(self.features)] if self.features else []
        return replacement, make_plan(replacement, removed, error_nodes="free", tensor=self._tensor)

    def _tensor(self, image: ImageLike) -> Float[Tensor, "3 H W"]:
        vision = self._vision
        return to_tensor(image, self._transform, dtype=vision.dtype, device=vision.device)


class _StoredBaselines(nn.Module):
    """Baselines as buffers, so that they move and are stored with the module."""

    def __init__(self, baselines: Baselines):
        super().__init__()
        self.kind = baselines.kind
        self.n_sites = len(baselines.features)
        for position in range(self.n_sites):
            for name, values in (("features", baselines.features), ("errors", baselines.errors)):
                self.register_buffer(f"{name}_{position}", values[position].detach().clone())
        self.references = nn.ModuleList(map(_StoredBaselines, baselines.references))

    def baselines(self) -> Baselines:
        """The baselines as they are now."""
        positions = range(self.n_sites)
        return Baselines(
            [self.get_buffer(f"features_{position}") for position in positions],
            [self.get_buffer(f"errors_{position}") for position in positions],
            self.kind,
            tuple(part.baselines() for part in self.references),  # type: ignore[operator]
        )


def _constant(sae: nn.Module) -> nn.Module:
    """Turn an SAE's parameters into buffers of the same names."""
    for name, value in list(sae.named_parameters()):
        delattr(sae, name)
        sae.register_buffer(name, value.detach())
    return sae
