"""Path-integrated importance: reference numbers, an independent program, and its own sum."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import vitlens
from tests.builders import REFERENCES, reference, tiny_image, tiny_lens
from vitlens.errors import FeatureError, OptionError, TargetError
from vitlens.method.importance import resolve_target
from vitlens.method.path_importance import path_importances
from vitlens.method.replacement import Baselines, Change, SiteState
from vitlens.saes.topk import TopKSAE

DOUBLE = torch.float64


def lens_of_reference(name: str, dtype: torch.dtype) -> vitlens.Lens:
    ref = reference(name, dtype)
    data, sites = ref.data, range(len(ref.saes))
    means = Baselines(
        [data[f"mean.{i}.features"] for i in sites], [data[f"mean.{i}.errors"] for i in sites]
    )
    return vitlens.Lens(ref.model, ref.saes, baselines=means)


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", REFERENCES)
def test_reference_numbers(name: str, dtype: torch.dtype, tolerance: float) -> None:
    ref, lens = reference(name, dtype), lens_of_reference(name, dtype)
    for n, target in enumerate(ref.config["targets"]):
        found = lens.path_importances(ref.data["images"][n], target=target)
        assert len(found) == len(lens.layers)
        for i, of_site in enumerate(found):
            expected = ref.data[f"image{n}.path8.nodes.{i}"]
            error = (of_site - expected).norm() / expected.norm()
            assert float(error) < tolerance, (n, i)


def test_all_importances_add_up_to_the_distance_from_the_empty_to_the_full_model() -> None:
    # All features may be active and the SAEs do not normalise: the target is smooth on the path.
    saes = [
        TopKSAE.from_weights(
            W_enc=sae.W_enc, W_dec=sae.W_dec, b_dec=sae.b_dec, k=sae.n_features,
            normalization="none",
        )
        for sae in tiny_lens(dtype=DOUBLE).saes
    ]  # fmt: skip
    lens = vitlens.Lens(tiny_lens(dtype=DOUBLE).vision.module, saes)
    image = tiny_image(1, DOUBLE)
    empty = lens.run_with(image, keep=[[]] * 3)
    target = resolve_target(2, empty).function
    distance = float(target(lens.trace(image).logits) - target(empty))
    off = [
        abs(sum(float(p.sum()) for p in lens.path_importances(image, target=2, steps=s)) - distance)
        for s in (1, 64)
    ]
    assert off[1] < 5e-3 * abs(distance) < off[0] < abs(distance)


def test_gates_outside_of_the_set_stay_closed() -> None:
    """With nothing inside, the path is a point: the slope at the empty model."""
    lens, image = tiny_lens(dtype=DOUBLE), tiny_image(1, DOUBLE)
    trace = lens.trace(image)
    target = resolve_target(2, trace.logits)
    nothing = [torch.zeros(sae.n_features, dtype=torch.bool) for sae in lens.saes]
    once, often = (
        path_importances(lens.replacement, trace, target, steps=s, within=nothing) for s in (1, 5)
    )
    for a, b in zip(once, often, strict=True):
        torch.testing.assert_close(a, b)
    # The slope of the last site's gates is the effect of a small step.
    step = 1e-6
    strongest = int(once[-1].abs().argmax())
    position = len(lens.saes) - 1
    effect = [
        float(target.function(lens.replacement.run(trace, _Step(position, strongest, size))[0]))
        for size in (-step, step)
    ]
    assert float(once[-1][strongest]) == pytest.approx((effect[1] - effect[0]) / 2 / step, rel=1e-4)


@dataclass(frozen=True)
class _Step(Change):
    """All features at their baselines; one moves a little towards its activation."""

    position: int
    feature: int
    size: float

    def touches(self, position: int) -> bool:
        return True

    def features(self, state: SiteState) -> torch.Tensor:
        new = state.baseline.features.expand_as(state.features).clone()
        if state.position == self.position:
            moved = (state.features - new)[..., self.feature]
            new[..., self.feature] += self.size * moved
        return new


def test_bad_input() -> None:
    lens, image = tiny_lens(), tiny_image(0)
    for steps in (0, -1, 2.5, True):
        with pytest.raises(FeatureError, match="steps must be a whole number"):
            lens.path_importances(image, steps=steps)
    with pytest.raises(OptionError, match="error_nodes"):
        lens.path_importances(image, error_nodes="held")
    with pytest.raises(TargetError, match="no derivative"):
        lens.path_importances(image, target=lambda y: y.detach()[0])


def test_the_model_and_global_state_stay_as_they_are() -> None:
    lens, image = tiny_lens(), tiny_image(0)
    weights = {name: w.clone() for name, w in lens.vision.module.state_dict().items()}
    expected = lens.path_importances(image)
    with torch.no_grad():
        found = lens.path_importances(image)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        inside = lens.path_importances(image)
    for a, b, c in zip(expected, found, inside, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert all(p.grad is None for p in lens.vision.module.parameters())
    for name, w in lens.vision.module.state_dict().items():
        assert torch.equal(w, weights[name])
