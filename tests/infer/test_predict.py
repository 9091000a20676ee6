"""Predictions: latents alone are held, under the trained parameters, at data of any size."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.infer.reparam import LocScaleReparam

from pyro_nfvi import NFVI, AutoFlow, load, to_arviz, vsbc
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi.errors import DataWarning, ModelError, NotSetUpError, OptionError, ParamStoreError
from pyro_nfvi.infer._predict import predict_from

X = torch.linspace(-1, 1, 30)
Y = 0.5 + 2 * X + 0.1 * torch.randn(30, generator=torch.Generator().manual_seed(0))
#: The least-squares line, which the posterior means are.
A, B = torch.linalg.lstsq(torch.stack([torch.ones(30), X], -1), Y).solution.tolist()
FAR = X + 10  # as many rows, other covariates
THERE = A + 10 * B
COUNTS = (3, 30, 47)
#: A fit that is only looked at for what its draws are.
QUICK = {"guide": "affine", "max_steps": 20, "explore": "off", "precondition": False}


def run(model, *args, **options):
    settings = {"guide": "affine", "max_steps": 60, "explore": "off"} | options
    return NFVI(model, seed=0, progress=False, **settings).run(*args)


# ---- a catalogue of the ways to write one regression; each predicts 0.5 + 2 x at x


def plain(x, y=None):
    a, b = pyro.sample("a", dist.Normal(0.0, 5.0)), pyro.sample("b", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(x)):
        mean = pyro.deterministic("mean", a + b * x)
        return pyro.sample("y", dist.Normal(mean, 0.1), obs=y)


def always_observed(x, y):
    a, b = pyro.sample("a", dist.Normal(0.0, 5.0)), pyro.sample("b", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(a + b * x, 0.1), obs=y)


def matrix_product(x, y=None):
    """Cannot be run in a plate of particles; ``vmap`` can."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    mean = torch.stack([torch.ones_like(x), x], -1) @ w
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(mean, 0.1), obs=y)


def one_by_one(x, y=None):
    """Asks a tensor whether it is true: no two draws can be run together."""
    a, b = pyro.sample("a", dist.Normal(0.0, 5.0)), pyro.sample("b", dist.Normal(0.0, 5.0))
    mean = a + b * x if a < 1e9 else x
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(mean, 0.1), obs=y)


def with_parameter(x, y=None):
    off = pyro.param("off", torch.tensor(0.0))
    b = pyro.sample("b", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(x)):
        mean = pyro.deterministic("mean", off + b * x)
        pyro.sample("y", dist.Normal(mean, 0.1), obs=y)


def sub_sampled(x, y=None):
    a, b = pyro.sample("a", dist.Normal(0.0, 5.0)), pyro.sample("b", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(x), subsample_size=min(len(x), 10)) as rows:
        mean = pyro.deterministic("mean", a + b * x[rows])
        pyro.sample("y", dist.Normal(mean, 0.1), obs=None if y is None else y[rows])


def reparameterised(x, y=None):
    with poutine.reparam(config={"a": LocScaleReparam(0.0)}):
        a = pyro.sample("a", dist.Normal(torch.zeros(()), 5.0))
    b = pyro.sample("b", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(a + b * x, 0.1), obs=y)


def sequential(x, y=None):
    a, b = pyro.sample("a", dist.Normal(0.0, 5.0)), pyro.sample("b", dist.Normal(0.0, 5.0))
    for i in pyro.plate("rows", len(x)):
        pyro.sample(f"y_{i}", dist.Normal(a + b * x[i], 0.1), obs=None if y is None else y[i])


def to_event(x, y=None):
    a, b = pyro.sample("a", dist.Normal(0.0, 5.0)), pyro.sample("b", dist.Normal(0.0, 5.0))
    mean = a[..., None] + b[..., None] * x if a.dim() else a + b * x
    pyro.sample("y", dist.Normal(mean, 0.1).to_event(1), obs=y)


