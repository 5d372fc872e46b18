import errno
import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from vitlens.errors import CheckpointError, ImageError, ModelError, VitlensError
from vitlens.models.vision import VisionModel
from vitlens.saes import TrainConfig, estimate, load_saes, measure, train_saes
from vitlens.saes.base import normalize_tokens
from vitlens.saes.checkpoint import CHECKPOINT
from vitlens.saes.data import (
    TokenBuffer,
    count_images,
    first_image,
    iterate_images,
    n_batches,
)
from vitlens.saes.learner import Learner

WIDTH, DEPTH, T = 16, 3, 5
N_IMAGES = 14


def make_vit(dtype=torch.float64, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VisionTransformer(
            img_size=16, patch_size=8, embed_dim=WIDTH, depth=DEPTH, num_heads=2, num_classes=4
        )
    return VisionModel(model.eval().to(dtype))


def make_images(n=N_IMAGES, dtype=torch.float64):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=dtype)


def make_config(**changes):
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


def weights_of(saes):
    return [tensor for sae in saes for tensor in sae.state_dict().values()]


def assert_same(first, second):
    for one, other in zip(weights_of(first), weights_of(second), strict=True):
        assert torch.equal(one, other)


class Interrupted:
    """Images that press Ctrl-C before image `stop`, `times` times after the first `skip` times."""

    def __init__(self, images, stop, times=1, skip=0):
        self.images, self.stop, self.left, self.skip = images, stop, times, skip

    def __len__(self):
        return len(self.images)

    def __getitem__(self, position):
        if position == self.stop and self.left:
            if not self.skip:
                self.left -= 1
                raise KeyboardInterrupt
            self.skip -= 1
        return self.images[position]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "saes"
    return train_saes(make_vit(), make_images(), make_config(), out=out)


def test_result_and_folder(uninterrupted):
    result = uninterrupted
    assert [(sae.d_model, sae.n_features, sae.k) for sae in result.saes] == [
        (16, 12, 2),
        (16, 24, 3),
    ]
    assert (result.n_images, result.n_tokens) == (2 * N_IMAGES, 2 * N_IMAGES * T)
    # an epoch: groups of 4, 4, 4 and 2 images, so of 20, 20, 20 and 10 tokens
    assert result.steps == 2 * (2 + 2 + 2 + 1)
    for sae in result.saes:
        torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(sae.n_features).double())
    assert sorted(path.name for path in result.folder.iterdir()) == [
        "layer_00.safetensors",
        "layer_01.safetensors",
        "manifest.json",
    ]
    assert_same(result.saes, load_saes(result.folder, dtype=torch.float64).values())
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert manifest["metadata"]["config"]["sizes"] == [12, 24]
    assert "explained variance" in str(result)


@pytest.mark.parametrize(("n", "n_steps", "n_falling"), [(14, 14, 4), (12, 12, 3)])
def test_figures_and_rates_by_hand(tmp_path, monkeypatch, n, n_steps, n_falling):
    step, reports, rates = Learner.step, [], []

    def noted(self, batches, rate):
        reports.append(step(self, batches, rate))
        rates.append(rate)
        return reports[-1]

    monkeypatch.setattr(Learner, "step", noted)
    result = train_saes(make_vit(), make_images(n), make_config(), out=tmp_path)
    mean = reports[0].explained_variance
    for report in reports[1:]:
        mean = 0.9 * mean + 0.1 * report.explained_variance
    assert result.explained_variance == pytest.approx(mean.tolist())
    assert result.dead_fraction == pytest.approx(reports[-1].dead_fraction.tolist())
    # Three steps of warming up; the last 30 % of all steps fall to zero.
    falling = [left / (0.3 * n_steps) for left in range(n_falling, 0, -1)]
    expected = [0.25, 0.5, 0.75, *[1] * (n_steps - 3 - n_falling), *falling]
    assert rates == pytest.approx([1e-2 * factor for factor in expected])


def test_training_explains_more(tmp_path):
    images = make_images(40)
    short, long = (
        train_saes(make_vit(), images, make_config(epochs=epochs), out=tmp_path / str(epochs))
        for epochs in (1, 12)
    )
    for before, after in zip(short.explained_variance, long.explained_variance, strict=True):
        assert after > before + 0.05
    report = measure(make_vit(), long.saes, [images])
    for layer, running in zip(report.layers, long.explained_variance, strict=True):
        assert layer.explained_variance_normalized == pytest.approx(running, abs=0.05)


