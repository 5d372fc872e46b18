"""What an atlas says about one feature, and about one picture of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from vitlens.atlas.proposals import Proposal
    from vitlens.atlas.quality import Trust
    from vitlens.atlas.tuning import Tuning

#: A feature: its layer and its number.
Node = tuple[int, int]


class Histogram(NamedTuple):
    """How often a feature's activation falls in which bin, over its active tokens.

    Attributes
    ----------
    edges
        [BINS + 1], in units of activation, growing by a constant factor; the first and the last
        bin also hold what lies beyond them.
    counts
        [BINS], active tokens.
    """

    edges: Float[Tensor, " E"]
    counts: Int[Tensor, " B"]


class ClassResponse(NamedTuple):
    """How a feature responds to the images of one class.

    Attributes
    ----------
    name
        Of the class.
    mean
        Mean activation over all tokens of all images of the class.
    share
        Share of the class's images in which the feature is active, 0 to 1.
    """

    name: str
    mean: float
    share: float


@dataclass(frozen=True)
class FeatureProfile:
    """What an atlas says about one feature.

    Attributes
    ----------
    layer, feature
        Which feature.
    name
        What people call it (the latest name, if there are several), "" without a name.
    proposals
        Names that were computed, best first; never mixed with people's.
    frequency, image_frequency
        Share of all tokens, and of all images, in which it is active, 0 to 1.
    token_kinds
        Share of its active tokens by kind: the names of the prefix tokens ("CLS", "register 1",
        ...) and "patch".
    histogram
        Of its activation.
    mean_map
        Mean activation by position, [T], prefix tokens first. Stored with 8 bits below the
        feature's largest value; in an atlas without its sums, to one standard error or 4 bits.
    logit_lens
        (class, effect) best first: what one unit of the feature does to each logit through the
        model's real read-out, less the mean over classes; see `vitlens.atlas.logits`.
    classes
        Responses by class, the strongest mean first.
    best_class
        The first of `classes`, "" when the feature is never active.
    scores
        Measures by name (see `vitlens.atlas.scores`); NaN for what was not measured.
    chance
        By name of score, its 99 % level over the layer's shuffled features.
    tuning
        Responses to synthetic stimuli, None when they were not measured.
    neighbours
        By "before", "same" and "after", the features of that layer with the most similar decoder
        rows, as ((layer, feature), cosine), best first. Empty without a lens.
    trust
        How far its pictures can be trusted to show what it stands for, and why.
    """

    layer: int
    feature: int
    name: str
    proposals: tuple[Proposal, ...]
    frequency: float
    image_frequency: float
    token_kinds: Mapping[str, float]
    histogram: Histogram
    mean_map: Float[Tensor, " T"]
    logit_lens: tuple[tuple[str, float], ...]
    classes: tuple[ClassResponse, ...]
    best_class: str
    scores: Mapping[str, float]
    chance: Mapping[str, float]
    tuning: Tuning | None
    neighbours: Mapping[str, tuple[tuple[Node, float], ...]]
    trust: Trust

    def __str__(self) -> str:
        said = self.name or (f"{self.proposals[0].text}?" if self.proposals else "no name")
        return (
            f"feature {self.layer}/{self.feature} ({said}): active in {self.image_frequency:.1%} "
            f"of images, {self.frequency:.2%} of tokens, trust {self.trust.value:.2f}"
        )


@dataclass(frozen=True)
class Shown:
    """One picture of a feature.

    Attributes
    ----------
    key
        Of the image, as its source named it.
    path
        Where the original was, "" if it was no file.
    label
        Name of its class, as `Atlas.labels_from` says.
    credit
        Where it comes from and its licence, "" if unknown.
    peak
        The feature's largest activation over all tokens of the image.
    quantile
        Share of the images in which the feature is active whose peak is lower, 0 to 1.
    token
        Where the peak is.
    """

    key: str
    path: str
    label: str
    credit: str
    peak: float
    quantile: float
    token: int
    _encoded: Callable[[], bytes | None] = field(repr=False, compare=False)
    _picture: Callable[[], Image.Image | None] = field(repr=False, compare=False)
    _heat: Callable[[], Tensor | None] = field(repr=False, compare=False)
    _original: Callable[[], Path | None] = field(repr=False, compare=False)

    @property
    def encoded(self) -> bytes | None:
        """The stored picture as WebP bytes, None if none is stored."""
        return self._encoded()

    @property
    def picture(self) -> Image.Image | None:
        """The picture as the model sees it, stored or made from the original; None without."""
        return self._picture()

    @property
    def heat(self) -> Float[Tensor, " T"] | None:
        """Activation by token, [T]; None when neither it nor a picture to compute it from is here.

        Stored with 8 bits below the peak, or computed by the lens.
        """
        return self._heat()

    @property
    def original(self) -> Path | None:
        """The original's file, None if it is no longer there."""
        return self._original()
