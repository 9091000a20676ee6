"""Building blocks that several benchmark models share.

All of them broadcast over leading batch dimensions, so that the models can be
run with vectorised particles.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch.distributions import biject_to


class Flat(dist.ImproperUniform):
    """Improper uniform prior that guides can initialise from.

    ``ImproperUniform`` cannot be sampled, but Pyro's initialisation strategies
    need a draw from every site. This one maps standard normal noise to the
    support; only its (constant) log density enters the posterior.
    """

    def __init__(self, support, event_shape=(), batch_shape=()):
        super().__init__(support, torch.Size(batch_shape), torch.Size(event_shape))

    def expand(self, batch_shape, _instance=None):
        return Flat(self.support, self.event_shape, batch_shape)

    def sample(self, sample_shape=()):
        noise = torch.randn(torch.Size(sample_shape) + self.batch_shape + self.event_shape)
        return biject_to(self.support)(noise)


class Restricted(Flat):
    """Density of ``base`` restricted to ``support``, without renormalising it.

    This is what a Stan declaration such as ``real<lower=0> x`` followed by
    ``x ~ normal(1, 2)`` means.
    """

    def __init__(self, base, support):
        super().__init__(support, base.event_shape, base.batch_shape)
        self.base = base

    def expand(self, batch_shape, _instance=None):
        return Restricted(self.base.expand(batch_shape), self.support)

    def log_prob(self, value):
        return self.base.log_prob(value)


def flat_real(*shape: int) -> Flat:
    return Flat(constraints.real, shape)


def flat_positive(*shape: int) -> Flat:
    return Flat(constraints.positive, shape)


def normal_vector(loc: float, scale: float, size: int):
    """Independent normals for the elements of one vector."""
    return dist.Normal(loc, scale).expand([size]).to_event(1)


def linear_predictor(X: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """``X @ beta`` inside a plate over the rows of ``X``."""
    return (X * beta).sum(-1)


def linear_regression(X, y, sigma_prior=None):
    """Normal linear regression with flat coefficients and, by default, flat sigma."""
    beta = pyro.sample("beta", flat_real(X.shape[-1]))
    sigma = pyro.sample("sigma", sigma_prior or flat_positive())
    with pyro.plate("observations", len(y)):
        pyro.sample("y", dist.Normal(linear_predictor(X, beta), sigma), obs=y)


def design(*regressors: torch.Tensor) -> torch.Tensor:
    """Design matrix of an intercept and the given regressors."""
    return torch.stack([torch.ones_like(regressors[0]), *regressors], dim=-1)


def linear_recurrence(inputs: torch.Tensor, coefficient: torch.Tensor) -> torch.Tensor:
    """Solve ``x[t] = inputs[t] + coefficient * x[t - 1]``, with ``x[-1] = 0``.

    Time is the last axis of ``inputs``; ``coefficient`` has its batch shape. Uses
    ``1 / (1 - cL) = (1 + cL) (1 + (cL)^2) (1 + (cL)^4) ...`` for the lag operator L,
    whose powers vanish once they exceed the length of the series.
    """
    x, power, lag = inputs, coefficient[..., None], 1
    while lag < inputs.shape[-1]:
        x = x + power * torch.nn.functional.pad(x[..., :-lag], (lag, 0))
        power, lag = power**2, 2 * lag
    return x


def hidden_markov_log_likelihood(
    transition: torch.Tensor, log_emission: torch.Tensor
) -> torch.Tensor:
    """Log likelihood of a hidden Markov model whose initial state has weight 1.

    :param transition: probabilities, shape ``(..., from, to)``.
    :param log_emission: log density of each observation, ``(..., time, state)``.
    """
    steps = transition.log()[..., None, :, :] + log_emission[..., 1:, None, :]
    while (count := steps.shape[-3]) > 1:  # combine neighbours in log-depth
        left, right = steps[..., 0 : count - 1 : 2, :, :], steps[..., 1::2, :, :]
        pairs = torch.logsumexp(left[..., None] + right[..., None, :, :], dim=-2)
        leftover = steps[..., count - 1 :, :, :] if count % 2 else pairs[..., :0, :, :]
        steps = torch.cat([pairs, leftover], dim=-3)
    return torch.logsumexp(log_emission[..., 0, :, None] + steps[..., 0, :, :], dim=(-2, -1))


def runge_kutta(derivative, state, times, substeps: int) -> torch.Tensor:
    """Integrate ``d state / dt = derivative(t, state)`` by the classical method.

    ``state`` is the value at ``times[0]``. Returns the values at all ``times``,
    stacked along a new axis 0, taking ``substeps`` equal steps between each two.
    """
    path = [state]
    for start, end in zip(times[:-1].tolist(), times[1:].tolist()):
        h = (end - start) / substeps
        for i in range(substeps):
            t = start + i * h
            k1 = derivative(t, state)
            k2 = derivative(t + h / 2, state + h / 2 * k1)
            k3 = derivative(t + h / 2, state + h / 2 * k2)
            k4 = derivative(t + h, state + h * k3)
            state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        path.append(state)
    return torch.stack(path)
