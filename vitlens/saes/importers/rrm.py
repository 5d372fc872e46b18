"""The checkpoints that the authors of the RRM paper released: layout, sizes, import.

Kim et al., NeurIPS 2025, arXiv 2509.17401. All that is known of the release is in `RELEASES` and
`LAYOUT`; if the release changes, change them.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from vitlens.errors import CheckpointError, NetworkError, near_matches
from vitlens.saes.topk import TopKSAE


@dataclass(frozen=True)
class Release:
    """SAEs of one model: repository on the hub; K and R = F / D of each layer from 0 on."""

    hub_name: str
    k: tuple[int, ...]
    ratio: tuple[float, ...]


RELEASES = {
    "vit_base_patch16_224": Release(
        "timespt/topksae-vit-base-patch16-224",
        k=(4, 32, 64, 96, 96, 128, 128, 160, 160, 160, 128),
        ratio=(0.25, 0.5, 1, 2, 2, 2, 4, 4, 4, 4, 2),
    ),
    "dinov2_vitb14_reg_lc": Release(
        "timespt/topksae-dinov2-vitb14-reg-lc",
        k=(4, 16, 32, 32, 64, 96, 128, 128, 128, 160, 160),
        ratio=(0.25, 0.25, 0.5, 2, 2, 2, 2, 2, 2, 2, 2),
    ),
    "clip_vit_base_patch16": Release(
        "timespt/topksae-clip-vit-base-patch16",
        k=(64, 64, 96, 96, 128, 128, 128, 128, 160, 160, 160),
        ratio=(0.5, 0.5, 1, 2, 2, 2, 2, 2, 2, 2, 2),
    ),
}
LAYOUT = "K{K}_R{R}/L{layer}/epoch{n}.pth"
_FILE = re.compile(r"K(\d+)_R(\d+(?:\.\d+)?)/L(\d+)/epoch(\d+)\.pth")
_OURS = re.compile(r"manifest\.json|layer_\d+\.safetensors")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class _File:
    path: str
    k: int
    ratio: float
    layer: int
    epoch: int


def load_rrm(
    folder_or_hub_name: str | Path,
    *,
    model: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> dict[int, TopKSAE]:
    """Read SAEs in the layout of the RRM release, ``K{K}_R{R}/L{layer}/epoch{n}.pth``.

    Of several epochs the last is read. The files hold ``b_enc``, which is not used, as in the
    published encoder.

    Parameters
    ----------
    folder_or_hub_name
        A local folder, or a repository on the Hugging Face hub.
    model
        A key of `RELEASES`: which (K, R) to take at each layer. Needed only where a folder has
        several for one layer; the release's own hub names imply it.
    dtype, device
        Dtype and device of the SAEs.

    Returns
    -------
    dict of int to TopKSAE
        By layer, the lowest first; all 11 for a known model, else those that are there.

    Raises
    ------
    CheckpointError
        If the layout is another one, a layer of a known model is missing, or a file is damaged,
        foreign, or holds code (files are only ever read with ``weights_only=True``).
    NetworkError
        If the hub cannot be reached.
    """
    model = model or model_of(str(folder_or_hub_name))
    folder = local_folder(folder_or_hub_name)
    files = _choose(_paths_in(folder), _release(model), str(folder))
    saes = {file.layer: _load_file(folder / file.path, file, dtype, device) for file in files}
    widths = {layer: sae.d_model for layer, sae in saes.items()}
    if len(set(widths.values())) > 1:
        raise CheckpointError(f"The SAEs in {folder} have different widths, by layer: {widths}.")
    return saes


def has_layout(folder: Path) -> bool:
    """Whether a local folder has files in the layout of the release."""
    return any(_parse(path) for path in _paths_in(folder))


def model_of(name: str) -> str | None:
    """Key of `RELEASES` that a hub name or a folder of the same last name belongs to."""
    last = PurePosixPath(name.replace("\\", "/")).name
    for model, release in RELEASES.items():
        if last in (model, PurePosixPath(release.hub_name).name):
            return model
    return None


def local_folder(folder_or_hub_name: str | Path) -> Path:
    """A folder as it is; a hub name downloaded (only the files that are needed).

    Raises
    ------
    CheckpointError
        If it is not a folder and cannot be a hub name.
    NetworkError
        If the hub cannot be reached.
    """
    folder, name = Path(folder_or_hub_name), str(folder_or_hub_name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{folder} is a file; SAEs are a folder with one file per layer.")
    if isinstance(folder_or_hub_name, Path) or not _HUB_NAME.fullmatch(name):
        raise CheckpointError(f"There is no folder {name}, and it cannot be a name on the hub.")
    return _download(name)


def _download(name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download, list_repo_files, snapshot_download
        from huggingface_hub.errors import RepositoryNotFoundError
    except ImportError:
        raise NetworkError(
            f"There is no local folder {name!r}, and reading from the Hugging Face hub needs"
            " huggingface_hub: `pip install 'vitlens[hub]'`, or pass a local folder."
        ) from None
    try:
        wanted = _wanted(list_repo_files(name), name)
        fetched = [Path(hf_hub_download(name, path)) for path in wanted]
        return fetched[0].parents[len(PurePosixPath(wanted[0]).parts) - 1]
    except CheckpointError:
        raise
    except RepositoryNotFoundError as error:
        known = [release.hub_name for release in RELEASES.values()]
        raise CheckpointError(
            f"There is neither a folder nor a public hub repository {name!r}."
            f"{near_matches(name, known)}"
        ) from error
    except Exception as error:  # which one depends on the client's version and HTTP library
        try:
            return Path(snapshot_download(name, local_files_only=True))
        except Exception:  # not in the local cache either
            raise NetworkError(
                f"There is no local folder {name!r}, and the Hugging Face hub cannot be reached"
                f" ({type(error).__name__}). Download the files elsewhere and pass a local folder."
            ) from error


def _wanted(listed: list[str], name: str) -> list[str]:
    """Files of a hub repository to download: in our own layout, or else in the release's."""
    ours = [path for path in listed if _OURS.fullmatch(path)]
    return ours or [file.path for file in _choose(listed, _release(model_of(name)), name)]


