"""What training and tuning give and cost, and that they continue where they were cut off."""

import errno
import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Subset, TensorDataset

from tests.builders import KINDS, sae_of_kind
from tests.training.small import (
    D_MODEL,
    N_IMAGES,
    Interrupted,
    Stream,
    T,
    assert_same,
    copy_of,
    decided_vision,
    make_images,
    make_vision,
    weights_of,
)
from vitlens.errors import CheckpointError, ImageError, ModelError, OptionError, VitlensError
from vitlens.io import ResumableRun, partial_path
from vitlens.method.replacement import ReplacementModel
from vitlens.saes import load_saes, save_saes
from vitlens.saes.base import normalize_tokens
from vitlens.training.config import TrainConfig, TuneConfig
from vitlens.training.health import measure
from vitlens.training.losses import RunningMeans, SmallCircuits, chain_losses
from vitlens.training.optimizer import Learner
from vitlens.training.run import (
    _Training,
    estimate,
    estimate_tuning,
    train_saes,
    tune_saes,
)


def train_config(**changes):
    settings = {
        "sizes": (12, 24),
        "k": (2, 3),
        "epochs": 2,
        "batch_tokens": 10,
        "buffer_tokens": 4 * T,
        "forward_images": 3,
        "learning_rate": 1e-2,
        "warmup_steps": 3,
        "decay_share": 0.3,
        "dead_after": 2,
    }
    return TrainConfig(**{**settings, **changes})


def tune_config(**changes):
    settings = {"batch_images": 3, "learning_rate": 1e-3, "warmup_steps": 2, "dead_after": 1}
    # With small circuits, so that every test of resuming covers their means and draws.
    settings |= {"circuit_weight": 0.3, "circuit_features": (2, 8)}
    return TuneConfig(**{**settings, **changes})


class Job:
    """Training or tuning, with the same signature."""

    def __init__(self, kind, trained):
        self.kind, self.trained = kind, trained
        self.first_step = 3 if kind == "train" else 2  # the last image that one waits for

    def __call__(self, out, images=None, vision=None, *, resume=True, n_images=None, **changes):
        vision = make_vision() if vision is None else vision
        images = make_images() if images is None else images
        options = {"out": out, "resume": resume, "n_images": n_images}
        if self.kind == "train":
            return train_saes(vision, images, train_config(**changes), **options)
        return tune_saes(vision, self.trained, images, tune_config(**changes), **options)


@pytest.fixture(scope="module", params=["train", "tune"])
def job(request, trained):
    return Job(request.param, trained)


@pytest.fixture(scope="module")
def train(trained):
    return Job("train", trained)


@pytest.fixture(scope="module")
def tune(trained):
    return Job("tune", trained)


@pytest.fixture(scope="module")
def uninterrupted(job, tmp_path_factory):
    return job(tmp_path_factory.mktemp("whole") / "saes")


def figures_of(result):
    names = ("steps", "n_images", "n_tokens", "explained_variance", "dead_fraction")
    names += ("chain_explained_variance", "divergence")
    return {name: getattr(result, name) for name in names if hasattr(result, name)}


# --- What a run gives -------------------------------------------------------------------------


def test_trained_saes_and_their_folder(train, tmp_path):
    result = train(tmp_path / "saes")
    assert {n: (s.d_model, s.n_features, s.k) for n, s in result.saes.items()} == {
        0: (16, 12, 2),
        1: (16, 24, 3),
    }
    assert (result.n_images, result.n_tokens) == (2 * N_IMAGES, 2 * N_IMAGES * T)
    # an epoch: groups of 4, 4, 4 and 2 images, so of 20, 20, 20 and 10 tokens
    assert result.steps == 2 * (2 + 2 + 2 + 1)
    for sae in result.saes.values():
        torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(sae.n_features).double())
    assert sorted(path.name for path in result.folder.iterdir()) == [
        "layer_00.safetensors",
        "layer_01.safetensors",
        "manifest.json",
    ]
    assert_same(result.saes, load_saes(result.folder, dtype=torch.float64))
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert manifest["metadata"]["training"]["settings"]["sizes"] == [12, 24]
    lines = str(result).splitlines()
    assert lines[0] == "140 tokens of 28 images, 14 steps"
    header = "layer features most active explained variance dead"
    assert " ".join(lines[1].split()) == header
    assert len(lines) == 4


def test_tuned_saes_and_their_folder(tune, trained, tmp_path):
    result = tune(tmp_path)
    assert (result.steps, result.n_images, result.n_tokens) == (5, N_IMAGES, N_IMAGES * T)
    for layer, sae in result.saes.items():
        assert sae.settings() == trained[layer].settings()
        torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(sae.n_features).double())
        assert not any(parameter.requires_grad for parameter in sae.parameters())
    assert_same(result.saes, load_saes(result.folder, dtype=torch.float64))
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert manifest["metadata"]["tuning"]["settings"] == tune_config().to_dict()
    assert "in chain" in str(result) and "divergence" in str(result)


