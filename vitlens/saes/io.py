"""SAEs on disk: one safetensors file per layer and a manifest that lists the layers.

An SAE of any kind is its tensors and its `settings`; nothing is ever pickled.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitlens.errors import CheckpointError
from vitlens.io import atomic_path, fingerprint, read_json, read_result, write_tensors
from vitlens.models.vision import VisionModel
from vitlens.saes.base import SAE, check_widths
from vitlens.saes.importers import rrm

MANIFEST = "manifest.json"
_FORMAT, _VERSION = "vitlens-sae", 1
_FOLDER_FORMAT, _FOLDER_VERSION = "vitlens-saes", 1
_FILE = re.compile(r"layer_\d+\.safetensors")


def save_sae(
    sae: SAE,
    path: str | Path,
    metadata: Mapping[str, Any] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write one SAE of any kind to a safetensors file.

    Parameters
    ----------
    sae
        The SAE.
    path
        The file to write, atomically.
    metadata
        Anything JSON can hold, kept in the file's header.
    dtype
        On disk, for instance ``torch.float16``; the SAE's own by default.

    Raises
    ------
    VitlensError
        If the file cannot be written.
    CheckpointError
        If a weight overflows in `dtype`.
    """
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "settings": sae.settings(),
        "metadata": dict(metadata or {}),
    }
    write_tensors(path, _tensors(sae, dtype), header)


