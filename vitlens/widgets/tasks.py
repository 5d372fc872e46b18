"""Work in the background of a notebook: one thing at a time, and only the last wish counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeAlias, TypeVar

Result = TypeVar("Result")
Check: TypeAlias = Callable[[], None]
Teller: TypeAlias = Callable[[Check, Callable[[], None]], None]


class Cancelled(Exception):  # noqa: N818 - it says what happened, and is no error
    """Raised inside work that nobody waits for any more."""


class Latest:
    """Runs work in one thread; a new wish cancels what runs and what waits.

    Where no asyncio loop runs (a plain script, a test) the work is done at once instead.

    Parameters
    ----------
    failed
        Called with the exception when work fails, on the loop's thread.

    Attributes
    ----------
    busy
        Whether the last wish is still to be fulfilled.
    """

    def __init__(self, failed: Callable[[Exception], None]) -> None:
        self.busy = False
        self._failed = failed
        self._wish = 0
        self._thread: ThreadPoolExecutor | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself only holds weak references

    def run(self, work: Callable[[Check], Result], then: Callable[[Result], None]) -> None:
        """Start work, in place of any earlier.

        Parameters
        ----------
        work
            Gets `check`, which it calls now and then: it raises `Cancelled` once a newer wish
            came or `cancel` was called. It runs in another thread and sets no traits.
        then
            Gets what `work` returned, on the loop's thread; not called for cancelled work.
        """
        self._wish += 1
        wish = self._wish
        self.busy = True

        def check() -> None:
            if wish != self._wish:
                raise Cancelled

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            with self._reported(wish):
                result = work(check)
                check()
                self.busy = False
                then(result)
        else:
            task = loop.create_task(self._in_thread(loop, wish, work, then, check))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def cancel(self) -> None:
        """Let nothing that runs or waits come to an end."""
        self._wish += 1
        self.busy = False

    async def _in_thread(
        self,
        loop: asyncio.AbstractEventLoop,
        wish: int,
        work: Callable[[Check], Result],
        then: Callable[[Result], None],
        check: Check,
    ) -> None:
        def attempt() -> Result:
            check()  # it may have waited behind other work
            return work(check)

        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="vitlens")
        with self._reported(wish):
            result = await loop.run_in_executor(self._thread, attempt)
            check()
            self.busy = False
            then(result)

    @contextmanager
    def _reported(self, wish: int) -> Iterator[None]:
        try:
            yield
        except Cancelled:
            pass
        except Exception as error:
            if wish == self._wish:
                self.busy = False
                self._failed(error)


def teller() -> Teller:
    """Return how work in the background has something done on this thread, while it counts.

    The function returned takes the work's `check` and an action; the action is left out once
    `check` raises `Cancelled`.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return lambda check, action: action()

    def later(check: Check, action: Callable[[], None]) -> None:
        def still() -> None:
            try:
                check()
            except Cancelled:
                return
            action()

        loop.call_soon_threadsafe(still)

    return later
