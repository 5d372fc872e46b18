import json
from functools import partial
from itertools import permutations

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

import vitlens
from tests.tiny import tiny_image, tiny_lens
from vitlens.circuits import curves as curves_module
from vitlens.circuits.areas import adjusted, interval, resamples
from vitlens.circuits.curves import Curves, estimate, faithfulness
from vitlens.circuits.methods import METHODS, Case, ranked
from vitlens.circuits.results import METRICS
from vitlens.circuits.resume import partial_path
from vitlens.errors import CheckpointError, FeatureError, TargetError, VitlensError
from vitlens.io import read_tensors, write_tensors
from vitlens.models.vision import VisionModel
from vitlens.replacement import Baselines, run_with, trace
from vitlens.saes.topk import TopKSAE

# Counts 0, 1, 3, 8, 30, 48 of the largest layer's 48 features; the smallest has 20.
COUNTS = (0, 1, 3, 8, 30, 48)
Q = tuple(count / 48 for count in COUNTS)


class Reference:
    """The float64 model of the reference data, and a slow program of our own for it."""

    def __init__(self, folder):
        settings = json.loads((folder / "vit_cls.json").read_text())
        self.data = load_file(folder / "vit_cls.safetensors")
        model = timm.models.VisionTransformer(**settings["timm_VisionTransformer"]).double().eval()
        model.load_state_dict(self._named("model."))
        self.vision = VisionModel(model)
        self.top_k = settings["top_k"]
        self.classes = settings["targets"]
        self.saes = [
            TopKSAE.from_weights(
                W_enc=self.data[f"sae.{i}.W_enc"].double(),
                W_dec=self.data[f"sae.{i}.W_dec"].double(),
                b_dec=self.data[f"sae.{i}.b_dec"].double(),
                k=k,
            )
            for i, k in enumerate(self.top_k)
        ]
        self.baselines = Baselines(
            [self.data[f"baseline.{i}.features"] for i in range(3)],
            [self.data[f"baseline.{i}.errors"] for i in range(3)],
        )
        self.images = list(self.data["images"].double())
        self.arguments = (self.vision, self.saes, self.baselines)

    def _named(self, prefix):
        return {k.removeprefix(prefix): v for k, v in self.data.items() if k.startswith(prefix)}

    def encode(self, x, layer):
        """Features of a stream [T, D], its scale and mean, by the method's text."""
        mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
        b = self.data[f"sae.{layer}.b_dec"].double()
        z = (((x - mean) / (std.detach() + 1e-5)) - b) @ self.data[f"sae.{layer}.W_enc"].double()
        mask = torch.zeros_like(z).scatter(1, z.topk(self.top_k[layer]).indices, 1)
        return z.relu() * mask, std.detach(), mean

    def decode(self, z, std, mean, layer):
        b = self.data[f"sae.{layer}.b_dec"].double()
        return (z @ self.data[f"sae.{layer}.W_dec"].double() + b) * std + mean

    @torch.no_grad()
    def replaced(self, image, kept, errors="clean"):
        """Logits with the kept features only, one image and one run at a time."""
        model = self.vision.module
        start = model.norm_pre(model._pos_embed(model.patch_embed(image[None])))
        clean = running = start
        for layer, block in enumerate(model.blocks[:-1]):
            clean, running = block(clean), block(running)
            held = errors if isinstance(errors, str) else errors[layer]
            error = clean[0] - self.decode(*self.encode(clean[0], layer), layer)
            z, std, mean = self.encode(running[0], layer)
            if held == "free":
                error = running[0] - self.decode(z, std, mean, layer)
            if held == "baseline":
                error = self.baselines.errors[layer]
            for feature in range(z.shape[1]):
                if feature not in kept[layer]:
                    z[:, feature] = self.baselines.features[layer][:, feature]
            running = (self.decode(z, std, mean, layer) + error)[None]
        return model.forward_head(model.norm(model.blocks[-1](running)))[0]

    def cla_edges(self, image):
        """|a_m| |d a_n / d a_m| by autograd: each source feature gets a scale of its own."""
        model = self.vision.module
        streams = self.vision.residuals(image[None])
        edges = []
        for layer in range(2):
            z, std, _ = self.encode(streams[layer][0], layer)
            W_dec = self.data[f"sae.{layer}.W_dec"].double()

            def activations(scale, layer=layer, z=z, std=std, W_dec=W_dec):
                x = streams[layer] + (z * (scale - 1) @ W_dec) * std
                return self.encode(model.blocks[layer + 1](x)[0], layer + 1)[0].sum(0)

            ones = torch.ones(z.shape[1]).double()
            edges.append(torch.autograd.functional.jacobian(activations, ones).T.abs())
        z, std, _ = self.encode(streams[2][0], 2)
        W_dec = self.data["sae.2.W_dec"].double()

        def target(scale):
            x = streams[2] + (z * (scale - 1) @ W_dec) * std
            logits = model.forward_head(model.norm(model.blocks[3](x)))[0]
            return logits[self.classes[0]] - logits.mean()

        top = torch.autograd.functional.jacobian(target, torch.ones(48).double()).abs()
        return top, edges


