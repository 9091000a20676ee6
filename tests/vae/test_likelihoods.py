"""Likelihoods: normalised, equal to Pyro's distributions, and strict about their images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from vae.cases import SHAPE, linear_gaussian, make

from pyro_nfvi.errors import DataError, OptionError
from pyro_nfvi.vae import (
    Bernoulli,
    Categorical,
    Gaussian,
    LogisticMixture,
    LogitNormal,
    Masked,
    NegativeBinomial,
    Poisson,
    StudentT,
    ZeroInflatedNegativeBinomial,
)
from pyro_nfvi.vae._likelihood_names import make_likelihood

COUNTS = (Poisson, NegativeBinomial, ZeroInflatedNegativeBinomial)
ALL = [
    Bernoulli(), Categorical(5), Categorical(5, ordered=False), Gaussian(), Gaussian(0.3),
    LogitNormal(), LogitNormal(0.8),
    StudentT(), StudentT(None), LogisticMixture(7, 2), *(kind() for kind in COUNTS),
    Masked(), Masked(LogitNormal()), Masked(NegativeBinomial()), Masked(LogisticMixture(5, 1)),
]  # fmt: skip


def data(likelihood, count=4):
    if isinstance(likelihood, Masked):
        return data(likelihood.inner, count).float()
    if isinstance(likelihood, COUNTS):
        return torch.poisson(torch.full((count, *SHAPE), 3.0))
    if isinstance(likelihood, Bernoulli):
        return torch.bernoulli(torch.full((count, *SHAPE), 0.5))
    if isinstance(likelihood, Categorical | LogisticMixture):
        return torch.randint(likelihood.levels, (count, *SHAPE))
    return torch.rand(count, *SHAPE).clamp(0.01, 0.99)


@pytest.mark.parametrize("likelihood", ALL, ids=repr)
def test_log_prob_is_that_of_the_distribution(likelihood):
    x = data(likelihood)
    last = () if likelihood.num_params == 1 else (likelihood.num_params,)
    params = torch.randn(7, 4, *SHAPE, *last)
    theirs = likelihood.distribution(params).log_prob(x).sum((-1, -2))
    ours = likelihood.log_prob(params, x)
    assert ours.shape == (7, 4)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(likelihood.log_prob(params[0], x), ours[0])
    assert likelihood.mean(params).shape == likelihood.sample(params).shape == (7, 4, *SHAPE)


@pytest.mark.parametrize("likelihood", ALL, ids=repr)
def test_a_vae_takes_every_likelihood_by_both_doors(likelihood):
    vae = make("planar*2", likelihood=likelihood)
    x = data(likelihood)
    assert vae.elbo(x, num_samples=3).bound.shape == (4,)
    from pyro.infer import SVI, Trace_ELBO
    from pyro.optim import Adam

    assert math.isfinite(SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), Trace_ELBO()).step(x))


def test_probabilities_sum_to_one():
    params = torch.randn(1, 1, 3)
    total = sum(
        Categorical(3).log_prob(params, torch.full((1, 1), k)).exp().item() for k in range(3)
    )
    assert total == pytest.approx(1, abs=1e-6)
    logit = torch.randn(1, 1)
    total = sum(Bernoulli().log_prob(logit, torch.full((1, 1), k)).exp() for k in (0.0, 1.0))
    assert total.item() == pytest.approx(1, abs=1e-6)


def test_logit_normal_integrates_to_one():
    x = torch.linspace(1e-5, 1 - 1e-5, 200_001, dtype=torch.float64).unsqueeze(-1)
    params = torch.tensor([[[0.3, -0.2]]], dtype=torch.float64).expand(len(x), 1, 2)
    density = LogitNormal().log_prob(params, x).exp()
    assert torch.trapezoid(density, x[:, 0]).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("likelihood", "x", "hint"),
    [
        (Categorical(4), torch.full((1, 2), 4), "0 to 3"),
        (Categorical(4), torch.full((1, 2), -1), "0 to 3"),
        (Categorical(4), torch.full((1, 2), 0.5), "integers"),
        (Categorical(4), torch.full((1, 2), torch.nan), "integers"),
        (Gaussian(), torch.zeros(1, 2, dtype=torch.uint8), "Dequantise"),
        (Gaussian(), torch.full((1, 2), torch.inf), "not finite"),
        (LogitNormal(), torch.zeros(1, 2), "strictly between"),
        (LogitNormal(), torch.full((1, 2), 128.0), "strictly between"),
        (StudentT(), torch.zeros(1, 2, dtype=torch.uint8), "Dequantise"),
        (LogisticMixture(4, 1), torch.full((1, 2), 4), "0 to 3"),
        (Poisson(), torch.full((1, 2), 0.5), "raw counts"),
        (NegativeBinomial(), torch.full((1, 2), -1.0), "raw counts"),
        (ZeroInflatedNegativeBinomial(), torch.full((1, 2), torch.nan), "raw counts"),
        (NegativeBinomial(library=9.0), torch.zeros(1, 2, 2), "rows"),
        (Masked(), torch.zeros(1, 2, dtype=torch.int64), "NaN where a pixel is missing"),
        (Masked(), torch.tensor([[torch.nan, 0.5]]), "0 or 1"),
    ],
)
def test_images_that_do_not_fit_are_refused(likelihood, x, hint):
    with pytest.raises(DataError, match=hint):
        likelihood.check(x)


def test_names_and_options():
    assert make_likelihood("logit-normal", scale=0.5) == LogitNormal(0.5)
    assert make_likelihood(Gaussian(2.0)) == Gaussian(2.0)
    for likelihood in ALL:
        spec = dict(likelihood.spec())
        assert make_likelihood(spec.pop("name"), **spec) == likelihood
    for bad in ("normal", "bernouli"):
        with pytest.raises(OptionError, match="bernoulli"):
            make_likelihood(bad)
    with pytest.raises(OptionError):
        make_likelihood("bernoulli", levels=3)
    with pytest.raises(OptionError):
        Categorical(1)
    with pytest.raises(OptionError):
        Gaussian(scale=-1.0)


# ------------------------------------------------------------------- formulas of other libraries


def test_counts_and_t_are_those_of_scipy():
    from scipy import stats

    x = torch.tensor([[0.0, 1.0, 3.0, 50.0, 2000.0]], dtype=torch.float64)
    raw = torch.tensor([0.3, -2.0, 1.5, 3.0, 6.0], dtype=torch.float64)
    second = torch.tensor([0.5, 2.0, -1.0, 1.0, 3.0], dtype=torch.float64)
    third = torch.tensor([0.2, -3.0, 2.0, 0.0, -8.0], dtype=torch.float64)
    params = torch.stack([raw, second, third], -1).unsqueeze(0)
    mean, r = raw.numpy(), second.numpy()
    clamp = 2 * 15 / math.pi
    mean, r = (np.exp(clamp * np.arctan(value / clamp)) for value in (mean, r))
    gate = 1 / (1 + np.exp(-third.numpy()))
    values = x[0].numpy()
    poisson = stats.poisson.logpmf(values, mean)
    binomial = stats.nbinom.logpmf(values, r, r / (r + mean))
    inflated = np.log(gate * (values == 0) + (1 - gate) * np.exp(binomial))
    for likelihood, given, expected in (
        (Poisson(), params[..., 0], poisson),
        (NegativeBinomial(), params[..., :2], binomial),
        (ZeroInflatedNegativeBinomial(), params, inflated),
    ):
        found = likelihood.pixel_log_prob(given, x)[0].numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    scale = np.exp(10 / math.pi * np.arctan(second.numpy() / (10 / math.pi)))
    df = 1 + np.log1p(np.exp(third.numpy()))
    for likelihood, nu in ((StudentT(), 4.0), (StudentT(None), df)):
        found = likelihood.pixel_log_prob(params[..., : likelihood.num_params], x / 10)[0].numpy()
        expected = stats.t.logpdf(values / 10, nu, raw.numpy(), scale)
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_logistic_mixtures_sum_to_one_and_lose_no_digits():
    likelihood = LogisticMixture(6, 2)
    params = torch.randn(9, 1, 6, dtype=torch.float64) * 2
    levels = torch.arange(6).reshape(6, 1, 1).expand(6, 9, 1)
    each = torch.stack([likelihood.pixel_log_prob(params, x) for x in levels])
    torch.testing.assert_close(each.exp().sum(0), torch.ones(9, 1, dtype=torch.float64))
    # Written out, in double precision.
    w, m, raw = params.chunk(3, -1)
    s = (10 / math.pi * torch.atan(raw * math.pi / 10)).exp()
    y = 2 * 2 / 5 - 1
    edge = torch.sigmoid((y + 0.2 - m) / s) - torch.sigmoid((y - 0.2 - m) / s)
    torch.testing.assert_close(each[2].exp(), (torch.softmax(w, -1) * edge).sum(-1))
    # A narrow component far away, of which a difference of two sigmoids knows nothing.
    far = torch.tensor([[[0.0, 1.0, -20.0]]], requires_grad=True)
    found = LogisticMixture(256, 1).log_prob(far, torch.full((1, 1), 30.0))
    found.backward()
    assert bool(found.isfinite().all())
    assert found < -60
    assert bool(far.grad.isfinite().all())


@pytest.mark.parametrize("kind", COUNTS)
def test_library_sizes_scale_the_means_of_each_row(kind):
    likelihood = kind(library=100.0)
    x = torch.tensor([[1.0, 3.0, 0.0], [10.0, 20.0, 30.0], [0.0, 0.0, 0.0]])
    params = torch.randn(5, 3, 3, *(() if likelihood.num_params == 1 else (likelihood.num_params,)))
    raw = params if likelihood.num_params == 1 else params[..., 0]
    shares = torch.softmax(raw, -1)
    lost = torch.sigmoid(params[..., 2]) if likelihood.num_params == 3 else 0.0
    seen, _ = likelihood.observe(params, x)
    sums = torch.tensor([4.0, 60.0, 1.0]).unsqueeze(-1)
    torch.testing.assert_close(seen.mean, (1 - lost) * shares * sums, rtol=1e-4, atol=1e-5)
    expected = (1 - lost) * shares * 100
    torch.testing.assert_close(likelihood.mean(params), expected, rtol=1e-4, atol=1e-4)
    assert bool(likelihood.log_prob(params, x).isfinite().all())
    with pytest.raises(OptionError, match="library"):
        kind(library=0.0)
    with pytest.raises(OptionError, match="library"):
        Masked(likelihood)


@pytest.mark.parametrize("likelihood", ALL, ids=repr)
def test_gradients_are_finite_and_half_precision_stays_outside(likelihood):
    x = data(likelihood)
    last = () if likelihood.num_params == 1 else (likelihood.num_params,)
    for size in (1.0, 30.0):  # far parameters as well
        params = (size * torch.randn(4, *SHAPE, *last)).requires_grad_()
        found = likelihood.log_prob(params, x)
        (gradient,) = torch.autograd.grad(found.sum(), params)
        assert bool(found.isfinite().all()), size
        assert bool(gradient.isfinite().all()), size
    half = params.detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        inside = likelihood.log_prob(half, x)
    torch.testing.assert_close(inside, likelihood.log_prob(half.float(), x))
    assert inside.dtype == torch.float32


# --------------------------------------------------------------------------------- missing pixels

MASKED = [one for one in ALL if isinstance(one, Masked)]


@pytest.mark.parametrize("likelihood", MASKED, ids=repr)
def test_what_is_missing_has_no_part_in_the_number(likelihood):
    x = data(likelihood)
    params = torch.randn(7, 4, *SHAPE, *(
        () if likelihood.num_params == 1 else (likelihood.num_params,)
    )).requires_grad_()  # fmt: skip
    missing = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(3)) < 0.4
    missing[0] = True
    holes = torch.where(missing, torch.nan, x)
    likelihood.check(holes)
    each = likelihood.inner.pixel_log_prob(params, x)
    expected = torch.where(missing, 0.0, each).sum((-1, -2))
    found = likelihood.log_prob(params, holes)
    torch.testing.assert_close(found, expected)
    assert bool((found[:, 0] == 0).all())
    (gradient,) = torch.autograd.grad(found.sum(), params)
    assert bool((gradient[:, missing] == 0).all())
    pixels, values = likelihood.observe(params, holes)
    torch.testing.assert_close(pixels.log_prob(values).sum((-1, -2)), expected)
    assert bool((likelihood.encoder_input(holes)[missing] == 0).all())


def test_the_evidence_of_images_with_holes_is_the_marginal():
    vae, x, _ = linear_gaussian(noise=0.5)
    vae.likelihood = Masked(Gaussian(scale=0.5))
    weight = vae.decoder.weight.detach()
    covariance = weight @ weight.T + 0.25 * torch.eye(4, dtype=torch.float64)
    holes = x[:6].clone()
    holes[:, 1] = torch.nan
    seen = [0, 2, 3]
    exact = torch.distributions.MultivariateNormal(
        torch.zeros(3, dtype=torch.float64), covariance[seen][:, seen]
    )
    nll = vae.nll(holes, method="ais", num_samples=64, temperatures=100)
    # 6 images at 5 standard errors: false alarm < 1e-5.
    assert bool(((nll.value + exact.log_prob(holes[:, seen])).abs() < 5 * nll.se).all())
    assert float(nll.se.max()) < 0.3


def test_a_vae_with_holes_trains_by_both_doors():
    from pyro.infer import SVI, Trace_ELBO
    from pyro.optim import Adam

    from pyro_nfvi.vae import fit

    likelihood = Masked(Bernoulli())
    vae = make("planar*1")
    vae.likelihood = likelihood
    x = data(Bernoulli(), 20)
    x[::2, 0] = torch.nan
    assert math.isfinite(SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), Trace_ELBO()).step(x))
    run = fit(vae, x, valid=x[:5], epochs=1, progress=False)
    assert math.isfinite(run.progress.best)
    assert bool(vae.reconstruct(x).isfinite().all())