def as_module():
    class Net(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Parameter(torch.tensor(0.0))
            self.b = pyro.nn.PyroSample(dist.Normal(0.0, 5.0))

        def forward(self, x, y=None):
            a, b = self.a, self.b
            with pyro.plate("rows", len(x)):
                return pyro.sample("y", dist.Normal(a + b * x, 0.1), obs=y)

    return Net()


CATALOGUE = {
    "plain": plain,
    "always observed": always_observed,
    "matrix product": matrix_product,
    "one by one": one_by_one,
    "parameter": with_parameter,
    "subsampled": sub_sampled,
    "reparameterised": reparameterised,
    "sequential": sequential,
    "to_event": to_event,
    "module": as_module,
}


#: Writings that the fast tests leave out: others run the same code.
SLOW = ("always observed", "reparameterised", "to_event", "module")
#: Writings that get the fit of another one, with the way in which their particles are run.
LENT = {"one by one": "loop", "sequential": "plate"}


@functools.cache
def fitted(name):
    """A writing of the catalogue and its fit."""
    model = CATALOGUE[name]
    model = model() if model is as_module else model
    if name in LENT:  # slow to fit, so that the fit of another writing is lent
        fit = fitted("plain")[1]
        slow = LogJoint(model, (X, Y), {}, fit.latent, way=LENT[name])
        return model, dataclasses.replace(fit, log_joint=slow)
    # There is no Gaussian to start from where data are subsampled.
    steps = 300 if name == "subsampled" else 60
    return model, run(model, X, Y, max_steps=steps)


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CATALOGUE
    ]
)
def entry(request):
    return request.param, *fitted(request.param)


@pytest.mark.parametrize("count", COUNTS)
def test_predictions_at_other_data_of_any_size(entry, count):
    name, _, fit = entry
    x = torch.linspace(5, 10, count)
    args = (x, torch.zeros(count)) if name == "always observed" else (x,)
    num = 20 if name == "one by one" else 200
    found = fit.predict(*args, num_samples=num, seed=0)
    rows = (
        torch.stack([found[f"y_{i}"] for i in range(count)], -1)
        if name == "sequential"
        else found["y"]
    )
    assert rows.shape == (num, count)
    # At 10 the spread is 0.35, so five standard errors of the mean of 200 are 0.13; the fits
    # themselves are short. A mean that forgot x is 10 off.
    assert float((rows.mean(0) - (A + B * x)).abs().max()) < (1.0 if name == "one by one" else 0.4)
    if "mean" in found:
        assert found["mean"].shape == (num, count)
        assert float((rows - found["mean"]).std()) == pytest.approx(0.1, rel=0.15)


def test_the_way_is_the_fastest_that_agrees_with_single_runs(entry):
    name, _, fit = entry
    found = fit.predict(X, Y, num_samples=20)
    expected = {"matrix product": "vmap", "one by one": "loop"}.get(name, "plate")
    if name == "matrix product" and torch.__version__ < "2.6":
        expected = "loop"  # slower, and right: vmap is not taken there
    assert found.how == expected


def rows_of(found):
    """Predictions of the data ``(draws, rows)``, in one site or one for each row."""
    return torch.cat([v.reshape(len(v), -1) for name, v in found.items() if name[0] == "y"], 1)


def draws_of(fit):
    """Every public call that returns draws of a fit's latents, by name."""
    yield "sample", fit.sample(50, seed=0)
    yield "resample", fit.resample(50, seed=0)
    yield "sample_posterior", fit.guide.sample_posterior(50)
    with fit.model_scope(), torch.no_grad():
        each = [fit.guide(*fit.args, **fit.kwargs) for _ in range(20)]
    yield "guide()", {name: torch.stack([one[name] for one in each]) for name in each[0]}
    if not fit.log_joint.subsampled and fit.log_joint.how == "plate" and "b" in fit.latent.sites:
        nuts = fit.to_nuts(num_samples=20, warmup_steps=20, num_chains=1, seed=0, progress=False)
        yield "get_samples", nuts.get_samples()
        yield "NutsRun.samples", {name: value[0] for name, value in nuts.samples.items()}
        with fit.model_scope():
            assert float(rows_of(nuts.predict(FAR, Y)).mean()) == pytest.approx(THERE, abs=0.5)


def by_predictive(fit, model, draws, *args):
    """Pyro's own predictions ``(draws, rows)``; of a plate that subsamples, of the rows drawn."""
    with fit.model_scope():
        found = Predictive(model, posterior_samples=draws)(*args)
    return rows_of(found)


def test_all_draws_predict_right_in_pyros_own_predictive(entry):
    name, model, fit = entry
    args = (FAR, Y) if name == "always observed" else (FAR,)
    if name == "always observed":
        model = poutine.uncondition(model)
    for source, draws in draws_of(fit):
        found = by_predictive(fit, model, draws, *args)
        assert found.shape[1] == (10 if name == "subsampled" else 30), source
        # Ten rows of 30 for each of 20 draws or more: five standard errors are 0.4.
        assert float(found.mean()) == pytest.approx(THERE, abs=0.5), source


