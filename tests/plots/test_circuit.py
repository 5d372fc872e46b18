"""Circuit figures: what they name, how they scale, the order of nodes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from tests.plots.figures import circuit, texts
from vitlens.circuits.carried import Carried
from vitlens.circuits.circuit import Edge, Node
from vitlens.errors import FeatureError
from vitlens.plots import circuit_figure, save_figure
from vitlens.plots.circuit import crossings, order_columns, strongest_edges


def test_a_circuit_names_nodes_layers_target_and_prediction() -> None:
    drawn = texts(circuit_figure(circuit()))
    expected = {"layer 0", "layer 2", "40%", "error", "−10%", "mammal", "image", "target"}
    assert expected <= drawn
    assert {"predicted: mammal\n93.1%", "logit − mean logit\n−4.25"} <= drawn
    assert any("error node" in text for text in drawn)


def test_a_circuit_says_what_it_carries_and_by_which_protocol() -> None:
    carried = Carried(1.204, -0.05, 0.1, 0.3, False, 0.0, 2.0, (2, 2, 1), "clean", "mean")
    drawn = texts(circuit_figure(circuit(carried=carried)))
    assert {
        "alone 120%\nwithout −5%",
        "class not first alone\nerror nodes: clean\nbaselines: mean",
    } <= drawn
    no_share = replace(carried, alone=math.nan, without=math.nan)
    assert "no share of\nthe answer" in texts(circuit_figure(circuit(carried=no_share)))
    assert not any("alone" in text for text in texts(circuit_figure(circuit())))


def test_columns_are_named_by_block_where_layers_are_left_out() -> None:
    made = circuit(layers=(2, 5, 9))
    drawn = texts(circuit_figure(made))
    assert {"layer 2", "layer 5", "layer 9"} <= drawn and "layer 3" not in drawn
    assert circuit_figure(made).get_size_inches() == pytest.approx(
        circuit_figure(circuit(layers=3)).get_size_inches()
    )
    assert len(strongest_edges(made)) == len(strongest_edges(circuit(layers=3)))


def test_supernodes_are_drawn_as_one_node_each() -> None:
    made = circuit(layers=2, nodes=5)
    groups = {"wheel, left": [(0, 2), (0, 0), (0, 4)], "sky": [(1, 1)]}
    labels = {(0, 1): "alone", (0, 0): "a member's own"}
    made = replace(made, groups=groups, labels=labels, pinned=[(0, 4)])  # type: ignore[arg-type]
    drawn = circuit_figure(made, supernodes=True)
    assert {"wheel, left", "sky", "×3", "120%", "alone"} <= texts(drawn)
    assert not {"a member's own", "×1", "[sky]"} & texts(drawn)
    legend = " ".join(texts(drawn))
    assert "supernode" in legend and "pinned" in legend
    assert "the sum of" not in " ".join(texts(circuit_figure(made)))
    # Three thumbnails in layer 0, five in layer 1; the image and the heat scale.
    assert len(drawn.axes[0].images) == 3 + 5 + 2
    assert len(circuit_figure(made).axes[0].images) == 5 + 5 + 2


def test_a_supernodes_number_stands_once() -> None:
    """Its name begins with it, and it stands below the thumbnail."""
    made = replace(circuit(layers=1, nodes=3), groups={"0/0 wheel": ((0, 0), (0, 1))})
    assert {"0", "wheel"} <= texts(circuit_figure(made, supernodes=True))


def test_the_legend_names_only_what_is_there() -> None:
    node = Node(0, 5, 1.0, 1.0, 1.0)
    plain = replace(circuit(prefix=()), nodes=(node,), edges=(), heatmaps=torch.ones(1, 16))
    drawn = " ".join(texts(circuit_figure(plain)))
    for absent in ("error node", "lowers", "CLS", "edge width", "drawn"):
        assert absent not in drawn


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": 1, "nodes": 1},
        {"layers": 2, "nodes": 12, "prefix": ("CLS", "register 1", "register 2", "register 3")},
        {
            "grid": (3, 5),
            "image": False,
            "target": "a name with $ that is " + "very " * 40 + "long",
        },
        {"target_index": None, "heatmaps": torch.zeros(6, 17)},
    ],
)
def test_odd_circuits_are_drawn(changes: dict[str, Any], tmp_path: Path) -> None:
    figure = circuit_figure(circuit(**changes))
    save_figure(figure, tmp_path / "circuit.png", dpi=30)
    assert (tmp_path / "circuit.png").stat().st_size > 0


def test_width_scales_the_figure_and_its_text() -> None:
    natural = circuit_figure(circuit())
    width, height = natural.get_size_inches()
    half = circuit_figure(circuit(), width=width / 2)
    assert half.get_size_inches() == pytest.approx((width / 2, height / 2))
    sizes = [f.axes[0].texts[0].get_fontsize() for f in (natural, half)]
    assert sizes[1] == pytest.approx(sizes[0] / 2)


def test_in_given_axes_the_drawing_fits_them_whole() -> None:
    natural = circuit_figure(circuit())
    width, height = natural.get_size_inches()
    mine = Figure(figsize=(width, height))
    axes = mine.add_axes((0.5, 0.25, 0.5, 0.75))
    assert circuit_figure(circuit(), ax=axes) is mine
    sizes = [figure.axes[0].texts[0].get_fontsize() for figure in (natural, mine)]
    assert sizes[1] == pytest.approx(sizes[0] / 2)
    assert axes.get_xlim() == natural.axes[0].get_xlim()


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": 4, "nodes": 3},
        {
            "layers": 1,
            "target": "a class name that goes on and on until it has sixty letters",
            "prediction": ("a class name that goes on and on until it has sixty letters", 0.931),
        },
        {
            "target": "<script>a_long_word</script>",
            "prediction": ("<script>a_long_word</script>", 1.0),
        },
    ],
)
def test_nothing_is_drawn_beyond_the_page(changes: dict[str, Any], tmp_path: Path) -> None:
    figure = circuit_figure(circuit(**changes))
    save_figure(figure, tmp_path / "circuit.png", dpi=50)
    pixels = imread(tmp_path / "circuit.png")[..., :3]
    for border in (pixels[:4], pixels[-4:], pixels[:, :4], pixels[:, -4:]):
        assert (border == 1).all()


def test_strongest_edges_of_each_pair_and_all_to_the_target() -> None:
    made = circuit(layers=3, nodes=4)
    kept = strongest_edges(made, 5)
    for layer in range(2):
        all_weights = sorted(
            (abs(e.weight) for e in made.edges if e.source[0] == layer), reverse=True
        )
        assert (
            sorted((abs(e.weight) for e in kept if e.source[0] == layer), reverse=True)
            == (all_weights[:5])
        )
    assert sum(e.target == made.target_key for e in kept) == 4


def test_a_circuit_without_nodes_or_room_is_refused() -> None:
    with pytest.raises(FeatureError, match="no nodes"):
        circuit_figure(replace(circuit(), nodes=(), edges=(), heatmaps=torch.zeros(0, 17)))
    with pytest.raises(FeatureError, match="width must be above 0"):
        circuit_figure(circuit(), width=0)
    with pytest.raises(FeatureError, match="top_edges must be above 0"):
        circuit_figure(circuit(), top_edges=0)


def test_order_undoes_a_crossing() -> None:
    columns = [[(0, 0), (0, 1)], [(1, 0), (1, 1)]]
    edges = [Edge((0, 0), (1, 1), 2.0, 0.2), Edge((0, 1), (1, 0), -3.0, -0.3)]
    assert crossings(columns, edges) == 6.0
    ordered = order_columns(columns, edges)
    assert crossings(ordered, edges) == 0.0
    assert [sorted(column) for column in ordered] == columns


def test_order_never_adds_crossings() -> None:
    made = circuit(layers=4, nodes=5)
    columns = [[n.key for n in made.nodes if n.layer == layer] for layer in range(4)]
    ordered = order_columns(columns, made.edges)
    assert crossings(ordered, made.edges) <= crossings(columns, made.edges)


def test_labels_hide_the_edges_behind_them() -> None:
    figure = circuit_figure(circuit())
    shares = [text for text in figure.axes[0].texts if text.get_text() == "40%"]
    for text in shares:
        backing = text.get_bbox_patch()
        assert backing is not None and backing.get_facecolor() == figure.get_facecolor()
    assert shares


def test_labels_groups_and_pins_are_drawn() -> None:
    plain = circuit()
    first, second = plain.nodes[0].key, plain.nodes[1].key
    annotated = replace(plain, pinned=(first,), groups={"ears": (second,)}, labels={second: "left"})
    drawn = texts(circuit_figure(annotated))
    assert any("[ears] left" in text for text in drawn)
    assert any("pinned node" in text for text in drawn)
    assert not any("pinned node" in text for text in texts(circuit_figure(plain)))


def test_a_long_name_without_spaces_is_cut_in_the_heading() -> None:
    figure = circuit_figure(replace(circuit(), target="象" * 200))
    (heading,) = [t.get_text() for t in figure.findobj(Text) if "Circuit for" in t.get_text()]
    assert heading.startswith("Circuit for “象象") and heading.endswith("象…”")
    assert len(heading) < 150
