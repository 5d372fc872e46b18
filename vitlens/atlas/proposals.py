"""Names that a program proposes for features: from classes, and from a word list.

Naming by the words nearest to a feature's images, in the space that images and words share, follows
Oikarinen and Weng, "CLIP-Dissect" (arXiv 2204.10965).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from vitlens.errors import ModelError
from vitlens.saes.base import FeatureId

#: From words to [n, E], and from images to [n, E], in one space.
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
        For "class", the share of variance that the class explains (`class_information`). For
        "text", the word's cosine to the feature's images less its mean cosine to those of all
        features.
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

    It stands out if the class explains more of the feature's variance than chance does, and the
    mean of the best class is at least twice that of the next.

    Parameters
    ----------
    names, means, n_images
        Name, mean activation and number of images of each class.
    information
        Score "class_information" of the feature, NaN where it was not measured.
    chance
        Its 99 % level of shuffled labels; NaN proposes nothing.
    """
    if not information > chance:  # most features stop here
        return ()
    present = torch.tensor(n_images).nonzero().squeeze(1)
    if len(present) < 2:
        return ()
    (best, second), top = means[present].topk(2)
    stands_out = best > 0 and best >= 2 * second
    name = names[int(present[top[0]])]
    return (Proposal(name, information, "class"),) if stands_out else ()


def from_words(
    words: Sequence[str],
    images: Sequence[Image.Image],
    rows: Int[Tensor, "F n"],
    text: TextTower,
    *,
    n: int = 3,
) -> tuple[tuple[Proposal, ...], ...]:
    """Propose words whose embeddings are near those of a feature's images.

    Parameters
    ----------
    words
        The words to choose from.
    images
        Images of the features: whole, or cropped to their strongest patches.
    rows
        The images of each feature; -1 for none.
    text
        (encode_text, encode_images); see `open_clip_tower`.
    n
        Largest number of words per feature.

    Returns
    -------
    tuple
        For each feature its proposals, best first; none for a feature without images. The mean
        over all features is subtracted from each word's similarity, since some words are near to
        every image.

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
            encode_images(list(images[start : start + _BATCH]))
            for start in range(0, len(images), _BATCH)
        ]
    )
    if embedded.shape != (len(words), seen.shape[1]) or len(seen) != len(images):
        raise ModelError(
            f"The encoders gave {list(embedded.shape)} for {len(words)} words and "
            f"{list(seen.shape)} for {len(images)} images; both must be [n, E]."
        )
    present = rows >= 0
    means = seen[rows.clamp_min(0)] * present[..., None]
    similarity = (means.sum(1) / present.sum(1, keepdim=True).clamp_min(1)) @ embedded.T
    alive = present.any(1)
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


def crop_patch(
    image: Image.Image, token: int, *, grid: tuple[int, int], n_prefix: int, patches: int = 4
) -> Image.Image:
    """Crop an image to a patch and its surroundings; a prefix token gives the whole image.

    Parameters
    ----------
    image
        The image as the model sees it.
    token
        The token of the patch.
    grid, n_prefix
        Rows and columns of patches, and the tokens before them.
    patches
        Side of the crop, in patches.
    """
    if token < n_prefix:
        return image
    row, col = divmod(token - n_prefix, grid[1])
    high, wide = image.height / grid[0], image.width / grid[1]
    size = min(patches, *grid)
    top = min(max(row + 0.5 - size / 2, 0), grid[0] - size)
    left = min(max(col + 0.5 - size / 2, 0), grid[1] - size)
    edges = (left * wide, top * high, (left + size) * wide, (top + size) * high)
    x0, y0, x1, y1 = (round(edge) for edge in edges)
    return image.crop((x0, y0, x1, y1))


def open_clip_tower(
    model: str, pretrained: str, *, device: torch.device | str = "cpu"
) -> TextTower:
    """Encoders of an open_clip model, for `from_words`.

    Parameters
    ----------
    model, pretrained
        As open_clip names them, or a path to weights for `pretrained`.
    device
        Device to run on.

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


def propose_words(
    tops: Iterable[tuple[int, Int[Tensor, "F n"], Int[Tensor, "F n"]]],
    image_of: Callable[[int], Image.Image | None],
    words: Sequence[str],
    text: TextTower,
    *,
    n: int,
    n_images: int,
    patches: int | None,
    grid: tuple[int, int],
    n_prefix: int,
) -> dict[FeatureId, tuple[Proposal, ...]]:
    """Propose words for every feature that has images; see `Atlas.propose`.

    Parameters
    ----------
    tops
        Per layer its number, and of the top images of its features their rows in the image table
        (-1 for none) and the tokens of the peaks.
    image_of
        From a row of the image table to the image, None if it is not available.
    words, text, n, n_images, patches
        See `Atlas.propose`.
    grid, n_prefix
        Rows and columns of patches, and the tokens before them.
    """
    found: dict[FeatureId, tuple[Proposal, ...]] = {}
    for layer, top_rows, tokens in tops:
        seen: dict[tuple[int, int], int] = {}
        images: list[Image.Image] = []
        rows = torch.full_like(top_rows[:, :n_images], -1)
        for feature, rank in (top_rows[:, :n_images] >= 0).nonzero().tolist():
            row = int(top_rows[feature, rank])
            token = -1 if patches is None else int(tokens[feature, rank])
            if (row, token) not in seen:
                image = image_of(row)
                if image is None:
                    continue
                if patches is not None:
                    image = crop_patch(image, token, grid=grid, n_prefix=n_prefix, patches=patches)
                seen[row, token] = len(images)
                images.append(image)
            rows[feature, rank] = seen[row, token]
        if images:
            proposed = from_words(words, images, rows, text, n=n)
            found |= {(layer, feature): given for feature, given in enumerate(proposed) if given}
    return found
