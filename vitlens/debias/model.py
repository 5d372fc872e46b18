"""A classifier without some of its features, to be used in its place."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor, nn

from vitlens.debias.removal import Removal
from vitlens.errors import CheckpointError, FeatureError
from vitlens.images import ImageLike
from vitlens.interventions.kinds import FeatureId, ProjectTo
from vitlens.interventions.run import make_plan
from vitlens.io import read_json, write_json

if TYPE_CHECKING:
    from vitlens.lens_base import LensBase

_FORMAT, _VERSION = "vitlens debiased model", 2


class DebiasedModel(nn.Module):
    """The model of a lens without some features: images in, logits out.

    Error nodes are free, so that nothing but what `Removal` says is taken out of the stream.
    The lens' own model is not changed.

    Parameters
    ----------
    lens
        The model with its SAEs and baselines.
    features
        (layer, feature) of what is taken out; with none it is the model itself.
    to, project
        How: see `vitlens.debias.removal.Removal`.

    Raises
    ------
    FeatureError
        If a feature does not exist, or `to` is unknown.
    """

    def __init__(
        self,
        lens: LensBase,
        features: Iterable[FeatureId],
        *,
        to: ProjectTo = "baseline",
        project: bool = False,
    ):
        super().__init__()
        self.features = tuple((int(layer), int(feature)) for layer, feature in features)
        self.removal = Removal(to, project)
        # In a tuple: a lens is no module, and its model's weights are not this module's own.
        self._lens = (lens,)
        self._plan = make_plan(
            lens.vision,
            lens.saes,
            lens.baselines,
            [self.removal.of(self.features)] if self.features else [],
            errors="free",
            tensor=lens.tensor,
        )

    @property
    def lens(self) -> LensBase:
        """The lens of the model."""
        return self._lens[0]

    def forward(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n C"]:
        """Logits of a batch of model inputs."""
        return self._plan.logits(images)

    def predict(self, image: ImageLike) -> list[tuple[str, float]]:
        """Class names and probabilities for any image, best first."""
        probabilities = self(self.lens.tensor(image)[None])[0].softmax(-1)
        names = self.lens.logit_names
        order = probabilities.argsort(descending=True).tolist()
        return [(names[i], float(probabilities[i])) for i in order]

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"{len(self.features)} features {self.removal}"

    def save(self, path: str | Path) -> None:
        """Write feature ids and settings to a JSON file; weights stay where they are.

        Raises
        ------
        VitlensError
            If the file cannot be written.
        """
        write_json(
            path,
            {
                "format": _FORMAT,
                "version": _VERSION,
                "model": self.lens.fingerprint,
                "name": self.lens.about.name,
                "features": self.features,
                "to": self.removal.to,
                "project": self.removal.project,
                "errors": "free",
            },
        )

    @classmethod
    def load(cls, path: str | Path, lens: LensBase) -> DebiasedModel:
        """Read what `save` wrote.

        Parameters
        ----------
        path
            The file.
        lens
            The lens it was made with, or an equal one.

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
                f"{path} is of format {facts.get('version')}; this version of vitlens reads "
                f"format {_VERSION}."
            )
        if facts.get("model") != lens.fingerprint:
            raise CheckpointError(
                f"{path} belongs to another lens ({facts.get('name') or 'unnamed'}): its features "
                "mean something else here."
            )
        try:
            features = [(int(layer), int(feature)) for layer, feature in facts["features"]]
            removal = Removal(facts["to"], facts["project"])
        except (KeyError, TypeError, ValueError, FeatureError) as error:
            raise CheckpointError(f"{path} is not complete: {error!r}.") from error
        return cls(lens, features, to=removal.to, project=removal.project)
