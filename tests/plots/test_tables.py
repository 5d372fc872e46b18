"""Tables of features as figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.plots.figures import texts
from vitlens.plots import features_figure, save_figure


def test_a_list_has_a_row_per_feature(tmp_path: Path) -> None:
    table = np.array([[2.0, -1.0], [3.0, 1.0], [2.0, 1.0], [4, 1]], np.float32)
    figure = features_figure(table, names=["7", "9"], labels=["", "$eye"], positive=4.0, title="t")
    assert {"7", "9", r"\$eye", "50.0%", "−25.0%"} <= texts(figure)
    save_figure(figure, tmp_path / "list.png")
    small = features_figure(table * 1e-4, names=["7", "9"], labels=["", ""], positive=4.0)
    assert {"<0.1%", ">−0.1%"} <= texts(small)
    features_figure(table[:, :0], names=[], labels=[], positive=0.0)
