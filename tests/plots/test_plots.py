import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from vitlens.circuits.circuit import ERROR, TARGET, Circuit, Edge, Node
from vitlens.circuits.curves import METRICS, Curves
from vitlens.errors import FeatureError, ImageError, VitlensError
from vitlens.plots import circuit_figure, curves_figure, heatmap_figure, save_figure
from vitlens.plots.circuit import strongest_edges
from vitlens.plots.heat import NEGATIVE, POSITIVE, heat_on_picture
from vitlens.plots.order import crossings, order_columns
from vitlens.plots.page import flow, text_width


def circuit(layers=3, nodes=2, *, prefix=("CLS",), grid=(4, 4), picture=True, **changes):
    generator = torch.Generator().manual_seed(0)
    made = [Node(layer, f, 1.0, 0.4, 1.0) for layer in range(layers) for f in range(nodes)]
    made[-1] = Node(layers - 1, ERROR, -0.2, -0.1, -0.2)
    edges = [
        Edge(a.key, b.key, weight, weight / 10)
        for a, b in product(made, made)
        if b.layer == a.layer + 1 and b.feature != ERROR
        for weight in [float(torch.randn((), generator=generator))]
    ]
    edges += [Edge(n.key, (layers, TARGET), n.importance, n.share) for n in made[-nodes:]]
    settings = {
        "nodes": tuple(made),
        "edges": tuple(edges),
        "layers": tuple(range(layers)),
        "heatmaps": torch.randn(len(made), len(prefix) + grid[0] * grid[1], generator=generator),
        "grid": grid,
        "prefix_names": prefix,
        "target": "mammal",
        "target_index": 3,
        "target_value": -4.25,
        "prediction": ("mammal", 0.931),
        "image": torch.full((32, 32, 3), 200, dtype=torch.uint8) if picture else None,
    }
    return Circuit(**settings | changes)


def curves(n_images=5, *, methods=("rrm", "cla", "mine"), full=4.0, q=(0.0, 0.02, 0.1, 1.0)):
    share = torch.tensor(q)
    scale = torch.linspace(0.9, 1.1, n_images)[:, None]
    insertion = torch.stack([scale * full * share**power for power in range(1, len(methods) + 1)])
    return Curves(
        methods=methods,
        q=q,
        counts=tuple(round(100 * x) for x in q),
        insertion={m: insertion.double() for m in METRICS},
        deletion={m: insertion.flip(-1).double() for m in METRICS},
        untouched={m: insertion[0, :, -1].double() for m in METRICS},
        images=tuple(range(n_images)),
        n_given=n_images,
        error_nodes="clean",
        target="predicted class",
    )


def words(figure):
    texts = [text for axes in figure.axes for text in axes.texts]
    legends = [axes.get_legend() for axes in figure.axes]
    texts += [text for legend in legends if legend for text in legend.get_texts()]
    return [text.get_text() for text in texts]


def test_a_circuit_tells_nodes_layers_target_and_prediction():
    said = words(circuit_figure(circuit()))
    for expected in ("layer 0", "layer 2", "40%", "error", "−10%", "mammal", "image", "target"):
        assert expected in said
    assert "predicted: mammal\n93.1%" in said
    assert "logit − mean logit\n−4.25" in said
    assert any("error node" in text for text in said)


def test_the_legend_names_only_what_is_there():
    node = Node(0, 5, 1.0, 1.0, 1.0)
    plain = replace(circuit(prefix=()), nodes=(node,), edges=(), heatmaps=torch.ones(1, 16))
    said = " ".join(words(circuit_figure(plain)))
    for absent in ("error node", "takes away", "CLS", "edge width", "drawn"):
        assert absent not in said


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": 1, "nodes": 1},
        {"layers": 2, "nodes": 12, "prefix": ("CLS", "register 1", "register 2", "register 3")},
        {
            "grid": (3, 5),
            "picture": False,
            "target": "a name with $ that is " + "very " * 40 + "long",
        },
        {"target_index": None, "heatmaps": torch.zeros(6, 17)},
    ],
)
def test_odd_circuits_are_drawn(changes, tmp_path):
    figure = circuit_figure(circuit(**changes))
    save_figure(figure, tmp_path / "circuit.png", dpi=30)
    assert (tmp_path / "circuit.png").stat().st_size > 0


