"""Models of every make: modules, parameters, plates, gradients inside, threads, modes."""

import threading

import pyro
import pyro.distributions as dist
import pytest
import torch
from guides.models import OURS, disturb, fit, mixed, same_noise
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

from pyro_nfvi import AutoFlow, AutoIAF, AutoPlanar

each_guide = pytest.mark.parametrize("guide_class", OURS.values())
X = torch.linspace(-1, 1, 8).unsqueeze(-1)
Y = 2 * X[:, 0] + 0.5


class Regression(PyroModule):
    """Sampled weights with a dot in their names, a parameter, and one of torch's own."""

    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](1, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 1]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        self.sd = PyroParam(torch.tensor(0.7), dist.constraints.positive)
        self.shift = nn.Parameter(torch.tensor(0.1))

    def forward(self, x, y=None):
        mean = self.linear(x).squeeze(-1) + self.shift
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean, self.sd), obs=y)


@each_guide
def test_pyro_module_models(guide_class):
    model = Regression()
    guide = guide_class(model)
    elbo = Trace_ELBO()
    fit(model, guide, X, Y, steps=5, elbo=elbo)
    assert set(guide.latent.sites) == {"linear.weight", "linear.bias"}
    assert model.sd.item() != pytest.approx(0.7)
    assert model.shift.item() != pytest.approx(0.1)
    # The guide does not own what belongs to the model.
    assert not any("sd" in name or "shift" in name for name, _ in guide.named_parameters())
    draws = Predictive(model, guide=guide, num_samples=4)(X)
    assert draws["y"].shape == (4, 8)
    assert guide.log_prob(guide.sample_posterior(3)).shape == (3,)


def test_pyro_module_model_under_elbo_module():
    model = Regression()
    guide = AutoIAF(model).setup(X, Y)
    module = Trace_ELBO()(model, guide)
    names = {name for name, _ in module.named_parameters()}
    assert {"model.shift", "model.sd_unconstrained"} <= names
    assert len(names) == len(list(guide.parameters())) + 2
    optimiser = torch.optim.Adam(module.parameters(), lr=0.05)
    module(X, Y).backward()
    optimiser.step()
    assert model.shift.item() != pytest.approx(0.1)


@each_guide
def test_pyro_param_in_the_model(guide_class):
    def model(y):
        centre = pyro.param("centre", torch.tensor(0.0))
        x = pyro.sample("x", dist.Normal(centre, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    guide = guide_class(model)
    fit(model, guide, Y, steps=20, lr=0.1)
    assert pyro.param("centre").item() > 0.1


def test_nothing_of_the_user_is_touched_at_set_up():
    """Only the guide's own names enter the store, and the model's own: as with Pyro's guides."""
    pyro.param("mine", torch.tensor(1.0))
    AutoFlow(mixed).setup()
    names = set(pyro.get_param_store().keys())
    assert "mine" in names
    assert all(name == "mine" or name.startswith("AutoFlow.") for name in names)


@each_guide
def test_a_model_that_differentiates_inside_itself(guide_class):
    def model(y):
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with torch.enable_grad():
            point = x if x.requires_grad else x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(point.square().sum(), point, create_graph=True)
        pyro.sample("y", dist.Normal(slope.sum(-1), 1.0), obs=y)

    guide = guide_class(model)
    losses = fit(model, guide, torch.tensor(1.0), steps=3, elbo=Trace_ELBO())
    assert torch.tensor(losses).isfinite().all()


def test_a_model_that_needs_a_graph_at_set_up():
    def model():
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        scaled = rate * torch.ones((), requires_grad=True)
        (slope,) = torch.autograd.grad(scaled.log(), scaled)  # fails without a graph
        pyro.sample("y", dist.Normal(slope, 1.0), obs=torch.tensor(1.0))

    guide = AutoFlow(model).setup()
    assert guide.median()["rate"] > 0


@each_guide
def test_sites_whose_parameters_need_gradients(guide_class, tmp_path):
    scale = torch.tensor(2.0, requires_grad=True)

    def model():
        x = pyro.sample("x", dist.HalfNormal(scale))
        pyro.sample("u", dist.Uniform(-scale, 2 * scale))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(1.0))

    import copy

    guide = guide_class(model).setup()
    twin = copy.deepcopy(guide)
    torch.testing.assert_close(same_noise(twin), same_noise(guide))
    torch.save(guide, tmp_path / "guide")
    again = torch.load(tmp_path / "guide", weights_only=False)
    torch.testing.assert_close(same_noise(again), same_noise(guide))
    assert all(loss < 1e6 for loss in fit(model, guide, steps=2, elbo=Trace_ELBO()))


def test_bounds_that_move_with_a_parameter_are_those_of_the_model():
    """A support that depends on a learnable parameter: the sites stay where the model allows."""

    def model():
        high = pyro.param("high", torch.tensor(1.0))
        pyro.sample("u", dist.Uniform(torch.zeros(()), high))

    guide = AutoFlow(model).setup()
    assert guide.sample_posterior(10)["u"].max() < 1


@each_guide
def test_masked_and_nested_plates(guide_class):
    def model(y):
        with pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 4, dim=-1):
            x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with poutine.mask(mask=y > 0):
                pyro.sample("y", dist.Normal(x.sum(-1), 1.0), obs=y)

    guide = guide_class(model)
    losses = fit(model, guide, torch.randn(3, 4), steps=2)
    assert torch.tensor(losses).isfinite().all()
    assert guide.sample_posterior(5)["x"].shape == (5, 3, 4, 2)
    assert guide.latent_dim == 24


