"""The logit lens against derivatives taken the slow way, for every kind of read-out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import vitlens
from tests.builders import lens_with_readout
from vitlens.errors import FeatureError, OptionError
from vitlens.method.logit_lens import contribution, logit_lens

HEADS = ("cls", "average", "cls_mean", "attention")


@pytest.fixture(params=HEADS)
def lens(request: pytest.FixtureRequest) -> vitlens.Lens:
    return lens_with_readout(request.param)


@pytest.fixture
def trace(lens: vitlens.Lens) -> vitlens.Trace:
    return lens.trace(torch.randn(3, 24, 24, dtype=torch.float64))


def strongest(trace: vitlens.Trace, layer: int) -> int:
    return int(trace.features[layer].sum(0).argmax())


def test_plain_is_the_slope_of_the_read_out(lens: vitlens.Lens, trace: vitlens.Trace) -> None:
    for layer, feature in ((0, strongest(trace, 0)), (1, strongest(trace, 1)), (1, -1)):
        found = logit_lens(lens.replacement, trace, layer, feature, gradient="plain")
        added = contribution(lens.replacement, trace, layer, feature)
        step, last = 1e-5, trace.output
        with torch.no_grad():
            ahead = lens.vision.readout((last + step * added)[None])[0]
            behind = lens.vision.readout((last - step * added)[None])[0]
        slope = (ahead - behind) / (2 * step)
        torch.testing.assert_close(found, slope - slope.mean(), atol=1e-8, rtol=1e-6)
        assert abs(float(found.sum())) < 1e-12


def test_by_default_the_norm_keeps_its_scale() -> None:
    for head, pool in (("cls", _first), ("cls_mean", _both)):
        lens = lens_with_readout(head)
        trace = lens.trace(torch.randn(3, 24, 24, dtype=torch.float64))
        feature = strongest(trace, 1)
        model = lens.vision.module
        last = trace.output
        scale = (last.var(1, unbiased=False, keepdim=True) + model.norm.eps).sqrt()
        added = contribution(lens.replacement, trace, 1, feature)
        seen = (added - added.mean(1, keepdim=True)) / scale * model.norm.weight
        effect = pool(seen) @ model.head.weight.T
        found = logit_lens(lens.replacement, trace, 1, feature)
        torch.testing.assert_close(found, effect - effect.mean(), atol=1e-12, rtol=1e-10)


def _first(tokens: Tensor) -> Tensor:
    return tokens[0]


def _both(tokens: Tensor) -> Tensor:
    return torch.cat([tokens[0], tokens[1:].mean(0)])


def test_one_row_per_class_of_the_jacobian(lens: vitlens.Lens, trace: vitlens.Trace) -> None:
    feature = strongest(trace, 0)
    added = contribution(lens.replacement, trace, 0, feature)
    jacobian = torch.autograd.functional.jacobian(
        lambda stream: lens.vision.readout(stream[None])[0], trace.output
    )
    effect = (jacobian * added).sum((1, 2))
    found = logit_lens(lens.replacement, trace, 0, feature, gradient="plain")
    torch.testing.assert_close(found, effect - effect.mean(), atol=1e-10, rtol=1e-8)


def test_contributions_add_up_to_the_stream(lens: vitlens.Lens, trace: vitlens.Trace) -> None:
    zero = vitlens.Baselines(
        [torch.zeros_like(z) for z in trace.features], [torch.zeros_like(e) for e in trace.errors]
    )
    bare = vitlens.Lens(lens.vision, lens.saes, baselines=zero).replacement
    whole = sum(contribution(bare, trace, 1, feature) for feature in range(-1, 30))
    rest = lens.saes[1].b_dec * trace.stds[1] + trace.means[1]
    torch.testing.assert_close(whole + rest, trace.residuals[1])


def test_a_silent_feature_says_nothing(lens: vitlens.Lens, trace: vitlens.Trace) -> None:
    silent = int((trace.features[0] + lens.baselines.features[0]).sum(0).argmin())
    found = logit_lens(lens.replacement, trace, 0, silent)
    assert torch.equal(found, torch.zeros_like(found))
    assert math.isfinite(float(found.abs().max()))


@pytest.mark.parametrize("node", [(2, 0), (-1, 0), (0, 30), (0, -2)])
def test_there_must_be_such_a_feature(
    lens: vitlens.Lens, trace: vitlens.Trace, node: tuple[int, int]
) -> None:
    with pytest.raises(FeatureError, match=r"there is no"):
        logit_lens(lens.replacement, trace, *node)


def test_the_lens_names_the_classes() -> None:
    lens = lens_with_readout("cls")
    image = torch.randn(3, 24, 24, dtype=torch.float64)
    trace = lens.trace(image)
    feature = strongest(trace, 1)
    effects = logit_lens(lens.replacement, trace, 1, feature)
    found = lens.logit_lens(image, 1, feature)
    assert dict(found) == {f"class {i}": float(x) for i, x in enumerate(effects)}
    assert [value for _, value in found] == sorted(effects.tolist(), reverse=True)
    with pytest.raises(OptionError, match="gradient must be one of"):
        lens.logit_lens(image, 1, feature, gradient="steep")  # type: ignore[arg-type]
