"""Parts of the atlas, each against a slow or hand-made reference."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models import VisionTransformer
from torch import Tensor, nn

import vitlens
from tests.method.test_logit_lens import SIZES
from tests.tiny import tiny_lens
from vitlens.atlas.describe import class_proposals
from vitlens.atlas.layout import layout
from vitlens.atlas.logits import Readout, effects, readout_directions
from vitlens.atlas.neighbours import lineage, neighbours
from vitlens.atlas.packing import Packed, unpack, unpack_bytes
from vitlens.atlas.pictures import (
    PictureFile,
    PicturesInMemory,
    decode,
    encode,
    write_pictures,
)
from vitlens.atlas.proposals import Proposal, cut_out, from_class, from_words, open_clip_tower
from vitlens.atlas.quality import monosemanticity, random_similarity, trust
from vitlens.atlas.shown import quantile, spread
from vitlens.errors import CheckpointError, FeatureError, ImageError, ModelError
from vitlens.models.heads import ClsMeanViT
from vitlens.method.libragrad import libragrad
from vitlens.progress import waiting

HEADS: dict[str, Callable[[], nn.Module]] = {
    "cls": lambda: VisionTransformer(**SIZES),
    "average": lambda: VisionTransformer(**SIZES, global_pool="avg", class_token=False),
    "cls_average": lambda: VisionTransformer(**SIZES, global_pool="avg"),
    "cls_mean": lambda: ClsMeanViT(**SIZES),
    "registers": lambda: VisionTransformer(**SIZES, reg_tokens=2),
}


@pytest.mark.parametrize("readout", ["both", "prefix", "patch"])
@pytest.mark.parametrize("head", HEADS)
def test_the_logit_lens_is_the_slope_of_the_read_out(head: str, readout: Readout) -> None:
    torch.manual_seed(1)
    model = HEADS[head]().eval().double()
    for name, weight in model.named_parameters():
        if "norm" in name:  # a fresh norm has weight 1 and bias 0, which would hide mistakes
            weight.data += 0.3 * torch.randn_like(weight)
    vision = vitlens.VisionModel(model)
    T, n = vision.n_tokens, vision.n_prefix
    stream = torch.randn(T, 24, dtype=torch.float64)
    stds = [0.5 + torch.rand(T, dtype=torch.float64) for _ in range(2)]
    rows = F.normalize(torch.randn(2, 7, 24, dtype=torch.float64), dim=-1)
    saes = [
        vitlens.TopKSAE.from_weights(
            W_enc=row.T, W_dec=row, b_dec=torch.zeros(24, dtype=torch.float64), k=2
        )
        for row in rows
    ]
    directions = readout_directions(vision, stream, stds, readout=readout)
    tokens = {"both": range(T), "prefix": range(n), "patch": range(n, T)}[readout]
    for layer, feature in itertools.product(range(2), range(7)):
        added = torch.zeros(T, 24, dtype=torch.float64)
        for token in tokens:
            added[token] = stds[layer][token] * rows[layer, feature]
        # With the norm's scale fixed, the read-out is linear: a whole step is its slope.
        slope = frozen(vision, stream, stream + added) - frozen(vision, stream, stream)
        found = effects(saes, directions, layer)[feature]
        torch.testing.assert_close(found, slope - slope.mean(), atol=1e-10, rtol=1e-9)


def frozen(vision: vitlens.VisionModel, at: Tensor, stream: Tensor) -> Tensor:
    """The read-out of `stream` with the last norm's scale taken at `at`."""
    norm = vision.module.norm
    if isinstance(norm, nn.Identity):  # a norm after the mean over patches
        norm, mean = vision.module.fc_norm, lambda x: x[vision.n_prefix :].mean(0, keepdim=True)
        normed = scaled(norm, mean(at), mean(stream))
        return vision.module.head(normed[0])
    normed = scaled(norm, at, stream)
    return vision.module.head(vision.module.fc_norm(vision.module.pool(normed[None])))[0]


