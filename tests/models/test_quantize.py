import pytest
import torch

from vitlens.models.quantize import dequantize, quantize


@pytest.fixture
def state_dict():
    generator = torch.Generator().manual_seed(0)
    weights = {
        "linear.weight": torch.randn(6, 32, generator=generator),
        "linear.bias": torch.randn(6, generator=generator),
        "conv.weight": torch.randn(5, 3, 4, 4, generator=generator),
        "cls_token": torch.randn(1, 1, 8, generator=generator),
    }
    weights["linear.weight"][2] = 0
    return weights


def test_round_trip_stays_within_half_a_step_of_the_largest_weight_or_does_better(state_dict):
    restored = dequantize(quantize(state_dict))
    for name in ("linear.weight", "conv.weight"):
        original, back = state_dict[name].flatten(1), restored[name].flatten(1)
        step = original.abs().amax(1, keepdim=True) / 127
        plain = (original / step.clamp_min(1e-30)).round() * step
        ours = (back - original).square().sum(1)
        assert (ours <= (plain - original).square().sum(1) + 1e-12).all()
        # Inside the range that was kept nothing moves by more than half a step.
        inside = original.abs() <= 0.7 * original.abs().amax(1, keepdim=True)
        assert ((back - original).abs() <= step / 2 + 1e-7)[inside].all()


def test_names_shapes_and_types(state_dict):
    stored = quantize(state_dict, keep=["conv.weight"])
    assert stored["linear.weight"].dtype == torch.int8
    assert stored["linear.weight.scale"].shape == (6, 1)
    assert stored["conv.weight"].dtype == torch.float16
    assert stored["linear.bias"].dtype == torch.float32
    restored = dequantize(stored)
    assert {n: t.shape for n, t in restored.items()} == {n: t.shape for n, t in state_dict.items()}
    assert all(t.dtype == torch.float32 for t in restored.values())


def test_small_tensors_and_zeros_are_exact(state_dict):
    restored = dequantize(quantize(state_dict))
    assert torch.equal(restored["linear.bias"], state_dict["linear.bias"])
    assert torch.equal(restored["cls_token"], state_dict["cls_token"])
    assert torch.equal(restored["linear.weight"][2], torch.zeros(32))


def test_what_is_on_the_grid_comes_back_exactly():
    grid = torch.arange(-127.0, 128).view(1, -1).repeat(2, 1) / 64
    assert torch.equal(dequantize(quantize({"w": grid}))["w"], grid)


@pytest.mark.parametrize("bad", [torch.tensor([[1.0, float("nan")]]), torch.ones(2, 2).long()])
def test_refuses_what_has_no_grid(bad):
    with pytest.raises(ValueError, match="w cannot be quantised"):
        quantize({"w": bad})


def test_what_float16_cannot_hold_is_not_kept_in_it():
    large = {"w": torch.full((2, 2), 1e5)}
    assert torch.equal(dequantize(quantize(large))["w"], large["w"])
    with pytest.raises(ValueError, match=r"w holds values too large for float16"):
        quantize(large, keep=["w"])


def test_a_weight_may_be_called_a_scale():
    weights = {"norm.scale": torch.linspace(-1, 1, 5), "gain.scale": torch.ones(2, 3)}
    restored = dequantize(quantize(weights))
    assert restored.keys() == weights.keys()
    assert torch.equal(restored["norm.scale"], weights["norm.scale"])


def test_cutting_off_the_largest_weights_can_cost_less_than_a_coarser_grid():
    normal = torch.randn(4, 2000, generator=torch.Generator().manual_seed(0))
    step = normal.abs().amax(1, keepdim=True) / 127
    plain = (normal / step).round() * step
    ours = dequantize(quantize({"w": normal}))["w"]
    assert (ours - normal).square().sum() < 0.99 * (plain - normal).square().sum()


def test_missing_scale():
    with pytest.raises(ValueError, match="scale of w"):
        dequantize({"w": torch.zeros(2, 2, dtype=torch.int8)})
