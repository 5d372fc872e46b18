"""What all tests share: few threads, no network, and the reference data."""

import os
from pathlib import Path

import pytest

# Read once when huggingface_hub is imported: a test that would download something fails at once.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """Models, inputs and exact results which the method must reproduce (see its README)."""
    return Path(__file__).parent / "data" / "reference"
