"""The models, by name.

Each is a Pyro translation of the Stan program of the same name in
posteriordb, with the same parameters and priors. Models of exchangeable
observations use plates; time series and vectors use event dimensions.
"""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from benchmarks.posteriordb.blocks import (
    Restricted,
    design,
    flat_positive,
    flat_real,
    hidden_markov_log_likelihood,
    linear_predictor,
    linear_recurrence,
    linear_regression,
    normal_vector,
    runge_kutta,
)
from benchmarks.posteriordb.entry import Entry, as_index, as_tensor, tensors


def eight_schools_centered(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_noncentered(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta_trans = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * theta_trans, event_dim=0)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def autoregression(y, lags):
    """``lags[t, k]`` is the value ``k + 1`` steps before ``y[t]``."""
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", normal_vector(0.0, 10.0, lags.shape[-1]))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("times", len(y)):
        mean = alpha + linear_predictor(lags, beta)
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)


def prepare_autoregression(data):
    order, y = data["K"], as_tensor(data["y"])
    return {"y": y[order:], "lags": y.unfold(0, order, 1)[:-1].flip(-1)}


def garch11(y, sigma1):
    """The pair (alpha1, beta1) is uniform on the triangle alpha1 + beta1 < 1."""
    mu = pyro.sample("mu", flat_real())
    alpha0 = pyro.sample("alpha0", flat_positive())
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    alpha1 = pyro.deterministic("alpha1", weights[..., 0], event_dim=0)
    beta1 = pyro.deterministic("beta1", weights[..., 1], event_dim=0)

    shocks = alpha0[..., None] + alpha1[..., None] * (y[:-1] - mu[..., None]) ** 2
    first = (sigma1**2).expand((*shocks.shape[:-1], 1))
    variance = linear_recurrence(torch.cat([first, shocks], dim=-1), beta1)
    pyro.sample("y", dist.Normal(mu[..., None], variance.sqrt()).to_event(1), obs=y)


def gp_pois_regr(x, k):
    """Poisson counts whose log rate is a Gaussian process."""
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    f_tilde = pyro.sample("f_tilde", normal_vector(0.0, 1.0, len(x)))

    distance = (x[:, None] - x) / rho[..., None, None]
    covariance = alpha[..., None, None] ** 2 * torch.exp(-0.5 * distance**2)
    cholesky = torch.linalg.cholesky(covariance + 1e-10 * torch.eye(len(x)))
    f = (cholesky @ f_tilde[..., None])[..., 0]
    f = pyro.deterministic("f", f, event_dim=1)
    pyro.sample("k", dist.Poisson(f.exp()).to_event(1), obs=k)


def hmm_example(y):
    """Two hidden states with unit-variance normal emissions."""
    theta1 = pyro.sample("theta1", dist.Dirichlet(torch.ones(2)))
    theta2 = pyro.sample("theta2", dist.Dirichlet(torch.ones(2)))
    prior = dist.Normal(torch.tensor([3.0, 10.0]), 1.0).to_event(1)
    mu = pyro.sample("mu", Restricted(prior, constraints.positive_ordered_vector))

    transition = torch.stack([theta1, theta2], dim=-2)
    log_emission = dist.Normal(mu[..., None, :], 1.0).log_prob(y[:, None])
    pyro.factor("y", hidden_markov_log_likelihood(transition, log_emission))


def low_dim_gauss_mix(y):
    prior = normal_vector(0.0, 2.0, 2)
    mu = pyro.sample("mu", Restricted(prior, constraints.ordered_vector))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(torch.stack([theta, 1 - theta], dim=-1))
    with pyro.plate("observations", len(y)):
        mixture = dist.MixtureSameFamily(weights, dist.Normal(mu, sigma))
        pyro.sample("y", mixture, obs=y)


def kidscore(X, y):
    linear_regression(X, y, sigma_prior=dist.HalfCauchy(2.5))


def prepare_kidscore_interaction(data):
    hs, iq = as_tensor(data["mom_hs"]), as_tensor(data["mom_iq"])
    return {"X": design(hs, iq, hs * iq), "y": as_tensor(data["kid_score"])}


def prepare_logearn_interaction(data):
    height, male = as_tensor(data["height"]), as_tensor(data["male"])
    return {"X": design(height, male, height * male), "y": as_tensor(data["earn"]).log()}


