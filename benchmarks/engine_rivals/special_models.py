"""Models of one distribution with latent parameters, the same code for Pyro and for NumPyro.

By NumPy alone: each worker hands over its own ``distributions`` and array functions.
"""

import json
import sys

import numpy as np

#: Observations, latents.
ROWS, LATENTS = 600, 2


def _vector(m, a, n=3):
    return a[..., None] * m.array(np.linspace(0.5, 1.5, n))


def _matrix(m, a, n=4):
    return m.array(0.1 + 0.9 * np.eye(n)) + m.exp(a)[..., None, None] * m.array(np.eye(n))


#: By name: the distribution of latents ``a, b`` (any numbers), and the kind of its observations.
MODELS = {
    "StudentT": (lambda d, m, a, b: d.StudentT(2 + m.exp(a), b, 1.0), "real"),
    "Gamma": (lambda d, m, a, b: d.Gamma(m.exp(a), m.exp(b)), "positive"),
    "InverseGamma": (lambda d, m, a, b: d.InverseGamma(m.exp(a), m.exp(b)), "positive"),
    "Chi2": (lambda d, m, a, b: d.Chi2(m.exp(a) + m.exp(b)), "positive"),
    "LogNormal": (lambda d, m, a, b: d.LogNormal(a, m.exp(b)), "positive"),
    "Weibull": (lambda d, m, a, b: d.Weibull(m.exp(a), m.exp(b)), "positive"),
    "Pareto": (lambda d, m, a, b: d.Pareto(0.1 * m.sigmoid(a), m.exp(b)), "positive"),
    "Beta": (lambda d, m, a, b: d.Beta(m.exp(a), m.exp(b)), "unit"),
    "Kumaraswamy": (lambda d, m, a, b: d.Kumaraswamy(m.exp(a), m.exp(b)), "unit"),
    "Dirichlet": (lambda d, m, a, b: d.Dirichlet(m.exp(_vector(m, a + b))), "simplex"),
    "VonMises": (lambda d, m, a, b: d.VonMises(a, m.exp(b)), "angle"),
    "Logistic": (lambda d, m, a, b: d.Logistic(a, m.exp(b)), "real"),
    "SoftLaplace": (lambda d, m, a, b: d.SoftLaplace(a, m.exp(b)), "real"),
    "AsymmetricLaplace": (
        lambda d, m, a, b: d.AsymmetricLaplace(a, m.exp(b), 1 + m.exp(a)), "real",
    ),
    "Gumbel": (lambda d, m, a, b: d.Gumbel(a, m.exp(b)), "real"),
    "Cauchy": (lambda d, m, a, b: d.Cauchy(a, m.exp(b)), "real"),
    "Normal": (lambda d, m, a, b: d.Normal(a, m.exp(b)), "real"),
    "Bernoulli": (lambda d, m, a, b: d.Bernoulli(logits=a + b), "bit"),
    "Binomial": (lambda d, m, a, b: d.Binomial(20, logits=a + b), "count"),
    "Poisson": (lambda d, m, a, b: d.Poisson(m.exp(a + b)), "count"),
    "NegativeBinomial": (lambda d, m, a, b: d.NegativeBinomial(m.exp(a), b), "count"),
    "GammaPoisson": (lambda d, m, a, b: d.GammaPoisson(m.exp(a), m.exp(b)), "count"),
    "BetaBinomial": (lambda d, m, a, b: d.BetaBinomial(m.exp(a), m.exp(b), 20), "count"),
    "DirichletMultinomial": (
        lambda d, m, a, b: d.DirichletMultinomial(m.exp(_vector(m, a + b)), 20), "counts",
    ),
    "ZeroInflatedPoisson": (
        lambda d, m, a, b: d.ZeroInflatedPoisson(m.sigmoid(a), m.exp(b)), "count",
    ),
    "ZeroInflatedNegativeBinomial": (
        lambda d, m, a, b: d.ZeroInflatedNegativeBinomial(m.exp(a), b, m.sigmoid(a)), "count",
    ),
    "MultivariateNormal": (
        lambda d, m, a, b: d.MultivariateNormal(_vector(m, b, 4), _matrix(m, a)), "vector",
    ),
    "MultivariateStudentT": (
        lambda d, m, a, b: d.MultivariateStudentT(
            2 + m.exp(a), _vector(m, b, 4), m.cholesky(_matrix(m, a))
        ),
        "vector",
    ),
    "LKJCholesky": (lambda d, m, a, b: d.LKJCholesky(4, m.exp(a + b)), "correlation"),
}  # fmt: skip


def observations(name):
    """The data of a model as a NumPy array."""
    rng, kind = np.random.default_rng(0), MODELS[name][1]
    if kind == "correlation":
        x = rng.standard_normal((ROWS, 20, 4))
        return np.linalg.cholesky(np.stack([np.corrcoef(one.T) for one in x])).astype(np.float32)
    made = {
        "real": lambda: rng.standard_normal(ROWS),
        "angle": lambda: rng.vonmises(0.3, 2.0, ROWS),
        "positive": lambda: rng.gamma(2.0, 1.0, ROWS) + 0.2,
        "unit": lambda: rng.beta(2.0, 2.0, ROWS),
        "bit": lambda: rng.random(ROWS) < 0.4,
        "count": lambda: rng.binomial(20, rng.beta(1.0, 3.0, ROWS)),
        "simplex": lambda: rng.dirichlet(np.ones(3), ROWS),
        "counts": lambda: rng.multinomial(20, np.ones(3) / 3, ROWS),
        "vector": lambda: rng.standard_normal((ROWS, 4)),
    }[kind]
    return made().astype(np.float32)


def model(name, pyro, distributions, arrays):
    """The model of a row in Pyro's or in NumPyro's words."""
    make = MODELS[name][0]

    def run(y):
        a = pyro.sample("a", distributions.Normal(0.0, 0.3))
        b = pyro.sample("b", distributions.Normal(0.0, 0.3))
        with pyro.plate("data", ROWS):
            pyro.sample("y", make(distributions, arrays, a, b), obs=y)

    return run


def serve(make, about):
    """Answer lines of ``start KIND NAME`` and of ``steps N`` in JSON."""
    print(json.dumps({"ready": True, **about}), flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "start":
            try:
                made = make(*rest)
                print(json.dumps({"made": True}), flush=True)
            except Exception as error:
                print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
            continue
        count = int(rest[0])
        wall, cpu, loss = made.steps(count)
        print(json.dumps({"wall": wall / count, "cpu": cpu / count, "loss": loss}), flush=True)