@pytest.fixture(scope="module")
def reference(reference_folder):
    return Reference(reference_folder)


@pytest.fixture(scope="module")
def measured(reference):
    """All methods on the first image, for the class of the reference data."""
    return faithfulness(
        *reference.arguments,
        reference.images[:1],
        methods=tuple(METHODS),
        target=reference.classes[0],
        q=Q,
        batch_size=7,
        progress=False,
    )


def metrics_of(logits, index):
    return {
        "target": logits[index] - logits.mean(),
        "logit": logits[index],
        "probability": logits.softmax(0)[index],
        "top1": float(logits.argmax() == index),
    }


def naive_walk(top, edges, count):
    """The best features, layer by layer, with nothing but lists and sorting."""
    scores, kept = top.tolist(), []
    for edge in [*reversed(edges), None]:
        best = sorted(range(len(scores)), key=lambda f: (-scores[f], f))[:count]
        kept.insert(0, best)
        if edge is not None:
            scores = [sum(float(edge[f, n]) for n in best) for f in range(len(edge))]
    return kept


def assert_follows(reference, curves, method, kept_for, errors="clean"):
    index = reference.classes[0]
    everything = [range(sae.n_features) for sae in reference.saes]
    for step, count in enumerate(COUNTS):
        kept = kept_for(count) if 0 < count < 48 else ([[]] * 3 if count == 0 else everything)
        rest = [[f for f in layer if f not in k] for layer, k in zip(everything, kept, strict=True)]
        for direction, features in (("insertion", kept), ("deletion", rest)):
            logits = reference.replaced(reference.images[0], features, errors)
            for metric, value in metrics_of(logits, index).items():
                found = curves.values(direction, method, metric)[0, step]
                assert found == pytest.approx(float(value), rel=1e-9), (direction, count, metric)


def test_rrm_against_a_naive_program(reference, measured):
    nodes = reference.data["image0.libragrad.leaf.nodes.2"][:-1]
    edges = [reference.data[f"image0.libragrad.leaf.edges.{i}"][:-1] for i in range(2)]
    assert_follows(reference, measured, "rrm", lambda count: naive_walk(nodes, edges, count))


def test_cla_against_a_naive_program(reference, measured):
    top, edges = reference.cla_edges(reference.images[0])
    assert_follows(reference, measured, "cla", lambda count: naive_walk(top, edges, count))


@pytest.mark.parametrize(
    ("method", "key"), [("node", "libragrad.leaf"), ("plain", "gradient.through")]
)
def test_node_rankings_against_the_reference(reference, measured, method, key):
    nodes = [reference.data[f"image0.{key}.nodes.{i}"][:-1] for i in range(3)]
    assert_follows(
        reference,
        measured,
        method,
        lambda count: [naive_walk(layer, [], count)[0] for layer in nodes],
    )


def test_node_insertion_gives_the_logits_of_the_reference(reference, measured):
    for count in (1, 3, 8):
        logits = reference.data[f"image0.kept{count}.logits"]
        step = COUNTS.index(count)
        for metric, value in metrics_of(logits, reference.classes[0]).items():
            found = measured.values("insertion", "node", metric)[0, step]
            assert found == pytest.approx(float(value), rel=1e-9)


def test_activation_ranks_by_the_sum_over_tokens(reference, measured):
    features = trace(reference.vision, reference.saes, reference.images[0]).features
    sums = [z.sum(0) for z in features]
    assert_follows(
        reference,
        measured,
        "activation",
        lambda count: [naive_walk(layer, [], count)[0] for layer in sums],
    )


