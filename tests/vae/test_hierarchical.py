"""Two layers of latents: normalised, exact where the evidence is known, the same by every door."""

from __future__ import annotations

import math

import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import nn
from vae.cases import LinearDecoder, spread

from pyro_nfvi.errors import FileError, OptionError, ShapeError
from pyro_nfvi.testing import check_flow
from pyro_nfvi.vae import (
    DenseDecoder,
    DenseEncoder,
    ELBOLoss,
    Gaussian,
    HierarchicalVAE,
    IWAELoss,
    evaluate,
    fit,
    load,
)

FLOWS = [None, "planar*2", ("iaf*1", None), (None, "sylvester*1"), ("affine|relu*2", "iaf*2")]
PRIORS = [None, "maf*1", "mixture*3"]


def make(flow="planar*2", sizes=(2, 1), *, context_dim=4, pixels=5, **options):
    torch.manual_seed(0)
    labels = {"condition_dim": options.get("condition_dim", 0)}
    encoder = DenseEncoder((pixels,), sum(sizes), (8,), context_dim=context_dim, **labels)
    decoder = DenseDecoder(sizes[0], (pixels,), (8,), **labels)
    return HierarchicalVAE(encoder, decoder, sizes, context_dim, flow, hidden=6, **options)


def images(count=6, pixels=5):
    generator = torch.Generator().manual_seed(1)
    return torch.bernoulli(torch.full((count, pixels), 0.5), generator=generator)


@pytest.mark.parametrize("flow", [None, ("iaf*1", "sylvester*1")])
def test_the_map_of_two_layers_keeps_the_promises_of_a_flow(flow):
    check_flow(
        lambda dim, context_dim: make(flow, (dim - 1, 1), context_dim=context_dim).flow,
        dims=(3,), context_dims=(2,), dtypes=(torch.float64,),
        # Compilers and transforms see the parts, which are flows of the library.
        laws=["shapes", "bad input", "broadcast", "rows", "identity", "context", "extremes",
              "round trip", "left inverse", "ladj", "inverse ladj", "score", "gradients",
              "inverse gradients", "purity", "copies", "vmap", "functional_call"],
    )  # fmt: skip


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("flow", FLOWS[1:3])
def test_posterior_and_prior_integrate_to_one_and_the_bound_is_below_the_evidence(flow, prior):
    """One number of each layer: the evidence is a sum over a grid."""
    vae = spread(make(flow, (1, 1), prior=prior), 0.15).double()
    x = images(3).double()
    axis = torch.linspace(-12, 12, 161, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 1, 2)
    cell = float(axis[1] - axis[0]) ** 2
    with torch.no_grad():
        log_prior = vae.prior_log_prob(grid[:, 0])
        assert float(log_prior.exp().sum()) * cell == pytest.approx(1, abs=1e-3)
        log_q = vae.encode(x).log_prob(grid.expand(-1, len(x), -1))
        mass = log_q.exp().sum(0) * cell
        torch.testing.assert_close(mass, torch.ones_like(mass), atol=1e-3, rtol=0)
        log_likelihood = vae.likelihood.log_prob(vae.decode(grid), x)
        evidence = torch.logsumexp(log_prior.unsqueeze(-1) + log_likelihood, 0) + math.log(cell)
        found = vae.elbo(x, num_samples=200, generator=torch.Generator().manual_seed(0))
    # Six standard errors: false alarm 1e-9.
    error = found.log_w.std(0) / 200**0.5
    assert bool((found.bound < evidence + 6 * error).all())
    for method, options in (
        ("importance", {"num_samples": 4000}),
        ("ais", {"num_samples": 16, "temperatures": 15}),
    ):
        nll = vae.nll(x, method=method, **options)
        assert bool(((nll.value + evidence).abs() < 6 * nll.se + 1e-3).all())


class _Encoder(nn.Module):
    """Location linear in the image, fixed scales; the context is the image."""

    def __init__(self, weight, scale):
        super().__init__()
        self.weight, self.scale = weight, scale

    def forward(self, x):
        return x @ self.weight.T, self.scale.expand(len(x), -1), x


