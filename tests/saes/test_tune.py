import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

from tests.saes.test_train import (
    Interrupted,
    Stream,
    assert_same,
    make_images,
    make_vit,
    weights_of,
)
from vitlens.errors import CheckpointError, ImageError
from vitlens.saes import (
    TopKSAE,
    TrainConfig,
    TuneConfig,
    chain_losses,
    estimate_tuning,
    load_saes,
    measure,
    save_saes,
    train_saes,
    tune_saes,
)
from vitlens.saes.adam import DictionaryAdam
from vitlens.saes.checkpoint import CHECKPOINT

WIDTH, N_IMAGES = 16, 14


def make_config(**changes):
    return TuneConfig(
        **{"batch_images": 3, "learning_rate": 1e-3, "warmup_steps": 2, "dead_after": 1, **changes}
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
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
    return train_saes(make_vit(), make_images(40), config, out=out).saes


@pytest.fixture(scope="module")
def uninterrupted(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "saes"
    return tune_saes(make_vit(), trained, make_images(), make_config(), out=out)


def rebuild(sae, token):
    """One token through an SAE, by its definition."""
    mean, std = token.mean(), token.detach().std(correction=1)
    normal = (token - mean) / (std + 1e-5)
    active = torch.relu((normal - sae.b_dec) @ sae.W_enc)
    strongest = active.argsort(descending=True)[: sae.k]
    value = sae.b_dec + sum(active[f] * sae.W_dec[f] for f in strongest)
    return value * std + mean


def rebuild_error(sae, token, dead, most):
    """What the strongest dead features make of a token's error, in the stream's units."""
    mean, std = token.mean(), token.std(correction=1)
    active = torch.relu(((token - mean) / (std + 1e-5) - sae.b_dec) @ sae.W_enc)
    strongest = sorted(dead, key=lambda f: -active[f])[:most]
    return sum(active[f] * sae.W_dec[f] for f in strongest) * std


def slow_losses(vision, saes, images, dead, most):
    """The four losses, image by image and token by token."""
    model = vision.module
    own, replaced = [[] for _ in saes], [[] for _ in saes]
    alone, divergences, left = [[] for _ in saes], [], [[] for _ in saes]
    for image in images:
        stream = other = model._pos_embed(model.patch_embed(image[None])).detach()
        for layer, block in enumerate(model.blocks):
            stream, other = block(stream).detach(), block(other)
            if layer < len(saes):
                other = torch.stack([rebuild(saes[layer], t) for t in other[0]])[None]
                own[layer].append(stream[0])
                replaced[layer].append(other[0])
                alone[layer].append(torch.stack([rebuild(saes[layer], t) for t in stream[0]]))
                error = (stream[0] - alone[layer][-1]).detach()
                again = [rebuild_error(saes[layer], t, dead[layer], most) for t in stream[0]]
                left[layer].append(stream[0] - error + torch.stack(again))
        p, q = (model.forward_head(model.norm(s))[0].softmax(-1) for s in (stream, other))
        divergences.append((p.detach() * (p.detach().log() - q.log())).sum())

    def unexplained(found, truth):
        found, truth = torch.cat(found), torch.cat(truth)
        return ((found - truth) ** 2).sum() / ((truth - truth.mean(0)) ** 2).sum()

    return (
        [unexplained(f, t) for f, t in zip(alone, own, strict=True)],
        [unexplained(f, t) for f, t in zip(replaced, own, strict=True)],
        sum(divergences) / len(divergences),
        [unexplained(f, t) for f, t in zip(left, own, strict=True)],
    )


def test_losses_and_gradients_equal_the_slow_ones(trained):
    vision, images = make_vit(), make_images(3)
    with torch.no_grad():
        vision.module.head.weight *= 50  # so that the divergence has a direction
    ours = [sae.requires_grad_() for sae in map(copy_of, trained)]
    theirs = [sae.requires_grad_() for sae in map(copy_of, trained)]
    dead = [[2, 5, 7, 11], [0, 23]]
    found = chain_losses(vision, ours, images, dead=list(map(torch.tensor, dead)), aux_features=3)
    alone, chain, output, aux = slow_losses(vision, theirs, images, dead, 3)
    torch.testing.assert_close(found.alone, torch.stack(alone))
    torch.testing.assert_close(found.chain, torch.stack(chain))
    torch.testing.assert_close(found.output, output)
    torch.testing.assert_close(found.alone[0], found.chain[0])
    torch.testing.assert_close(found.aux, torch.stack(aux))
    found_loss = found.alone.mean() + 0.7 * found.chain.mean() + 0.3 * found.output
    (found_loss + 0.4 * found.aux.mean()).backward()
    (sum(alone) / 2 + 0.7 * sum(chain) / 2 + 0.3 * output + 0.4 * sum(aux) / 2).backward()
    for one, other in zip(ours, theirs, strict=True):
        for name in ("W_enc", "W_dec", "b_dec"):
            torch.testing.assert_close(getattr(one, name).grad, getattr(other, name).grad)


def copy_of(sae, k=None):
    return TopKSAE.from_weights(
        W_enc=sae.W_enc, W_dec=sae.W_dec, b_dec=sae.b_dec, k=sae.k if k is None else k
    )


def test_active_features_are_those_of_the_models_own_stream(trained):
    vision, images = make_vit(), make_images(2)
    found = chain_losses(vision, trained, images)
    assert found.aux.count_nonzero() == 0  # none is dead
    layers = measure(vision, trained, [images]).layers
    for active, layer in zip(found.active, layers, strict=True):
        assert 1 - active.double().mean().item() == pytest.approx(layer.dead_fraction)
        assert 0 < active.sum() < len(active)


def test_dead_features_come_back_to_life(tmp_path, trained):
    def with_dead_ones():
        saes = [copy_of(sae) for sae in trained]
        for sae in saes:
            # Read a thousandth as strongly, they are among the strongest nowhere.
            sae.W_enc.data[:, :6] *= 1e-3
        return saes

    vision, images = make_vit(), make_images(60)
    config = make_config(learning_rate=1e-2, dead_after=3, chain_weight=0, output_weight=0)
    shares = {}
    for weight in (0, 1):
        run = replace(config, aux_weight=weight)
        out = tmp_path / str(weight)
        result = tune_saes(vision, with_dead_ones(), images.repeat(4, 1, 1, 1), run, out=out)
        shares[weight] = [h.dead_fraction for h in measure(vision, result.saes, [images]).layers]
    assert min(shares[0]) >= 6 / 24
    assert max(shares[1]) <= 2 / 24


def test_a_step_goes_down_the_weighted_sum_of_the_losses(tmp_path, trained, monkeypatch):
    config = make_config(chain_weight=0.3, output_weight=0.7, aux_weight=0.2, aux_features=2)
    step, steps = DictionaryAdam.step, []

    def noted(self, rate):
        steps.append([(p.detach().clone(), p.grad.clone()) for p in self.parameters])
        step(self, rate)

    monkeypatch.setattr(DictionaryAdam, "step", noted)
    vision, images = make_vit(), make_images(6)
    with torch.no_grad():
        vision.module.head.weight *= 50
    tune_saes(vision, trained, images, config, out=tmp_path)
    first, second = images.split(3)
    dead = [(~active).nonzero()[:, 0] for active in chain_losses(vision, trained, first).active]
    assert max(map(len, dead)) > 2
    saes = [copy_of(sae).requires_grad_() for sae in trained]
    parameters = [parameter for sae in saes for parameter in sae.parameters()]
    for parameter, (value, _) in zip(parameters, steps[1], strict=True):
        parameter.data.copy_(value)
    found = chain_losses(vision, saes, second, dead=dead, aux_features=2)
    loss = found.alone.mean() + 0.3 * found.chain.mean() + 0.7 * found.output
    expected = torch.autograd.grad(loss + 0.2 * found.aux.mean(), parameters)
    for (_, gradient), other in zip(steps[1], expected, strict=True):
        torch.testing.assert_close(gradient, other)


def test_models_in_half_precision_are_tuned_in_single(tmp_path, trained):
    images = make_images(30, torch.float32)
    single, half = (
        tune_saes(make_vit(dtype), trained, images, make_config(), out=tmp_path / str(dtype))
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert {tensor.dtype for tensor in weights_of(half.saes)} == {torch.float32}
    assert half.explained_variance == pytest.approx(single.explained_variance, abs=0.02)
    assert half.chain_explained_variance == pytest.approx(single.chain_explained_variance, abs=0.05)


def test_perfect_saes_have_no_loss():
    identity = torch.eye(WIDTH, dtype=torch.float64)
    both = torch.cat([identity, -identity])
    sae = TopKSAE.from_weights(
        W_enc=both.T.contiguous(), W_dec=both, b_dec=torch.zeros(WIDTH).double(), k=WIDTH
    )
    losses = chain_losses(make_vit(), [sae, sae], make_images(4))
    assert losses.alone.max() < 1e-8
    assert losses.chain.max() < 1e-8
    assert losses.output < 1e-8


def test_tuned_saes_do_better_together_on_other_images(tmp_path, trained):
    vision, images = make_vit(), make_images(70)
    with torch.no_grad():
        vision.module.head.weight *= 50  # as decided as a trained model
    config = make_config(learning_rate=3e-3)
    result = tune_saes(vision, trained, images[:60].repeat(6, 1, 1, 1), config, out=tmp_path)
    with torch.no_grad():
        before = chain_losses(vision, trained, images[60:])
        after = chain_losses(vision, result.saes, images[60:])
    assert after.output < 0.8 * before.output
    assert after.chain[-1] < 0.95 * before.chain[-1]
    layers = measure(vision, result.saes, [images[60:]]).layers
    torch.testing.assert_close(
        1 - after.alone, torch.tensor([h.explained_variance for h in layers]).double(), rtol=1e-5,
        atol=0,
    )  # fmt: skip


def test_result_and_folder(uninterrupted, trained):
    assert (uninterrupted.steps, uninterrupted.n_images) == (5, N_IMAGES)
    for sae, before in zip(uninterrupted.saes, trained, strict=True):
        assert (sae.k, sae.n_features) == (before.k, before.n_features)
        torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(sae.n_features).double())
        assert not any(parameter.requires_grad for parameter in sae.parameters())
    assert_same(uninterrupted.saes, load_saes(uninterrupted.folder, dtype=torch.float64).values())
    manifest = json.loads((uninterrupted.folder / "manifest.json").read_text())
    assert manifest["metadata"]["config"] == make_config().to_dict()
    assert "in chain" in str(uninterrupted)


def test_figures_and_rates_by_hand(tmp_path, trained, monkeypatch):
    step, losses, rates = DictionaryAdam.step, [], []

    def noted_losses(*args, **options):
        found = chain_losses(*args, **options)
        losses.append(torch.cat([found.alone, found.chain, found.output[None]]).detach())
        return found

    def noted_step(self, rate):
        rates.append(rate)
        step(self, rate)

    monkeypatch.setattr("vitlens.saes.tune.chain_losses", noted_losses)
    monkeypatch.setattr(DictionaryAdam, "step", noted_step)
    result = tune_saes(make_vit(), trained, make_images(), make_config(), out=tmp_path)
    mean = losses[0]
    for later in losses[1:]:
        mean = 0.9 * mean + 0.1 * later
    found = [*result.explained_variance, *result.chain_explained_variance]
    assert found == pytest.approx((1 - mean[:-1]).tolist())
    assert result.divergence == pytest.approx(float(mean[-1]))
    # Five steps, two of them of warming up; the last three fall to zero.
    assert rates == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 2e-3 / 3, 1e-3 / 3])


