"""Every function of ArviZ 0.2x that takes a posterior is called on a fit, or named with the reason.

``tests/arviz1/test_catalogue1.py`` has the same for ArviZ 1.
"""

from __future__ import annotations

import inspect
import json

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nfvi import AutoIAF, to_arviz

az = pytest.importorskip("arviz")
if int(az.__version__.split(".")[0]) >= 1:
    pytest.skip("this is the line of ArviZ 0.2x", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")


def model(x, y, seen=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        level = pyro.deterministic("level", mu + slope * x)
        pyro.sample("y", dist.Normal(level, 1.0), obs=y)


def binary(y):
    rate = pyro.sample("rate", dist.Beta(2.0, 2.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(rate), obs=y)


@pytest.fixture(scope="module")
def data():
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    x = torch.linspace(-1, 1, 6)
    guides = [AutoIAF(model).setup(x, 1 + x) for _ in range(2)]
    new = torch.tensor([2.0, 3.0])
    return to_arviz(guides, args=(x, 1 + x), num_samples=60, predictions=(new, torch.zeros(2)))


@pytest.fixture(scope="module")
def yes_or_no():
    pyro.set_rng_seed(0)
    y = torch.tensor([1.0, 0.0, 1.0, 1.0])
    pyro.clear_param_store()
    return to_arviz(AutoIAF(binary).setup(y), args=(y,), num_samples=60)


#: Functions that need the result alone.
PLAIN = [
    "convert_to_dataset", "convert_to_inference_data", "ess", "extract", "extract_dataset", "hdi",
    "loo", "mcse", "plot_autocorr", "plot_bpv", "plot_density", "plot_dist_comparison", "plot_ess",
    "plot_forest", "plot_mcse", "plot_pair", "plot_posterior", "plot_ppc", "plot_rank",
    "plot_trace", "plot_violin", "psens", "rhat", "summary", "to_datatree", "waic",
]  # fmt: skip


def mu(data):
    return data["posterior"]["mu"].values


def predicted(data):
    """Observed and predicted data, draws first."""
    return data["observed_data"]["y"].values, data["posterior_predictive"]["y"].values[0]


#: Functions that need more; each takes the result and the one with binary data.
CALLS = {
    "apply_test_function": lambda data, _: az.apply_test_function(data, lambda y, theta: y.mean()),
    "autocorr": lambda data, _: az.autocorr(mu(data)),
    "autocov": lambda data, _: az.autocov(mu(data)),
    "bayes_factor": lambda data, _: az.bayes_factor(data, var_name="mu", ref_val=0),
    "compare": lambda data, _: az.compare({"one": data, "two": data}),
    "concat": lambda data, _: az.concat(data, data, dim="chain"),
    "from_datatree": lambda data, _: az.from_datatree(az.to_datatree(data)),
    "kde": lambda data, _: az.kde(mu(data).ravel()),
    "loo_pit": lambda data, _: az.loo_pit(data, y="y"),
    "plot_bf": lambda data, _: az.plot_bf(data, var_name="mu", ref_val=0),
    "plot_compare": lambda data, _: az.plot_compare(az.compare({"one": data, "two": data})),
    "plot_dist": lambda data, _: az.plot_dist(mu(data)),
    "plot_dot": lambda data, _: az.plot_dot(mu(data)),
    "plot_ecdf": lambda data, _: az.plot_ecdf(mu(data).ravel()),
    "plot_elpd": lambda data, _: az.plot_elpd({"one": data, "two": data}),
    "plot_hdi": lambda data, _: az.plot_hdi(
        data["constant_data"]["x"].values, data["posterior"]["level"].values
    ),
    "plot_kde": lambda data, _: az.plot_kde(mu(data)),
    "plot_khat": lambda data, _: az.plot_khat(az.loo(data, pointwise=True)),
    "plot_lm": lambda data, _: az.plot_lm(idata=data, y="y", x="x", y_model="level"),
    "plot_loo_pit": lambda data, _: az.plot_loo_pit(data, y="y"),
    "plot_separation": lambda _, yes_or_no: az.plot_separation(yes_or_no, y="y", y_hat="y"),
    "plot_ts": lambda data, _: az.plot_ts(data, y="y", y_hat="y"),
    "psislw": lambda data, _: az.psislw(-data["log_likelihood"]["y"].values.reshape(-1, 6).T),
    "r2_samples": lambda data, _: az.r2_samples(*predicted(data)),
    "r2_score": lambda data, _: az.r2_score(*predicted(data)),
    "smooth_data": lambda data, _: az.smooth_data(
        data["observed_data"]["y"].values, predicted(data)[1].T
    ),
    "weight_predictions": lambda data, _: az.weight_predictions([data, data], [0.5, 0.5]),
    "wrap_xarray_ufunc": lambda data, _: az.wrap_xarray_ufunc(
        np.mean, data["posterior"]["mu"], ufunc_kwargs={"n_dims": 2}
    ),
}
FILES = ("to_json", "to_netcdf")
ENERGY = "of Hamiltonian Monte Carlo's energy, which independent draws do not have"
NO_POSTERIOR = "takes arrays or names, no posterior"
BOKEH = "of pictures by Bokeh, which is not installed"
OTHERS = "reads another library's result, or a file"
#: Functions that cannot apply, each with the reason.
EXCUSED = {
    "bfmi": ENERGY,
    "plot_energy": ENERGY,
    "plot_parallel": "of divergences, which independent draws do not have",
    "reloo": "refits by a wrapper of the sampler's: pyro_nfvi.arviz.reloo",
    "to_zarr": "refuses zarr 3 or later, which is installed; to_datatree().to_zarr() writes it",
    "from_zarr": "refuses zarr 3 or later, which is installed",
    **dict.fromkeys(
        ("clear_data_home", "dict_to_dataset", "list_datasets", "load_arviz_data", "make_ufunc",
         "numpy_to_data_array", "pytree_to_dataset"), NO_POSTERIOR
    ),
    **dict.fromkeys(
        ("ColumnDataSource", "create_layout", "output_file", "output_notebook", "show_layout",
         "to_cds"), BOKEH
    ),
    **dict.fromkeys(
        ("from_beanmachine", "from_cmdstan", "from_cmdstanpy", "from_dict", "from_emcee",
         "from_json", "from_netcdf", "from_numpyro", "from_pyjags", "from_pyro", "from_pystan",
         "from_pytree"), OTHERS
    ),
}  # fmt: skip


def test_every_function_is_called_or_excused():
    functions = {
        name
        for name, value in inspect.getmembers(az, inspect.isfunction)
        if not name.startswith("_")
    }
    known = [*PLAIN, *CALLS, *FILES, *EXCUSED]
    assert len(known) == len(set(known))
    assert sorted(functions - set(known)) == []


#: Pictures of the fast suite; the others are drawn in the slow one.
SHOWN = ("plot_compare", "plot_forest", "plot_khat")


def members():
    for name in [*PLAIN, *CALLS]:
        late = name.startswith("plot_") and name not in SHOWN
        yield pytest.param(name, marks=pytest.mark.slow) if late else name


@pytest.mark.parametrize("name", list(members()))
def test_on_a_fit(name, data, yes_or_no):
    import matplotlib.pyplot as plt

    if not hasattr(az, name):
        pytest.skip("not in this release of ArviZ")
    found = CALLS[name](data, yes_or_no) if name in CALLS else getattr(az, name)(data)
    plt.close("all")
    assert found is not None


def test_files(data, tmp_path):
    az.to_netcdf(data, str(tmp_path / "fit.nc"))
    again = az.from_netcdf(str(tmp_path / "fit.nc"))
    np.testing.assert_array_equal(again["predictions"]["y"], data["predictions"]["y"])
    json_data = to_arviz({"mu": torch.zeros(5)})
    az.to_json(json_data, str(tmp_path / "fit.json"))
    assert "posterior" in json.loads((tmp_path / "fit.json").read_text())