@pytest.mark.parametrize("name", ["plain", "parameter"])
def test_draws_of_loaded_fits_predict_right_in_pyros_own_predictive(name, tmp_path):
    model, fit = fitted(name)
    fit.save(tmp_path / "fit")
    again = load(tmp_path / "fit", model=model, args=(X, Y))
    for source, draws in draws_of(again):
        found = by_predictive(again, model, draws, FAR)
        assert float(found.mean()) == pytest.approx(THERE, abs=0.5), source


@pytest.mark.slow
def test_truths_of_vsbc_predict_right_in_pyros_own_predictive():
    found = vsbc(plain, (X, Y), num_simulations=2, num_workers=1, seed=0, progress=False, **QUICK)
    assert sorted(found.truth) == ["a", "b"]
    new = Predictive(plain, posterior_samples=found.truth)(FAR)["y"]
    means = found.truth["a"][:, None] + found.truth["b"][:, None] * FAR
    torch.testing.assert_close(new, means.to(new), rtol=0, atol=0.6)  # six of the noise's sds


def test_a_loaded_fit_predicts_under_its_parameters(tmp_path):
    fit = fitted("parameter")[1]
    fit.save(tmp_path / "fit")
    again = load(tmp_path / "fit", model=with_parameter, args=(X, Y))
    assert torch.equal(again.predict(FAR, seed=3)["y"], fit.predict(FAR, seed=3)["y"])
    assert float(again.predict(FAR)["y"].mean()) == pytest.approx(THERE, abs=0.5)
    assert list(pyro.get_param_store()) == []
    with pytest.raises(NotSetUpError, match="model=model"):
        load(tmp_path / "fit").predict(FAR)


def test_seed_and_random_state():
    fit = fitted("plain")[1]
    state = torch.get_rng_state()
    one, other = fit.predict(FAR, seed=1)["y"], fit.predict(FAR, seed=1)["y"]
    assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(one, fit.predict(FAR, seed=2)["y"])
    assert not torch.equal(fit.predict(FAR)["y"], fit.predict(FAR)["y"])


def test_sites_and_reweighting():
    fit = fitted("plain")[1]
    assert list(fit.predict(FAR, sites=["mean", "a"], num_samples=4)) == ["mean", "a"]
    found = fit.predict(FAR, reweighted=True, num_samples=300, seed=0)["y"]
    assert float(found.mean()) == pytest.approx(THERE, abs=0.3)
    with pytest.raises(OptionError, match="no site 'z'"):
        fit.predict(FAR, sites=["z"])
    with pytest.raises(OptionError, match="as a list"):
        fit.predict(FAR, sites="mean")
    with pytest.raises(OptionError, match="num_samples"):
        fit.predict(FAR, num_samples=0)
    for seed in ("x", -1, 1.5):
        with pytest.raises(OptionError, match="seed"):
            fit.predict(FAR, seed=seed)
    with pytest.raises(OptionError, match="no site 'effect'"):
        fit.predict(FAR, from_prior=["effect"])


# ------------------------------------------------------------------------ latents of the rows


