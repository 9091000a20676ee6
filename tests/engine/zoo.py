"""Models of the engine's tests: one for each thing that a capture has to get right."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_nfvi import AutoFlow
from pyro_nfvi._engine.capture import capture
from pyro_nfvi._engine.program import OptimizerSpec
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._train.recipe import TRAINING
from pyro_nfvi._train.step import EagerStep
from pyro_nfvi.infer._scopes import own_params
from pyro_nfvi.objectives._make_objective import make_objective


def schools():
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model(y, sigma):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("J", 8):
            base = pyro.sample("base", dist.Normal(0.0, 1.0))
            pyro.sample("obs", dist.Normal(mu + tau * base, sigma), obs=y)

    return model, (y, sigma)


def _regression(n, d):
    x = torch.randn(n, d)
    return x, torch.bernoulli(torch.sigmoid(x.sum(-1)))


def logistic():
    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Bernoulli(logits=w @ x.T), obs=y)

    return model, _regression(40, 3)


def minibatch():
    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(y), subsample_size=16) as index:
            pyro.sample("y", dist.Bernoulli(logits=w @ x[index].T), obs=y[index])

    return model, _regression(200, 3)


def constrained():
    """Positive, unit interval, interval and real supports; counts."""
    counts = torch.poisson(torch.full((10,), 4.0))

    def model(counts):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        shape = pyro.sample("shape", dist.LogNormal(0.0, 0.5))
        p = pyro.sample("p", dist.Beta(2.0, 3.0))
        u = pyro.sample("u", dist.Uniform(-1.0, 2.0))
        with pyro.plate("n", len(counts)):
            pyro.sample("a", dist.Poisson(rate), obs=counts)
            pyro.sample("b", dist.NegativeBinomial(1 + shape, p), obs=counts)
            pyro.sample("c", dist.StudentT(4.0, u, shape), obs=0.1 * counts)

    return model, (counts,)


def simplex():
    seen = torch.tensor([3, 0, 1, 1, 2, 0, 0])

    def model(seen):
        p = pyro.sample("p", dist.Dirichlet(torch.full((4,), 1.5)))
        with pyro.plate("n", len(seen)):
            pyro.sample("k", dist.Categorical(p), obs=seen)

    return model, (seen,)


def covariance():
    x = torch.randn(12, 3)

    def model(x):
        scale = pyro.sample("scale", dist.HalfNormal(torch.ones(3)).to_event(1))
        tril = pyro.sample("tril", dist.LKJCholesky(3, 2.0))
        with pyro.plate("n", len(x)):
            pyro.sample(
                "x",
                dist.MultivariateNormal(torch.zeros(3), scale_tril=scale.unsqueeze(-1) * tril),
                obs=x,
            )

    return model, (x,)


def process():
    """A Gaussian process, which takes its particles by vmap."""
    t = torch.linspace(0, 1, 8)
    y = torch.sin(6 * t)

    def model(t, y):
        length = pyro.sample("length", dist.LogNormal(-1.0, 0.5))
        gap = (t.unsqueeze(-1) - t) / length
        cov = torch.exp(-0.5 * gap.square()) + 0.1 * torch.eye(len(t))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(t)), cov), obs=y)

    return model, (t, y)


def mixture():
    """A discrete site that is summed out."""
    x = torch.cat([torch.randn(6) - 2, torch.randn(6) + 2])

    @pyro.infer.config_enumerate
    def model(x):
        loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]), 2.0).to_event(1))
        with pyro.plate("n", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)))
            pyro.sample(
                "x", dist.Normal(loc[..., 0] * (k == 0) + loc[..., 1] * (k == 1), 1.0), obs=x
            )

    return model, (x,)


def in_place():
    """Writes into tensors of its own, whole and in part."""
    y = torch.randn(3)

    def model(y):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        path = torch.zeros(*w.shape[:-1], 3)
        path[..., 0] = w[..., 0]
        for i in (1, 2):
            path[..., i] = 0.5 * path[..., i - 1] + w[..., i]
        path.mul_(2.0)
        pyro.sample("y", dist.Normal(path, 1.0).to_event(1), obs=y)

    return model, (y,)


def handlers():
    """Mask, scale, factor, a boolean mask that selects data, an integer index."""
    y = torch.randn(10)
    keep = torch.arange(10) % 3 > 0
    group = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])

    def model(y, keep, group):
        with pyro.plate("G", 3):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.factor("tilt", -0.1 * a.sum(-1))
        with pyro.plate("n", 10), pyro.poutine.mask(mask=keep), pyro.poutine.scale(scale=0.7):
            pyro.sample("y", dist.Normal(a[..., group], 1.0), obs=y)
        part = a[..., group][..., keep]
        pyro.factor("part", -part.square().sum(-1))

    return model, (y, keep, group)


def counts():
    """Multinomial, whose density writes where a mask of latents is true."""
    seen = torch.tensor([3.0, 1.0, 0.0])

    def model(seen):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        pyro.sample("n", dist.Multinomial(4, probs=p, validate_args=False), obs=seen)

    return model, (seen,)


def params():
    """A constrained parameter and a module of the model's own; both train."""
    x, y = torch.randn(20, 2), torch.randn(20)
    net = nn.Linear(2, 1)

    def model(x, y):
        pyro.module("net", net)
        noise = pyro.param("noise", torch.tensor(0.7), constraint=dist.constraints.positive)
        bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(net(x).squeeze(-1) + bias, noise), obs=y)

    return model, (x, y)


