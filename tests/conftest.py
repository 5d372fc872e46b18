"""What all tests share: one thread, no network, the reference data, and an order for workers."""

import os
from collections import Counter
from pathlib import Path

import pytest

# Read once when huggingface_hub is imported: a test that would download something fails at once.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tiny tensors: more threads only wait for each other, here and in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import torch

torch.set_num_threads(1)

BROWSER = Path(__file__).parent / "widgets" / "browser"


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """Models, inputs and exact results which the method must reproduce (see its README)."""
    return Path(__file__).parent / "data" / "reference"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the browser tests, order all tests, and keep each file on one worker of `-n`.

    Slow tests start first, and may each run on a worker of its own. Browser tests come last: once
    Playwright's event loop runs in a process, widgets there compute in the background.
    """
    for item in items:
        if BROWSER in item.path.parents:
            item.add_marker("browser")
    slow = {id(item) for item in items if item.get_closest_marker("slow")}
    n_tests = Counter(item.path for item in items)

    def order(item: pytest.Item) -> tuple[bool, bool, int, str]:
        in_browser = BROWSER in item.path.parents
        return in_browser, id(item) not in slow, -n_tests[item.path], str(item.path)

    items.sort(key=order)
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            if item.get_closest_marker("xdist_group") is None:
                alone = id(item) in slow and BROWSER not in item.path.parents
                file = str(item.path.relative_to(config.rootpath))
                item.add_marker(pytest.mark.xdist_group(item.name if alone else file))