def grouped(group, count, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("groups", count):
        theta = pyro.sample("theta", dist.Normal(mu, 1.0))
    with pyro.plate("rows", len(group)):
        pyro.sample("y", dist.Normal(theta[..., group], 0.1), obs=y)


@pytest.fixture(scope="module")
def groups():
    generator = torch.Generator().manual_seed(1)
    group = torch.arange(40) % 4
    theta = torch.tensor([3.0, 4.0, 5.0, 6.0])
    return run(grouped, group, 4, theta[group] + 0.1 * torch.randn(40, generator=generator))


def test_known_groups_are_held(groups):
    found = groups.predict(torch.tensor([3, 0]), 4, num_samples=400, seed=0)["y"]
    assert found.mean(0).tolist() == pytest.approx([6.0, 3.0], abs=0.1)


def test_new_groups_are_refused_or_drawn_from_their_prior(groups):
    with pytest.raises(
        ModelError, match=r"'theta' in the plate 'groups'.*\(4,\).*\(6,\).*from_prior"
    ):
        groups.predict(torch.tensor([5]), 6)
    found = groups.predict(torch.tensor([5]), 6, from_prior=["theta"], num_samples=2000, seed=0)
    assert found["theta"].shape == (2000, 6)
    # mu has the standard deviation 0.5, theta given mu 1: five standard errors.
    assert float(found["y"].std()) == pytest.approx(math.sqrt(1.26), rel=0.1)
    with pytest.raises(OptionError, match="no site 'nobody'"):
        groups.predict(torch.tensor([5]), 6, from_prior=["nobody"])


@pytest.mark.slow
def test_a_longer_series_is_a_forecast():
    def walk(length, y=None):
        s = pyro.sample("s", dist.HalfNormal(1.0))
        z = torch.zeros(())
        for t in range(length):
            z = pyro.sample(f"z_{t}", dist.Normal(z, s))
            seen = None if y is None or t >= len(y) else y[t]
            pyro.sample(f"y_{t}", dist.Normal(z, 0.05), obs=seen)

    y = torch.tensor([0.3, 0.8, 1.1, 1.9, 2.2])
    fit = run(walk, 5, y)
    found = fit.predict(8, num_samples=2000, seed=0)
    assert [float(found[f"y_{t}"].mean()) for t in (4, 7)] == pytest.approx([2.2, 2.2], abs=0.1)
    assert float(found["y_7"].std()) > 2 * float(found["y_4"].std())
    assert "z_7" in found
    assert "z_3" not in found


def by_row(x, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(x)):
        effect = pyro.sample("effect", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(effect + x, 0.1), obs=y)


def test_a_latent_of_each_row_is_held_in_silence_only_where_that_was_said():
    fit = run(by_row, X, X + torch.linspace(2, 4, 30))
    with pytest.warns(DataWarning, match=r"'effect' have an entry for each row.*from_prior=\[\]"):
        held = fit.predict(FAR, num_samples=100, seed=0)["y"]
    assert torch.equal(held, fit.predict(FAR, num_samples=100, seed=0, from_prior=[])["y"])
    assert held.mean(0).tolist() == pytest.approx(
        (FAR + torch.linspace(2, 4, 30)).tolist(), abs=0.3
    )
    fresh = fit.predict(FAR, num_samples=1000, seed=0, from_prior=["effect"])["y"]
    # 30,000 effects of sd 1 about one mu each, which has the sd 0.19: five standard errors of it.
    assert (fresh.mean(0) - FAR - 3).abs().max() < 0.3
    assert float((fresh - FAR).std()) == pytest.approx(1.02, rel=0.05)
    assert "effect" not in fit.predict(num_samples=10)


def sequential_sub_sampled(x, y=None):
    a, b = pyro.sample("a", dist.Normal(0.0, 5.0)), pyro.sample("b", dist.Normal(0.0, 5.0))
    for i in pyro.plate("rows", len(x), subsample_size=min(len(x), 7)):
        seen = None if y is None else y[i]
        pyro.sample(f"y_{int(i)}", dist.Normal(a + b * x[i], 0.1), obs=seen)


@pytest.fixture(scope="module")
def sequential_fit():
    return run(sequential_sub_sampled, X, Y, max_steps=300)


@pytest.mark.parametrize("new", [(), (FAR, Y), (FAR[:17],)])
def test_a_sequential_plate_that_subsamples_is_gone_through(new, sequential_fit):
    """30 and 17 rows in batches of seven: the last one goes round, and rows are drawn once."""
    fit = sequential_fit
    found = fit.predict(*new, num_samples=100, seed=0)
    x = new[0] if new else X
    assert sorted(found) == sorted(f"y_{i}" for i in range(len(x)))
    rows = torch.stack([found[f"y_{i}"] for i in range(len(x))], -1)
    assert float((rows.mean(0) - (A + B * x)).abs().max()) < 0.5


def process(x, y=None):
    """A Gaussian process at the covariates: no plate says that its entries are the rows'."""
    cov = torch.exp(-0.5 * (x[:, None] - x) ** 2) + 1e-3 * torch.eye(len(x))
    f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(len(x)), cov))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(f, 0.1), obs=y)


def white_noise(x, y=None):
    f = pyro.sample("f", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(f + x, 0.1).to_event(1), obs=y)


