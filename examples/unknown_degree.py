"""A program whose latents depend on a draw: one fit for each path, weighted by the evidence.

The degree of a polynomial is Poisson and decides how many coefficients there are: a discrete site
that cannot be summed out, with a support that changes with it. Given the degree, the rest is an
ordinary posterior. So there is one fit for each degree, of the program conditioned on it, and

    p(degree | y) = p(degree) p(y | degree) / p(y),

the second factor being the evidence of the fit. Predictions are those of the fits, in these shares.
Degrees are tried until the prior of all larger ones is too small to matter. The reference is exact:
coefficients are integrated in closed form, the noise on a grid.
"""

import math

import pyro
import pyro.distributions as dist
import torch
from _cli import check, options
from _compare import tell
from _figure import FIT, INK, REFERENCE, STYLE, WIDTH
from pyro import poutine

from pyro_nfvi import NFVI

RATE = 2.0


def polynomial(x, y):
    degree = pyro.sample("degree", dist.Poisson(RATE))
    count = int(degree) + 1
    coefficients = pyro.sample("coefficients", dist.Normal(torch.zeros(count), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    powers = x[:, None] ** torch.arange(count)
    mean = (powers * coefficients[..., None, :]).sum(-1)
    with pyro.plate("points", len(x)):
        pyro.sample("y", dist.Normal(mean, noise[..., None]), obs=y)


def make_data(n=30):
    generator = torch.Generator().manual_seed(3)
    x = torch.linspace(-1.5, 1.5, n)
    return x, 0.5 - x + 0.35 * x**2 + 0.6 * torch.randn(n, generator=generator)


def exact_score(x, y, degree):
    """Log p(y, degree): a Gaussian integral for each noise of a fine grid."""
    x, y = x.double(), y.double()
    powers = x[:, None] ** torch.arange(degree + 1)
    noise = torch.linspace(1e-3, 5.0, 4000, dtype=torch.float64)
    cov = powers @ powers.mT + noise[:, None, None] ** 2 * torch.eye(len(x), dtype=torch.float64)
    log_like = torch.distributions.MultivariateNormal(torch.zeros_like(y), cov).log_prob(y)
    log_joint = log_like + dist.HalfNormal(1.0).log_prob(noise)
    prior = dist.Poisson(RATE).log_prob(torch.tensor(float(degree)))
    return float(log_joint.logsumexp(0) + (noise[1] - noise[0]).log() + prior)


def main():
    run = options(__doc__, "unknown_degree")
    x, y = make_data()
    prior = dist.Poisson(RATE)
    fits, scores = [], []
    for degree in range(2 if run.smoke else 20):
        # block: the site is settled, and neither scored nor drawn anew where predictions are made
        path = poutine.block(
            poutine.condition(polynomial, {"degree": torch.tensor(float(degree))}), hide=["degree"]
        )
        fit = NFVI(path, seed=0, progress=False, max_steps=60 if run.smoke else 2000).run(x, y)
        evidence, error = fit.log_evidence()
        print(f"degree {degree}: log evidence {evidence:.2f} +- {error:.2f}")
        tell(fit)
        fits.append(fit)
        scores.append(evidence + float(prior.log_prob(torch.tensor(float(degree)))))
        # Larger degrees: their prior, times the largest evidence so far (a guess, not a bound).
        beyond = 1 - float(prior.log_prob(torch.arange(degree + 1.0)).exp().sum())
        largest = max(
            s - float(prior.log_prob(torch.tensor(float(d)))) for d, s in enumerate(scores)
        )
        if beyond * math.exp(largest - max(scores)) < 1e-3:
            break

    weights = torch.tensor(scores).softmax(0)
    exact = torch.tensor([exact_score(x, y, d) for d in range(len(fits))]).softmax(0)
    for degree, (ours, true) in enumerate(zip(weights, exact, strict=True)):
        print(f"degree {degree}: probability {ours:.3f}, exactly {true:.3f}")
    error = float((weights - exact).abs().max())
    check("largest error of a probability", error, 0, 0.02, smoke=run.smoke)

    # Predictions of the whole program: from each fit as many as its path is probable.
    at = torch.linspace(-2.0, 2.0, 81)
    shares = (2000 * weights).round().int().tolist()
    draws = torch.cat(
        [
            fit.predict(at, torch.zeros(81), num_samples=n, seed=0, from_prior=[])["y"]
            for fit, n in zip(fits, shares, strict=True)
            if n
        ]
    )
    print(f"picture: {draw_figure(run.out, x, y, at, draws, weights, exact)}")


def draw_figure(out, x, y, at, draws, weights, exact):
    """Band of predictions, and the probability of each degree beside the exact one."""
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(2, 1, figsize=(WIDTH, 6), layout="constrained")
        low, mid, high = draws.quantile(torch.tensor([0.05, 0.5, 0.95]), dim=0)
        left.fill_between(at, low, high, color=FIT, alpha=0.2, lw=0, label="90 % of predictions")
        left.plot(at, mid, color=FIT, label="median")
        left.plot(x, y, ".", color=INK, label="data")
        left.set(title="Predictions, all degrees together", xlabel="x", ylabel="y")
        left.legend()
        degrees = torch.arange(len(weights))
        right.bar(degrees - 0.2, exact, 0.4, color=REFERENCE, label="exact")
        right.bar(degrees + 0.2, weights, 0.4, color=FIT, label="one fit per degree")
        right.set(title="Posterior of the degree", xlabel="degree", ylabel="probability")
        right.set_xticks(degrees)
        right.legend()
        path = out / "unknown_degree.png"
        figure.savefig(path)
        plt.close(figure)
    return path


if __name__ == "__main__":
    main()
