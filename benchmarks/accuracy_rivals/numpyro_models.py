"""The sixteen posteriors in NumPyro, with the sites and priors of ``posteriordb/models.py``.

Every model takes the arguments of its Pyro twin as NumPy or JAX arrays. A ``restricted`` or
``flat`` site is an improper one whose density, if it has one, is a factor beside it.
"""

import math

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints


def flat(name, support=constraints.real, shape=()):
    return numpyro.sample(name, dist.ImproperUniform(support, (), shape))


def restricted(name, base, support):
    """The density of ``base`` on ``support``, without renormalising it."""
    value = flat(name, support, base.event_shape)
    numpyro.factor(f"{name}_density", base.log_prob(value))
    return value


def vector(loc, scale, size):
    return dist.Normal(loc, scale).expand([size]).to_event(1)


def eight_schools_centered(y, sigma):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_noncentered(y, sigma):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(y)):
        theta_trans = numpyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * theta_trans)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def autoregression(y, lags):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", vector(0.0, 10.0, lags.shape[-1]))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    with numpyro.plate("times", len(y)):
        numpyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y)


def garch11(y, sigma1):
    mu = flat("mu")
    alpha0 = flat("alpha0", constraints.positive)
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(3)))
    alpha1 = numpyro.deterministic("alpha1", weights[0])
    beta1 = numpyro.deterministic("beta1", weights[1])
    shocks = alpha0 + alpha1 * (y[:-1] - mu) ** 2
    variance = recurrence(jnp.concatenate([jnp.reshape(sigma1**2, (1,)), shocks]), beta1)
    numpyro.sample("y", dist.Normal(mu, jnp.sqrt(variance)).to_event(1), obs=y)


def recurrence(inputs, coefficient):
    """``x[t] = inputs[t] + coefficient x[t - 1]`` by doubling, which is faster here than a scan."""
    x, power, lag = inputs, coefficient, 1
    while lag < len(inputs):
        x = x + power * jnp.concatenate([jnp.zeros(lag), x[:-lag]])
        power, lag = power**2, 2 * lag
    return x


def gp_pois_regr(x, k):
    rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
    f_tilde = numpyro.sample("f_tilde", vector(0.0, 1.0, len(x)))
    covariance = alpha**2 * jnp.exp(-0.5 * ((x[:, None] - x) / rho) ** 2)
    factor = jnp.linalg.cholesky(covariance + 1e-10 * jnp.eye(len(x)))
    f = numpyro.deterministic("f", factor @ f_tilde)
    numpyro.sample("k", dist.Poisson(jnp.exp(f)).to_event(1), obs=k)


def hmm_example(y):
    theta1 = numpyro.sample("theta1", dist.Dirichlet(jnp.ones(2)))
    theta2 = numpyro.sample("theta2", dist.Dirichlet(jnp.ones(2)))
    prior = dist.Normal(jnp.array([3.0, 10.0]), 1.0).to_event(1)
    mu = restricted("mu", prior, constraints.positive_ordered_vector)
    emission = dist.Normal(mu, 1.0).log_prob(y[:, None])
    numpyro.factor("y", hidden_markov(jnp.log(jnp.stack([theta1, theta2])), emission))


def hidden_markov(transition, emission):
    """Log likelihood, initial states of weight 1; neighbours are combined, in log depth."""
    steps = transition + emission[1:, None, :]
    while (count := len(steps)) > 1:
        left, right = steps[0 : count - 1 : 2], steps[1::2]
        pairs = jax.nn.logsumexp(left[..., None] + right[:, None], axis=-2)
        steps = jnp.concatenate([pairs, steps[count - 1 :]]) if count % 2 else pairs
    return jax.nn.logsumexp(emission[0][:, None] + steps[0])


def low_dim_gauss_mix(y):
    mu = restricted("mu", vector(0.0, 2.0, 2), constraints.ordered_vector)
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(probs=jnp.stack([theta, 1 - theta]))
    with numpyro.plate("observations", len(y)):
        numpyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


def linear_regression(X, y, cauchy=False):
    beta = flat("beta", shape=(X.shape[-1],))
    if cauchy:
        sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    else:
        sigma = flat("sigma", constraints.positive)
    with numpyro.plate("observations", len(y)):
        numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def kidscore(X, y):
    linear_regression(X, y, cauchy=True)