def smoothed(values):
    mean = values[0]
    for value in values[1:]:
        mean = 0.9 * mean + 0.1 * value
    return mean


def noted_rates(monkeypatch):
    step, rates = Learner.step, []

    def noted(self, rate, active):
        rates.append(rate)
        step(self, rate, active)

    monkeypatch.setattr(Learner, "step", noted)
    return rates


@pytest.mark.parametrize(("n", "n_steps", "n_falling"), [(14, 14, 4), (12, 12, 3)])
def test_figures_and_rates_of_training_by_hand(train, tmp_path, monkeypatch, n, n_steps, n_falling):
    gradients, explained = _Training.gradients, []

    def noted(self, batch):
        found = gradients(self, batch)
        explained.append(found[0]["explained_variance"])
        return found

    monkeypatch.setattr(_Training, "gradients", noted)
    rates = noted_rates(monkeypatch)
    result = train(tmp_path, make_images(n))
    assert result.explained_variance == pytest.approx(smoothed(explained).tolist())
    # Three steps of warming up; the last 30 % of all steps fall to zero.
    falling = [left / (0.3 * n_steps) for left in range(n_falling, 0, -1)]
    expected = [0.25, 0.5, 0.75, *[1] * (n_steps - 3 - n_falling), *falling]
    assert rates == pytest.approx([1e-2 * factor for factor in expected])


def test_figures_and_rates_of_tuning_by_hand(tune, tmp_path, monkeypatch):
    losses = []

    def noted(*args, **options):
        losses.append(chain_losses(*args, **options))
        return losses[-1]

    monkeypatch.setattr("vitlens.training.run.chain_losses", noted)
    rates = noted_rates(monkeypatch)
    result = tune(tmp_path)
    mean = smoothed([torch.cat([f.alone, f.chain, f.output[None]]).detach() for f in losses])
    found = [*result.explained_variance, *result.chain_explained_variance]
    assert found == pytest.approx((1 - mean[:-1]).tolist())
    assert result.divergence == pytest.approx(float(mean[-1]))
    of_circuits = smoothed([f.circuit[None].detach() for f in losses])
    assert result.circuit_divergence == pytest.approx(float(of_circuits))
    # Five steps, two of them of warming up; the last three fall to zero.
    assert rates == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 2e-3 / 3, 1e-3 / 3])


@pytest.mark.parametrize("dead_after", [1, 2, 1000])
def test_dead_features_at_the_end_were_silent_for_the_last_batches(
    job, tmp_path, monkeypatch, dead_after
):
    step, seen = Learner.step, []

    def noted(self, rate, active):
        seen.append(active)
        step(self, rate, active)

    monkeypatch.setattr(Learner, "step", noted)
    result = job(tmp_path, dead_after=dead_after)
    for position, share in enumerate(result.dead_fraction):
        last = torch.stack([active[position] for active in seen[-dead_after:]]).any(0)
        expected = 0 if len(seen) < dead_after else float((~last).double().mean())
        assert share == pytest.approx(expected)


def test_training_explains_more(train, tmp_path):
    images = make_images(40)
    short, long = (train(tmp_path / str(epochs), images, epochs=epochs) for epochs in (1, 12))
    for before, after in zip(short.explained_variance, long.explained_variance, strict=True):
        assert after > before + 0.05
    report = measure(make_vision(), long.saes, [images])
    for layer, running in zip(report.layers, long.explained_variance, strict=True):
        assert layer.explained_variance_normalized == pytest.approx(running, abs=0.05)


def test_training_with_an_image_budget(train, tmp_path, monkeypatch):
    gradients, seen = _Training.gradients, []

    def noted(self, batch):
        seen.append([tuple(tokens.shape) for tokens in batch])
        return gradients(self, batch)

    monkeypatch.setattr(_Training, "gradients", noted)
    images = make_images(40)
    result = train(tmp_path / "saes", images, budget=(None, 5), k=3, sizes=24, epochs=12)
    assert [sae.budget for sae in result.saes.values()] == [None, 5]
    # Groups of 4 images, in batches of two whole images each, at every layer.
    assert seen == [[(2, T, D_MODEL)] * 2] * (12 * 20) and result.steps == 12 * 20
    stream = make_vision().residuals(images, [1])[0]
    features = result.saes[1].encode(stream)
    used = (features > 0).any(1).sum(-1)
    assert 3 <= used.max() <= 5
    report = measure(make_vision(), result.saes, [images]).layers[1]
    assert report.explained_variance_normalized > 0.2
    assert report.explained_variance_normalized == pytest.approx(
        result.explained_variance[1], abs=0.1
    )


