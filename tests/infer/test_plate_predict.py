"""Predictions of fits of rows at new rows, and predictive densities row by row."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pyro_nfvi import NFVI, AutoPlateFlow
from pyro_nfvi.errors import DataWarning, ModelError, OptionError

ROWS, BATCH, TAU, SIGMA = 48, 12, 0.8, 0.5
Y = 1.5 + torch.randn(ROWS, generator=torch.Generator().manual_seed(0))
NEW = torch.linspace(-1, 4, 20)
LAST = torch.tensor([19, 0, 7])
OPTIONS = {"seed": 0, "progress": False}


def normal(y, batch=BATCH):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("groups", len(y), subsample_size=batch and min(batch, len(y))) as index:
        theta = pyro.sample("theta", dist.Normal(mu, TAU))
        pyro.sample("y", dist.Normal(theta, SIGMA), obs=y[index])


def by_batches(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("groups", ROWS, subsample_size=len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, TAU))
        pyro.sample("y", dist.Normal(theta, SIGMA), obs=y)


def net():
    return torch.nn.Sequential(torch.nn.Unflatten(0, (-1, 1)), torch.nn.Linear(1, 3))


def encoded(model):
    return AutoPlateFlow(model, encoder={"groups": net()}, local="affine")


@pytest.fixture(scope="module")
def table():
    return NFVI(normal, max_steps=60, **OPTIONS).run(Y)


@pytest.fixture(scope="module")
def amortised():
    return NFVI(normal, guide=encoded, max_steps=400, **OPTIONS).run(Y)


def truth(y):
    """Mean of mu; log predictive density of the data of new rows, and means of their theta."""
    v = TAU**2 + SIGMA**2
    precision = 1 / 25 + ROWS / v
    mean = float(Y.sum()) / v / precision
    density = dist.Normal(mean, math.sqrt(v + 1 / precision)).log_prob(y)
    own = 1 / TAU**2 + 1 / SIGMA**2
    return mean, density, (mean / TAU**2 + y / SIGMA**2) / own


@pytest.mark.parametrize("rows", [slice(None), LAST, torch.arange(20).flip(0)], ids=str)
def test_new_rows_of_an_amortised_plate_are_known_by_their_data(amortised, rows):
    """Whatever their order, and whether their number is a multiple of the batch's or not."""
    draws = amortised.predict(NEW, num_samples=2000, rows={"groups": rows}, seed=0)["y"]
    _, density, theta = truth(NEW[rows])
    assert draws.shape == (2000, len(theta))
    assert float((draws.mean(0) - theta).abs().max()) < 0.12  # five standard errors, and the fit's
    found = amortised.log_predictive(NEW, rows=rows, seed=0)
    assert torch.equal(found.rows, torch.arange(20)[rows])
    assert float((found.log_density - density).abs().max()) < 0.06
    assert float(found.error.max()) < 0.03
    assert float(found.effective.min()) > 500


def test_as_many_rows_are_new_ones_where_that_is_said(amortised):
    later = Y.flip(0)
    old = amortised.predict(later, num_samples=500, seed=0)["y"].mean(0)
    new = amortised.predict(later, num_samples=500, new_rows=["groups"], seed=0)["y"].mean(0)
    assert float((old - truth(Y)[2]).abs().max()) < 0.2
    assert float((new - truth(later)[2]).abs().max()) < 0.2


def test_rows_without_a_table_come_from_their_prior(table):
    found = table.predict(NEW, from_prior=["theta"], num_samples=4000, seed=0)
    assert sorted(found) == ["theta", "y"]
    assert found["y"].shape == (4000, 20)
    mean, density, _ = truth(NEW)
    assert abs(float(found["y"].mean()) - mean) < 0.1
    assert float(found["y"].std()) == pytest.approx(math.sqrt(TAU**2 + SIGMA**2), rel=0.05)
    scored = table.log_predictive(NEW, from_prior=["theta"], num_samples=4000, seed=0)
    # Errors beside those of the globals; twenty rows, five standard errors.
    assert bool(((scored.log_density - density).abs() < 5 * scored.error + 0.1).all())


def test_globals_from_their_prior_are_the_same_in_all_batches(table):
    found = table.predict(from_prior=["mu"], sites=["y"], num_samples=300, seed=0)["y"]
    first, last = found[:, :BATCH].mean(1), found[:, -BATCH:].mean(1)
    theta = table.sample(300, seed=0)["theta"]
    # Rows are held, so that predictions are theirs whatever the mean is.
    assert float((found.mean(0) - theta.mean(0)).abs().max()) < 0.2
    both = table.predict(from_prior=["mu", "theta"], sites=["y"], num_samples=300, seed=0)["y"]
    first, last = both[:, :BATCH].mean(1), both[:, -BATCH:].mean(1)
    assert float(torch.corrcoef(torch.stack([first, last]))[0, 1]) > 0.9


