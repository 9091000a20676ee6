"""Messages about models that cannot be fitted: what was expected, what came, what to do."""

from __future__ import annotations

import re
import warnings

import pyro
import pyro.distributions as dist
import pyro.infer.autoguide.initialization as starts
import pytest
import torch
from torch.distributions import constraints

from pyro_nfvi import NFVI, AutoFlow, AutoMixture
from pyro_nfvi.errors import ModelWarning, NFVIError

ZERO = torch.tensor(0.0)


def normal(name, loc=0.0, obs=None):
    return pyro.sample(name, dist.Normal(loc, 1.0), obs=obs)


class Unknown(constraints.Constraint):
    """A support onto which no map is registered."""

    def check(self, value):
        return value > 0


class OfUnknown(dist.Normal):
    support = Unknown()


class Silent(dist.TorchDistribution):
    """A distribution that has nothing of its own but a density."""

    arg_constraints = {}

    def log_prob(self, value):
        return -0.5 * value.square()


class Sampled(Silent):
    def sample(self, sample_shape=()):
        return torch.zeros(sample_shape)


def no_support():
    normal("y", pyro.sample("x", Sampled()), ZERO)


def nothing_but_a_density():
    normal("y", pyro.sample("x", Silent()), ZERO)


def unknown_support():
    normal("y", pyro.sample("x", OfUnknown(0.0, 1.0)), ZERO)


def empty_assertion():
    normal("x")
    raise AssertionError


def key_error():
    normal("y", {}[str(normal("x") > 1e9)], ZERO)


def returns_nothing():
    normal("x")


def empty():
    pass


def no_latent():
    normal("y", obs=ZERO)


def discrete_alone():
    normal("y", pyro.sample("k", dist.Bernoulli(0.5)), ZERO)


def countless():
    normal("y", normal("x") + pyro.sample("k", dist.Poisson(3.0)), ZERO)


def discrete():
    normal("y", normal("x") + pyro.sample("k", dist.Bernoulli(0.5)), ZERO)


def twice():
    for _ in range(2):
        x = normal("x")
    normal("y", x, ZERO)


def twice_observed():
    x = normal("x")
    for _ in range(2):
        normal("y", x, ZERO)


def plate_twice():
    x = normal("x")
    for name in "ab":
        with pyro.plate("rows", 3):
            normal(name, x, torch.zeros(3))


def param_of_a_site():
    x = normal("x")
    pyro.param("x", torch.tensor(0.0))
    normal("y", x, ZERO)


def no_distribution():
    pyro.sample("x", 3.0)


def of_torch():
    normal("y", pyro.sample("x", torch.distributions.Normal(0.0, 1.0)), ZERO)


def nameless():
    pyro.sample(dist.Normal(0.0, 1.0))


def plain(y, *, shift=0.0):
    normal("y", normal("x") + shift, y)


def generator():
    yield normal("x")


HERE = r"\(test_messages.py, line \d+\)"
#: Model, arguments, what the message says was wrong, what it says to do.
CASES = {
    "no support": (no_support, (), "'x'.*Sampled does not say what its support", "support ="),
    "nothing but a density": (nothing_but_a_density, (), "Silent", "support ="),
    "unknown support": (unknown_support, (), "'x'.*class Unknown", r"biject_to\.register"),
    "empty assertion": (empty_assertion, (), f"AssertionError in empty_assertion {HERE}", "Mend"),
    "key error": (key_error, (), f"KeyError: 'tensor.False.' in key_error {HERE}", "Mend"),
    "empty": (empty, (), "no continuous latent sites", r"pyro\.sample\(name"),
    "no latent": (no_latent, (), r"observed sites only \('y'\)", "without obs="),
    "discrete alone": (discrete_alone, (), r"discrete sites \('k'\)", "compute_marginals"),
    "countless": (countless, (), "'k' is discrete", "poutine.block"),
    "twice": (twice, (), f"two sites named 'x' in normal {HERE}", "f'x_{i}'"),
    "twice observed": (twice_observed, (), "two sites named 'y'", "f'y_{i}'"),
    "plate twice": (plate_twice, (), "two sites named 'rows'", r"rows = pyro\.plate"),
    "param of a site": (param_of_a_site, (), "two sites named 'x'", "name of its own"),
    "no distribution": (no_distribution, (), "'x' needs a distribution; got float", "Write"),
    "of torch": (of_torch, (), "'x'.*torch.distributions", r"Take pyro\.distributions\.Normal"),
    "nameless": (nameless, (), f"'fn'.*|in nameless {HERE}", "Mend"),
    "missing argument": (plain, (), "missing 1 required positional argument: 'y'", "arguments"),
    "list": (plain, ([0.0, 1.0],), "'y' has a value of type list", r"torch\.as_tensor"),
    "array": (plain, (torch.zeros(2).numpy(),), "'y'.* of type ndarray", r"torch\.as_tensor"),
    "word": (plain, ("data",), "'y' has a value of type str", r"torch\.as_tensor"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_model_that_cannot_be_fitted_is_told_with_the_cure(name):
    model, args, wrong, cure = CASES[name]
    with pytest.raises(NFVIError) as caught:
        NFVI(model, progress=False, max_steps=5).run(*args)
    text = str(caught.value)
    assert re.search(wrong, text, re.DOTALL), text
    assert re.search(re.escape(cure) if "{" in cure else cure, text), text
    assert "Trace Shapes" not in text
    assert text.rstrip().endswith(".")


def test_wrong_keywords_are_told():
    with pytest.raises(NFVIError, match=r"unexpected keyword argument 'shfit'.*arguments of run"):
        NFVI(plain, progress=False).run(ZERO, shfit=1.0)
    with pytest.raises(TypeError, match="'stpes'"):
        NFVI(plain, stpes=3)


@pytest.mark.parametrize("make", [NFVI, AutoFlow, AutoMixture])
@pytest.mark.parametrize("model", [None, ZERO, 3, pyro.nn.PyroModule, generator])
def test_what_is_no_model_is_told(make, model):
    with pytest.raises(NFVIError, match=rf"{make.__name__} needs a Pyro model to call; .*\. "):
        make(model)


def test_a_model_without_data_or_a_value_is_fitted():
    with pytest.warns(match="no observed site.*prior of x"):
        fit = NFVI(returns_nothing, "affine", max_steps=5, progress=False).run()
    assert fit.sample(2)["x"].shape == (2,)


STARTS = {
    "feasible": starts.init_to_feasible,
    "mean": starts.init_to_mean,
    "median": starts.init_to_median,
    "sample": starts.init_to_sample,
    "uniform": starts.init_to_uniform,
    "value": starts.init_to_value(values={"x": ZERO, "k": ZERO}),
    "generated": starts.init_to_generated(generate=lambda: starts.init_to_mean),
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (discrete, "'k' is discrete.*enumerate"),
        (unknown_support, r"'x'.*class Unknown.*biject_to\.register"),
        (no_support, "'x'.*Sampled.*support ="),
    ],
)
def test_each_start_gives_the_same_message(model, words, start):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelWarning)
        with pytest.raises(NFVIError, match=words) as caught:
            AutoFlow(model, init_loc_fn=STARTS[start])()
    assert "Trace Shapes" not in str(caught.value)
