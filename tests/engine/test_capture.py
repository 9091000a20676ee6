"""What is captured computes what the step computes, and what is not says why."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from engine.zoo import ZOO, Case

from pyro_nfvi._engine.capture import capture
from pyro_nfvi._engine.lazy_graph_module import LazyGraphModule
from pyro_nfvi._engine.program import Unsupported


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)


def gradients(case, program, eps, streams):
    """Gradient and bound by autograd and by the graph."""
    result = case.step.gradient(eps, streams)
    expected = [param.grad.clone() for param in program.params]
    grads, bound, num_bad = program(eps, streams)
    return result, expected, grads, bound, num_bad


def one(inputs):
    eps, streams = inputs
    return eps[0], {name: x[0] for name, x in streams.items()}


@pytest.mark.parametrize("objective", ["path", "total"])
@pytest.mark.parametrize("name", ZOO)
def test_gradient_of_every_model(name, objective):
    case = Case(name, "planar*2", objective)
    program = case.program()
    for _ in range(2):  # noise and indices that were not there at the capture
        eps, streams = one(case.inputs())
        result, expected, grads, bound, num_bad = gradients(case, program, eps, streams)
        assert abs(float(bound) - result.bound) <= 1e-12 * (1 + abs(result.bound))
        assert int(num_bad) == result.num_bad == 0
        for grad, reference in zip(grads, expected, strict=True):
            torch.testing.assert_close(grad, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "flow",
    [
        "affine",
        "tril",
        "radial*2",
        "iaf*2",
        "sylvester*2",
        "realnvp*2",
        "nsf*2",
        "maf*1",
        "naf*1",
        "bnaf*1",
        "glow*2",
        "nice*2",
        "relu*2",
    ],  # fmt: skip
)
def test_gradient_of_every_flow(flow):
    case = Case("schools", flow)
    program = case.program()
    eps, streams = one(case.inputs())
    _, expected, grads, *_ = gradients(case, program, eps, streams)
    for grad, reference in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, reference, rtol=1e-9, atol=1e-11)


def test_graph_is_pure_and_holds_no_tensor():
    program = Case("in_place").program()
    nodes = list(program.graph.graph.nodes)
    assert not [n for n in nodes if n.op not in ("placeholder", "call_function", "output")]
    for node in nodes:
        if node.op == "call_function" and hasattr(node.target, "_schema"):
            assert not node.target._schema.is_mutable
            assert torch.Tag.nondeterministic_seeded not in node.target.tags
        if node.op != "output":
            assert "val" in node.meta
    assert not dict(program.graph.named_parameters())
    assert not dict(program.graph.named_buffers())


def test_data_are_inputs_and_no_part_of_the_graph():
    case = Case("schools")
    program = case.program()
    y, sigma = case.args
    # What depends on data alone is computed at the capture, from data that may change after it.
    other = Case((case.guide.model, (y + 1, 2 * sigma)))
    other.guide.load_state_dict(case.guide.state_dict())
    second = other.program()
    assert second.graph.code == program.graph.code
    eps, streams = one(case.inputs())
    result, expected, grads, bound, _ = gradients(other, second, eps, streams)
    assert abs(float(bound) - result.bound) < 1e-12 * abs(result.bound)
    assert abs(float(program(eps, streams)[1]) - result.bound) > 0.1
    for grad, reference in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, reference, rtol=1e-10, atol=1e-12)


def test_what_does_not_depend_on_an_input_is_computed_once():
    x = torch.randn(30, 3)

    def model(x):
        gram = x.T @ x + torch.eye(3)  # of data alone
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.factor("f", -((w @ gram) * w).sum(-1))

    program = Case((model, (x,)), "affine", "total").program()
    assert not any(const.shape == x.shape for const in program.consts)


def test_parameters_of_the_model_train():
    case = Case("params", "affine")
    assert len(case.step.model_params) == 3
    program = case.program()
    assert all(any(p is q for q in program.params) for p in case.step.model_params)


# ------------------------------------------------------------------------------- refusals


def refused(model, *args):
    case = Case((model, args), "affine")
    with pytest.raises(Unsupported) as caught:
        case.program()
    return str(caught.value)


def test_random_numbers_in_the_model_are_refused():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))
        torch.rand(3)  # of no consequence, but that is not to be seen
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    reason = refused(model, torch.tensor(1.0))
    assert "random numbers" in reason
    assert "in model (test_capture.py, line" in reason


def test_a_branch_on_a_latent_is_refused():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))
        scale = 1.0 if bool((mu > -100).all()) else 2.0
        pyro.sample("y", dist.Normal(mu, scale), obs=y)

    assert "Python reads a value" in refused(model, torch.tensor(1.0))


def test_a_branch_on_data_is_taken_once():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0 if float(y) > 0 else 2.0), obs=y)

    Case((model, (torch.tensor(1.0),)), "affine").program()


def test_writing_into_an_argument_is_refused():
    def model(y, count):
        count += 1
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    reason = refused(model, torch.tensor(1.0), torch.zeros(()))
    assert "writes in place into a tensor from outside" in reason


def test_capture_leaves_switches_and_random_state_alone():
    pyro.enable_validation(True)
    case = Case("minibatch")
    inputs = one(case.inputs())
    state = torch.get_rng_state()
    capture(
        case.guide, case.log_joint, case.objective, case.params, len(case.step.model_params),
        *inputs,
    )  # fmt: skip
    assert torch.distributions.Distribution._validate_args
    assert pyro.poutine.util.is_validation_enabled()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_graph_writes_its_code_once_and_when_it_runs():
    graph = torch.fx.symbolic_trace(lambda x: x + 1).graph
    lazy = LazyGraphModule(torch.nn.Module(), graph)
    run = lazy.forward  # as the runner holds it
    assert "forward" not in vars(type(lazy))
    assert run(torch.tensor(1)) == 2
    written = vars(type(lazy))["forward"]
    assert run(torch.tensor(2)) == lazy(torch.tensor(2)) == 3
    assert vars(type(lazy))["forward"] is written
    assert "+ 1" in LazyGraphModule(torch.nn.Module(), graph).code