def load_sae(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> SAE:
    """Read one SAE that `save_sae` wrote.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, a pickle, or holds no SAE of a known kind.
    """
    return _load(Path(path), dtype, device)[0]


def save_saes(
    saes: Mapping[int, SAE] | Sequence[SAE],
    folder: str | Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the SAEs of a model to a folder.

    The folder gets ``manifest.json`` and one file per layer, such as ``layer_02.safetensors``.
    Everything is written under temporary names first: when that fails, SAEs already there are
    left as they were.

    Parameters
    ----------
    saes
        By layer, ``{2: a, 5: b}``; or a sequence for the layers 0, 1, ...
    folder
        Made when it is missing.
    metadata
        Anything JSON can hold, kept in the manifest.
    dtype
        On disk, for instance ``torch.float16``; each SAE's own by default.

    Raises
    ------
    CheckpointError
        If there are no SAEs, a layer is not a whole number of 0 or more, their widths differ, or
        a weight overflows in `dtype`.
    VitlensError
        If a file cannot be written.
    """
    folder = Path(folder)
    by_layer = _by_layer(saes)
    _check_one_width(by_layer, folder)
    entries = []
    with ExitStack() as stack:
        # Renames run in reverse order, so that the manifest appears when its files are there.
        manifest = stack.enter_context(atomic_path(folder / MANIFEST))
        for layer, sae in by_layer.items():
            name = f"layer_{layer:02d}.safetensors"
            save_sae(sae, stack.enter_context(atomic_path(folder / name)), dtype=dtype)
            entries.append(
                {
                    "layer": layer,
                    "file": name,
                    "n_features": sae.n_features,
                    **sae.settings(),
                    "fingerprint": fingerprint(_tensors(sae, dtype), sae.settings()),
                }
            )
        content = {
            "format": _FOLDER_FORMAT,
            "version": _FOLDER_VERSION,
            "d_model": next(iter(by_layer.values())).d_model,
            "layers": entries,
            "metadata": dict(metadata or {}),
        }
        manifest.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for old in folder.iterdir():
        if _FILE.fullmatch(old.name) and old.name not in {entry["file"] for entry in entries}:
            old.unlink()


def load_saes(
    folder_or_hub_name: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> dict[int, SAE]:
    """Read the SAEs of a model, by layer.

    Parameters
    ----------
    folder_or_hub_name
        A folder that `save_saes` or `train_saes` wrote, a folder in the layout of the RRM release
        (see `vitlens.saes.importers.rrm`), or the name of a repository on the Hugging Face hub.
    dtype, device
        Dtype and device of the SAEs.

    Returns
    -------
    dict of int to SAE
        Lowest layer first.

    Raises
    ------
    CheckpointError
        If nothing is there, or it is damaged, of another kind, or of mixed widths.
    NetworkError
        If it is a hub name and the hub cannot be reached.
    """
    folder = rrm.local_folder(folder_or_hub_name)
    if not (folder / MANIFEST).is_file() and rrm.has_layout(folder):
        model = rrm.model_of(str(folder_or_hub_name))
        return dict(rrm.load_rrm(folder, model=model, dtype=dtype, device=device))
    saes = {}
    for entry in read_manifest(folder)["layers"]:
        sae, found = _load(folder / entry["file"], dtype, device)
        if found != entry["fingerprint"]:
            raise CheckpointError(
                f"{folder / entry['file']} is not the file that {MANIFEST} lists: its fingerprint"
                f" is {found}, not {entry['fingerprint']}. Copy the whole folder again."
            )
        saes[entry["layer"]] = sae
    _check_one_width(saes, folder)
    return dict(sorted(saes.items()))


def resolve_saes(
    saes: Mapping[int, SAE] | Iterable[SAE] | SAE | str | Path,
    vision: VisionModel,
    layers: Sequence[int] | None = None,
) -> tuple[tuple[int, ...], tuple[SAE, ...]]:
    """Return the layers and SAEs of a model, given or loaded, and checked.

    Parameters
    ----------
    saes
        By layer, for any of the model's layers, at least one; or a sequence of one for every
        block but the last; or a folder or hub name, as for `load_saes`.
    vision
        The model.
    layers
        Which of them to return, ascending; by default all. The layers of a sequence, if it is not
        one for every block but the last.

    Returns
    -------
    layers : tuple of int
        Ascending.
    saes : tuple of SAE
        In the order of the layers.

    Raises
    ------
    CheckpointError
        If they cannot be loaded, are no SAEs, or do not fit the model.
    """
    if isinstance(saes, str | Path):
        saes = load_saes(saes)
    wanted = None if layers is None else check_layers(layers, vision)
    if isinstance(saes, Mapping):
        by_layer = _by_layer(saes)
    else:
        by_layer = _by_layer(tuple(saes) if isinstance(saes, Iterable) else (saes,))
        names = range(vision.depth - 1) if wanted is None else wanted
        if len(by_layer) != len(names):
            raise CheckpointError(
                f"The model has {vision.depth} blocks, so a list must hold {len(names)} SAEs, one"
                f" after every block but the last; it holds {len(by_layer)}. For SAEs at some"
                " layers only, give them by layer: {2: sae, 5: sae}."
                if wanted is None
                else f"There are {len(by_layer)} SAEs for the {len(names)} layers {list(names)}."
            )
        by_layer = dict(zip(names, by_layer.values(), strict=True))
    if not by_layer:
        raise CheckpointError("At least one SAE is needed.")
    if wanted is not None:
        if missing := [layer for layer in wanted if layer not in by_layer]:
            raise CheckpointError(
                f"There is no SAE for layer {missing[0]}; there are SAEs for {list(by_layer)}."
            )
        by_layer = {layer: by_layer[layer] for layer in wanted}
    check_layers(tuple(by_layer), vision)
    check_widths(tuple(by_layer.values()), tuple(by_layer), d_model=vision.d_model)
    return tuple(by_layer), tuple(by_layer.values())


def check_layers(layers: Sequence[int], vision: VisionModel) -> tuple[int, ...]:
    """Return layers of a model as whole numbers.

    Raises
    ------
    CheckpointError
        If there is none, they are not ascending, or the model has no such block.
    """
    found = [_layer_number(layer) for layer in layers]
    if not found:
        raise CheckpointError("At least one layer is needed.")
    if found != sorted(set(found)):
        raise CheckpointError(f"Layers must be ascending, each given once, not {found}.")
    if found[-1] >= vision.depth:
        raise CheckpointError(
            f"The model has no layer {found[-1]}: its {vision.depth} blocks are 0 to"
            f" {vision.depth - 1}."
        )
    return tuple(found)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read ``manifest.json`` of a folder of SAEs.

    Returns
    -------
    dict
        "d_model"; "layers", each with "layer", "file", "n_features", the SAE's settings and
        "fingerprint"; and "metadata".

    Raises
    ------
    CheckpointError
        If it is missing, damaged, or of another kind.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{folder} holds no SAEs: expected {MANIFEST} with files such as layer_00.safetensors,"
            f" or files of the RRM release, {rrm.LAYOUT}."
        )
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != _FOLDER_FORMAT:
        raise CheckpointError(f"{path} is not a manifest of SAEs.")
    if manifest.get("version") != _FOLDER_VERSION:
        raise CheckpointError(
            f"{path} is a manifest of format {manifest.get('version')}; this version of vitlens"
            f" reads format {_FOLDER_VERSION}."
        )
    entries = manifest.get("layers")
    complete = isinstance(entries, list) and all(map(_is_complete, entries))
    if not (complete and entries and isinstance(manifest.get("metadata"), dict)):
        raise CheckpointError(f"{path} is damaged: its list of layers is not complete.")
    return manifest


def fingerprint_of_saes(layers: Sequence[int], saes: Sequence[SAE]) -> str:
    """Hash of SAEs: their layers, kinds, settings and tensors."""
    tensors = {
        f"{layer}.{name}": value
        for layer, sae in zip(layers, saes, strict=True)
        for name, value in sae.state_dict().items()
    }
    settings = {layer: sae.settings() for layer, sae in zip(layers, saes, strict=True)}
    return fingerprint(tensors, settings)


def _by_layer(saes: Mapping[int, SAE] | Sequence[SAE]) -> dict[int, SAE]:
    """SAEs by layer, lowest first, once it is clear that they are SAEs and layers."""
    pairs = saes.items() if isinstance(saes, Mapping) else enumerate(saes)
    found = {}
    for layer, sae in pairs:
        if not isinstance(sae, SAE):
            raise CheckpointError(
                "SAEs must be given by layer, {2: sae, 5: sae}, as a list with one after every "
                "block but the last, or as a folder or hub name to load them from; got "
                f"{type(sae).__name__} instead of an SAE."
            )
        found[_layer_number(layer)] = sae
    return dict(sorted(found.items()))


def _layer_number(layer: Any) -> int:
    try:
        number = operator.index(layer)
    except TypeError:
        number = -1
    if number < 0 or isinstance(layer, bool):
        raise CheckpointError(f"A layer must be the number of a block, from 0, not {layer!r}.")
    return number


def _is_complete(entry: Any) -> bool:
    if not isinstance(entry, dict) or not {"layer", "file", "fingerprint"} <= entry.keys():
        return False
    layer, file = entry["layer"], entry["file"]
    return isinstance(layer, int) and isinstance(file, str) and bool(_FILE.fullmatch(file))


def _tensors(sae: SAE, dtype: torch.dtype | None) -> dict[str, Tensor]:
    tensors = {name: value.detach() for name, value in sae.state_dict().items()}
    if dtype is None:
        return tensors
    tensors = {name: value.to(dtype) for name, value in tensors.items()}
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{name} has values too large for {dtype}; store it in float32.")
    return tensors


def _load(path: Path, dtype: torch.dtype, device: torch.device | str | None) -> tuple[SAE, str]:
    """The SAE in a file, and its fingerprint there."""
    tensors, header = read_result(path, what="an SAE", format=_FORMAT, version=_VERSION)
    settings = header.get("settings")
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} is damaged: it lacks the settings of the SAE.")
    converted = {name: value.to(dtype=dtype, device=device) for name, value in tensors.items()}
    try:
        return SAE.from_tensors(converted, settings), fingerprint(tensors, settings)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _check_one_width(saes: Mapping[int, SAE], folder: Path) -> None:
    if not saes:
        raise CheckpointError(f"No SAEs for {folder}: at least one is needed.")
    widths = {layer: sae.d_model for layer, sae in saes.items()}
    if len(set(widths.values())) > 1:
        raise CheckpointError(
            f"The SAEs of {folder} have different widths, by layer {widths}; all layers of one"
            " model share its width."
        )