def test_data_at_rows_of_the_fit_are_scored_at_their_latents(table):
    later = Y + 0.3
    found = table.log_predictive(later, seed=0, num_samples=4000)
    precision = 1 / 25 + ROWS / (TAU**2 + SIGMA**2)
    own = 1 / TAU**2 + 1 / SIGMA**2
    variance = 1 / own + (1 / TAU**2 / own) ** 2 / precision
    expected = dist.Normal(truth(Y)[2], math.sqrt(variance + SIGMA**2)).log_prob(later)
    assert float((found.log_density - expected).abs().mean()) < 0.06
    alone = table.log_predictive(later, rows=[5, 40], seed=0, num_samples=4000)
    assert float((alone.log_density - expected[[5, 40]]).abs().max()) < 0.1
    with pytest.warns(DataWarning, match="1 of 48 rows of 'groups' rest on fewer than 50"):
        far = table.log_predictive(torch.where(torch.arange(ROWS) == 9, Y - 6, Y), seed=0)
    assert float(far.log_density.argmin()) == 9


def test_rows_of_a_loader(tmp_path):
    loader = DataLoader(TensorDataset(Y), batch_size=BATCH)
    fit = NFVI(by_batches, guide=encoded, max_steps=120, **OPTIONS).run(loader, num_data=ROWS)
    assert fit.predict(NEW, num_samples=3, seed=0)["y"].shape == (3, 20)
    _, density, _ = truth(NEW)
    found = fit.log_predictive(NEW, seed=0)
    assert float((found.log_density - density).abs().max()) < 0.15


@pytest.mark.parametrize(
    ("ask", "error", "words"),
    [
        (lambda f: f.predict(NEW), ModelError, r"20 rows.*fit has 48.*from_prior=\['theta'\].*enc"),
        (lambda f: f.log_predictive(NEW), ModelError, r"20 rows.*from_prior=\['theta'\].*encoder"),
        (lambda f: f.predict(Y, new_rows=["groups"]), ModelError, "Leave new_rows out"),
        (lambda f: f.predict(new_rows=["groups"]), OptionError, "needs the data of these rows"),
        (lambda f: f.predict(NEW, new_rows=["cells"]), OptionError, "new_rows names 'cells'"),
        (lambda f: f.predict(NEW, from_prior=["z"]), OptionError, "from_prior names 'z'"),
        (lambda f: f.predict(NEW, from_prior="theta"), OptionError, r"from_prior=\['theta'\]"),
        (lambda f: f.predict(3), ModelError, "could not be run with these arguments"),
        (lambda f: f.log_predictive(Y, plate="cells"), OptionError, "no latent in a plate 'cells'"),
        (lambda f: f.log_predictive(Y, rows=[ROWS]), OptionError, "0 to 47; got 48"),
        (lambda f: f.log_predictive(Y, num_samples=0), OptionError, "num_samples"),
        (
            lambda f: f.log_predictive(NEW, rows=[20], from_prior=["theta"]),
            OptionError,
            "0 to 19; got 20",
        ),
    ],
)
def test_rows_that_the_fit_does_not_know(table, ask, error, words):
    with pytest.raises(error, match=words):
        ask(table)


def test_a_prior_of_rows_that_are_known_by_their_data(amortised):
    with pytest.raises(ModelError, match="Leave from_prior out"):
        amortised.log_predictive(NEW, from_prior=["theta"])


def nested(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    floors = pyro.plate("floors", y.shape[0], dim=-2)
    with pyro.plate("counties", y.shape[1], dim=-1):
        a = pyro.sample("a", dist.Normal(mu, 0.5))
        with floors:
            b = pyro.sample("b", dist.Normal(a, 0.5))
            pyro.sample("y", dist.Normal(b, 0.3), obs=y)


@pytest.mark.slow
def test_new_rows_with_rows_inside():
    """Counties are known by their floors; their density is that of all floors together."""
    rows = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 6))

    def guide(model):
        return AutoPlateFlow(
            model, encoder={"counties": rows}, select={"counties": lambda y: y.T}, local="affine"
        )

    generator = torch.Generator().manual_seed(1)
    level = 1 + 0.5 * torch.randn(40, generator=generator)
    y = level + 0.58 * torch.randn(2, 40, generator=generator)
    fit = NFVI(nested, guide=guide, max_steps=400, **OPTIONS).run(y)
    new = torch.tensor([[1.0, 0.2, 2.0], [1.5, 0.0, 1.0]])
    found = fit.log_predictive(new, seed=0)
    assert found.plate == "counties"
    # Given mu, two floors are normal with covariance 0.25 and variance 0.25 + 0.25 + 0.09.
    v = torch.full((2, 2), 0.25) + 0.34 * torch.eye(2)
    precision = 1 / 4 + 40 * float(v.inverse().sum())
    mean = float((v.inverse() @ y).sum()) / precision
    expected = dist.MultivariateNormal(torch.full((2,), mean), v + 1 / precision).log_prob(new.T)
    assert float((found.log_density - expected).abs().max()) < 0.15
    assert fit.predict(new, num_samples=4, seed=0)["y"].shape == (4, 2, 3)
    with pytest.raises(ModelError, match="'counties' are new ones"):
        fit.log_predictive(new, plate="floors")