def scaled(norm: nn.LayerNorm, at: Tensor, stream: Tensor) -> Tensor:
    scale = (at.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    return (stream - stream.mean(-1, keepdim=True)) / scale * norm.weight + norm.bias


def test_the_logit_lens_agrees_with_reverse_mode() -> None:
    lens = tiny_lens(dtype=torch.float64)
    stream = torch.randn(10, 24, dtype=torch.float64)
    std = torch.rand(10, dtype=torch.float64)
    directions = readout_directions(lens.vision, stream, [std])
    with libragrad(lens.vision.module):
        jacobian = torch.autograd.functional.jacobian(
            lambda x: lens.vision.readout(x[None])[0], stream
        )
    expected = torch.einsum("ctd,t->cd", jacobian, std)
    torch.testing.assert_close(directions[0], expected - expected.mean(0))
    with pytest.raises(ModelError, match="readout must be"):
        readout_directions(lens.vision, stream, [std], readout="cls")  # type: ignore[arg-type]


def test_neighbours_are_the_highest_cosines() -> None:
    lens = tiny_lens()
    rows = [sae.W_dec for sae in lens.saes]
    found = neighbours(lens.saes, 1, 4, n=3)
    for place, other in (("before", 0), ("same", 1), ("after", 2)):
        cosines = {
            (other, f): float(F.cosine_similarity(rows[1][4], row, dim=0))
            for f, row in enumerate(rows[other])
            if (other, f) != (1, 4)
        }
        best = sorted(cosines, key=lambda node: -cosines[node])[:3]
        assert [node for node, _ in found[place]] == best
        assert [c for _, c in found[place]] == pytest.approx([cosines[node] for node in best])
    assert neighbours(lens.saes, 0, 0)["before"] == ()
    assert neighbours(lens.saes, 2, 0)["after"] == ()
    assert len(neighbours(lens.saes, 1, 0, n=99)["same"]) == 29
    with pytest.raises(FeatureError, match="n must be"):
        neighbours(lens.saes, 0, 0, n=0)
    for node in ((3, 0), (0, 30), (0, -1), (-1, 0)):
        with pytest.raises(FeatureError):
            neighbours(lens.saes, *node)


def test_a_lineage_follows_copies_through_depth() -> None:
    lens = tiny_lens(depth=5)
    line = [3, 8, 2, 9]
    for layer, feature in enumerate(line[1:], 1):
        lens.saes[layer].W_dec.data[feature] = lens.saes[0].W_dec[3]
    found = lineage(lens.saes, 2, 2)
    assert [node for node, _ in found] == list(enumerate(line))
    assert [cosine for _, cosine in found] == pytest.approx([1, 1, 1, 1])


def test_the_map_keeps_what_is_alike_together_and_is_the_same_again() -> None:
    lens = tiny_lens(features=40)
    for layer, sae in enumerate(lens.saes):  # two bundles of directions, in each layer
        torch.manual_seed(layer)
        centre = torch.zeros(40, 24)
        centre[:20, 0], centre[20:, 1] = 1, 1
        sae.W_dec.data = F.normalize(centre + 0.1 * torch.randn(40, 24), dim=1)
    places = layout(lens.saes, perplexity=10)
    assert places.shape == (120, 2)
    assert float(places.abs().max()) == pytest.approx(1)
    one = (torch.arange(120) % 40) < 20
    centres = torch.stack([places[one].mean(0), places[~one].mean(0)])
    nearer = torch.cdist(places, centres).argmin(1) == 0
    assert torch.equal(nearer, one)
    assert torch.equal(layout(lens.saes, perplexity=10), places)
    assert layout([tiny_lens(features=4).saes[0]]).shape == (4, 2)


def test_the_map_says_that_it_is_being_made(capsys: pytest.CaptureFixture[str]) -> None:
    saes = tiny_lens(features=8).saes
    told: list[tuple[float, str]] = []
    silent = layout(saes, progress=False)
    assert capsys.readouterr().err == ""
    assert torch.equal(layout(saes, progress=lambda *now: told.append(now)), silent)
    assert [done for done, _ in told] == [0.0, 1.0]
    assert "map of 24 features" in told[0][1]
    assert torch.equal(layout(saes, progress=True), silent)
    assert "map of 24 features" in capsys.readouterr().err


def test_the_clock_goes_on_and_stops_with_what_it_waits_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), waiting("a long step", True):
        time.sleep(2.5)
        raise KeyboardInterrupt
    assert threading.active_count() == before
    assert re.search(
        r"a long step 00:00.*a long step 00:0[1-9]", capsys.readouterr().err, re.DOTALL
    )


