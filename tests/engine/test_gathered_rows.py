"""Steps of guides with tables of rows: captured and compiled ones are those of the eager step."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from engine.test_laws import needs_compiler

from pyro_nfvi import AutoPlateFlow
from pyro_nfvi._engine.capture import capture
from pyro_nfvi._engine.graph_runner import GraphRunner
from pyro_nfvi._engine.native.runner import build_native
from pyro_nfvi._engine.program import OptimizerSpec
from pyro_nfvi._optim.rowwise_adam import RowwiseAdam
from pyro_nfvi._optim.snapshot import Snapshot
from pyro_nfvi._train.recipe import TRAINING
from pyro_nfvi._train.step import EagerRunner, EagerStep
from pyro_nfvi.flows._block_arrow import ArrowBlock, ArrowFactor, BlockArrow
from pyro_nfvi.infer._rows_log_joint import rows_log_joint
from pyro_nfvi.objectives._make_objective import make_objective

Y = torch.linspace(-1, 3, 24).double()


def hierarchy(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfNormal(2.0))
    with pyro.plate("groups", len(y), subsample_size=6) as rows:
        place = pyro.sample("place", dist.Normal(mean, spread))
        pyro.sample("y", dist.Normal(place, 1.0), obs=y[rows])


def nested(y):
    """Three floors in each of eight counties, of which a step sees four."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    with pyro.plate("county", 8, dim=-2, subsample_size=4) as counties:
        centre = pyro.sample("centre", dist.Normal(mean, 1.0))
        with pyro.plate("floor", 3, dim=-1):
            place = pyro.sample("place", dist.Normal(centre, 1.0))
            pyro.sample("y", dist.Normal(place, 1.0), obs=y.reshape(8, 3)[counties])


def encoder():
    layers = torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
    return {"groups": torch.nn.Sequential(torch.nn.Unflatten(0, (-1, 1)), *layers)}


def coupled(model):
    """A guide whose rows follow the globals by a table that does not train."""
    guide = AutoPlateFlow(model).setup(Y)
    blocks = [
        ArrowBlock(b.positions, tuple((0, rows) for rows in b.parents.values()))
        for b in guide.layout.blocks
    ]
    trils = tuple(
        0.3 * torch.eye(b.width).double().expand(b.num_rows, -1, -1) for b in guide.layout.blocks
    )
    weights = (torch.linspace(-0.2, 0.2, 48).double().reshape(24, 1, 2),)
    factor = ArrowFactor(BlockArrow.known(blocks), trils, ((), weights))
    guide.start_at_arrow(torch.zeros(guide.latent.dim).double(), factor)
    return guide


GUIDES = {
    "table": (hierarchy, AutoPlateFlow),
    "coupled": (hierarchy, coupled),
    "amortised": (hierarchy, lambda m: AutoPlateFlow(m, encoder=encoder())),
    "semi": (hierarchy, lambda m: AutoPlateFlow(m, encoder=encoder(), semi_amortised=True)),
    "informed": (hierarchy, lambda m: AutoPlateFlow(m, model_informed=True)),
    "normal": (hierarchy, lambda m: AutoPlateFlow(m, local=None)),
    "nested": (nested, AutoPlateFlow),
}


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)


