"""The map of noise to a product of Gaussian mixtures: densities, draws, states."""

import copy

import pytest
import torch
from catalog import mixture_blocks, whitened_mixture
from torch import distributions as td

from pyro_nfvi import FlowDensity
from pyro_nfvi.errors import ShapeError
from pyro_nfvi.flows._mixture_map import MixtureBlocks, MixtureMap
from pyro_nfvi.flows._whitened_affine import WhitenedAffine


def in_torch(blocks, y):
    """Log density of a product of mixtures, by torch's distributions."""
    total = torch.zeros(y.shape[:-1], dtype=torch.float64)
    for group in blocks:
        parts = td.MultivariateNormal(group.locs.double(), scale_tril=group.factors.double())
        mixture = td.MixtureSameFamily(td.Categorical(logits=group.logits.double()), parts)
        total = total + mixture.log_prob(y[..., group.positions]).sum(-1)
    return total


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_its_density_is_that_of_the_mixtures(dim):
    blocks = mixture_blocks(dim)
    density = FlowDensity(MixtureMap(blocks).double())
    y = 3 * torch.randn(50, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(density.log_prob(y), in_torch(blocks, y))
    z, log_q = density.rsample_and_log_prob(50)
    torch.testing.assert_close(log_q, in_torch(blocks, z))


def test_draws_are_distributed_as_the_mixture():
    blocks = mixture_blocks(2)
    noise = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(1))
    draws = MixtureMap(blocks)(noise)[0].double()[:, blocks[0].positions[0]]
    (group,) = blocks
    weights = torch.softmax(group.logits[0], -1).double()
    mean = (weights[:, None] * group.locs[0]).sum(0)
    away = group.locs[0] - mean
    covs = group.factors[0] @ group.factors[0].mT + away[:, :, None] * away[:, None]
    cov = (weights[:, None, None] * covs.double()).sum(0)
    # Each of five numbers within 5 standard errors: a false alarm in 3e6.
    error = (draws.mean(0) - mean).abs() / (cov.diagonal() / len(draws)).sqrt()
    assert float(error.max()) < 5
    assert (
        float((torch.cov(draws.T) - cov).abs().max()) < 5 * float(cov.max()) * (2 / 20_000) ** 0.5
    )


def test_modes_of_far_apart_spikes_have_their_weights():
    weights = torch.tensor([0.02, 0.9, 0.08])
    spikes = MixtureBlocks(
        torch.tensor([[0]]),
        weights.log()[None],
        torch.tensor([[[-1e4], [3.0], [1e4]]]),
        1e-3 * torch.ones(1, 3, 1, 1),
    )
    flow = MixtureMap([spikes]).double()
    grid = torch.special.ndtri((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000)
    y, ladj = flow(grid[:, None])
    near = (y - torch.tensor([-1e4, 3.0, 1e4])).abs().argmin(-1)
    assert (torch.bincount(near) / 1000).tolist() == pytest.approx(weights.tolist(), abs=1e-9)
    back, minus = flow.inverse(y)
    torch.testing.assert_close(back[:, 0], grid, atol=1e-5, rtol=0)
    torch.testing.assert_close(ladj, -minus, atol=1e-5, rtol=0)
    far = flow.inverse(torch.tensor([[5e4]]).double())[0]  # 4e7 sds beyond
    assert float(far) == pytest.approx(4e7, rel=1e-6)


def test_a_state_makes_the_same_map_and_takes_the_place_of_an_affine_one():
    flow = whitened_mixture(5)
    again = WhitenedAffine(torch.zeros(5), 1.0)
    again.load_state_dict(flow.state_dict())
    x = torch.randn(7, 5)
    assert torch.equal(flow(x)[0], again(x)[0])
    plain = WhitenedAffine(torch.ones(5), 2.0)
    again.load_state_dict(plain.state_dict())
    assert torch.equal(plain(x)[0], again(x)[0])
    again = copy.deepcopy(flow)
    again.set_fixed(torch.ones(5), 2.0 * torch.eye(5))
    assert torch.equal(plain(x)[0], again(x)[0])


def test_blocks_that_do_not_fit_are_refused():
    blocks = mixture_blocks(5)
    with pytest.raises(ShapeError, match="stands once"):
        MixtureMap([*blocks, blocks[0]])
    state = MixtureMap(blocks).state_dict()
    with pytest.raises(ShapeError, match="do not fit a vector of 4"):
        MixtureMap.from_state(state, torch.zeros(4))
    state["locs_0"] = state["locs_0"][:, :1]
    with pytest.raises(ShapeError, match="logits"):
        MixtureMap.from_state(state, torch.zeros(5))
