"""What to_arviz writes equals what a direct computation gives."""

from __future__ import annotations

import builtins
import dataclasses
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoDelta, AutoNormal

from pyro_nfvi import NFVI, AutoFlow, AutoIAF, to_arviz
from pyro_nfvi.arviz import loo_approximate
from pyro_nfvi.errors import ConversionWarning, MissingPackageError, OptionError

az = pytest.importorskip("arviz")

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        raw = pyro.sample("raw", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * raw, event_dim=0)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def vectors(x):
    """Event dimensions, a two-dimensional plate, a simplex, a deterministic without event_dim."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    pyro.deterministic("log_weights", weights.log())
    with pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 2, dim=-1):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def mixture(y):
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(y)):
        which = pyro.sample("which", dist.Bernoulli(p), infer={"enumerate": "parallel"}).long()
        pyro.sample("y", dist.Normal(loc[..., which], 1.0), obs=y)


def perturbed(guide):
    """Away from the start, where a flow is the identity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return guide


def draws_of(idata, index):
    posterior = idata["posterior"]
    return {name: torch.tensor(posterior[name].values[0, index]) for name in posterior.data_vars}


@pytest.mark.parametrize(
    ("model", "args"),
    [(schools, (Y, SIGMA)), (vectors, (torch.randn(4, 2, 3),))],
    ids=["schools", "vectors"],
)
def test_equals_direct_computation(model, args):
    guide = perturbed(AutoIAF(model).setup(*args))
    idata = to_arviz(guide, args=args, num_samples=50)
    for index in (0, 17, 49):
        values = draws_of(idata, index)
        latent = {name: values[name] for name in guide.latent.sites}
        trace = poutine.trace(poutine.condition(model, data=latent)).get_trace(*args)
        trace.compute_log_prob()
        stats = idata["sample_stats"]
        assert float(stats["log_p"][0, index]) == pytest.approx(
            float(trace.log_prob_sum()), abs=1e-3
        )
        assert float(stats["log_q"][0, index]) == pytest.approx(
            float(guide.log_prob(latent).detach()), abs=1e-3
        )
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and site["infer"].get("_deterministic"):
                torch.testing.assert_close(values[name], site["value"])
            elif site["type"] == "sample" and site["is_observed"] and name not in latent:
                found = idata["log_likelihood"][name].values[0, index]
                np.testing.assert_allclose(found, site["log_prob"].numpy(), atol=1e-4)
    assert stats.attrs["ess"] > 0
    assert np.isfinite(stats.attrs["khat"])


def test_dimensions_come_from_plates():
    idata = to_arviz(AutoFlow(schools).setup(Y, SIGMA), args=(Y, SIGMA), num_samples=20)
    posterior = idata["posterior"]
    assert posterior["mu"].dims == ("chain", "draw")
    assert posterior["theta"].dims == ("chain", "draw", "schools")
    assert idata["log_likelihood"]["y"].dims == ("chain", "draw", "schools")
    assert idata["posterior_predictive"]["y"].dims == ("chain", "draw", "schools")
    assert idata["observed_data"]["y"].dims == ("schools",)
    np.testing.assert_array_equal(idata["observed_data"]["y"], Y)
    assert list(idata["constant_data"].data_vars) == ["sigma"]
    assert idata["constant_data"]["sigma"].dims == ("schools",)
    assert idata["prior"]["tau"].shape == (1, 20)
    assert idata["prior_predictive"]["y"].shape == (1, 20, 8)


def test_dimensions_of_events_and_several_plates():
    x = torch.randn(4, 2, 3)
    idata = to_arviz(AutoFlow(vectors).setup(x), args=(x,), num_samples=7)
    assert idata["posterior"]["loc"].dims == ("chain", "draw", "rows", "columns", "loc_dim_0")
    assert idata["posterior"]["weights"].dims == ("chain", "draw", "weights_dim_0")
    assert idata["posterior"]["log_weights"].shape == (1, 7, 3)
    assert idata["log_likelihood"]["x"].dims == ("chain", "draw", "rows", "columns")
    assert idata["observed_data"]["x"].dims == ("rows", "columns", "x_dim_0")


