"""Quantiles of the images that a gallery shows."""

from __future__ import annotations

import pytest
import torch

from vitlens.atlas.gallery import quantile, spread


def test_quantiles_of_peaks() -> None:
    from vitlens.atlas.exact import bin_edges, bin_index

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
