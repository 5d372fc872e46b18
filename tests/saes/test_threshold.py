"""ReLU, JumpReLU, BatchTopK and Matryoshka SAEs: which features are active, and their settings."""

import pytest
import torch

from vitlens.errors import CheckpointError
from vitlens.saes import BatchTopKSAE, JumpReLUSAE, MatryoshkaSAE, ReLUSAE

D, F = 6, 4


def weights():
    generator = torch.Generator().manual_seed(0)
    return {
        "W_enc": torch.randn(D, F, generator=generator, dtype=torch.float64),
        "W_dec": torch.randn(F, D, generator=generator, dtype=torch.float64),
        "b_dec": torch.randn(D, generator=generator, dtype=torch.float64),
    }


ACTIVATIONS = torch.tensor([[0.0, 0.5, 1.0, 2.0], [3.0, 0.0, 0.9, 1.1]]).double()


def test_relu_keeps_all_that_is_positive():
    mask = ReLUSAE.from_weights(**weights()).active_mask(ACTIVATIONS)
    assert mask.tolist() == [[False, True, True, True], [True, False, True, True]]


def test_jumprelu_has_one_threshold_per_feature():
    threshold = torch.tensor([4.0, 0.25, 1.0, 1.5]).double()
    sae = JumpReLUSAE.from_weights(**weights(), threshold=threshold)
    mask = sae.active_mask(ACTIVATIONS)
    # An activation at its threshold is inactive.
    assert mask.tolist() == [[False, True, False, True], [False, False, False, False]]
    threshold.zero_()
    assert sae.threshold.tolist() == [4.0, 0.25, 1.0, 1.5]
    one = JumpReLUSAE.from_weights(**weights(), threshold=0.95)
    assert one.threshold.tolist() == [0.95] * F
    mask = one.active_mask(ACTIVATIONS)
    assert mask.tolist() == [[False, False, True, True], [True, False, False, True]]


def test_batchtopk_and_matryoshka_have_one_threshold():
    for sae in (
        BatchTopKSAE.from_weights(**weights(), threshold=0.95),
        MatryoshkaSAE.from_weights(**weights(), threshold=0.95, groups=(1, 3)),
    ):
        mask = sae.active_mask(ACTIVATIONS)
        assert mask.tolist() == [[False, False, True, True], [True, False, False, True]]
        assert sae.threshold.shape == () and sae.max_active == F


def test_a_negative_threshold_activates_nothing_that_is_zero():
    sae = BatchTopKSAE.from_weights(**weights(), threshold=-1.0)
    assert torch.equal(sae.active_mask(ACTIVATIONS), ACTIVATIONS > 0)


def test_activations_above_the_threshold_keep_their_value():
    sae = JumpReLUSAE.from_weights(**weights(), threshold=0.5)
    x = torch.randn(20, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pre = sae.pre_activations(sae.normalize(x).values)
    assert torch.equal(sae.encode(x), torch.where(pre > 0.5, pre, 0.0))


@pytest.mark.parametrize("groups", [(1, 2), (4, 0), (5, -1), ()])
def test_matryoshka_groups_must_add_up_to_all_features(groups):
    with pytest.raises(CheckpointError, match="must be positive and sum to the 4 features"):
        MatryoshkaSAE.from_weights(**weights(), threshold=0.0, groups=groups)


def test_thresholds_that_do_not_fit():
    with pytest.raises(CheckpointError, match="threshold holds values that are not finite"):
        BatchTopKSAE.from_weights(**weights(), threshold=float("nan"))
    with pytest.raises(CheckpointError, match="Expected W_enc"):
        BatchTopKSAE({**weights(), "threshold": torch.zeros(F).double()})
    with pytest.raises(CheckpointError, match=r"missing: \['threshold'\]"):
        JumpReLUSAE(weights())
