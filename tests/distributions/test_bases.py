"""Learnable bases: exact densities, draws that follow them, gradients where promised."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from torch.distributions import Independent, Multinomial, MultivariateNormal, Normal
from torch.distributions import StudentT as TorchStudentT

from pyro_nfvi import FlowDensity
from pyro_nfvi.distributions import (
    DiagonalNormal,
    FullRankNormal,
    GaussianMixture,
    Logistic,
    StudentT,
)
from pyro_nfvi.errors import OptionError, ShapeError
from pyro_nfvi.flows import make_flow
from pyro_nfvi.testing._case import perturb

BASES = {
    "normal": DiagonalNormal,
    "full": FullRankNormal,
    "logistic": Logistic,
    "student": lambda dim: StudentT(dim, df=4.0),
    "mixture": lambda dim: GaussianMixture(dim, 3),
}


def far(name, dim, size=0.5):
    return perturb(BASES[name](dim).double(), size, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", BASES)
def test_density_integrates_to_one(name):
    base = far(name, 2)
    # Warped, so that the tails of a Student t are reached.
    t = torch.linspace(-9, 9, 801, dtype=torch.float64)
    axis, weight = t.sinh(), t.cosh() * (t[1] - t[0])
    grid = torch.cartesian_prod(axis, axis)
    mass = (base.log_prob(grid).exp() * torch.cartesian_prod(weight, weight).prod(-1)).sum()
    assert mass.item() == pytest.approx(1, abs=1e-3)


@pytest.mark.stat
@pytest.mark.parametrize("name", BASES)
def test_draws_follow_the_density(name):
    base = far(name, 1)
    n = 20_000
    draws = base.sample((n,), generator=torch.Generator().manual_seed(0)).squeeze(-1)
    t = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    mass = base.log_prob(t.sinh().unsqueeze(-1)).exp() * t.cosh() * (t[1] - t[0])
    cdf = mass.cumsum(0).detach()
    at = torch.searchsorted(t.sinh(), draws.sort()[0]).clamp_max(20_000)
    distance = (cdf[at] - (torch.arange(n) + 0.5) / n).abs().max().item()
    # Kolmogorov and Smirnov: 2.5 / sqrt(n) is passed by chance once in 130,000.
    assert distance < 2.5 / math.sqrt(n)


def test_densities_are_those_of_torch():
    x = torch.randn(7, 3, dtype=torch.float64)
    full = far("full", 3)
    expected = MultivariateNormal(full.loc, scale_tril=full.scale_tril).log_prob(x)
    torch.testing.assert_close(full.log_prob(x), expected)
    student = StudentT(3, df=[1.5, 3.0, 200.0]).double()
    expected = TorchStudentT(student.df).log_prob(x).sum(-1)
    torch.testing.assert_close(student.log_prob(x), expected)
    normal = DiagonalNormal(3)
    torch.testing.assert_close(
        normal.log_prob(x.float()), Normal(0.0, 1.0).log_prob(x.float()).sum(-1)
    )
    logistic = Logistic(3).double()
    torch.testing.assert_close(
        logistic.log_prob(x), (torch.sigmoid(x) * torch.sigmoid(-x)).log().sum(-1)
    )


@pytest.mark.parametrize("name", BASES)
def test_tails_are_finite_in_float32(name):
    base = BASES[name](2)
    x = torch.tensor([[0.0, 0.0], [1e4, -1e4]], requires_grad=True)
    log_prob = base.log_prob(x)
    assert log_prob.isfinite().all()
    for gradient in torch.autograd.grad(log_prob.sum(), [x, *base.parameters()]):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", BASES)
def test_generator_leaves_the_global_state_alone(name):
    base, state = BASES[name](2), torch.get_rng_state()
    one, two = (base.rsample((3,), generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(state, torch.get_rng_state())
    assert base.rsample().shape == (2,)
    assert base.rsample(4).shape == (4, 2)
    assert base.rsample((0, 3)).shape == (0, 3, 2)


@pytest.mark.parametrize("name", BASES)
def test_flow_density_takes_it(name):
    base = far(name, 3).float()
    density = FlowDensity(perturb(make_flow("realnvp*2", 3), 0.5), base)
    assert {id(p) for p in base.parameters()} <= {id(p) for p in density.parameters()}
    generator = torch.Generator().manual_seed(0)
    z, log_q = density.rsample_and_log_prob((4, 5), generator=generator)
    assert z.shape == (4, 5, 3)
    torch.testing.assert_close(density.log_prob(z), log_q, rtol=1e-3, atol=1e-3)
    assert density.double().sample_base(2).dtype == torch.float64


@pytest.mark.parametrize("name", BASES)
def test_score_is_that_of_the_density(name):
    density = FlowDensity(perturb(make_flow("iaf*1", 2), 0.5), far(name, 2)).double()
    z, _, score = density.push_with_score(density.sample_base(6))
    point = z.detach().requires_grad_()
    (expected,) = torch.autograd.grad(density.log_prob(point).sum(), point)
    torch.testing.assert_close(score, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", BASES)
def test_draws_carry_gradients_as_promised(name):
    base = BASES[name](2)
    drawn = base.rsample((50,), generator=torch.Generator().manual_seed(0))
    found = torch.autograd.grad(drawn.square().sum(), list(base.parameters()), allow_unused=True)
    without = [n for (n, _), g in zip(base.named_parameters(), found) if g is None]
    assert without == (["logits"] if name == "mixture" else [])


def test_likelihood_trains_the_weights_of_a_mixture():
    torch.manual_seed(0)
    x = torch.cat([-3 + 0.5 * torch.randn(300, 1), 3 + 0.5 * torch.randn(900, 1)])
    base = GaussianMixture(1, 2)
    with torch.no_grad():
        base.loc.copy_(torch.tensor([[-1.0], [1.0]]))
    density = FlowDensity(make_flow("affine", 1), base)
    density.fit(x, seed=0, progress=False, max_steps=400, lr=0.03)
    assert base.weights.detach().tolist() == pytest.approx([0.25, 0.75], abs=0.03)


def test_likelihood_finds_heavy_tails():
    torch.manual_seed(0)
    x = torch.stack([TorchStudentT(2.0).sample((4000,)), torch.randn(4000)], -1)
    base = StudentT(2, df=5.0)
    FlowDensity(make_flow("affine", 2), base).fit(x, seed=0, progress=False, max_steps=600, lr=0.03)
    heavy, light = base.df.detach().tolist()
    assert 1.5 < heavy < 2.6
    assert light > 6


@pytest.mark.parametrize(
    "make",
    [
        lambda: DiagonalNormal(0),
        lambda: Logistic(True),
        lambda: StudentT(2, df=1.0),
        lambda: StudentT(2, df=[3.0, 3.0, 3.0]),
        lambda: GaussianMixture(2, 0),
        lambda: FlowDensity(make_flow("affine", 3), DiagonalNormal(2)),
        lambda: FlowDensity("iaf*1"),
        lambda: FlowDensity(make_flow("affine", 3), "normal"),
        lambda: FlowDensity(
            make_flow("affine", 3), Independent(Normal(torch.zeros(5, 3), torch.ones(5, 3)), 1)
        ),
        lambda: FlowDensity(make_flow("affine", 3), Multinomial(2, torch.ones(3))),
        lambda: StudentT(1, df=float("inf")),
        lambda: GaussianMixture(2, 2, spread=-1.0),
    ],
)
def test_mistakes_are_named(make):
    with pytest.raises(OptionError, match="needs"):
        make()


@pytest.mark.parametrize("base", [DiagonalNormal(3), StudentT(3), Logistic(3), FullRankNormal(3)])
@pytest.mark.parametrize("value", [torch.zeros(5, 1), torch.zeros(()), torch.zeros(2), [0.0] * 3])
def test_a_value_of_another_width_does_not_broadcast(base, value):
    with pytest.raises(ShapeError, match=r"needs values \(\*b, 3\)"):
        base.log_prob(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_degrees_of_freedom_are_a_normal(dtype):
    x = torch.linspace(-4, 4, 9, dtype=dtype).unsqueeze(-1)
    normal = DiagonalNormal(1).to(dtype).log_prob(x)
    for df in (1e6, 1e8, 1e12, 1e30):
        found = StudentT(1, df=df).to(dtype).log_prob(x)
        torch.testing.assert_close(found, normal, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("df", [1.5, 10.0, 49.0, 51.0, 1e3])
def test_student_is_that_of_scipy(df):
    x = torch.linspace(-9, 9, 7, dtype=torch.float64).unsqueeze(-1)
    base = StudentT(1, df=df).double()
    expected = torch.tensor(scipy.stats.t.logpdf(x, base.df.item())).squeeze(-1)
    torch.testing.assert_close(base.log_prob(x), expected, rtol=1e-12, atol=1e-12)