def test_training_and_tuning_at_some_layers_only(tmp_path, trained):
    images, config = make_images(), train_config(sizes=12, k=2)
    result = train_saes(make_vision(), images, config, out=tmp_path / "a", layers=[0, 2])
    assert list(result.saes) == list(load_saes(tmp_path / "a")) == [0, 2]
    assert len(result.explained_variance) == 2
    # What is trained at layer 0 does not depend on the others.
    alone = train_saes(make_vision(), images, config, out=tmp_path / "b", layers=[0])
    assert_same(alone.saes, {0: result.saes[0]})
    with pytest.raises(CheckpointError, match="What differs: layers"):
        train_saes(make_vision(), images, config, out=tmp_path / "b", layers=[1])
    with pytest.raises(CheckpointError, match="no layer 3"):
        train_saes(make_vision(), images, config, out=tmp_path / "c", layers=[3])

    tuned = tune_saes(make_vision(), result.saes, images, tune_config(), out=tmp_path / "d")
    assert list(tuned.saes) == [0, 2]
    one = tune_saes(
        make_vision(), result.saes, images, tune_config(), out=tmp_path / "e", layers=[2]
    )
    assert list(one.saes) == [2] and one.chain_explained_variance == one.explained_variance
    listed = tune_saes(
        make_vision(), [result.saes[2]], images, tune_config(), out=tmp_path / "f", layers=[2]
    )
    assert_same(listed.saes, one.saes)


@pytest.mark.parametrize("kind", KINDS)
def test_saes_of_every_kind_are_tuned(tmp_path, kind):
    saes = {
        layer: sae_of_kind(
            kind, seed=layer, d_model=D_MODEL, b_enc=layer == 1, subtract_b_dec=layer == 1
        ).double()
        for layer in (1, 2)
    }
    vision, images = decided_vision(), make_images(30)
    config = tune_config(learning_rate=3e-3, batch_images=10)
    result = tune_saes(vision, saes, images.repeat(8, 1, 1, 1), config, out=tmp_path)
    for layer, sae in result.saes.items():
        assert type(sae) is type(saes[layer]) and sae.settings() == saes[layer].settings()
        if hasattr(sae, "threshold"):
            assert torch.equal(sae.threshold, saes[layer].threshold)
    assert_same(result.saes, load_saes(tmp_path, dtype=torch.float64))
    with torch.no_grad():
        before, after = (
            chain_losses(ReplacementModel(vision, found.values(), (1, 2)), images)
            for found in (saes, result.saes)
        )
    assert after.chain.mean() < before.chain.mean()
    assert after.output < before.output


def test_dead_features_come_back_to_life(tmp_path, trained):
    def with_dead_ones():
        saes = {layer: copy_of(sae) for layer, sae in trained.items()}
        for sae in saes.values():
            # Read a thousandth as strongly, they are among the strongest nowhere.
            sae.W_enc.data[:, :6] *= 1e-3
        return saes

    vision, images = make_vision(), make_images(40)
    config = tune_config(
        learning_rate=1e-2, batch_images=4, dead_after=3, chain_weight=0, output_weight=0
    )
    shares = {}
    for weight in (0, 1):
        run = replace(config, aux_weight=weight)
        out = tmp_path / str(weight)
        result = tune_saes(vision, with_dead_ones(), images.repeat(4, 1, 1, 1), run, out=out)
        shares[weight] = [h.dead_fraction for h in measure(vision, result.saes, [images]).layers]
    assert min(shares[0]) >= 6 / 24
    assert max(shares[1]) <= 2 / 24


def test_a_step_goes_down_the_weighted_sum_of_the_losses(tmp_path, trained, monkeypatch):
    config = tune_config(
        chain_weight=0.3, output_weight=0.7, aux_weight=0.2, aux_features=2, circuit_weight=0
    )
    step, steps = Learner.step, []

    def noted(self, rate, active):
        steps.append([(p.detach().clone(), p.grad.clone()) for p in self.parameters])
        step(self, rate, active)

    monkeypatch.setattr(Learner, "step", noted)
    vision, images = decided_vision(), make_images(6)
    tune_saes(vision, trained, images, config, out=tmp_path)
    first, second = images.split(3)
    found = chain_losses(ReplacementModel(vision, trained.values(), (0, 1)), first)
    dead = [(~active).nonzero()[:, 0] for active in found.active]
    assert max(map(len, dead)) > 2
    saes = [copy_of(sae).requires_grad_() for sae in trained.values()]
    parameters = [parameter for sae in saes for parameter in sae.parameters()]
    for parameter, (value, _) in zip(parameters, steps[1], strict=True):
        parameter.data.copy_(value)
    replacement = ReplacementModel(vision, saes, (0, 1))
    found = chain_losses(replacement, second, dead=dead, aux_features=2)
    loss = found.alone.mean() + 0.3 * found.chain.mean() + 0.7 * found.output
    expected = torch.autograd.grad(loss + 0.2 * found.aux.mean(), parameters)
    for (_, gradient), other in zip(steps[1], expected, strict=True):
        torch.testing.assert_close(gradient, other)


