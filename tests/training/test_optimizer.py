"""Hand-written gradients are those of autograd, steps those of torch's Adam; dead features."""

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

from tests.builders import KINDS, sae_of_kind
from vitlens.errors import CheckpointError
from vitlens.models.vision import VisionModel
from vitlens.saes import TopKSAE
from vitlens.training.config import TrainConfig
from vitlens.training.optimizer import Learner, gradients
from vitlens.training.run import _Training

WIDTH, SIZE, K, N = 8, 24, 3, 40


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, WIDTH, generator=generator, dtype=torch.float64)


def random_weights():
    generator = torch.Generator().manual_seed(1)
    shapes = {"W_enc": (WIDTH, SIZE), "W_dec": (SIZE, WIDTH), "b_dec": (WIDTH,)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def top(values, k):
    return values * torch.zeros_like(values).scatter(-1, values.topk(k).indices, 1)


def loss_by_autograd(weights, tokens, dead, *, aux_weight, aux_features, allowed=1.0):
    """The loss as it is written in the paper, for autograd; `allowed` features of each image."""
    pre = torch.relu((tokens - weights["b_dec"]) @ weights["W_enc"])
    error = tokens - top(pre * allowed, K) @ weights["W_dec"] - weights["b_dec"]
    loss = error.square().mean()
    if len(dead):
        aux = top(pre[..., dead], min(aux_features, len(dead))) @ weights["W_dec"][dead]
        loss = loss + aux_weight * (aux - error.detach()).square().mean()
    return loss


@pytest.mark.parametrize(("n_dead", "aux_features"), [(0, 4), (3, 4), (9, 4)])
def test_gradients_match_autograd(tokens, n_dead, aux_features):
    dead = torch.arange(0, 2 * n_dead, 2)
    weights = random_weights()
    settings = {"aux_weight": 1 / 32, "aux_features": aux_features}
    sae = TopKSAE.from_weights(**weights, k=K)
    found = gradients(sae, tokens, dead, **settings, matmul_dtype=torch.float64)
    for weight in weights.values():
        weight.requires_grad_()
    loss_by_autograd(weights, tokens, dead, **settings).backward()
    for name, weight in weights.items():
        torch.testing.assert_close(getattr(found, name), weight.grad, rtol=1e-10, atol=1e-14)
    features = sae.encode_normalized(tokens)
    error = tokens - features @ sae.W_dec - sae.b_dec
    torch.testing.assert_close(found.squared_error, error.square().sum())
    torch.testing.assert_close(
        found.total_square, (tokens - tokens.mean(0)).square().sum(), rtol=1e-10, atol=0
    )
    assert torch.equal(found.active, (features > 0).any(0))


@pytest.mark.parametrize("budget", [1, 4, 9, SIZE])
def test_gradients_with_an_image_budget_match_autograd(tokens, budget):
    images, weights = tokens.reshape(4, 10, WIDTH), random_weights()
    dead, settings = torch.tensor([1, 20, 22]), {"aux_weight": 1 / 32, "aux_features": 2}
    sae = TopKSAE.from_weights(**weights, k=K, budget=budget)
    found = gradients(sae, images, dead, **settings, matmul_dtype=torch.float64)
    active = torch.relu((images - weights["b_dec"]) @ weights["W_enc"])
    strongest = active.square().sum(1).argsort(dim=-1, descending=True)[:, :budget]
    allowed = torch.zeros(4, SIZE).double().scatter(-1, strongest, 1.0)[:, None]
    for weight in weights.values():
        weight.requires_grad_()
    loss_by_autograd(weights, images, dead, **settings, allowed=allowed).backward()
    for name, weight in weights.items():
        torch.testing.assert_close(getattr(found, name), weight.grad, rtol=1e-10, atol=1e-14)
    features = sae.encode_normalized(images)
    assert torch.equal(found.active, (features > 0).flatten(0, 1).any(0))
    assert (features > 0).any(1).sum(-1).max() <= budget


def test_features_that_are_not_above_zero_get_no_gradient(tokens):
    weights = random_weights()
    none = torch.tensor([], dtype=torch.int64)
    weights["W_enc"][:, 0] = 0
    sae = TopKSAE.from_weights(**weights, k=SIZE)
    found = gradients(sae, tokens, none, aux_weight=0.0, aux_features=0, matmul_dtype=torch.float64)
    for weight in weights.values():
        weight.requires_grad_()
    features = torch.relu((tokens - weights["b_dec"]) @ weights["W_enc"])
    (tokens - features @ weights["W_dec"] - weights["b_dec"]).square().mean().backward()
    for name, weight in weights.items():
        torch.testing.assert_close(getattr(found, name), weight.grad, rtol=1e-10, atol=1e-14)
    assert torch.equal(found.active, (features > 0).any(0)) and not found.active[0]


def test_bfloat16_gradients_are_close(tokens):
    sae = TopKSAE.from_weights(**random_weights(), k=SIZE).float()
    settings = {"aux_weight": 0.0, "aux_features": 0}
    none = torch.tensor([], dtype=torch.int64)
    exact = gradients(sae, tokens.float(), none, **settings, matmul_dtype=torch.float32)
    low = gradients(sae, tokens.bfloat16(), none, **settings, matmul_dtype=torch.bfloat16)
    for name in ("W_enc", "W_dec", "b_dec"):
        difference = (getattr(low, name) - getattr(exact, name)).norm()
        assert difference < 0.02 * getattr(exact, name).norm()


class Training(_Training):
    """One layer under training, one step after another."""

    def __init__(self, **changes):
        model = VisionTransformer(img_size=8, patch_size=8, embed_dim=WIDTH, depth=2, num_heads=2)
        settings = {"sizes": SIZE, "k": K, "dead_after": 2, "aux_features": 4, **changes}
        super().__init__(VisionModel(model.eval().double()), (0,), TrainConfig(**settings))

    def step(self, tokens, learning_rate):
        _, active = self.gradients([tokens])
        self.learner.step(learning_rate, active)


def test_start_is_tied_with_unit_rows_and_the_mean_as_bias(tokens):
    training = Training()
    (sae,) = training.learner.saes
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(SIZE, dtype=torch.float64))
    training.step(tokens, learning_rate=0.0)
    torch.testing.assert_close(sae.b_dec.detach(), tokens.mean(0))


