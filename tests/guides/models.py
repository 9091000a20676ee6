"""Models and helpers that the guides' tests share."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints, transforms
from pyro.infer import SVI, Trace_ELBO

from pyro_nfvi import AutoIAF, AutoPlanar, AutoRadial, AutoSylvester

__all__ = ["EXACT_SITES", "OURS", "disturb", "fit", "linear", "mixed", "same_noise"]

#: The named guides.
OURS = {cls.__name__: cls for cls in (AutoIAF, AutoPlanar, AutoRadial, AutoSylvester)}


def linear(y):
    """Two means and a scale, twelve lines of data."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros_like(y[0]), 10.0).to_event(1))
    sd = pyro.sample("sd", dist.LogNormal(torch.zeros_like(y[0, 0]), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, sd).to_event(1), obs=y)


def mixed():
    """Scalar, event, plate, nested plates and three constrained supports: D = 15."""
    one = torch.ones(())
    a = pyro.sample("a", dist.Normal(0 * one, 2.0))
    b = pyro.sample("b", dist.MultivariateNormal(torch.zeros(2), torch.eye(2) + 0.5))
    c = pyro.sample("c", dist.HalfNormal(one))
    pyro.sample("d", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("outer", 3, dim=-1):
        e = pyro.sample("e", dist.Beta(2 * one, 2.0))
        with pyro.plate("inner", 2, dim=-2):
            f = pyro.sample("f", dist.Normal(a * e, c))
    total = f.sum((-1, -2), keepdim=True) + b.sum(-1)
    pyro.sample("obs", dist.Normal(total, 1.0), obs=1.3 * one)


def _pushed(size, transform, scale=0.5):
    base = dist.Normal(torch.zeros(size), scale).to_event(1)
    return dist.TransformedDistribution(base, [transform])


class _Onto(dist.TransformedDistribution):
    """A normal pushed onto a support, which torch itself takes for the real line."""

    def __init__(self, support, batch_shape=()):
        onto = torch.distributions.biject_to(support)
        super().__init__(dist.Normal(torch.full(batch_shape, 0.2), 0.7), [onto])
        self.onto = support

    @property
    def support(self):
        return self.onto

    def expand(self, batch_shape, _instance=None):
        return _Onto(self.onto, batch_shape)


#: Distributions that are an affine Gaussian in the unconstrained space: a guide can hold them
#: exactly. Name of the support -> (distribution, loc, scale) of the unconstrained coordinates.
EXACT_SITES = {
    "real": lambda: (dist.Normal(torch.tensor(1.0), 2.0), [1.0], [2.0]),
    "positive": lambda: (dist.LogNormal(torch.tensor(0.3), 0.5), [0.3], [0.5]),
    "interval": lambda: (_Onto(constraints.interval(-2.0, 5.0)), [0.2], [0.7]),
    "greater_than": lambda: (_Onto(constraints.greater_than(3.0)), [0.2], [0.7]),
    "simplex": lambda: (_pushed(3, transforms.StickBreakingTransform()), [0.0] * 3, [0.5] * 3),
    "ordered": lambda: (_pushed(3, transforms.OrderedTransform()), [0.0] * 3, [0.5] * 3),
    "corr_cholesky": lambda: (
        _pushed(6, transforms.CorrCholeskyTransform()),
        [0.0] * 6,
        [0.5] * 6,
    ),
}


class Free(dist.ImproperUniform):
    """A flat density on a support, which can be sampled so that guides can start."""

    def __init__(self, support, event_shape):
        super().__init__(support, (), event_shape)
        self.free = event_shape

    def sample(self, sample_shape=()):
        from pyro_nfvi._pyro_model.constraints import bijection

        transform = bijection(self.support)
        shape = transform.inverse_shape(torch.Size(self.free))
        return transform(torch.randn(tuple(sample_shape) + tuple(shape)))


FREE_SUPPORTS = {
    "real": (constraints.real, ()),
    "positive": (constraints.positive, ()),
    "interval": (constraints.interval(-1.0, 3.0), ()),
    "less_than": (constraints.less_than(2.0), ()),
    "unit_interval_vector": (constraints.independent(constraints.unit_interval, 1), (3,)),
    "simplex": (constraints.simplex, (4,)),
    "ordered": (constraints.ordered_vector, (3,)),
    "positive_ordered": (constraints.positive_ordered_vector, (3,)),
    "lower_cholesky": (constraints.lower_cholesky, (3, 3)),
    "softplus_lower_cholesky": (constraints.softplus_lower_cholesky, (3, 3)),
    "unit_lower_cholesky": (constraints.unit_lower_cholesky, (3, 3)),
    "corr_cholesky": (constraints.corr_cholesky, (3, 3)),
    "corr_matrix": (constraints.corr_matrix, (3, 3)),
    "positive_definite": (constraints.positive_definite, (3, 3)),
    "softplus_positive": (constraints.softplus_positive, ()),
}


def disturb(guide, size=0.3, seed=3):
    """Move every parameter of a guide away from its start, by its own amount."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in guide.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(size * noise.to(parameter))


def fit(model, guide, *args, steps=50, lr=0.05, elbo=None):
    """Run SVI; return the losses."""
    elbo = elbo or Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=2)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": lr}), elbo)
    return [svi.step(*args) for _ in range(steps)]


def same_noise(guide, *args, seed=11):
    """Draw the sites of a guide from a given seed."""
    pyro.set_rng_seed(seed)
    with torch.no_grad(), poutine.block():
        return {name: value.clone() for name, value in guide(*args).items()}
