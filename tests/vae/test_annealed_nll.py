"""NLL by annealing: known evidence where importance sampling is far off, unbiased weights."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from vae.cases import LinearDecoder, LinearEncoder, images, linear_gaussian, make, spread

from pyro_nfvi.errors import OptionError, WeightError
from pyro_nfvi.vae import FlowVAE, Gaussian, evaluate
from pyro_nfvi.vae._annealed_nll import _at, _ladder
from pyro_nfvi.vae._nll_summary import NLLSummary


def wide(dim, stretch, flow=None, count=6, noise=0.5, **options):
    """A linear Gaussian VAE of so many latents whose posterior has the wrong scale."""
    generator = torch.Generator().manual_seed(3)
    full = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    weight = torch.linalg.qr(full)[0] * torch.linspace(0.3, 2, dim, dtype=torch.float64)
    encoder = LinearEncoder(weight, noise, stretch)
    vae = FlowVAE(
        encoder, LinearDecoder(weight), dim, flow=flow, likelihood=Gaussian(scale=noise), **options
    ).double()
    covariance = weight @ weight.T + noise**2 * torch.eye(dim, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(torch.zeros(dim).double(), covariance)
    chol = torch.linalg.cholesky(covariance)
    x = torch.randn(count, dim, generator=generator, dtype=torch.float64) @ chol.T
    return vae, x, exact.log_prob(x)


def test_exact_posterior_gives_the_evidence_without_error():
    vae, x, evidence = linear_gaussian()
    nll = vae.nll(x[:5], method="ais", num_samples=8, temperatures=5)
    torch.testing.assert_close(-nll.value, evidence[:5])
    assert float(nll.se.max()) < 1e-6


@pytest.mark.parametrize(
    ("dim", "stretch", "flow"), [(20, 0.55, None), (8, 0.4, "iaf*1"), (8, 2.5, "planar*2")]
)
def test_right_where_importance_sampling_is_not(dim, stretch, flow):
    vae, x, evidence = wide(dim, stretch, flow)
    if flow:
        spread(vae.flow, 0.1)
    plain = vae.nll(x, num_samples=2000)
    annealed = vae.nll(x, method="ais", num_samples=48, temperatures=100)
    # The weights of 6 images: 5 standard errors, which those of log weights far from normal exceed
    # seldom; false alarm < 1e-4.
    assert bool(((annealed.value + evidence).abs() < 5 * annealed.se).all())
    assert float(annealed.se.max()) < 0.4
    assert 0.5 < float(annealed.acceptance.mean()) < 0.95
    assert float(annealed.ess.median()) > 8
    if stretch < 1:
        assert float((plain.value + evidence).mean()) > 3 * float(
            (annealed.value + evidence).mean().abs()
        )
        assert not plain.summary().trusted
    # Of the same images -ELBO is a bound.
    assert bool((annealed.value < annealed.bound).all())


@pytest.mark.parametrize("flow", [None, "planar*2"])
def test_weights_are_unbiased_however_short_the_course(flow):
    vae, x, evidence = wide(3, 0.8, flow, count=40)
    if flow:
        spread(vae.flow, 0.1)
    for temperatures in (1, 2, 6):
        nll = vae.nll(x, method="ais", num_samples=400, temperatures=temperatures)
        ratio = (-nll.value - evidence).exp()  # mean weight over p(x), expectation 1
        error = (nll.se * ratio).square().sum().sqrt() / len(x)
        assert float((ratio.mean() - 1).abs() / error) < 4.5  # false alarm 7e-6 each


def test_value_of_an_image_does_not_depend_on_tiles_or_neighbours():
    vae = spread(make("planar*3", dtype=torch.float64))
    x = images(5, dtype=torch.float64)
    options = {"method": "ais", "num_samples": 16, "temperatures": 6}
    whole = vae.nll(x, **options)
    small = vae.nll(x, tile=64, **options)
    torch.testing.assert_close(small.value, whole.value, atol=1e-8, rtol=1e-8)
    part = vae.nll(x[3:], first=3, **options)
    torch.testing.assert_close(part.value, whole.value[3:], atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(part.acceptance, whole.acceptance[3:], atol=1e-8, rtol=1e-8)
    assert not torch.equal(vae.nll(x, seed=1, **options).value, whole.value)
    before = torch.get_rng_state()
    vae.nll(x, **options)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in vae.parameters())


def test_conditional_vaes_and_flow_priors():
    vae = spread(make("iaf*1", condition_dim=4, prior="maf*1"), 0.3)
    x, y = images(4), torch.tensor([0, 1, 2, 3])
    plain = vae.nll(x, y, num_samples=4000)
    found = vae.nll(x, y, method="ais", num_samples=32, temperatures=30)
    # 4 images at 5 standard errors of both: false alarm < 1e-5.
    assert bool(((plain.value - found.value).abs() < 5 * (plain.se + found.se)).all())


def test_temperatures_stand_where_the_weights_vary():
    grid = torch.linspace(0, 1, 101).double().unsqueeze(1)
    spread_of = 1 / (0.01 + grid[:-1])  # as of a posterior that is far from the model
    ladder = _ladder(grid, spread_of, 50)
    assert ladder.shape == (51, 1)
    assert bool((ladder.diff(dim=0) > 0).all())
    assert float(ladder[25]) < 0.25
    even = _ladder(grid, torch.zeros(100, 1).double(), 50)
    torch.testing.assert_close(even, torch.linspace(0, 1, 51).double().unsqueeze(1))
    x = torch.tensor([[-1.0], [0.25], [3.0]])
    known, values = torch.tensor([[0.0], [0.5], [1.0]]), torch.tensor([[1.0], [2.0], [0.0]])
    assert _at(x, known, values).squeeze().tolist() == [1.0, 1.5, 0.0]


def test_every_place_names_the_method():
    vae = make("planar*1")
    found = evaluate(vae, images(6), nll_samples=8, nll_method="ais", temperatures=4)
    assert "NLL(AIS, 8 x 4)" in str(found)
    record = found.record()
    assert (record["nll_samples"], record["nll_temperatures"]) == (8, 4)
    again = NLLSummary.from_record(record)
    assert again is not None
    assert again == found.summary
    bad = NLLSummary(9.0, 1.0, 9.0, 0.0, 0.0, 8, 6, "all", 1.0, 0.9, 0.1, 4)
    assert "--temperatures" in bad.warning
    assert "Anneal (method='ais'" in replace(bad, temperatures=0).warning


def test_what_cannot_be_computed_is_an_error():
    vae, x = make("planar*1"), images(2)
    with pytest.raises(OptionError, match="'importance' or 'ais'"):
        vae.nll(x, method="smc")
    with pytest.raises(OptionError, match="belong to method='ais'"):
        vae.nll(x, temperatures=3)
    with pytest.raises(OptionError, match="temperatures needs"):
        vae.nll(x, method="ais", temperatures=0)
    with torch.no_grad():
        vae.decoder.last.bias[0] = math.nan
    with pytest.raises(WeightError, match="not finite"):
        vae.nll(x, method="ais", num_samples=4, temperatures=3)
