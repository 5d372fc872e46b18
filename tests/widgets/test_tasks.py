"""Background work: the last request wins, failures are reported; without a loop it runs at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from vitlens.widgets.tasks import LatestTask


async def until(true: Callable[[], bool]) -> None:
    for _ in range(500):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("never true")


def test_without_a_loop_it_is_done_at_once() -> None:
    results: list[int] = []
    worker = LatestTask(on_error=lambda error: None)
    worker.run(lambda check: 3, results.append)
    assert results == [3]
    assert not worker.busy


def test_the_last_request_wins() -> None:
    async def main() -> None:
        started, go = threading.Event(), threading.Event()
        results: list[str] = []
        worker = LatestTask(on_error=lambda error: results.append(repr(error)))

        def slow(check: Callable[[], None]) -> str:
            started.set()
            go.wait(5)
            check()
            return "first"

        worker.run(slow, results.append)
        await until(started.is_set)
        worker.run(lambda check: "second", results.append)
        worker.run(lambda check: "third", results.append)
        assert worker.busy
        go.set()
        await until(lambda: not worker.busy)
        await asyncio.sleep(0.05)
        assert results == ["third"]

    asyncio.run(main())


def test_cancelled_work_brings_nothing() -> None:
    async def main() -> None:
        results: list[int] = []
        worker = LatestTask(on_error=lambda error: None)
        worker.run(lambda check: 1, results.append)
        worker.cancel()
        assert not worker.busy
        await asyncio.sleep(0.1)
        assert results == []

    asyncio.run(main())


def test_the_result_arrives_on_the_loop_thread() -> None:
    async def main() -> None:
        threads: list[threading.Thread] = []
        worker = LatestTask(on_error=lambda error: None)
        worker.run(
            lambda check: threads.append(threading.current_thread()),
            lambda result: threads.append(threading.current_thread()),
        )
        await until(lambda: len(threads) == 2)
        assert threads[0] is not threading.current_thread()
        assert threads[1] is threading.current_thread()

    asyncio.run(main())


def test_failures_are_reported() -> None:
    def fail(check: Callable[[], None]) -> None:
        raise ValueError("no")

    failures: list[Exception] = []
    worker = LatestTask(on_error=failures.append)
    worker.run(fail, lambda result: None)

    async def main() -> None:
        worker.run(fail, lambda result: None)
        await until(lambda: len(failures) == 2)

    asyncio.run(main())
    assert [str(error) for error in failures] == ["no", "no"]


def test_a_failure_nobody_waits_for_is_silent() -> None:
    async def main() -> None:
        go = threading.Event()
        failures: list[Exception] = []
        worker = LatestTask(on_error=failures.append)

        def fail(check: Callable[[], None]) -> None:
            go.wait(5)
            raise ValueError("no")

        worker.run(fail, lambda result: None)
        await asyncio.sleep(0.02)
        worker.cancel()
        go.set()
        await asyncio.sleep(0.1)
        assert failures == []

    asyncio.run(main())
