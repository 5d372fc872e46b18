"""Telling a caller how far a long computation is."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from tqdm.auto import tqdm

#: True for a bar; or a function of the part that is done, from 0 to 1, and of what is being done.
#: What it raises ends the computation: a way to cancel.
Progress: TypeAlias = bool | Callable[[float, str], None]

T = TypeVar("T")


def steps(items: Sequence[T], what: str, progress: Progress) -> Iterator[T]:
    """Yield the items, and report before each of them and at the end.

    Parameters
    ----------
    items
        What to go through.
    what
        What is done with them, in a word or two.
    progress
        How to report.
    """
    if not callable(progress):
        yield from tqdm(items, desc=what, disable=not progress, leave=False)
        return
    for number, item in enumerate(items):
        progress(number / len(items), what)
        yield item
    progress(1.0, what)


@dataclass
class Watch:
    """Tells a function how far a run of unlike steps is; see `Progress`.

    Attributes
    ----------
    progress
        The function; a bool is not told anything.
    total
        How many steps there are.
    done
        How many of them are behind.
    """

    progress: Progress
    total: int
    done: int = 0

    def tell(self, what: str) -> None:
        """Say what is done now."""
        if callable(self.progress):
            self.progress(self.done / self.total, what)

    def each(self, items: Collection[T]) -> Iterator[T]:
        """Yield the items, and count each of them once it is behind."""
        for item in items:
            yield item
            self.done += 1