def test_neither_the_model_nor_the_saes_given_change(tmp_path, trained):
    vision = make_vit()
    model = {name: tensor.clone() for name, tensor in vision.module.state_dict().items()}
    saes = [tensor.clone() for tensor in weights_of(trained)]
    tune_saes(vision, trained, make_images(), make_config(), out=tmp_path)
    assert all(
        torch.equal(tensor, model[name]) for name, tensor in vision.module.state_dict().items()
    )
    assert all(parameter.grad is None for parameter in vision.module.parameters())
    assert all(map(torch.equal, weights_of(trained), saes))
    assert not any(p.requires_grad for sae in trained for p in sae.parameters())


@pytest.mark.parametrize("stop", [1, 6, 13])
def test_ctrl_c_then_resume_gives_the_same(tmp_path, trained, uninterrupted, stop):
    images = Interrupted(make_images(), stop, times=2)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            tune_saes(make_vit(), trained, images, make_config(), out=tmp_path)
        assert [path.name for path in tmp_path.glob("*")] == [CHECKPOINT] * (stop > 2)
    result = tune_saes(make_vit(), trained, images, make_config(), out=tmp_path)
    assert_same(result.saes, uninterrupted.saes)
    assert result.divergence == uninterrupted.divergence
    assert result.steps == uninterrupted.steps
    unread = Interrupted(make_images(), 1)
    again = tune_saes(make_vit(), trained, unread, make_config(), out=tmp_path)
    assert_same(again.saes, uninterrupted.saes)