def test_a_plate_may_be_called_draw():
    # Pyro itself refuses a site and a plate of one name in a trace, so only "draw" can occur.
    def renamed(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("draw", 2):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = torch.zeros(2)
    idata = to_arviz(AutoFlow(renamed).setup(y), args=(y,), num_samples=5)
    assert idata["log_likelihood"]["y"].dims == ("chain", "draw", "draw_plate")


def test_names_that_the_format_keeps_for_itself(tmp_path):
    def odd(y):
        mu = pyro.sample("μ [log] / day", dist.Normal(0.0, 1.0))
        pyro.sample("chain", dist.Normal(0.0, 1.0))
        with pyro.plate("group/1", 2):
            pyro.sample("y/x", dist.Normal(mu, 1.0), obs=y)

    y = torch.zeros(2)
    idata = to_arviz(AutoFlow(odd).setup(y), args=(y,), num_samples=5)
    assert set(idata["posterior"].data_vars) == {"μ [log] | day", "chain_site"}
    assert idata["posterior"].attrs["site_of_chain_site"] == "chain"
    assert idata["log_likelihood"]["y|x"].dims == ("chain", "draw", "group|1")
    idata.to_netcdf(str(tmp_path / "odd.nc"))


@dataclasses.dataclass
class Survey:
    y: torch.Tensor
    age: torch.Tensor
    title: str = "no number"


def test_constant_data_is_found_inside_of_arguments():
    def model(data, table, levels, column=None, missing=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("cases", 3):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=data.y)

    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"income": [1.0, 2.0, 3.0], "region": ["a", "b", "a"]})
    args = (Survey(torch.ones(3), torch.arange(3)), table, [4, 5])
    kwargs = {"column": pd.Series([7.0, 8.0, 9.0])}
    guide = AutoFlow(model).setup(*args, **kwargs)
    idata = to_arviz(guide, args=args, kwargs=kwargs, num_samples=5)
    data = idata["constant_data"]
    assert set(data.data_vars) == {"age", "income", "levels", "column"}
    assert data["income"].dims == ("cases",)
    np.testing.assert_array_equal(data["column"], [7.0, 8.0, 9.0])


def test_coords_can_be_labelled():
    names = list("ABCDEFGH")
    guide = AutoFlow(schools).setup(Y, SIGMA)
    idata = to_arviz(guide, args=(Y, SIGMA), num_samples=5, coords={"schools": names})
    assert list(idata["posterior"]["schools"].values) == names
    with pytest.raises(OptionError, match="'school'"):
        to_arviz(guide, args=(Y, SIGMA), num_samples=5, coords={"school": names})
    with pytest.raises(OptionError, match="2 labels"):
        to_arviz(guide, args=(Y, SIGMA), num_samples=5, coords={"schools": ["A", "B"]})


def test_predictive_draws_come_from_the_likelihood():
    # 4,000 draws of y - theta with standard deviation sigma: mean within 5 sd/sqrt(4000), sd
    # within 6 % (5 standard errors of an sd); false-alarm rate over 8 schools below 1e-4.
    idata = to_arviz(AutoFlow(schools).setup(Y, SIGMA), args=(Y, SIGMA), num_samples=4000)
    residual = idata["posterior_predictive"]["y"].values - idata["posterior"]["theta"].values
    residual = residual[0] / SIGMA.numpy()
    assert np.abs(residual.mean(0)).max() < 5 / np.sqrt(4000)
    assert np.abs(residual.std(0) - 1).max() < 0.06
    # The prior of mu has mean 0 and sd 5: 500 draws give 5 standard errors of 1.2 and 16 %.
    prior = idata["prior"]["mu"].values
    assert abs(prior.mean()) < 1.2
    assert abs(prior.std() / 5 - 1) < 0.16


def test_a_model_that_cannot_be_batched_gives_the_same():
    def scalar(y, sigma):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        level = float(mu) if mu.dim() == 0 else float(mu.reshape(-1)[0])  # breaks in a batch
        with pyro.plate("schools", len(y)):
            pyro.sample("y", dist.Normal(mu + 0.0 * level, sigma * (1 + level**2)), obs=y)

    guide = AutoFlow(scalar).setup(Y, SIGMA)
    idata = to_arviz(guide, args=(Y, SIGMA), num_samples=300)
    mu = idata["posterior"]["mu"].values[0]
    scale = SIGMA.numpy() * (1 + mu[:, None] ** 2)
    expected = dist.Normal(torch.tensor(mu)[:, None], torch.tensor(scale)).log_prob(Y).numpy()
    np.testing.assert_allclose(idata["log_likelihood"]["y"].values[0], expected, rtol=1e-4)
    # 300 x 8 standardised residuals: 5 standard errors of their sd are 7 % (rate below 1e-6).
    residual = (idata["posterior_predictive"]["y"].values[0] - mu[:, None]) / scale
    assert abs(residual.std() - 1) < 0.08


