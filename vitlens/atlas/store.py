"""The contents of an atlas, in memory or as a folder.

A folder is written whole or not at all, and opened without reading all of it::

    atlas.json               the model, the settings of the pass, and the image table
    layer_00.safetensors     ... one per layer, by block number: the tables of profiles
    thumbnails.safetensors   thumbnails of the images as the model sees them, if they were kept
    layout.safetensors       the map of all features
    evolution.json           scores by layer, with controls
    words.json               proposals from a word list
    state.safetensors        exact sums, for merging
    names.jsonl              people's names; all that changes after the build
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vitlens.atlas.image_store import ImageTable, ThumbnailFile, Thumbnails, write_thumbnails
from vitlens.atlas.names import Names
from vitlens.atlas.packing import Packed, unpack, unpack_bytes
from vitlens.atlas.proposals import Proposal
from vitlens.atlas.scores import MEANING
from vitlens.atlas.state import AtlasState
from vitlens.errors import CheckpointError, FeatureError, VitlensError
from vitlens.io import atomic_folder, fingerprint, read_json, read_result, write_json, write_tensors
from vitlens.saes.base import FeatureId

if TYPE_CHECKING:
    from vitlens.lens import Lens


HEADER = "atlas.json"
NAMES = "names.jsonl"
THUMBNAILS = "thumbnails.safetensors"
LAYOUT = "layout.safetensors"
EVOLUTION = "evolution.json"
WORDS = "words.json"
STATE = "state.safetensors"

_FORMAT = "vitlens.atlas.header"
_LAYER_FORMAT = "vitlens.atlas.layer"
_LAYOUT_FORMAT = "vitlens.atlas.layout"
_VERSION = 2
_PART_VERSION = 1  # of the files of layers and of the map
_SENTENCE = ". "
_LEVELS = 255
_FEW_LEVELS = 15
_EFFECT_LEVELS = 127
# Scores that follow from the counts.
_DERIVED = ("frequency", "image_frequency")
_REPAIR = "Replace this file with an intact copy, or build the atlas again."
_COUNTS = ("n_active", "n_images", "prefix_active", "histogram", "peak_histogram")

Words = dict[FeatureId, tuple[Proposal, ...]]


@dataclass(frozen=True)
class FeatureImages:
    """Images of every feature of a layer.

    Attributes
    ----------
    row
        Row of the atlas's image table, int64 [F, n]; -1 where there is none.
    peak
        The feature's largest activation in the image, float32 [F, n].
    token
        Token of the peak, int64 [F, n].
    heatmap
        Activations in 255ths of the peak, [F, n, T]; None when they are not kept.
    """

    row: Int[Tensor, "F n"]
    peak: Float[Tensor, "F n"]
    token: Int[Tensor, "F n"]
    heatmap: UInt8[Tensor, "F n T"] | None


@dataclass(frozen=True)
class LayerTable:
    """The data of all features of one layer, on the CPU: profiles are made from it.

    Attributes
    ----------
    n_active, n_images
        Tokens and images in which a feature is active, [F].
    prefix_active
        Active tokens at each prefix token, [n_prefix, F].
    histogram, peak_histogram
        Active tokens by activation, and images by peak, [F, BINS].
    mean_map
        Mean activation by position, [T, F].
    map_error
        Standard error of these means, over patch tokens, [F].
    class_mean, class_share
        Mean activation by class, and share of the class's images in which the feature is
        active, [C, F].
    effects, effect_classes
        Logit lens: the largest and smallest effects of each feature and their classes, [F, m],
        best first.
    scores
        Measures by name, [F] each.
    chance
        Their 99 % levels on shuffled data.
    curves
        Tuning curves, [F, points]; None when there were no stimuli.
    top, sampled
        The strongest images, and a uniform sample of those in which the feature is active.
    """

    n_active: Int[Tensor, " F"]
    n_images: Int[Tensor, " F"]
    prefix_active: Int[Tensor, "prefix F"]
    histogram: Int[Tensor, "F bins"]
    peak_histogram: Int[Tensor, "F bins"]
    mean_map: Float[Tensor, "T F"]
    map_error: Float[Tensor, " F"]
    class_mean: Float[Tensor, "C F"]
    class_share: Float[Tensor, "C F"]
    effects: Float[Tensor, "F m"]
    effect_classes: Int[Tensor, "F m"]
    scores: Mapping[str, Float[Tensor, " F"]]
    chance: Mapping[str, float]
    curves: Float[Tensor, "F points"] | None
    top: FeatureImages
    sampled: FeatureImages

    @property
    def n_features(self) -> int:
        """F."""
        return len(self.n_active)


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
        Author and licence, if attribution is required.
    """

    key: str
    path: str
    label: int
    credit: str