def test_every_step_in_bfloat16_sees_the_weights_of_the_step_before(tmp_path, monkeypatch):
    """Autocast keeps copies of weights until the outermost block ends."""
    vision, images = make_vision(torch.float32), make_images(24, torch.float32)
    saes = train_saes(vision, images, train_config(), out=tmp_path / "start").saes
    found = []

    def noted(replacement, batch, **options):
        losses = chain_losses(replacement, batch, **options)
        with torch.no_grad():
            fresh = chain_losses(replacement, batch, dead=options["dead"])
        found.append((losses.alone.detach(), fresh.alone))
        return losses

    monkeypatch.setattr("vitlens.training.run.chain_losses", noted)
    config = tune_config(precision="bfloat16", learning_rate=3e-2, circuit_weight=0)
    tune_saes(vision, saes, images, config, out=tmp_path / "tuned")
    first, last = found[0][1], found[-1][1]
    assert float((last - first).abs().max()) > 0.05  # the weights have moved
    for used, fresh in found:
        torch.testing.assert_close(used, fresh, rtol=0.03, atol=0.01)


def test_tuned_saes_do_better_together_on_other_images(tmp_path, trained):
    vision, images = decided_vision(), make_images(70)
    config = tune_config(learning_rate=3e-3)
    result = tune_saes(vision, trained, images[:60].repeat(6, 1, 1, 1), config, out=tmp_path)
    with torch.no_grad():
        before, after = (
            chain_losses(ReplacementModel(vision, saes.values(), (0, 1)), images[60:])
            for saes in (trained, result.saes)
        )
    assert after.output < 0.8 * before.output
    assert after.chain[-1] < 0.95 * before.chain[-1]
    layers = measure(vision, result.saes, [images[60:]]).layers
    expected = torch.tensor([h.explained_variance for h in layers]).double()
    torch.testing.assert_close(1 - after.alone, expected, rtol=1e-5, atol=0)


def test_neither_the_model_nor_the_saes_given_change(tmp_path, trained):
    vision = make_vision()
    model = {name: tensor.clone() for name, tensor in vision.module.state_dict().items()}
    saes = [tensor.clone() for tensor in weights_of(trained)]
    tune_saes(vision, trained, make_images(), tune_config(), out=tmp_path)
    assert all(
        torch.equal(tensor, model[name]) for name, tensor in vision.module.state_dict().items()
    )
    assert all(parameter.grad is None for parameter in vision.module.parameters())
    assert all(map(torch.equal, weights_of(trained), saes))
    assert not any(p.requires_grad for sae in trained.values() for p in sae.parameters())


def test_a_bare_model_will_do(job, tmp_path, uninterrupted):
    result = job(tmp_path / "saes", vision=make_vision().module)
    assert_same(result.saes, uninterrupted.saes)
    with pytest.raises(ModelError, match="training mode"):
        job(tmp_path / "saes", vision=make_vision().module.train())


def test_saes_to_tune_may_lie_in_a_folder(tmp_path, trained):
    save_saes(trained, tmp_path / "trained")
    saes = load_saes(tmp_path / "trained")  # in float32, as they are read from a folder
    images, config = make_images(), tune_config()
    expected = tune_saes(make_vision(), list(saes.values()), images, config, out=tmp_path / "one")
    for n, folder in enumerate((tmp_path / "trained", str(tmp_path / "trained"))):
        result = tune_saes(make_vision(), folder, images, config, out=tmp_path / f"other{n}")
        assert_same(result.saes, expected.saes)
    assert estimate_tuning(make_vision().module, tmp_path / "trained", config, 1000).seconds > 0
    with pytest.raises(CheckpointError, match="holds no SAEs"):
        tune_saes(make_vision(), tmp_path, images, config, out=tmp_path / "none")