def prepare_nes(data):
    column = {name: as_tensor(values) for name, values in data.items()}
    age_groups = [(column["age_discrete"] == group).double() for group in (2, 3, 4)]
    X = design(
        column["real_ideo"],
        column["race_adj"],
        *age_groups,
        column["educ1"],
        column["gender"],
        column["income"],
    )
    return {"X": X, "y": column["partyid7"]}


def blr(X, y):
    """Linear regression with proper priors, and no intercept."""
    beta = pyro.sample("beta", normal_vector(0.0, 10.0, X.shape[-1]))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    with pyro.plate("observations", len(y)):
        pyro.sample("y", dist.Normal(linear_predictor(X, beta), sigma), obs=y)


def lotka_volterra(times, y):
    """Predator and prey populations ``y``, observed with multiplicative noise."""
    rate_prior = dist.Normal(
        torch.tensor([1.0, 0.05, 1.0, 0.05]), torch.tensor([0.5, 0.05, 0.5, 0.05])
    )
    theta = pyro.sample("theta", Restricted(rate_prior.to_event(1), constraints.positive))
    sigma = pyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))
    z_init = pyro.sample("z_init", dist.LogNormal(math.log(10), 1.0).expand([2]).to_event(1))

    growth = torch.stack([theta[..., 0], -theta[..., 2]], dim=-1)
    interaction = torch.stack([-theta[..., 1], theta[..., 3]], dim=-1)

    def log_derivative(t, log_z):
        return growth + interaction * log_z.exp().flip(-1)

    log_z = runge_kutta(log_derivative, z_init.log(), times, substeps=4).movedim(0, -2)
    pyro.sample("y", dist.LogNormal(log_z, sigma[..., None, :]).to_event(2), obs=y)


def prepare_lotka_volterra(data):
    times = as_tensor([0.0] + data["ts"])
    return {"times": times, "y": as_tensor([data["y_init"]] + data["y"])}


def dogs(X, y):
    """Logistic regression of each trial's outcome on those of the dog's earlier ones."""
    beta = pyro.sample("beta", normal_vector(0.0, 100.0, 3))
    with pyro.plate("trials", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=linear_predictor(X, beta)), obs=y)


def prepare_dogs(data):
    shocked = as_tensor(data["y"])
    num_shocks = shocked.cumsum(-1) - shocked
    num_avoided = (1 - shocked).cumsum(-1) - (1 - shocked)
    return {"X": design(num_avoided, num_shocks).flatten(0, 1), "y": shocked.flatten()}


def wells_interaction(X, y):
    """Logistic regression with flat priors."""
    alpha = pyro.sample("alpha", flat_real())
    beta = pyro.sample("beta", flat_real(X.shape[-1]))
    with pyro.plate("households", len(y)):
        logits = alpha + linear_predictor(X, beta)
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def prepare_wells_interaction(data):
    dist100, arsenic = as_tensor(data["dist"]) / 100, as_tensor(data["arsenic"])
    X = torch.stack([dist100, arsenic, dist100 * arsenic], dim=-1)
    return {"X": X, "y": as_tensor(data["switched"])}


def radon_hierarchical_intercept_noncentered(county, log_uppm, floor, log_radon, num_counties):
    mu_alpha = pyro.sample("mu_alpha", dist.Normal(0.0, 10.0))
    sigma_alpha = pyro.sample("sigma_alpha", dist.HalfNormal(1.0))
    sigma_y = pyro.sample("sigma_y", dist.HalfNormal(1.0))
    beta = pyro.sample("beta", normal_vector(0.0, 10.0, 2))
    with pyro.plate("counties", num_counties):
        alpha_raw = pyro.sample("alpha_raw", dist.Normal(0.0, 1.0))
        alpha = pyro.deterministic("alpha", mu_alpha + sigma_alpha * alpha_raw, event_dim=0)
    with pyro.plate("houses", len(log_radon)):
        mean = alpha[..., county] + beta[..., 0] * log_uppm + beta[..., 1] * floor
        pyro.sample("log_radon", dist.Normal(mean, sigma_y), obs=log_radon)


def prepare_radon(data):
    return {
        "county": as_index(data["county_idx"]),
        "log_uppm": as_tensor(data["log_uppm"]),
        "floor": as_tensor(data["floor_measure"]),
        "log_radon": as_tensor(data["log_radon"]),
        "num_counties": data["J"],
    }


