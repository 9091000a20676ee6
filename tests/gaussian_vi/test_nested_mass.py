"""One mode inside another is found by its mass, whatever the density between them does."""

import math

import pytest
import torch

from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.mode_proposals import Proposals
from pyro_nfvi._gaussian_vi.mode_search import Modes
from pyro_nfvi._gaussian_vi.multistart import fit_gaussian
from pyro_nfvi._gaussian_vi.nested_mass import add_nested, narrow, outside_of
from pyro_nfvi._gaussian_vi.target import Target

LIKE = torch.zeros(1, dtype=torch.float64)


def mixture(weights, locs, sds, dim):
    """Log density of round Gaussians, exact, and the Gaussians."""
    locs = torch.tensor(locs, dtype=torch.float64).unsqueeze(-1).expand(len(locs), dim)
    parts = Normals.around(locs, torch.tensor(sds, dtype=torch.float64))
    log_w = torch.tensor(weights, dtype=torch.float64).log()
    return Target(lambda z: torch.logsumexp(parts.log_prob(z) + log_w, -1), LIKE), parts


def alone(normals):
    return Modes(normals, torch.ones(1, dtype=torch.float64), torch.tensor([3]), 12)


CASES = {
    f"{dim}d, {share:g} in a spike of {sd:g} at {loc:g}": (dim, share, sd, loc)
    for dim, sd in ((1, 0.01), (2, 0.02), (5, 0.02), (10, 0.1), (30, 0.2))
    for share in (0.05, 0.5, 0.95)
    for loc in (0.0, 1.0)
}


#: Not those that the slab's own draws show: a light and low spike in one dimension.
BOTH = [(n, f) for n in CASES for f in ("spike", "slab") if not n.startswith("1d, 0.05")]


@pytest.mark.parametrize(("name", "first"), BOTH)
def test_the_other_width_is_found_with_its_weight(name, first):
    """Weights within 0.02: 4 standard errors of 1000 draws that are weighed by mixture weights."""
    dim, share, sd, loc = CASES[name]
    target, parts = mixture([1 - share, share], [0.0, loc], [1.0, sd], dim)
    known = parts.take(1 if first == "spike" else 0)
    where = Proposals.of(known) + narrow(target, parts.take(0), parts.loc[1])
    where = where + Proposals.of(Normals.around(torch.zeros(1, dim), 1.0), 3.0)
    generator = torch.Generator().manual_seed(0)
    modes, more = add_nested(target, alone(known), where, generator=generator)
    assert len(modes) == 2
    assert len(more) > len(where)
    spike = int(modes.normals.scales.log().sum(-1).argmin())
    assert float(modes.weights[spike]) == pytest.approx(share, abs=0.02)
    assert float(modes.normals.loc[spike].mean()) == pytest.approx(loc, abs=0.1 * sd * 3)
    assert int(modes.hits.min()) > 0


def test_three_scales():
    target, parts = mixture([0.4, 0.3, 0.3], [0.0, 0.3, 0.3], [2.0, 0.2, 0.01], 3)
    where = Proposals.of(parts)
    generator = torch.Generator().manual_seed(1)
    modes, _ = add_nested(target, alone(parts.take(1)), where, generator=generator)
    assert len(modes) == 3
    assert sorted(modes.weights.tolist()) == pytest.approx([0.3, 0.3, 0.4], abs=0.03)


@pytest.mark.parametrize("shape", ["Gaussian", "Student t", "banana", "funnel", "skewed"])
def test_one_mode_stays_one(shape):
    """What one flow takes as it is, is no second mode: tails, bends, and a funnel's neck."""

    def log_density(z):
        x, y = z[..., 0], z[..., 1]
        return {
            "Gaussian": lambda: -0.5 * (x**2 + y**2),
            "Student t": lambda: -2.5 * torch.log1p((x**2 + y**2) / 3),
            "banana": lambda: -0.5 * (x**2 / 4 + (y - 0.5 * x**2 + 2) ** 2),
            "funnel": lambda: -0.5 * (x**2 / 2.25 + y**2 * torch.exp(-x) + x),
            "skewed": lambda: 2 * x - x.exp() - 0.5 * y**2,
        }[shape]()

    target = Target(log_density, torch.zeros(2, dtype=torch.float64))
    generator = torch.Generator().manual_seed(2)
    found = fit_gaussian(target, Normals.around(torch.zeros(2, 2), 1.0), generator=generator)
    best = Normals(found.loc[None], found.factor[None])
    where = Proposals.of(found.starts) + narrow(target, best, found.loc, 60)
    for reach in (3.0, 10.0):
        where = where + Proposals.of(Normals(best.loc, reach * best.factor), 3.0)
    modes, _ = add_nested(target, alone(best), where, generator=generator)
    assert len(modes) == 1


def test_weights_of_the_balance_heuristic_integrate():
    """The mean weight is the evidence, whatever the proposals: within 4 standard errors."""
    target, parts = mixture([0.5, 0.5], [0.0, 1.0], [1.0, 0.05], 3)
    where = Proposals.of(parts) + Proposals.of(Normals.around(torch.ones(1, 3), 2.0), 3.0)
    generator = torch.Generator().manual_seed(3)
    own = parts.take(0).points(parts.take(0).noise(1000, generator))[0]
    points = torch.cat([own, where.draw(500, generator)])
    log_p, log_q = target(points)[0], parts.take(0).log_prob(points)[:, 0]
    log_w, outside = outside_of(log_p, log_q, where.log_prob(points), 1000, 0.0)
    weight = log_w.exp()
    error = float(weight.std()) / math.sqrt(len(weight))
    assert float(weight.mean()) == pytest.approx(1.0, abs=4 * error)
    share = float((weight * outside).sum() / weight.sum())
    assert share == pytest.approx(0.5, abs=0.05)


def test_student_proposals_are_a_density():
    """Sums to one on a grid, and agrees with PyTorch's own in one dimension."""
    where = Proposals.of(Normals.around(torch.tensor([[1.0]]), 2.0), 3.0)
    line = torch.linspace(-50, 50, 1001, dtype=torch.float64)
    expected = torch.distributions.StudentT(3.0, 1.0, 2.0).log_prob(line)
    torch.testing.assert_close(where.log_prob(line[:, None]), expected)
    both = where + Proposals.of(Normals.around(torch.tensor([[-3.0]]), 0.5))
    total = float(both.log_prob(line[:, None]).exp().sum()) * 0.1
    assert total == pytest.approx(1.0, abs=1e-3)