def test_width_scales_the_figure_and_its_text():
    natural = circuit_figure(circuit())
    width, height = natural.get_size_inches()
    half = circuit_figure(circuit(), width=width / 2)
    assert half.get_size_inches() == pytest.approx((width / 2, height / 2))
    sizes = [f.axes[0].texts[0].get_fontsize() for f in (natural, half)]
    assert sizes[1] == pytest.approx(sizes[0] / 2)


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
def test_nothing_is_drawn_beyond_the_page(changes, tmp_path):
    figure = circuit_figure(circuit(**changes))
    save_figure(figure, tmp_path / "circuit.png", dpi=50)
    pixels = imread(tmp_path / "circuit.png")[..., :3]
    for border in (pixels[:4], pixels[-4:], pixels[:, :4], pixels[:, -4:]):
        assert (border == 1).all()


def test_strongest_edges_of_each_pair_and_all_to_the_target():
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


def test_a_circuit_without_nodes_or_room_is_refused():
    with pytest.raises(FeatureError, match="no nodes"):
        circuit_figure(replace(circuit(), nodes=(), edges=(), heatmaps=torch.zeros(0, 17)))
    with pytest.raises(FeatureError, match="width must be above 0"):
        circuit_figure(circuit(), width=0)
    with pytest.raises(FeatureError, match="top_edges must be above 0"):
        circuit_figure(circuit(), top_edges=0)


def test_order_undoes_a_crossing():
    columns = [[(0, 0), (0, 1)], [(1, 0), (1, 1)]]
    edges = [Edge((0, 0), (1, 1), 2.0, 0.2), Edge((0, 1), (1, 0), -3.0, -0.3)]
    assert crossings(columns, edges) == 6.0
    ordered = order_columns(columns, edges)
    assert crossings(ordered, edges) == 0.0
    assert [sorted(column) for column in ordered] == columns


def test_order_is_never_worse_than_what_it_began_with():
    made = circuit(layers=4, nodes=5)
    columns = [[n.key for n in made.nodes if n.layer == layer] for layer in range(4)]
    ordered = order_columns(columns, made.edges)
    assert crossings(ordered, made.edges) <= crossings(columns, made.edges)


def test_heat_has_the_colours_of_its_sign_and_leaves_zero_grey():
    heat = np.array([[1.0, -1.0], [0.0, 0.25]])
    pixels = heat_on_picture(None, heat, size=(2, 2)).astype(int)
    assert pixels[0, 0].argmax() == 2 and pixels[0, 1].argmax() == 0
    assert len(set(pixels[1, 0])) == 1
    assert pixels[1, 1, 2] - pixels[1, 1, 0] < pixels[0, 0, 2] - pixels[0, 0, 0]
    assert POSITIVE != NEGATIVE


def test_heat_lies_on_its_own_patch():
    heat = np.zeros((2, 3))
    heat[1, 2] = 1
    pixels = heat_on_picture(np.full((20, 30, 3), 90, np.uint8), heat, size=(20, 30)).astype(int)
    coloured = pixels[..., 2] - pixels[..., 0] > 20
    assert coloured[10:, 20:].all() and coloured.sum() == 100


def test_heatmap_figure_is_signed_when_the_heat_is():
    heat = torch.tensor([[0.5, 2.0], [0.0, 1.0]])
    unsigned = heatmap_figure(None, heat, label="importance of a feature")
    signed = heatmap_figure(
        torch.zeros(8, 8, 3, dtype=torch.uint8),
        heat,
        prefix=[-3.0],
        prefix_names=["CLS"],
        title="x",
    )
    assert unsigned.axes[1].get_ylim() == pytest.approx((0, 2))
    assert unsigned.axes[1].get_ylabel() == "importance of a feature"
    assert signed.axes[1].get_ylim() == pytest.approx((-3, 3))
    assert "CLS" in words(signed)


