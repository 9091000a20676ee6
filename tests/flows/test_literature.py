"""Worked numbers of the literature, and densities against histograms of pushed samples."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Beta, Independent, TransformedDistribution

from pyro_nfvi import FlowDensity
from pyro_nfvi.flows import Flow, Planar, Radial

# Both layers on a 2-D standard normal: a bimodal ridge, and a hole around (1, 0).
PLANAR = {"w": [5.0, 0.0], "u": [1.0, 0.0], "b": 0.0}
RADIAL = {"z0": [1.0, 0.0], "alpha": 2.0, "beta": 5.0}


def planar(x):
    """The map and its log-determinant, written out from the paper."""
    t = 5 * x[:, 0]
    y = x + torch.stack([torch.tanh(t), torch.zeros_like(t)], -1)
    return y, torch.log(1 + 5 / torch.cosh(t) ** 2)


def radial(x):
    d = x - torch.tensor([1.0, 0.0], dtype=x.dtype)
    r = d.norm(dim=-1)
    h = 1 / (2 + r)
    det = (1 + 5 * h) * (1 + 5 * h - 5 * r * h**2)
    return x + 5 * h.unsqueeze(-1) * d, torch.log(det)


CASES = {
    "planar": (Planar.from_values(**PLANAR).double(), planar, [(-5.0, 5.0), (-4.5, 4.5)]),
    "radial": (Radial.from_values(**RADIAL).double(), radial, [(-10.0, 9.0), (-9.5, 9.5)]),
}


@pytest.mark.parametrize("name", CASES)
def test_layer_equals_the_formula_of_the_paper(name):
    flow, formula, _ = CASES[name]
    x = 2 * torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for got, expected in zip(flow(x), formula(x)):
        # from_values is stored in float32.
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_from_values_is_exact_in_float64():
    flow = Planar.from_values(
        torch.tensor([5.0, 0.0], dtype=torch.float64), torch.tensor([1.0, 0.0]).double(), 0.0
    )
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).unsqueeze(-1) * torch.ones(2)
    for got, expected in zip(flow(x), planar(x)):
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)
    flow = Radial.from_values(torch.tensor([1.0, 0.0], dtype=torch.float64), 2.0, 5.0)
    for got, expected in zip(flow(x), radial(x)):
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)


def chi_square_z(samples, log_prob, box, bins=24, inner=12) -> float:
    """Standard score of the chi-square of binned samples against the density (normal if true).

    Bins of the box, and one for all that lies outside; the expected counts integrate the density
    over each bin by the midpoint rule on inner x inner points.
    """
    edges = [torch.linspace(*side, bins + 1, dtype=torch.float64) for side in box]
    steps = [float(edge[1] - edge[0]) for edge in edges]
    ticks = [
        side[0] + step / inner * (torch.arange(bins * inner, dtype=torch.float64) + 0.5)
        for side, step in zip(box, steps)
    ]
    fine = log_prob(torch.cartesian_prod(*ticks)).exp().reshape(bins, inner, bins, inner)
    mass = (fine.mean((1, 3)) * steps[0] * steps[1]).reshape(-1)
    assert mass.sum() > 0.999
    counts = torch.histogramdd(samples, edges).hist.reshape(-1)
    counts = torch.cat([counts, (len(samples) - counts.sum()).reshape(1)])
    expected = len(samples) * torch.cat([mass, (1 - mass.sum()).clamp_min(0).reshape(1)])
    # Bins that expect fewer than 20 go together.
    rare = expected < 20
    counts = torch.cat([counts[~rare], counts[rare].sum().reshape(1)])
    expected = torch.cat([expected[~rare], expected[rare].sum().reshape(1)])
    k = len(expected) - 1
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    # Wilson and Hilferty: the cube root of chi-square / k is very nearly normal.
    return ((statistic / k) ** (1 / 3) - (1 - 2 / (9 * k))) / math.sqrt(2 / (9 * k))


def pushed(flow, n=200_000):
    generator = torch.Generator().manual_seed(20150521)
    noise = torch.randn(n, 2, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        return flow(noise)[0]


@pytest.mark.stat
@pytest.mark.parametrize("name", CASES)
def test_density_matches_histogram(name):
    flow, _, box = CASES[name]
    with torch.no_grad():
        z = chi_square_z(pushed(flow), FlowDensity(flow).log_prob, box)
    # One-sided at 4: false-alarm rate 3e-5 (and the seed is fixed).
    assert z < 4


@pytest.mark.stat
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("planar", Planar.from_values(w=[5.0, 0.0], u=[0.95, 0.0], b=0.0)),
        ("planar", Planar.from_values(w=[4.5, 0.0], u=[1.0, 0.0], b=0.0)),
        ("radial", Radial.from_values(z0=[1.0, 0.0], alpha=2.0, beta=4.8)),
        ("radial", Radial.from_values(z0=[0.9, 0.0], alpha=2.0, beta=5.0)),
    ],
)
def test_the_histogram_test_sees_a_density_that_is_slightly_wrong(name, wrong):
    flow, _, box = CASES[name]
    with torch.no_grad():
        z = chi_square_z(pushed(flow), FlowDensity(wrong.double()).log_prob, box)
    assert z > 8


class Exp(Flow):
    """y = exp(x), from the unit interval to [1, e]."""

    def forward(self, x, context=None):
        x, _ = self.enter(x, context)
        return x.exp(), x.sum(-1)

    def inverse(self, y, context=None):
        y, _ = self.enter(y, context)
        return y.log(), -y.log().sum(-1)


def test_change_of_variables_of_the_textbook():
    # p(x) = 2x on [0, 1] is Beta(2, 1); y = exp(x) has p(y) = 2 log(y) / y on [1, e].
    two, one = torch.tensor([2.0, 1.0], dtype=torch.float64)
    base = Independent(Beta(two.reshape(1), one.reshape(1)), 1)
    y = torch.linspace(1.01, math.e - 0.01, 50, dtype=torch.float64).unsqueeze(-1)
    expected = (2 * y.log() / y).squeeze(-1).log()

    transform = Exp(1).as_transform()
    density = TransformedDistribution(base, [transform])
    torch.testing.assert_close(density.log_prob(y), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        FlowDensity(Exp(1), base).log_prob(y), expected, rtol=1e-12, atol=1e-12
    )
    # log|dy/dx| at y = e^x is x, and minus that for the inverse.
    x = y.log()
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), x.squeeze(-1))
    torch.testing.assert_close(transform.inv.log_abs_det_jacobian(y, x), -x.squeeze(-1))
    assert density.event_shape == (1,)
    assert density.batch_shape == ()
    # The mean of y is 2: the integral of 2 log(y).
    draws = density.rsample((200_000,))
    assert draws.min() >= 1
    assert draws.max() <= math.e
    # sd of the mean 0.001; five of them: false-alarm rate 6e-7.
    assert abs(draws.mean().item() - 2) < 5e-3