@dataclass(frozen=True)
class Header:
    """The contents of ``atlas.json``, except the list of files.

    Attributes
    ----------
    model, network, saes
        Fingerprints of the lens, of its network and of its SAEs.
    layers, sizes
        Block number of each layer with an SAE, in order, and its number of features.
    grid, prefix_names
        Rows and columns of patches, and the names of the tokens before them.
    class_names, labels_from
        Names of the classes, and whether labels are from "data" or "predictions".
    n_images, per_class
        Images counted, in total and per class.
    n_top
        Top images kept per feature.
    random_similarity
        Mean cosine of the embeddings of two images.
    health
        By layer, the share of variance that the SAE explains; None where it is not known.
    settings
        How the pass was made.
    skipped
        Images that could not be read, and the reasons.
    images
        The image table.
    logit_names
        Names of the model's logits; empty if they are the classes.
    """

    model: str
    network: str
    saes: tuple[str, ...]
    layers: tuple[int, ...]
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

    def position(self, layer: int) -> int:
        """Position of a layer in `layers`.

        Raises
        ------
        FeatureError
            If the atlas does not have this layer.
        """
        if layer not in self.layers:
            known = ", ".join(map(str, self.layers))
            raise FeatureError(f"The atlas has the layers {known}; there is no layer {layer}.")
        return self.layers.index(layer)

    @property
    def n_features(self) -> dict[int, int]:
        """Number of features by layer."""
        return dict(zip(self.layers, self.sizes, strict=True))

    def name_of_logit(self, index: int) -> str:
        """Name of one of the model's logits."""
        return (self.logit_names or self.class_names)[index]

    @property
    def n_tokens(self) -> int:
        """Prefix tokens and patches, T."""
        return len(self.prefix_names) + self.grid[0] * self.grid[1]


