"""DebiasPanel without a browser: figures, requests, history, the file, and what is refused."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import traitlets as t

from tests.planted import BIRD, DARK_GREEN, GREEN, LAND, WATER, planted_images, planted_lens
from vitlens.debias import DebiasedModel, GroupedImages, debias, find_candidates
from vitlens.debias.model import Removal
from vitlens.debias.report import wilson
from vitlens.debias.runs import LiveReports
from vitlens.errors import CheckpointError, FeatureError, GroupError
from vitlens.lens import Lens
from vitlens.widgets import DebiasPanel
from vitlens.widgets.base import decode_strip, from_bytes

SHORTCUT = ((1, WATER), (1, LAND))
COUNTS = (20, 8, 6, 18)


@pytest.fixture(scope="module")
def lens() -> Lens:
    return planted_lens()


@pytest.fixture(scope="module")
def groups() -> GroupedImages:
    return planted_images(COUNTS)


@pytest.fixture
def panel(lens: Lens, groups: GroupedImages) -> DebiasPanel:
    return DebiasPanel(lens, groups, name="validation images")


def accuracies(lens: Lens, groups: GroupedImages, features: Any) -> list[float]:
    """By group, image by image, with the debiased model."""
    model = DebiasedModel(lens, features)
    right = [
        int(model(lens.tensor(image)[None]).argmax()) == label
        for image, label in zip(groups.images, groups.labels.tolist(), strict=True)
    ]
    hits = torch.tensor(right)
    return [float(hits[groups.groups == g].double().mean()) for g in range(4)]


def shown(report: dict[str, Any]) -> list[float]:
    return [row["accuracy"] for row in report["groups"]]


def test_before_anything_is_ticked(lens: Lens, groups: GroupedImages, panel: DebiasPanel) -> None:
    plain = accuracies(lens, groups, ())
    assert shown(panel.report) == pytest.approx(plain)
    assert min(plain) == 0  # the planted shortcut decides
    report = panel.report
    assert report["chosen"] == []
    assert report["average"]["accuracy"] == pytest.approx(
        sum(a * n for a, n in zip(plain, COUNTS, strict=True)) / sum(COUNTS)
    )
    assert report["worst"]["accuracy"] == min(plain)
    assert report["collateral"] == []
    assert [row["count"] for row in report["groups"]] == list(COUNTS)
    assert all(row["before"]["accuracy"] == row["accuracy"] for row in report["groups"])
    assert panel.debias["group_names"] == list(groups.group_names)
    assert {tuple(card["node"]) for card in panel.debias_cards} >= set(SHORTCUT)


def test_ticks_move_the_figures(lens: Lens, groups: GroupedImages, panel: DebiasPanel) -> None:
    panel.chosen = [list(key) for key in SHORTCUT]
    assert panel.chosen == SHORTCUT
    assert panel.report["chosen"] == [list(key) for key in SHORTCUT]
    assert shown(panel.report) == pytest.approx(accuracies(lens, groups, SHORTCUT))
    assert min(shown(panel.report)) == 1
    changes = [row["change"] for row in panel.report["groups"]]
    before = accuracies(lens, groups, ())
    assert changes == pytest.approx([1 - a for a in before])
    # The true feature: a group that was right is lost, and the panel says which.
    panel.chosen = (*SHORTCUT, (1, BIRD))
    now = accuracies(lens, groups, panel.chosen)
    lost = {n: b - a for n, a, b in zip(groups.group_names, before, now, strict=True) if b < a}
    assert lost
    assert dict(panel.report["collateral"]) == pytest.approx(lost)
    assert panel.report["worst"]["accuracy"] == min(now)
    json.dumps([panel.report, panel.debias_cards, panel.choices], allow_nan=False)


def test_intervals_are_wilsons(panel: DebiasPanel) -> None:
    z = 1.959963984540054
    for right, count in ((0, 8), (3, 10), (9, 9)):
        p = right / count
        centre = (p + z**2 / (2 * count)) / (1 + z**2 / count)
        half = z * np.sqrt(p * (1 - p) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
        assert wilson(right, count) == pytest.approx((centre - half, centre + half), abs=1e-9)
    row = panel.report["groups"][0]
    assert (row["low"], row["high"]) == pytest.approx(wilson(row["right"], row["count"]))


def test_figures_on_the_way_are_of_the_images_so_far(lens: Lens, groups: GroupedImages) -> None:
    live = LiveReports(lens, groups, (0, 1), batch_size=8)
    seen: list[tuple[float, float]] = []
    watched = live.evaluate(
        SHORTCUT, watch=lambda report, done: seen.append((float(report.count.sum()), done))
    )
    n = len(groups)
    assert [count for count, _ in seen] == [4, *range(12, n, 8), n]  # early, then by eights
    assert seen[-1] == (n, 1.0)
    assert [done for _, done in seen] == pytest.approx([count / n for count, _ in seen])
    plain = live.runs.report(SHORTCUT)
    torch.testing.assert_close(watched.right, plain.right)
    assert live.evaluate(reversed(SHORTCUT)) is watched  # remembered, in any order

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        live.evaluate(((1, GREEN),), watch=stop)
    assert live.known(((1, GREEN),)) is None


def test_the_images_so_far_stand_for_all(lens: Lens) -> None:
    groups = planted_images((40, 10, 4, 26))
    live = LiveReports(lens, groups, (1,), batch_size=8)
    seen: list[torch.Tensor] = []
    live.evaluate(SHORTCUT, watch=lambda report, _: seen.append(report.count))
    assert seen[0].tolist() == [1, 1, 1, 1]  # figures of every group at once
    for count in seen[1:]:
        expected = groups.counts * (count.sum() / len(groups))
        assert float((count - expected).abs().max()) <= 2
    assert sorted(live._order.tolist()) == list(range(len(groups)))


def test_history(panel: DebiasPanel) -> None:
    first, both = (SHORTCUT[0],), SHORTCUT
    panel.chosen = first
    panel.chosen = both
    assert [len(entry["chosen"]) for entry in panel.choices] == [0, 1, 2]
    assert panel.choices[2]["worst"] == panel.report["worst"]["accuracy"]
    panel.undo()
    assert (panel.chosen, panel.choice, len(panel.choices)) == (first, 1, 3)
    panel.undo()
    panel.undo()  # there is nothing before the beginning
    assert (panel.chosen, panel.choice) == ((), 0)
    panel.redo()
    panel.redo()
    panel.redo()
    assert (panel.chosen, panel.choice) == (both, 2)
    panel.go_to(1)
    panel.chosen = ((1, GREEN),)  # another way from here: what came after is gone
    assert [entry["chosen"] for entry in panel.choices] == [[], [[1, WATER]], [[1, GREEN]]]
    panel.reset()
    assert panel.chosen == ()
    panel.undo()
    assert panel.chosen == ((1, GREEN),)
    with pytest.raises(FeatureError, match="no 9"):
        panel.go_to(9)


def test_requests_of_the_browser(panel: DebiasPanel) -> None:
    sent: list[dict[str, Any]] = []
    panel.send = lambda content, buffers=None: sent.append(content)  # type: ignore[method-assign]
    panel.set_state({"chosen": [[1, WATER]]})
    assert panel.report["chosen"] == [[1, WATER]]
    panel._receive(None, {"vl": "ask", "id": 1, "what": "go_to", "payload": {"index": 0}}, [])
    assert panel.chosen == ()
    panel._receive(None, {"vl": "ask", "id": 2, "what": "add", "payload": {"node": [0, 7]}}, [])
    assert panel.debias_cards[0]["node"] == [0, 7]
    assert panel.debias_cards[0]["sources"] == ["picked"]
    panel._receive(None, {"vl": "ask", "id": 3, "what": "export", "payload": {}}, [])
    assert json.loads(sent[-1]["value"])["features"] == []
    assert not any("error" in content for content in sent)
    panel._receive(None, {"vl": "ask", "id": 4, "what": "add", "payload": {"node": [0, 700]}}, [])
    assert "there is no 700" in sent[-1]["error"]
    panel.set_state({"chosen": [[0, 700]]})
    assert "there is no 700" in panel.notice
    assert panel.chosen == ()


def test_the_file_gives_the_same_figures(
    lens: Lens, groups: GroupedImages, panel: DebiasPanel, tmp_path: Path
) -> None:
    panel.chosen = SHORTCUT
    panel.save(tmp_path / "choice.json")
    loaded = DebiasedModel.load(tmp_path / "choice.json", lens)
    assert loaded.features == SHORTCUT
    inputs = torch.stack([lens.tensor(image) for image in groups.images])
    right = loaded(inputs).argmax(1) == groups.labels
    found = [float(right[groups.groups == g].double().mean()) for g in range(4)]
    assert found == pytest.approx(shown(panel.report))
    assert panel._answer_export({}, []) == (tmp_path / "choice.json").read_text("utf-8")
    with pytest.raises(CheckpointError, match="another lens"):
        DebiasedModel.load(tmp_path / "choice.json", planted_lens(dtype=torch.float64))


def test_projected_out(lens: Lens, groups: GroupedImages, tmp_path: Path) -> None:
    panel = DebiasPanel(lens, groups, to="zero", project=True, chosen=SHORTCUT[:1])
    assert (panel.debias["to"], panel.debias["project"]) == ("zero", True)
    assert panel.figure().get_suptitle() == "1 feature projected out, to zero"
    (tmp_path / "choice.json").write_text(panel._answer_export({}, []))
    loaded = DebiasedModel.load(tmp_path / "choice.json", lens)
    assert (loaded.features, loaded.removal) == (SHORTCUT[:1], Removal("zero", project=True))
    inputs = torch.stack([lens.tensor(image) for image in groups.images])
    # "Water" and "land" are one direction's two ends: one projection takes both, ablation one.
    projected, ablated = (
        model(inputs).detach() for model in (loaded, DebiasedModel(lens, SHORTCUT[:1], to="zero"))
    )
    torch.testing.assert_close(panel.model()(inputs).detach(), projected)
    right = projected.argmax(1) == groups.labels
    found = [float(right[groups.groups == g].double().mean()) for g in range(4)]
    assert found == pytest.approx(shown(panel.report))
    assert float((projected - ablated).abs().max()) > 0.1
    assert min(found) > min(accuracies(lens, groups, SHORTCUT[:1]))


def test_the_panel_takes_out_as_the_search_did(lens: Lens, groups: GroupedImages) -> None:
    found = debias(
        lens, groups, layers=(1,), features=SHORTCUT, project=True, n_random=0, progress=False
    )
    assert DebiasPanel(lens, groups, found).live.removal == Removal(project=True)
    other = DebiasPanel(lens, groups, found, project=False)
    assert other.live.removal == Removal()
    assert other.trade_off == {}  # the search's curve is of projections


def test_cards_say_where_a_feature_is_active(
    lens: Lens, groups: GroupedImages, panel: DebiasPanel
) -> None:
    expected = find_candidates(panel.live.runs.activations, groups)
    assert [card["node"] for card in panel.debias_cards] == [list(c.key) for c in expected]
    place = [tuple(card["node"]) for card in panel.debias_cards].index((1, WATER))
    card, candidate = panel.debias_cards[place], expected[place]
    assert card["attribute"] == "water"
    assert (card["effect"], card["class_effect"]) == (candidate.effect, candidate.class_effect)
    n = len(panel.debias_cards)
    heats = from_bytes(panel.debias_heats, "float16", (n, 4, 2, 9))[place]
    traces = [lens.trace(image).features[1][:, WATER] for image in groups.images]
    for group in range(4):
        members = (groups.groups == group).nonzero().squeeze(1).tolist()
        means = torch.stack([traces[i].mean() for i in members])
        assert card["means"][group] == pytest.approx(float(means.mean()), abs=1e-4)
        order = [members[i] for i in means.argsort(descending=True, stable=True).tolist()]
        for at, image in enumerate((order[0], order[len(order) // 2])):
            np.testing.assert_allclose(heats[group, at], traces[image], atol=4e-3, rtol=2e-3)
    count = 1 + max(i for c in panel.debias_cards for row in c["images"] for i in row)
    strip = decode_strip(panel.debias_strip, count)
    image = card["images"][0][0]
    original = lens.pixels(groups.images[_index(panel, place, 0, 0)])
    assert strip[image] is not None
    assert original is not None
    gap = (strip[image].float() - original.float()).abs().mean()  # type: ignore[union-attr]
    assert gap < 12  # WebP


def _index(panel: DebiasPanel, card: int, group: int, at: int) -> int:
    return int(panel._cards[card].images[group, at])


def test_a_search_gives_its_cards_and_its_curve(lens: Lens, groups: GroupedImages) -> None:
    test = planted_images((9, 9, 9, 9), seed=1)
    found = debias(lens, groups, test=test, layers=(0, 1), n_random=0, progress=False)
    panel = DebiasPanel(lens, groups, found, chosen=found.features)
    assert [c["step"] for c in panel.debias_cards[: len(found.path)]] == [
        i + 1 for i in range(len(found.path))
    ]
    assert panel.trade_off["n"] == found.validation.n_features.tolist()
    assert panel.trade_off["worst"] == found.validation.worst.tolist()
    assert panel.chosen == found.features
    right = accuracies(lens, groups, found.features)
    assert panel.report["worst"]["accuracy"] == pytest.approx(min(right))
    assert set(panel.live.runs.layers) == {0, 1}
    strange = replace(found.candidates[0], layer=1, feature=77)
    with pytest.raises(FeatureError, match="there is no 77"):
        DebiasPanel(lens, groups, [strange])
    # On other images the curve of the search would mislead: theirs is measured when asked for.
    other = DebiasPanel(lens, planted_images((5, 7, 5, 7), seed=2), found)
    assert other.trade_off == {}
    other.measure_trade_off()
    assert other.trade_off["n"] == list(range(len(found.path) + 1))
    for n, worst in zip(other.trade_off["n"], other.trade_off["worst"], strict=True):
        assert worst == pytest.approx(other.evaluate(found.path[:n]).worst)


def test_the_curve_along_the_cards(panel: DebiasPanel) -> None:
    panel.measure_trade_off(at_most=3)
    order = [tuple(node) for node in panel.trade_off["order"]]
    assert order == [tuple(card["node"]) for card in panel.debias_cards[:3]]
    assert panel.trade_off["average"] == pytest.approx(
        [panel.evaluate(order[:n]).average for n in range(4)]
    )
    with pytest.raises(FeatureError):
        panel.measure_trade_off([(0, 999)])


def test_chosen_features_get_cards(panel: DebiasPanel) -> None:
    before = len(panel.debias_cards)
    panel.chosen = ((0, GREEN), (0, DARK_GREEN))
    nodes = [tuple(card["node"]) for card in panel.debias_cards]
    assert set(nodes[:2]) == {(0, GREEN), (0, DARK_GREEN)}
    assert len(nodes) == before + 2
    panel.chosen = ((0, GREEN),)
    assert len(panel.debias_cards) == before + 2


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (5, "must be a list of"),
        ([(0, 1, 2)], "must be a list of"),
        ([(0, 99)], "features 0 to 19; there is no 99"),
        ([(0, -1)], "there is no -1"),
        ([(7, 1)], "not in layer 7"),
    ],
)
def test_nonsense_is_refused(panel: DebiasPanel, wanted: Any, words: str) -> None:
    with pytest.raises(t.TraitError, match=words):
        panel.chosen = wanted
    assert panel.chosen == ()
    assert len(panel.choices) == 1


def test_groups_that_tell_nothing_are_refused(lens: Lens) -> None:
    for counts, words in (((5, 0, 5, 5), "bird, land"), ((5, 0, 0, 5), "identical to the class")):
        with pytest.raises(GroupError, match=words):
            DebiasPanel(lens, planted_images(counts))
    with pytest.raises(FeatureError, match="Layers with SAEs are 0, 1"):
        DebiasPanel(lens, planted_images(), layers=(5,))


def test_links(lens: Lens, panel: DebiasPanel, groups: GroupedImages) -> None:
    other = DebiasPanel(lens, groups)
    for name in ("selected", "labels", "chosen"):
        t.link((panel, name), (other, name))
    panel.selected = (2, -2)  # a diagram may select its target
    panel.labels = {(1, WATER): "bright water"}
    other.chosen = SHORTCUT
    assert other.selected == (2, -2)
    assert other.labels == {(1, WATER): "bright water"}
    assert panel.report["chosen"] == other.report["chosen"] == [list(key) for key in SHORTCUT]


def test_files(panel: DebiasPanel, tmp_path: Path) -> None:
    panel.chosen = SHORTCUT
    panel.to_png(tmp_path / "panel.png")
    panel.measure_trade_off()
    panel.to_svg(tmp_path / "panel.svg")
    panel.to_html(tmp_path / "panel.html")
    assert "mammal, land" in (tmp_path / "panel.html").read_text()
    bundle = panel._repr_mimebundle_()
    assert bundle is not None
    assert "image/png" in bundle[0]


def test_the_last_request_wins_and_cancel_goes_back(
    lens: Lens, groups: GroupedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = DebiasPanel(lens, groups, batch_size=4)
    go, begun, parts = threading.Event(), threading.Event(), []
    runs = panel.live.runs
    real = runs.without_in_parts

    def slow(features: Any, *rest: Any, **options: Any) -> Any:
        for part in real(features, *rest, **options):
            parts.append(features)
            begun.set()
            assert go.wait(20)
            yield part

    monkeypatch.setattr(runs, "without_in_parts", slow)
    reported = []
    panel.observe(lambda change: reported.append(change.new["chosen"]), "report")
    first, second, third = ((0, WATER),), ((0, LAND),), SHORTCUT

    async def settle() -> None:
        while any(worker.busy for worker in panel._background.values()):
            await asyncio.sleep(0.01)

    async def use() -> None:
        panel.chosen = first
        await asyncio.to_thread(begun.wait, 20)
        assert panel.report["chosen"] == []  # the loop is free while the model runs
        panel.chosen = second
        panel.chosen = third
        go.set()
        await settle()
        assert reported == [[list(key) for key in third]]
        assert parts.count(first) == 1  # it stopped after the batch that ran
        assert second not in parts
        go.clear()
        begun.clear()
        panel.chosen = first
        await asyncio.to_thread(begun.wait, 20)
        panel._answer_cancel({}, [])
        go.set()
        await settle()
        assert panel.chosen == third
        assert panel.report["chosen"] == [list(key) for key in third]
        assert panel.progress == panel.interim == {}
        panel.redo()  # the request is still in the history
        await settle()
        assert panel.report["chosen"] == [list(key) for key in first]

    asyncio.run(use())
