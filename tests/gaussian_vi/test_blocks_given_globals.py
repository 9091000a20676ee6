"""Blocks that are independent given globals: evidences, and the globals' marginal."""

import math

import pytest
import torch

from pyro_nfvi._gaussian_vi.blocks_given_globals import fit_given_globals
from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.mode_search import first_ends
from pyro_nfvi._gaussian_vi.multistart import fit_gaussian
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._random import stream
from pyro_nfvi.distributions import FlowDensity
from pyro_nfvi.flows._mixture_map import MixtureMap

Y = torch.tensor([0.4, 1.1, 1.6, 0.9, 2.1, 1.3], dtype=torch.float64)
NOISE = 0.2


def normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - math.log(scale * math.sqrt(2 * math.pi))


def signs_given_mean(z):
    """The mean in the third place, and six values known up to their signs."""
    mean = z[..., 2]
    rest = torch.cat([z[..., :2], z[..., 3:]], -1)
    each = normal(rest, mean.unsqueeze(-1), 1.0) + normal(rest.abs(), Y.to(z), NOISE)
    return normal(mean, 0.0, 2.0) + each.sum(-1)


def product_of(log_density, dim, seed=0):
    noise = stream(seed, "globals")
    target = Target(log_density, torch.zeros(dim, dtype=torch.float64))

    def more(num):
        return 2 * torch.randn(num, dim, generator=noise, dtype=torch.float64)

    found = fit_gaussian(target, Normals.around(more(4), 0.1), generator=noise)
    points = more(96)
    ends = first_ends(target, found, points).ends
    return fit_given_globals(target, found, points, ends, more=more, generator=noise)


def test_signs_given_a_mean_have_its_marginal_and_their_evidence():
    product = product_of(signs_given_mean, 7)
    assert product.given.positions.tolist() == [2]
    assert product.log_modes == pytest.approx(6 * math.log(2), abs=math.log(4) + 0.1)
    with torch.no_grad():
        z, log_q = FlowDensity(MixtureMap(product.groups())).rsample_and_log_prob(
            8000, generator=stream(1, "draws")
        )
    log_w = signs_given_mean(z) - log_q
    means = torch.linspace(-7, 7, 1401, dtype=torch.float64)
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    log_p = normal(means, 0.0, 2.0)
    for one in Y:
        each = normal(grid, means[:, None], 1.0) + normal(grid.abs(), one, NOISE)
        log_p = log_p + torch.logsumexp(each, -1) + math.log(16 / 4000)
    evidence = float(torch.logsumexp(log_p, 0)) + math.log(14 / 1400)
    assert float(torch.logsumexp(log_w, 0)) - math.log(8000) == pytest.approx(evidence, abs=0.02)
    assert float(log_w.std()) < 0.3
    weights = log_p.softmax(0)
    sd = float((weights * means.square()).sum().sqrt())
    # Symmetric: a mean of 0. Five standard errors of mean and sd.
    assert abs(float(z[:, 2].mean())) < 5 * sd / math.sqrt(8000)
    assert float(z[:, 2].std()) == pytest.approx(sd, rel=0.05)


def test_latents_without_globals_that_part_them_are_left_alone():
    def chain(z):
        return -(z**4).sum(-1) + 6 * (z**2).sum(-1) - (z[..., 1:] - z[..., :-1]).square().sum(-1)

    assert product_of(chain, 30) is None

    def everything(z):
        return -(z**4).sum(-1) + 6 * (z**2).sum(-1) - 0.1 * z.sum(-1).square()

    assert product_of(everything, 12) is None


def test_a_hierarchy_of_one_mode_is_left_alone():
    def hierarchy(z):
        return normal(z[..., 0], 0.0, 1.0) + normal(z[..., 1:], z[..., :1], 0.5).sum(-1)

    assert product_of(hierarchy, 6) is None
