"""Arithmetic that gives the same result for any order of the images.

Activations are counted in fixed bins and summed as whole numbers of a fixed unit, and what is
random about an image is drawn from a hash of its key. So the parts of a data set can be merged in
any order, bit for bit.

Chance levels for classes need the images dealt to classes of the same sizes at random. Exchanging
the labels of images needs all of them at once, and the sums of a pass keep none. So the images fall
into many buckets by their ids alone, whose sums are kept, and at the end whole buckets are dealt to
the classes (`deal`). With more buckets than images that is nearly an exchange of labels. The
buckets are of all sizes, so that with many images small classes get some, too.
"""

from __future__ import annotations

import hashlib
import heapq
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

#: Bins of every histogram of activations; a quarter of an octave each.
N_BINS = 48
#: Activations and means of them are summed as integers of this unit.
UNIT = 2.0**-20
#: Unit of sums of squared activations.
SQUARE_UNIT = 2.0**-24
#: Unit of sums of squared image means, which are small.
IMAGE_SQUARE_UNIT = 2.0**-30

_LOWEST = 2.0**-6
_LARGEST_ACTIVATION = 2048.0
_ID_BITS = 63
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in JPEG
_SHRUNK = (32, 32)
_HALF_WAVES = 6
_STRENGTH = 2.0**-16


def bin_edges() -> Float[Tensor, " edges"]:
    """Edges of the bins, [N_BINS + 1]: from 1/64 to 64, each 2^(1/4) times the one before.

    Activations below the first edge are counted in the first bin, those from the last edge on in
    the last one. A bin holds its lower edge.
    """
    steps = torch.arange(N_BINS + 1, dtype=torch.float64) / 4
    return (_LOWEST * torch.exp2(steps)).float()


