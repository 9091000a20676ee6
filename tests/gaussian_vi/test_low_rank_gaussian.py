"""Directions of a Gaussian with many coordinates: found where they are, and left out where not."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nfvi import NFVI, AutoFlow
from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.low_rank_gaussian import add_directions
from pyro_nfvi._gaussian_vi.multistart import fit_gaussian
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi.errors import OptionError

D = 300


def spiked(variances, seed=0):
    """A Gaussian with these variances along as many random directions, in mixed units."""
    gen = torch.Generator().manual_seed(seed)
    along = torch.linalg.qr(torch.randn(D, len(variances), generator=gen).double()).Q
    units = 10 ** torch.linspace(-2, 2, D).double()
    loss = 1 - 1 / torch.tensor(variances).double()

    def log_density(z):
        x = (z - 1) / units
        return -0.5 * x.square().sum(-1) + 0.5 * ((x @ along).square() * loss).sum(-1)

    cov = torch.eye(D) + (along * (torch.tensor(variances).double() - 1)) @ along.T
    return Target(log_density, units), units[:, None] * cov * units


def test_spikes_of_a_gaussian_are_found():
    target, cov = spiked([1000.0, 30.0, 0.01])
    gen = torch.Generator().manual_seed(0)
    best = fit_gaussian(
        target, Normals.around(torch.zeros(1, D), 1.0, diagonal=True), generator=gen
    )
    found = add_directions(target, best.loc, best.factor, generator=gen)
    assert found is not None
    exact = 0.5 * (D * torch.log(torch.tensor(2 * torch.pi)).double() + torch.logdet(cov))
    # What is left is that the units of the diagonal are those of the narrow direction too.
    assert float(exact) - found.bound < 0.3 * (float(exact) - best.bound)


def test_nothing_is_added_to_a_diagonal_one():
    target, _ = spiked([1.0])
    found = add_directions(target, torch.ones(D), 10 ** torch.linspace(-2, 2, D).double())
    assert found is None


def test_only_wide_guides_take_directions():
    target, cov = spiked([1e4])
    found = add_directions(target, torch.ones(D).double(), cov.diagonal().rsqrt().reciprocal())

    def model():
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    guide = AutoFlow(model, None, outer="whitened")
    guide.setup()
    with pytest.raises(OptionError, match="more than 256 latents"):
        guide.start_along(found)


@pytest.mark.slow
def test_a_regression_of_many_latents_is_right():
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, generator=gen)
    wide = torch.randn(4, D, generator=gen) / 2
    design = x @ wide + 0.1 * torch.randn(200, D, generator=gen)
    y = design @ torch.randn(D, generator=gen) + torch.randn(200, generator=gen)

    def model():
        beta = pyro.sample("beta", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        # Columns that go together: four directions are known well, the rest hardly at all.
        pyro.sample("y", dist.Normal(beta @ design.T, 1.0).to_event(1), obs=y)

    cov = torch.linalg.inv(torch.eye(D).double() + design.double().T @ design.double())
    mean = cov @ design.double().T @ y.double()
    fit = NFVI(model, seed=0, progress=False, max_steps=600).run()
    draws = fit.sample(4000)["beta"].double()
    sds = cov.diagonal().sqrt()
    assert "directions beside the diagonal" in fit.report
    # Without the directions 1.5 after five times the steps.
    assert float(((draws.mean(0) - mean) / sds).abs().max()) < 0.3
    assert 0.9 < float((draws.std(0) / sds).median()) < 1.1
