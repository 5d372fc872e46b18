"""Lenses by name: those bundled with the package, and any timm model with its SAEs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vitlens.errors import CheckpointError, ModelError
from vitlens.images import Transform
from vitlens.io import read_json, read_tensors
from vitlens.lens import About, Lens, Sample
from vitlens.method.replacement import Baselines
from vitlens.models.families import check_name, create
from vitlens.models.quantize import dequantize
from vitlens.models.vision import on_the_cpu
from vitlens.saes.base import SAE
from vitlens.saes.importers.rrm import RELEASES
from vitlens.saes.io import load_saes

if TYPE_CHECKING:
    from vitlens.atlas.atlas import Atlas

_FOLDER = Path(__file__).parent / "bundles"
# Kinds of baselines that a bundle ships.
_BASELINES = ("mean", "median")


def bundles() -> tuple[str, ...]:
    """Names of the bundled lenses."""
    return tuple(sorted(path.parent.name for path in _FOLDER.glob("*/bundle.json")))


@on_the_cpu()
def load(
    name: str,
    *,
    saes: Mapping[int, SAE] | Sequence[SAE] | str | Path | None = None,
    baselines: Baselines | str | Path | None = None,
    class_names: Sequence[str] | None = None,
    atlas: str | Path | None = None,
    names: str | Path | None = None,
    pretrained: bool = True,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    timm_options: Mapping[str, Any] | None = None,
) -> Lens:
    """Load a lens.

    Parameters
    ----------
    name
        A bundled lens ("everyday"), or the name of a timm model.
    saes
        The SAEs, or a folder or hub name to load them from. By default a bundle's own; for a timm
        model those the authors of the RRM paper released for it, if there are any.
    baselines
        Baselines, or a file of them. "mean" or "median": a bundle's own, which belong to its own
        SAEs. By default the means of a bundle with its own SAEs, and zero for other SAEs.
    class_names
        For a timm model: one name per class.
    atlas
        Folder of an atlas of these SAEs; by default that of a bundle's own, if it has one and the
        model is not in half precision, which rounds its weights.
    names
        File of people's names of features. By default it is in the atlas's folder; for a bundle's
        own atlas, in the user's data folder.
    pretrained
        Load the published weights of a timm model.
    device, dtype
        Device and dtype of the model.
    timm_options
        For a timm model: further arguments of `timm.create_model`.

    Raises
    ------
    ModelError
        If there is no such bundle or model, or it has no SAEs; or there are names and no atlas.
    NetworkError
        If weights must come from the hub and it cannot be reached.
    CheckpointError
        If a file is missing or damaged.
    """
    if name in bundles():
        if class_names is not None or timm_options:
            option = "timm_options" if class_names is None else "class_names"
            raise ModelError(f"{name!r} is a bundle with classes of its own; leave out {option}.")
        lens = _load_bundle(_FOLDER / name, saes, baselines, device, dtype)
        own = _FOLDER / name / "atlas"
        # In half precision the weights are not those the atlas was built with.
        as_stored = lens.vision.dtype in (torch.float32, torch.float64)
        if atlas is None and saes is None and own.is_dir() and as_stored:
            lens.set_atlas_opener(partial(_bundled_atlas, own, name, names))
            return lens
        return _with_atlas(lens, atlas, names)
    if saes is None and name not in RELEASES:
        check_name(name, also=bundles())
        raise ModelError(
            f"No SAEs are known for {name!r}. Give some (`saes=` or `--saes`, a folder or hub "
            "name), or train them: `vitlens train-saes`."
        )
    model = create(name, pretrained=pretrained, timm_options=timm_options).to(
        device=device, dtype=dtype
    )
    lens = Lens(
        model,
        RELEASES[name].hub_name if saes is None else saes,
        baselines=baselines,
        class_names=class_names,
        about=About(name=name),
    )
    return _with_atlas(lens, atlas, names)


def _load_bundle(
    folder: Path,
    saes: Mapping[int, SAE] | Sequence[SAE] | str | Path | None,
    baselines: Baselines | str | Path | None,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Lens:
    config = read_json(folder / "bundle.json")
    model = build_model(config)
    weights, _ = read_tensors(folder / "model.safetensors")
    try:
        model.load_state_dict(dequantize(weights))
    except RuntimeError as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from error
    own = saes is None
    if own and baselines is None:
        baselines = "mean"
    if isinstance(baselines, str) and baselines in _BASELINES:
        if not own:
            raise ModelError(
                f"The bundle's {baselines} baselines belong to its own SAEs. For other SAEs, fit "
                "some: `lens.fit_baselines(images)`."
            )
        baselines = folder / "baselines" / f"{baselines}.safetensors"
    return Lens(
        model.to(device=device, dtype=dtype),
        load_saes(folder / "saes") if saes is None else saes,
        baselines=baselines,
        class_names=config["class_names"],
        transform=Transform.from_dict(config["transform"]),
        about=About(
            name=config["name"],
            samples=tuple(
                Sample(folder / "samples" / s["file"], s.get("label") or "", s["credit"])
                for s in read_json(folder / "samples" / "samples.json")
            ),
            card=(folder / "MODEL_CARD.md").read_text(encoding="utf-8"),
            figures=read_json(folder / "figures.json") if own else {},
        ),
    )


def _with_atlas(lens: Lens, atlas: str | Path | None, names: str | Path | None) -> Lens:
    if atlas is not None:
        from vitlens.atlas.atlas import Atlas

        lens.atlas = Atlas.load(atlas, names=names)
    elif names is not None:
        raise ModelError("Names need an atlas: give its folder, `atlas=`.")
    return lens


def _bundled_atlas(folder: Path, name: str, names: str | Path | None) -> Atlas:
    """Open a bundle's own atlas; people's names go to a folder they may write to."""
    from platformdirs import user_data_path

    from vitlens.atlas.atlas import Atlas

    if names is None:
        model = read_json(folder / "atlas.json").get("model", "")
        # Per model: names of one model's features mean nothing in another.
        names = user_data_path("vitlens", appauthor=False) / "names" / f"{name}-{model}.jsonl"
    return Atlas.load(folder, names=names)


def build_model(config: dict[str, Any]) -> nn.Module:
    """Make the untrained network that a bundle's ``bundle.json`` describes, in `eval` mode."""
    from vitlens.models.heads import ClsMeanViT

    if config["readout"] != "cls_mean":
        raise CheckpointError(f"Unknown read-out {config['readout']!r} in the bundle's settings.")
    return ClsMeanViT(**config["kwargs"]).eval()