def test_other_images_are_refused(tmp_path, trained):
    tune_saes(make_vit(), trained, make_images(), make_config(), out=tmp_path)
    with pytest.raises(CheckpointError, match="run on other images"):
        tune_saes(make_vit(), trained, make_images().flip(0), make_config(), out=tmp_path)


def test_resume_with_a_shuffling_loader(tmp_path, trained):
    def loader(stop=None):
        images = make_images()
        data = TensorDataset(images) if stop is None else Interrupted(images, stop)
        return DataLoader(data, batch_size=1, shuffle=True)

    torch.manual_seed(3)
    whole = tune_saes(make_vit(), trained, loader(), make_config(), out=tmp_path / "whole")
    torch.manual_seed(3)
    out = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        tune_saes(make_vit(), trained, loader(stop=5), make_config(), out=out)
    assert (out / CHECKPOINT).is_file()
    torch.manual_seed(4)  # whatever was drawn in between
    parts = tune_saes(make_vit(), trained, loader(), make_config(), out=out)
    assert_same(whole.saes, parts.saes)


def test_periodic_checkpoints_do_not_change_the_result(tmp_path, trained, uninterrupted):
    config = make_config(checkpoint_seconds=0.0)
    result = tune_saes(make_vit(), trained, make_images(), config, out=tmp_path)
    assert_same(result.saes, uninterrupted.saes)


