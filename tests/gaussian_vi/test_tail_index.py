"""Tail indices from the density alone, against laws whose index is known."""

import math

import pytest
import torch

from pyro_nfvi._gaussian_vi.tail_index import tail_indices, tail_moments
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._random import stream

DOUBLE = torch.float64


def found_for(log_density, draws, size_of=lambda z: z, dtype=DOUBLE, **options):
    target = Target(log_density, torch.zeros(1, dtype=dtype))
    return tail_indices(target, draws, size_of, **options)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("freedom", [0.7, 2.0, 5.0, 25.0])
@pytest.mark.parametrize("dim", [1, 3, 10, pytest.param(50, marks=pytest.mark.slow)])
def test_multivariate_student_t(dim, freedom, dtype):
    """Correlated, off centre, and from the draws of a Gaussian, which has no such tails."""
    matrix = torch.full((dim, dim), 0.5, dtype=dtype) + 0.5 * torch.eye(dim, dtype=dtype)
    tril = torch.linalg.cholesky(matrix)

    def log_density(z):
        y = torch.linalg.solve_triangular(tril, (z - 3.0).T, upper=False)
        return -0.5 * (freedom + dim) * torch.log1p(y.square().sum(0) / freedom)

    draws = 3.0 + torch.randn(2000, dim, generator=stream(0, "t"), dtype=DOUBLE) @ tril.double().T
    found = found_for(log_density, draws, dtype=dtype, most_rows=10_000)
    assert found.shape == (dim, 2)
    assert (found / freedom - 1).abs().max() < 0.05


LIGHT = {
    "normal": lambda z: -0.5 * z.square().sum(-1),
    "laplace": lambda z: -z.abs().sum(-1),
    "logistic": lambda z: -2 * torch.nn.functional.softplus(z).sum(-1) + z.sum(-1),
}


@pytest.mark.parametrize("name", LIGHT)
def test_light_tails_have_no_index(name):
    draws = torch.randn(2000, 3, generator=stream(0, "light"), dtype=DOUBLE)
    assert found_for(LIGHT[name], draws).isinf().all()


POSITIVE = {  # log density of u = log x, index of the upper tail
    "pareto": (lambda u: torch.where(u > 0, -1.5 * u, -math.inf), 1.5),
    "inverse gamma": (lambda u: -2.5 * u - torch.exp(-u), 2.5),
    "half Cauchy": (lambda u: u - torch.log1p(torch.exp(2 * u)), 1.0),
    "lognormal": (lambda u: -0.5 * u.square(), math.inf),
    "gamma": (lambda u: 0.3 * u - torch.exp(u), math.inf),
}


@pytest.mark.parametrize("name", POSITIVE)
def test_numbers_of_a_logarithm(name):
    """The index is that of x, and the lower end at 0 is no tail."""
    log_density, index = POSITIVE[name]
    draws = torch.randn(2000, 1, generator=stream(0, "log"), dtype=DOUBLE).abs()
    found = found_for(lambda z: log_density(z).sum(-1), draws, torch.exp)[0]
    assert found[0] == math.inf
    assert found[1] == index or abs(found[1] / index - 1) < 0.05


def test_a_scale_makes_the_tail_of_what_it_scales():
    """With x ~ N(0, s) and s half-Cauchy, x has index 1: its conditional is Gaussian throughout."""

    def log_density(z):
        u, x = z.unbind(-1)
        return u - torch.log1p(torch.exp(2 * u)) - u - 0.5 * (x * torch.exp(-u)).square()

    draws = torch.randn(2000, 2, generator=stream(0, "scale"), dtype=DOUBLE)
    seen = lambda z: torch.stack([z[:, 0].exp(), z[:, 1]], -1)  # noqa: E731
    found = found_for(log_density, draws, seen)
    assert (found[1] - 1).abs().max() < 0.1
    assert abs(found[0, 1] - 1) < 0.1


@pytest.mark.parametrize(("weight", "told"), [(0.1, True), (1e-9, False)])
def test_a_power_law_counts_where_it_has_mass(weight, told):
    """A normal body with a Cauchy tail of little weight, as an all but excluded ridge has it."""

    def log_density(z):
        body, tail = -0.5 * z.square(), -torch.log1p(z.square()) - 1.0
        return torch.logaddexp(body, math.log(weight) + tail).sum(-1)

    draws = torch.randn(2000, 1, generator=stream(0, "faint"), dtype=DOUBLE)
    found = found_for(log_density, draws)
    assert bool((found < 1.05).all()) == told


def test_draws_that_stop_short_of_a_bent_ridge_are_seen():
    """A banana, its true draws, and those of them that end at two sds: the rest is 5 %."""

    def log_density(z):
        return -0.5 * (z[:, 0] / 2).square() - 0.5 * ((z[:, 1] - z[:, 0].square()) / 0.5).square()

    normal = torch.randn(8000, 2, generator=stream(0, "banana"), dtype=DOUBLE)
    x = 2 * normal[:, 0]
    right = torch.stack([x, x.square() + 0.5 * normal[:, 1]], -1)
    target = Target(log_density, torch.zeros(1, dtype=DOUBLE))
    ratios = [tail_moments(target, z, lambda z: z) for z in (right, right[x.abs() < 4])]
    assert (ratios[0] - 1).abs().max() < 0.08
    assert ratios[1][1] > 1.15


def test_bounded_numbers_have_no_tail_and_what_is_left_out_is_told():
    draws = torch.randn(500, 4, generator=stream(0, "bounded"), dtype=DOUBLE)
    cauchy = lambda z: -torch.log1p(z.square()).sum(-1)  # noqa: E731
    assert found_for(cauchy, draws, torch.sigmoid).isinf().all()
    few = found_for(cauchy, draws, most_rows=24)
    assert few.isnan().sum() == 5
    assert (few[~few.isnan()] - 1).abs().max() < 0.05


def test_where_the_density_fails_nothing_is_claimed():
    draws = torch.randn(500, 1, generator=stream(0, "fails"), dtype=DOUBLE)
    broken = lambda z: torch.where(z.abs() > 5, torch.nan, -z.abs().log1p()).sum(-1)  # noqa: E731
    assert found_for(broken, draws).isnan().all()


def test_where_no_ray_can_be_followed_no_ratio_is_given():
    draws = torch.randn(500, 2, generator=stream(0, "none"), dtype=DOUBLE)
    broken = lambda z: torch.where(z.abs() > 0.5, torch.nan, -z.square()).sum(-1)  # noqa: E731
    target = Target(broken, torch.zeros(1, dtype=DOUBLE))
    assert tail_moments(target, draws, lambda z: z).isnan().all()
