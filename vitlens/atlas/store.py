"""An atlas as a folder: written whole or not at all, opened without reading it all.

::

    atlas.json             what it is of, how it was made, and its image table
    layer_00.safetensors   ... one a layer: what profiles are made of
    pictures.safetensors   pictures as the model sees them, if they were kept
    layout.safetensors     the map of all features
    evolution.json         measures by layer, with controls
    words.json             proposals from a word list
    state.safetensors      exact sums, for merging
    names.jsonl            people's names; all that changes after the build
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitlens.atlas.packing import Packed, unpack, unpack_bytes
from vitlens.atlas.scores import MEANING
from vitlens.atlas.table import LayerTable, ShownTable
from vitlens.errors import CheckpointError
from vitlens.io import read_json, read_result, write_tensors

HEADER = "atlas.json"
NAMES = "names.jsonl"
PICTURES = "pictures.safetensors"
LAYOUT = "layout.safetensors"
EVOLUTION = "evolution.json"
WORDS = "words.json"
STATE = "state.safetensors"

_FORMAT = "vitlens.atlas"
_VERSION = 1
_SENTENCE = ". "
_LEVELS = 255
_FEW_LEVELS = 15
_EFFECT_LEVELS = 127
# Scores that follow from the counts.
_DERIVED = ("frequency", "image_frequency")
_MEND = "Put a sound copy of this file in its place, or build the atlas anew."
_COUNTS = ("n_active", "n_images", "prefix_active", "histogram", "peak_histogram")


@dataclass(frozen=True)
class ImageRow:
    """An image of the image table.

    Attributes
    ----------
    key
        How its source named it: the path within the folder, or a number.
    path
        Where the file was, "" where there is none.
    label
        Its class, -1 without one.
    credit
        Who made it, if that must be said.
    """

    key: str
    path: str
    label: int
    credit: str


@dataclass(frozen=True)
class Header:
    """What ``atlas.json`` holds, beside the list of files.

    Attributes
    ----------
    model, network, saes
        Fingerprints: of the lens, and of its parts; see `vitlens.atlas.identity`.
    sizes
        Features of each layer.
    grid, prefix_names
        Rows and columns of patches, and the names of the tokens before them.
    class_names, labels_from
        Names of the classes, and whether labels are from "data" or "predictions".
    n_images, per_class
        Images looked at, of all and of each class.
    n_top
        Pictures kept of a feature.
    random_similarity
        Mean cosine of the embeddings of two images.
    health
        By layer, the share of variance the SAE explains; None where it is not known.
    settings
        How the pass was made.
    skipped
        Images that could not be read, and why.
    images
        The image table.
    logit_names
        Names of the model's logits; empty where they are the classes.
    """

    model: str
    network: str
    saes: tuple[str, ...]
    sizes: tuple[int, ...]
    grid: tuple[int, int]
    prefix_names: tuple[str, ...]
    class_names: tuple[str, ...]
    labels_from: str
    n_images: int
    per_class: tuple[int, ...]
    n_top: int
    random_similarity: float | None
    health: tuple[float | None, ...]
    settings: Mapping[str, Any]
    skipped: tuple[tuple[str, str], ...]
    images: tuple[ImageRow, ...]
    logit_names: tuple[str, ...] = ()

    def name_of_logit(self, index: int) -> str:
        """Name of one of the model's logits."""
        return (self.logit_names or self.class_names)[index]

    @property
    def n_tokens(self) -> int:
        """Prefix tokens and patches, T."""
        return len(self.prefix_names) + self.grid[0] * self.grid[1]


