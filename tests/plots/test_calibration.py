"""Histograms of calibration: heights, band, what is wrong in the title."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pyro_nfvi.errors import OptionError
from pyro_nfvi.plots import plot_calibration

plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    plt.close("all")


def test_heights_band_and_line():
    p = torch.cat([torch.full((70,), 0.05), torch.full((30,), 0.95)])
    axes = plot_calibration({"mu": p}, bins=10).axes[0]
    heights = [patch.get_height() for patch in axes.patches[1:]]
    assert heights[0] == 70
    assert heights[-1] == 30
    assert sum(heights) == 100
    assert axes.get_lines()[0].get_ydata()[0] == 10


def test_band_holds_its_share_of_binomial_heights():
    from pyro_nfvi.plots._calibration import _band

    low, high = _band(100, 10)
    heights = np.random.default_rng(0).binomial(100, 0.1, 20000)
    # 95 % and what one more height holds; standard error 0.15 points.
    assert 0.945 < np.mean((low <= heights) & (heights <= high)) < 0.99


def test_what_is_wrong_stands_above_its_panel():
    row = SimpleNamespace(name="theta[1]", word="too narrow")
    found = SimpleNamespace(p={"theta": torch.rand(50, 2)}, rows=(row,))
    titles = [axes.get_title(loc="left") for axes in plot_calibration(found).axes]
    assert titles == ["theta[0]", "theta[1]: too narrow"]


def test_no_fits():
    with pytest.raises(OptionError, match="no fit was done"):
        plot_calibration({})
