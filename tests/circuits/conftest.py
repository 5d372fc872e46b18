"""The reference models, whose circuits are known from an independent program."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from torch import Tensor

from tests.builders import REFERENCES, reference
from vitlens.method.engines import EdgeColumns
from vitlens.method.importance import Importances, node_importances, resolve_target
from vitlens.method.replacement import ReplacementModel
from vitlens.models.vision import VisionModel


@dataclass(frozen=True)
class ReferenceModel:
    """A reference model in float64, and the data that the slow program computed for it."""

    replacement: ReplacementModel
    top_k: tuple[int, ...]
    classes: tuple[int, ...]
    data: dict[str, Tensor]

    @classmethod
    def load(cls, name: str) -> ReferenceModel:
        config, data, model, saes, baselines = reference(name)
        replacement = ReplacementModel(VisionModel(model), saes, range(len(saes)), baselines)
        return cls(replacement, tuple(config["top_k"]), tuple(config["targets"]), data)

    @property
    def images(self) -> list[Tensor]:
        return list(self.data["images"])


@dataclass(frozen=True)
class ReferenceCase:
    """A reference model with the importances and edges of its first image."""

    model: ReferenceModel
    nodes: Importances
    edges: tuple[Tensor, ...]

    @property
    def data(self) -> dict[str, Tensor]:
        return self.model.data


@pytest.fixture(scope="session", params=REFERENCES)
def case(request: pytest.FixtureRequest) -> ReferenceCase:
    model = ReferenceModel.load(request.param)
    trace = model.replacement.trace(model.images[0][None])[0]
    target = resolve_target(model.classes[0], trace.logits)
    nodes = node_importances(model.replacement, trace, target)
    return ReferenceCase(model, nodes, EdgeColumns(model.replacement, trace, nodes).all())
