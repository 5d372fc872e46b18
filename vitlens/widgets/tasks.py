"""Background work in a notebook: one task at a time, and the latest request replaces the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeAlias, TypeVar

Result = TypeVar("Result")
Check: TypeAlias = Callable[[], None]
Dispatch: TypeAlias = Callable[[Check, Callable[[], None]], None]


class Cancelled(Exception):  # noqa: N818 - it reports an event, not an error
    """Raised inside work whose result is no longer wanted."""


class LatestTask:
    """Runs work in one thread; a new request cancels work that runs or waits.

    Where no asyncio loop runs (a plain script, a test) the work runs at once, in this thread.

    Parameters
    ----------
    on_error
        Called with the exception when work fails, on the loop's thread.

    Attributes
    ----------
    busy
        Whether the latest request still runs or waits.
    """

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        self.busy = False
        self._on_error = on_error
        self._request = 0
        self._thread: ThreadPoolExecutor | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself only holds weak references

    def run(self, work: Callable[[Check], Result], then: Callable[[Result], None]) -> None:
        """Start work, and cancel earlier work.

        Parameters
        ----------
        work
            Receives `check`, which it calls from time to time: `check` raises `Cancelled` after a
            newer request or a call of `cancel`. The work runs in another thread and sets no traits.
        then
            Receives what `work` returned, on the loop's thread; not called for cancelled work.
        """
        self._request += 1
        request = self._request
        self.busy = True

        def check() -> None:
            if request != self._request:
                raise Cancelled

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            with self._reported(request):
                result = work(check)
                check()
                self.busy = False
                then(result)
        else:
            task = loop.create_task(self._in_thread(loop, request, work, then, check))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def cancel(self) -> None:
        """Cancel all work that runs or waits."""
        self._request += 1
        self.busy = False

    async def _in_thread(
        self,
        loop: asyncio.AbstractEventLoop,
        request: int,
        work: Callable[[Check], Result],
        then: Callable[[Result], None],
        check: Check,
    ) -> None:
        def attempt() -> Result:
            check()  # it may have waited for other work
            return work(check)

        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="vitlens")
        with self._reported(request):
            result = await loop.run_in_executor(self._thread, attempt)
            check()
            self.busy = False
            then(result)

    @contextmanager
    def _reported(self, request: int) -> Iterator[None]:
        try:
            yield
        except Cancelled:
            pass
        except Exception as error:
            if request == self._request:
                self.busy = False
                self._on_error(error)


def dispatcher() -> Dispatch:
    """Return a function through which background work runs actions on the current thread.

    The function takes the work's `check` and an action; the action is skipped once `check` raises
    `Cancelled`.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return lambda check, action: action()

    def later(check: Check, action: Callable[[], None]) -> None:
        def run_unless_cancelled() -> None:
            try:
                check()
            except Cancelled:
                return
            action()

        loop.call_soon_threadsafe(run_unless_cancelled)

    return later