def bin_index(activations: Float[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """Bin of each activation, 0 to N_BINS - 1."""
    inner = bin_edges()[1:-1].to(activations.device)
    return torch.bucketize(activations, inner, right=True)


def to_fixed(values: Float[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """Round to whole numbers of `UNIT`, as int64, whose sums are exact in any order.

    There is room for the sum of 2^32 values of 2048 each.
    """
    return (values.float() / UNIT).round().to(torch.int64)


def activations_to_fixed(values: Float[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """The same for activations, at most 2048, so that their squares fit as well."""
    return to_fixed(values.clamp(max=_LARGEST_ACTIVATION))


def squares(fixed: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """Squares of fixed-point numbers, in whole numbers of `SQUARE_UNIT`, rounded down."""
    return (fixed * fixed) >> 16


def image_squares(fixed: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """Squares of fixed-point numbers, in whole numbers of `IMAGE_SQUARE_UNIT`, rounded down."""
    return (fixed * fixed) >> 10


def hash_text(text: str, *, what: str = "image") -> int:
    """Hash a text to 63 bits, the same on every machine.

    Parameters
    ----------
    text
        For instance an image's key.
    what
        The kind of text; each kind has its own hashes.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=what.encode()).digest()
    return int.from_bytes(digest, "big") >> 1


def perceptual_hash(images: Float[Tensor, "n 3 H W"]) -> Int[Tensor, " n"]:
    """27 bits of each image that resizing and recompressing hardly change.

    Each bit says whether one of the 27 lowest frequencies (of the discrete cosine transform of the
    image, shrunk to 32 x 32 grey pixels; those of at most 6 half waves down and across together,
    without the mean) is stronger than their median: a "pHash" (C. Zauner, "Implementation and
    benchmarking of perceptual image hash functions", 2010, section 3.2.1), with fewer bits, as
    all of them must be the same.

    Copies were made at 100, 75 and 50 % of the size, as they are and as JPEG of quality 75, 50 and
    30. Of the 391 images of `everyday`'s atlas no two share a hash, and 93 % of the copies keep
    it (JPEG 75, 50, 30: 95, 94, 90 %; the worst, JPEG 30 at half the size: 86 %). The hash was
    chosen among thirty variants on these and on 3,115 drawings, of which 61 pairs share one, most
    of them alike (282 with a difference hash of 25 bits). Of 76 wallpapers that were not used to
    choose it 87 % of the copies keep it; those that share one have no contrast or are two
    colourings of one image. The difference hash: 77 and 81 %. A distance between hashes would find
    more copies, but gives no groups by which parts of an atlas could be merged.
    """
    # Luma, which JPEG keeps better than colours; the channels of normalised images have nearly
    # one scale.
    weights = torch.tensor(_LUMA, device=images.device)[:, None, None]
    grey = (images.float() * weights).sum(dim=1)
    small = adaptive_avg_pool2d(grey, _SHRUNK).cpu().double()
    strengths = (small[:, None] * _waves()).flatten(2).sum(dim=2)
    # In whole steps, or rounding errors would decide where an image has nothing of a frequency.
    steps = (strengths / _STRENGTH).round()
    above = (steps > steps.median(dim=1, keepdim=True).values).to(torch.int64)
    return (above << torch.arange(above.shape[1])).sum(dim=1).to(images.device)


def mix(ids: Int[Tensor, "*any"], salt: int) -> Int[Tensor, "*any"]:
    """Scramble ids to 63-bit pseudo-random numbers (SplitMix64: Steele et al., OOPSLA 2014).

    Parameters
    ----------
    ids
        Any int64 numbers.
    salt
        Another salt gives numbers that have nothing to do with the first.
    """
    mixed = ids + _signed(0x9E3779B97F4A7C15 * (salt + 1))
    mixed = (mixed ^ _shifted(mixed, 30)) * _signed(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ _shifted(mixed, 27)) * _signed(0x94D049BB133111EB)
    return (mixed ^ _shifted(mixed, 31)) & ((1 << _ID_BITS) - 1)


def shuffled_tokens(ids: Int[Tensor, " n"], n_prefix: int, n_tokens: int) -> Int[Tensor, "n T"]:
    """Where each token of an image moves when its patches are shuffled, by the image's id.

    Prefix tokens stay. The permutation is the same for all layers and features.
    """
    n_patches = n_tokens - n_prefix
    patches = torch.arange(n_patches, device=ids.device)
    order = mix(mix(ids, 1)[:, None] + patches, 2).argsort(dim=1, stable=True)
    prefix = torch.arange(n_prefix, device=ids.device).expand(len(ids), -1)
    return torch.cat([prefix, order + n_prefix], dim=1)


def _waves() -> Float[Tensor, "27 32 32"]:
    """The cosines of the lowest frequencies, lowest first."""
    places = (torch.arange(_SHRUNK[0], dtype=torch.float64) + 0.5) * (math.pi / _SHRUNK[0])
    lines = [(places * number).cos() for number in range(_HALF_WAVES + 1)]
    both = [(total - b, b) for total in range(1, _HALF_WAVES + 1) for b in range(total + 1)]
    return torch.stack([lines[down][:, None] * lines[across] for down, across in both])


def _signed(number: int) -> int:
    """The 64 lower bits as a signed number, as torch has no unsigned arithmetic."""
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >> 63 else number


def _shifted(numbers: Int[Tensor, "*any"], bits: int) -> Int[Tensor, "*any"]:
    """Shift right and fill with zeros; torch's own shift keeps the sign."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)


_FEWEST = 512
_PER_CLASS = 4


def n_buckets(n_classes: int) -> int:
    """How many buckets there are, B: more than enough for every class to get some, if any."""
    return max(_FEWEST, _PER_CLASS * n_classes) if n_classes else 0


def buckets(ids: Int[Tensor, " n"], n_classes: int) -> Int[Tensor, " n"]:
    """Bucket of each image, drawn by its id: the larger of two numbers below B.

    Bucket b holds about (2 b + 1) / B^2 of the images.
    """
    n = n_buckets(n_classes)
    if not n:
        return torch.zeros_like(ids)
    return torch.maximum(mix(ids, 3) % n, mix(ids, 4) % n)


def deal(per_bucket: Int[Tensor, " B"], per_class: Int[Tensor, " C"]) -> Int[Tensor, " B"]:
    """Deal buckets to classes: the fullest first, each to the class that lacks most images.

    Parameters
    ----------
    per_bucket, per_class
        Images of each.

    Returns
    -------
    Tensor
        The class of each bucket. Classes without images get none, and no class exceeds its size by
        more than a bucket.
    """
    lacking = [(-images, label) for label, images in enumerate(per_class.tolist()) if images]
    heapq.heapify(lacking)
    classes = torch.zeros_like(per_bucket)
    images = per_bucket.tolist()
    for bucket in per_bucket.argsort(descending=True, stable=True).tolist():
        if not images[bucket]:
            break
        missing, label = lacking[0]
        classes[bucket] = label
        heapq.heapreplace(lacking, (missing + images[bucket], label))
    return classes