def test_enumerated_sites_are_summed_out():
    y = torch.tensor([-2.0, 0.5, 3.0])
    guide = AutoFlow(mixture).setup(y)
    idata = to_arviz(guide, args=(y,), num_samples=10)
    p, loc = (torch.tensor(idata["posterior"][n].values[0, 3]) for n in ("p", "loc"))
    parts = torch.stack([(1 - p).log(), p.log()])[:, None] + dist.Normal(
        loc[:, None], 1.0
    ).log_prob(y)
    found = idata["log_likelihood"]["y"].values[0, 3]
    np.testing.assert_allclose(found, parts.logsumexp(0).numpy(), atol=1e-5)
    assert idata["posterior"]["which"].dims == ("chain", "draw", "data")
    assert idata["posterior_predictive"]["y"].shape == (1, 10, 3)
    assert idata["prior"]["which"].shape == (1, 10, 3)


def test_discrete_sites_come_from_their_posterior_and_predictions_rest_on_them():
    y = torch.tensor([-2.0, 0.5, 3.0])
    draws = {"p": torch.full((1500,), 0.3), "loc": torch.tensor([-1.5, 1.5]).expand(1500, 2)}
    torch.manual_seed(0)
    idata = to_arviz(draws, model=mixture, args=(y,))
    odds = 0.3 / 0.7 * torch.exp(3.0 * y)  # of N(1.5, 1) against N(-1.5, 1)
    expected = (odds / (1 + odds)).numpy()
    which = idata["posterior"]["which"].values[0]
    # 1,500 draws: 5 standard errors of a share are below 0.065 (rate below 1e-5 for three).
    np.testing.assert_allclose(which.mean(0), expected, atol=0.065)
    predicted = idata["posterior_predictive"]["y"].values[0]
    residual = predicted - np.where(which == 1, 1.5, -1.5)
    # Each prediction comes from the component of its own draw: 5 standard errors again.
    assert np.abs(residual.mean(0)).max() < 0.13
    assert np.abs(residual.std(0) - 1).max() < 0.1
    # Draws of the user's own are left as they are.
    own = torch.ones(300, 3)
    few = {name: value[:300] for name, value in draws.items()}
    given = to_arviz({**few, "which": own}, model=mixture, args=(y,))
    np.testing.assert_array_equal(given["posterior"]["which"].values[0], own)
    assert abs(given["posterior_predictive"]["y"].values.mean() - 1.5) < 0.17


def test_nuts_of_a_model_that_does_not_mark_its_discrete_site():
    def model(y):
        loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]), 0.5).to_event(1))
        with pyro.plate("data", len(y)):
            which = pyro.sample("which", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("y", dist.Normal(loc[..., which], 1.0), obs=y)

    y = torch.tensor([-2.0, 0.5, 3.0])
    mcmc = MCMC(NUTS(model), num_samples=10, warmup_steps=10, disable_progbar=True)
    mcmc.run(y)
    idata = to_arviz(mcmc)
    assert idata["posterior"]["which"].shape == (1, 10, 3)
    assert idata["log_likelihood"]["y"].shape == (1, 10, 3)


def test_masks_and_scales():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4), poutine.scale(scale=3.0):
            with poutine.mask(mask=torch.tensor([True, True, True, False])):
                pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = torch.tensor([0.0, 1.0, 2.0, 100.0])
    with pytest.warns(ConversionWarning, match="under poutine.scale"):
        idata = to_arviz(AutoFlow(model).setup(y), args=(y,), num_samples=5)
    mu = torch.tensor(idata["posterior"]["mu"].values[0])
    each = dist.Normal(mu[:, None], 1.0).log_prob(y).numpy()
    each[:, 3] = 0.0
    np.testing.assert_allclose(idata["log_likelihood"]["y"].values[0], each, atol=1e-5)
    total = dist.Normal(0.0, 1.0).log_prob(mu).numpy() + 3 * each.sum(1)
    np.testing.assert_allclose(idata["sample_stats"]["log_p"].values[0], total, atol=1e-3)


