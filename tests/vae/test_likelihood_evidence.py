"""Every likelihood under bound, NLL and reconstruction, where the evidence is an integral."""

from __future__ import annotations

import math

import pytest
import torch
from vae.cases import make, spread
from vae.test_likelihoods import ALL, data

from pyro_nfvi.vae import (
    DenseDecoder,
    DenseEncoder,
    FlowVAE,
    Masked,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
)

CELLS = [kind(library=40.0) for kind in (Poisson, NegativeBinomial, ZeroInflatedNegativeBinomial)]
AXIS = torch.linspace(-9, 9, 601, dtype=torch.float64)


def case(likelihood):
    """A VAE with one latent number, in double precision, and four images."""
    vae = make("planar*2", dim=1, likelihood=likelihood)
    vae = spread(vae, 0.2).double()
    x = data(likelihood)
    if isinstance(likelihood, Masked):
        x[0, 0, 0] = math.nan
    return vae, x.double() if x.is_floating_point() else x


def log_joint(vae, x):
    """Log joint on the grid, by the distribution that a model of Pyro would observe."""
    z = AXIS.reshape(-1, 1, 1).expand(-1, len(x), 1)
    with torch.no_grad():
        pixels, values = vae.likelihood.observe(vae.decode(z), x)
        log_p = pixels.log_prob(values).flatten(2).sum(-1)
    return log_p - 0.5 * AXIS.square().unsqueeze(-1) - 0.5 * math.log(2 * math.pi)


@pytest.mark.parametrize("likelihood", ALL, ids=repr)
def test_bound_and_nll_agree_with_the_integral(likelihood):
    vae, x = case(likelihood)
    evidence = torch.logsumexp(log_joint(vae, x), 0) + (AXIS[1] - AXIS[0]).log()
    terms = vae.elbo(x, num_samples=400, generator=torch.Generator().manual_seed(0))
    # Six standard errors of 400 draws: false alarm 1e-9 for each image.
    error = terms.log_w.detach().std(0) / 20
    assert bool((terms.bound.detach() < evidence + 6 * error).all())
    assert vae.nll(x[:1], num_samples=50).value.shape == (1,)
    importance = vae.nll(x, num_samples=4000)
    # Weights of the upper tail are rare where the posterior is narrow: a hundredth of a nat.
    assert bool(((importance.value + evidence).abs() < 6 * importance.se + 0.01).all())
    annealed = vae.nll(x, method="ais", num_samples=16, temperatures=8)
    assert bool(((annealed.value + evidence).abs() < 6 * annealed.se + 0.01).all())


@pytest.mark.parametrize("likelihood", CELLS, ids=repr)
def test_counts_are_reconstructed_at_the_size_of_their_own_cell(likelihood):
    torch.manual_seed(0)
    encoder = DenseEncoder((6,), 2, (8,))
    vae = FlowVAE(
        encoder,
        DenseDecoder(2, (6,), (8,), num_params=likelihood.num_params),
        2,
        flow="planar*2",
        likelihood=likelihood,
    )
    x = torch.poisson(torch.full((4, 6), 3.0)) * torch.tensor([[1.0], [2.0], [10.0], [0.0]])
    found = vae.reconstruct(x, generator=torch.Generator().manual_seed(0))
    z = vae.encode(x).draw(1, generator=torch.Generator().manual_seed(0)).z[0]
    params = vae.decode(z).reshape(4, 6, -1)
    kept = torch.sigmoid(-params[..., 2]) if likelihood.num_params == 3 else 1.0
    want = params[..., 0].softmax(-1) * x.sum(-1, keepdim=True).clamp_min(1.0) * kept
    torch.testing.assert_close(found, want)
