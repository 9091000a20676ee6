"""Priors with parameters: normalised, drawn as scored, by both doors, in files."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from vae.cases import SHAPE, images, make, spread

from pyro_nfvi.errors import DataError, OptionError
from pyro_nfvi.vae import MixturePrior, VampPrior, fit, load

X = images(12)


def vae_of(name, **options):
    prior = {
        "mixture": lambda: MixturePrior(2, 4),
        "mixture by name": lambda: "mixture*4",
        "vamp": lambda: VampPrior(X[:3], 2),
        "vamp, free": lambda: VampPrior(X[:3] * 3, 2, bounds=None),
        "flow": lambda: "maf*1",
        "normal": lambda: None,
    }[name]()
    return spread(make("planar*2", dim=2, prior=prior, **options), 0.4)


NAMES = ["mixture", "mixture by name", "vamp", "vamp, free", "flow", "normal"]


@pytest.mark.parametrize("name", NAMES)
def test_densities_integrate_to_one_and_fit_their_draws(name):
    vae = vae_of(name).double()
    if hasattr(vae.prior, "pseudo"):
        vae.encoder.double()
    axis = torch.linspace(-12, 12, 241, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    with torch.no_grad():
        p = vae.prior_log_prob(grid).exp() * 0.01
        torch.manual_seed(0)
        drawn = vae._prior_distribution(torch.empty(4000), None).sample()
    assert float(p.sum()) == pytest.approx(1, abs=2e-3)
    mean = (p.unsqueeze(-1) * grid).sum(0)
    second = (p.unsqueeze(-1) * grid.square()).sum(0)
    fourth = (p.unsqueeze(-1) * grid.square().square()).sum(0)
    # 4 numbers at 5 standard errors: false alarm 2e-6.
    error = (second / 4000).sqrt()
    assert bool(((drawn.mean(0) - mean).abs() < 5 * error).all())
    error = ((fourth - second.square()) / 4000).sqrt()
    assert bool(((drawn.square().mean(0) - second).abs() < 5 * error).all())


@pytest.mark.parametrize("name", NAMES)
def test_both_doors_take_every_prior(name, tmp_path):
    from pyro.infer import SVI, Trace_ELBO
    from pyro.optim import Adam

    vae = vae_of(name)
    assert math.isfinite(SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), Trace_ELBO()).step(X))
    vae.zero_grad()
    vae(X).surrogate.mean().backward()
    if vae.prior is not None:
        assert all(p.grad is not None for p in vae.prior.parameters())
    assert vae.sample(5, generator=torch.Generator().manual_seed(0)).shape == (5, *SHAPE)
    one, two = (vae.sample(5, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(one, two)
    names = list(vae.state_dict())
    assert len(names) == len(set(names)) < 30
    other = copy.deepcopy(vae)
    with torch.no_grad():
        for parameter in other.encoder.parameters():
            parameter.add_(1.0)
    moved = not torch.equal(vae.prior_log_prob(X[:, 0]), other.prior_log_prob(X[:, 0]))
    assert moved == name.startswith("vamp")
    run = fit(vae, X, out=tmp_path, epochs=1, progress=False)
    own = {} if "vamp" not in name and name != "mixture" else {"prior": vae_of(name).prior}
    if "vamp" in name:
        own = {"prior": VampPrior(X[:3], 2, bounds=vae.prior.bounds)}
    found = load(tmp_path, **own)
    assert torch.equal(found.prior_log_prob(X[:, 0]), run.vae.prior_log_prob(X[:, 0]))


def test_a_conditional_flow_prior_is_a_density_for_each_label(tmp_path):
    """Normalised for each label, other for each, and the same by elbo, model and files."""
    from pyro import poutine

    vae = spread(make("planar*2", dim=2, prior="maf*1", condition_dim=3), 0.4)
    axis = torch.linspace(-12, 12, 241)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 1, 2)
    labels = torch.eye(3)
    with torch.no_grad():
        p = vae.prior_log_prob(grid.expand(-1, 3, -1), labels)
    torch.testing.assert_close((p.exp() * 0.01).sum(0), torch.ones(3), atol=2e-3, rtol=0)
    assert float((p[:, 0] - p[:, 1]).abs().max()) > 0.1
    y = torch.arange(12) % 3
    trace = poutine.trace(vae.model).get_trace(X, y)
    z = trace.nodes["z"]["value"]
    theirs = trace.nodes["z"]["fn"].log_prob(z)
    torch.testing.assert_close(theirs, vae.prior_log_prob(z, labels[y]))
    run = fit(vae, (X, y), out=tmp_path, epochs=1, progress=False)
    found = load(tmp_path)
    assert torch.equal(found.prior_log_prob(z, labels[y]), run.vae.prior_log_prob(z, labels[y]))
    drawn = found.sample(3, y[:3], generator=torch.Generator().manual_seed(0))
    other = found.sample(3, y[1:4], generator=torch.Generator().manual_seed(0))
    assert not torch.equal(drawn, other)


def test_a_vamp_prior_is_the_mean_of_posteriors():
    vae = vae_of("vamp")
    z = torch.randn(7, 2)
    posterior = vae.posterior_of(vae.prior.pseudo.clamp(0, 1))
    each = torch.stack([posterior.rows(torch.tensor([k])).log_prob(z.unsqueeze(1))[:, 0]
                        for k in range(3)])  # fmt: skip
    torch.testing.assert_close(vae.prior_log_prob(z), torch.logsumexp(each, 0) - math.log(3))


def test_priors_that_do_not_fit_are_refused():
    with pytest.raises(OptionError, match="prior of dim=2"):
        make("planar*1", dim=2, prior=MixturePrior(3))
    with pytest.raises(OptionError, match="no labels"):
        make("planar*1", dim=2, prior=VampPrior(X[:2], 2), condition_dim=3)
    with pytest.raises(OptionError, match="belongs to no VAE"):
        VampPrior(X[:2], 2).log_prob(torch.zeros(1, 2))
    with pytest.raises(DataError, match="outside of the bounds"):
        VampPrior(X * 3, 2)
    with pytest.raises(DataError, match="pseudo-images"):
        VampPrior(torch.zeros(3), 2)