def irt_2pl(y):
    """Two-parameter item response model; ``y[i, j]`` is person j's answer to item i."""
    num_items, num_persons = y.shape
    sigma_theta = pyro.sample("sigma_theta", dist.HalfCauchy(2.0))
    sigma_a = pyro.sample("sigma_a", dist.HalfCauchy(2.0))
    mu_b = pyro.sample("mu_b", dist.Normal(0.0, 5.0))
    sigma_b = pyro.sample("sigma_b", dist.HalfCauchy(2.0))
    items = pyro.plate("items", num_items, dim=-2)
    persons = pyro.plate("persons", num_persons, dim=-1)
    with persons:
        theta = pyro.sample("theta", dist.Normal(0.0, sigma_theta))
    with items:
        a = pyro.sample("a", dist.LogNormal(0.0, sigma_a))
        b = pyro.sample("b", dist.Normal(mu_b, sigma_b))
    with items, persons:
        pyro.sample("y", dist.Bernoulli(logits=a * (theta - b)), obs=y)


MODELS: dict[str, Entry] = {
    "eight_schools-eight_schools_centered": Entry(
        eight_schools_centered,
        tensors("y", "sigma"),
        ("theta", "mu", "tau"),
        "funnel, heavy tail in tau",
    ),
    "eight_schools-eight_schools_noncentered": Entry(
        eight_schools_noncentered,
        tensors("y", "sigma"),
        ("theta", "mu", "tau"),
        "mild, heavy tail in tau",
    ),
    "arK-arK": Entry(
        autoregression,
        prepare_autoregression,
        ("alpha", "beta", "sigma"),
        "near Gaussian, correlated",
    ),
    "garch-garch11": Entry(
        garch11,
        tensors("y", "sigma1"),
        ("mu", "alpha0", "alpha1", "beta1"),
        "skewed, triangular constraint, mass near an edge",
    ),
    "gp_pois_regr-gp_pois_regr": Entry(
        gp_pois_regr,
        tensors("x", "k"),
        ("rho", "alpha", "f"),
        "noncentred Gaussian process, nonlinear dependence",
    ),
    "hmm_example-hmm_example": Entry(
        hmm_example,
        tensors("y"),
        ("theta1", "theta2", "mu"),
        "simplexes, ordered, skewed",
    ),
    "low_dim_gauss_mix-low_dim_gauss_mix": Entry(
        low_dim_gauss_mix,
        tensors("y"),
        ("mu", "sigma", "theta"),
        "ordered mixture, near Gaussian",
    ),
    "kidiq-kidscore_interaction": Entry(
        kidscore,
        prepare_kidscore_interaction,
        ("beta", "sigma"),
        "strongly correlated, badly scaled",
    ),
    "earnings-logearn_interaction": Entry(
        linear_regression,
        prepare_logearn_interaction,
        ("beta", "sigma"),
        "extremely correlated",
    ),
    "nes2000-nes": Entry(
        linear_regression,
        prepare_nes,
        ("beta", "sigma"),
        "correlated, several scales",
    ),
    "sblrc-blr": Entry(
        blr,
        tensors("X", "y"),
        ("beta", "sigma"),
        "correlated, very narrow",
    ),
    "hudson_lynx_hare-lotka_volterra": Entry(
        lotka_volterra,
        prepare_lotka_volterra,
        ("theta", "z_init", "sigma"),
        "differential equation, correlated, several scales",
    ),
    "dogs-dogs": Entry(
        dogs,
        prepare_dogs,
        ("beta",),
        "logistic regression, correlated",
        reference="stan",
    ),
    "wells_data-wells_interaction_model": Entry(
        wells_interaction,
        prepare_wells_interaction,
        ("alpha", "beta"),
        "logistic regression, correlated, flat priors",
        reference="stan",
    ),
    "radon_mn-radon_hierarchical_intercept_noncentered": Entry(
        radon_hierarchical_intercept_noncentered,
        prepare_radon,
        ("alpha", "beta", "mu_alpha", "sigma_alpha", "sigma_y"),
        "noncentred hierarchy, many dimensions",
        reference="stan",
    ),
    "irt_2pl-irt_2pl": Entry(
        irt_2pl,
        tensors("y"),
        ("sigma_theta", "theta", "sigma_a", "a", "mu_b", "sigma_b", "b"),
        "multiplicative scale trade-offs, many dimensions",
        reference="stan",
    ),
}
