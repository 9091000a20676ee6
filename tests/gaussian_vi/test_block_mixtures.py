"""Products of mixtures: masses of modes, evidences and what is not met."""

import math

import pytest
import torch

from pyro_nfvi._gaussian_vi.block_mixtures import fit_mode_product
from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.learnt_mixture import learn_mixture
from pyro_nfvi._gaussian_vi.mode_search import first_ends
from pyro_nfvi._gaussian_vi.multistart import fit_gaussian
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._random import stream
from pyro_nfvi.distributions import FlowDensity
from pyro_nfvi.flows._mixture_map import MixtureMap


def product_of(log_density, dim, blocks, seed=0, spread=3.0):
    noise = stream(seed, "products")
    target = Target(log_density, torch.zeros(dim, dtype=torch.float64))

    def more(num):
        return spread * torch.randn(num, dim, generator=noise, dtype=torch.float64)

    found = fit_gaussian(target, Normals.around(more(4), 0.1), generator=noise)
    first = first_ends(target, found, more(64))
    return fit_mode_product(
        target, found, blocks, first.ends, first.tops, more=more, generator=noise
    )


def draws_of(product, num=4000):
    with torch.no_grad():
        return FlowDensity(MixtureMap(product.groups())).rsample_and_log_prob(
            num, generator=stream(1, "draws")
        )


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_product_of_wells_has_all_modes_with_their_masses(seed):
    def log_density(z):
        return (-(z**4) + 6 * z**2 + 0.5 * z).sum(-1)

    product = product_of(log_density, 10, [torch.tensor([i]) for i in range(10)], seed)
    assert product.log_modes == pytest.approx(10 * math.log(2))
    assert product.unseen.share == 0
    z, log_q = draws_of(product)
    log_w = log_density(z) - log_q
    grid = torch.linspace(-6, 6, 20001, dtype=torch.float64)
    each = -(grid**4) + 6 * grid**2 + 0.5 * grid
    evidence = float(torch.logsumexp(each, 0)) + math.log(12 / 20000)
    assert float(torch.logsumexp(log_w, 0)) - math.log(len(z)) == pytest.approx(
        10 * evidence, abs=0.02
    )
    right = float(each.softmax(0)[grid > 0].sum())
    # 0.03 is five standard errors of a share of 4000 draws: a false alarm in 2e5.
    assert ((z > 0).double().mean(0) - right).abs().max() < 0.03
    assert float(torch.logsumexp(log_w, 0)) - math.log(len(z)) - float(log_w.mean()) < 0.05


def test_blocks_of_pairs_and_a_wide_block_of_one_mode():
    mix = torch.tensor([[2.0, 0.7], [0.7, 1.0]], dtype=torch.float64)

    blocks = [torch.tensor([0, 1]), torch.arange(2, 7), torch.tensor([7])]

    def log_density(z):
        pair = z[..., :2]
        modes = torch.stack([-0.5 * ((pair - m) @ mix * (pair - m)).sum(-1) for m in (-4.0, 4.0)])
        weights = torch.tensor([0.2, 0.8]).log().view(2, *[1] * pair[..., 0].dim())
        bent = -0.5 * z[..., 2].square() - (z[..., 3:7] - 0.3 * z[..., 2:3]).square().sum(-1)
        wells = torch.logaddexp(-0.5 * (z[..., 7] - 5) ** 2, -0.5 * (z[..., 7] + 5) ** 2)
        return torch.logsumexp(modes + weights, 0) + bent + wells

    product = product_of(log_density, 8, blocks)
    assert [block.num_modes for block in product.blocks] == [2, 1, 2]
    z, log_q = draws_of(product)
    log_w = log_density(z) - log_q
    assert float(log_w.std()) < 0.15
    assert float((z[:, 0] > 0).double().mean()) == pytest.approx(0.8, abs=0.03)


def test_one_multimodal_block_among_others_is_left_to_a_mixture_of_all():
    def log_density(z):
        return -(z[..., 0] ** 4) + 6 * z[..., 0] ** 2 - z[..., 1:].square().sum(-1)

    assert product_of(log_density, 4, [torch.tensor([i]) for i in range(4)]) is None


def test_a_mixture_that_starts_at_one_of_its_modes_finds_a_near_one_and_its_shape():
    def log_density(z):
        x, y = z[..., 0], z[..., 1]
        return torch.logaddexp(
            -0.5 * (x**2 + (y - 0.5 * x**2) ** 2 / 0.3), -0.5 * ((x - 4) ** 2 + (y + 3) ** 2) - 1
        )

    start = Normals.around(torch.zeros(1, 2), 1.0)
    found = learn_mixture(log_density, torch.zeros(1), start, 1e-3, stream(0, "one"))
    assert found.gap < 0.05
    near = (found.locs - torch.tensor([4.0, -3.0])).norm(dim=-1) < 1.5
    mass = math.exp(-1) / (math.sqrt(0.3) + math.exp(-1))
    assert float(found.log_weights.exp()[near].sum()) == pytest.approx(mass, abs=0.03)


@pytest.mark.parametrize("seed", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2))])
def test_forty_gaussians_have_their_weights(seed):
    generator = torch.Generator().manual_seed(seed)
    places = 80 * torch.rand(40, 2, generator=generator, dtype=torch.float64) - 40
    scale = math.log1p(math.e)

    def log_density(z):
        return torch.logsumexp(-0.5 * ((z.unsqueeze(-2) - places) / scale).square().sum(-1), -1)

    product = product_of(log_density, 2, [torch.arange(2)], seed)
    z, log_q = draws_of(product, 20_000)
    near = (z.unsqueeze(1) - places).square().sum(-1).argmin(-1)
    truth = places.unsqueeze(1) + scale * torch.randn(
        40, 2000, 2, generator=generator, dtype=torch.float64
    )
    true = (truth.flatten(0, 1).unsqueeze(1) - places).square().sum(-1).argmin(-1)
    shares = torch.bincount(near, minlength=40) / len(near)
    # Both are counted, with a standard error of 0.0012 together: a false alarm in 1e14.
    assert float((shares - torch.bincount(true, minlength=40) / len(true)).abs().max()) < 0.01
    assert float((log_density(z) - log_q).std()) < 0.1
