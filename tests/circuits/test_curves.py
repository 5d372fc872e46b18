"""Curves by hand: areas, intervals, tables and files."""

import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from vitlens.circuits.curves import METRICS, Curves, adjusted, interval, resamples
from vitlens.errors import CheckpointError, FeatureError, OptionError
from vitlens.io import read_tensors, write_tensors


def made_up(insertion, deletion, methods=("rrm", "cla"), q=(0.0, 0.02, 0.5, 1.0)):
    """Curves of [method, image, q] lists."""
    shape = {"insertion": torch.tensor(insertion).double(), "deletion": torch.tensor(deletion)}
    n_images = shape["insertion"].shape[1]
    return Curves(
        methods=methods,
        q=q,
        counts=tuple(round(48 * share) for share in q),
        insertion={m: shape["insertion"].clone() for m in METRICS},
        deletion={m: shape["deletion"].double() for m in METRICS},
        untouched={m: shape["insertion"][0, :, -1].clone() for m in METRICS},
        images=tuple(range(n_images)),
        n_given=n_images,
        error_nodes="clean",
        target="predicted class",
    )


# From 2 (empty) to 6 (full): one method is there at the first step, the other at the last.
STEPS = made_up(
    [[[2.0, 6, 6, 6]] * 3, [[2.0, 2, 2, 6]] * 3], [[[6.0, 2, 2, 2]] * 3, [[6.0, 6, 6, 2]] * 3]
)


def test_area_of_a_step_by_hand():
    # Trapezoids: a rise over the first .02 takes .01 off; a rise over the last .5 leaves .25.
    assert STEPS.area("insertion", "rrm").value == pytest.approx(0.99)
    assert STEPS.area("insertion", "cla").value == pytest.approx(0.25)
    assert STEPS.area("deletion", "rrm").value == pytest.approx(0.01)
    assert STEPS.area("deletion", "cla").value == pytest.approx(0.75)
    # Three steps, equally wide: all but half of the first; half of the last.
    assert STEPS.area("insertion", "rrm", axis="log").value == pytest.approx(5 / 6)
    assert STEPS.area("insertion", "cla", axis="log").value == pytest.approx(1 / 6)
    assert STEPS.ratio("rrm").value == pytest.approx(0.99 / 0.25)
    assert STEPS.span().value == pytest.approx(4)


def test_images_that_agree_leave_no_doubt():
    for estimate_ in (STEPS.area("insertion", "rrm"), STEPS.ratio("rrm"), STEPS.span()):
        assert estimate_.low == pytest.approx(estimate_.value)
        assert estimate_.high == pytest.approx(estimate_.value)


def test_area_is_a_ratio_of_means_with_a_paired_bootstrap():
    generator = np.random.default_rng(5)
    full = generator.uniform(4, 8, 40)
    reach = generator.uniform(0.2, 0.6, 40)
    rrm = np.stack([0 * full, reach * full, reach * full, full], 1)
    cla = rrm * np.array([1, 0.5, 0.5, 1])
    made = made_up([rrm.tolist(), cla.tolist()], [cla.tolist(), rrm.tolist()])
    weights = np.array([0.01, 0.25, 0.49, 0.25])
    areas = rrm @ weights
    assert made.area("insertion", "rrm").value == pytest.approx(areas.mean() / full.mean())

    draws = [generator.integers(0, 40, 40) for _ in range(4000)]
    low, high = np.percentile([areas[d].mean() / full[d].mean() for d in draws], (2.5, 97.5))
    found = made.area("insertion", "rrm")
    assert found.low == pytest.approx(low, abs=0.005)
    assert found.high == pytest.approx(high, abs=0.005)
    others = cla @ weights
    low, high = np.percentile([areas[d].mean() / others[d].mean() for d in draws], (2.5, 97.5))
    ratio = made.ratio("rrm")
    assert ratio.low == pytest.approx(low, abs=0.01)
    assert ratio.high == pytest.approx(high, abs=0.01)
    assert made.area("insertion", "rrm") == found