@pytest.mark.parametrize("errors", ["free", "baseline"])
def test_error_nodes(reference, errors):
    sums = [z.sum(0) for z in trace(reference.vision, reference.saes, reference.images[0]).features]
    made = faithfulness(
        *reference.arguments,
        reference.images[:1],
        methods=["activation"],
        target=reference.classes[0],
        errors=errors,
        q=Q,
        progress=False,
    )
    assert_follows(
        reference,
        made,
        "activation",
        lambda count: [naive_walk(layer, [], count)[0] for layer in sums],
        errors,
    )


@pytest.mark.parametrize("errors", list(permutations(("clean", "free", "baseline"))))
def test_error_nodes_may_differ_by_layer(reference, errors):
    vision, saes, baselines = reference.arguments
    image = reference.images[0]
    kept = [set(range(layer, sae.n_features, 3)) for layer, sae in enumerate(saes)]
    masks = [
        torch.tensor([f in k for f in range(s.n_features)]) for k, s in zip(kept, saes, strict=True)
    ]
    clean = trace(vision, saes, image).errors
    found = run_with(vision, saes, image[None], masks, baselines, errors=errors, clean_errors=clean)
    torch.testing.assert_close(found[0], reference.replaced(image, kept, errors))


def test_error_nodes_that_are_not_given(reference):
    vision, saes, baselines = reference.arguments
    masks = [torch.ones(sae.n_features, dtype=torch.bool) for sae in saes]
    run = partial(run_with, vision, saes, reference.images[0][None], masks, baselines)
    with pytest.raises(FeatureError, match="needs the error nodes of the original image"):
        run(errors=("free", "clean", "free"))
    with pytest.raises(FeatureError, match="all 3 layers, not 2"):
        run(errors=("free", "free"))


def test_end_points_are_the_model_and_the_baseline(reference, measured):
    logits = reference.data["logits"][0]
    for metric, value in metrics_of(logits, reference.classes[0]).items():
        assert float(measured.untouched[metric][0]) == pytest.approx(float(value), rel=1e-9)
        for method in METHODS:
            inserted = measured.values("insertion", method, metric)[0]
            deleted = measured.values("deletion", method, metric)[0]
            assert inserted[-1] == deleted[0] == pytest.approx(float(value), rel=1e-9)
            assert inserted[0] == deleted[-1]


def test_kept_sets_grow_with_the_count_and_random_ones_depend_on_seed_and_image(reference):
    def kept(method, count, seed=0, index=0):
        case = Case(
            *reference.arguments,
            trace(reference.vision, reference.saes, reference.images[0]),
            curves_module.resolve_target(None, reference.data["logits"][0]),
            seed=seed,
            index=index,
        )
        return [k.tolist() for k in METHODS[method](case)(count)]

    for method in ("node", "plain", "activation", "random"):
        few, many = kept(method, 3), kept(method, 30)
        assert [len(k) for k in many] == [20, 30, 30]
        assert [k[:3] for k in many] == few
    assert kept("random", 3) == kept("random", 3)
    assert kept("random", 3) != kept("random", 3, seed=1)
    assert kept("random", 3) != kept("random", 3, index=1)


def test_batches_and_repeats_do_not_change_the_result(reference):
    options = {"methods": ["rrm", "random"], "q": Q, "progress": False}
    images = reference.images[:2]
    one = faithfulness(*reference.arguments, images, batch_size=1, **options)
    many = faithfulness(*reference.arguments, images, batch_size=64, **options)
    for metric in METRICS:
        torch.testing.assert_close(one.insertion[metric], many.insertion[metric])
        torch.testing.assert_close(one.deletion[metric], many.deletion[metric])


def test_misclassified_images_are_left_out(reference):
    predicted = reference.data["logits"][:4].argmax(1)
    labels = predicted.clone()
    labels[1] = (labels[1] + 1) % 7
    options = {"methods": ["activation"], "q": (0, 0.1, 1), "progress": False}
    made = faithfulness(*reference.arguments, reference.images[:4], labels=labels, **options)
    assert made.images == (0, 2, 3)
    assert made.n_given == 4
    assert "3 images (1 misclassified and left out)" in str(made)
    everything = faithfulness(*reference.arguments, reference.images[:4], **options)
    kept = everything.insertion["target"][:, [0, 2, 3]]
    torch.testing.assert_close(made.insertion["target"], kept)
    wrong = (predicted + 1) % 7
    with pytest.raises(VitlensError, match="None of the 4 images"):
        faithfulness(*reference.arguments, reference.images[:4], labels=wrong, **options)