def test_subsampled_data_share_one_set_of_indices():
    data = torch.arange(100.0)

    def model(data):
        mu = pyro.sample("mu", dist.Normal(50.0, 30.0))
        with pyro.plate("data", 100, subsample_size=10) as index:
            pyro.sample("y", dist.Normal(mu, 10.0), obs=data[index])

    guide = AutoFlow(model).setup(data)
    with pytest.warns(ConversionWarning, match=r"one mini-batch, 10 of the 100 rows of 'data'"):
        idata = to_arviz(guide, args=(data,), num_samples=5)
    assert idata["log_likelihood"].attrs["mini_batch"] == "10 of the 100 rows of 'data'"
    # Weights of one mini-batch are noise: nothing is made of them.
    assert "khat" not in idata["posterior"].attrs
    assert not {"khat", "ess", "log_evidence"} & set(idata["sample_stats"].attrs)
    with pytest.raises(OptionError, match="mini-batch"):
        loo_approximate(idata)
    with pytest.raises(OptionError, match="mini-batch"):
        to_arviz(guide, args=(data,), num_samples=5, reweighted=True)
    index = idata["observed_data"]["data"].values
    np.testing.assert_array_equal(idata["observed_data"]["y"], index)
    mu = torch.tensor(idata["posterior"]["mu"].values[0])
    expected = dist.Normal(mu[:, None], 10.0).log_prob(torch.tensor(index).float())
    np.testing.assert_allclose(idata["log_likelihood"]["y"].values[0], expected, atol=1e-4)


def test_mcmc():
    mcmc = MCMC(NUTS(schools), num_samples=20, warmup_steps=10, disable_progbar=True)
    mcmc.run(Y, SIGMA)
    idata = to_arviz(mcmc)
    np.testing.assert_allclose(idata["posterior"]["mu"].values[0], mcmc.get_samples()["mu"])
    assert idata["posterior"]["theta"].dims == ("chain", "draw", "schools")
    assert set(idata["sample_stats"].data_vars) == {"diverging", "log_p"}
    assert idata["log_likelihood"]["y"].shape == (1, 20, 8)


def test_dict_with_and_without_its_model():
    generator = torch.Generator().manual_seed(0)
    draws = {
        "mu": torch.randn(30, generator=generator),
        "tau": torch.rand(30, generator=generator) + 0.1,
        "raw": torch.randn(30, 8, generator=generator).numpy(),
    }
    alone = to_arviz(draws)
    assert alone["posterior"]["raw"].dims == ("chain", "draw", "raw_dim_0")
    assert "no model" in alone["posterior"].attrs["missing_log_likelihood"]
    full = to_arviz(draws, model=schools, args=(Y, SIGMA))
    assert full["posterior"]["raw"].dims == ("chain", "draw", "schools")
    assert full["posterior"]["theta"].shape == (1, 30, 8)
    assert list(full["sample_stats"].data_vars) == ["log_p"]


def test_other_guides_of_pyro():
    guide = AutoNormal(schools)
    guide(Y, SIGMA)
    idata = to_arviz(guide, args=(Y, SIGMA), num_samples=20)
    assert idata["posterior"]["tau"].shape == (1, 20)
    mu, tau, raw = (torch.tensor(idata["posterior"][n].values[0, 4]) for n in ("mu", "tau", "raw"))
    loc, scale = guide.locs, guide.scales
    expected = (
        dist.Normal(loc.mu, scale.mu).log_prob(mu)
        + dist.LogNormal(loc.tau, scale.tau).log_prob(tau)
        + dist.Normal(loc.raw, scale.raw).log_prob(raw).sum()
    )
    found = float(idata["sample_stats"]["log_q"][0, 4])
    assert found == pytest.approx(float(expected.detach()), abs=1e-3)
    point = AutoDelta(schools)
    point(Y, SIGMA)
    assert "log_q" not in to_arviz(point, args=(Y, SIGMA), num_samples=3)["sample_stats"]


