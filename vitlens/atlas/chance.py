"""What chance gives of the classes: the images dealt anew to classes of the same sizes.

Exchanging the labels of images takes all of them at once, and the sums of a pass keep none. So the
images fall into many buckets by their ids alone, whose sums are kept, and at the end whole buckets
are dealt to the classes. With more buckets than images that is nearly an exchange of labels. The
buckets are of all sizes, so that with many images small classes get some, too.
"""

from __future__ import annotations

import heapq

import torch
from jaxtyping import Int
from torch import Tensor

from vitlens.atlas.bins import mix

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


def dealt(per_bucket: Int[Tensor, " B"], per_class: Int[Tensor, " C"]) -> Int[Tensor, " B"]:
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