def write_header(folder: Path, header: Header) -> None:
    """Write ``atlas.json``, with the sizes of all files already in the folder.

    Files that may change later must be written afterwards.
    """
    files = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    plain = {field.name: getattr(header, field.name) for field in fields(header)}
    # Credits share sentences: each is written once and referred to by number.
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

    A damaged layer gives a warning, and `read_layer` refuses it; the other layers do not need it.

    Raises
    ------
    CheckpointError
        If there is no atlas, it is of another version, or it is incomplete.
    """
    if not folder.is_dir():
        raise CheckpointError(f"There is no atlas {folder}.")
    if not (folder / HEADER).is_file():
        raise CheckpointError(
            f"{folder} holds no atlas: it has no {HEADER}. To resume an unfinished build, "
            "give Atlas.build the same folder."
        )
    found = read_json(folder / HEADER)
    if not isinstance(found, dict) or found.pop("format", None) != _FORMAT:
        raise CheckpointError(f"{folder / HEADER} is not from an atlas saved by vitlens.")
    if (version := found.pop("version", None)) != _VERSION:
        raise CheckpointError(
            f"{folder} is an atlas of format {version}; this version of vitlens reads format "
            f"{_VERSION}."
        )
    try:
        _check_files(folder, found.pop("files"), layers=found["layers"])
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
    """Whether a folder holds an atlas of any version, complete or not."""
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
    """Write the table of a layer.

    Counts are exact, scores have 11 bits. If `precise`, peaks are exact, too; means and effects
    have 11 bits, maps and curves 8 bits below a feature's largest value. Otherwise peaks and means
    have 8 bits, effects 7 and a sign, curves 4, and maps are rounded by at most one standard error,
    or to 4 bits.
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
        images: FeatureImages = getattr(table, kind)
        packed.exact(f"{kind}.row", images.row)
        packed.exact(f"{kind}.token", images.token)
        if images.heatmap is not None:
            packed.exact(f"{kind}.heatmap", images.heatmap)
    write_tensors(
        layer_path(folder, layer),
        packed.tensors,
        {
            "format": _LAYER_FORMAT,
            "version": _PART_VERSION,
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
            path, what="a layer of an atlas", format=_LAYER_FORMAT, version=_PART_VERSION
        )
    except CheckpointError as error:
        raise CheckpointError(f"{error} {_REPAIR}") from error
    try:
        table = _table(tensors, about, header)
    except (CheckpointError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {str(error).rstrip('.')}. {_REPAIR}") from error
    if table.n_features != header.n_features[layer]:
        raise CheckpointError(
            f"{path} holds {table.n_features} features instead of {header.n_features[layer]}. "
            f"{_REPAIR}"
        )
    return table


def layer_path(folder: Path, layer: int) -> Path:
    """The file of a layer, by the number of its block."""
    return folder / f"layer_{layer:02}.safetensors"


def write_layout(folder: Path, layout: Tensor) -> None:
    """Write the map of all features, [N, 2]."""
    packed = Packed()
    packed.half("layout", layout)
    about = {"format": _LAYOUT_FORMAT, "version": _PART_VERSION, "how": packed.how}
    write_tensors(folder / LAYOUT, packed.tensors, about)


def read_layout(folder: Path) -> Tensor | None:
    """Read what `write_layout` wrote, None if there is none."""
    if not (folder / LAYOUT).is_file():
        return None
    tensors, about = read_result(
        folder / LAYOUT,
        what="the map of an atlas",
        format=_LAYOUT_FORMAT,
        version=_PART_VERSION,
    )
    return unpack(tensors, about.get("how", {}), "layout")


def without_paths(header: Header) -> Header:
    """The header without the paths of the originals."""
    return replace(header, images=tuple(replace(row, path="") for row in header.images))


def _table(tensors: Mapping[str, Tensor], about: Mapping[str, Any], header: Header) -> LayerTable:
    how = about["how"]

    def get(name: str) -> Tensor:
        return unpack(tensors, how, name)

    def images(kind: str) -> FeatureImages:
        heatmap = f"{kind}.heatmap"
        return FeatureImages(
            row=get(f"{kind}.row"),
            peak=get(f"{kind}.peak"),
            token=get(f"{kind}.token"),
            heatmap=unpack_bytes(tensors, how, heatmap) if heatmap in how else None,
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
        top=images("top"),
        sampled=images("sampled"),
    )


def _check_files(folder: Path, files: Mapping[str, int], *, layers: Sequence[int]) -> None:
    of_layers = {layer_path(folder, layer).name for layer in layers}
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            wrong = f"{name} is missing"
        elif (found := path.stat().st_size) != size:
            wrong = f"{name} has {found} of {size} bytes"
        else:
            continue
        if name not in of_layers:
            raise CheckpointError(f"The atlas {folder} is incomplete: {wrong}.")
        warnings.warn(
            f"The atlas {folder} is incomplete: {wrong}. {_REPAIR} Other layers are not affected.",
            stacklevel=4,
        )


def _plain(value: float) -> float | None:
    """JSON has no infinity, which is the level where no feature is live."""
    return value if math.isfinite(value) else None


def network_fingerprint(lens: Lens) -> str:
    """Hash of the network's weights in float32, so that a lens in float64 is the same."""
    weights = lens.vision.module.state_dict()
    return fingerprint({name: w.float() for name, w in weights.items()})


def sae_fingerprints(lens: Lens) -> tuple[str, ...]:
    """Hash of each SAE's kind, settings and weights in float32."""
    return tuple(
        fingerprint({name: w.float() for name, w in sae.state_dict().items()}, sae.settings())
        for sae in lens.saes
    )


def check_lens(header: Header, lens: Lens, what: str) -> None:
    """Check that an atlas was made with the model and the SAEs of a lens.

    Raises
    ------
    CheckpointError
        If not; the message says which part differs.
    """
    if header.model == lens.fingerprint:
        return
    if header.layers != lens.layers:
        raise CheckpointError(
            f"{what} is of SAEs after blocks {_listed(header.layers)}, but this lens has SAEs "
            f"after blocks {_listed(lens.layers)}."
        )
    sizes = tuple(sae.n_features for sae in lens.saes)
    if header.sizes != sizes:
        raise CheckpointError(
            f"{what} is of another model: its layers have {_listed(header.sizes)} features, but "
            f"those of this lens have {_listed(sizes)}."
        )
    if header.network != network_fingerprint(lens):
        raise CheckpointError(
            f"{what} is of another model: the network's weights are not those of this lens. "
            "Load the model it was built with, or build an atlas of this model."
        )
    triples = zip(header.layers, header.saes, sae_fingerprints(lens), strict=True)
    others = [layer for layer, theirs, ours in triples if theirs != ours]
    if others:
        raise CheckpointError(
            f"{what} is of this network with other SAEs: those of layer {_listed(others)} differ. "
            "Load the SAEs it was built with, or build an atlas with these."
        )


def _listed(numbers: tuple[int, ...] | list[int]) -> str:
    return ", ".join(map(str, numbers))


@dataclass(frozen=True)
class Contents:
    """The parts of an atlas; all but the header are read on demand.

    Attributes
    ----------
    header
        See `Header`.
    table
        From a layer (the number of its block) to its table.
    thumbnails
        Thumbnails by row of the image table.
    layout
        Positions of all features in the plane, layer by layer.
    evolution
        Scores by layer with controls, as plain values.
    words
        Proposals from a word list.
    state
        Exact sums, for merging.
    """

    header: Header
    table: Callable[[int], LayerTable]
    thumbnails: Thumbnails
    layout: Callable[[], Float[Tensor, "N 2"] | None]
    evolution: Callable[[], Mapping[str, Any] | None]
    words: Callable[[], Words]
    state: Callable[[], AtlasState | None]


def open_folder(folder: Path) -> Contents:
    """Open an atlas; only ``atlas.json`` is read.

    Raises
    ------
    CheckpointError
        If there is no atlas, or it is incomplete.
    """
    header = read_header(folder)
    thumbnails = ThumbnailFile(folder / THUMBNAILS, len(header.images))
    return Contents(
        header=header,
        table=lambda layer: read_layer(folder, layer, header),
        thumbnails=thumbnails,
        layout=partial(read_layout, folder),
        evolution=partial(_read_evolution, folder),
        words=partial(_read_words, folder),
        state=partial(_read_state, folder, thumbnails),
    )


def write_folder(
    path: Path, contents: Contents, names: Names, *, mergeable: bool, originals: bool
) -> None:
    """Write an atlas; a failure leaves the folder as it was.

    Parameters
    ----------
    path
        A new or empty folder, or that of an atlas, which is replaced. Names in it are kept.
    names
        Names to write with it.
    mergeable
        Write the exact sums, and exact peaks.
    originals
        Write the paths of the original images.

    Raises
    ------
    VitlensError
        If the folder holds other files, or names of another model's features; or cannot be
        written.
    """
    header = contents.header if originals else without_paths(contents.header)
    state = contents.state() if mergeable else None
    if mergeable and state is None:
        raise VitlensError("This atlas was saved without its sums, so it cannot be made mergeable.")
    names = _with_existing_names(path, header, names)
    with atomic_folder(path, replaces=files_of(path)) as folder:
        for layer in header.layers:
            write_layer(folder, layer, contents.table(layer), precise=mergeable)
        write_thumbnails(folder / THUMBNAILS, contents.thumbnails)
        if (layout := contents.layout()) is not None:
            write_layout(folder, layout)
        if (evolution := contents.evolution()) is not None:
            _write_evolution(folder, evolution)
        if state is not None:
            _write_state(folder, state, originals=originals)
        write_header(folder, header)
        if words := contents.words():
            write_words(folder, words)
        if names.entries:
            names.save(folder / NAMES)


def write_words(folder: Path, words: Words) -> None:
    """Write proposals from a word list."""
    rows = [
        [*node, [[p.text, p.score] for p in proposals]] for node, proposals in sorted(words.items())
    ]
    write_json(folder / WORDS, rows)


def _read_words(folder: Path) -> Words:
    if not (folder / WORDS).is_file():
        return {}
    try:
        return {
            (layer, feature): tuple(Proposal(text, score, "text") for text, score in proposals)
            for layer, feature, proposals in read_json(folder / WORDS)
        }
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / WORDS} is damaged: {error}.") from error


def _write_evolution(folder: Path, evolution: Mapping[str, Any]) -> None:
    """Write numbers with six digits, which is more than their precision."""
    short = json.loads(json.dumps(evolution), parse_float=lambda text: float(f"{float(text):.6g}"))
    (folder / EVOLUTION).write_text(json.dumps(short), encoding="utf-8")


def _read_evolution(folder: Path) -> Mapping[str, Any] | None:
    file = folder / EVOLUTION
    if not file.is_file():
        return None
    found: Mapping[str, Any] = read_json(file)
    return found


def _write_state(folder: Path, state: AtlasState, *, originals: bool) -> None:
    """Write the sums without the thumbnails, which have a file of their own."""
    images = {
        number: replace(image, thumbnail=None, path=image.path if originals else "")
        for number, image in state.images.items()
    }
    replace(state, images=ImageTable(images)).save(folder / STATE)


def _read_state(folder: Path, thumbnails: Thumbnails) -> AtlasState | None:
    if not (folder / STATE).is_file():
        return None
    state = AtlasState.load(folder / STATE)
    if len(state.images) != len(thumbnails):
        raise CheckpointError(f"{folder / STATE} does not belong to this atlas.")
    images = {
        number: replace(image, thumbnail=thumbnails.get(row))
        for row, (number, image) in enumerate(state.images.items())
    }
    return replace(state, images=ImageTable(images))


def _with_existing_names(path: Path, header: Header, names: Names) -> Names:
    """The names, joined with those of the atlas that will be replaced."""
    old = path / NAMES
    if not old.is_file() or not is_atlas(path):
        return names
    theirs = Names(old)
    if theirs.entries and read_json(path / HEADER).get("model") != header.model:
        raise VitlensError(
            f"{path} holds an atlas of another model with {len(theirs)} names of its features. "
            f"Move {NAMES} away, or choose another folder."
        )
    theirs = Names(None, n_features=header.n_features)
    theirs.update([*Names(old).everything, *names.everything])
    return theirs