def test_monosemanticity_is_the_mean_over_pairs() -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(9, 5) + 1
    pairs = [
        float(F.cosine_similarity(embeddings[i], embeddings[j], dim=0))
        for i, j in itertools.combinations(range(9), 2)
    ]
    chance = random_similarity(embeddings)
    assert chance == pytest.approx(sum(pairs) / len(pairs))
    rows = torch.tensor([[0, 3, 7, -1], [2, -1, -1, -1], [-1, -1, -1, -1], [4, 4, 4, 4]])
    found = monosemanticity(embeddings, rows, chance)
    three = [(0, 3), (0, 7), (3, 7)]
    own = sum(float(F.cosine_similarity(embeddings[i], embeddings[j], dim=0)) for i, j in three)
    assert float(found[0]) == pytest.approx(own / 3 - chance, abs=1e-6)
    assert found[1:3].isnan().all()
    assert float(found[3]) == pytest.approx(1 - chance, abs=1e-6)
    assert random_similarity(embeddings[:1]) != random_similarity(embeddings[:1])  # NaN


def test_trust_is_the_product_of_its_parts() -> None:
    found = trust(
        monosemanticity=torch.tensor([0.3, 0.6, -0.1, float("nan"), 0.6]),
        random_similarity=0.4,
        n_images=torch.tensor([4, 16, 100, 1, 0]),
        frequency=torch.tensor([0.01, 0.5, 0.2, 0.001, 0.0]),
        n_top=8,
        health=0.8,
    )
    assert (found[0].coherence, found[0].images, found[0].rarity) == pytest.approx((0.5, 0.5, 0.99))
    assert found[0].value == pytest.approx(0.5 * 0.5 * 0.99 * 0.8)
    assert found[1].value == pytest.approx(1 * 1 * 0.5 * 0.8)
    assert [one.value for one in found[2:]] == [0, 0, 0]  # at odds, nearly dead, dead
    unknown = trust(
        monosemanticity=torch.tensor([0.3]),
        random_similarity=0.4,
        n_images=torch.tensor([8]),
        frequency=torch.tensor([0.0]),
        n_top=8,
    )[0]
    assert unknown.health is None
    assert unknown.value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("coin", "bird", "cat", "information", "chance", "proposed"),
    [
        (1.0, 2.0, 0.5, 0.6, 0.5, True),
        (1.1, 2.0, 0.5, 0.6, 0.5, False),  # does not stand out
        (0.0, 2.0, 0.0, 0.5, 0.5, False),  # as chance would have it
        (0.0, 2.0, 0.0, float("nan"), 0.5, False),
        (0.0, 2.0, 0.0, 0.6, float("nan"), False),
        (0.0, 0.0, 0.0, 0.6, 0.5, False),
        (None, 2.0, 0.5, 0.6, 0.5, True),
        (None, 2.0, None, 0.6, 0.5, False),  # one class is no choice
    ],
)
def test_a_class_is_proposed_that_stands_out_and_is_above_chance(
    coin: float | None,
    bird: float,
    cat: float | None,
    information: float,
    chance: float,
    proposed: bool,
) -> None:
    means = torch.tensor([mean or 0.0 for mean in (coin, bird, cat)])
    found = from_class(
        ("coin", "bird", "cat"),
        means,
        [mean is not None for mean in (coin, bird, cat)],
        information=information,
        chance=chance,
    )
    assert found == ((Proposal("bird", 0.6, "class"),) if proposed else ())