def test_a_linear_gaussian_hierarchy_has_its_exact_evidence():
    """z2 ~ N(0, 1), z1 = A z2 + noise, x = W z1 + noise: at the posterior no weight varies."""
    noise, generator = 0.6, torch.Generator().manual_seed(3)
    full, up = (torch.randn(*size, generator=generator).double() for size in ((4, 4), (2, 1)))
    # Orthogonal columns: given z2 the posterior of z1 has a diagonal covariance.
    weight = torch.linalg.qr(full)[0][:, :2] * torch.tensor([2.0, 0.7])
    precision = torch.eye(3).double()
    precision[:2, :2] += weight.T @ weight / noise**2
    precision[:2, 2:] -= up
    precision[2:, :2] -= up.T
    precision[2:, 2:] += up.T @ up
    covariance = precision.inverse()
    gain = covariance[:, :2] @ weight.T / noise**2
    slope = covariance[:2, 2:] / covariance[2, 2]
    inner = covariance[:2, :2] - slope @ covariance[2:, :2]
    # z1 = G1 x + slope (z2 - G2 x) + noise: the image comes in through encoder and context.
    start = torch.cat([gain[:2], gain[2:]])
    scale = torch.cat([inner.diagonal(), covariance[2, 2:]]).sqrt()
    vae = HierarchicalVAE(
        _Encoder(start, scale), LinearDecoder(weight), (2, 1), 4, None, Gaussian(noise), hidden=3
    ).double()
    with torch.no_grad():
        vae.prior.net.skip.weight.zero_()
        vae.prior.net.skip.weight[:2] = up
        vae.flow.net.skip.weight[:2] = torch.cat([slope, -slope @ gain[2:]], -1)
    marginal = weight @ (up @ up.T + torch.eye(2)) @ weight.T + noise**2 * torch.eye(4).double()
    evidence = torch.distributions.MultivariateNormal(torch.zeros(4).double(), marginal)
    x = evidence.sample((7,))
    exact = evidence.log_prob(x)
    terms = vae.elbo(x, num_samples=50)
    torch.testing.assert_close(terms.log_w, exact.expand(50, -1), atol=1e-10, rtol=0)
    torch.testing.assert_close(vae.nll(x, num_samples=50).value, -exact)
    torch.testing.assert_close(
        vae.nll(x, method="ais", num_samples=4, temperatures=3).value, -exact
    )
    # The divergence of the upper layer in closed form; six standard errors: false alarm 1e-8.
    mean, variance = x @ gain[2], covariance[2, 2]
    closed = 0.5 * (variance + mean.square() - 1 - variance.log())
    upper = vae.kl_of_layers(x, num_samples=2000)[1]
    error = (variance.square() / 2 + (variance - 1).square() + mean.square()).sqrt() / 2000**0.5
    assert bool(((upper - closed).abs() < 6 * error).all())


@pytest.mark.parametrize("prior", PRIORS)
def test_kl_divergences_of_layers_add_up(prior):
    vae = spread(make(("iaf*1", "planar*2"), prior=prior), 0.3)
    x = images()
    eps = torch.randn(3, len(x), 3)
    lower, upper = vae.kl_of_layers(x, eps=eps)
    torch.testing.assert_close(lower + upper, vae.elbo(x, eps=eps).kl)
    torch.testing.assert_close(vae.kl_of_layers(x, eps=eps[:1]), vae.kl_of_layers(x, eps=eps[0]))


@pytest.mark.parametrize("loss", [ELBOLoss(), ELBOLoss(estimator="path"), IWAELoss(3, "dreg")])
def test_losses_reach_every_parameter(loss):
    vae = spread(make(("iaf*1", "planar*2"), prior="maf*1"), 0.3)
    loss(vae, images()).surrogate.mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in vae.parameters())


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("prior", PRIORS)
def test_a_run_brings_the_same_vae_back(flow, prior, tmp_path):
    vae, x = make(flow, prior=prior), images(20)
    assert math.isfinite(SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), Trace_ELBO()).step(x))
    fit(vae, x, out=tmp_path, epochs=1, batch_size=10, progress=False)
    found = load(tmp_path)
    assert type(found) is HierarchicalVAE
    noise = torch.randn(2, 20, 3)
    assert torch.equal(found.elbo(x, eps=noise).log_w, vae.elbo(x, eps=noise).log_w)
    assert found.sample(4).shape == (4, 5)
    assert found.reconstruct(x).shape == x.shape
    assert math.isfinite(evaluate(found, x, nll_samples=20).elbo)


def test_labels_are_seen_by_encoder_and_decoder():
    vae, x = make(condition_dim=2), images()
    assert vae.elbo(x, torch.arange(6) % 2).bound.shape == (6,)
    with pytest.raises(ShapeError, match="pass labels"):
        vae.kl_of_layers(x)


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(OptionError, match="pair"):
        make(sizes=(3,))
    with pytest.raises(OptionError, match="formula, or a pair"):
        make(("iaf*1",) * 3)
    with pytest.raises(OptionError, match="formula for the upper layer"):
        make(prior=make().prior)
    vae = make()
    fit(vae, images(20), out=tmp_path, epochs=1, progress=False)
    with pytest.raises(FileError, match="describes flow itself"):
        load(tmp_path, flow=vae.flow)