def test_several_sources_are_chains():
    guides = [perturbed(AutoFlow(schools).setup(Y, SIGMA)) for _ in range(3)]
    idata = to_arviz(guides, args=(Y, SIGMA), num_samples=40)
    assert idata["posterior"]["theta"].shape == (3, 40, 8)
    assert idata["sample_stats"].attrs["khat"].shape == (3,)
    assert not np.array_equal(idata["posterior"]["mu"][0], idata["posterior"]["mu"][1])
    with pytest.raises(OptionError, match="same sites"):
        to_arviz([guides[0], {"mu": torch.zeros(40)}], args=(Y, SIGMA), num_samples=40)
    with pytest.raises(OptionError, match="empty list"):
        to_arviz([])


def test_reweighting_moves_draws_towards_the_posterior():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 2):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = torch.tensor([1.0, 2.0])
    guide = AutoFlow(model, flow=None, init_scale=1.0).setup(y)
    # The posterior is N(1, 1/3); the guide N(0, 1). From 16,000 weighed draws with an ESS above
    # 3,000 the mean of 4,000 has a standard error below 0.015: 0.08 is 5 of them.
    idata = to_arviz(guide, args=(y,), num_samples=4000, reweighted=True)
    mu = idata["posterior"]["mu"].values
    assert mu.shape == (1, 4000)
    assert mu.mean() == pytest.approx(1.0, abs=0.08)
    assert mu.std() == pytest.approx(3**-0.5, abs=0.06)
    stats = idata["sample_stats"]
    assert stats.attrs["reweighted"] == 1
    assert stats.attrs["khat"] < 0.7
    gap = (stats["log_p"] - stats["log_q"]).values
    evidence = stats.attrs["log_evidence"]
    np.testing.assert_allclose(gap, evidence, atol=1e-4)
    covariance = torch.eye(2) + torch.ones(2, 2)
    exact = dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(y)
    assert evidence == pytest.approx(float(exact), abs=6 * stats.attrs["log_evidence_se"])
    with pytest.raises(OptionError, match="known density"):
        to_arviz({"mu": torch.zeros(5)}, model=model, args=(y,), reweighted=True)


def test_a_log_likelihood_that_cannot_be_made_says_why():
    def shared(y):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        which = pyro.sample("which", dist.Bernoulli(p), infer={"enumerate": "parallel"})
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(which, 1.0), obs=y)

    y = torch.randn(4)
    guide = AutoFlow(shared).setup(y)
    with pytest.warns(ConversionWarning, match="which"):
        idata = to_arviz(guide, args=(y,), num_samples=5)
    assert "which" in idata["posterior"].attrs["missing_log_likelihood"]
    assert "log_likelihood" not in idata
    assert idata["posterior"]["p"].shape == (1, 5)


def test_forgotten_arguments_are_named():
    guide = AutoFlow(schools).setup(Y, SIGMA)
    with pytest.warns(ConversionWarning, match=r"pass args=\.\.\., kwargs="):
        idata = to_arviz(guide, num_samples=5)
    assert idata["posterior"]["mu"].shape == (1, 5)
    assert list(idata["sample_stats"].data_vars) == ["log_q"]


def test_a_missing_draw_is_named():
    with pytest.warns(ConversionWarning, match="'tau'"):
        to_arviz({"mu": torch.zeros(5), "raw": torch.zeros(5, 8)}, model=schools, args=(Y, SIGMA))


def test_prior_that_cannot_be_drawn_is_left_out():
    def model(y):
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = torch.tensor(1.0)
    idata = to_arviz({"mu": torch.randn(9)}, model=model, args=(y,))
    assert "cannot be simulated" in idata["posterior"].attrs["missing_prior"]
    assert idata["posterior_predictive"]["y"].shape == (1, 9)
    assert idata["log_likelihood"]["y"].shape == (1, 9)


def test_factors_are_no_data():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("penalty", -(mu**2))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = torch.zeros(3)
    guide = AutoFlow(model).setup(y)
    idata = to_arviz(guide, args=(y,), num_samples=5, likelihood=["y"])
    assert list(idata["log_likelihood"].data_vars) == ["y"]
    assert list(idata["observed_data"].data_vars) == ["y"]


