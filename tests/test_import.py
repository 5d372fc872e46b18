"""`import vitlens` is quick and brings along only what it must; the public names all resolve."""

import os
import subprocess
import sys

import pytest

import vitlens

HEAVY = ("timm", "torchvision", "matplotlib", "networkx", "anywidget", "ipywidgets")


def run(program: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def loaded_after(statement: str) -> set[str]:
    program = f"import sys; {statement}; print(*[n for n in {HEAVY!r} if n in sys.modules])"
    return set(run(program).split())


def test_import_loads_nothing_heavy():
    assert loaded_after("import vitlens") == set()


def test_the_method_loads_nothing_heavy():
    names = (
        "TopKSAE, Baselines, Trace, Importances, Circuit, Curves, VisionModel, libragrad, Lens, "
        "load, TrainConfig, TuneConfig"
    )
    assert loaded_after(f"from vitlens import {names}") == set()


@pytest.mark.slow
def test_import_takes_less_than_three_tenths_of_a_second_more_than_torch():
    def seconds(statement: str) -> float:
        """Processor time of a new process: that of the clock depends on what else is running."""
        before = os.times()
        run(statement)
        after = os.times()
        return (
            after.children_user
            + after.children_system
            - (before.children_user + before.children_system)
        )

    # Alternated, and the best of several: other programs only ever make a run longer.
    pairs = [(seconds("import torch"), seconds("import torch, vitlens")) for _ in range(3)]
    torch_alone, with_vitlens = (min(times) for times in zip(*pairs, strict=True))
    assert torch_alone > 0.1
    assert with_vitlens - torch_alone < 0.3


@pytest.mark.parametrize("name", vitlens.__all__)
def test_public_names_resolve(name):
    assert getattr(vitlens, name) is not None
    assert name in dir(vitlens)


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'lense'"):
        _ = vitlens.lense


def test_completion_offers_the_public_names_alone():
    assert dir(vitlens) == sorted(vitlens.__all__)
