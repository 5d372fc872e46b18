"""The planted model, and one search on it."""

from __future__ import annotations

import pytest

from tests.planted import planted_images, planted_lens
from vitlens.debias import Debiasing
from vitlens.lens import Lens


@pytest.fixture(scope="session")
def lens() -> Lens:
    return planted_lens()


@pytest.fixture(scope="session")
def found(lens: Lens) -> Debiasing:
    return lens.debias(
        planted_images(), test=planted_images(seed=1), layers=[1], circuits=2, progress=False
    )