def outputs(x, y=None):
    """Two coefficients and two outputs of each row: nothing belongs to a row."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", len(x)):
        mean = w.unsqueeze(-2) * x.unsqueeze(-1)
        pyro.sample("y", dist.Normal(mean, 0.1).to_event(1), obs=y)


@pytest.mark.parametrize(
    ("model", "told"), [(process, True), (white_noise, True), (outputs, False)]
)
def test_entries_for_each_row_are_told_without_a_plate_too(model, told):
    y = torch.stack([X, Y], -1) if model is outputs else Y
    fit = run(model, X, y, **QUICK)
    for new in (FAR, FAR[:2]):
        if told and len(new) != len(X):
            with pytest.raises(ModelError, match=r"'f' has shape \(30,\)"):
                fit.predict(new, num_samples=3)
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit.predict(new, num_samples=3)
        assert ["entry for each row" in str(one.message) for one in caught] == [True] * told


def test_values_imputed_for_fitted_rows_are_drawn_anew_at_others():
    seen = torch.arange(30) % 3 > 0

    def missing(x, y=None, seen=None):
        a, b = pyro.sample("a", dist.Normal(0.0, 5.0)), pyro.sample("b", dist.Normal(0.0, 5.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(a + b * x, 0.1), obs=y, obs_mask=seen)

    fit = run(missing, X, Y, seen)
    for rows in (slice(30), slice(7)):
        found = fit.predict(FAR[rows], Y[rows], seen[rows], num_samples=200, seed=0)["y"]
        assert float((found.mean(0) - A - B * FAR[rows]).abs().max()) < 0.5
    assert "y_unobserved" not in fit.predict(num_samples=5)


# --------------------------------------------------------------------------- discrete sites


def mixture(count, y=None):
    loc = pyro.sample("loc", dist.Normal(torch.tensor([-4.0, 4.0]), 1.0).to_event(1))
    weight = pyro.sample("weight", dist.Beta(1.0, 1.0))
    with pyro.plate("rows", count):
        k = pyro.sample("k", dist.Bernoulli(weight), infer={"enumerate": "parallel"})
        here = torch.where(k > 0.5, loc[..., 1:], loc[..., :1])
        pyro.sample("y", dist.Normal(here, 0.5), obs=y)


def test_components_of_new_rows_come_from_their_prior_and_of_old_rows_from_the_data():
    y = torch.cat([torch.full((5,), -4.0), torch.full((35,), 4.0)])
    fit = run(mixture, 40, y)
    new = fit.predict(40, num_samples=500, seed=0)
    assert new["k"].shape == (500, 40)
    # A share of 36 in 42, by the posterior Beta(36, 6): four standard errors.
    assert float((new["y"][:, 0] > 0).double().mean()) == pytest.approx(36 / 42, abs=0.065)
    old = fit.predict(num_samples=200, seed=0)
    assert "k" not in old
    assert float((old["y"][:, 0] > 0).double().mean()) == 0
    assert float((old["y"][:, 9] > 0).double().mean()) == 1


def test_a_shared_discrete_site_keeps_what_the_data_say_of_it():
    def change(count, y=None):
        k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        mu = pyro.sample("mu", dist.Normal(3.0, 0.5))
        with pyro.plate("rows", count):
            pyro.sample("y", dist.Normal(torch.where(k > 0.5, mu, -mu), 1.0), obs=y)

    fit = run(change, 10, torch.full((10,), -3.0))
    assert float((fit.predict(3, num_samples=300)["y"] > 0).double().mean()) < 0.02
    fresh = fit.predict(3, num_samples=300, from_prior=["k"], seed=0)["y"]
    assert 0.3 < float((fresh > 0).double().mean()) < 0.7


# ------------------------------------------------------------------------- what is refused


def test_wrong_arguments_and_data():
    fit = fitted("plain")[1]
    with pytest.raises(ModelError, match="arguments of predict"):
        fit.predict(X, Y, 3)
    with pytest.warns(DataWarning, match="'mean' hold NaN"):
        fit.predict(torch.tensor([1.0, math.nan]), sites=["mean"])


def test_several_subsampling_plates_are_refused():
    def crossed(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with (
            pyro.plate("i", 6, subsample_size=3, dim=-2) as i,
            pyro.plate("j", 4, subsample_size=2) as j,
        ):
            pyro.sample("y", dist.Normal(a, 1.0), obs=y[i][:, j])

    fit = run(crossed, torch.zeros(6, 4), **QUICK)
    with pytest.raises(ModelError, match="'i', 'j' all subsample"):
        fit.predict(torch.zeros(6, 4))


def test_a_model_without_a_site_to_predict():
    def by_factor(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.factor("f", -0.5 * (y - a).square().sum())

    fit = run(by_factor, torch.zeros(()), **QUICK)
    with pytest.raises(ModelError, match=r"pyro\.factor alone"):
        fit.predict(torch.zeros(()))


def test_a_distribution_without_sample_is_named():
    class NoSample(dist.Normal):
        def sample(self, *args, **kwargs):
            raise NotImplementedError

        def rsample(self, *args, **kwargs):
            raise NotImplementedError

    def model(y):
        a = pyro.sample("a", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("y", NoSample(a, 1.0), obs=y)

    fit = run(model, torch.tensor(1.0), **QUICK)
    with pytest.raises(ModelError, match="'y' cannot be drawn"):
        fit.predict(torch.tensor(1.0))


# ------------------------------------------------------------- parameters out of their scope


def test_a_guide_beside_untrained_parameters_refuses(tmp_path):
    fit = fitted("parameter")[1]
    for prepare in (lambda: None, lambda: pyro.param("off", torch.tensor(0.0))):
        pyro.clear_param_store()
        prepare()
        with pytest.raises(ParamStoreError, match=r"'off'.*fit\.predict"):
            Predictive(with_parameter, guide=fit.guide, num_samples=3)(FAR)
        with pytest.raises(ParamStoreError, match="'off'"):
            to_arviz(fit.guide, args=(X, Y), num_samples=5)
    with fit.model_scope():
        found = Predictive(with_parameter, guide=fit.guide, num_samples=50)(FAR)["y"]
        assert float(found.mean()) == pytest.approx(THERE, abs=0.5)
    pyro.clear_param_store()
    pyro.param("off", fit.params["off"])
    found = Predictive(with_parameter, guide=fit.guide, num_samples=50)(FAR)["y"]
    assert float(found.mean()) == pytest.approx(THERE, abs=0.5)
    pyro.clear_param_store()


@pytest.mark.slow
def test_two_fits_of_one_module_keep_their_own_parameters():
    net = as_module()
    one = run(net, X, Y)
    before = net.a.item()
    other = run(net, X, Y + 0.5)
    assert float(one.predict(FAR, seed=0)["y"].mean()) == pytest.approx(THERE, abs=0.3)
    assert float(other.predict(FAR, seed=0)["y"].mean()) == pytest.approx(THERE + 0.5, abs=0.3)
    assert before == pytest.approx(float(one.params["a"]), abs=1e-4)
    assert net.a.item() == pytest.approx(float(other.params["a"]), abs=1e-4)
    with pytest.raises(ParamStoreError, match="another value"):
        Predictive(net, guide=one.guide, num_samples=3)(FAR)


def test_predictions_need_no_fit_at_all():
    """Draws from anywhere will do."""
    fit = fitted("plain")[1]
    draws = {"a": torch.zeros(7), "b": torch.ones(7), "mean": torch.zeros(7, 30)}
    found = predict_from(fit.log_joint, draws, (FAR,))
    torch.testing.assert_close(found["mean"], FAR.expand(7, 30))


@pytest.mark.slow
def test_the_mixture_of_two_modes_predicts_both():
    def two(x):
        m = pyro.sample("m", dist.Normal(torch.tensor(1.0), 5.0))
        pyro.sample("o", dist.Normal(m.abs(), 0.3), obs=torch.tensor(6.0))
        with pyro.plate("rows", len(x)):
            mean = pyro.deterministic("mean", m * x)
            pyro.sample("y", dist.Normal(mean, 0.1))

    def observed(x, y):
        return poutine.condition(two, data={"y": y})(x) if y is not None else two(x)

    fit = NFVI(observed, seed=0, progress=False).run(torch.zeros(2), torch.zeros(2))
    assert len(fit.modes) == 2
    new = torch.full((5,), 2.0)
    found = fit.predict(new, None, num_samples=400, seed=0)["mean"]
    assert set(found.div(12).round().unique().tolist()) == {-1.0, 1.0}
    for source, draws in draws_of(fit):
        again = by_predictive(fit, two, draws, new)
        assert set(again.div(12).round().unique().tolist()) <= {-1.0, 1.0}, source
        if len(again) >= 50:
            assert (again > 0).any(), source
            assert (again < 0).any(), source


def test_a_guide_of_the_users_own_is_guarded_only_by_its_fit():
    guide = AutoFlow(with_parameter, None)
    run(with_parameter, X, Y, **(QUICK | {"guide": guide}))
    with torch.no_grad(), pytest.raises(ParamStoreError):
        guide(X, Y)
