"""The laws of engines: a compiled step is the eager step, one by one and free-running."""

import shutil

import pyro
import pyro.distributions as dist
import pytest
import torch
from engine.zoo import ZOO, Case
from pyro.optim.clipped_adam import ClippedAdam

from pyro_nfvi._engine.graph_runner import GraphRunner
from pyro_nfvi._optim.snapshot import Snapshot
from pyro_nfvi._train.step import EagerRunner
from pyro_nfvi.objectives import ImportanceELBO, RenyiELBO, Tempered, TemperedELBO

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="no C++ compiler"
)
OPTIMISERS = {
    "adam": lambda leaves: torch.optim.Adam(leaves, lr=0.01),
    "groups": lambda leaves: torch.optim.Adam(
        [{"params": leaves[:1], "lr": 0.03, "betas": (0.8, 0.9)}, {"params": leaves[1:]}], lr=0.01
    ),
    "adamw": lambda leaves: torch.optim.AdamW(leaves, lr=0.01, weight_decay=0.1),
    "amsgrad": lambda leaves: torch.optim.Adam(leaves, lr=0.01, amsgrad=True, weight_decay=0.01),
    "clipped": lambda leaves: ClippedAdam(
        leaves, lr=0.01, lrd=0.99, clip_norm=0.05, weight_decay=0.01, centered_variance=True
    ),
    # With the default eps and ten times the rate, what one starts from differs by 1e-15 and what
    # comes out by everything: rounding of zero gradients over 1e-8, and a fit that runs away.
    "rmsprop": lambda leaves: torch.optim.RMSprop(
        leaves, lr=0.001, centered=True, momentum=0.9, eps=1e-4
    ),
    "sgd": lambda leaves: torch.optim.SGD(leaves, lr=0.001, momentum=0.9, nesterov=True),
}


def build(engine, case):
    program = case.program()
    if engine == "graph":
        return GraphRunner(program, case.spec(program))
    from pyro_nfvi._engine.native.runner import build_native

    return build_native(program, case.spec(program))


def rates_of(case, count):
    rates = torch.tensor([group["lr"] for group in case.optimizer.param_groups])
    # A schedule: the rate is an input of every step.
    return (torch.linspace(1.0, 0.3, count).unsqueeze(-1) * rates).double()


def state_of(case):
    return [
        [param.detach().clone()]
        + [
            value.detach().clone()
            for _, value in sorted(case.optimizer.state.get(param, {}).items())
            if torch.is_tensor(value)
        ]
        for param in case.params
    ]


def largest(values):
    """Largest absolute value; of a flow's empty parameter there is none."""
    return float(values.abs().max()) if values.numel() else 0.0


def check_restarted(engine, case, steps=4, tolerance=1e-10):
    """Each step from the eager state and the same noise."""
    eager, runner = EagerRunner(case.step), build(engine, case)
    eps, streams = case.inputs(steps)
    rates = rates_of(case, steps)
    for i in range(steps):
        inputs = eps[i : i + 1], {n: x[i : i + 1] for n, x in streams.items()}, rates[i : i + 1]
        before = Snapshot.take(i, case.params, case.optimizer)
        expected = eager.run(*inputs)
        wanted = state_of(case)
        after = Snapshot.take(i, case.params, case.optimizer)
        before.put(case.params, case.optimizer)
        runner.push()
        found = runner.run(*inputs)
        runner.pull()
        assert bool(expected.ok[0])
        assert bool(found.ok[0])
        gap = abs(float(found.bounds[0] - expected.bounds[0]))
        assert gap <= tolerance * (1 + abs(float(expected.bounds[0])))
        norms = [max(largest(s[k]) for s in wanted if len(s) > k) for k in range(6)
                 if any(len(s) > k for s in wanted)]  # fmt: skip
        for mine, theirs in zip(state_of(case), wanted, strict=True):
            assert len(mine) == len(theirs)
            # Relative to the largest of its kind: Adam's first step divides rounding by rounding
            # where a gradient is zero, so of the values only the change's own size counts.
            for k, (one, other) in enumerate(zip(mine, theirs)):
                slack = tolerance * max(1e-3, norms[k]) * (1e3 if k == 0 else 1)
                assert largest(one - other) <= slack
        after.put(case.params, case.optimizer)


def check_free(engine, case, steps=200, tolerance=1e-7):
    """The same noise, each from its own states."""
    start = Snapshot.take(0, case.params, case.optimizer)
    eps, streams = case.inputs(steps)
    rates = rates_of(case, steps)
    runner = build(engine, case)
    expected = EagerRunner(case.step).run(eps, streams, rates)
    start.put(case.params, case.optimizer)
    runner.push()
    # In blocks of several lengths, which are of no consequence.
    bounds, done = [], 0
    for count in (1, 50, 100, 49):
        span = slice(done, done + count)
        block = runner.run(eps[span], {n: x[span] for n, x in streams.items()}, rates[span])
        bounds.append(block.bounds)
        done += count
    found = torch.cat(bounds)
    assert len(found) == len(expected.bounds) == steps
    gap = (found - expected.bounds).abs() / (1 + expected.bounds.abs())
    assert float(gap.max()) < tolerance


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)


@pytest.mark.parametrize("name", ["schools", "minibatch", "params"])
def test_graph_step_is_the_eager_step(name):
    check_restarted("graph", Case(name))