def timeseries():
    """A sequential loop over latents."""
    y = torch.randn(6).cumsum(0)

    def model(y):
        sd = pyro.sample("sd", dist.HalfNormal(1.0))
        x = 0.0
        for t in range(len(y)):
            x = pyro.sample(f"x_{t}", dist.Normal(x, sd))
            pyro.sample(f"y_{t}", dist.Normal(x, 0.5), obs=y[t])

    return model, (y,)


ZOO = {
    make.__name__: make
    for make in (
        schools, logistic, minibatch, constrained, simplex, covariance, process, mixture,
        in_place, handlers, counts, params, timeseries,
    )
}  # fmt: skip


class Case:
    """A model with a guide, an eager step and, on demand, its program."""

    def __init__(self, name, flow="iaf*2", objective="path", optim=None, particles=6, **options):
        model, self.args = ZOO[name]() if isinstance(name, str) else name
        with own_params(model, self.args, {}) as _:
            state = pyro.get_param_store().get_state()
        pyro.get_param_store().set_state(state)
        self.guide = AutoFlow(model, flow, **options)
        self.guide.setup(*self.args)
        self.log_joint = LogJoint(model, self.args, {}, self.guide.latent)
        own = [p for p in self.guide.parameters() if p.requires_grad]
        models = self.log_joint.parameters()
        self.params = [*own, *models]
        make = optim or (lambda leaves: torch.optim.Adam(leaves, lr=0.01))
        self.optimizer = make(self.params)
        self.objective = make_objective(objective)
        self.step = EagerStep(
            self.guide, self.log_joint, self.objective, self.params, len(models), self.optimizer
        )
        self.particles = particles
        with torch.no_grad():  # away from the identity, where much of the gradient is zero
            for param in self.params:
                param.add_(0.05 * torch.randn_like(param))

    def inputs(self, steps=1):
        eps = self.guide.density().sample_base((steps, self.particles))
        streams = self.log_joint.draw_subsamples(steps) | self.objective.stream(0, steps)
        return eps, streams

    def program(self):
        eps, streams = self.inputs()
        return capture(
            self.guide, self.log_joint, self.objective, self.params,
            len(self.step.model_params), eps[0], {n: x[0] for n, x in streams.items()},
        )  # fmt: skip

    def spec(self, program):
        return OptimizerSpec.of(self.optimizer, program.params, TRAINING.clip_norm)


def on(recipe, backend):
    """Let a recipe run on one back end by its name, which users do not choose."""
    recipe.engine = backend
    return recipe