def test_proposals_of_many_classes_are_those_of_a_sorted_list_and_quick() -> None:
    C, n = 1000, 400
    generator = torch.Generator().manual_seed(0)
    header = SimpleNamespace(
        class_names=tuple(f"class {number}" for number in range(C)),
        per_class=tuple(torch.randint(3, (C,), generator=generator).tolist()),
    )
    table = SimpleNamespace(
        class_mean=torch.rand(C, n, generator=generator) ** 300,
        class_share=torch.rand(C, n, generator=generator),
        chance={"class_information": 0.9},
        scores={"class_information": torch.rand(n, generator=generator)},
    )
    start = time.process_time()
    found = [class_proposals(header, table, feature) for feature in range(n)]
    assert time.process_time() - start < 1  # a list of all classes for each feature takes 5 s
    expected = []
    for feature, information in enumerate(table.scores["class_information"].tolist()):
        named = zip(table.class_mean[:, feature].tolist(), header.class_names, strict=True)
        there = [one for one, images in zip(named, header.per_class, strict=True) if images]
        (best, name), (second, _) = sorted(there, reverse=True)[:2]
        good = information > 0.9 and best >= 2 * second
        expected.append((Proposal(name, information, "class"),) if good else ())
    assert found == expected
    assert 5 < sum(map(bool, found)) < sum(table.scores["class_information"] > 0.9)


COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "grey": (99,) * 3}


def encode_text(words: list[str]) -> Tensor:
    return torch.tensor([COLOURS[word] for word in words]).float() - 90


def encode_images(images: list[Image.Image]) -> Tensor:
    return torch.tensor([image.resize((1, 1)).getpixel((0, 0)) for image in images]).float() - 90


def test_words_near_the_pictures_are_proposed() -> None:
    pictures = [Image.new("RGB", (8, 8), COLOURS[c]) for c in ("red", "red", "blue", "green")]
    rows = torch.tensor([[0, 1, -1], [2, -1, -1], [-1, -1, -1], [2, 3, -1]])
    found = from_words(list(COLOURS), pictures, rows, (encode_text, encode_images), n=2)
    assert [one[0].text for one in found if one] == ["red", "blue", "green"]
    assert found[2] == ()
    words, seen = (
        F.normalize(x, dim=1) for x in (encode_text(list(COLOURS)), encode_images(pictures))
    )
    similar = torch.stack([seen[[0, 1]].mean(0), seen[2], seen[[2, 3]].mean(0)]) @ words.T
    red = similar - similar.mean(0)
    assert found[0][0].score == pytest.approx(float(red[0, 0]), abs=1e-6)
    assert all(p.source == "text" for one in found for p in one)
    with pytest.raises(ModelError, match="no words"):
        from_words([" "], pictures, rows, (encode_text, encode_images))
    with pytest.raises(ModelError, match="both must be"):
        from_words(["red"], pictures, rows, (lambda w: torch.ones(1, 7), encode_images))


def test_what_is_cut_out_holds_the_patch() -> None:
    picture = Image.new("RGB", (80, 60))
    for token, grid in itertools.product(range(1, 49), [(6, 8)]):
        row, col = divmod(token - 1, 8)
        marked = picture.copy()
        marked.paste((255, 255, 255), (col * 10, row * 10, col * 10 + 10, row * 10 + 10))
        part = cut_out(marked, token, grid=grid, n_prefix=1, patches=3)
        assert part.size == (30, 30)
        assert int((np.asarray(part) == 255).all(-1).sum()) == 100
    assert cut_out(picture, 0, grid=(6, 8), n_prefix=1) is picture
    assert cut_out(picture, 9, grid=(6, 8), n_prefix=1, patches=99).size == (60, 60)


def test_open_clip_is_only_needed_when_it_is_asked_for() -> None:
    try:
        import open_clip  # noqa: F401
    except ImportError:
        with pytest.raises(ModelError, match="open_clip"):
            open_clip_tower("ViT-B-32", "nowhere")