@pytest.mark.slow
@pytest.mark.parametrize("optim", OPTIMISERS)
@pytest.mark.parametrize("name", ["schools", "params", "covariance"])
def test_graph_step_with_every_optimiser(name, optim):
    check_restarted("graph", Case(name, "planar*2", "total", OPTIMISERS[optim]))


@needs_compiler
@pytest.mark.parametrize(
    ("name", "flow", "objective"),
    [("schools", "iaf*2", "path"), ("minibatch", "planar*4", "total")],
)
def test_native_step_is_the_eager_step(name, flow, objective):
    check_restarted("native", Case(name, flow, objective))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("objective", ["path", "total"])
@pytest.mark.parametrize("name", ZOO)
def test_native_step_of_every_model(name, objective):
    check_restarted("native", Case(name, "planar*2", objective))


#: Objectives beside the two of the ELBO; those with a temperature take another at each step.
OTHERS = {
    "iw": ImportanceELBO(3, "total"),
    "dreg": ImportanceELBO(3),
    "renyi": RenyiELBO(0.5, 2),
    "renyi-total": RenyiELBO(-1.0, 6, "total"),
    "tempered": TemperedELBO(Tempered(steps=20)),
}


@pytest.mark.parametrize("name", ["minibatch", "params"])
@pytest.mark.parametrize("objective", OTHERS)
def test_graph_step_with_every_objective(name, objective):
    check_restarted("graph", Case(name, "planar*2", OTHERS[objective]))


@needs_compiler
@pytest.mark.parametrize("objective", ["dreg", "tempered"])
def test_native_step_with_other_objectives(objective):
    check_restarted("native", Case("schools", "affine", OTHERS[objective]))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", ["schools", "minibatch", "params", "process"])
@pytest.mark.parametrize("objective", OTHERS)
def test_native_step_with_every_objective(name, objective):
    check_restarted("native", Case(name, "iaf*1", OTHERS[objective]))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("objective", OTHERS)
def test_native_runs_free_with_every_objective(objective):
    check_free("native", Case("schools", "iaf*1", OTHERS[objective]))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "flow", ["affine", "tril", "radial*2", "sylvester*1", "realnvp*2", "nsf*1", "naf*1", "bnaf*1"]
)
def test_native_step_of_every_flow(flow):
    check_restarted("native", Case("schools", flow), tolerance=1e-9)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("optim", OPTIMISERS)
def test_native_step_with_every_optimiser(optim):
    check_restarted("native", Case("schools", "affine", "total", OPTIMISERS[optim]))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", ["schools", "minibatch", "constrained", "params"])
@pytest.mark.parametrize("objective", ["path", "total"])
def test_native_runs_free_with_the_same_bounds(name, objective):
    check_free("native", Case(name, "iaf*2", objective))


def test_graph_runs_free_with_the_same_bounds():
    check_free("graph", Case("schools", "affine", "path"))


@needs_compiler
@pytest.mark.slow
def test_native_in_single_precision():
    # Rounding of float32 through a few hundred operations; the largest seen is 3e-6.
    torch.set_default_dtype(torch.float32)
    check_restarted("native", Case("schools"), tolerance=1e-4)


class _Wall:
    """A model whose density is NaN beyond a place that can be moved."""

    def __init__(self, place):
        self.place = torch.tensor(place)

    def __call__(self, y):
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.factor("wall", torch.where(mu > self.place, torch.nan, 0.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@pytest.mark.parametrize("engine", ["graph", pytest.param("native", marks=needs_compiler)])
def test_nan_is_seen_and_ends_a_block(engine):
    case = Case((_Wall(50.0), (torch.tensor(0.0),)), "affine", "path", particles=4)
    runner = build(engine, case)
    eps, _ = case.inputs(5)
    eps.clamp_(-0.5, 0.5)
    eps[1, 0] = 1e5  # one particle is left out
    eps[3, :3] = 1e5  # most are: the step is skipped
    start = [p.detach().clone() for p in case.params]
    rates = rates_of(case, 5)
    result = runner.run(eps, {}, rates)
    runner.pull()
    assert result.ok.tolist() == [True, True, True, False]
    assert result.num_bad.tolist() == [0, 1, 0, 3]
    stopped = state_of(case)
    assert not all(torch.equal(p, q) for p, q in zip(case.params, start))
    # The same as never having tried.
    for param, value in zip(case.params, start):
        param.data.copy_(value)
    case.optimizer.state.clear()
    runner.push()
    runner.run(eps[:3], {}, rates[:3])
    runner.pull()
    for one, other in zip(state_of(case), stopped, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("engine", ["graph", pytest.param("native", marks=needs_compiler)])
def test_infinite_gradients_are_seen(engine):
    case = Case("schools", "affine", "total")
    runner = build(engine, case)
    eps, _ = case.inputs(1)
    with torch.no_grad():
        case.params[0].fill_(torch.inf)
    runner.push()
    result = runner.run(eps, {}, rates_of(case, 1))
    assert not bool(result.ok[0])


@needs_compiler
def test_two_fits_of_one_shape_share_code_and_no_state():
    one = Case("schools", "affine")
    pyro.clear_param_store()  # a guide of the same name would take up the first one's values
    other = Case("schools", "affine")
    first, second = build("native", one), build("native", other)
    eps, _ = one.inputs(20)
    before = [p.detach().clone() for p in other.params]
    expected = first.run(eps, {}, rates_of(one, 20)).bounds
    first.pull()
    assert all(torch.equal(p, q) for p, q in zip(other.params, before))
    found = second.run(eps, {}, rates_of(other, 20)).bounds
    assert not torch.equal(found, expected)  # they start from other parameters
