"""SAEs of the small model, trained once for all tests of this folder."""

import pytest

from tests.training.small import make_images, make_vision
from vitlens.training.config import TrainConfig
from vitlens.training.run import train_saes


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """SAEs of layers 0 and 1, by layer."""
    config = TrainConfig(
        sizes=24,
        k=4,
        epochs=8,
        batch_tokens=20,
        learning_rate=1e-2,
        warmup_steps=3,
        decay_share=0.3,
    )
    out = tmp_path_factory.mktemp("trained")
    return train_saes(make_vision(), make_images(40), config, out=out).saes
