"""Misspelt options are named with the one that was meant, in the calls that people make most."""

from __future__ import annotations

import pytest

import pyro_nfvi as nfvi
from pyro_nfvi import arviz, plots, vae
from pyro_nfvi.distributions._maximum_likelihood import fit_density
from pyro_nfvi.errors import OptionError

CALLS = [
    (nfvi.load, "modell", "model"),
    (nfvi.map_fits, "n_jobs", "num_workers"),
    (nfvi.Fit.sample, "num_sample", "num_samples"),
    (nfvi.Fit.summary, "reweigthed", "reweighted"),
    (nfvi.to_arviz, "coord", "coords"),
    (arviz.loo_approximate, "var_names", "var_name"),
    (arviz.loo_moment_match, "draws", "num_samples"),
    (arviz.save_netcdf, "engin", "engine"),
    (fit_density, "epochs", "max_steps"),
    (plots.plot_loss, "titel", "title"),
    (plots.plot_marginals, "label", "labels"),
    (plots.plot_pair, "titel", "title"),
    (plots.plot_density_2d, "bound", "bounds"),
    (plots.plot_calibration, "bin", "bins"),
    (vae.evaluate, "nll_sample", "nll_samples"),
    (vae.plot_samples, "column", "columns"),
]


@pytest.mark.parametrize(
    ("call", "given", "meant"), CALLS, ids=lambda one: getattr(one, "__qualname__", one)
)
def test_the_option_that_was_meant_is_named(call, given, meant):
    with pytest.raises(OptionError, match=f"no option '{given}'. Did you mean {meant}?"):
        call(**{given: 1})