def blr(X, y):
    beta = numpyro.sample("beta", vector(0.0, 10.0, X.shape[-1]))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10.0))
    with numpyro.plate("observations", len(y)):
        numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def lotka_volterra(times, y):
    prior = dist.Normal(jnp.array([1.0, 0.05, 1.0, 0.05]), jnp.array([0.5, 0.05, 0.5, 0.05]))
    theta = restricted("theta", prior.to_event(1), constraints.positive)
    sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))
    start = dist.LogNormal(math.log(10), 1.0).expand([2]).to_event(1)
    z_init = numpyro.sample("z_init", start)
    growth = jnp.stack([theta[0], -theta[2]])
    interaction = jnp.stack([-theta[1], theta[3]])

    def slope(log_z):
        return growth + interaction * jnp.exp(log_z)[::-1]

    log_z = runge_kutta(slope, jnp.log(z_init), times, substeps=4)
    numpyro.sample("y", dist.LogNormal(log_z, sigma).to_event(2), obs=y)


def runge_kutta(slope, state, times, substeps):
    """The classical method with the steps of the Pyro model, as one scan."""

    def step(state, h):
        k1 = slope(state)
        k2 = slope(state + h / 2 * k1)
        k3 = slope(state + h / 2 * k2)
        k4 = slope(state + h * k3)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return state, state

    _, path = jax.lax.scan(step, state, jnp.repeat(jnp.diff(times) / substeps, substeps))
    return jnp.concatenate([state[None], path[substeps - 1 :: substeps]])


def dogs(X, y):
    beta = numpyro.sample("beta", vector(0.0, 100.0, 3))
    with numpyro.plate("trials", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=X @ beta), obs=y)


def wells_interaction(X, y):
    alpha = flat("alpha")
    beta = flat("beta", shape=(X.shape[-1],))
    with numpyro.plate("households", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=alpha + X @ beta), obs=y)


def radon_hierarchical_intercept_noncentered(county, log_uppm, floor, log_radon, num_counties):
    mu_alpha = numpyro.sample("mu_alpha", dist.Normal(0.0, 10.0))
    sigma_alpha = numpyro.sample("sigma_alpha", dist.HalfNormal(1.0))
    sigma_y = numpyro.sample("sigma_y", dist.HalfNormal(1.0))
    beta = numpyro.sample("beta", vector(0.0, 10.0, 2))
    with numpyro.plate("counties", num_counties):
        alpha_raw = numpyro.sample("alpha_raw", dist.Normal(0.0, 1.0))
        alpha = numpyro.deterministic("alpha", mu_alpha + sigma_alpha * alpha_raw)
    with numpyro.plate("houses", len(log_radon)):
        mean = alpha[county] + beta[0] * log_uppm + beta[1] * floor
        numpyro.sample("log_radon", dist.Normal(mean, sigma_y), obs=log_radon)


def irt_2pl(y):
    num_items, num_persons = y.shape
    sigma_theta = numpyro.sample("sigma_theta", dist.HalfCauchy(2.0))
    sigma_a = numpyro.sample("sigma_a", dist.HalfCauchy(2.0))
    mu_b = numpyro.sample("mu_b", dist.Normal(0.0, 5.0))
    sigma_b = numpyro.sample("sigma_b", dist.HalfCauchy(2.0))
    items = numpyro.plate("items", num_items, dim=-2)
    persons = numpyro.plate("persons", num_persons, dim=-1)
    with persons:
        theta = numpyro.sample("theta", dist.Normal(0.0, sigma_theta))
    with items:
        a = numpyro.sample("a", dist.LogNormal(0.0, sigma_a))
        b = numpyro.sample("b", dist.Normal(mu_b, sigma_b))
    with items, persons:
        numpyro.sample("y", dist.Bernoulli(logits=a * (theta - b)), obs=y)


#: By the names of ``posteriordb.MODELS``.
MODELS = {
    "eight_schools-eight_schools_centered": eight_schools_centered,
    "eight_schools-eight_schools_noncentered": eight_schools_noncentered,
    "arK-arK": autoregression,
    "garch-garch11": garch11,
    "gp_pois_regr-gp_pois_regr": gp_pois_regr,
    "hmm_example-hmm_example": hmm_example,
    "low_dim_gauss_mix-low_dim_gauss_mix": low_dim_gauss_mix,
    "kidiq-kidscore_interaction": kidscore,
    "earnings-logearn_interaction": linear_regression,
    "nes2000-nes": linear_regression,
    "sblrc-blr": blr,
    "hudson_lynx_hare-lotka_volterra": lotka_volterra,
    "dogs-dogs": dogs,
    "wells_data-wells_interaction_model": wells_interaction,
    "radon_mn-radon_hierarchical_intercept_noncentered": radon_hierarchical_intercept_noncentered,
    "irt_2pl-irt_2pl": irt_2pl,
}
