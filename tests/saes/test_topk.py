import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from vitlens.errors import CheckpointError
from vitlens.models.vision import VisionModel
from vitlens.saes import TopKSAE, check_widths

D, F, K = 6, 10, 3


def random_sae(width=D, size=F, k=K, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(size, width, generator=generator, dtype=dtype)
    return TopKSAE.from_weights(
        W_enc=torch.randn(width, size, generator=generator, dtype=dtype),
        W_dec=torch.nn.functional.normalize(W_dec, dim=-1),
        b_dec=torch.randn(width, generator=generator, dtype=dtype),
        k=k,
    )


def tokens(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=generator, dtype=torch.float64) + 1


def numpy_sae(sae, x):
    """The definition, token by token."""
    W_enc, W_dec, b_dec = (w.numpy() for w in (sae.W_enc, sae.W_dec, sae.b_dec))
    mean = sum(x) / len(x)
    sd = (sum((x - mean) ** 2) / (len(x) - 1)) ** 0.5
    pre = ((x - mean) / (sd + 1e-5) - b_dec) @ W_enc
    z = np.zeros(len(pre))
    for f in np.argsort(-pre)[: sae.k]:
        z[f] = max(pre[f], 0)
    return z, (z @ W_dec + b_dec) * sd + mean, sd


def test_matches_the_definition_in_numpy():
    sae, x = random_sae(), tokens(7, D)
    out = sae(x)
    for i, token in enumerate(x.numpy()):
        z, x_hat, sd = numpy_sae(sae, token)
        np.testing.assert_allclose(out.features[i], z, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(out.reconstruction[i], x_hat, rtol=1e-12)
        np.testing.assert_allclose(out.std[i], sd, rtol=1e-12)
    torch.testing.assert_close(out.reconstruction + out.error, x, rtol=1e-14, atol=0)
    torch.testing.assert_close(sae.encode(x[None]), out.features[None])


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


def test_jacobian_keeps_std_and_mask_constant_but_not_the_mean():
    sae, x = random_sae(), tokens(D)
    features = sae.encode(x)
    centring = torch.eye(D, dtype=torch.float64) - 1 / D
    expected = (sae.W_enc * (features > 0)).T @ centring / (x.std() + 1e-5)
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(jacobian(sae.encode)(x), expected, rtol=1e-12, atol=1e-14)


def test_jacobian_of_the_reconstruction():
    sae, x = random_sae(), tokens(D)
    std = x.std()
    active = (sae.encode(x) > 0).double()
    through = (sae.W_enc * active) @ sae.W_dec * (std / (std + 1e-5))
    centring = torch.eye(D, dtype=torch.float64) - 1 / D
    expected = through.T @ centring + 1 / D
    found = torch.func.jacrev(lambda x: sae(x).reconstruction)(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_works_under_vmap_jvp_and_vjp():
    sae, x, directions = random_sae(), tokens(4, D), tokens(5, 4, D, seed=2)
    torch.testing.assert_close(torch.func.vmap(sae.encode)(x), sae.encode(x))

    def push(direction):
        return torch.func.jvp(sae.encode, (x,), (direction,))[1]

    pushed = torch.func.vmap(push)(directions)
    jacobian = torch.func.jacrev(sae.encode)(x)
    expected = torch.einsum("tfsd,nsd->ntf", jacobian, directions)
    torch.testing.assert_close(pushed, expected, rtol=1e-12, atol=1e-13)

    _, pull = torch.func.vjp(sae.encode, x)
    (pulled,) = pull(torch.ones(4, F, dtype=torch.float64))
    torch.testing.assert_close(pulled, jacobian.sum((0, 1)), rtol=1e-12, atol=1e-13)


def test_constant_token_stays_finite():
    out = random_sae()(torch.full((2, D), 5.0, dtype=torch.float64))
    assert all(torch.isfinite(part).all() for part in out)


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


def test_refuses_tokens_of_another_width():
    with pytest.raises(CheckpointError, match="width 6, the tokens have width 7"):
        random_sae().encode(tokens(2, D + 1))


def test_check_widths():
    saes = [random_sae(), random_sae()]
    check_widths(saes, (2, 5), d_model=D)
    with pytest.raises(CheckpointError, match="layer 2 has width 6, the model 8"):
        check_widths(saes, (2, 5), d_model=8)
