"""Widgets compute in a thread while the notebook computes in another: results stay the same."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import torch

from tests.builders import lens_with_readout
from vitlens.method.libragrad import Gradient, backward_rules
from vitlens.method.logit_lens import logit_lens


def test_two_threads_give_what_one_gives() -> None:
    lens = lens_with_readout("cls")
    image = torch.randn(3, 24, 24, dtype=torch.float64)
    trace = lens.trace(image)
    gradients: tuple[Gradient, Gradient] = ("libragrad", "plain")

    def edges(i: int) -> torch.Tensor:
        return lens.importances(image, gradient=gradients[i % 2], engine="jvp").edges[0]

    def classes(i: int) -> torch.Tensor:
        gradient = gradients[i // 30 % 2]
        return logit_lens(lens.replacement, trace, 0, i % 30, gradient=gradient)

    expected = [edges(i) for i in range(12)], [classes(i) for i in range(60)]
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(lambda: [edges(i) for i in range(12)])
        second = threads.submit(lambda: [classes(i) for i in range(60)])
        found = first.result(), second.result()
    for mine, theirs in zip(expected, found, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b)


def test_written_out_attention_leaves_other_threads_theirs() -> None:
    """Two contexts that overlap and close in the order they opened."""
    lens = lens_with_readout("cls")
    opened, second, closed = Event(), Event(), Event()

    def first() -> None:
        with backward_rules(lens.vision.module, "plain"):
            opened.set()
            assert second.wait(10)
        closed.set()

    def other() -> None:
        assert opened.wait(10)
        with backward_rules(lens.vision.module, "plain"):
            second.set()
            assert closed.wait(10)

    allowed = torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.mem_efficient_sdp_enabled
    before = [flag() for flag in allowed]
    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(first), threads.submit(other)]:
            done.result()
    assert before == [True, True]
    assert [flag() for flag in allowed] == before