def write_header(folder: Path, header: Header) -> None:
    """Write ``atlas.json``, with the sizes of all files that are in the folder by now.

    Those that may change later are to be written afterwards.
    """
    files = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    plain = {field.name: getattr(header, field.name) for field in fields(header)}
    # Credits repeat each other's sentences: each is written once, and referred to by number.
    numbers: dict[str, int] = {}
    plain["images"] = [
        [
            row.key,
            row.path,
            row.label,
            [numbers.setdefault(part, len(numbers)) for part in row.credit.split(_SENTENCE)],
        ]
        for row in header.images
    ]
    plain["credits"] = list(numbers)
    found = {"format": _FORMAT, "version": _VERSION, **plain, "files": files}
    lines = (f"{json.dumps(key)}: {json.dumps(x, ensure_ascii=False)}" for key, x in found.items())
    (folder / HEADER).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def read_header(folder: Path) -> Header:
    """Read ``atlas.json``, and check that all files are there in full.

    A layer that is not is warned of, and `read_layer` refuses it: the other layers do not need it.

    Raises
    ------
    CheckpointError
        If there is no atlas, it is of another version, or it is not whole.
    """
    if not folder.is_dir():
        raise CheckpointError(f"There is no atlas {folder}.")
    if not (folder / HEADER).is_file():
        raise CheckpointError(
            f"{folder} holds no atlas: it has no {HEADER}. An unfinished build can be taken up "
            "again: give Atlas.build the same folder."
        )
    found = read_json(folder / HEADER)
    if not isinstance(found, dict) or found.pop("format", None) != _FORMAT:
        raise CheckpointError(f"{folder / HEADER} is not that of an atlas saved by vitlens.")
    if (version := found.pop("version", None)) != _VERSION:
        raise CheckpointError(
            f"{folder} is an atlas of format {version}; this version of vitlens reads format "
            f"{_VERSION}."
        )
    try:
        _check_files(folder, found.pop("files"), n_layers=len(found["sizes"]))
        sentences = found.pop("credits")
        found["images"] = tuple(
            ImageRow(key, path, label, _SENTENCE.join(sentences[number] for number in credit))
            for key, path, label, credit in found["images"]
        )
        found["skipped"] = tuple((key, why) for key, why in found["skipped"])
        plain: dict[str, Any] = {
            name: tuple(x) if isinstance(x, list) else x for name, x in found.items()
        }
        return Header(**plain)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / HEADER} is damaged: {error!r}.") from error


def is_atlas(folder: Path) -> bool:
    """Whether a folder holds an atlas, of whatever version, whole or not."""
    try:
        return read_json(folder / HEADER).get("format") == _FORMAT
    except (CheckpointError, AttributeError):
        return False


def files_of(folder: Path) -> set[str]:
    """Names of the files that belong to an atlas and may be replaced along with it."""
    if not is_atlas(folder):
        return set()
    return {*read_json(folder / HEADER).get("files", {}), HEADER, NAMES, WORDS}


def write_layer(folder: Path, layer: int, table: LayerTable, *, precise: bool) -> None:
    """Write what profiles of a layer need.

    Counts are exact, scores have 11 bits. If `precise`, so are the peaks of pictures; means and
    effects have 11 bits, maps and curves 8 bits below a feature's largest value. Else peaks and
    means have 8 bits, effects 7 and a sign, curves 4, and maps are rounded by at most one standard
    error of theirs, or to 4 bits.
    """
    packed = Packed()
    for name in _COUNTS:
        packed.exact(name, getattr(table, name))
    packed.half("map_error", table.map_error)
    packed.exact("effect_classes", table.effect_classes)
    if precise:
        packed.levels("mean_map", table.mean_map.T, _LEVELS)
        packed.half("class_mean", table.class_mean.T)
        packed.half("class_share", table.class_share.T)
        packed.half("effects", table.effects)
        packed.exact("top.peak", table.top.peak)
        packed.exact("sampled.peak", table.sampled.peak)
    else:
        packed.levels("mean_map", table.mean_map.T, _FEW_LEVELS, step=2 * table.map_error)
        packed.levels("class_mean", table.class_mean.T, _LEVELS)
        packed.levels("class_share", table.class_share.T, _LEVELS)
        packed.levels("effects", table.effects, _EFFECT_LEVELS)
        packed.levels("top.peak", table.top.peak, _LEVELS)
        packed.levels("sampled.peak", table.sampled.peak, _LEVELS)
    scores = {name: values for name, values in table.scores.items() if name not in _DERIVED}
    packed.half("scores", torch.stack(list(scores.values())))
    if table.curves is not None:
        packed.levels("curves", table.curves, _LEVELS if precise else _FEW_LEVELS)
    for kind in ("top", "sampled"):
        shown: ShownTable = getattr(table, kind)
        packed.exact(f"{kind}.row", shown.row)
        packed.exact(f"{kind}.token", shown.token)
        if shown.heat is not None:
            packed.exact(f"{kind}.heat", shown.heat)
    write_tensors(
        layer_path(folder, layer),
        packed.tensors,
        {
            "format": f"{_FORMAT}.layer",
            "version": _VERSION,
            "precise": precise,
            "how": packed.how,
            "scores": list(scores),
            "chance": {name: _plain(value) for name, value in table.chance.items()},
        },
    )