def test_bfloat16_is_close_to_full_precision(trained):
    vision, images = make_vit(torch.float32), make_images(8, torch.float32)
    saes = [copy_of(sae).float() for sae in trained]
    full, low = (chain_losses(vision, saes, images, bfloat16=low) for low in (False, True))
    torch.testing.assert_close(low.alone, full.alone, rtol=0.05, atol=0.01)
    torch.testing.assert_close(low.chain, full.chain, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("precision", ["full", "bfloat16"])
def test_the_model_runs_in_the_precision_asked_for(tmp_path, trained, precision):
    vision, images, seen = make_vit(torch.float32), make_images(dtype=torch.float32), []
    vision.blocks[0].register_forward_hook(
        lambda *_: seen.append(torch.is_autocast_enabled(vision.device.type))
    )
    config = TrainConfig(sizes=8, k=2, precision=precision)
    train_saes(vision, images, config, out=tmp_path / "trained")
    tune_saes(vision, trained, images, make_config(precision=precision), out=tmp_path / "tuned")
    assert set(seen) == {precision == "bfloat16"}


def test_another_run_is_refused(tmp_path, trained):
    with pytest.raises(KeyboardInterrupt):
        tune_saes(make_vit(), trained, Interrupted(make_images(), 9), make_config(), out=tmp_path)
    for vision, saes, config, message in [
        (make_vit(), trained, make_config(output_weight=1), r"output_weight 0\.5 \(now 1\)"),
        (make_vit(seed=1), trained, make_config(), "another model"),
        (make_vit(), trained[::-1], make_config(), "other SAEs"),
        (make_vit(), [copy_of(sae, k=3) for sae in trained], make_config(), "other SAEs"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            tune_saes(vision, saes, make_images(), config, out=tmp_path)
    with pytest.raises(CheckpointError, match="not a checkpoint of vitlens-sae-training"):
        train_saes(make_vit(), make_images(), TrainConfig(sizes=8, k=2), out=tmp_path)


def test_without_resume_tuning_starts_anew(tmp_path, trained, uninterrupted):
    other = make_config(learning_rate=1e-2)
    with pytest.raises(KeyboardInterrupt):
        tune_saes(make_vit(), trained, Interrupted(make_images(), 9), other, out=tmp_path)
    for _ in ("over a checkpoint", "over tuned SAEs"):
        arguments = (make_vit(), trained, make_images())
        result = tune_saes(*arguments, make_config(), out=tmp_path, resume=False)
        assert_same(result.saes, uninterrupted.saes)
        assert not (tmp_path / CHECKPOINT).exists()
        tune_saes(*arguments, other, out=tmp_path, resume=False)


def test_a_folder_of_trained_saes_is_not_taken_for_tuned_ones(tmp_path, trained):
    train_saes(make_vit(), make_images(), TrainConfig(sizes=8, k=2), out=tmp_path)
    with pytest.raises(CheckpointError, match="not of such a run"):
        tune_saes(make_vit(), trained, make_images(), make_config(), out=tmp_path)


def test_damaged_checkpoint(tmp_path, trained):
    with pytest.raises(KeyboardInterrupt):
        tune_saes(make_vit(), trained, Interrupted(make_images(), 9), make_config(), out=tmp_path)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError):
        tune_saes(make_vit(), trained, make_images(), make_config(), out=tmp_path)


def test_nan_image_stops_tuning_and_keeps_what_was_learnt(tmp_path, trained):
    images = make_images()
    images[9, 0, 0, 0] = torch.nan
    with pytest.raises(ImageError, match="NaN"):
        tune_saes(make_vit(), trained, images, make_config(), out=tmp_path)
    assert all(torch.isfinite(t).all() for t in load_file(tmp_path / CHECKPOINT).values())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images"),
        (torch.zeros(2, 3, 16, 8), r"shape \[3, 16, 16\], got \[3, 16, 8\]"),
        (["cat.png"], "got str"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), r"normalised.*torch\.uint8.*Lens\.tensor"),
        (iter([]), "no images"),
    ],
)
def test_images_that_do_not_fit(tmp_path, trained, images, message):
    with pytest.raises(ImageError, match=message):
        tune_saes(make_vit(), trained, images, make_config(decay_share=0), out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_step_that_fails_is_not_saved(tmp_path, trained, uninterrupted, monkeypatch):
    step = DictionaryAdam.step

    def failing(self, rate):
        step(self, rate)
        if self.step_count == 3:
            raise RuntimeError("out of memory")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(DictionaryAdam, "step", failing)
        tune_saes(make_vit(), trained, make_images(), make_config(), out=tmp_path)
    assert not list(tmp_path.iterdir())
    result = tune_saes(make_vit(), trained, make_images(), make_config(), out=tmp_path)
    assert_same(result.saes, uninterrupted.saes)


def test_saes_and_settings_that_do_not_fit(tmp_path, trained):
    with pytest.raises(CheckpointError, match="2 SAEs"):
        tune_saes(make_vit(), trained[:1], make_images(), make_config(), out=tmp_path)
    with pytest.raises(CheckpointError, match="pass n_images"):
        tune_saes(make_vit(), trained, Stream(), make_config(), out=tmp_path)
    for changes in (
        {"batch_images": 0},
        {"chain_weight": -1},
        {"aux_weight": -1},
        {"dead_after": 0},
        {"precision": "float16"},
    ):
        with pytest.raises(CheckpointError, match=next(iter(changes))):
            make_config(**changes)


def test_a_bare_model_and_a_folder_will_do(tmp_path, trained):
    save_saes(trained, tmp_path / "trained")
    saes = load_saes(tmp_path / "trained")  # in float32, as they are read from a folder
    expected = tune_saes(make_vit(), saes, make_images(), make_config(), out=tmp_path / "one")
    for n, folder in enumerate((tmp_path / "trained", str(tmp_path / "trained"))):
        model, out = make_vit().module, tmp_path / f"other{n}"
        assert_same(
            tune_saes(model, folder, make_images(), make_config(), out=out).saes, expected.saes
        )
    cost = estimate_tuning(make_vit().module, tmp_path / "trained", make_config(), 1000)
    assert cost.seconds > 0
    with pytest.raises(CheckpointError, match="holds no SAEs"):
        tune_saes(make_vit(), tmp_path, make_images(), make_config(), out=tmp_path / "none")


def test_estimate(trained):
    vision = make_vit()
    state = torch.get_rng_state()
    estimate_tuning(vision, trained, make_config(), 1000)
    assert torch.equal(torch.get_rng_state(), state)
    small, large = (
        estimate_tuning(make_vit(), trained, make_config(batch_images=n), 1000) for n in (4, 8)
    )
    assert large.seconds == pytest.approx(1000 * large.image_seconds)
    assert "min" in str(large) and "GiB of memory" in str(large)
    weights = 4 * 8 * sum(p.numel() for sae in trained for p in sae.parameters())
    # What a step keeps grows with the batch, but for the weights of model and SAEs in it.
    kept = [cost.memory_bytes - weights for cost in (small, large)]
    activations = (
        2 * 8 * 5 * sum(sae.n_features for sae in trained) * 8
    )  # of every SAE, both streams
    assert activations < kept[1] < 30 * activations
    assert kept[0] < kept[1] <= 2 * kept[0]
    with pytest.raises(CheckpointError, match="2 SAEs"):
        estimate_tuning(make_vit(), trained[:1], make_config(), 10)