@pytest.mark.parametrize(
    "context",
    [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
    ids=["inference mode", "no grad", "autocast"],
)
def test_the_callers_context_has_no_effect(job, tmp_path, uninterrupted, context):
    vision = make_vision()
    with context():
        result = job(tmp_path / "saes", vision=vision)
    assert_same(result.saes, uninterrupted.saes)


def test_a_model_made_in_inference_mode_cannot_be_tuned(tune, tmp_path):
    with torch.inference_mode():
        vision = make_vision()
    with pytest.raises(ModelError, match=r"made in `torch\.inference_mode`"):
        tune(tmp_path, vision=vision)


# --- Precision --------------------------------------------------------------------------------


def test_training_in_bfloat16_is_close_to_full_precision(train, tmp_path):
    vision, images = make_vision(torch.float32), make_images(40, torch.float32)
    full, low = (
        train(tmp_path / precision, images, vision, epochs=4, precision=precision)
        for precision in ("full", "bfloat16")
    )
    assert low.saes[0].W_enc.dtype == torch.float32
    assert low.explained_variance == pytest.approx(full.explained_variance, abs=0.03)


def test_models_in_half_precision_have_saes_in_single(job, tmp_path):
    images = make_images(30, torch.float32)
    single, half = (
        job(tmp_path / str(dtype), images, make_vision(dtype))
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert {tensor.dtype for tensor in weights_of(half.saes)} == {torch.float32}
    assert half.explained_variance == pytest.approx(single.explained_variance, abs=0.02)
    if job.kind == "tune":
        expected = pytest.approx(single.chain_explained_variance, abs=0.05)
        assert half.chain_explained_variance == expected


@pytest.mark.parametrize("precision", ["full", "bfloat16"])
def test_the_model_runs_in_the_precision_asked_for(job, tmp_path, precision):
    vision, seen = make_vision(torch.float32), []
    vision.blocks[0].register_forward_hook(
        lambda *_: seen.append(torch.is_autocast_enabled(vision.device.type))
    )
    job(tmp_path / "saes", make_images(dtype=torch.float32), vision, precision=precision)
    assert set(seen) == {precision == "bfloat16"}


# --- Runs that are cut off --------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 6, 13])
def test_ctrl_c_then_resume_gives_the_same(job, tmp_path, uninterrupted, stop):
    images = Interrupted(make_images(), stop, times=2)
    out = tmp_path / "saes"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            job(out, images)
        kept = ["saes.partial"] * (stop > job.first_step)
        assert [path.name for path in tmp_path.iterdir()] == kept
    result = job(out, images)
    assert_same(result.saes, uninterrupted.saes)
    assert figures_of(result) == figures_of(uninterrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["saes"]
    unread = Interrupted(make_images(), 1)  # finished: no image is needed
    assert_same(job(out, unread).saes, uninterrupted.saes)


def test_ctrl_c_in_the_middle_of_a_step_waits_for_its_end(
    job, tmp_path, uninterrupted, monkeypatch
):
    step, out = Learner.step, tmp_path / "saes"

    def step_with_ctrl_c(self, *args):
        if self.step_count == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", step_with_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            job(out)
    assert "1.W_dec.exp_avg_sq" in load_file(partial_path(out))
    _, state = ResumableRunOf(out).load()
    assert state["step"] == 4
    assert_same(job(out).saes, uninterrupted.saes)


class ResumableRunOf(ResumableRun):
    """The state of any run."""

    def __init__(self, out):
        super().__init__(out, "any", {})

    def check(self, stamp, where):
        pass


def test_periodic_saves_do_not_change_the_result(job, tmp_path, uninterrupted):
    result = job(tmp_path / "saes", checkpoint_seconds=0.0)
    assert_same(result.saes, uninterrupted.saes)
    assert [path.name for path in tmp_path.iterdir()] == ["saes"]


def test_a_run_continues_with_saves_at_other_times(job, tmp_path, uninterrupted):
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path / "saes", Interrupted(make_images(), stop=5))
    result = job(tmp_path / "saes", checkpoint_seconds=0.0)
    assert_same(result.saes, uninterrupted.saes)


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_shuffling_data_loader_resumes_in_the_same_order(job, tmp_path, epoch):
    if job.kind == "tune" and epoch:
        pytest.skip("tuning is one pass")
    images = make_images()

    def loader(data):
        return DataLoader(data, batch_size=3 if job.kind == "train" else 1, shuffle=True)

    torch.manual_seed(7)
    whole = job(tmp_path / "whole", loader(TensorDataset(images)))
    torch.manual_seed(7)
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path / "cut", loader(Interrupted(images, stop=5, skip=epoch)))
    assert partial_path(tmp_path / "cut").exists()
    torch.manual_seed(99)  # whatever was drawn in between
    resumed = job(tmp_path / "cut", loader(TensorDataset(images)))
    assert_same(whole.saes, resumed.saes)


def test_each_seed_and_epoch_has_its_own_order(train, tmp_path, monkeypatch):
    gradients, seen = _Training.gradients, []

    def noted(self, batch):
        seen.append([tokens.clone() for tokens in batch])
        return gradients(self, batch)

    monkeypatch.setattr(_Training, "gradients", noted)
    vision, images = make_vision(), make_images(4)
    for seed in (0, 1):
        train(tmp_path / str(seed), images, vision, seed=seed, batch_tokens=4 * T)
    layers = [normalize_tokens(x.flatten(0, 1)).values for x in vision.residuals(images)[:2]]
    orders = []
    for batch in seen:
        found = [torch.cdist(b, x).argmin(1).tolist() for b, x in zip(batch, layers, strict=True)]
        assert found[0] == found[1]  # the same tokens at every layer
        assert sorted(found[0]) == list(range(4 * T))
        orders.append(tuple(found[0]))
    assert len(orders) == len(set(orders)) == 4


@pytest.mark.parametrize("finished", [False, True])
def test_another_run_is_refused(job, tmp_path, finished):
    out = tmp_path / "saes"
    if finished:
        job(out)
    else:
        with pytest.raises(KeyboardInterrupt):
            job(out, Interrupted(make_images(), 9))
    rate = "0.01" if job.kind == "train" else "0.001"
    with pytest.raises(CheckpointError, match=rf"learning_rate {rate} \(now 0.1\)"):
        job(out, learning_rate=0.1)
    with pytest.raises(CheckpointError, match=r"another SAE t\w+ing\. What differs: model\."):
        job(out, vision=make_vision(seed=1))
    other = Job("tune" if job.kind == "train" else "train", job.trained)
    with pytest.raises(CheckpointError, match=rf"made by SAE {job.kind[:3]}\w+, not by SAE"):
        other(out)


def test_tuning_of_other_saes_is_refused(tmp_path, trained):
    out = tmp_path / "saes"
    with pytest.raises(KeyboardInterrupt):
        tune_saes(make_vision(), trained, Interrupted(make_images(), 9), tune_config(), out=out)
    a, b = trained.values()
    for saes in ([b, a], [copy_of(a, k=3), b], [copy_of(a, budget=9), b], {0: a}):
        with pytest.raises(CheckpointError, match=r"What differs: .*SAEs"):
            tune_saes(make_vision(), saes, make_images(), tune_config(), out=out)


def test_saes_of_unknown_origin_are_not_taken_for_those_of_a_run(job, trained, tmp_path):
    save_saes(trained, tmp_path)
    with pytest.raises(CheckpointError, match="was not made by SAE"):
        job(tmp_path)


@pytest.mark.parametrize("kind", [lambda x: x, list, TensorDataset, lambda x: list(x.split(5))])
def test_other_images_are_refused(job, tmp_path, kind):
    job(tmp_path / "saes", kind(make_images()))
    job(tmp_path / "saes", kind(make_images()))
    with pytest.raises(CheckpointError, match=r"What differs: first image\..*resume=False"):
        job(tmp_path / "saes", kind(make_images().flip(0)))


def test_images_whose_first_is_not_known_are_counted_only(train, tmp_path):
    out = tmp_path / "saes"
    for images in (make_images(), Interrupted(make_images().flip(0), -1), make_images()):
        train(out, images, epochs=1)
    with pytest.raises(CheckpointError, match=r"number of images 14 \(now 13\)"):
        train(out, Interrupted(make_images(13), -1), epochs=1)
    train(out, epochs=1, decay_share=0, resume=False)
    with pytest.raises(CheckpointError, match="number of images"):
        train(out, Stream(), epochs=1, decay_share=0)  # nobody knows how many


def test_without_resume_a_run_starts_again(job, tmp_path, uninterrupted):
    out = tmp_path / "saes"
    with pytest.raises(KeyboardInterrupt):
        job(out, Interrupted(make_images(), 9), learning_rate=0.1)
    for _ in ("over an unfinished run", "over finished SAEs"):
        result = job(out, resume=False)
        assert_same(result.saes, uninterrupted.saes)
        assert not partial_path(out).exists()
        job(out, learning_rate=0.1, resume=False)


def test_damaged_state(job, tmp_path):
    out = tmp_path / "saes"
    with pytest.raises(KeyboardInterrupt):
        job(out, Interrupted(make_images(), 9))
    path = partial_path(out)
    content = path.read_bytes()
    for damage, message in [
        (lambda: path.write_bytes(content[:-100]), "truncated"),
        (lambda: path.write_bytes(content[:500]), "cut off|truncated"),
        (lambda: torch.save({"W_enc": torch.zeros(1)}, path), "pickle"),
        (lambda: ResumableRunOf(out).save({}, {"step": 1}), "does not|is not of|damaged"),
    ]:
        damage()
        with pytest.raises(CheckpointError, match=message):
            job(out)


def test_disk_full_keeps_the_last_state(job, tmp_path, uninterrupted, monkeypatch):
    out = tmp_path / "saes"
    with pytest.raises(KeyboardInterrupt):
        job(out, Interrupted(make_images(), 9))
    before = partial_path(out).read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(VitlensError, match="No space left"):
            job(out)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["saes.partial"]
    assert partial_path(out).read_bytes() == before
    assert_same(job(out).saes, uninterrupted.saes)


def test_a_step_that_fails_is_not_saved(job, tmp_path, uninterrupted, monkeypatch):
    step, out = Learner.step, tmp_path / "saes"

    def failing(self, rate, active):
        step(self, rate, active)
        if self.step_count == 3:
            raise RuntimeError("out of memory")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(Learner, "step", failing)
        job(out)
    assert not list(tmp_path.iterdir())
    assert_same(job(out).saes, uninterrupted.saes)


def test_failure_to_save_the_saes_keeps_what_was_learned(job, tmp_path, uninterrupted, monkeypatch):
    def fail(*args, **kwargs):
        raise VitlensError("no")

    with monkeypatch.context() as patch:
        patch.setattr("vitlens.training.run.save_saes", fail)
        with pytest.raises(VitlensError, match="no"):
            job(tmp_path / "saes")
    images = Interrupted(make_images(), 1)  # not needed any more
    assert_same(job(tmp_path / "saes", images).saes, uninterrupted.saes)


def test_two_runs_do_not_write_one_folder(job, tmp_path):
    with (
        ResumableRun(tmp_path / "saes", "other", {}).writing(),
        pytest.raises(VitlensError, match="Another run is writing"),
    ):
        job(tmp_path / "saes")


# --- Images and settings ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "images",
    [
        list(make_images()),
        list(make_images().split(5)),
        TensorDataset(make_images()),
        DataLoader(TensorDataset(make_images()), batch_size=4),
        DataLoader(Subset(TensorDataset(make_images(20)), range(N_IMAGES)), batch_size=4),
        Stream(),
    ],
    ids=["list", "batches", "data set", "data loader", "loader of a part", "stream"],
)
def test_kinds_of_image_source(job, tmp_path, uninterrupted, images):
    n_images = N_IMAGES if isinstance(images, Stream) else None
    result = job(tmp_path / "saes", images, n_images=n_images)
    assert_same(result.saes, uninterrupted.saes)


