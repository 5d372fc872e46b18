"""Pools: for every feature, a bounded number of images, chosen by a total order.

Because the order is total, a pool of some images joined with a pool of others is the pool of all
of them, bit for bit, whichever comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

#: The id of a place that no image has taken.
EMPTY = -1
_LAST = torch.iinfo(torch.int64).max

PoolKind = Literal["top", "sampled"]


@dataclass
class Pool:
    """Images of every feature of a layer; places without an image come last.

    Attributes
    ----------
    kind
        "top": the images with the highest peaks, one of each group, the highest first (ties: the
        smaller id first). "sampled": of the images in which the feature is active, those with
        the smallest ids, the smallest first. Ids are hashes, so this is a uniform sample; it is
        coordinated, that is features share images where they can (bottom-k sketches: Cohen and
        Kaplan, PODC 2007), which keeps the images to store few.
    peak
        The feature's largest activation in the image, float32 [F, n]; 0 at empty places.
    id
        The image, int64 [F, n]; `EMPTY` at empty places.
    group
        The image's group, int64 [F, n]; `EMPTY` at empty places.
    token
        The first token with the peak, int32 [F, n]; `EMPTY` at empty places.
    heat
        Activations of the tokens in 255ths of the peak, rounded, uint8 [F, n, T]; T is 0 when no
        heats are kept.
    """

    kind: PoolKind
    peak: Float[Tensor, "F n"]
    id: Int[Tensor, "F n"]
    group: Int[Tensor, "F n"]
    token: Int[Tensor, "F n"]
    heat: UInt8[Tensor, "F n T"]

    @classmethod
    def empty(
        cls,
        kind: PoolKind,
        n_features: int,
        n_places: int,
        n_tokens: int,
        device: torch.device | str | None = None,
    ) -> Pool:
        """A pool without images; `n_tokens` is 0 when no heats are to be kept."""
        shape = (n_features, n_places)
        return cls(
            kind,
            peak=torch.zeros(shape, device=device),
            id=torch.full(shape, EMPTY, device=device),
            group=torch.full(shape, EMPTY, device=device),
            token=torch.full(shape, EMPTY, dtype=torch.int32, device=device),
            heat=torch.zeros(*shape, n_tokens, dtype=torch.uint8, device=device),
        )

    @property
    def n_places(self) -> int:
        """Images a feature can have."""
        return self.id.shape[1]

    def merge(self, other: Pool) -> Pool:
        """The pool of all images of both."""
        both = {
            name: torch.cat([tensor, getattr(other, name)], dim=1)
            for name, tensor in self.tensors().items()
        }
        order, filled = self.choose(both["peak"], both["id"], both["group"])
        return Pool(
            self.kind,
            peak=both["peak"].gather(1, order).where(filled, 0),
            id=both["id"].gather(1, order).where(filled, EMPTY),
            group=both["group"].gather(1, order).where(filled, EMPTY),
            token=both["token"].gather(1, order).where(filled, EMPTY),
            heat=_at(both["heat"], order) * filled[..., None],
        )

    def add(
        self,
        activations: Float[Tensor, "n F T"],
        peak: Float[Tensor, "n F"],
        ids: Int[Tensor, " n"],
        groups: Int[Tensor, " n"],
    ) -> Bool[Tensor, " n"]:
        """Take in the images that are better than what the pool holds; say which were."""
        rows = self._improved(peak, ids).nonzero().squeeze(1)
        new = torch.zeros_like(ids, dtype=torch.bool)
        if not len(rows):
            return new
        shape = (len(rows), len(ids))
        image = torch.cat([self.id[rows], ids.expand(shape)], dim=1)
        group = torch.cat([self.group[rows], groups.expand(shape)], dim=1)
        peaks = torch.cat([self.peak[rows], peak[:, rows].T], dim=1)
        order, filled = self.choose(peaks, image, group)
        self.peak[rows] = peaks.gather(1, order).where(filled, 0)
        self.id[rows] = image.gather(1, order).where(filled, EMPTY)
        self.group[rows] = group.gather(1, order).where(filled, EMPTY)
        # What was there moves first, then the new ones get what is theirs.
        stayed = order.clamp(max=self.n_places - 1)
        self.token[rows] = self.token[rows].gather(1, stayed).where(filled, EMPTY)
        self.heat[rows] = _at(self.heat[rows], stayed) * filled[..., None]
        row, place = (filled & (order >= self.n_places)).nonzero(as_tuple=True)
        feature, which = rows[row], order[row, place] - self.n_places
        tokens = activations[which, feature]
        self.token[feature, place] = tokens.argmax(dim=1).to(torch.int32)
        if self.heat.shape[2]:
            shares = tokens / self.peak[feature, place][:, None]
            self.heat[feature, place] = (255 * shares).round().to(torch.uint8)
        new[which] = True
        return new

    def _improved(self, peak: Float[Tensor, "n F"], ids: Int[Tensor, " n"]) -> Bool[Tensor, " F"]:
        """Features for which an image goes before the last one of the pool."""
        last_id, last_peak = self.id[:, -1], self.peak[:, -1]
        earlier = ids[:, None] < last_id
        if self.kind == "top":
            better = (peak > last_peak) | ((peak == last_peak) & earlier)
        else:
            better = earlier | (last_id == EMPTY)
        return (better & (peak > 0)).any(dim=0)

    def choose(
        self,
        peak: Float[Tensor, "F m"],
        image: Int[Tensor, "F m"],
        group: Int[Tensor, "F m"],
    ) -> tuple[Int[Tensor, "F n"], Bool[Tensor, "F n"]]:
        """Which of m candidates of each feature fill its places, and which places are filled.

        A candidate with a peak of 0 is none.
        """
        absent = peak <= 0
        order = torch.where(absent, _LAST, image).argsort(dim=1, stable=True)
        if self.kind == "top":
            by_id = peak.gather(1, order)
            order = order.gather(1, by_id.argsort(dim=1, descending=True, stable=True))
        same = group if self.kind == "top" else image
        unfit = absent.gather(1, order) | _seen_before(same.gather(1, order))
        best = unfit.to(torch.int8).argsort(dim=1, stable=True)[:, : self.n_places]
        return order.gather(1, best), ~unfit.gather(1, best)

    def to(self, device: torch.device | str) -> Pool:
        """Move to a device."""
        return Pool(self.kind, **{k: v.to(device) for k, v in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "kind"}

    @classmethod
    def from_tensors(cls, kind: PoolKind, tensors: Mapping[str, Tensor]) -> Pool:
        """The pool that `tensors` was taken of."""
        return cls(kind, **{f.name: tensors[f.name] for f in fields(cls) if f.name != "kind"})


def _at(heat: UInt8[Tensor, "F m T"], places: Int[Tensor, "F n"]) -> UInt8[Tensor, "F n T"]:
    return heat.gather(1, places[..., None].expand(-1, -1, heat.shape[2]))


def _seen_before(group: Int[Tensor, "F m"]) -> Tensor:
    """True where a group has an earlier entry in its row."""
    order = group.argsort(dim=1, stable=True)
    ordered = group.gather(1, order)
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(again).scatter(1, order, again)
