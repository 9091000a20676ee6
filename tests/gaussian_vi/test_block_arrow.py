"""Block-arrow Gaussians against dense algebra, quadrature and structures that do not hold."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, HalfNormal, Normal

from pyro_nfvi._gaussian_vi.block_arrow import find_arrow, fit_block_arrow, interacts
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi.flows._block_arrow import ArrowBlock, BlockArrow


def noise(seed=0):
    return torch.Generator().manual_seed(seed)


def zeros(*shape):
    return torch.zeros(*shape, dtype=torch.float64)


def nested_rows():
    """Two globals, 20 counties and 60 households of two numbers each."""
    county = torch.randint(0, 20, (60,), generator=noise())
    places = torch.randperm(142, generator=noise(1))
    none = torch.zeros(60, dtype=torch.long)
    return [
        ("", places[None, :2], {}),
        ("county", places[2:22, None], {"": none[:20]}),
        ("county/house", places[22:].view(60, 2), {"": none, "county": county}),
    ]


def conjugate(rows):
    """A Gaussian posterior of the nested rows."""
    (_, top, _), (_, middle, _), (_, below, above) = rows
    y = 3 * torch.randn(60, 2, generator=noise(2), dtype=torch.float64)

    def log_density(z):
        g, a, b = z[:, top[0]], z[:, middle[:, 0]], z[:, below]
        out = Normal(0.0, 5.0).log_prob(g).sum(-1) + Normal(g[:, :1], 1.0).log_prob(a).sum(-1)
        mean = a[:, above["county"], None] + g[:, None, 1:]
        out = (
            out
            + Normal(mean, 0.5).log_prob(b).sum((-1, -2))
            - 0.2 * (b[..., 0] * b[..., 1]).sum(-1)
        )
        return out + Normal(b, torch.tensor([0.7, 0.2])).log_prob(y).sum((-1, -2))

    return log_density


def test_a_nested_gaussian_is_exact_after_a_few_steps():
    rows = nested_rows()
    log_density, start = conjugate(rows), zeros(142)
    target = Target(log_density, start)
    arrow = find_arrow(target, start, start + 0.1, rows, generator=noise())
    assert [block.rows for block in arrow.blocks] == [1, 20, 60]
    before = target.num_rows
    found = fit_block_arrow(target, [(start + 5.0, start + 1.0)], arrow, generator=noise())
    hessian = torch.func.hessian(lambda z: log_density(z[None])[0])(found.loc)
    covariance = torch.linalg.inv(-hessian)
    torch.testing.assert_close(found.factor.variances, covariance.diagonal())
    assert float(target(found.loc[None])[1].abs().max()) < 1e-8
    assert found.bound_se < 1e-9
    # A handful of steps, since a width grows four times at most in one, and draws for bounds.
    assert target.num_rows - before < 6 * 8 * (1 + arrow.num_probes) + 400 + 1024
    z = found.points(torch.randn(3, 142, generator=noise(), dtype=torch.float64))
    evidence = log_density(z) - found.log_prob(z)
    torch.testing.assert_close(evidence, torch.full_like(evidence, found.bound))


def test_a_hierarchy_of_many_groups_is_close_to_its_marginal():
    # theta_r ~ N(mu, tau), y_r ~ N(theta_r, 0.4): the posterior of mu and tau by quadrature.
    groups = 2000
    y = 1 + math.sqrt(0.65) * torch.randn(groups, generator=noise(3), dtype=torch.float64)

    def log_density(z):
        mu, log_tau, theta = z[:, :1], z[:, 1:2], z[:, 2:]
        out = Normal(0.0, 5.0).log_prob(mu[:, 0]) + Normal(theta, 0.4).log_prob(y).sum(-1)
        out = out + (HalfNormal(2.0).log_prob(log_tau.exp()) + log_tau)[:, 0]
        return out + Normal(mu, log_tau.exp()).log_prob(theta).sum(-1)

    grid = torch.linspace(-2, 1, 1201, dtype=torch.float64)
    variance = 0.16 + (2 * grid).exp()
    precision = groups / variance + 1 / 25
    mean = y.sum() / variance / precision
    log_p = (
        -0.5 * groups * variance.log() - 0.5 * y.square().sum() / variance
        + 0.5 * precision * mean.square() - 0.5 * precision.log()
        + HalfNormal(2.0).log_prob(grid.exp()) + grid
    )  # fmt: skip
    weight = (log_p - log_p.logsumexp(0)).exp()
    centre = (weight * grid).sum()
    sd = (weight * (grid - centre).square()).sum().sqrt()
    evidence = log_p.logsumexp(0) + math.log(grid[1] - grid[0])
    evidence -= 0.5 * groups * math.log(2 * math.pi) + math.log(5.0)
    target = Target(log_density, y)
    arrow = BlockArrow.of(torch.arange(2), torch.arange(2, groups + 2)[:, None])
    start = zeros(groups + 2)
    found = fit_block_arrow(target, [(start, start + 0.1)], arrow, generator=noise())
    assert abs(float(found.loc[1] - centre)) < 0.1 * float(sd)
    assert abs(float(found.factor.variances[1].sqrt() / sd) - 1) < 0.1
    # The gap is that of a scale that is not normal: far below one nat for all groups together.
    assert 0 < float(evidence) - found.bound < 0.3
    assert target.num_rows < 10_000


def test_rows_that_interact_are_no_arrow():
    rows = [("", torch.tensor([[0]]), {}), ("t", torch.arange(1, 301)[:, None], {})]
    start = zeros(301)

    def walk(z):  # each row follows the one before
        return -0.5 * z[:, 0].square() - 0.5 * z[:, 1:].diff(dim=-1).square().sum(-1)

    def centred(z):  # rows relative to their own mean
        apart = z[:, 1:] - z[:, 1:].mean(-1, keepdim=True)
        return -0.5 * (apart - z[:, :1]).square().sum(-1) - 0.5 * z.square().sum(-1)

    for log_density in (walk, centred):
        target = Target(log_density, start)
        assert find_arrow(target, start, start + 0.1, rows, generator=noise()) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_items_beside_many_persons_join_the_globals(dtype):
    persons, items = 300, 10
    ability = torch.randn(persons, 1, generator=noise())
    right = (torch.rand(persons, items, generator=noise()) < torch.sigmoid(ability)).to(dtype)

    def log_density(z):
        theta, easy, steep = z[:, 1 : persons + 1], z[:, persons + 1 : -items], z[:, -items:]
        logits = steep.exp().unsqueeze(-2) * (theta.unsqueeze(-1) + easy.unsqueeze(-2))
        return (
            Bernoulli(logits=logits).log_prob(right).sum((-1, -2))
            - 0.5 * (theta - z[:, :1]).square().sum(-1)
            - 0.5 * z.square().sum(-1)
        )

    start = torch.zeros(1 + persons + 2 * items, dtype=dtype)
    places = torch.arange(len(start))
    rows = [
        ("", places[None, :1], {}),
        ("persons", places[1 : persons + 1, None], {}),
        ("items", places[persons + 1 :].view(2, items).T.contiguous(), {}),
    ]
    target = Target(log_density, start)
    arrow = find_arrow(target, start.double(), start.double() + 0.1, rows, generator=noise())
    assert [tuple(block.positions.shape) for block in arrow.blocks] == [(1, 21), (300, 1)]
    found = fit_block_arrow(target, [(start, start + 0.1)], arrow, generator=noise())
    log_w = found.log_weights(target, torch.randn(2000, len(start), generator=noise()).double())
    assert 0.5 * float(log_w.var()) < 0.02 * persons  # nats below the evidence, to second order


def test_crossed_plates_keep_the_larger_one():
    places = torch.arange(1 + 300 + 4 + 1200)
    person = torch.arange(300).repeat_interleave(4)
    item = torch.arange(4).repeat(300)
    rows = [
        ("", places[None, :1], {}),
        ("p", places[1:301, None], {}),
        ("i", places[301:305, None], {}),
        ("p/i", places[305:, None], {"p": person, "i": item}),
    ]

    def log_density(z):
        p, i, both = z[:, 1:301], z[:, 301:305], z[:, 305:]
        mean = p[:, person] + i[:, item]
        return -0.5 * (both - mean).square().sum(-1) - 0.5 * z.square().sum(-1)

    start = zeros(len(places))
    target = Target(log_density, start)
    arrow = find_arrow(target, start, start + 1.0, rows, generator=noise())
    assert [block.rows for block in arrow.blocks] == [1, 300, 1200]
    found = fit_block_arrow(target, [(start + 1, start + 1)], arrow, generator=noise())
    assert found.bound_se < 1e-9


def test_places_where_the_density_fails_are_left():
    def log_density(z):  # nothing to the left of -1, where a wide start has half of its draws
        out = -0.5 * (z[:, 1:] - z[:, :1]).square().sum(-1) / 0.01 - 0.5 * z[:, 0].square() / 0.01
        return torch.where((z > -1).all(-1), out, torch.nan)

    arrow = BlockArrow.of(torch.tensor([0]), torch.arange(1, 51)[:, None])
    start = zeros(51)
    target = Target(log_density, start)
    found = fit_block_arrow(target, [(start, start + 1.0)], arrow, generator=noise())
    torch.testing.assert_close(found.factor.variances[:2], torch.tensor([0.01, 0.02]).double())
    nowhere = Target(lambda z: torch.full_like(z[:, 0], torch.nan) + z.sum(-1), start)
    assert fit_block_arrow(nowhere, [(start, start + 1.0)], arrow, generator=noise()) is None
    assert interacts(nowhere, start, start + 1.0, arrow, generator=noise()) is None


def test_blocks_without_globals_are_rows_alone():
    arrow = BlockArrow.tree([ArrowBlock(torch.arange(20).view(10, 2))])
    curvature = torch.tensor([[2.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    start = zeros(20)

    def log_density(z):
        x = z.view(-1, 10, 2) - 3.0
        return -0.5 * torch.einsum("nri,ij,nrj->n", x, curvature, x)

    found = fit_block_arrow(Target(log_density, start), [(start, start + 1.0)], arrow)
    tril = found.factor.trils[0][4]
    torch.testing.assert_close(tril @ tril.T, torch.linalg.inv(curvature))
    torch.testing.assert_close(found.loc, start + 3.0)
