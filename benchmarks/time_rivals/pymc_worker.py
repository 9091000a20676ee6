"""nutpie on models of PyMC, by a Python that has both: ``pymc_worker.py NAME DATA.npz SEED INTO``.

Four chains of 1,000 + 1,000, one after the other. The models have the sites and priors of
``posteriordb/models.py``; those of the sixteen that are not here are not in ``MODELS``.
``seconds`` and ``cpu`` include building and compiling the model, ``warm_`` the sampling alone.
"""

import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import nutpie
import pymc as pm

from benchmarks.time_rivals.costs import Clock, one_core

CHAINS, LENGTH = 4, 1000


def eight_schools_centered(y, sigma):
    mu, tau = pm.Normal("mu", 0.0, 5.0), pm.HalfCauchy("tau", 5.0)
    theta = pm.Normal("theta", mu, tau, shape=len(y))
    pm.Normal("y", theta, sigma, observed=y)


def eight_schools_noncentered(y, sigma):
    mu, tau = pm.Normal("mu", 0.0, 5.0), pm.HalfCauchy("tau", 5.0)
    raw = pm.Normal("theta_trans", 0.0, 1.0, shape=len(y))
    theta = pm.Deterministic("theta", mu + tau * raw)
    pm.Normal("y", theta, sigma, observed=y)


def autoregression(y, lags):
    alpha = pm.Normal("alpha", 0.0, 10.0)
    beta = pm.Normal("beta", 0.0, 10.0, shape=lags.shape[-1])
    sigma = pm.HalfCauchy("sigma", 2.5)
    pm.Normal("y", alpha + pm.math.dot(lags, beta), sigma, observed=y)


def kidscore(X, y):
    beta, sigma = pm.Flat("beta", shape=X.shape[-1]), pm.HalfCauchy("sigma", 2.5)
    pm.Normal("y", pm.math.dot(X, beta), sigma, observed=y)


def linear_regression(X, y):
    beta, sigma = pm.Flat("beta", shape=X.shape[-1]), pm.HalfFlat("sigma")
    pm.Normal("y", pm.math.dot(X, beta), sigma, observed=y)


def blr(X, y):
    beta, sigma = pm.Normal("beta", 0.0, 10.0, shape=X.shape[-1]), pm.HalfNormal("sigma", 10.0)
    pm.Normal("y", pm.math.dot(X, beta), sigma, observed=y)


def dogs(X, y):
    beta = pm.Normal("beta", 0.0, 100.0, shape=3)
    pm.Bernoulli("y", logit_p=pm.math.dot(X, beta), observed=y)


def wells(X, y):
    alpha, beta = pm.Flat("alpha"), pm.Flat("beta", shape=X.shape[-1])
    pm.Bernoulli("y", logit_p=alpha + pm.math.dot(X, beta), observed=y)


def radon(county, log_uppm, floor, log_radon, num_counties):
    mu, scale = pm.Normal("mu_alpha", 0.0, 10.0), pm.HalfNormal("sigma_alpha", 1.0)
    sigma = pm.HalfNormal("sigma_y", 1.0)
    beta = pm.Normal("beta", 0.0, 10.0, shape=2)
    raw = pm.Normal("alpha_raw", 0.0, 1.0, shape=int(num_counties))
    alpha = pm.Deterministic("alpha", mu + scale * raw)
    mean = alpha[county] + beta[0] * log_uppm + beta[1] * floor
    pm.Normal("log_radon", mean, sigma, observed=log_radon)


def irt_2pl(y):
    items, persons = y.shape
    by_person, by_item = pm.HalfCauchy("sigma_theta", 2.0), pm.HalfCauchy("sigma_a", 2.0)
    mu, scale = pm.Normal("mu_b", 0.0, 5.0), pm.HalfCauchy("sigma_b", 2.0)
    theta = pm.Normal("theta", 0.0, by_person, shape=persons)
    a = pm.LogNormal("a", 0.0, by_item, shape=(items, 1))
    b = pm.Normal("b", mu, scale, shape=(items, 1))
    pm.Bernoulli("y", logit_p=a * (theta - b), observed=y)


def logistic(X, y):
    beta = pm.Normal("beta", 0.0, 2.5, shape=X.shape[-1])
    pm.Bernoulli("y", logit_p=pm.math.dot(X, beta), observed=y)


def hierarchy(group, y, num_groups):
    mu, tau = pm.Normal("mu", 0.0, 5.0), pm.HalfNormal("tau", 2.0)
    sigma = pm.HalfNormal("sigma", 2.0)
    raw = pm.Normal("raw", 0.0, 1.0, shape=int(num_groups))
    pm.Normal("y", (mu + tau * raw)[group], sigma, observed=y)


MODELS = {
    "eight_schools-eight_schools_centered": eight_schools_centered,
    "eight_schools-eight_schools_noncentered": eight_schools_noncentered,
    "arK-arK": autoregression,
    "kidiq-kidscore_interaction": kidscore,
    "earnings-logearn_interaction": linear_regression,
    "nes2000-nes": linear_regression,
    "sblrc-blr": blr,
    "dogs-dogs": dogs,
    "wells_data-wells_interaction_model": wells,
    "radon_mn-radon_hierarchical_intercept_noncentered": radon,
    "irt_2pl-irt_2pl": irt_2pl,
    "logistic_50000": logistic,
    "hierarchy_1000": hierarchy,
}


def main():
    one_core()
    warnings.simplefilter("ignore")
    name, path, seed, into = sys.argv[1:]
    if name not in MODELS:
        raise SystemExit(f"{name} is not written in PyMC here")
    with np.load(path) as file:
        data = {key: file[key] for key in file.files}
    clock = Clock()
    with pm.Model() as model:
        MODELS[name](**data)
    compiled = nutpie.compile_pymc_model(model)
    warm = Clock()
    found = nutpie.sample(
        compiled, draws=LENGTH, tune=LENGTH, chains=CHAINS, cores=1, seed=int(seed) + 1,
        progress_bar=False,
    )  # fmt: skip
    posterior = found.posterior
    draws = {str(n): posterior[n].to_numpy() for n in posterior.data_vars}
    cost = {**clock.read(), **warm.read("warm_")}
    np.savez(into, **{n: v.reshape(-1, *v.shape[2:]) for n, v in draws.items()})
    about = {"divergences": int(found.sample_stats["diverging"].sum())}
    print(json.dumps({**cost, **about, "nutpie": nutpie.__version__, "pymc": pm.__version__}))


if __name__ == "__main__":
    main()