@pytest.mark.parametrize("stop", [1, 6, 13])
def test_ctrl_c_then_resume_gives_the_same(tmp_path, uninterrupted, stop):
    images = Interrupted(make_images(), stop, times=2)
    out = tmp_path / "saes"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train_saes(make_vit(), images, make_config(), out=out)
        assert [path.name for path in out.glob("*")] == [CHECKPOINT] * (stop > 3)
    result = train_saes(make_vit(), images, make_config(), out=out)
    assert_same(result.saes, uninterrupted.saes)
    assert result.explained_variance == uninterrupted.explained_variance
    assert result.dead_fraction == uninterrupted.dead_fraction
    assert result.steps == uninterrupted.steps


def test_ctrl_c_in_the_middle_of_a_step_waits_for_its_end(tmp_path, uninterrupted, monkeypatch):
    step = Learner.step

    def step_with_ctrl_c(self, *args, **kwargs):
        if self.step_count == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", step_with_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            train_saes(make_vit(), make_images(), make_config(), out=tmp_path)
    assert "1.W_dec.exp_avg_sq" in load_file(tmp_path / CHECKPOINT)
    result = train_saes(make_vit(), make_images(), make_config(), out=tmp_path)
    assert_same(result.saes, uninterrupted.saes)


def test_periodic_checkpoints_do_not_change_the_result(tmp_path, uninterrupted):
    config = make_config(checkpoint_seconds=0.0)
    result = train_saes(make_vit(), make_images(), config, out=tmp_path)
    assert_same(result.saes, uninterrupted.saes)
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_run_goes_on_with_checkpoints_at_other_times(tmp_path, uninterrupted):
    with pytest.raises(KeyboardInterrupt):
        train_saes(make_vit(), Interrupted(make_images(), stop=5), make_config(), out=tmp_path)
    config = make_config(checkpoint_seconds=0.0)
    result = train_saes(make_vit(), make_images(), config, out=tmp_path)
    assert_same(result.saes, uninterrupted.saes)