def test_an_interval_is_the_middle_95_percent():
    found = interval(0.5, np.arange(1001.0), n_images=2)
    assert (found.low, found.high) == (25, 975)
    images = np.random.default_rng(3).uniform(0.2, 0.8, 12)
    made = made_up([[[0.0, x, x, 1] for x in images]], [[[1.0, 0, 0, 0]] * 12], ("rrm",))
    means = resamples(12) @ images
    band = made.band("insertion", "rrm")
    assert (means < band.low[1]).mean() == pytest.approx(0.025, abs=0.003)
    assert (means > band.high[1]).mean() == pytest.approx(0.025, abs=0.003)


def test_empty_and_full_models_are_drawn_with_their_images():
    values, empty, full = np.array([2.0, 6]), np.array([1.0, 3]), np.array([3.0, 9])
    draws = np.array([[1, 0], [0, 1], [0.5, 0.5]])
    value, resampled = adjusted(values, empty, full, draws)
    assert [value, *resampled] == [0.5] * 4  # half-way on each image
    in_doubt = adjusted(values, empty, np.array([11.0, 2]), draws)
    assert np.isnan(in_doubt[0]) and np.isnan(in_doubt[1]).all()


def test_band_is_the_adjusted_mean():
    band = STEPS.band("insertion", "rrm")
    np.testing.assert_allclose(band.mean, [0, 1, 1, 1])
    np.testing.assert_allclose(band.low, band.mean)
    np.testing.assert_allclose(STEPS.mean("insertion", "rrm"), [2, 6, 6, 6])


def test_no_share_of_no_span():
    flat = made_up([[[1.0, 5, 5, 3], [3.0, 5, 5, 1], [1.0, 2, 2, 1]]], [[[0.0] * 4] * 3], ("rrm",))
    assert np.isnan(flat.area("insertion", "rrm").value)
    assert np.isnan(flat.band("insertion", "rrm").mean).all()
    assert "too small" in str(flat)


def test_one_image_has_no_interval():
    single = made_up([[[0.0, 1, 1, 2]]], [[[2.0, 1, 1, 0]]], ("rrm",))
    found = single.area("insertion", "rrm")
    assert found.value == pytest.approx(0.02 * 0.25 + 0.48 * 0.5 + 0.5 * 0.75)
    assert np.isnan(found.low)
    assert str(found) == f"{found.value:.3f}"


def test_table():
    lines = STEPS.table().splitlines()
    assert re.split(" {2,}", lines[0]) == [
        "method",
        "insertion ↑",
        "deletion ↓",
        "kept with 2 %",
        "insertion / CLA's",
    ]
    assert lines[1].startswith("rrm     0.990 [0.990, 0.990]  0.010 [0.010, 0.010]  1.000")
    assert lines[1].endswith("  3.960 [3.960, 3.960]")
    assert re.split(" {2,}", lines[2])[-2:] == ["0.000 [0.000, 0.000]", "1"]
    assert "error nodes: clean" in str(STEPS)


def test_the_distance_from_the_full_model_does_not_cancel_over_images():
    # From 0 to 4 on both images: one keeps too little with 2 %, the other as much too much.
    made = made_up([[[0.0, 3, 4, 4], [0.0, 5, 4, 4]]], [[[4.0, 0, 0, 0]] * 2], ("rrm",))
    assert made.band("insertion", "rrm").mean[1] == pytest.approx(1)
    far = made.distance("insertion", "rrm")
    np.testing.assert_allclose(far.mean, [1, 0.25, 0, 0])
    assert far.low[1] == pytest.approx(0.25) and far.high[1] == pytest.approx(0.25)
    assert made.distance("deletion", "rrm").mean[0] == pytest.approx(0)
    below = made_up([[[4.0, 3, 1, 0]] * 2], [[[0.0] * 4] * 2], ("rrm",))
    assert np.isnan(below.distance("insertion", "rrm").mean).all()


