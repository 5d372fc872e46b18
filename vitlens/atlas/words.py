"""Proposals from a word list for all features of an atlas."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image

from vitlens.atlas.contents import Words
from vitlens.atlas.proposals import TextTower, cut_out, from_words
from vitlens.atlas.shown import Gallery
from vitlens.atlas.table import LayerTable


def word_proposals(
    table: Callable[[int], LayerTable],
    gallery: Gallery,
    words: Sequence[str],
    text: TextTower,
    *,
    n: int,
    n_pictures: int,
    patches: int | None,
) -> Words:
    """Propose words for every feature that has pictures; see `Atlas.propose`."""
    header = gallery.header
    found: Words = {}
    for layer in range(len(header.sizes)):
        top = table(layer).top
        seen: dict[tuple[int, int], int] = {}
        pictures: list[Image.Image] = []
        rows = torch.full_like(top.row[:, :n_pictures], -1)
        for feature, place in (top.row[:, :n_pictures] >= 0).nonzero().tolist():
            row = int(top.row[feature, place])
            token = -1 if patches is None else int(top.token[feature, place])
            if (row, token) not in seen:
                picture = gallery.picture(row)
                if picture is None:
                    continue
                if patches is not None:
                    picture = cut_out(
                        picture,
                        token,
                        grid=header.grid,
                        n_prefix=len(header.prefix_names),
                        patches=patches,
                    )
                seen[row, token] = len(pictures)
                pictures.append(picture)
            rows[feature, place] = seen[row, token]
        if pictures:
            said = from_words(words, pictures, rows, text, n=n)
            found |= {(layer, feature): given for feature, given in enumerate(said) if given}
    return found