def test_targets_may_be_names_and_functions(reference, tmp_path):
    names = list("abcdefg")
    options = {"methods": ["activation"], "q": (0, 0.1, 1), "progress": False}
    images = reference.images[:1]
    by_index = faithfulness(
        *reference.arguments, images, target=np.int64(3), out=tmp_path / "curves", **options
    )
    by_name = faithfulness(*reference.arguments, images, target="d", class_names=names, **options)
    torch.testing.assert_close(by_index.insertion["target"], by_name.insertion["target"])
    assert (by_index.target, by_name.target) == ("class 3", "d")

    def margin(logits):
        return logits[3] - logits[0]

    by_function = faithfulness(*reference.arguments, images, target=margin, **options)
    logits = reference.data["logits"][0]
    assert by_function.target == "margin"
    assert float(by_function.untouched["target"][0]) == pytest.approx(float(logits[3] - logits[0]))
    assert float(by_function.untouched["logit"][0]) == pytest.approx(float(logits.max()))
    with pytest.raises(TargetError):
        faithfulness(*reference.arguments, images, target="z", class_names=names, **options)


def test_a_method_of_ones_own(reference, measured):
    def loudest(case):
        return ranked([z.sum(0) for z in case.trace.features])

    made = faithfulness(
        *reference.arguments,
        reference.images[:1],
        methods=[loudest],
        target=reference.classes[0],
        q=Q,
        progress=False,
    )
    assert made.methods == ("loudest",)
    expected = measured.insertion["target"][measured.methods.index("activation")]
    torch.testing.assert_close(made.insertion["target"][0], expected)