def test_packing_loses_what_it_says_and_no_more() -> None:
    torch.manual_seed(0)
    packed = Packed()
    whole = {
        "small": torch.randint(0, 255, (5, 7)),
        "signed": torch.randint(-300, 300, (4,)),
        "large": torch.randint(-(2**60), 2**60, (3, 2)),
        "none": torch.zeros(0, 3, dtype=torch.int64),
    }
    for name, tensor in whole.items():
        packed.exact(name, tensor)
    numbers = torch.randn(6, 50)
    packed.exact("numbers", numbers)
    packed.half("half", numbers * 1e6)
    packed.levels("levels", numbers.abs(), 15)
    packed.levels("signed levels", numbers, 127)
    least = torch.linspace(0, 1, 6)
    packed.levels("coarse", numbers, 127, step=least)
    packed.levels("silent", torch.zeros(2, 3), 15)
    packed.exact("bytes", torch.arange(256).byte())
    for name, tensor in whole.items():
        assert torch.equal(unpack(packed.tensors, packed.how, name), tensor)
    get = lambda name: unpack(packed.tensors, packed.how, name)  # noqa: E731
    assert torch.equal(get("numbers"), numbers)
    torch.testing.assert_close(get("half"), (numbers * 1e6).clamp(-65504, 65504), rtol=5e-4, atol=0)
    step = numbers.abs().amax(1, keepdim=True) / 15
    assert ((get("levels") - numbers.abs()).abs() <= step * 0.504).all()
    step = numbers.abs().amax(1, keepdim=True) / 127
    assert ((get("signed levels") - numbers).abs() <= step * 0.504).all()
    step = torch.maximum(step, least[:, None])
    assert ((get("coarse") - numbers).abs() <= step * 0.504).all()
    assert torch.equal(get("silent"), torch.zeros(2, 3))
    assert unpack_bytes(packed.tensors, packed.how, "bytes").dtype == torch.uint8
    with pytest.raises(CheckpointError, match="'other' is missing"):
        get("other")
    packed.how["numbers"]["shape"] = [6, 51]
    with pytest.raises(CheckpointError, match="'numbers' is damaged"):
        get("numbers")


def test_pictures_come_back(tmp_path) -> None:
    stored = [encode(Image.new("RGB", (9, 5), (i, 0, 0))) if i != 1 else None for i in range(4)]
    file = tmp_path / "pictures.safetensors"
    for given in (stored, [None, None], []):
        write_pictures(file, PicturesInMemory(given))
        read = PictureFile(file, len(given))
        assert [read.get(row) for row in range(len(given))] == given
    write_pictures(file, PicturesInMemory(stored))
    assert decode(PictureFile(file, 4).get(3) or b"").size == (9, 5)
    with pytest.raises(CheckpointError, match="does not hold the 5 pictures"):
        PictureFile(file, 5).get(0)
    with pytest.raises(CheckpointError, match="There is no file"):
        PictureFile(tmp_path / "none", 4).get(0)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="damaged"):
        PictureFile(file, 4).get(0)
    with pytest.raises(ImageError, match="damaged"):
        decode(b"RIFF")


def test_quantiles_of_peaks() -> None:
    from vitlens.atlas.bins import bin_edges, bin_index

    torch.manual_seed(0)
    peaks = torch.rand(2000).pow(2) * 10 + 0.02
    counts = bin_index(peaks).bincount(minlength=len(bin_edges()) - 1)
    for peak in (0.05, 0.3, 2.0, 9.0):
        assert quantile(counts, peak) == pytest.approx(
            float((peaks < peak).double().mean()), abs=0.02
        )
    assert quantile(counts, 0.0) == 0
    assert quantile(counts, 1e6) == 1
    assert quantile(torch.zeros_like(counts), 1.0) == 0


def test_spread_takes_quantiles() -> None:
    peaks = torch.tensor([0.0, 5, 1, 3, 2, 4, 0])
    assert [float(peaks[i]) for i in spread(peaks, 2)] == [4, 2]
    assert [float(peaks[i]) for i in spread(peaks, 9)] == [5, 4, 3, 2, 1]
    assert spread(torch.zeros(3), 2) == []
