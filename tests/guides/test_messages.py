"""Messages about a model name the site, the class, the place and the cure."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import (
    init_to_feasible,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_value,
)
from torch.distributions import biject_to, constraints, transforms

from pyro_nfvi import NFVI, AutoFlow
from pyro_nfvi._error_text import describe_error
from pyro_nfvi.errors import ModelError

STARTS = {
    "feasible": init_to_feasible,
    "mean": init_to_mean,
    "median": init_to_median,
    "sample": init_to_sample,
    "uniform": init_to_uniform,
    "value": init_to_value(values={"p": torch.tensor(0.3)}),
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("count", [dist.Bernoulli, dist.Poisson, dist.Geometric])
def test_a_discrete_site_is_told_with_its_cure(start, count):
    # As Pyro's own test of its guides asks for, from any start.
    def model():
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        x = pyro.sample("x", count(p))
        pyro.sample("obs", dist.Normal(p * x, 1.0), obs=torch.tensor([1.0, 0.0]))

    with pytest.raises(ValueError, match=r"'x' is discrete.*enumeration\.html"):
        AutoFlow(model, init_loc_fn=STARTS[start])()


class Above(constraints.Constraint):
    def check(self, value):
        return value > 0


class Strange(dist.Exponential):
    support = Above()


def strange():
    pyro.sample("y", dist.Normal(pyro.sample("x", Strange(1.0)), 1.0), obs=torch.tensor(1.0))


def test_a_support_without_a_bijection_names_its_class_and_how_to_register_one():
    with pytest.raises(ModelError, match=r"'x'.*class Above.*biject_to\.register\(Above"):
        AutoFlow(strange).setup()


def test_the_cure_for_a_support_of_ones_own_works():
    class Mine(Above):
        pass

    class Positive(dist.Exponential):
        support = Mine()

    biject_to.register(Mine, lambda _: transforms.ExpTransform())

    def model():
        pyro.sample("y", dist.Normal(pyro.sample("x", Positive(1.0)), 1.0), obs=torch.tensor(1.0))

    assert AutoFlow(model, "affine").setup().latent.dim == 1


def test_an_assertion_without_words_is_told_with_its_place():
    def asserts():
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        if x.shape != (3,):
            raise AssertionError
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ModelError, match=r"AssertionError in asserts \(test_messages.py, line"):
        NFVI(asserts, progress=False).run()


def test_a_distribution_without_a_sampler_is_told_with_its_site():
    class Flat(dist.TorchDistribution):
        arg_constraints = {}
        support = constraints.real

        def log_prob(self, value):
            return 0.0 * value

    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("hidden", Flat(validate_args=False))

    with pytest.raises(NotImplementedError) as caught:
        pyro.poutine.trace(model).get_trace()
    told = describe_error(caught.value)
    assert "'hidden'" in told
    assert "Flat has no `sample`" in told
    assert "Trace Shapes" not in told
    with pytest.raises(ModelError, match=r"'hidden'.*Flat has no `sample`"):
        NFVI(pyro.poutine.block(model, hide=["hidden"]), progress=False).run()
