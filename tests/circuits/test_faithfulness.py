"""Insertion and deletion against a slow program of our own, interrupted runs, what is refused."""

from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import vitlens
from tests.builders import KINDS, lens_with, tiny_image, tiny_lens
from tests.circuits.conftest import ReferenceModel
from vitlens.circuits import faithfulness as faithfulness_module
from vitlens.circuits.curves import METRICS, Curves
from vitlens.circuits.faithfulness import METHODS, Case, estimate, faithfulness
from vitlens.errors import CheckpointError, FeatureError, OptionError, TargetError, VitlensError
from vitlens.io import partial_path
from vitlens.method import engines, rankings
from vitlens.method.importance import resolve_target
from vitlens.method.rankings import ranked
from vitlens.method.replacement import Baselines, KeepFeatures, keep_masks
from vitlens.models.vision import VisionModel
from vitlens.saes.topk import TopKSAE

# Counts 0, 1, 3, 8, 30, 48 of the largest layer's 48 features; the smallest has 20.
COUNTS = (0, 1, 3, 8, 30, 48)


Q = tuple(count / 48 for count in COUNTS)


class Reference:
    """The float64 model of the reference data, and a slow program of our own for it."""

    def __init__(self):
        model = ReferenceModel.load("vit_cls")
        self.replacement, self.data = model.replacement, model.data
        self.top_k, self.classes, self.images = model.top_k, model.classes, model.images
        self.vision, self.saes = self.replacement.vision, self.replacement.saes
        self.baselines = self.replacement.baselines

    def trace(self, index=0):
        return self.replacement.trace(self.images[index][None])[0]

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
            if held == "zero":
                error = torch.zeros_like(error)
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
def reference():
    return Reference()


@pytest.fixture(scope="module")
def measured(reference):
    """All methods on the first image, for the class of the reference data."""
    return faithfulness(
        reference.replacement,
        reference.images[:1],
        methods=tuple(METHODS),
        target=reference.classes[0],
        q=Q,
        batch_size=7,
        progress=False,
    )