@pytest.mark.parametrize("count", [1_000_000])
def test_large_plates_do_not_blow_up(count):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", count):
            pyro.deterministic("shifted", mu + y, event_dim=0)
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = torch.zeros(count)
    guide = AutoFlow(model, flow=None, init_scale=1e-3).setup(y)
    with pytest.warns(ConversionWarning, match=r"groups=\['log_likelihood'"):
        idata = to_arviz(guide, args=(y,), num_samples=51)
    assert "log_likelihood" not in idata
    assert "posterior_predictive" not in idata
    assert list(idata["posterior"].data_vars) == ["mu"]
    mu = torch.tensor(idata["posterior"]["mu"].values[0], dtype=torch.float64)
    expected = dist.Normal(0.0, 1.0).log_prob(mu) - count * (0.5 * mu**2 + 0.9189385332)
    found = idata["sample_stats"]["log_p"].values[0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
    small = to_arviz(guide, args=(y,), num_samples=2, groups=["posterior", "log_likelihood"])
    assert small["log_likelihood"]["y"].shape == (1, 2, count)


def test_groups_can_be_chosen():
    guide = AutoFlow(schools).setup(Y, SIGMA)
    idata = to_arviz(guide, args=(Y, SIGMA), num_samples=5, groups=["posterior", "sample_stats"])
    # A method of ArviZ 0.2x's own class; under ArviZ 1 the children of a DataTree.
    found = idata.children if hasattr(idata, "children") else idata.groups()
    assert list(found) == ["posterior", "sample_stats"]
    with pytest.raises(OptionError, match="'likelihood'"):
        to_arviz(guide, args=(Y, SIGMA), groups=["likelihood"])


def test_vectors_can_have_named_dimensions():
    def model():
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        pyro.sample("y", dist.Normal(beta.sum(), 1.0), obs=torch.tensor(1.0))

    guide = AutoFlow(model).setup()
    options = {"num_samples": 5, "dims": {"beta": ["unit", "covariate"]}}
    idata = to_arviz(guide, **options, coords={"covariate": ["a", "b", "c"]})
    for group in ("posterior", "prior"):
        assert idata[group]["beta"].dims == ("chain", "draw", "unit", "covariate")
    assert list(idata["posterior"]["beta"].coords["covariate"].values) == ["a", "b", "c"]
    assert to_arviz(guide, num_samples=5, dims={"beta": "covariate"})["posterior"]["beta"].dims[
        2:
    ] == ("beta_dim_0", "covariate")
    for wrong in ({"gamma": ["unit"]}, {"beta": ["a", "b", "c"]}, {"beta": ["a", "a"]}):
        with pytest.raises(OptionError, match="dims"):
            to_arviz(guide, num_samples=5, dims=wrong)


def test_the_posterior_on_the_reals_where_it_is_asked_for():
    def model():
        pyro.sample("sd", dist.HalfNormal(torch.tensor(1.0)))
        pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("rows", 2):
            x = pyro.sample("x", dist.Exponential(1.0))
        pyro.sample("y", dist.Normal(x.sum(), 1.0), obs=torch.tensor(1.0))

    guide = AutoFlow(model).setup()
    groups = ["posterior", "unconstrained_posterior"]
    idata = to_arviz([guide, guide], num_samples=5, groups=groups)
    free, values = idata["unconstrained_posterior"], idata["posterior"]
    np.testing.assert_allclose(np.exp(free["sd"].values), values["sd"].values, rtol=1e-5)
    np.testing.assert_allclose(np.exp(free["x"].values), values["x"].values, rtol=1e-5)
    assert free["x"].dims == values["x"].dims
    assert free["p"].shape == (2, 5, 2)
    assert "unconstrained_posterior" not in to_arviz(guide, num_samples=5)


# ArviZ warns of weights that an untrained guide deserves.
@pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::RuntimeWarning"
)
@pytest.mark.skipif(not az.__version__.startswith("0."), reason="tests/arviz1 does it for ArviZ 1")
def test_what_people_do_next(tmp_path):
    guides = [perturbed(AutoFlow(schools).setup(Y, SIGMA)) for _ in range(2)]
    idata = to_arviz(guides, args=(Y, SIGMA), num_samples=500, seed=1)
    table = az.summary(idata, var_names=["mu", "theta"])
    assert len(table) == 9
    loo = az.loo(idata, pointwise=True)
    assert np.isfinite(loo.elpd_loo)
    other = to_arviz(AutoFlow(schools).setup(Y, SIGMA), args=(Y, SIGMA), num_samples=500)
    assert len(az.compare({"one": idata, "two": other})) == 2
    az.plot_forest(idata, var_names=["theta"])
    az.plot_pair(idata, var_names=["mu", "tau"])
    az.plot_ppc(idata, num_pp_samples=10)
    path = tmp_path / "fit.nc"
    idata.to_netcdf(str(path))
    again = az.from_netcdf(str(path))
    np.testing.assert_array_equal(again["posterior"]["theta"], idata["posterior"]["theta"])
    assert np.shape(again["sample_stats"].attrs["khat"]) == (2,)


