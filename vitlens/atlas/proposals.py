"""Names that a program proposes for features: from classes, and from a word list.

Naming by the words nearest to what a feature shows, in the space that pictures and words share,
follows Oikarinen and Weng, "CLIP-Dissect" (arXiv 2204.10965).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from vitlens.errors import ModelError

#: Words -> [n, E], and pictures -> [n, E], in one space.
EncodeText = Callable[[list[str]], Tensor]
EncodeImages = Callable[[list[Image.Image]], Tensor]
TextTower = tuple[EncodeText, EncodeImages]

_BATCH = 32


@dataclass(frozen=True)
class Proposal:
    """A computed name.

    Attributes
    ----------
    text
        A class or a word.
    score
        For "class", how much the class explains (`class_information`). For "text", by how much
        the word's cosine to the feature's pictures exceeds its mean cosine to all features'.
    source
        "class" or "text".
    """

    text: str
    score: float
    source: str


def from_class(
    names: Sequence[str],
    means: Float[Tensor, " C"],
    n_images: Sequence[int],
    *,
    information: float,
    chance: float,
) -> tuple[Proposal, ...]:
    """Propose the class in which a feature is most active, if it stands out.

    It does when the class explains more of the feature's variance than chance does, and the mean
    of the best class is at least twice that of the next.

    Parameters
    ----------
    names, means, n_images
        Of each class: its name, the mean activation, and how many images there were.
    information
        Score "class_information" of the feature, NaN where it was not measured.
    chance
        Its 99 % level of shuffled labels; NaN proposes nothing.
    """
    if not information > chance:  # few features are above: only these are worth the search
        return ()
    there = torch.tensor(n_images).nonzero().squeeze(1)
    if len(there) < 2:
        return ()
    (best, second), places = means[there].topk(2)
    stands_out = best > 0 and best >= 2 * second
    name = names[int(there[places[0]])]
    return (Proposal(name, information, "class"),) if stands_out else ()


def from_words(
    words: Sequence[str],
    pictures: Sequence[Image.Image],
    rows: Int[Tensor, "F n"],
    text: TextTower,
    *,
    n: int = 3,
) -> tuple[tuple[Proposal, ...], ...]:
    """Propose words whose embeddings are near those of a feature's pictures.

    Parameters
    ----------
    words
        To choose from.
    pictures
        What the features show: whole pictures, or their strongest patches cut out.
    rows
        The pictures of each feature; -1 for none.
    text
        (encode_text, encode_images); see `open_clip_tower`.
    n
        At most how many words a feature.

    Returns
    -------
    tuple
        For each feature its proposals, best first; none for a feature without pictures. The mean
        over all features is taken off each word's similarity, since some words are near to every
        picture.

    Raises
    ------
    ModelError
        If there are no words, or the two encoders do not fit each other.
    """
    words = list(dict.fromkeys(word.strip() for word in words if word.strip()))
    if not words:
        raise ModelError("There are no words to choose from.")
    encode_text, encode_images = text
    embedded = _unit([encode_text(words)])
    seen = _unit(
        [
            encode_images(list(pictures[start : start + _BATCH]))
            for start in range(0, len(pictures), _BATCH)
        ]
    )
    if embedded.shape != (len(words), seen.shape[1]) or len(seen) != len(pictures):
        raise ModelError(
            f"The encoders gave {list(embedded.shape)} for {len(words)} words and "
            f"{list(seen.shape)} for {len(pictures)} pictures; both must be [n, E]."
        )
    there = rows >= 0
    shown = seen[rows.clamp_min(0)] * there[..., None]
    similarity = (shown.sum(1) / there.sum(1, keepdim=True).clamp_min(1)) @ embedded.T
    alive = there.any(1)
    if not alive.any():
        return ((),) * len(rows)
    above = similarity - similarity[alive].mean(0)
    best = above.topk(min(n, len(words)), dim=1)
    return tuple(
        tuple(
            Proposal(words[i], float(score), "text")
            for score, i in zip(scores, indices, strict=True)
        )
        if live
        else ()
        for scores, indices, live in zip(
            best.values.tolist(), best.indices.tolist(), alive.tolist(), strict=True
        )
    )


def cut_out(
    picture: Image.Image, token: int, *, grid: tuple[int, int], n_prefix: int, patches: int = 4
) -> Image.Image:
    """The surroundings of a patch, `patches` wide and high; the whole picture for a prefix token.

    Parameters
    ----------
    picture
        As the model sees it.
    token
        Where.
    grid, n_prefix
        Rows and columns of patches, and the tokens before them.
    patches
        Side of what is cut out, in patches.
    """
    if token < n_prefix:
        return picture
    row, col = divmod(token - n_prefix, grid[1])
    high, wide = picture.height / grid[0], picture.width / grid[1]
    size = min(patches, *grid)
    top = min(max(row + 0.5 - size / 2, 0), grid[0] - size)
    left = min(max(col + 0.5 - size / 2, 0), grid[1] - size)
    edges = (left * wide, top * high, (left + size) * wide, (top + size) * high)
    x0, y0, x1, y1 = (round(edge) for edge in edges)
    return picture.crop((x0, y0, x1, y1))


def open_clip_tower(
    model: str, pretrained: str, *, device: torch.device | str = "cpu"
) -> TextTower:
    """Encoders of an open_clip model, for `from_words`.

    Parameters
    ----------
    model, pretrained
        As open_clip names them, or a path to weights for `pretrained`.
    device
        Where to run.

    Raises
    ------
    ModelError
        If open_clip is not installed, or has no such model.
    """
    try:
        import open_clip
    except ImportError as error:
        raise ModelError("open_clip is not installed: pip install open_clip_torch") from error
    try:
        network, _, preprocess = open_clip.create_model_and_transforms(
            model, pretrained=pretrained, device=device
        )
        tokenizer = open_clip.get_tokenizer(model)
    except (RuntimeError, OSError, ValueError) as error:
        raise ModelError(f"open_clip cannot load {model!r} ({pretrained!r}): {error}") from error
    network.eval()

    def encode_text(words: list[str]) -> Tensor:
        with torch.no_grad():
            out: Tensor = network.encode_text(tokenizer(words).to(device))
        return out

    def encode_images(images: list[Image.Image]) -> Tensor:
        with torch.no_grad():
            batch = torch.stack([preprocess(image) for image in images]).to(device)
            out: Tensor = network.encode_image(batch)
        return out

    return encode_text, encode_images


def _unit(pieces: list[Tensor]) -> Float[Tensor, "n E"]:
    return F.normalize(torch.cat([piece.detach().float().cpu() for piece in pieces]), dim=-1)