def _release(model: str | None) -> Release | None:
    if model is None:
        return None
    if model not in RELEASES:
        raise CheckpointError(
            f"No released SAEs are known for {model!r}; known are {', '.join(RELEASES)}."
            f"{near_matches(model, RELEASES)}"
        )
    return RELEASES[model]


def _paths_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*/*"))


def _parse(path: str) -> _File | None:
    match = _FILE.fullmatch(path)
    if match is None:
        return None
    k, ratio, layer, epoch = match.groups()
    return _File(path, int(k), float(ratio), int(layer), int(epoch))


def _choose(paths: Iterable[str], release: Release | None, where: str) -> list[_File]:
    """Last epoch of each layer's (K, R), layer 0 first."""
    files = sorted((file for path in paths if (file := _parse(path))), key=lambda file: file.epoch)
    if not files:
        raise CheckpointError(
            f"{where} has no files in the layout of the RRM release: expected {LAYOUT},"
            " for instance K64_R1.0/L2/epoch50.pth."
        )
    if release is not None:
        wanted = list(enumerate(zip(release.k, release.ratio, strict=True)))
        last = {(file.layer, (file.k, file.ratio)): file for file in files}
        missing = [
            f"K{k}_R{float(ratio)}/L{layer}"
            for layer, (k, ratio) in wanted
            if (layer, (k, ratio)) not in last
        ]
        if missing:
            raise CheckpointError(f"{where} lacks {', '.join(missing)} of the RRM release.")
        return [last[key] for key in wanted]
    chosen = {file.layer: file for file in files}
    for file in files:
        other = chosen[file.layer]
        if (other.k, other.ratio) != (file.k, file.ratio):
            raise CheckpointError(
                f"{where} has several SAEs for layer {file.layer}, {other.path} and {file.path}."
                f" Choose with model=, one of {', '.join(RELEASES)}."
            )
    return [chosen[layer] for layer in sorted(chosen)]


def _load_file(
    path: Path, file: _File, dtype: torch.dtype, device: torch.device | str | None
) -> TopKSAE:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or holds Python objects other than tensors, which could run any"
            " code and are not loaded. Expected a checkpoint of the RRM release."
        ) from error
    except Exception as error:  # on foreign bytes the unpickler raises nearly anything
        raise CheckpointError(f"{path} is damaged or not a torch file: {error}.") from error
    weights = content.get("model_state_dict") if isinstance(content, dict) else None
    names = ("W_enc", "W_dec", "b_dec")
    if not isinstance(weights, dict) or not all(
        isinstance(weights.get(name), torch.Tensor) for name in names
    ):
        raise CheckpointError(
            f"{path} is not a checkpoint of the RRM release: expected 'model_state_dict' with"
            " W_enc, W_dec, b_dec (and b_enc, which is not used)."
        )
    try:
        sae = TopKSAE.from_weights(
            **{name: weights[name].to(dtype=dtype, device=device) for name in names}, k=file.k
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if sae.n_features != round(file.ratio * sae.d_model):
        raise CheckpointError(
            f"{path} has {sae.n_features} features at width {sae.d_model}, but its folder says "
            f"R{file.ratio}, which is {round(file.ratio * sae.d_model)}."
        )
    return sae
