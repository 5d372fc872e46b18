"""Top-k and image budgets: which features are active, and the reference numbers."""

import json

import pytest
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from vitlens.errors import CheckpointError
from vitlens.models.vision import VisionModel
from vitlens.saes import TopKSAE
from vitlens.saes.topk import budget_mask

D, F, K = 6, 10, 3


def random_sae(width=D, size=F, k=K, budget=None, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(size, width, generator=generator, dtype=dtype)
    return TopKSAE.from_weights(
        W_enc=torch.randn(width, size, generator=generator, dtype=dtype),
        W_dec=torch.nn.functional.normalize(W_dec, dim=-1),
        b_dec=torch.randn(width, generator=generator, dtype=dtype),
        k=k,
        budget=budget,
    )


def tokens(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=generator, dtype=torch.float64) + 1


def test_one_token_by_hand():
    # x = (0, 2): mean 1, sd sqrt 2, xn = (-1, 1) / sqrt 2 up to the epsilon.
    one = torch.ones((), dtype=torch.float64)
    sae = TopKSAE.from_weights(
        W_enc=torch.tensor([[1.0, 0, -1], [0, 1, 0]]).double(),
        W_dec=torch.tensor([[1.0, 0], [0, 1], [-1, 0]]).double(),
        b_dec=torch.zeros(2).double(),
        k=1,
    )
    out = sae(torch.tensor([0.0, 2.0]).double())
    sd = 2**0.5
    n = one / (sd + 1e-5)
    assert out.features.count_nonzero() == 1  # features 1 and 2 tie; one of them is kept
    assert out.features.max() == pytest.approx(float(n), rel=1e-15)
    assert float(out.mean) == 1
    assert float(out.std) == pytest.approx(sd, rel=1e-15)


@pytest.mark.parametrize("name", ["vit_cls", "vit_avgpool_fcnorm", "vit_reg_layerscale"])
def test_reference_medians_of_features_and_errors(reference_folder, name):
    facts = json.loads((reference_folder / f"{name}.json").read_text())
    data = load_file(reference_folder / f"{name}.safetensors")
    model = VisionTransformer(**facts["timm_VisionTransformer"]).eval()
    model.load_state_dict({k[6:]: v for k, v in data.items() if k.startswith("model.")})
    residuals = VisionModel(model.double()).residuals(data["images"].double())
    for layer, k in enumerate(facts["top_k"]):
        weights = {n: data[f"sae.{layer}.{n}"].double() for n in ("W_enc", "W_dec", "b_dec")}
        out = TopKSAE.from_weights(**weights, k=k)(residuals[layer])
        torch.testing.assert_close(
            out.features.median(0).values, data[f"baseline.{layer}.features"], rtol=1e-9, atol=1e-12
        )
        torch.testing.assert_close(
            out.error.median(0).values, data[f"baseline.{layer}.errors"], rtol=1e-9, atol=1e-12
        )


def test_k_may_be_every_feature():
    sae, x = random_sae(k=F), tokens(3, D)
    values = sae.normalize(x).values
    torch.testing.assert_close(sae.encode(x), torch.relu((values - sae.b_dec) @ sae.W_enc))


def test_weights_are_copied_and_need_no_gradient():
    W_enc = torch.ones(D, F)
    sae = TopKSAE.from_weights(W_enc=W_enc, W_dec=torch.ones(F, D), b_dec=torch.zeros(D), k=1)
    W_enc.zero_()
    assert sae.W_enc.sum() == D * F
    assert not any(parameter.requires_grad for parameter in sae.parameters())
    assert (sae.d_model, sae.n_features, sae.k) == (D, F, 1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"W_dec": torch.zeros(D, F)}, "Expected W_enc"),
        ({"b_dec": torch.zeros(F)}, "Expected W_enc"),
        ({"W_enc": torch.zeros(D)}, "Expected W_enc"),
        ({"b_dec": torch.full((D,), torch.nan)}, "b_dec holds values that are not finite"),
        ({"b_dec": torch.zeros(D, dtype=torch.float64)}, "one floating-point dtype"),
        ({"k": 0}, "between 1 and the 10 features"),
        ({"k": F + 1}, "between 1 and the 10 features"),
        ({"k": 2.5}, "whole number"),
        ({"k": True}, "between 1"),
    ],
)
def test_refuses_weights_that_do_not_fit(changed, message):
    weights = {"W_enc": torch.zeros(D, F), "W_dec": torch.zeros(F, D), "b_dec": torch.zeros(D)}
    with pytest.raises(CheckpointError, match=message):
        TopKSAE.from_weights(**{**weights, "k": K, **changed})


def test_refuses_integer_weights():
    with pytest.raises(CheckpointError, match="floating-point"):
        TopKSAE.from_weights(
            W_enc=torch.zeros(D, F).int(),
            W_dec=torch.zeros(F, D).int(),
            b_dec=torch.zeros(D).int(),
            k=1,
        )


def test_equal_activations_within_a_budget_go_to_the_lowest_index():
    activations = torch.tensor([[1.0, 2.0, 0.0, 2.0, 1.0], [1.0, 0.0, 2.0, 0.0, 1.0]])
    assert budget_mask(activations, 2).tolist() == [[False, True, True, False, False]]
    assert budget_mask(activations, 4).tolist() == [[True, True, True, True, False]]


def test_each_image_has_its_own_budget():
    sae = random_sae(budget=4)
    images = tokens(20, 7, D)
    features = sae.encode(images)
    for image, found in zip(images, features, strict=True):
        assert torch.equal(sae.encode(image), found)
        assert (found > 0).any(0).sum() <= 4
    assert ((features > 0).any(1) != (features > 0).any(1)[0]).any()
    assert sae.needs_whole_images and not random_sae().needs_whole_images
    assert (sae.max_active, random_sae(budget=2).max_active) == (K, 2)


def test_a_budget_of_all_features_is_no_budget():
    images = tokens(2, 7, D)
    assert torch.equal(random_sae(budget=F).encode(images), random_sae().encode(images))


def test_a_budget_needs_all_tokens_of_an_image():
    with pytest.raises(CheckpointError, match="needs all tokens of an image"):
        random_sae(budget=4).encode(tokens(D))


@pytest.mark.parametrize("budget", [0, F + 1, 2.5, True])
def test_refuses_budgets_that_do_not_fit(budget):
    with pytest.raises(CheckpointError, match=r"(?i)the budget"):
        random_sae(budget=budget)
