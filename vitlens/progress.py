"""Long computations: progress reports, and Ctrl-C only between two steps."""

import signal
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
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
        The items to iterate over.
    what
        Description of the work, in a word or two.
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


@contextmanager
def waiting(what: str, progress: Progress) -> Iterator[None]:
    """Show what is being done in the block, and for how long it has been.

    For a step of a library that does not report its progress.

    Parameters
    ----------
    what
        Description of the step, in a few words.
    progress
        How to report; a function is called before and after the block.
    """
    if callable(progress):
        progress(0.0, what)
        yield
        progress(1.0, what)
        return
    if not progress:
        yield
        return
    over = threading.Event()
    with tqdm(desc=what, bar_format="{desc} {elapsed}", leave=False) as bar:

        def tick() -> None:
            while not over.wait(1.0):
                bar.refresh()

        clock = threading.Thread(target=tick, name="vitlens clock", daemon=True)
        clock.start()
        try:
            yield
        finally:
            over.set()
            clock.join()


@dataclass
class StepReporter:
    """Reports the progress of a computation whose steps are not alike; see `Progress`.

    Attributes
    ----------
    progress
        The function; nothing is reported to a bool.
    total
        Total number of steps.
    done
        Number of completed steps.
    """

    progress: Progress
    total: int
    done: int = 0

    def report(self, what: str) -> None:
        """Report what is done now."""
        if callable(self.progress):
            self.progress(self.done / self.total, what)

    def each(self, items: Collection[T]) -> Iterator[T]:
        """Yield the items, and count each of them once it is done."""
        for item in items:
            yield item
            self.done += 1


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Delay Ctrl-C until the block is done, so that it never cuts a step in two.

    Outside the main thread, where Ctrl-C does not arrive, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = False

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if pressed:
        raise KeyboardInterrupt