def test_the_seed_decides_on_the_first_weights():
    one, same, other = (Training(seed=seed).learner.saes[0].W_dec for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.isclose(one, other).all(1).any()


def test_steps_match_autograd_with_torch_adam(tokens):
    training = Training(aux_weight=0.5)
    (sae,) = training.learner.saes
    weights = {name: getattr(sae, name).detach().clone() for name in ("W_enc", "W_dec", "b_dec")}
    weights["b_dec"] = tokens[:5].mean(0)
    weights = {name: weight.requires_grad_() for name, weight in weights.items()}
    adam = torch.optim.Adam(weights.values(), lr=0.05)
    silent = torch.zeros(SIZE)
    took_part = 0
    for batch in tokens.split(5):
        training.step(batch, learning_rate=0.05)
        dead = (silent >= 2).nonzero().flatten()
        took_part += len(dead)
        with torch.no_grad():
            features = top(torch.relu((batch - weights["b_dec"]) @ weights["W_enc"]), K)
        adam.zero_grad()
        loss_by_autograd(weights, batch, dead, aux_weight=0.5, aux_features=4).backward()
        with torch.no_grad():
            W_dec = weights["W_dec"]
            W_dec.grad -= (W_dec.grad * W_dec).sum(-1, keepdim=True) * W_dec
            adam.step()
            W_dec.copy_(F.normalize(W_dec, dim=-1))
        silent = torch.where((features > 0).any(0), 0, silent + 1)
    assert took_part
    assert torch.equal(training.learner.silent[0], silent.long())
    for name, weight in weights.items():
        torch.testing.assert_close(
            getattr(sae, name).detach(), weight.detach(), rtol=1e-7, atol=1e-9
        )
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(SIZE, dtype=torch.float64))


@pytest.mark.parametrize(("aux_weight", "revived"), [(0.0, False), (1 / 32, True)])
def test_aux_loss_revives_dead_features(tokens, aux_weight, revived):
    training = Training(aux_weight=aux_weight, aux_features=256)
    quiet = slice(SIZE // 2, None)
    training.learner.saes[0].W_enc.data[:, quiet] *= 0.01  # too small to be among the k strongest
    used = set()
    for _ in range(100):
        training.step(tokens, learning_rate=0.02)
        used |= set((training.learner.silent[0][quiet] == 0).nonzero().flatten().tolist())
    assert (len(used) > SIZE // 4) == revived


def test_state_round_trip_and_damage(tokens):
    training, other = Training(), Training(seed=5)
    training.step(tokens, learning_rate=0.01)
    state = {name: tensor.clone() for name, tensor in training.learner.state().items()}
    other.learner.load_state(state, step_count=1)
    for each in (training, other):
        each.step(tokens, learning_rate=0.01)
    for name, tensor in training.learner.state().items():
        assert torch.equal(tensor, other.learner.state()[name])
    del state["0.silent"]
    with pytest.raises(CheckpointError, match=r"lacks 0\.silent"):
        other.learner.load_state(state, step_count=1)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_and_decoder_lengths_stay_whatever_the_kind(kind):
    sae = sae_of_kind(kind, normalization="fixed", b_enc=True, dtype=torch.float64)
    sae.W_dec.mul_(torch.linspace(0.5, 2, sae.n_features)[:, None])
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    learner = Learner([sae.requires_grad_()], (3,), learning_rate=0.1, dead_after=2)
    for _ in range(3):
        for parameter in learner.parameters:
            parameter.grad = torch.randn_like(parameter)
        learner.step(0.1, [torch.arange(sae.n_features) % 2 == 0])
    changed = {n for n, tensor in sae.state_dict().items() if not torch.equal(tensor, before[n])}
    assert changed == {"W_enc", "W_dec", "b_dec", "b_enc"}
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), before["W_dec"].norm(dim=-1))
    assert learner.dead()[0].tolist() == list(range(1, sae.n_features, 2))
    assert "3.b_enc.exp_avg" in learner.state() and "3.threshold" not in learner.state()
