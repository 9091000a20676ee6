"""Pictures are drawn, show what they should, and leave matplotlib's settings alone."""

from __future__ import annotations

import builtins
import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.distributions import constraints

from pyro_nfvi import plots
from pyro_nfvi.errors import MissingPackageError, OptionError

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def _closed_figures():
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before
    plt.close("all")


def draws(num=300):
    generator = torch.Generator().manual_seed(0)
    return {
        "mu": torch.randn(num, generator=generator),
        "tau": torch.rand(num, generator=generator) + 0.01,
        "theta": torch.randn(num, 2, 3, generator=generator),
    }


def lines(figure):
    return figure.axes[0].get_lines()


def test_loss_shows_steps_and_their_running_mean():
    losses = torch.linspace(50, 10, 1000)
    figure = plots.plot_loss(losses)
    steps, mean = lines(figure)
    np.testing.assert_allclose(steps.get_ydata(), losses, rtol=1e-6)
    assert mean.get_ydata()[-1] == pytest.approx(float(losses[-20:].mean()), rel=1e-5)


def test_loss_keeps_a_steep_start_out_of_the_picture():
    losses = np.concatenate([np.geomspace(1e6, 20, 100), 10 + 0.1 * np.sin(np.arange(900))])
    low, high = plots.plot_loss(losses).axes[0].get_ylim()
    assert 9 < low < 10
    assert high < 100


class Trained:
    """What a picture of the loss reads of a fit."""

    def __init__(self, losses, *tried):
        self.losses = torch.tensor(losses)
        self.training = SimpleNamespace(
            settings=SimpleNamespace(
                tried=[SimpleNamespace(flow=f, steps=s, kept=k) for f, s, k in tried]
            )
        )


@pytest.mark.parametrize(
    ("tried", "names"),
    [
        ((("", 30, True), ("iaf*2", 60, True), ("maf", 5, False), ("nsf", 40, True)), [0, 60]),
        ((("", 60, True), ("iaf*2", 40, True)), [0, 60]),
        ((("", 30, True), ("iaf*2", 100, True)), []),
        ((), []),
    ],
)
def test_loss_marks_where_each_flow_begins(tried, names):
    axes = plots.plot_loss(Trained([1.0] * 100, *tried)).axes[0]
    assert [text.xy[0] for text in axes.texts] == names
    marks = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in marks] == names[1:]
    if names and tried[1][0]:
        assert axes.texts[-1].get_text() in ("nsf", "iaf*2")


def test_marginals_end_where_the_support_does():
    latent = SimpleNamespace(
        sites={
            "tau": SimpleNamespace(support=constraints.positive),
            "p": SimpleNamespace(support=constraints.simplex),
            "box": SimpleNamespace(support=constraints.independent(constraints.interval(2, 3), 1)),
            "mu": SimpleNamespace(support=constraints.real),
        }
    )
    uniform = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    found = {"tau": uniform[:, 0], "p": uniform, "box": uniform + 2, "mu": uniform[:, 0]}
    fit = SimpleNamespace(latent=latent, guide=None, sample=lambda count, seed: found)
    axes = plots.plot_marginals(fit, names=["tau", "p", "box", "mu", "log tau"]).axes
    assert [one.get_xlim()[0] for one in axes[:5:2]] == [0, 0, 2]
    assert [one.get_xlim()[1] for one in axes[1:5]] == [1, 1, 3, 3]
    assert axes[5].get_xlim()[0] < 0
    assert axes[6].get_xlim()[0] < 0


def test_pictures_leave_no_figure_open_whether_they_succeed_or_fail():
    import matplotlib.pyplot as plt

    plt.close("all")
    plots.plot_marginals(draws())
    plots.plot_density_2d(lambda z: -z.square().sum(-1), points=5)
    with pytest.raises(OptionError, match="does not fit 'theta'"):
        plots.plot_marginals(draws(), {"theta": torch.zeros(9)})
    with pytest.raises(OptionError, match="columns"):
        plots.plot_marginals(draws(), columns=0)
    figure = plots.plot_loss([1.0, 2.0])
    assert plt.get_fignums() == []
    figure.savefig(io.BytesIO())


@pytest.mark.parametrize("losses", [[3.0], [1.0, np.nan, 2.0], [5.0] * 30, [np.nan] * 40])
def test_loss_of_few_constant_or_missing_steps(losses):
    assert len(lines(plots.plot_loss(losses))) == 2


def test_no_losses():
    with pytest.raises(OptionError, match="no losses"):
        plots.plot_loss([])


def test_marginals_of_all_elements_with_a_reference():
    figure = plots.plot_marginals(draws(), draws(200))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:3] == ["mu", "tau", "theta[0, 0]"]
    assert len(titles) == 8
    # The dots of the interval marks stand at the medians.
    dots = [line for line in figure.axes[0].get_lines() if line.get_marker() == "o"]
    assert dots[0].get_xdata()[0] == pytest.approx(float(np.median(draws()["mu"])), abs=1e-6)
    assert len(dots) == 2


def test_marginals_by_name_and_logarithm():
    figure = plots.plot_marginals(draws(), names=["log tau", "theta[1, 2]"], columns=1)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["log tau", "theta[1, 2]"]
    assert figure.axes[0].get_xlim()[0] < np.log(0.1)


def test_marginals_of_many_elements_are_cut_and_say_so():
    figure = plots.plot_marginals({"x": torch.randn(50, 100)})
    assert len(figure.axes) == 24
    assert "first 24 of 100" in figure.get_suptitle()


def test_pair_beside_its_reference():
    figure = plots.plot_pair(draws(), "theta[0, 1]", "log tau", draws(400))
    assert len(figure.axes) == 2
    assert figure.axes[0].get_xlabel() == "theta[0, 1]"
    points = figure.axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(points[:, 1], draws()["tau"].log().numpy(), rtol=1e-5)


def test_densities_in_panels():
    def normal(x):
        return -x.square().sum(-1) / 2

    figure = plots.plot_density_2d({"one": normal, "two": lambda x: normal(x - 1)}, points=41)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["one", "two"]
    shades = figure.axes[0].images[0].get_array()
    assert shades.argmax() == 41 * 41 // 2


def test_contours_hold_their_mass():
    from pyro_nfvi.plots._style import levels_holding

    grid = np.linspace(-5, 5, 401)
    density = np.exp(-(grid[:, None] ** 2 + grid**2) / 2)
    outer, inner = levels_holding(density, (0.9, 0.5))
    # A standard normal in the plane holds mass m above exp(-r^2/2) = 1 - m.
    assert outer == pytest.approx(0.1, abs=2e-3)
    assert inner == pytest.approx(0.5, abs=5e-3)


def test_wrong_names_are_told():
    with pytest.raises(OptionError, match="no draws of 'sigma'"):
        plots.plot_pair(draws(), "sigma", "mu")
    with pytest.raises(OptionError, match="name one element"):
        plots.plot_pair(draws(), "theta", "mu")
    with pytest.raises(OptionError, match="does not fit"):
        plots.plot_pair(draws(), "theta[5, 0]", "mu")
    with pytest.raises(OptionError, match="got int"):
        plots.plot_marginals(3)


def test_without_matplotlib_the_cure_is_named(monkeypatch):
    real = builtins.__import__

    def blocked(name, *rest, **options):
        if name.startswith("matplotlib"):
            raise ImportError("No module named 'matplotlib'")
        return real(name, *rest, **options)

    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(MissingPackageError, match="pip install matplotlib"):
        plots.plot_loss([1.0])
    monkeypatch.undo()
    import matplotlib.pyplot  # noqa: F401  # back for the other tests