def test_a_nan_image_stops_the_run_and_keeps_what_was_learned(job, tmp_path):
    images = make_images()
    images[9, 0, 0, 0] = torch.nan
    with pytest.raises(ImageError, match="NaN"):
        job(tmp_path / "saes", images)
    state = load_file(partial_path(tmp_path / "saes"))
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images"),
        (torch.zeros(2, 3, 16, 8), r"shape \[3, 16, 16\], got \[3, 16, 8\]"),
        (torch.zeros(2, 1, 16, 16), r"got \[1, 16, 16\]"),
        ([torch.zeros(16, 16)], r"got \[16, 16\]"),
        (["cat.png"], "got str"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), r"normalised.*torch\.uint8.*Lens\.tensor"),
    ],
)
def test_images_that_do_not_fit(job, tmp_path, images, message):
    with pytest.raises(ImageError, match=message):
        job(tmp_path / "saes", images, decay_share=0.0)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_noticed_before_the_work(job, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "saes"):
        with pytest.raises(VitlensError, match="is a file"):
            job(out, Interrupted(make_images(), 1))


def test_iterators_give_one_pass(job, tmp_path):
    with pytest.raises(ImageError, match="no images"):
        job(tmp_path / "saes", iter([]), decay_share=0.0, **one_epoch(job))
    job(tmp_path / "saes", iter(make_images()), decay_share=0.0, **one_epoch(job))
    if job.kind == "train":
        with pytest.raises(ImageError, match="iterated again"):
            job(tmp_path / "more", iter(make_images()), decay_share=0.0)