def metrics_of(logits, index, untouched):
    return {
        "target": logits[index] - logits.mean(),
        "logit": logits[index],
        "probability": logits.softmax(0)[index],
        "top1": float(logits.argmax() == index),
        "divergence": F.kl_div(logits.log_softmax(0), untouched.softmax(0), reduction="sum"),
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
            for metric, value in metrics_of(logits, index, reference.data["logits"][0]).items():
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
        for metric, value in metrics_of(
            logits, reference.classes[0], reference.data["logits"][0]
        ).items():
            found = measured.values("insertion", "node", metric)[0, step]
            assert found == pytest.approx(float(value), rel=1e-9)


def test_activation_ranks_by_the_sum_over_tokens(reference, measured):
    features = reference.trace().features
    sums = [z.sum(0) for z in features]
    assert_follows(
        reference,
        measured,
        "activation",
        lambda count: [naive_walk(layer, [], count)[0] for layer in sums],
    )


@pytest.mark.parametrize("errors", ["free", "baseline", "zero"])
def test_error_nodes(reference, errors):
    sums = [z.sum(0) for z in reference.trace().features]
    made = faithfulness(
        reference.replacement,
        reference.images[:1],
        methods=["activation"],
        target=reference.classes[0],
        error_nodes=errors,
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
    image, saes = reference.images[0], reference.saes
    kept = [set(range(layer, sae.n_features, 3)) for layer, sae in enumerate(saes)]
    masks = keep_masks(reference.replacement, kept)
    found = reference.replacement.run(image[None], KeepFeatures(masks), error_nodes=errors)
    torch.testing.assert_close(found[0], reference.replaced(image, kept, errors))
    traced = reference.replacement.run(reference.trace(), KeepFeatures(masks), error_nodes=errors)
    torch.testing.assert_close(traced, found)


def test_end_points_are_the_model_and_the_baseline(reference, measured):
    logits = reference.data["logits"][0]
    for metric, value in metrics_of(
        logits, reference.classes[0], reference.data["logits"][0]
    ).items():
        assert float(measured.untouched[metric][0]) == pytest.approx(float(value), rel=1e-9)
        for method in METHODS:
            inserted = measured.values("insertion", method, metric)[0]
            deleted = measured.values("deletion", method, metric)[0]
            assert inserted[-1] == deleted[0] == pytest.approx(float(value), rel=1e-9)
            assert inserted[0] == deleted[-1]


def test_kept_sets_grow_with_the_count_and_random_ones_depend_on_seed_and_image(reference):
    def kept(method, count, seed=0, index=0):
        case = Case(
            reference.replacement,
            reference.trace(),
            resolve_target(None, reference.data["logits"][0]),
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
    one = faithfulness(reference.replacement, images, batch_size=1, **options)
    many = faithfulness(reference.replacement, images, batch_size=64, **options)
    for metric in METRICS:
        torch.testing.assert_close(one.insertion[metric], many.insertion[metric])
        torch.testing.assert_close(one.deletion[metric], many.deletion[metric])


def test_misclassified_images_are_left_out(reference):
    predicted = reference.data["logits"][:4].argmax(1)
    labels = predicted.clone()
    labels[1] = (labels[1] + 1) % 7
    options = {"methods": ["activation"], "q": (0, 0.1, 1), "progress": False}
    made = faithfulness(reference.replacement, reference.images[:4], labels=labels, **options)
    assert made.images == (0, 2, 3)
    assert made.n_given == 4
    assert "3 images (1 misclassified and left out)" in str(made)
    everything = faithfulness(reference.replacement, reference.images[:4], **options)
    kept = everything.insertion["target"][:, [0, 2, 3]]
    torch.testing.assert_close(made.insertion["target"], kept)
    wrong = (predicted + 1) % 7
    with pytest.raises(VitlensError, match="None of the 4 images"):
        faithfulness(reference.replacement, reference.images[:4], labels=wrong, **options)


def test_targets_may_be_names_and_functions(reference, tmp_path):
    names = list("abcdefg")
    options = {"methods": ["activation"], "q": (0, 0.1, 1), "progress": False}
    images = reference.images[:1]
    by_index = faithfulness(
        reference.replacement, images, target=np.int64(3), out=tmp_path / "curves", **options
    )
    by_name = faithfulness(reference.replacement, images, target="d", class_names=names, **options)
    torch.testing.assert_close(by_index.insertion["target"], by_name.insertion["target"])
    assert (by_index.target, by_name.target) == ("class 3", "d")

    def margin(logits):
        return logits[3] - logits[0]

    by_function = faithfulness(reference.replacement, images, target=margin, **options)
    logits = reference.data["logits"][0]
    assert by_function.target == "margin"
    assert float(by_function.untouched["target"][0]) == pytest.approx(float(logits[3] - logits[0]))
    assert float(by_function.untouched["logit"][0]) == pytest.approx(float(logits.max()))
    with pytest.raises(TargetError):
        faithfulness(reference.replacement, images, target="z", class_names=names, **options)


def test_a_method_of_ones_own(reference, measured):
    def loudest(case):
        return ranked([z.sum(0) for z in case.trace.features])

    made = faithfulness(
        reference.replacement,
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
    arguments = (reference.replacement, reference.images[:4])
    options = {"methods": ["rrm", "random"], "labels": labels, "q": Q, "progress": False}
    whole = faithfulness(*arguments, **options)

    measure, measured_images = faithfulness_module._Plan.measure, []

    def interrupted(plan, case, watch):
        measured_images.append(case.index)
        if measured_images == [0, 2]:
            raise KeyboardInterrupt
        return measure(plan, case, watch)

    monkeypatch.setattr(faithfulness_module._Plan, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        faithfulness(*arguments, out=out, **options)
    assert [p.name for p in tmp_path.iterdir()] == [partial_path(out).name]
    with pytest.raises(CheckpointError, match="What differs: "):
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
    with pytest.raises(CheckpointError, match="What differs: "):
        faithfulness(reference.replacement, reference.images[4:8], out=out, **options)


def test_an_image_left_out_first_is_not_counted_when_going_on(tmp_path, monkeypatch):
    lens, images = tiny_lens(), [tiny_image(i) for i in range(3)]
    labels = [int(lens.trace(image).logits.argmax()) for image in images]
    labels[0] = (labels[0] + 1) % 5
    options = {"methods": ["random"], "labels": labels, "q": (0, 0.05, 1), "progress": False}
    whole = lens.faithfulness(images, **options)
    assert (whole.images, whole.counts) == ((1, 2), (0, 2, 30))  # 1.5 features are 2
    measure = faithfulness_module._Plan.measure

    def interrupted(plan, case, watch):
        if case.index == 2:
            raise KeyboardInterrupt
        return measure(plan, case, watch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(faithfulness_module._Plan, "measure", interrupted)
        lens.faithfulness(images, out=tmp_path / "curves", **options)
    resumed = lens.faithfulness(images, out=tmp_path / "curves", **options)
    assert resumed.images == whole.images
    assert torch.equal(resumed.insertion["target"], whole.insertion["target"])


def test_progress_is_reported_before_every_step(reference):
    reported = []
    faithfulness(
        reference.replacement,
        reference.images[:2],
        methods=["rrm", "cla", "random"],
        q=Q,
        batch_size=8,
        progress=lambda done, what: reported.append((done, what)),
    )
    shares = [done for done, _ in reported]
    assert shares[0] == 0
    assert shares[-1] == 1
    assert shares == sorted(shares)
    # 26 replaced runs an image: the model and the empty model, 3 methods x 4 counts both ways.
    layers = [f"{name}, layer {layer}" for name in ("rrm", "cla") for layer in (0, 1)]
    one = ["image", "rrm", *layers[:2], "cla", *layers[2:], "random", *["replaced runs"] * 4]
    assert [what for _, what in reported] == [*one, *one, "curves"]
    assert shares[len(one)] == 0.5


@pytest.mark.parametrize("step", ["image", "rrm, layer 1", "cla, layer 0", "replaced runs"])
def test_progress_can_cancel_within_a_method(reference, tmp_path, step):
    out = tmp_path / "curves.safetensors"
    reported = []

    def cancel(done, what):
        reported.append(what)
        if done >= 0.5 and what == step:
            raise InterruptedError

    options = {"methods": ["rrm", "cla"], "q": Q, "out": out}
    arguments = (reference.replacement, reference.images[:2])
    with pytest.raises(InterruptedError):
        faithfulness(*arguments, **options, progress=cancel)
    assert reported[-1] == step  # nothing more was begun
    assert [p.name for p in tmp_path.iterdir()] == [partial_path(out).name]
    resumed = faithfulness(*arguments, **options, progress=False)
    out.unlink()
    assert resumed == faithfulness(*arguments, **options, progress=False)


def test_what_is_not_valid_is_refused(reference):
    arguments = (reference.replacement, reference.images[:2])
    for options, message in (
        ({"methods": ["rmr"]}, "Did you mean 'rrm'"),
        ({"methods": ["rrm", "rrm"]}, "Two methods"),
        ({"methods": []}, "at least one method"),
        ({"q": (0.1, 1)}, "start with 0"),
        ({"q": (0, 0.5, 0.2, 1)}, "ascending"),
        ({"error_nodes": "dirty"}, "error_nodes must be"),
        ({"engine": "fast", "methods": ["random"]}, "engine must be"),
        ({"batch_size": 0}, "batch size"),
        ({"labels": [1]}, "as many labels"),
    ):
        with pytest.raises((FeatureError, OptionError), match=message):
            faithfulness(*arguments, progress=False, **options)
    with pytest.raises(FeatureError, match="no images"):
        faithfulness(reference.replacement, [], progress=False)


def test_walks_hold_the_edges_of_active_features_only(monkeypatch):
    lens, image, computed = tiny_lens(features=80), tiny_image(), []
    real = engines.compute_edges

    def counted(pair, engine):
        computed.append(len(pair.targets))
        return real(pair, engine)

    monkeypatch.setattr(engines, "compute_edges", counted)
    monkeypatch.setattr(rankings, "compute_edges", counted)
    lens.faithfulness(image, methods=("rrm", "cla"), q=(0, 0.1, 0.5, 1), progress=False)
    active = [int(z.gt(0).any(0).sum()) for z in lens.trace(image).features[1:]]
    assert max(active) < 80 and computed == 2 * active


def test_no_ranking_is_made_where_only_the_ends_are_measured():
    def never(case):
        raise AssertionError

    lens = tiny_lens()
    ends = lens.faithfulness(tiny_image(), methods=[never], q=(0, 1), progress=False)
    whole = lens.faithfulness(tiny_image(), methods="random", q=(0, 0.5, 1), progress=False)
    torch.testing.assert_close(ends.insertion["target"], whole.insertion["target"][..., [0, 2]])


def test_estimate_counts_the_runs(reference):
    cost = estimate(reference.replacement, reference.images[0], 200, methods=("rrm", "cla"), q=Q)
    assert cost.runs == 200 * (2 + 2 * 2 * 4)
    assert cost.seconds > 0
    assert cost.memory > 0
    assert "3600 replaced runs" in str(cost)


def test_curves_of_another_target_or_head_are_not_given_back(tmp_path):
    lens, images = tiny_lens(), [tiny_image(0), tiny_image(1)]

    def run(lens, out, target=None):
        options = {"methods": ["node"], "q": (0, 0.1, 1), "progress": False}
        return lens.faithfulness(images, target=target, out=tmp_path / out, **options)

    first = run(lens, "target", lambda y: y[0] - y[1])
    assert run(lens, "target", lambda y: y[0] - y[1]) == first
    with pytest.raises(CheckpointError, match="What differs: "):
        run(lens, "target", lambda y: y[2] - y[3])
    heads = (lambda y: y, lambda y: 3 * y.flip(-1))
    one, other = (
        vitlens.Lens(lens.vision.module, lens.saes, transform=lens.transform, head=head)
        for head in heads
    )
    run(one, "head")
    with pytest.raises(CheckpointError, match="What differs: "):
        run(other, "head")


def test_curves_of_another_class_by_the_same_name_are_not_given_back(tmp_path):
    lens = tiny_lens()

    def run(class_names):
        return faithfulness(
            lens.replacement,
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
    with pytest.raises(CheckpointError, match="What differs: "):
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
        {"error_nodes": "free"},
        {"engine": "jvp"},
        {"seed": 1},
        {"images": [images[0], tiny_image(2)]},
        {"images": images[:1]},
    ]
    for other, change in [*((x, {}) for x in others), *((of(), x) for x in changes)]:
        with pytest.raises(CheckpointError, match="What differs: "):
            run(other, **change)


@pytest.mark.parametrize("kind", KINDS)
def test_every_sae_kind_at_some_layers(kind):
    lens = lens_with(kind, layers=(1, 3, 4), depth=6, seed=2, dtype=torch.float64)
    images = [tiny_image(seed, torch.float64) for seed in range(2)]
    made = lens.faithfulness(
        images, methods=("rrm", "cla", "activation"), target=1, q=(0, 0.1, 0.4, 1), progress=False
    )
    assert made.counts == (0, 3, 12, 30)
    assert made.settings["baselines"] == "custom"
    assert "baselines: custom" in str(made)
    for number, image in enumerate(images):
        found, sums = lens.importances(image, target=1, engine="vjp"), lens.trace(image).features
        for step, count in ((1, 3), (2, 12)):
            edges = [block[:-1] for block in found.edges]
            kept = {
                "rrm": naive_walk(found.nodes[-1][:-1], edges, count),
                "activation": [naive_walk(z.sum(0), [], count)[0] for z in sums],
            }
            for method, keep in kept.items():
                logits = lens.run_with(image, keep=keep)
                value = made.values("insertion", method, "logit")[number, step]
                assert value == pytest.approx(float(logits[1]), rel=1e-9)
                rest = [[f for f in range(30) if f not in layer] for layer in keep]
                logits = lens.run_with(image, keep=rest)
                value = made.values("deletion", method, "logit")[number, step]
                assert value == pytest.approx(float(logits[1]), rel=1e-9)


def test_a_single_layer_has_curves_without_edges():
    lens = lens_with(layers=(2,), dtype=torch.float64)
    made = lens.faithfulness(
        tiny_image(0, torch.float64), methods=("rrm", "cla", "node"), q=(0, 0.2, 1), progress=False
    )
    by_method = made.insertion["target"]
    torch.testing.assert_close(by_method[0], by_method[2])


def test_a_run_that_is_not_resumed_is_measured_again(tmp_path):
    lens, out = tiny_lens(), tmp_path / "curves"
    options = {"methods": ["node"], "q": (0, 0.1, 1), "out": out, "progress": False}
    lens.faithfulness([tiny_image(0)], **options)
    with pytest.raises(CheckpointError, match="What differs: images"):
        lens.faithfulness([tiny_image(1)], **options)
    again = lens.faithfulness([tiny_image(1)], resume=False, **options)
    assert Curves.load(out) == again
