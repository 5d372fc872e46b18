"""What the tests of figures share."""

from __future__ import annotations

import pytest

from tests.plots.figures import tiny_atlas
from vitlens.atlas.atlas import Atlas


@pytest.fixture(scope="session")
def atlas() -> Atlas:
    """An atlas of ten noise images; leave it as it is."""
    return tiny_atlas()