@pytest.mark.parametrize(
    ("heat", "prefix", "message"),
    [
        (torch.zeros(4), (), r"\[rows, columns\], not \[4\]"),
        (torch.tensor([[float("nan")]]), (), "NaN"),
        (torch.zeros(1, 1), (1.0,), "as many names"),
    ],
)
def test_bad_heat_is_refused(heat, prefix, message):
    with pytest.raises(ImageError, match=message):
        heatmap_figure(None, heat, prefix=prefix)


def test_curves_show_both_panels_with_areas_and_bands():
    made = curves()
    figure = curves_figure(made)
    left, right = figure.axes
    assert left.get_title().startswith("Insertion") and right.get_title().startswith("Deletion")
    line = left.get_lines()[0]
    assert line.get_ydata() == pytest.approx(made.band("insertion", "rrm").mean)
    assert list(line.get_xdata()) == list(made.q)
    assert len(left.collections) == 3
    colours = {line.get_color() for line in left.get_lines()[:3]}
    assert len(colours) == 3


@pytest.mark.parametrize("axis", ["log", "linear"])
def test_the_areas_are_those_of_the_axis_that_is_drawn(axis):
    made = curves()
    left, _ = curves_figure(made, axis=axis).axes
    spots = left.transScale.transform(left.get_lines()[1].get_xydata())[:, 0]
    heights, widths = left.get_lines()[1].get_ydata(), np.diff(spots)
    area = np.sum(widths * (heights[1:] + heights[:-1]) / 2) / widths.sum()
    assert made.area("insertion", "cla", axis=axis).value == pytest.approx(area)
    assert f"cla  {made.area('insertion', 'cla', axis=axis)}" in words(left.figure)
    assert f"({axis} share)" in left.get_legend().get_title().get_text()


def test_curves_of_one_image_have_no_bands():
    figure = curves_figure(curves(1))
    assert not figure.axes[0].collections
    assert "1 image," in figure.get_suptitle()


def test_curves_without_a_span_are_drawn_as_measured():
    figure = curves_figure(curves(full=-1.0))
    assert figure.axes[0].get_ylabel() == "target, as measured"
    assert "rrm" in words(figure)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_figures_are_written_and_always_the_same(tmp_path, suffix):
    for name in ("one", "two"):
        save_figure(
            circuit_figure(circuit(layers=1, nodes=1)), tmp_path / f"{name}{suffix}", dpi=40
        )
    first = (tmp_path / f"one{suffix}").read_bytes()
    assert first and first == (tmp_path / f"two{suffix}").read_bytes()


def test_an_unknown_suffix_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(VitlensError, match=r"\.png, \.svg, \.pdf"):
        save_figure(circuit_figure(circuit(layers=1, nodes=1)), tmp_path / "circuit.jpeg")
    assert not list(tmp_path.iterdir())


def test_legend_items_flow_over_lines():
    assert flow([2, 2, 2, 5, 1], room=5, gap=0.5) == [[0, 1], [2], [3], [4]]
    assert flow([], room=5, gap=1) == [[]]
    assert text_width("two words", 10) > text_width("words", 10) > text_width("", 10) == 0


def test_plots_leave_pyplot_alone():
    circuit_figure(circuit(layers=1, nodes=1))
    assert "matplotlib.pyplot" not in sys.modules


def test_labels_hide_the_edges_behind_them():
    figure = circuit_figure(circuit())
    shares = [text for text in figure.axes[0].texts if text.get_text() == "40%"]
    for text in shares:
        backing = text.get_bbox_patch()
        assert backing.get_facecolor() == figure.get_facecolor()
    assert shares


def test_labels_groups_and_pins_are_drawn():
    plain = circuit()
    first, second = plain.nodes[0].key, plain.nodes[1].key
    marked = replace(plain, pinned=(first,), groups={"ears": (second,)}, labels={second: "left"})
    drawn = words(circuit_figure(marked))
    assert any("[ears] left" in text for text in drawn)
    assert any("pinned node" in text for text in drawn)
    assert not any("pinned node" in text for text in words(circuit_figure(plain)))