@pytest.mark.parametrize("epoch", [0, 1])
def test_shuffling_data_loader_resumes_in_the_same_order(tmp_path, epoch):
    images = make_images()

    def run(stop, out):
        data = [(image, 0) for image in images] if stop is None else stop
        torch.manual_seed(7)
        loader = DataLoader(data, batch_size=3, shuffle=True)
        return train_saes(make_vit(), loader, make_config(), out=out)

    whole = run(None, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(Interrupted(images, stop=5, skip=epoch), tmp_path / "cut")
    torch.manual_seed(99)  # whatever was drawn in between
    loader = DataLoader(TensorDataset(images), batch_size=3, shuffle=True)
    resumed = train_saes(make_vit(), loader, make_config(), out=tmp_path / "cut")
    assert_same(whole.saes, resumed.saes)


def test_each_seed_and_epoch_shuffles_anew(tmp_path, monkeypatch):
    step, seen = Learner.step, []

    def noted(self, batches, rate):
        seen.append([tokens.clone() for tokens in batches])
        return step(self, batches, rate)

    monkeypatch.setattr(Learner, "step", noted)
    vision, images = make_vit(), make_images(4)
    for seed in (0, 1):
        config = make_config(seed=seed, batch_tokens=4 * T)
        train_saes(vision, images, config, out=tmp_path / str(seed))
    layers = [normalize_tokens(x.flatten(0, 1)).values for x in vision.residuals(images)[:2]]
    orders = []
    for batch in seen:
        found = [torch.cdist(b, x).argmin(1).tolist() for b, x in zip(batch, layers, strict=True)]
        assert found[0] == found[1]  # the same tokens at every layer
        assert sorted(found[0]) == list(range(4 * T))
        orders.append(tuple(found[0]))
    assert len(orders) == len(set(orders)) == 4


def test_finished_run_is_given_back(uninterrupted):
    again = train_saes(
        make_vit(), Interrupted(make_images(), 3), make_config(), out=uninterrupted.folder
    )
    assert_same(again.saes, uninterrupted.saes)
    assert again.steps == uninterrupted.steps


@pytest.mark.parametrize("interrupted", [True, False])
def test_folder_of_another_run_is_refused(tmp_path, interrupted):
    images = Interrupted(make_images(), 9) if interrupted else make_images()
    try:
        train_saes(make_vit(), images, make_config(epochs=1), out=tmp_path)
    except KeyboardInterrupt:
        assert interrupted
    with pytest.raises(CheckpointError, match=r"other settings: learning_rate 0\.01 \(now 0\.1\)"):
        train_saes(
            make_vit(), make_images(), make_config(epochs=1, learning_rate=0.1), out=tmp_path
        )
    with pytest.raises(CheckpointError, match="another model"):
        train_saes(make_vit(seed=1), make_images(), make_config(epochs=1), out=tmp_path)
    config = make_config(epochs=1, learning_rate=0.1)
    result = train_saes(make_vit(), make_images(), config, out=tmp_path, resume=False)
    assert result.steps == 7


@pytest.mark.parametrize("kind", [lambda x: x, list, TensorDataset, lambda x: list(x.split(5))])
def test_other_images_are_refused(tmp_path, kind):
    config = make_config(epochs=1)
    train_saes(make_vit(), kind(make_images()), config, out=tmp_path)
    train_saes(make_vit(), kind(make_images()), config, out=tmp_path)
    with pytest.raises(CheckpointError, match=r"run on other images.*resume=False"):
        train_saes(make_vit(), kind(make_images().flip(0)), config, out=tmp_path)


def test_images_whose_first_is_not_known_are_counted_only(tmp_path):
    config = make_config(epochs=1)
    for images in (make_images(), Interrupted(make_images().flip(0), -1), make_images()):
        train_saes(make_vit(), images, config, out=tmp_path)
    with pytest.raises(CheckpointError, match="other images"):
        train_saes(make_vit(), Interrupted(make_images(13), -1), config, out=tmp_path)
    config = make_config(epochs=1, decay_share=0)
    train_saes(make_vit(), make_images(), config, out=tmp_path, resume=False)
    with pytest.raises(CheckpointError, match="other images"):
        train_saes(make_vit(), Stream(), config, out=tmp_path)  # of nobody knows how many


def test_damaged_checkpoint(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train_saes(make_vit(), Interrupted(make_images(), 9), make_config(), out=tmp_path)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        train_saes(make_vit(), make_images(), make_config(), out=tmp_path)
    torch.save({"W_enc": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="pickle"):
        train_saes(make_vit(), make_images(), make_config(), out=tmp_path)


def test_disk_full_keeps_the_last_checkpoint(tmp_path, uninterrupted, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        train_saes(make_vit(), Interrupted(make_images(), 9), make_config(), out=tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(VitlensError, match="No space left"):
            train_saes(make_vit(), make_images(), make_config(), out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    result = train_saes(make_vit(), make_images(), make_config(), out=tmp_path)
    assert_same(result.saes, uninterrupted.saes)


def test_a_step_that_fails_is_not_saved(tmp_path, uninterrupted, monkeypatch):
    step = Learner.step

    def failing(self, batches, rate):
        report = step(self, batches, rate)
        if self.step_count == 4:
            raise RuntimeError("out of memory")
        return report

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(Learner, "step", failing)
        train_saes(make_vit(), make_images(), make_config(), out=tmp_path)
    assert not list(tmp_path.iterdir())
    result = train_saes(make_vit(), make_images(), make_config(), out=tmp_path)
    assert_same(result.saes, uninterrupted.saes)


def test_failure_to_save_the_saes_keeps_what_was_learnt(tmp_path, uninterrupted, monkeypatch):
    def fail(*args, **kwargs):
        raise VitlensError("no")

    with monkeypatch.context() as patch:
        patch.setattr("vitlens.saes.train.save_saes", fail)
        with pytest.raises(VitlensError, match="no"):
            train_saes(make_vit(), make_images(), make_config(), out=tmp_path)
    images = Interrupted(make_images(), 1)  # not needed any more
    assert_same(
        train_saes(make_vit(), images, make_config(), out=tmp_path).saes, uninterrupted.saes
    )


class Stream(IterableDataset):
    def __iter__(self):
        return iter(make_images())


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
def test_kinds_of_image_source(tmp_path, uninterrupted, images):
    n_images = N_IMAGES if isinstance(images, Stream) else None
    result = train_saes(make_vit(), images, make_config(), out=tmp_path, n_images=n_images)
    assert_same(result.saes, uninterrupted.saes)


def test_bfloat16_is_close_to_full_precision(tmp_path):
    images = make_images(40, torch.float32)
    full, low = (
        train_saes(
            make_vit(torch.float32),
            images,
            make_config(epochs=4, precision=precision),
            out=tmp_path / precision,
        )
        for precision in ("full", "bfloat16")
    )
    assert low.saes[0].W_enc.dtype == torch.float32
    assert low.explained_variance == pytest.approx(full.explained_variance, abs=0.03)


def test_nan_image_stops_training_and_keeps_what_was_learnt(tmp_path):
    images = make_images()
    images[9, 0, 0, 0] = torch.nan
    with pytest.raises(ImageError, match="NaN"):
        train_saes(make_vit(), images, make_config(), out=tmp_path)
    state = load_file(tmp_path / CHECKPOINT)
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
        (iter(make_images()), "iterated anew"),
    ],
)
def test_images_that_do_not_fit(tmp_path, images, message):
    with pytest.raises(ImageError, match=message):
        train_saes(make_vit(), images, make_config(decay_share=0.0), out=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": (12, 24, 24)}, "3 entries, and the model has 2 SAE layers"),
        ({"k": (2,)}, "1 entries"),
        ({"k": 13}, "Layer 0: k must be between 1 and its 12 features"),
        ({"epochs": 0}, "epochs must be 1 or more"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"decay_share": 1.5}, "decay_share"),
        ({"precision": "float16"}, "precision"),
        ({"aux_weight": -1}, "aux_weight"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        train_saes(make_vit(), make_images(), make_config(**changes), out=tmp_path)


def test_decay_needs_the_number_of_images(tmp_path):
    with pytest.raises(CheckpointError, match="pass n_images"):
        train_saes(make_vit(), Stream(), make_config(), out=tmp_path)


def test_a_bare_model_will_do(tmp_path, uninterrupted):
    result = train_saes(make_vit().module, make_images(), make_config(), out=tmp_path)
    assert_same(result.saes, uninterrupted.saes)
    with pytest.raises(ModelError, match="training mode"):
        train_saes(make_vit().module.train(), make_images(), make_config(), out=tmp_path)


def test_estimate():
    config = make_config()
    cost = estimate(make_vit().module, config, 1000)
    assert cost.n_tokens == 2 * 1000 * T
    expected = 2 * 1000 * cost.forward_seconds + cost.n_tokens * cost.step_seconds
    assert cost.seconds == pytest.approx(expected)
    buffer = 2 * config.buffer_tokens * WIDTH * 8
    assert buffer < cost.memory_bytes < 100 * buffer
    assert "10,000 tokens, about" in str(cost)


def test_the_first_image_is_the_same_in_batches_of_any_size():
    images = make_images()
    sources = [images, TensorDataset(images), list(images), *map(list, map(images.split, (3, 5)))]
    assert len({first_image(source) for source in sources}) == 1
    assert first_image(images.flip(0)) != first_image(images)


def test_images_to_leave_out_are_not_read():
    class Late:
        def __len__(self):
            return N_IMAGES

        def __getitem__(self, position):
            assert position >= 3
            return make_images()[position]

    assert torch.equal(torch.stack(list(iterate_images(Late(), 3))), make_images()[3:])


def test_tokens_wait_normalised_in_single_precision_and_finite():
    stream = torch.randn(2, T, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16() + 3
    buffer = TokenBuffer(2, WIDTH, dtype=torch.float32)
    buffer.add((stream, stream))
    ((tokens, _),) = buffer.batches(2 * T, torch.Generator())
    expected = normalize_tokens(stream.float().flatten(0, 1)).values
    assert torch.equal(tokens.sort(0).values, expected.sort(0).values)
    with pytest.raises(ImageError, match="overflows in this precision"):
        buffer.add((stream, stream * torch.inf))


def test_a_buffer_is_split_into_about_equal_batches():
    counts = {3: 1, 10: 1, 14: 1, 16: 2, 24: 2, 26: 3}
    assert {n: n_batches(n, 10) for n in counts} == counts
    buffer = TokenBuffer(1, WIDTH, dtype=torch.float64)
    buffer.add((torch.randn(1, 26, WIDTH).double(),))
    batches = buffer.batches(10, torch.Generator())
    assert [len(tokens) for (tokens,) in batches] == [9, 9, 8]


def test_images_of_a_loader_are_counted_as_it_gives_them():
    images = make_images(50)
    one_by_one, pairs = (
        TensorDataset(images),
        TensorDataset(images.reshape(25, 2, *images.shape[1:])),
    )
    few = RandomSampler(one_by_one, num_samples=10, replacement=True)
    loaders = [
        DataLoader(one_by_one, batch_size=16),
        DataLoader(one_by_one, batch_size=16, drop_last=True),
        DataLoader(one_by_one, batch_size=16, sampler=few),
        DataLoader(list(images.split(7)), batch_size=None),
        DataLoader(pairs, batch_size=None),
    ]
    for loader in loaders:
        planned = count_images(loader)
        assert planned in (None, sum(1 for _ in iterate_images(loader)))
    assert [count_images(loader) for loader in loaders[:4]] == [50, 48, 10, 50]
    stacked = DataLoader(list(images.split(7)), batch_size=1, collate_fn=lambda items: items[0])
    assert count_images(stacked) == 50

    class Unsized(Sampler):
        def __iter__(self):
            return iter(range(10))

    assert count_images(DataLoader(one_by_one, batch_size=2, sampler=Unsized())) is None
    batches = BatchSampler(SequentialSampler(one_by_one), 16, drop_last=True)
    assert count_images(DataLoader(one_by_one, batch_sampler=batches)) is None