def one_epoch(job):
    return {"epochs": 1} if job.kind == "train" else {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": (12, 24, 24)}, "sizes has 3 entries, but there are 2 layers to train: 0, 1"),
        ({"k": (2,)}, "k has 1 entries"),
        ({"budget": (2,)}, "budget has 1 entries"),
        ({"k": 13}, "Layer 0: k must be between 1 and its 12 features"),
        ({"budget": (None, 25)}, "Layer 1: the budget must be between 1 and its 24 features"),
        ({"epochs": 0}, "epochs must be 1 or more"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"decay_share": 1.5}, "decay_share"),
        ({"aux_weight": -1}, "aux_weight"),
    ],
)
def test_settings_of_training_that_do_not_fit(train, tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        train(tmp_path, **changes)


def test_small_circuits_are_drawn_from_seed_and_step_and_weighted(tmp_path, trained, monkeypatch):
    asked, found = [], []

    def noted(*args, circuits=None, **options):
        asked.append(circuits)
        found.append(chain_losses(*args, circuits=circuits, **options))
        return found[-1]

    monkeypatch.setattr("vitlens.training.run.chain_losses", noted)
    images = make_images(60)

    def tuned(name, **changes):
        asked.clear()
        found.clear()
        config = tune_config(batch_images=2, circuit_features=(2, 8), **changes)
        result = tune_saes(make_vision(), trained, images, config, out=tmp_path / name)
        return result, list(asked), list(found)

    result, circuits, losses = tuned("a", circuit_error_means=0.3)
    counts = [c.n_features for c in circuits]
    assert set(counts) <= set(range(2, 9)) and min(counts) == 2 and max(counts) >= 7
    # Log-uniform: as many from 2 to 4 as from 4 to 8.
    assert 0.2 < sum(n < 4 for n in counts) / len(counts) < 0.6
    held = [c.error_nodes for c in circuits]
    assert 0.1 < held.count("baseline") / len(held) < 0.55
    assert [c.means.n_batches for c in circuits] == list(range(30))
    assert result.circuit_divergence is not None and "small circuits" in str(result)
    _, again, _ = tuned("b", circuit_error_means=0.3)
    assert [c.n_features for c in again] == counts
    _, other, _ = tuned("c", circuit_error_means=0.3, seed=1)
    assert [c.n_features for c in other] != counts
    _, clean, _ = tuned("d", circuit_error_means=0)
    assert {c.error_nodes for c in clean} == {"clean"}
    without, none, losses = tuned("e", circuit_weight=0)
    assert set(none) == {None} and without.circuit_divergence is None
    assert all(f.circuit == 0 and f.means is None for f in losses)


def test_small_circuits_carry_more_of_the_answer_afterwards(tmp_path, trained):
    """On other images; the same tuning without their loss is the control."""
    images = torch.randn(80, 3, 16, 16, generator=torch.Generator().manual_seed(5)).double()
    vision = decided_vision()
    divergence = {}
    for weight in (0, 3):
        config = tune_config(
            learning_rate=3e-3,
            circuit_weight=weight,
            circuit_features=(3, 3),
            circuit_error_means=0,
        )
        result = tune_saes(
            vision, trained, images[:60].repeat(6, 1, 1, 1), config, out=tmp_path / str(weight)
        )
        replacement = ReplacementModel(vision, list(result.saes.values()), (0, 1))
        streams = replacement.trace(images[:60])
        known = RunningMeans().after(streams.features, streams.errors)
        circuits = SmallCircuits(3, "clean", RunningMeans(10**6, known.features, known.errors))
        with torch.no_grad():
            found = chain_losses(replacement, images[60:], circuits=circuits)
        divergence[weight] = float(found.circuit)
    assert divergence[3] < 0.8 * divergence[0]


def test_only_top_k_saes_are_trained():
    for kind in ("relu", "jumprelu", "batchtopk", "matryoshka"):
        with pytest.raises(OptionError, match=f'trains SAEs of kind "topk".*not {kind!r}'):
            train_config(kind=kind)
    with pytest.raises(OptionError, match="kind must be one of topk, "):
        train_config(kind="gated")


def test_settings_of_tuning_that_do_not_fit(tmp_path, trained):
    with pytest.raises(CheckpointError, match="2 SAEs"):
        tune_saes(make_vision(), [trained[0]], make_images(), tune_config(), out=tmp_path)
    for changes in (
        {"batch_images": 0},
        {"chain_weight": -1},
        {"aux_weight": -1},
        {"dead_after": 0},
        {"circuit_weight": -1},
        {"circuit_features": (0, 4)},
        {"circuit_features": (5, 4)},
        {"circuit_features": 4},
        {"circuit_features": (2.5, 4)},
        {"circuit_error_means": 1.5},
    ):
        with pytest.raises(CheckpointError, match=next(iter(changes))):
            tune_config(**changes)
    for make in (tune_config, train_config):
        with pytest.raises(OptionError, match="precision must be one of full, bfloat16"):
            make(precision="float16")


def test_decay_needs_the_number_of_images(job, tmp_path):
    with pytest.raises(CheckpointError, match="pass n_images"):
        job(tmp_path / "saes", Stream(), decay_share=0.3)


# --- Estimates --------------------------------------------------------------------------------


def test_estimate_of_training():
    config = train_config()
    cost = estimate(make_vision().module, config, 1000)
    assert cost.n_tokens == 2 * 1000 * T
    assert cost.seconds == pytest.approx(2 * 1000 * cost.seconds_per_image)
    buffer = 2 * config.buffer_tokens * D_MODEL * 8
    assert buffer < cost.memory_bytes < 100 * buffer
    assert str(cost).startswith("10,000 tokens, about") and "GiB of memory" in str(cost)
    one = estimate(make_vision(), train_config(sizes=12, k=2, budget=4), 1000, layers=[2])
    assert one.memory_bytes < cost.memory_bytes
    with pytest.raises(CheckpointError, match="2 entries, but there are 1 layers"):
        estimate(make_vision(), config, 10, layers=[0])


def test_estimate_of_tuning(trained):
    vision = make_vision()
    state = torch.get_rng_state()
    estimate_tuning(vision, trained, tune_config(), 1000)
    assert torch.equal(torch.get_rng_state(), state)
    small, large = (
        estimate_tuning(make_vision(), trained, tune_config(batch_images=n), 1000) for n in (4, 8)
    )
    assert large.n_tokens == 1000 * T
    assert large.seconds == pytest.approx(1000 * large.seconds_per_image)
    assert "min" in str(large) and "GiB of memory" in str(large)
    weights = 4 * 8 * sum(p.numel() for sae in trained.values() for p in sae.parameters())
    # What a step keeps grows with the batch, but for the weights of model and SAEs in it.
    kept = [cost.memory_bytes - weights for cost in (small, large)]
    # Of every SAE, both streams.
    activations = 2 * 8 * T * sum(sae.n_features for sae in trained.values()) * 8
    assert activations < kept[1] < 30 * activations
    assert kept[0] < kept[1] <= 2 * kept[0]
    with pytest.raises(CheckpointError, match="2 SAEs"):
        estimate_tuning(make_vision(), [trained[0]], tune_config(), 10)
