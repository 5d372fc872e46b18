"""The plot of curves: what is sent to the browser, what traits refuse, and its files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import traitlets

from vitlens import Curves
from vitlens.errors import FeatureError, OptionError
from vitlens.widgets import CurvePlot

METHODS = ("rrm", "random")
Q = (0.0, 0.1, 0.5, 1.0)
METRICS = ("target", "logit", "probability", "top1", "divergence")


def make_curves(n_images: int = 3, *, height: float = 2.0) -> Curves:
    """Curves that rise to `height` for insertion and fall for deletion, one a little steeper."""
    rise = torch.tensor([[0.0, 0.6, 0.9, 1.0], [0.0, 0.1, 0.4, 1.0]]).double() * height
    offsets = torch.linspace(-0.1, 0.1, n_images).double()[:, None] * torch.tensor([0.0, 1, 1, 0])
    insertion = rise[:, None] + offsets
    return Curves(
        methods=METHODS,
        q=Q,
        counts=(0, 3, 15, 30),
        insertion=dict.fromkeys(METRICS, insertion),
        deletion={metric: insertion.flip(-1) for metric in METRICS},
        untouched={metric: torch.full((n_images,), height) for metric in METRICS},
        images=tuple(range(n_images)),
        n_given=n_images,
        error_nodes="clean",
        target="bird",
    )


def drawn(plot: CurvePlot) -> np.ndarray:
    """[direction, method, (mean, low, high), q]."""
    return np.frombuffer(plot.curve_data, np.float32).reshape(2, len(METHODS), 3, len(Q))


def test_the_view_gets_the_bands() -> None:
    curves = make_curves()
    plot = CurvePlot(curves)
    for i, direction in enumerate(("insertion", "deletion")):
        for j, method in enumerate(METHODS):
            np.testing.assert_allclose(
                drawn(plot)[i, j], np.stack(curves.band(direction, method)), rtol=1e-6
            )
    assert plot.curves["dictionary_size"] == 30
    assert plot.curves["is_share"] is True
    for axis in ("linear", "log"):
        area = curves.area("insertion", "rrm", axis=axis).value
        assert plot.curves["areas"][axis]["insertion"]["rrm"] == pytest.approx(area)
    json.dumps(plot.curves, allow_nan=False)


def test_one_image_has_no_intervals() -> None:
    plot = CurvePlot(make_curves(1))
    assert np.isnan(drawn(plot)[:, :, 1:]).all()
    assert not np.isnan(drawn(plot)[:, :, 0]).any()


def test_without_a_span_the_values_are_as_measured() -> None:
    curves = make_curves(height=-2.0)
    plot = CurvePlot(curves, metric="logit")
    assert plot.curves["is_share"] is False
    assert plot.curves["areas"]["log"]["deletion"] == {"rrm": None, "random": None}
    np.testing.assert_allclose(drawn(plot)[1, 0, 0], curves.mean("deletion", "rrm", "logit"))
    json.dumps(plot.curves, allow_nan=False)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("axis", "cubic", "linear"),
        ("direction", "up", "insertion"),
        ("nodes_per_layer", 0, "nodes_per_layer"),
        ("nodes_per_layer", "many", "nodes_per_layer"),
        ("hidden_methods", ["ramdom"], "Did you mean 'random'"),
    ],
)
def test_traits_refuse_nonsense(name: str, value: object, words: str) -> None:
    plot = CurvePlot(make_curves())
    before = getattr(plot, name)
    with pytest.raises((traitlets.TraitError, OptionError), match=words):
        setattr(plot, name, value)
    assert getattr(plot, name) == before


def test_first_values_and_unknown_ones() -> None:
    assert CurvePlot(make_curves(), axis="linear", nodes_per_layer=3).axis == "linear"
    with pytest.raises(TypeError, match="colour"):
        CurvePlot(make_curves(), colour="red")  # type: ignore[call-arg]
    with pytest.raises(OptionError, match="metric"):
        CurvePlot(make_curves(), metric="loss")


def test_other_curves_replace_them() -> None:
    plot = CurvePlot(make_curves())
    plot.show_curves(make_curves(1))
    assert plot.curves["n_images"] == 1
    plot.show_curves(None)
    assert plot.curves == {}
    with pytest.raises(FeatureError, match="no curves"):
        plot.figure()


def test_linked_in_python() -> None:
    one, other = CurvePlot(make_curves()), CurvePlot(make_curves(1))
    traitlets.link((one, "nodes_per_layer"), (other, "nodes_per_layer"))
    one.nodes_per_layer = 15
    assert other.nodes_per_layer == 15
    other.nodes_per_layer = 4
    assert one.nodes_per_layer == 4


def test_files(tmp_path: Path) -> None:
    plot = CurvePlot(make_curves(), direction="insertion")
    plot.to_png(tmp_path / "curves.png")
    plot.to_svg(tmp_path / "curves.svg")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert "<image" not in (tmp_path / "curves.svg").read_text()
    plot.to_html(tmp_path / "curves.html")
    page = (tmp_path / "curves.html").read_text()
    assert '"direction": "insertion"' in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_a_notebook_without_state_shows_a_picture() -> None:
    data, _ = CurvePlot(make_curves())._repr_mimebundle_()
    assert data["image/png"].startswith("iVBOR")
    assert "application/vnd.jupyter.widget-view+json" in data
