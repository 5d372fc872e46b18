"""The parts of an atlas, in memory or in a folder: read when they are asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from vitlens.atlas import store
from vitlens.atlas.image_table import ImageTable
from vitlens.atlas.names import Names
from vitlens.atlas.pictures import PictureFile, Pictures, write_pictures
from vitlens.atlas.profile import Node
from vitlens.atlas.proposals import Proposal
from vitlens.atlas.state import AtlasState
from vitlens.atlas.store import Header
from vitlens.atlas.table import LayerTable
from vitlens.errors import CheckpointError, VitlensError
from vitlens.io import atomic_folder, read_json, write_json

Words = dict[Node, tuple[Proposal, ...]]


@dataclass(frozen=True)
class Contents:
    """What an atlas is made of; all but the header are functions that read it.

    Attributes
    ----------
    header
        See `store.Header`.
    table
        From a layer to its table.
    pictures
        By row of the image table.
    layout
        Places of all features in the plane.
    evolution
        Measures by layer with controls, as plain values.
    words
        Proposals from a word list.
    state
        Exact sums, for merging.
    """

    header: Header
    table: Callable[[int], LayerTable]
    pictures: Pictures
    layout: Callable[[], Float[Tensor, "N 2"] | None]
    evolution: Callable[[], Mapping[str, Any] | None]
    words: Callable[[], Words]
    state: Callable[[], AtlasState | None]


def open_folder(folder: Path) -> Contents:
    """Open an atlas; only ``atlas.json`` is read.

    Raises
    ------
    CheckpointError
        If there is no atlas, or it is not whole.
    """
    header = store.read_header(folder)
    pictures = PictureFile(folder / store.PICTURES, len(header.images))
    return Contents(
        header=header,
        table=lambda layer: store.read_layer(folder, layer, header),
        pictures=pictures,
        layout=partial(store.read_layout, folder),
        evolution=partial(_read_evolution, folder),
        words=partial(_read_words, folder),
        state=partial(_read_state, folder, pictures),
    )


def write_folder(
    path: Path, contents: Contents, names: Names, *, mergeable: bool, originals: bool
) -> None:
    """Write an atlas; a failure leaves what was there.

    Parameters
    ----------
    path
        A new or empty folder, or that of an atlas, which is replaced. Names in it are kept.
    names
        To be written with it.
    mergeable
        Write the exact sums, and exact peaks.
    originals
        Write where the original images were.

    Raises
    ------
    VitlensError
        If the folder holds other files, or names of another model's features; or cannot be
        written.
    """
    header = contents.header if originals else store.without_paths(contents.header)
    state = contents.state() if mergeable else None
    if mergeable and state is None:
        raise VitlensError("This atlas was saved without its sums, and cannot be made mergeable.")
    names = _with_those_in(path, header, names)
    with atomic_folder(path, replaces=store.files_of(path)) as folder:
        for layer in range(len(header.sizes)):
            store.write_layer(folder, layer, contents.table(layer), precise=mergeable)
        write_pictures(folder / store.PICTURES, contents.pictures)
        if (places := contents.layout()) is not None:
            store.write_layout(folder, places)
        if (evolution := contents.evolution()) is not None:
            _write_evolution(folder, evolution)
        if state is not None:
            _write_state(folder, state, originals=originals)
        store.write_header(folder, header)
        if words := contents.words():
            write_words(folder, words)
        if names.entries:
            names.save(folder / store.NAMES)


def write_words(folder: Path, words: Words) -> None:
    """Write proposals from a word list."""
    rows = [[*node, [[p.text, p.score] for p in said]] for node, said in sorted(words.items())]
    write_json(folder / store.WORDS, rows)


def _read_words(folder: Path) -> Words:
    if not (folder / store.WORDS).is_file():
        return {}
    try:
        return {
            (layer, feature): tuple(Proposal(text, score, "text") for text, score in said)
            for layer, feature, said in read_json(folder / store.WORDS)
        }
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / store.WORDS} is damaged: {error}.") from error


def _write_evolution(folder: Path, evolution: Mapping[str, Any]) -> None:
    """Write figures with six digits, which is more than they are good for."""
    short = json.loads(json.dumps(evolution), parse_float=lambda text: float(f"{float(text):.6g}"))
    (folder / store.EVOLUTION).write_text(json.dumps(short), encoding="utf-8")


def _read_evolution(folder: Path) -> Mapping[str, Any] | None:
    file = folder / store.EVOLUTION
    if not file.is_file():
        return None
    found: Mapping[str, Any] = read_json(file)
    return found


def _write_state(folder: Path, state: AtlasState, *, originals: bool) -> None:
    """Write the sums without the pictures, which have a file of their own."""
    images = {
        number: replace(image, picture=None, path=image.path if originals else "")
        for number, image in state.images.items()
    }
    replace(state, images=ImageTable(images)).save(folder / store.STATE)


def _read_state(folder: Path, pictures: Pictures) -> AtlasState | None:
    if not (folder / store.STATE).is_file():
        return None
    state = AtlasState.load(folder / store.STATE)
    if len(state.images) != len(pictures):
        raise CheckpointError(f"{folder / store.STATE} does not belong to this atlas.")
    images = {
        number: replace(image, picture=pictures.get(row))
        for row, (number, image) in enumerate(state.images.items())
    }
    return replace(state, images=ImageTable(images))


def _with_those_in(path: Path, header: Header, names: Names) -> Names:
    """The names, joined with those of the atlas that is about to be replaced."""
    old = path / store.NAMES
    if not old.is_file() or not store.is_atlas(path):
        return names
    theirs = Names(old)
    if theirs.entries and read_json(path / store.HEADER).get("model") != header.model:
        raise VitlensError(
            f"{path} holds an atlas of another model with {len(theirs)} names of its features. "
            f"Move {store.NAMES} away, or choose another folder."
        )
    theirs = Names(None, sizes=header.sizes)
    theirs.update([*Names(old).everything, *names.everything])
    return theirs
