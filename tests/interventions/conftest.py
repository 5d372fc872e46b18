"""The lens that interventions are tested on."""

import pytest
import torch

import vitlens
from tests.builders import tiny_lens
from tests.interventions.by_hand import DOUBLE


@pytest.fixture
def lens() -> vitlens.Lens:
    lens = tiny_lens(7, dtype=DOUBLE)
    for sae in lens.saes:
        torch.nn.init.normal_(sae.b_dec, std=0.2)
    return lens
