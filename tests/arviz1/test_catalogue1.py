"""Every function of ArviZ 1 that takes a posterior is called on a fit, or named with the reason."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

az = pytest.importorskip("arviz")
if int(az.__version__.split(".")[0]) < 1:
    pytest.skip("this is the leg of ArviZ 1", allow_module_level=True)

from test_arviz1 import ours, read_groups  # noqa: E402  (skips where there are no draws)

pytestmark = pytest.mark.filterwarnings("ignore")

#: Functions that need the result alone.
PLAIN = [
    "convert_to_dataset", "convert_to_datatree", "diagnose", "ess", "eti", "extract",
    "get_log_likelihood", "get_unconstrained_samples", "hdi", "histogram", "iqr", "kde", "loo",
    "loo_expectations", "loo_influence", "loo_metrics", "loo_pit", "loo_score", "mad", "mcse",
    "mean", "median", "metrics", "mode", "plot_autocorr", "plot_convergence_dist", "plot_dgof",
    "plot_dgof_dist", "plot_dist", "plot_ess", "plot_ess_evolution", "plot_forest", "plot_lm",
    "plot_loo_interval", "plot_loo_pava", "plot_loo_pit", "plot_mcse", "plot_parallel",
    "plot_ppc_censored", "plot_ppc_dist", "plot_ppc_dist_pit", "plot_ppc_interval",
    "plot_ppc_pava", "plot_ppc_pit", "plot_ppc_tstat", "plot_prior_posterior",
    "plot_psense_dist", "plot_psense_quantities", "plot_rank", "plot_rank_dist", "plot_ridge",
    "plot_trace", "plot_trace_dist", "psense", "psense_summary", "qds", "rhat", "std", "summary",
    "thin", "var",
]  # fmt: skip


def stats(tree, name):
    return tree["sample_stats"][name]


def posterior(tree):
    return tree["posterior"].to_dataset()


#: Functions that need more; ``tree`` are the eight schools, ``counts`` Poisson data.
CALLS = {
    "bayes_factor": lambda tree, counts: az.bayes_factor(tree, var_names="mu", ref_vals=0),
    "bayesian_r2": lambda tree, counts: az.bayesian_r2(tree, pred_mean="theta", scale="tau"),
    "ci_in_rope": lambda tree, counts: az.ci_in_rope(tree, rope=(-1, 1), var_names=["mu"]),
    "combine_plots": lambda tree, counts: az.combine_plots(
        tree, [(az.plot_trace, {}), (az.plot_rank, {})], var_names=["mu", "tau"]
    ),
    "compare": lambda tree, counts: az.compare({"one": tree, "two": tree}),
    "dataset_to_dataarray": lambda tree, counts: az.dataset_to_dataarray(posterior(tree)),
    "dataset_to_dataframe": lambda tree, counts: az.dataset_to_dataframe(posterior(tree)),
    "ecdf": lambda tree, counts: az.ecdf(posterior(tree)["mu"]),
    "explode_dataset_dims": lambda tree, counts: az.explode_dataset_dims(
        posterior(tree), "schools"
    ),
    "generate_survival_curves": lambda tree, counts: az.generate_survival_curves(
        counts, var_names="y", num_samples=20
    ),
    "hexbin": lambda tree, counts: az.hexbin(posterior(tree)["mu"], posterior(tree)["tau"]),
    "histogram2d": lambda tree, counts: az.histogram2d(
        posterior(tree)["mu"], posterior(tree)["tau"]
    ),
    "kaplan_meier": lambda tree, counts: az.kaplan_meier(counts, var_names="y"),
    "kde2d": lambda tree, counts: az.kde2d(posterior(tree)["mu"], posterior(tree)["tau"]),
    "kl_divergence": lambda tree, counts: az.kl_divergence(tree, tree, var_names=["mu"]),
    "loo_approximate_posterior": lambda tree, counts: az.loo_approximate_posterior(
        tree, log_p=stats(tree, "log_p"), log_q=stats(tree, "log_q")
    ),
    "loo_i": lambda tree, counts: az.loo_i(0, tree),
    "loo_r2": lambda tree, counts: az.loo_r2(tree, var_name="y"),
    "loo_subsample": lambda tree, counts: az.loo_subsample(tree, observations=4, pointwise=True),
    "plot_bf": lambda tree, counts: az.plot_bf(tree, var_names="mu", ref_val=0),
    "plot_compare": lambda tree, counts: az.plot_compare(az.compare({"one": tree, "two": tree})),
    "plot_khat": lambda tree, counts: az.plot_khat(az.loo(tree, pointwise=True)),
    "plot_pair": lambda tree, counts: az.plot_pair(tree, var_names=["mu", "tau"]),
    "plot_pair_focus": lambda tree, counts: az.plot_pair_focus(
        tree, focus_var="tau", var_names=["mu"]
    ),
    "plot_ppc_rootogram": lambda tree, counts: az.plot_ppc_rootogram(counts),
    "residual_r2": lambda tree, counts: az.residual_r2(tree, pred_mean="theta", obs_name="y"),
    "rhat_nested": lambda tree, counts: az.rhat_nested(counts, superchain_ids=[0, 0, 1, 1]),
    "update_subsample": lambda tree, counts: az.update_subsample(
        az.loo_subsample(tree, observations=4, pointwise=True), tree, observations=2
    ),
    "wasserstein": lambda tree, counts: az.wasserstein(tree, tree, var_names=["mu"]),
    "weight_predictions": lambda tree, counts: az.weight_predictions([tree, tree], [0.5, 0.5]),
    "xarray_sel_iter": lambda tree, counts: list(az.xarray_sel_iter(posterior(tree))),
    "xarray_var_iter": lambda tree, counts: list(az.xarray_var_iter(posterior(tree))),
    "xarray_to_ndarray": lambda tree, counts: az.xarray_to_ndarray(posterior(tree)),
}
ENERGY = "of Hamiltonian Monte Carlo's energy, which independent draws do not have"
REFITS = "refits by a wrapper of the sampler's; pyro_nfvi.arviz has its own"
ARRAYS = "takes arrays or names, no posterior"
OTHERS = "reads another library's result, or a file"
#: Functions that cannot apply, each with the reason.
EXCUSED = {
    "bfmi": ENERGY,
    "plot_energy": ENERGY,
    "lfo_cv": REFITS,
    "loo_kfold": REFITS,
    "loo_moment_match": "needs the log joint as a function; pyro_nfvi.arviz.loo_moment_match",
    "reloo": REFITS,
    "plot_ecdf_pit": "of ranks by simulation-based calibration: pyro_nfvi.vsbc",
    "plot_ppc_pava_residuals": "of a predictor of binary data, by its name",
    **dict.fromkeys(("add_bands", "add_lines"), "draws into a picture that exists"),
    **dict.fromkeys(
        ("citations", "clear_data_home", "dict_to_dataset", "generate_dims_coords",
         "get_data_home", "get_function", "list_datasets", "load_arviz_data", "make_attrs",
         "ndarray_to_dataarray", "references_to_dataset"), ARRAYS
    ),
    **dict.fromkeys(
        ("from_cmdstanpy", "from_dict", "from_emcee", "from_netcdf", "from_numpyro",
         "from_numpyro_svi"), OTHERS
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def trees():
    import matplotlib as mpl

    from pyro_nfvi.arviz._tree import build_tree

    mpl.use("Agg")
    return build_tree(read_groups()), build_tree(read_groups("counts"))


def test_every_function_is_called_or_excused():
    functions = {
        name
        for name, value in inspect.getmembers(az, inspect.isfunction)
        if not name.startswith("_")
    }
    known = [*PLAIN, *CALLS, *EXCUSED]
    assert len(known) == len(set(known))
    assert sorted(functions - set(known)) == []


@pytest.mark.parametrize("name", [*PLAIN, *CALLS])
def test_on_a_fit(name, trees):
    import matplotlib.pyplot as plt

    if name not in dir(az):
        pytest.skip("not in this release of ArviZ")
    found = CALLS[name](*trees) if name in CALLS else getattr(az, name)(trees[0])
    plt.close("all")
    if name != "diagnose":  # which prints
        assert found is not None
    if name == "loo":
        assert np.isfinite(found.elpd)


def test_on_our_own_results(trees):
    import json

    from test_arviz1 import DRAWS

    expected = json.loads((DRAWS / "expected.json").read_text())
    az.plot_khat(ours(expected))
    az.plot_compare(az.compare({"ours": ours(expected), "raw": trees[0]}))
