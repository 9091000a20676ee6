"""A Delta that nobody observes is a deterministic site, in fits, guides and predictions."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_nfvi import NFVI, AutoFlow
from pyro_nfvi.errors import ModelError

Y = torch.tensor([1.0, 2.0, 3.0])


def with_point(y, *, point):
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 5.0))
    if point:
        twice = pyro.sample("twice", dist.Delta(2 * mu))
        unit = pyro.sample("unit", dist.Delta(torch.ones(2)).to_event(1))
    else:
        twice = pyro.deterministic("twice", 2 * mu)
        unit = pyro.deterministic("unit", torch.ones(2))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(0.5 * twice, unit[..., 0]), obs=y)


@pytest.fixture(scope="module")
def fits():
    options = {"guide": "affine", "seed": 0, "max_steps": 100, "explore": "off", "progress": False}
    return [NFVI(with_point, **options).run(Y, point=point) for point in (True, False)]


@pytest.mark.slow
def test_a_fit_is_that_with_deterministic_sites(fits):
    found, expected = fits
    assert list(found.latent.sites) == ["mu"]
    assert torch.equal(found.draws.z, expected.draws.z)
    assert found.verdict == expected.verdict
    one, other = (fit.sample(5, seed=0, deterministic=True) for fit in fits)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name])


def test_predictions_follow_it(fits):
    one, other = (
        fit.predict(torch.zeros(4), point=point, num_samples=5, sites=["y", "twice"])
        for fit, point in zip(fits, (True, False))
    )
    for name, value in one.items():
        assert value.shape == other[name].shape


# Pyro's own words, which are true of a deterministic site as well.
@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
def test_a_guide_in_a_loop_of_ones_own_leaves_it_to_the_model():
    guide = AutoFlow(with_point, "affine")
    svi = SVI(with_point, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(num_particles=8))
    losses = [svi.step(Y, point=True) for _ in range(30)]
    assert all(torch.tensor(losses).isfinite())
    assert set(guide(Y, point=True)) == {"mu"}


def test_a_model_of_nothing_else_has_nothing_to_fit():
    def model():
        d = pyro.sample("d", dist.Delta(torch.tensor(2.0)))
        pyro.sample("y", dist.Normal(d, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ModelError, match="Deltas hold one value each.*'d'"):
        NFVI(model, progress=False).run()