class Steps:
    """Ten steps of one guide from one state, on common noise and rows."""

    count = 10

    def __init__(self, name):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        model, make = GUIDES[name]
        guide = make(model).setup(Y)
        with torch.no_grad():
            for param in guide.parameters():
                param.add_(0.1 * torch.randn_like(param))
        guide.sparse_gradients = True
        log_joint = rows_log_joint(model, (Y,), {}, guide)
        self.params = list(guide.parameters())
        tables = {id(table) for table in guide.tables.tables()}
        rows = [p for p in self.params if id(p) in tables]
        inner = [p for p in self.params if id(p) not in tables]
        groups = [{"params": inner, "lr": 0.01}, {"params": rows, "lr": 0.03}]
        self.optimizer = RowwiseAdam([group for group in groups if group["params"]])
        objective = make_objective("path")
        step = EagerStep(guide, log_joint, objective, self.params, 0, self.optimizer)
        subsample = log_joint.draw_subsample()
        noise = guide.density(subsample).sample_base(4)
        self.program = capture(guide, log_joint, objective, self.params, 0, noise, subsample)
        self.optimizer.zero_grad(set_to_none=True)
        self.spec = OptimizerSpec.of(self.optimizer, self.program.held, TRAINING.clip_norm)
        self.eager = EagerRunner(step)
        self.eps = torch.stack([guide.density(subsample).sample_base(4) for _ in range(self.count)])
        self.streams = log_joint.draw_subsamples(self.count)
        self.start = Snapshot.take(0, self.params, self.optimizer)

    def __call__(self, runner, blocks=(10,)):
        """Run blocks of steps; return bounds, and the parameters and state that they lead to."""
        self.start.put(self.params, self.optimizer)
        runner.push()
        rates = torch.full((self.count, len(self.optimizer.param_groups)), 0.01).double()
        rates *= torch.linspace(1, 0.5, self.count).double().unsqueeze(-1)
        bounds, begin = [], 0
        for size in blocks:
            part = slice(begin, begin + size)
            streams = {name: index[part] for name, index in self.streams.items()}
            result = runner.run(self.eps[part], streams, rates[part])
            assert bool(result.ok.all())
            bounds.append(result.bounds)
            begin += size
        runner.pull()
        found = [torch.cat(bounds), *(param.detach().clone() for param in self.params)]
        for param in self.params:
            state = self.optimizer.state.get(param, {})
            found += [state[name].clone().double() for name in sorted(state)]
        return found


def same(one, other, tolerance):
    assert len(one) == len(other)
    for mine, theirs in zip(one, other):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def some_fast(*names):
    """All guides, those that are not named in the slow set."""
    return [
        name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in GUIDES
    ]


@pytest.mark.parametrize("name", some_fast("coupled", "semi", "nested"))
def test_the_captured_step_is_the_eager_one(name, double):
    steps = Steps(name)
    assert len(steps.program.tables) == {"amortised": 0, "normal": 2, "nested": 6}.get(name, 3)
    same(steps(steps.eager), steps(GraphRunner(steps.program, steps.spec)), 1e-10)


@needs_compiler
@pytest.mark.parametrize("name", some_fast("coupled"))
def test_the_compiled_step_is_the_eager_one(name, double):
    steps = Steps(name)
    runner = build_native(steps.program, steps.spec)
    found = steps(runner)
    same(steps(steps.eager), found, 1e-10)
    # The same bits in blocks of any length, and by code that was found in the cache.
    for one, blocks in ((runner, (1, 6, 3)), (build_native(steps.program, steps.spec), (10,))):
        assert all(torch.equal(a, b) for a, b in zip(found, steps(one, blocks), strict=True))


@needs_compiler
def test_a_runner_goes_back_to_a_state_with_its_tables(double):
    steps = Steps("coupled")
    runner = build_native(steps.program, steps.spec)
    steps(runner, (4,))
    saved = runner.snapshot()
    there = [param.detach().clone() for param in steps.params]
    rates = torch.full((10, len(steps.optimizer.param_groups)), 0.01).double()
    runner.run(steps.eps, steps.streams, rates)
    runner.restore(saved)
    runner.pull()
    for now, before in zip(steps.params, there, strict=True):
        assert torch.equal(now, before)


def test_rows_that_were_not_drawn_stay(double):
    steps = Steps("table")
    steps.streams = {"groups": torch.arange(6).expand(10, 6)}
    tables = [one.table for one in steps.program.tables]
    before = [table.detach().clone() for table in tables]
    steps(GraphRunner(steps.program, steps.spec))
    for table, earlier in zip(tables, before, strict=True):
        moved = (table != earlier).any(-1)
        assert bool(moved[:6].all())
        assert not bool(moved[6:].any())