def read_layer(folder: Path, layer: int, header: Header) -> LayerTable:
    """Read what `write_layer` wrote into the atlas with this header.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or of another number of features.
    """
    path = layer_path(folder, layer)
    try:
        tensors, about = read_result(
            path, what="a layer of an atlas", format=f"{_FORMAT}.layer", version=_VERSION
        )
    except CheckpointError as error:
        raise CheckpointError(f"{error} {_MEND}") from error
    try:
        table = _table(tensors, about, header)
    except (CheckpointError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {str(error).rstrip('.')}. {_MEND}") from error
    if table.size != header.sizes[layer]:
        raise CheckpointError(
            f"{path} holds {table.size} features instead of {header.sizes[layer]}. {_MEND}"
        )
    return table


def layer_path(folder: Path, layer: int) -> Path:
    """The file of a layer."""
    return folder / f"layer_{layer:02}.safetensors"


def write_layout(folder: Path, places: Tensor) -> None:
    """Write the map of all features, [N, 2]."""
    packed = Packed()
    packed.half("layout", places)
    about = {"format": f"{_FORMAT}.layout", "version": _VERSION, "how": packed.how}
    write_tensors(folder / LAYOUT, packed.tensors, about)


def read_layout(folder: Path) -> Tensor | None:
    """Read what `write_layout` wrote, None if there is none."""
    if not (folder / LAYOUT).is_file():
        return None
    tensors, about = read_result(
        folder / LAYOUT, what="the map of an atlas", format=f"{_FORMAT}.layout", version=_VERSION
    )
    return unpack(tensors, about.get("how", {}), "layout")


def without_paths(header: Header) -> Header:
    """The header without saying where the originals were."""
    return replace(header, images=tuple(replace(row, path="") for row in header.images))


def _table(tensors: Mapping[str, Tensor], about: Mapping[str, Any], header: Header) -> LayerTable:
    how = about["how"]

    def get(name: str) -> Tensor:
        return unpack(tensors, how, name)

    def shown(kind: str) -> ShownTable:
        heat = f"{kind}.heat"
        return ShownTable(
            row=get(f"{kind}.row"),
            peak=get(f"{kind}.peak"),
            token=get(f"{kind}.token"),
            heat=unpack_bytes(tensors, how, heat) if heat in how else None,
        )

    scores = {
        "frequency": get("n_active") / (header.n_images * header.n_tokens),
        "image_frequency": get("n_images") / header.n_images,
    }
    scores |= dict(zip(about["scores"], get("scores"), strict=True))
    if unknown := {*scores, *about["chance"]} - set(MEANING):
        raise ValueError(f"there is no score {min(unknown)!r}")
    return LayerTable(
        **{name: get(name) for name in (*_COUNTS, "map_error", "effects", "effect_classes")},
        **{name: get(name).T for name in ("mean_map", "class_mean", "class_share")},
        scores=scores,
        chance={name: math.inf if x is None else x for name, x in about["chance"].items()},
        curves=get("curves") if "curves" in how else None,
        top=shown("top"),
        sampled=shown("sampled"),
    )


def _check_files(folder: Path, files: Mapping[str, int], *, n_layers: int) -> None:
    layers = {layer_path(folder, layer).name for layer in range(n_layers)}
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            wrong = f"{name} is missing"
        elif (found := path.stat().st_size) != size:
            wrong = f"{name} has {found} of {size} bytes"
        else:
            continue
        if name not in layers:
            raise CheckpointError(f"The atlas {folder} is not whole: {wrong}.")
        warnings.warn(
            f"The atlas {folder} is not whole: {wrong}. {_MEND} Other layers are not affected.",
            stacklevel=4,
        )


def _plain(value: float) -> float | None:
    """JSON has no infinity, which is the level where no feature is live."""
    return value if math.isfinite(value) else None
