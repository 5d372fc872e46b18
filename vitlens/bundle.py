"""Lenses by name: what is bundled with the package, and any timm model with its SAEs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitlens.about import About, Sample
from vitlens.errors import CheckpointError, ModelError
from vitlens.files import read_json, read_tensors
from vitlens.images import Transform
from vitlens.lens import Lens
from vitlens.models.quantize import dequantize
from vitlens.models.registry import create
from vitlens.replacement import Baselines
from vitlens.saes.files import load_saes
from vitlens.saes.rrm import RELEASES
from vitlens.saes.topk import TopKSAE

_FOLDER = Path(__file__).parent / "bundles"


def bundles() -> tuple[str, ...]:
    """Names of the bundled lenses."""
    return tuple(sorted(path.parent.name for path in _FOLDER.glob("*/bundle.json")))


def load(
    name: str,
    *,
    saes: Sequence[TopKSAE] | str | Path | None = None,
    baselines: Baselines | str | Path | None = None,
    class_names: Sequence[str] | None = None,
    pretrained: bool = True,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    **kwargs: Any,
) -> Lens:
    """Load a lens.

    Parameters
    ----------
    name
        A bundled lens ("everyday"), or the name of a timm model.
    saes
        For a timm model: the SAEs, or a folder or hub name to load them from; by default those
        the authors of the RRM paper released for this model, if there are any.
    baselines
        For a timm model: baselines, or a file of them.
    class_names
        For a timm model: a name a class.
    pretrained
        Load the published weights of a timm model.
    device, dtype
        Where the model goes, and its precision.
    kwargs
        Further arguments of `timm.create_model`.

    Raises
    ------
    ModelError
        If there is no such bundle or model, or it has no SAEs.
    NetworkError
        If weights must come from the hub and it cannot be reached.
    CheckpointError
        If a file is missing or damaged.
    """
    if name in bundles():
        return _load_bundle(_FOLDER / name, device, dtype)
    if saes is None and name not in RELEASES:
        from timm import is_model

        known = f"Bundled: {', '.join(bundles())}. "
        if is_model(name):
            raise ModelError(
                f"No SAEs are known for {name!r}. Give some with `saes=` (a folder or hub name), "
                f"or train them: `vitlens train-saes`. {known}"
            )
    model = create(name, pretrained=pretrained, **kwargs).to(device=device, dtype=dtype)
    if isinstance(baselines, str | Path):
        baselines = Baselines.load(baselines)
    return Lens(
        model,
        RELEASES[name].hub_name if saes is None else saes,
        baselines=baselines,
        class_names=class_names,
        about=About(name=name),
    )


def _load_bundle(folder: Path, device: torch.device | str, dtype: torch.dtype) -> Lens:
    config = read_json(folder / "bundle.json")
    model = build_model(config)
    weights, _ = read_tensors(folder / "model.safetensors")
    try:
        model.load_state_dict(dequantize(weights))
    except RuntimeError as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from error
    return Lens(
        model.to(device=device, dtype=dtype),
        load_saes(folder / "saes"),
        baselines=Baselines.load(folder / "baselines.safetensors"),
        class_names=config["class_names"],
        transform=Transform.from_dict(config["transform"]),
        about=About(
            name=config["name"],
            samples=tuple(
                Sample(folder / "samples" / s["file"], s.get("label") or "", s["credit"])
                for s in read_json(folder / "samples" / "samples.json")
            ),
            card=(folder / "MODEL_CARD.md").read_text(encoding="utf-8"),
            figures=read_json(folder / "figures.json"),
        ),
    )


def build_model(config: dict[str, Any]) -> nn.Module:
    """Make the untrained network that a bundle's ``bundle.json`` describes, in `eval` mode."""
    from vitlens.models.cls_mean import ClsMeanViT

    if config["readout"] != "cls_mean":
        raise CheckpointError(f"Unknown read-out {config['readout']!r} in the bundle's settings.")
    return ClsMeanViT(**config["kwargs"]).eval()