def test_interrupted_runs_go_on_where_they_stopped(reference, tmp_path, monkeypatch):
    out = tmp_path / "curves.safetensors"
    predicted = reference.data["logits"][:4].argmax(1)
    labels = [int(predicted[0]), -1, int(predicted[2]), int(predicted[3])]
    arguments = (*reference.arguments, reference.images[:4])
    options = {"methods": ["rrm", "random"], "labels": labels, "q": Q, "progress": False}
    whole = faithfulness(*arguments, **options)

    measure, measured_images = curves_module._Plan.measure, []

    def interrupted(plan, case, watch):
        measured_images.append(case.index)
        if measured_images == [0, 2]:
            raise KeyboardInterrupt
        return measure(plan, case, watch)

    monkeypatch.setattr(curves_module._Plan, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        faithfulness(*arguments, out=out, **options)
    assert [p.name for p in tmp_path.iterdir()] == [partial_path(out).name]
    with pytest.raises(CheckpointError, match="other images, weights or settings"):
        faithfulness(*arguments, out=out, **(options | {"seed": 1}))

    resumed = faithfulness(*arguments, out=out, **options)
    assert measured_images == [0, 2, 2, 3]
    assert resumed.images == whole.images == (0, 2, 3)
    for metric in METRICS:
        assert torch.equal(resumed.insertion[metric], whole.insertion[metric])
        assert torch.equal(resumed.deletion[metric], whole.deletion[metric])
    assert [p.name for p in tmp_path.iterdir()] == [out.name]

    again = faithfulness(*arguments, out=out, **options)
    assert again == resumed == Curves.load(out)
    assert measured_images == [0, 2, 2, 3]
    with pytest.raises(CheckpointError, match="other images, weights or settings"):
        faithfulness(*reference.arguments, reference.images[4:8], out=out, **options)


def test_an_image_left_out_first_is_not_counted_when_going_on(tmp_path, monkeypatch):
    lens, images = tiny_lens(), [tiny_image(i) for i in range(3)]
    labels = [int(lens.trace(image).logits.argmax()) for image in images]
    labels[0] = (labels[0] + 1) % 5
    options = {"methods": ["random"], "labels": labels, "q": (0, 0.05, 1), "progress": False}
    whole = lens.faithfulness(images, **options)
    assert (whole.images, whole.counts) == ((1, 2), (0, 2, 30))  # 1.5 features are 2
    measure = curves_module._Plan.measure

    def interrupted(plan, case, watch):
        if case.index == 2:
            raise KeyboardInterrupt
        return measure(plan, case, watch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(curves_module._Plan, "measure", interrupted)
        lens.faithfulness(images, out=tmp_path / "curves", **options)
    resumed = lens.faithfulness(images, out=tmp_path / "curves", **options)
    assert resumed.images == whole.images
    assert torch.equal(resumed.insertion["target"], whole.insertion["target"])


def test_progress_is_told_before_every_step(reference):
    told = []
    faithfulness(
        *reference.arguments,
        reference.images[:2],
        methods=["rrm", "cla", "random"],
        q=Q,
        batch_size=8,
        progress=lambda done, what: told.append((done, what)),
    )
    shares = [done for done, _ in told]
    assert shares[0] == 0
    assert shares[-1] == 1
    assert shares == sorted(shares)
    # 26 replaced runs an image: the model and the empty model, 3 methods x 4 counts both ways.
    layers = [f"{name}, layer {layer}" for name in ("rrm", "cla") for layer in (0, 1)]
    one = ["image", "rrm", *layers[:2], "cla", *layers[2:], "random", *["replaced runs"] * 4]
    assert [what for _, what in told] == [*one, *one, "curves"]
    assert shares[len(one)] == 0.5


@pytest.mark.parametrize("step", ["image", "rrm, layer 1", "cla, layer 0", "replaced runs"])
def test_progress_can_cancel_within_a_method(reference, tmp_path, step):
    out = tmp_path / "curves.safetensors"
    told = []

    def cancel(done, what):
        told.append(what)
        if done >= 0.5 and what == step:
            raise InterruptedError

    options = {"methods": ["rrm", "cla"], "q": Q, "out": out}
    arguments = (*reference.arguments, reference.images[:2])
    with pytest.raises(InterruptedError):
        faithfulness(*arguments, **options, progress=cancel)
    assert told[-1] == step  # nothing more was begun
    assert [p.name for p in tmp_path.iterdir()] == [partial_path(out).name]
    resumed = faithfulness(*arguments, **options, progress=False)
    out.unlink()
    assert resumed == faithfulness(*arguments, **options, progress=False)


def test_what_is_not_valid_is_refused(reference):
    arguments = (*reference.arguments, reference.images[:2])
    for options, message in (
        ({"methods": ["rmr"]}, "Did you mean 'rrm'"),
        ({"methods": ["rrm", "rrm"]}, "Two methods"),
        ({"methods": []}, "at least one method"),
        ({"q": (0.1, 1)}, "start with 0"),
        ({"q": (0, 0.5, 0.2, 1)}, "ascending"),
        ({"errors": "dirty"}, "errors must be"),
        ({"batch_size": 0}, "batch size"),
        ({"labels": [1]}, "as many labels"),
    ):
        with pytest.raises(FeatureError, match=message):
            faithfulness(*arguments, progress=False, **options)
    with pytest.raises(FeatureError, match="no images"):
        faithfulness(*reference.arguments, [], progress=False)


def test_estimate_counts_the_runs(reference):
    cost = estimate(*reference.arguments, reference.images[0], 200, methods=("rrm", "cla"), q=Q)
    assert cost.runs == 200 * (2 + 2 * 2 * 4)
    assert cost.seconds > 0
    assert cost.memory > 0
    assert "3600 replaced runs" in str(cost)


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
        errors="clean",
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
    assert "too little" in str(flat)


def test_one_image_has_no_interval():
    single = made_up([[[0.0, 1, 1, 2]]], [[[2.0, 1, 1, 0]]], ("rrm",))
    found = single.area("insertion", "rrm")
    assert found.value == pytest.approx(0.02 * 0.25 + 0.48 * 0.5 + 0.5 * 0.75)
    assert np.isnan(found.low)
    assert str(found) == f"{found.value:.3f}"


def test_table():
    lines = STEPS.table().splitlines()
    assert lines[0] == "| method | insertion ↑ | deletion ↓ | kept with 2 % | insertion / CLA's |"
    assert lines[2].startswith("| rrm | 0.990 [0.990, 0.990] | 0.010 [0.010, 0.010] | 1.000")
    assert lines[2].endswith("| 3.960 [3.960, 3.960] |")
    assert lines[3].endswith("| 0.000 [0.000, 0.000] | 1 |")
    assert "error nodes: clean" in str(STEPS)


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
    write_tensors(path, {}, {"format": "vitlens.curves", "version": 1, "methods": []})
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
    with pytest.raises(FeatureError, match="no metric"):
        STEPS.mean("insertion", "rrm", "loss")
    for ask in (STEPS.ratio, partial(STEPS.area, "insertion")):
        with pytest.raises(
            FeatureError, match="axis must be one of linear, log, not 'logarithmic'"
        ):
            ask("rrm", axis="logarithmic")
    with pytest.raises(FeatureError, match="axis must be one of"):
        STEPS.table(axis=None)


def test_curves_of_another_target_or_head_are_not_given_back(tmp_path):
    lens, images = tiny_lens(), [tiny_image(0), tiny_image(1)]

    def run(lens, out, target=None):
        options = {"methods": ["node"], "q": (0, 0.1, 1), "progress": False}
        return lens.faithfulness(images, target=target, out=tmp_path / out, **options)

    first = run(lens, "target", lambda y: y[0] - y[1])
    assert run(lens, "target", lambda y: y[0] - y[1]) == first
    with pytest.raises(CheckpointError, match="other images, weights or settings"):
        run(lens, "target", lambda y: y[2] - y[3])
    heads = (lambda y: y, lambda y: 3 * y.flip(-1))
    one, other = (
        vitlens.Lens(lens.vision.module, lens.saes, transform=lens.transform, head=head)
        for head in heads
    )
    run(one, "head")
    with pytest.raises(CheckpointError, match="other images, weights or settings"):
        run(other, "head")


def test_curves_of_another_class_by_the_same_name_are_not_given_back(tmp_path):
    lens = tiny_lens()

    def run(class_names):
        return faithfulness(
            lens.vision,
            lens.saes,
            lens.baselines,
            [tiny_image()],
            methods=["node"],
            target="cat",
            class_names=class_names,
            q=(0, 0.1, 1),
            out=tmp_path / "curves",
            progress=False,
        )

    first = run(["cat", "dog", "cow", "owl", "eel"])
    assert run(["cat", "dog", "cow", "owl", "elk"]) == first
    with pytest.raises(CheckpointError, match="other images, weights or settings"):
        run(["dog", "cat", "cow", "owl", "eel"])


def test_curves_of_any_other_run_are_not_given_back(tmp_path):
    lens, images = tiny_lens(), [tiny_image(0), tiny_image(1)]

    def of(vision=lens.vision, k=4, encoder=1.0, z=0.0, e=0.0):
        saes = [
            TopKSAE.from_weights(W_enc=encoder * s.W_enc, W_dec=s.W_dec, b_dec=s.b_dec, k=k)
            for s in lens.saes
        ]
        last = [lens.baselines.features[2] + z], [lens.baselines.errors[2] + e]
        baselines = Baselines(
            [*lens.baselines.features[:2], *last[0]], [*lens.baselines.errors[:2], *last[1]]
        )
        return vitlens.Lens(vision, saes, baselines=baselines, transform=lens.transform)

    def run(lens, images=images, **changes):
        options = {"methods": ["activation"], "q": (0, 0.5, 1), "progress": False}
        return lens.faithfulness(images, out=tmp_path / "curves", **(options | changes))

    first = run(of())
    assert run(of()) == first
    head = torch.nn.Linear(5, 5)
    model = tiny_lens().vision.module
    model.blocks[2].mlp.fc2.bias.data[0] += 1
    others = [of(k=3), of(encoder=2.0), of(z=0.1), of(e=0.1), of(VisionModel(model))]
    others.append(of(VisionModel(lens.vision.module, head=head.eval())))
    changes = [
        {"methods": ["random"]},
        {"q": (0, 0.4, 1)},
        {"labels": [0, 1]},
        {"target": 1},
        {"errors": "free"},
        {"engine": "jvp"},
        {"seed": 1},
        {"images": [images[0], tiny_image(2)]},
        {"images": images[:1]},
    ]
    for other, change in [*((x, {}) for x in others), *((of(), x) for x in changes)]:
        with pytest.raises(CheckpointError, match="other images, weights or settings"):
            run(other, **change)
