"""Equations (1) to (5), and what is constant in derivatives, hold for every kind of SAE."""

import numpy as np
import pytest
import torch

from tests.builders import KINDS, sae_of_kind
from vitlens.errors import CheckpointError, OptionError
from vitlens.saes import SAE, SAE_KINDS, ReLUSAE, TopKSAE, check_widths
from vitlens.saes.base import register

D, F, T, SCALE = 24, 30, 10, 3.0
NORMALIZATIONS = ("layer", "none", "fixed")


@pytest.fixture(params=[(k, n) for k in KINDS for n in NORMALIZATIONS], ids="-".join)
def sae(request):
    kind, normalization = request.param
    # b_enc and subtract_b_dec take turns, so that each of their values meets each kind.
    odd = (KINDS.index(kind) + NORMALIZATIONS.index(normalization)) % 2 == 1
    return sae_of_kind(
        kind,
        normalization=normalization,
        scale=SCALE,
        b_enc=not odd,
        subtract_b_dec=odd,
        dtype=torch.float64,
    )


def tokens(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return SCALE * torch.randn(*shape, generator=generator, dtype=torch.float64) + 0.5


def by_hand(sae, image):
    """Equations (1) to (4) for one image [T, D], in NumPy, token by token."""
    weights = {name: tensor.numpy() for name, tensor in sae.state_dict().items()}
    means, scales, stds, active = [], [], [], []
    for x in image.numpy():
        if sae.normalization == "layer":
            mean = x.sum() / D
            std = (((x - mean) ** 2).sum() / (D - 1)) ** 0.5
            scale = std + 1e-5
        elif sae.normalization == "fixed":
            mean, std = weights["input_mean"], float(weights["input_scale"])
            scale = std
        else:
            mean, std, scale = 0.0, 1.0, 1.0
        xn = (x - mean) / scale
        pre = (xn - weights["b_dec"] if sae.subtract_b_dec else xn) @ weights["W_enc"]
        active.append(np.maximum(pre + weights.get("b_enc", 0), 0))
        means.append(mean)
        scales.append(scale)
        stds.append(std)
    active = np.stack(active)
    if getattr(sae, "budget", None) is not None:
        strength = (active**2).sum(0)
        allowed = np.argsort(-strength, kind="stable")[: sae.budget]
        active = np.where(np.isin(np.arange(F), allowed), active, 0)
    z = np.zeros_like(active)
    for t, a in enumerate(active):
        if sae.kind == "topk":
            keep = np.argsort(-a)[: sae.k]
        else:
            keep = np.flatnonzero(a > weights.get("threshold", 0.0))
        z[t, keep] = a[keep]
    rebuilt = [
        (z[t] @ weights["W_dec"] + weights["b_dec"]) * stds[t] + means[t] for t in range(len(z))
    ]
    return z, np.stack(rebuilt), np.array(scales)


def test_encode_and_decode_by_hand(sae):
    images = tokens(3, T, D)
    out = sae(images)
    for n, image in enumerate(images):
        z, x_hat, scale = by_hand(sae, image)
        assert 0 < (z > 0).sum() < z.size
        np.testing.assert_allclose(out.features[n], z, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(out.reconstruction[n], x_hat, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(sae.input_scale_of(out.std[n])[:, 0], scale, rtol=1e-12)
    torch.testing.assert_close(out.reconstruction + out.error, images, rtol=1e-12, atol=1e-12)
    assert torch.equal(sae.encode(images), out.features)
    assert (out.features > 0).sum(-1).max() <= sae.max_active <= F


def test_an_active_feature_is_linear_in_its_token(sae):
    x = tokens(T, D)
    features, _, std = sae.encode_with_stats(x)
    active = features > 0
    # The definition: the row over the scale, where the mask is true, on the same token only.
    rows = sae.encoder_rows() / sae.input_scale_of(std)[:, None]
    expected = torch.zeros(T, F, T, D, dtype=torch.float64)
    expected[range(T), :, range(T)] = rows * active[..., None]
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(jacobian(sae.encode)(x), expected, rtol=1e-10, atol=1e-12)
    some = torch.tensor([3, 0, 17])
    torch.testing.assert_close(sae.encoder_rows(some), sae.encoder_rows()[some])


def test_masks_and_scale_are_constants_and_the_mean_is_not(sae):
    x = tokens(2, T, D).requires_grad_()
    out = sae(x)
    weight = tokens(2, T, D, seed=2)
    (found,) = torch.autograd.grad((out.reconstruction * weight).sum(), x)
    # The same with everything but the mean written as a constant.
    fixed = sae(x.detach())
    y = x.detach().requires_grad_()
    mean = y.mean(-1, keepdim=True) if sae.normalization == "layer" else fixed.mean
    values = (y - mean) / sae.input_scale_of(fixed.std)
    features = torch.relu(sae.pre_activations(values)) * (fixed.features > 0)
    rebuilt = (features @ sae.W_dec + sae.b_dec) * fixed.std + mean
    (expected,) = torch.autograd.grad((rebuilt * weight).sum(), y)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_mask_of_ones_own_takes_the_place_of_the_kinds(sae):
    x = tokens(T, D)
    active = torch.rand(T, F, generator=torch.Generator().manual_seed(0)) < 0.5
    features = sae.encode(x, active=active)
    everything = sae.encode(x, active=torch.ones_like(active))
    assert torch.equal(features, torch.where(active, everything, 0.0))
    assert torch.equal(everything, torch.relu(sae.pre_activations(sae.normalize(x).values)))
    assert torch.equal(sae.encode(x, active=sae.encode(x) > 0), sae.encode(x))


def test_works_under_vmap_jvp_and_vjp(sae):
    x, directions = tokens(T, D), tokens(5, T, D, seed=2)
    images = tokens(3, T, D)
    torch.testing.assert_close(torch.func.vmap(sae.encode)(images), sae.encode(images))

    def push(direction):
        return torch.func.jvp(sae.encode, (x,), (direction,))[1]

    pushed = torch.func.vmap(push)(directions)
    jacobian = torch.func.jacrev(sae.encode)(x)
    expected = torch.einsum("tfsd,nsd->ntf", jacobian, directions)
    torch.testing.assert_close(pushed, expected, rtol=1e-10, atol=1e-12)
    _, pull = torch.func.vjp(sae.encode, x)
    (pulled,) = pull(torch.ones(T, F, dtype=torch.float64))
    torch.testing.assert_close(pulled, jacobian.sum((0, 1)), rtol=1e-10, atol=1e-12)


def test_a_constant_token_stays_finite(sae):
    out = sae(torch.full((2, D), 5.0, dtype=torch.float64))
    assert all(torch.isfinite(part).all() for part in out)


def test_settings_and_tensors_rebuild_an_sae(sae):
    copy = SAE.from_tensors(sae.state_dict(), sae.settings())
    assert type(copy) is type(sae) is SAE_KINDS[sae.kind]
    assert copy.settings() == sae.settings()
    x = tokens(2, T, D)
    assert torch.equal(copy.encode(x), sae.encode(x))
    assert f"d_model={D}, n_features={F}" in repr(copy)
    assert sae.d_model == D and sae.n_features == F


def test_tensors_are_copied_and_need_no_gradient(sae):
    tensors = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    copy = SAE.from_tensors(tensors, sae.settings())
    for tensor in tensors.values():
        tensor.zero_()
    for name, tensor in sae.state_dict().items():
        assert torch.equal(copy.state_dict()[name], tensor)
    assert not any(parameter.requires_grad for parameter in copy.parameters())


def test_all_tensors_move_together(sae):
    moved = SAE.from_tensors(sae.state_dict(), sae.settings()).float()
    assert {tensor.dtype for tensor in moved.state_dict().values()} == {torch.float32}
    x = tokens(T, D).float()
    assert moved.encode(x).dtype == torch.float32


def tensors_of(**changes):
    tensors = {"W_enc": torch.zeros(D, F), "W_dec": torch.zeros(F, D), "b_dec": torch.zeros(D)}
    return {**tensors, **changes}


@pytest.mark.parametrize(
    ("tensors", "settings", "message"),
    [
        (tensors_of(W_dec=torch.zeros(D, F)), {}, "Expected W_enc"),
        (tensors_of(b_enc=torch.zeros(D)), {}, "Expected W_enc"),
        (tensors_of(W_enc=torch.zeros(D, 0), W_dec=torch.zeros(0, D)), {}, "Expected W_enc"),
        (tensors_of(b_enc=torch.zeros(F).double()), {}, "one floating-point dtype"),
        (tensors_of(b_enc=torch.full((F,), torch.nan)), {}, "b_enc holds values that are not"),
        (tensors_of(threshold=torch.tensor(0.0)), {}, "not expected: .'threshold'."),
        ({"W_enc": torch.zeros(D, F)}, {}, r"missing: \['W_dec', 'b_dec'\]"),
        (tensors_of(), {"normalization": "fixed"}, "missing: .'input_mean', 'input_scale'."),
        (
            tensors_of(input_mean=torch.zeros(D), input_scale=torch.tensor(0.0)),
            {"normalization": "fixed"},
            "scale must be above 0",
        ),
    ],
)
def test_tensors_that_do_not_fit(tensors, settings, message):
    with pytest.raises(CheckpointError, match=message):
        ReLUSAE(tensors, **settings)


def test_an_unknown_normalization_is_refused():
    with pytest.raises(OptionError, match="normalization must be one of layer, none, fixed"):
        ReLUSAE(tensors_of(), normalization="batch")


def test_tokens_of_another_width_are_refused(sae):
    with pytest.raises(CheckpointError, match=f"width {D}, but the tokens have width {D + 1}"):
        sae.encode(tokens(2, D + 1))


def test_saes_of_another_width_are_refused():
    saes = [sae_of_kind("topk"), sae_of_kind("relu")]
    check_widths(saes, (2, 5), d_model=D)
    with pytest.raises(CheckpointError, match=f"layer 2 has width {D}, the model 8"):
        check_widths(saes, (2, 5), d_model=8)


def test_a_kind_of_ones_own_is_registered_by_one_line(monkeypatch):
    monkeypatch.setattr("vitlens.saes.base.SAE_KINDS", kinds := dict(SAE_KINDS))

    @register
    class FirstFeatures(SAE):
        kind = "first"

        def __init__(self, tensors, *, n, **settings):
            super().__init__(tensors, **settings)
            self.n = n

        def kind_settings(self):
            return {"n": self.n}

        def active_mask(self, activations):
            return torch.arange(F) < self.n

    assert kinds["first"] is FirstFeatures
    tensors = sae_of_kind("topk").state_dict()
    sae = SAE.from_tensors(tensors, {"kind": "first", "n": 3})
    assert SAE.from_tensors(tensors, sae.settings()).n == 3
    features = sae.encode(tokens(T, D).float())
    everything = TopKSAE(tensors, k=F).encode(tokens(T, D).float())
    assert torch.equal(features[:, :3], everything[:, :3]) and not features[:, 3:].any()
