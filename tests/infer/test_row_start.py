"""The start of rows on mini-batches, and fits from it, against quadrature."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nfvi import NFVI, AutoPlateFlow
from pyro_nfvi._budget import UNLIMITED
from pyro_nfvi.infer._stages.plate_stages import set_up_rows
from pyro_nfvi.infer._stages.row_start import AllRows, start_rows
from pyro_nfvi.infer._time_plan import TimePlan


def centred(rows, batch, tau=0.7):
    """A centred hierarchy with unknown mean and sd; and mean and sd of both by quadrature."""
    generator = torch.Generator().manual_seed(1)
    theta = 1.5 + tau * torch.randn(rows, generator=generator)
    y = theta + torch.randn(rows, generator=generator)

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        tau = pyro.sample("tau", dist.HalfNormal(2.0))
        with pyro.plate("cells", rows, subsample_size=batch) as index:
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y[index])

    data, grid = y.double(), torch.linspace(1e-3, 3, 6001, dtype=torch.float64)
    variance = 1 + grid.square()
    precision = rows / variance + 0.01
    mean = data.sum() / variance / precision
    log_p = -0.5 * (
        rows * variance.log()
        + data.square().sum() / variance
        - mean.square() * precision
        + precision.log()
        + grid.square() / 4
    )
    weight = log_p.sub(log_p.max()).exp()
    weight = weight / weight.sum()
    mu = (weight * mean).sum()
    exact_tau = (weight * grid).sum()
    return (
        model,
        y,
        {
            "mu": (mu, (weight * (1 / precision + (mean - mu).square())).sum().sqrt()),
            "tau": (exact_tau, (weight * (grid - exact_tau).square()).sum().sqrt()),
        },
    )


def problem_of(model, y, guide):
    with pyro.get_param_store().scope():
        return set_up_rows(
            model, (y,), {}, frozenset(), 0, guide, NFVI(model)._options(), TimePlan(UNLIMITED)
        )


def test_the_log_joint_of_all_rows_is_that_of_the_model_without_mini_batches():
    model, y, _ = centred(50, 16)  # 16 does not divide 50
    whole, _, _ = centred(50, None)
    guide, other = AutoPlateFlow(model), AutoPlateFlow(whole)
    batches = problem_of(model, y, guide).log_joint
    entire = problem_of(whole, y, other).log_joint
    z = torch.randn(3, 52, generator=torch.Generator().manual_seed(0))
    found = AllRows.of(batches, guide.layout).value_and_grad(z)
    for mine, theirs in zip(found, entire.value_and_grad(z, {}), strict=True):
        torch.testing.assert_close(mine, theirs.double(), rtol=1e-5, atol=1e-4)


def test_a_start_on_mini_batches_is_near_the_posterior_of_all_rows():
    model, y, exact = centred(400, 100)
    guide = AutoPlateFlow(model)
    start = start_rows(problem_of(model, y, guide), guide, UNLIMITED)
    (mu, mu_sd), (tau, tau_sd) = exact["mu"], exact["tau"]
    # A mini-batch of a quarter of the rows has twice the sd of the posterior. Its Gaussian is too
    # narrow in the logarithm of a scale about which rows say little.
    assert abs(start.loc[0] - mu) < 4 * mu_sd
    assert abs(start.loc[1].exp() - tau) < 4 * tau_sd
    assert 0.5 < start.scale[0] / mu_sd < 2
    assert 0.25 < start.scale[1] * tau / tau_sd < 2


@pytest.mark.slow
def test_ten_thousand_rows_have_the_globals_of_the_exact_posterior():
    """Means within 0.15 sd, sds within 5 %: 4,000 draws have them to 0.016 sd and 1.1 %."""
    model, y, exact = centred(10_000, 512)
    fit = NFVI(model, seed=0, progress=False).run(y)
    assert fit.verdict == "good", fit.report
    draws = fit.sample(4000, rows={}, seed=0)
    for name, (mean, sd) in exact.items():
        assert abs(float(draws[name].mean()) - mean) < 0.15 * sd
        assert abs(float(draws[name].std()) / sd - 1) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_fit_on_mini_batches_has_the_globals_of_the_exact_posterior(seed):
    model, y, exact = centred(1000, 100)
    fit = NFVI(model, seed=seed, progress=False).run(y)
    assert fit.verdict == "good", fit.report
    for name, (mean, sd) in exact.items():
        draws = fit.sample(4000, rows={}, seed=0)[name]
        assert abs(float(draws.mean()) - mean) < 0.15 * sd
        assert abs(float(draws.std()) / sd - 1) < 0.05
