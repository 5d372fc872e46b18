"""Float64 models of the reference data, which circuits must reproduce."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
from safetensors.torch import load_file
from torch import Tensor

from vitlens.attribution.importances import Importances, importances
from vitlens.attribution.targets import resolve_target
from vitlens.models.vision import VisionModel
from vitlens.replacement import Baselines, trace
from vitlens.saes.topk import TopKSAE

MODELS = ("vit_cls", "vit_avgpool_fcnorm", "vit_reg_layerscale")


@dataclass(frozen=True)
class ReferenceModel:
    """A reference model, and the data that an independent program computed for it."""

    vision: VisionModel
    saes: tuple[TopKSAE, ...]
    baselines: Baselines
    top_k: tuple[int, ...]
    classes: tuple[int, ...]
    data: dict[str, Tensor]

    @property
    def images(self) -> list[Tensor]:
        return list(self.data["images"].double())

    @classmethod
    def load(cls, folder: Path, name: str) -> ReferenceModel:
        settings = json.loads((folder / f"{name}.json").read_text())
        data = load_file(folder / f"{name}.safetensors")
        model = timm.models.VisionTransformer(**settings["timm_VisionTransformer"]).double().eval()
        state = {k.removeprefix("model."): v for k, v in data.items() if k.startswith("model.")}
        model.load_state_dict(state)
        saes = tuple(
            TopKSAE.from_weights(
                **{n: data[f"sae.{i}.{n}"].double() for n in ("W_enc", "W_dec", "b_dec")}, k=k
            )
            for i, k in enumerate(settings["top_k"])
        )
        baselines = Baselines(
            [data[f"baseline.{i}.features"] for i in range(len(saes))],
            [data[f"baseline.{i}.errors"] for i in range(len(saes))],
        )
        return cls(
            VisionModel(model),
            saes,
            baselines,
            tuple(settings["top_k"]),
            tuple(settings["targets"]),
            data,
        )

    def importances(self) -> Importances:
        """Importances of the first image."""
        traced = trace(self.vision, self.saes, self.images[0])
        target = resolve_target(self.classes[0], traced.logits)
        return importances(self.vision, self.saes, traced, self.baselines, target)


@pytest.fixture(scope="session", params=MODELS)
def case(
    request: pytest.FixtureRequest, reference_folder: Path
) -> tuple[ReferenceModel, Importances]:
    """One reference model with the importances of its first image."""
    model = ReferenceModel.load(reference_folder, request.param)
    return model, model.importances()
