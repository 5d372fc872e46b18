"""What is known of a lens beside its numbers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sample:
    """A sample image of a bundle; it can be given wherever an image is taken.

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

    def __fspath__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class About:
    """What is known of a lens beside its numbers: name, samples, model card, figures."""

    name: str = ""
    samples: tuple[Sample, ...] = ()
    card: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