def test_divergence_is_good_where_it_is_low():
    # 2 nats with no feature, .5 with 2 %, none from half of them on.
    made = made_up([[[2.0, 0.5, 0, 0]] * 3], [[[0.0, 2, 2, 2]] * 3], ("rrm",))
    np.testing.assert_allclose(made.mean("insertion", "rrm", "divergence"), [2, 0.5, 0, 0])
    np.testing.assert_allclose(made.band("insertion", "rrm", "divergence").mean, [0, 0.75, 1, 1])
    np.testing.assert_allclose(
        made.distance("insertion", "rrm", "divergence").mean, [1, 0.25, 0, 0]
    )
    assert made.area("deletion", "rrm", metric="divergence").value == pytest.approx(0.01)
    assert made.span("divergence").value == pytest.approx(2)


def test_the_table_of_what_is_kept_names_distance_and_divergence():
    values = {"target": [0.0, 5, 4, 4], "divergence": [2.0, 0.5, 0, 0], "top1": [0.0, 1, 1, 1]}
    made = made_up([[[0.0] * 4] * 2], [[[0.0] * 4] * 2], ("rrm",))
    for metric, curve in values.items():
        made.insertion[metric][:] = torch.tensor(curve)
    lines = [re.split(" {2,}", line.strip()) for line in made.kept_table().splitlines()]
    assert lines == [
        ["method", "kept with 2 %", "from 1", "nats", "class first"],
        ["rrm", "1.250", "0.250", "0.500", "100%"],
    ]
    assert made.kept_table() in str(made)


def test_curves_without_a_metric_say_so_and_are_stored(tmp_path):
    made = made_up([[[0.0, 3, 4, 4]] * 2], [[[4.0, 0, 0, 0]] * 2], ("rrm",))
    fewer = replace(
        made,
        **{
            part: {m: v for m, v in getattr(made, part).items() if m != "divergence"}
            for part in ("insertion", "deletion", "untouched")
        },
    )
    fewer.save(tmp_path / "curves.safetensors")
    loaded = Curves.load(tmp_path / "curves.safetensors")
    assert loaded == fewer and loaded != made and "divergence" not in loaded.metrics
    assert "nats" not in loaded.kept_table()
    with pytest.raises(OptionError, match="metric must be one of target, logit, probability, top1"):
        loaded.mean("insertion", "rrm", "divergence")


def test_save_and_load(tmp_path):
    path = tmp_path / "curves.safetensors"
    STEPS.save(path)
    assert Curves.load(path) == STEPS
    torch.save({}, path)
    with pytest.raises(CheckpointError, match="pickle"):
        Curves.load(path)
    write_tensors(path, {"x": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="does not hold curves"):
        Curves.load(path)
    write_tensors(path, {}, {"format": "vitlens.curves", "version": 3, "methods": []})
    with pytest.raises(CheckpointError, match="damaged"):
        Curves.load(path)


@pytest.mark.parametrize("name", ["insertion.target", "deletion.top1", "untouched.logit"])
def test_curves_of_another_shape_are_refused(tmp_path, name):
    path = tmp_path / "curves.safetensors"
    STEPS.save(path)
    tensors, metadata = read_tensors(path)
    write_tensors(path, {**tensors, name: tensors[name][:-1].clone()}, metadata)
    with pytest.raises(CheckpointError, match=rf"damaged curves: {name} of shape"):
        Curves.load(path)


def test_unknown_names_are_named():
    with pytest.raises(FeatureError, match="no method 'cal', only rrm, cla"):
        STEPS.area("insertion", "cal")
    with pytest.raises(OptionError, match="metric must be one of target"):
        STEPS.mean("insertion", "rrm", "loss")
    with pytest.raises(OptionError, match="direction must be one of"):
        STEPS.mean("insert", "rrm")
    for ask in (STEPS.ratio, partial(STEPS.area, "insertion")):
        with pytest.raises(OptionError, match="axis must be one of linear, log, not 'logarithmic'"):
            ask("rrm", axis="logarithmic")
    with pytest.raises(ValueError, match="axis must be one of"):
        STEPS.table(axis=None)
