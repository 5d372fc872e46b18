"""SAEs on disk: one safetensors file a layer and a manifest; nothing is ever pickled."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from vitlens.errors import CheckpointError
from vitlens.io import atomic_path, fingerprint, read_json, read_tensors, write_tensors
from vitlens.saes import rrm
from vitlens.saes.base import check_widths
from vitlens.saes.topk import TopKSAE

MANIFEST = "manifest.json"
_SAE_FORMAT = "vitlens-sae"
_FOLDER_FORMAT = "vitlens-saes"
_NAMES = {"W_enc", "W_dec", "b_dec"}


def save_sae(
    sae: TopKSAE,
    path: str | Path,
    metadata: Mapping[str, Any] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write one SAE to a safetensors file.

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
    header = {"format": _SAE_FORMAT, "k": sae.k, "metadata": dict(metadata or {})}
    write_tensors(path, _weights(sae, dtype), header)


def load_sae(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> TopKSAE:
    """Read one SAE that `save_sae` wrote.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, a pickle, or holds no SAE.
    """
    return _load(Path(path), dtype, device)[0]


def save_saes(
    saes: Sequence[TopKSAE],
    folder: str | Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the SAEs of layers 0, 1, ... to a folder.

    The folder gets ``manifest.json`` and one ``layer_00.safetensors`` a layer. Everything is
    written under temporary names first: when that fails, SAEs already there are left as they were.

    Parameters
    ----------
    saes
        One a layer, all of one width.
    folder
        Made when it is missing.
    metadata
        Anything JSON can hold, kept in the manifest.
    dtype
        On disk, for instance ``torch.float16``; each SAE's own by default.

    Raises
    ------
    CheckpointError
        If there are no SAEs, their widths differ, or a weight overflows in `dtype`.
    VitlensError
        If a file cannot be written.
    """
    folder = Path(folder)
    _check_widths([sae.d_model for sae in saes], folder)
    layers = []
    with ExitStack() as stack:
        # Renames run in reverse order, so that the manifest appears when its files are there.
        manifest = stack.enter_context(atomic_path(folder / MANIFEST))
        for layer, sae in enumerate(saes):
            name = f"layer_{layer:02d}.safetensors"
            save_sae(sae, stack.enter_context(atomic_path(folder / name)), dtype=dtype)
            layers.append(
                {
                    "file": name,
                    "layer": layer,
                    "size": sae.n_features,
                    "k": sae.k,
                    "fingerprint": fingerprint(_weights(sae, dtype)),
                }
            )
        content = {
            "format": _FOLDER_FORMAT,
            "width": saes[0].d_model,
            "layers": layers,
            "metadata": dict(metadata or {}),
        }
        manifest.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_saes(
    folder_or_hub_name: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> list[TopKSAE]:
    """Read the SAEs of a model, layer 0 first.

    Parameters
    ----------
    folder_or_hub_name
        A folder that `save_saes` or `train_saes` wrote, a folder in the layout of the RRM release
        (see `vitlens.saes.rrm`), or the name of a repository on the Hugging Face hub.
    dtype, device
        Of the SAEs.

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
        return rrm.load_rrm(folder, model=model, dtype=dtype, device=device)
    saes = []
    for entry in read_manifest(folder)["layers"]:
        sae, found = _load(folder / entry["file"], dtype, device)
        if found != entry["fingerprint"]:
            raise CheckpointError(
                f"{folder / entry['file']} is not the file that {MANIFEST} lists: its fingerprint"
                f" is {found}, not {entry['fingerprint']}. Copy the whole folder anew."
            )
        saes.append(sae)
    _check_widths([sae.d_model for sae in saes], folder)
    return saes


def resolve_saes(
    saes: Iterable[TopKSAE] | TopKSAE | str | Path, *, depth: int, width: int
) -> tuple[TopKSAE, ...]:
    """Return the SAEs of a model, given or loaded, and checked.

    Parameters
    ----------
    saes
        One a layer; or a folder or hub name, as for `load_saes`.
    depth, width
        Number of blocks and of channels of the model.

    Raises
    ------
    CheckpointError
        If they cannot be loaded, or there is not one of the width for every block but the last.
    """
    if isinstance(saes, str | Path):
        saes = load_saes(saes)
    found = tuple(saes) if isinstance(saes, Iterable) else (saes,)
    for sae in found:
        if not isinstance(sae, TopKSAE):
            raise CheckpointError(
                "SAEs are a list of `TopKSAE`, one after every block but the last, or a folder or"
                f" hub name to load them from; got {type(sae).__name__}."
            )
    check_count(found, depth=depth)
    check_widths(found, range(len(found)), d_model=width)
    return found


def check_count(saes: Sequence[TopKSAE], *, depth: int) -> None:
    """Raise `CheckpointError` unless there is one SAE for every block but the last."""
    if len(saes) != depth - 1:
        raise CheckpointError(
            f"The model has {depth} blocks and so {depth - 1} SAEs, one after every block but the"
            f" last; got {len(saes)}."
        )


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read ``manifest.json`` of a folder of SAEs.

    Returns
    -------
    dict
        "width", "layers" (each with "file", "layer", "size", "k", "fingerprint"), "metadata".

    Raises
    ------
    CheckpointError
        If it is missing, damaged, or of another kind.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{folder} holds no SAEs: expected {MANIFEST} with layer_00.safetensors and so on,"
            f" or files of the RRM release, {rrm.LAYOUT}."
        )
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != _FOLDER_FORMAT:
        raise CheckpointError(f"{path} is not a manifest of SAEs.")
    layers = manifest.get("layers")
    good = isinstance(layers, list) and all(
        isinstance(entry, dict) and {"file", "fingerprint"} <= entry.keys() for entry in layers
    )
    if not (good and layers and isinstance(manifest.get("metadata"), dict)):
        raise CheckpointError(f"{path} is damaged: its list of layers is not complete.")
    return manifest


def _weights(sae: TopKSAE, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    weights = {name: value.detach() for name, value in sae.state_dict().items()}
    if dtype is None:
        return weights
    weights = {name: value.to(dtype) for name, value in weights.items()}
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{name} has values too large for {dtype}; store it in float32.")
    return weights


def _load(path: Path, dtype: torch.dtype, device: torch.device | str | None) -> tuple[TopKSAE, str]:
    tensors, header = read_tensors(path)
    if header.get("format") != _SAE_FORMAT or tensors.keys() != _NAMES or "k" not in header:
        raise CheckpointError(
            f"{path} is not an SAE of vitlens: expected W_enc, W_dec, b_dec and k, found"
            f" {', '.join(sorted(tensors)) or 'no tensors'}."
        )
    weights = {name: value.to(dtype=dtype, device=device) for name, value in tensors.items()}
    try:
        return TopKSAE.from_weights(**weights, k=header["k"]), fingerprint(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _check_widths(widths: list[int], folder: Path) -> None:
    if not widths:
        raise CheckpointError(f"No SAEs for {folder}: at least one is needed.")
    if len(set(widths)) > 1:
        raise CheckpointError(
            f"The SAEs of {folder} have different widths, layer by layer {widths}; all layers of"
            " one model share its width."
        )