def test_draws_take_any_shape_and_carry_deterministic_sites():
    def model(y=None):
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.deterministic("double", 2 * x)
        pyro.sample("y", dist.Normal(x.sum(-1), 1.0), obs=y)

    guide = AutoFlow(model)
    draws = guide.sample_posterior((3, 2), torch.tensor(0.3), deterministic=True)
    assert {name: tuple(value.shape) for name, value in draws.items()} == {
        "x": (3, 2, 2),
        "double": (3, 2, 2),
    }
    torch.testing.assert_close(draws["double"], 2 * draws["x"])
    assert guide.sample_posterior(0)["x"].shape == (0, 2)
    assert guide.sample_posterior(())["x"].shape == (2,)
    # More than a chunk: the same law, none lost or repeated.
    many = guide.sample_posterior(5000)["x"][:, 0]
    assert len(many.unique()) == 5000
    assert not many.requires_grad


def test_structure_may_differ_in_what_the_guide_does_not_hold():
    """Prediction leaves observations out; that is no change of structure."""

    def model(x, y=None):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(a * x, 1.0), obs=y)

    guide = AutoFlow(model).setup(X[:, 0], Y)
    assert set(guide(X[:3, 0])) == {"a"}
    assert set(guide(X[:, 0], None)) == {"a"}


@each_guide
def test_no_grad_inference_mode_and_frozen(guide_class):
    guide = guide_class(mixed).setup()
    disturb(guide, 0.2)
    expected = same_noise(guide)
    with torch.inference_mode():
        inferred = same_noise(guide)
        scores = guide.log_prob(guide.sample_posterior(3))
        guide.median()
        guide.quantiles([0.1])
    torch.testing.assert_close(inferred, expected)
    assert scores.isfinite().all()
    # Afterwards it still trains.
    before = guide.loc.detach().clone()
    fit(mixed, guide, steps=1)
    assert not torch.equal(guide.loc, before)
    guide.requires_grad_(False)
    frozen = [parameter.clone() for parameter in guide.parameters()]
    trace = poutine.trace(guide).get_trace()
    assert not trace.log_prob_sum().requires_grad
    assert all(torch.equal(a, b) for a, b in zip(frozen, guide.parameters()))
    guide.requires_grad_(True)
    assert poutine.trace(guide).get_trace().log_prob_sum().requires_grad


def test_set_up_under_inference_mode_still_trains():
    guide = AutoFlow(mixed)
    with torch.inference_mode():
        guide.setup()
    fit(mixed, guide, steps=1)


@each_guide
def test_trace_module(guide_class, tmp_path):
    guide = guide_class(mixed)
    guide()
    expected = same_noise(guide)
    with pyro.validation_enabled(False):
        traced = torch.jit.trace_module(guide, {"call": ()}, check_trace=False)
    torch.jit.save(traced, str(tmp_path / "traced"))
    pyro.clear_param_store()
    again = torch.jit.load(str(tmp_path / "traced"))
    pyro.set_rng_seed(11)
    for value, (_, wanted) in zip(again.call(), sorted(expected.items())):
        torch.testing.assert_close(value, wanted)
    names = {name for name, _ in guide.named_parameters()}
    assert {name for name, _ in again.named_parameters()} == names


def test_two_threads_draw_from_one_guide():
    guide = AutoPlanar(mixed).setup()
    disturb(guide, 0.2)
    found, errors = [], []

    def work():
        try:
            for _ in range(20):
                draws = guide.sample_posterior(5)
                found.append(guide.log_prob(draws).isfinite().all().item())
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(found) == 40
    assert all(found)


def test_svi_and_a_guide_as_a_plain_model_component():
    """A guide called in the model position draws, as Pyro's guides do."""
    guide = AutoIAF(mixed)
    svi = SVI(mixed, guide, pyro.optim.ClippedAdam({"lr": 0.01}), Trace_ELBO())
    assert svi.step() < float("inf")
    assert svi.evaluate_loss() < float("inf")


class _Shaped:
    """An object of a user's own whose shape is none."""

    def __init__(self, shape):
        self.shape = shape


@pytest.mark.parametrize(
    "argument",
    [dist.Normal(0.0, 3.0), dist.Normal, _Shaped(5), _Shaped("round"), _Shaped(None), _Shaped(len)],
    ids=["distribution", "class", "number", "word", "none", "function"],
)
def test_a_model_may_take_any_object(argument):
    def model(given, y):
        prior = given if isinstance(given, dist.Normal) else dist.Normal(0.0, 3.0)
        pyro.sample("y", dist.Normal(pyro.sample("x", prior), 1.0), obs=y)

    guide = AutoFlow(model, "affine").setup(argument, torch.tensor(1.0))
    guide(argument, torch.tensor(1.0))
