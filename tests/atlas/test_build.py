"""The pass against brute force over all activations; parts, merging, interrupting, resuming."""

import itertools
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.builders import tiny_image, tiny_lens
from vitlens.atlas import exact
from vitlens.atlas.build import build_state, remove_partial, writing
from vitlens.atlas.sources import Item, Loaded, Source
from vitlens.atlas.state import EMPTY, AtlasState, LayerSums, merge_states
from vitlens.errors import CheckpointError, ImageError, TargetError, VitlensError
from vitlens.io import partial_path, read_tensors

N, BATCH, N_TOP, N_SAMPLED = 210, 16, 5, 6


T, F, C = 10, 30, 5


B = 512


@pytest.fixture(scope="module")
def lens():
    return tiny_lens()


def noise_of(number):
    return number // 2 if number % 7 == 6 else number


@pytest.fixture(scope="module")
def images():
    """Noise, every seventh image a copy of an earlier one."""
    return [tiny_image(noise_of(number)) for number in range(N)]


@pytest.fixture(scope="module")
def labels():
    return [None if number % 11 == 10 else (number * number) % C for number in range(N)]


@pytest.fixture(scope="module")
def groups():
    return [f"scene {number % 37}" for number in range(N)]


def build(lens, images, **options):
    options = {
        "n_top": N_TOP,
        "n_sampled": N_SAMPLED,
        "batch_size": BATCH,
        "progress": False,
    } | options
    return build_state(lens, images, **options)


@pytest.fixture(scope="module")
def state(lens, images, labels, groups):
    return build(lens, images, labels=labels, groups=groups)


@pytest.fixture(scope="module")
def activations(lens, images):
    """Dense activations of all images, from whole batches: one array [N, T, F] a layer."""
    layers = [[] for _ in lens.saes]
    for start in range(0, N, BATCH):
        batch = torch.zeros(BATCH, 3, 24, 24)
        given = images[start : start + BATCH]
        batch[: len(given)] = torch.stack(given)
        for found, sae, stream in zip(
            layers, lens.saes, lens.vision.residuals(batch)[:-1], strict=True
        ):
            found.append(sae.encode(stream)[: len(given)].detach().numpy())
    return [np.concatenate(found) for found in layers]


@pytest.fixture(scope="module")
def ids():
    return [exact.hash_text(str(number)) for number in range(N)]


def split_mix(number: int, salt: int) -> int:
    """SplitMix64 in Python's own integers."""
    full = (1 << 64) - 1
    number = (number + 0x9E3779B97F4A7C15 * (salt + 1)) & full
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & full
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & full
    return (number ^ (number >> 31)) & ((1 << 63) - 1)


def fixed(values, unit=2.0**-20):
    return np.rint(values.astype(np.float64) / unit).astype(np.int64)


def same(tensor, expected):
    np.testing.assert_array_equal(tensor.numpy(), np.asarray(expected))


def test_activations_are_those_of_trace(lens, images, activations):
    for number in (0, 17, N - 1):
        for layer, features in enumerate(lens.trace(images[number]).features):
            np.testing.assert_allclose(
                activations[layer][number], features.numpy(), rtol=1e-4, atol=1e-5
            )


def test_top_images_are_those_of_brute_force(state, activations, ids, groups):
    for layer, z in zip(state.layer_states, activations, strict=True):
        peaks = z.max(axis=1)
        for feature in range(F):
            active = [n for n in range(N) if peaks[n, feature] > 0]
            best, seen = [], set()
            for number in sorted(active, key=lambda n: (-peaks[n, feature], ids[n])):
                if groups[number] not in seen:
                    best.append(number)
                    seen.add(groups[number])
            check_row(layer.top, feature, best[:N_TOP], z, ids)


def test_sampled_images_are_those_of_the_smallest_ids(state, activations, ids):
    for layer, z in zip(state.layer_states, activations, strict=True):
        for feature in range(F):
            active = [n for n in range(N) if z[n, :, feature].max() > 0]
            chosen = sorted(active, key=lambda n: ids[n])[:N_SAMPLED]
            check_row(layer.sampled, feature, chosen, z, ids)


def check_row(pool, feature, numbers, z, ids):
    missing = pool.n_places - len(numbers)
    same(pool.id[feature], [ids[n] for n in numbers] + [EMPTY] * missing)
    same(pool.peak[feature], [z[n, :, feature].max() for n in numbers] + [0] * missing)
    same(pool.token[feature], [z[n, :, feature].argmax() for n in numbers] + [EMPTY] * missing)
    for place, number in enumerate(numbers):
        values = z[number, :, feature]
        same(pool.heatmap[feature, place], np.rint(255 * (values / values.max())).astype(np.uint8))
    assert not pool.heatmap[feature, len(numbers) :].any()


