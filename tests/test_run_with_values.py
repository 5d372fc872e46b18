"""Setting features to values, against a slow program with forward hooks, in float64."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny_image, tiny_lens
from vitlens.errors import FeatureError
from vitlens.lens import Lens


def hooked(
    lens: Lens,
    image: torch.Tensor,
    values: dict[tuple[int, int], float],
    keep: list[list[int]] | None = None,
    errors_off: tuple[int, ...] = (),
) -> torch.Tensor:
    """Logits of the plain model with a hook after each block, token by token."""
    clean: list[torch.Tensor] = []
    model = lens.vit.model

    def note(module: object, args: object, out: torch.Tensor) -> None:
        clean.append(out[0].detach().clone())

    with torch.no_grad():
        handles = [block.register_forward_hook(note) for block in model.blocks]
        model(image[None])
        for handle in handles:
            handle.remove()
        handles = []
        for layer, sae in enumerate(lens.saes):

            def change(module, args, out, layer=layer, sae=sae):
                before = sae(clean[layer])
                now, mean, std = sae.encode_with_stats(out[0])
                for token in range(len(now)):
                    for feature in range(sae.size):
                        if keep is not None and feature not in keep[layer]:
                            now[token, feature] = lens.baselines.features[layer][token, feature]
                        active = before.features[token, feature] > 0
                        if (layer, feature) in values and active:
                            now[token, feature] = values[layer, feature]
                error = lens.baselines.errors[layer] if layer in errors_off else before.error
                return (sae.decode(now, mean, std) + error)[None]

            handles.append(model.blocks[layer].register_forward_hook(change))
        logits = model(image[None])[0]
        for handle in handles:
            handle.remove()
    return logits


@pytest.fixture
def lens() -> Lens:
    return tiny_lens(7, dtype=torch.float64)


def active(lens: Lens, image: torch.Tensor, layer: int) -> list[int]:
    sums = lens.trace(image).features[layer].sum(0)
    return sums.argsort(descending=True).tolist()


@pytest.mark.parametrize("value", [0.0, 3.5, -2.0])
def test_one_value(lens: Lens, value: float) -> None:
    image = tiny_image(7, torch.float64)
    values = {(1, active(lens, image, 1)[0]): value}
    found = lens.run_with(image, values=values)
    torch.testing.assert_close(found, hooked(lens, image, values), rtol=0, atol=1e-10)
    assert not torch.allclose(found, lens.trace(image).logits, atol=1e-4)


def test_values_in_several_layers_with_features_kept(lens: Lens) -> None:
    image = tiny_image(8, torch.float64)
    values = {(layer, active(lens, image, layer)[place]): 1.5 for layer, place in enumerate((0, 2))}
    keep = [list(range(0, 30, 2))] * 3
    found = lens.run_with(image, keep, values=values)
    torch.testing.assert_close(found, hooked(lens, image, values, keep), rtol=0, atol=1e-10)


def test_error_nodes_by_layer(lens: Lens) -> None:
    image = tiny_image(9, torch.float64)
    found = lens.run_with(image, errors=["clean", "baseline", "clean"])
    expected = hooked(lens, image, {}, errors_off=(1,))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    with pytest.raises(FeatureError, match="all 3 layers"):
        lens.run_with(image, errors=["clean"])
    with pytest.raises(FeatureError, match="errors must be one of"):
        lens.run_with(image, errors=["clean", "clean", "leaf"])


def test_nothing_changed_is_the_model(lens: Lens) -> None:
    image = tiny_image(7, torch.float64)
    torch.testing.assert_close(lens.run_with(image), lens.trace(image).logits)
    silent = active(lens, image, 0)[-1]
    assert not lens.trace(image).features[0][:, silent].any()
    unchanged = lens.run_with(image, values={(0, silent): 9.0})
    torch.testing.assert_close(unchanged, lens.trace(image).logits)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({(3, 0): 1.0}, "layers 0 to 2"),
        ({(0, 30): 1.0}, "features 0 to 29"),
        ({(0, -1): 1.0}, "features 0 to 29"),
        ({(0, 0): float("nan")}, "cannot be set to nan"),
    ],
)
def test_values_that_make_no_sense(lens: Lens, values: dict, words: str) -> None:
    with pytest.raises(FeatureError, match=words):
        lens.run_with(tiny_image(7, torch.float64), values=values)