def test_the_users_globals_are_left_alone():
    guide = AutoFlow(schools).setup(Y, SIGMA)
    before = dict(pyro.get_param_store().items()).keys()
    validation = torch.distributions.Distribution._validate_args
    state = torch.get_rng_state()
    one = to_arviz([guide, guide], args=(Y, SIGMA), num_samples=5)
    assert torch.equal(torch.get_rng_state(), state)
    again, other = (to_arviz(guide, args=(Y, SIGMA), num_samples=5, seed=seed) for seed in (0, 1))
    first, second = one["posterior"]["mu"].values
    assert (first == again["posterior"]["mu"].values[0]).all()
    assert (first != second).all()
    assert (first != other["posterior"]["mu"].values[0]).all()
    assert dict(pyro.get_param_store().items()).keys() == before
    assert torch.distributions.Distribution._validate_args == validation
    # Inside somebody else's handlers, nothing of ours appears in their trace.
    with poutine.trace() as outer:
        to_arviz(guide, args=(Y, SIGMA), num_samples=5)
    assert [n for n, s in outer.trace.nodes.items() if s["type"] == "sample"] == []


def test_without_arviz_the_cure_is_named(monkeypatch):
    real = builtins.__import__

    def blocked(name, *rest, **options):
        if name == "arviz":
            raise ImportError("No module named 'arviz'")
        return real(name, *rest, **options)

    monkeypatch.delitem(sys.modules, "arviz", raising=False)
    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(MissingPackageError, match=r"pip install 'pyro-nfvi\[arviz\]'"):
        to_arviz({"mu": torch.zeros(3)})


def test_a_source_of_another_kind():
    with pytest.raises(OptionError, match="got float"):
        to_arviz(3.0)
    with pytest.raises(OptionError, match="empty dict"):
        to_arviz({})
    with pytest.raises(OptionError, match="equally many"):
        to_arviz({"a": torch.zeros(3), "b": torch.zeros(4)})
    with pytest.raises(OptionError, match="leading axis"):
        to_arviz({"a": 1.0})
    with pytest.raises(OptionError, match="num_samples"):
        to_arviz({"a": torch.zeros(3)}, num_samples=0)


def test_a_fit_brings_the_values_that_it_trained_for_the_models_own_parameters():
    """The user's store neither supplies nor receives the model's ``pyro.param`` values."""

    def model(y):
        scale = pyro.param("scale", torch.tensor(9.0), constraint=dist.constraints.positive)
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, scale), obs=y)

    y = torch.tensor([0.9, 1.1, 1.0])
    fit = NFVI(model, "affine", max_steps=100, seed=0, progress=False).run(y)
    with pyro.get_param_store().scope():
        idata = to_arviz(fit, num_samples=10)
        assert "scale" not in pyro.get_param_store()
    mu = torch.as_tensor(idata["posterior"]["mu"].values)
    expected = dist.Normal(mu.unsqueeze(-1), fit.params["scale"]).log_prob(y)
    found = torch.as_tensor(idata["log_likelihood"]["y"].values)
    assert fit.params["scale"] < 8.9
    assert torch.allclose(found, expected.to(found), atol=1e-4)


def test_counts_are_whole_numbers_by_which_arviz_knows_them():
    def counts(y):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    y = torch.tensor([3.0, 0.0, 2.0])
    pyro.clear_param_store()
    found = to_arviz(AutoIAF(counts).setup(y), args=(y,), num_samples=20, predictions=(y,))
    for group in ("observed_data", "posterior_predictive", "prior_predictive", "predictions"):
        assert found[group]["y"].dtype == np.int64, group
    assert found["posterior"]["rate"].dtype.kind == "f"
    np.testing.assert_array_equal(found["observed_data"]["y"], y)