def test_pools_are_not_all_full_or_all_empty(state):
    """Or the tests above would not see how places without an image are handled."""
    filled = torch.cat([layer.sampled.id.flatten() != EMPTY for layer in state.layer_states])
    assert filled.any()
    sparse = build(tiny_lens(features=400), [tiny_image(1)], batch_size=1)
    assert (sparse.layer_states[0].top.id == EMPTY).any()
    assert (sparse.layer_states[0].top.id[:, 0] != EMPTY).any()


def test_counts_and_histograms_are_those_of_brute_force(state, activations):
    edges = [2 ** (-6 + step / 4) for step in range(49)]
    for layer, z in zip(state.layer_states, activations, strict=True):
        sums = layer.sums
        same(sums.n_active, (z > 0).sum((0, 1)))
        same(sums.prefix_active, (z[:, :1] > 0).sum(0))
        same(sums.n_images, (z > 0).any(1).sum(0))
        for values, found in ((z, sums.histogram), (z.max(1), sums.peak_histogram)):
            for feature in range(F):
                counts = [0] * 48
                for value in values[..., feature][values[..., feature] > 0].tolist():
                    place = sum(value >= edge for edge in edges[1:-1])
                    counts[place] += 1
                same(found[feature], counts)


def test_positions_are_those_of_brute_force(state, activations, ids):
    orders = [
        sorted(range(T - 1), key=lambda p, i=i: split_mix(split_mix(i, 1) + p, 2)) for i in ids
    ]
    # Patch p goes where the p-th smallest number stands.
    moved = np.array([[0, *(1 + place for place in order)] for order in orders])
    for layer, z in zip(state.layer_states, activations, strict=True):
        same(layer.sums.position, fixed(z).sum(0))
        shuffled = np.zeros_like(z)
        for number in range(N):
            shuffled[number, moved[number]] = z[number]
        same(layer.sums.position_shuffled, fixed(shuffled).sum(0))
        assert (layer.sums.position != layer.sums.position_shuffled).any()
        same(layer.sums.squares, (fixed(z[:, 1:]) ** 2 // 2**16).sum((0, 1)))


def test_classes_are_those_of_brute_force(state, activations, labels, ids):
    bucket = [max(split_mix(i, 3) % B, split_mix(i, 4) % B) for i in ids]
    known = [n for n in range(N) if labels[n] is not None]
    same(state.per_class, np.bincount([labels[n] for n in known], minlength=C))
    same(state.per_bucket, np.bincount([bucket[n] for n in known], minlength=B))
    for layer, z in zip(state.layer_states, activations, strict=True):
        mean = (fixed(z).sum(1) + T // 2) // T
        same(layer.sums.image_mean, mean.sum(0))
        same(layer.sums.image_squares, (mean**2 // 2**10).sum(0))
        for one in range(C):
            of_class = [n for n in known if labels[n] == one]
            same(layer.sums.class_mean[one], mean[of_class].sum(0))
            same(layer.sums.class_active[one], (z[of_class].max(1) > 0).sum(0))
        for one in range(B):
            same(layer.sums.bucket_mean[one], mean[[n for n in known if bucket[n] == one]].sum(0))


def test_streams_are_those_of_each_image(state, lens, images):
    traces = [lens.trace(image) for image in images]
    final = torch.stack([trace.output for trace in traces]).double().sum(0)
    torch.testing.assert_close(
        state.final_stream.double() * exact.UNIT, final, rtol=1e-4, atol=1e-3
    )
    for number, layer in enumerate(state.layer_states):
        stds = torch.stack([trace.stds[number][:, 0] for trace in traces]).double().sum(0)
        torch.testing.assert_close(
            layer.sums.stds.double() * exact.UNIT, stds, rtol=1e-4, atol=1e-3
        )


def test_kept_images_have_their_facts(state, lens, images, labels, ids):
    pools = [pool for layer in state.layer_states for pool in (layer.top, layer.sampled)]
    used = {image for pool in pools for image in pool.id.flatten().tolist()}
    assert set(state.images) == used - {EMPTY}
    for image, record in state.images.items():
        number = int(record.key)
        assert ids[number] == image
        assert record.label == (-1 if labels[number] is None else labels[number])
        assert (record.width, record.height) == (24, 24)
        normed = lens.vision.module.norm(lens.trace(images[number]).output).detach()
        torch.testing.assert_close(record.embedding.float(), normed[0], rtol=1e-2, atol=1e-2)


def test_images_of_one_perceptual_hash_count_once(lens, images):
    state = build(lens, images, n_top=60, n_sampled=60)
    noise = {exact.hash_text(str(number)): noise_of(number) for number in range(N)}

    def copies(pool):
        rows = [[noise[i] for i in row if i != EMPTY] for row in pool.id.tolist()]
        return sum(len(row) - len(set(row)) for row in rows)

    assert sum(copies(layer.top) for layer in state.layer_states) == 0
    assert sum(copies(layer.sampled) for layer in state.layer_states) > 0


def test_an_image_gives_the_same_bits_at_any_place_of_a_batch(lens, images):
    rolled = images[3:BATCH] + images[:3]
    one = build(lens, images[:BATCH])
    other = build(lens, numbered(rolled, [*range(3, BATCH), 0, 1, 2]))
    assert_same_state(one, other)


def numbered(images, numbers):
    """A source whose keys are the given numbers."""
    items = [
        Item(str(n), lambda image=image: Loaded(image))
        for n, image in zip(numbers, images, strict=True)
    ]
    return Source(items=lambda: iter(items), length=len(items), labelled=False)


def assert_same_state(one, other):
    assert saved_bytes(one) == saved_bytes(other)


def saved_bytes(state):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        state.save(path)
        return path.read_bytes()


@pytest.mark.parametrize("n", [2, 3])
def test_parts_merged_in_any_order_are_the_whole(lens, images, labels, groups, state, n):
    whole = saved_bytes(state)
    parts = [build(lens, images, labels=labels, groups=groups, part=(i, n)) for i in range(n)]
    assert all(part.n_images < N for part in parts)
    for order in itertools.permutations(parts):
        assert saved_bytes(merge_states(order)) == whole
    if n == 3:
        a, b, c = parts
        assert saved_bytes(a.merge(b.merge(c))) == whole


def test_more_parts_than_batches_is_an_error(lens, images):
    with pytest.raises(ImageError, match="no image"):
        build(lens, images[:20], part=(5, 6))


def test_saved_and_loaded_states_are_the_same(state, tmp_path):
    state.save(tmp_path / "a")
    AtlasState.load(tmp_path / "a").save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_state_of_an_older_format_is_refused(state, tmp_path, monkeypatch):
    monkeypatch.setattr("vitlens.atlas.state._VERSION", 1)
    state.save(tmp_path / "old")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"of format 1; this version .* reads format 3"):
        AtlasState.load(tmp_path / "old")


def unfinished(out):
    """The state that an interrupted pass has saved."""
    tensors, about = read_tensors(partial_path(out))
    return AtlasState.from_tensors(tensors, about["state"]["state"])


class Stopper:
    """A progress function that stops the pass at its n-th call."""

    def __init__(self, n, error=KeyboardInterrupt):
        self.left, self.error, self.shares = n, error, []

    def __call__(self, share, what):
        self.shares.append(share)
        self.left -= 1
        if not self.left:
            raise self.error


def test_a_pass_goes_on_where_it_stopped(lens, images, tmp_path):
    build(lens, images, out=tmp_path / "whole")
    for stop in (3, 4):
        with pytest.raises(KeyboardInterrupt):
            build(lens, images, out=tmp_path / "cut", progress=Stopper(stop))
    assert unfinished(tmp_path / "cut").n_images == 7 * BATCH
    rest = Stopper(0)
    build(lens, images, out=tmp_path / "cut", progress=rest)
    assert rest.shares[0] == pytest.approx(8 * BATCH / N)
    whole, cut = (partial_path(tmp_path / name).read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    assert not (tmp_path / "cut").exists()


def test_a_finished_pass_is_not_run_again(lens, images, tmp_path):
    first = build(lens, images, out=tmp_path / "atlas")
    unread = numbered([None] * N, range(N))
    again = build(lens, unread, out=tmp_path / "atlas")
    assert_same_state(first, again)
    remove_partial(tmp_path / "atlas")
    with pytest.raises(ImageError, match="None of the 210 images"):
        build(lens, unread, out=tmp_path / "atlas")
    assert not partial_path(tmp_path / "atlas").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_top": 3}, "differs: n_top 5 .now 3"),
        ({"heatmaps": False}, "differs: heatmaps True .now False"),
        ({"part": (1, 2)}, "differs: part"),
        ({"images": 100}, "differs: images"),
        ({"labels": ["bird"] * N}, "differs: classes"),
        ({"lens": 1}, "differs: model and SAEs"),
    ],
)
def test_another_run_does_not_go_on(lens, images, tmp_path, options, message):
    out = tmp_path / "atlas"
    with pytest.raises(KeyboardInterrupt):
        build(lens, images, out=out, progress=Stopper(2))
    other = tiny_lens(options.pop("lens")) if "lens" in options else lens
    fewer = images[: options.pop("images", N)]
    with pytest.raises(CheckpointError, match=message):
        build(other, fewer, out=out, **options)
    assert build(other, fewer, out=out, resume=False, **options).n_images


def test_a_damaged_partial_state_is_an_error(lens, images, tmp_path):
    partial_path(tmp_path / "atlas").write_bytes(b"nothing of use")
    with pytest.raises(CheckpointError, match=r"atlas\.partial"):
        build(lens, images, out=tmp_path / "atlas")


def test_ctrl_c_does_not_cut_a_batch_in_two(lens, images, tmp_path, monkeypatch):
    add, calls = LayerSums.add, []

    def press(self, *given):
        add(self, *given)
        calls.append(1)
        if len(calls) == 5:  # the second of three layers, second batch
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(LayerSums, "add", press)
    with pytest.raises(KeyboardInterrupt):
        build(lens, images, out=tmp_path / "atlas")
    state = unfinished(tmp_path / "atlas")
    assert state.n_images == 2 * BATCH
    monkeypatch.undo()
    assert_same_state(build(lens, images, out=tmp_path / "atlas"), build(lens, images))


def test_a_batch_that_fails_half_way_is_not_saved(lens, images, tmp_path, monkeypatch):
    add, calls = LayerSums.add, []

    def fail(self, *given):
        add(self, *given)
        calls.append(1)
        if len(calls) == 5:
            raise MemoryError

    monkeypatch.setattr(LayerSums, "add", fail)
    with pytest.raises(MemoryError):
        build(lens, images, out=tmp_path / "atlas")
    assert not partial_path(tmp_path / "atlas").exists()


def test_two_runs_cannot_write_one_atlas(tmp_path):
    out = tmp_path / "atlas"
    with writing(out), pytest.raises(VitlensError, match="Another run"), writing(out):
        pass
    with writing(out):
        pass
    with writing(None):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_killed_blocks_nobody(tmp_path):
    program = (
        "import os, sys; from vitlens.atlas.build import writing\n"
        "with writing(sys.argv[1]): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "atlas")], check=False)
    assert (tmp_path / "atlas.lock").exists()
    with writing(tmp_path / "atlas"):
        pass


def test_states_that_do_not_belong_together(lens, images, state):
    few = images[:BATCH]
    one = build(lens, few)
    with pytest.raises(CheckpointError, match="different models"):
        one.merge(build(tiny_lens(1), few))
    with pytest.raises(CheckpointError, match="different settings"):
        one.merge(build(lens, few, n_top=2))
    with pytest.raises(CheckpointError, match="labels from"):
        one.merge(build(lens, few, labels=["bird"] * BATCH))
    with pytest.raises(CheckpointError, match="Both hold the image"):
        one.merge(build(lens, few))
    with pytest.raises(CheckpointError, match="nothing to merge"):
        merge_states([])


@pytest.mark.parametrize(
    "options",
    [
        {"n_top": 0},
        {"n_sampled": 0},
        {"batch_size": 0},
        {"thumbnails": 0},
        {"quality": 101},
        {"part": (2, 2)},
        {"part": (-1, 2)},
    ],
)
def test_settings_out_of_range(lens, images, options):
    with pytest.raises(VitlensError):
        build(lens, images, **options)


def test_labels_that_do_not_fit(lens, images):
    with pytest.raises(TargetError, match="210 images need as many labels, not 2"):
        build(lens, images, labels=[0, 1])
    with pytest.raises(TargetError, match="class 5, but there are 5"):
        build(lens, images, labels=[5] * N)
    with pytest.raises(TargetError, match="unknown"):
        build(lens, images, labels=lambda key: "bard")
    with pytest.raises(ImageError, match="210 images need as many groups"):
        build(lens, images, groups=["a"])


def test_images_with_nan_are_skipped(lens, images):
    bad = images[:10]
    bad[3] = torch.full((3, 24, 24), torch.nan)
    state = build(lens, bad, batch_size=4)
    assert [key for key, _ in state.skipped] == ["3"]
    assert state.n_images == 9


def test_without_heatmaps_and_thumbnails(lens, images):
    state = build(lens, images[:20], heatmaps=False, thumbnails=None)
    assert state.layer_states[0].top.heatmap.shape == (F, N_TOP, 0)
    assert all(record.thumbnail is None for record in state.images.values())


def test_the_image_table_stays_small(lens, monkeypatch):
    """It drops images on the way; what is saved is as if it had not."""
    few = [tiny_image(n) for n in range(400)]
    options = {"n_top": 1, "n_sampled": 1, "batch_size": 8}
    plain = build(lens, few, **options)
    sizes = []
    forget = AtlasState.drop_unused_images

    def note(self):
        sizes.append(len(self.images))
        forget(self)

    monkeypatch.setattr("vitlens.atlas.build._FEW_IMAGES", 10)
    monkeypatch.setattr(AtlasState, "drop_unused_images", note)
    assert_same_state(plain, build(lens, few, **options))
    assert len(sizes) > 3
    assert max(sizes) < 400
