"""What is known of a lens beside its numbers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sample:
    """A sample image of a bundle.

    Attributes
    ----------
    path
        The image file.
    label
        Its class, "" when it has none.
    credit
        Where it comes from, and its licence.
    """

    path: Path
    label: str
    credit: str


@dataclass(frozen=True)
class About:
    """What is known of a lens beside its numbers: name, samples, model card, figures."""

    name: str = ""
    samples: tuple[Sample, ...] = ()
    card: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
