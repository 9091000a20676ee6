"""Steps that several processes take together, here as threads: the numbers of one process."""

from __future__ import annotations

import copy
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nfvi import AutoPlateFlow
from pyro_nfvi._optim.rowwise_adam import RowwiseAdam
from pyro_nfvi._processes.exchange import Exchange
from pyro_nfvi._train.sharded_runner import ShardedFollower, ShardedRunner, live_tensors
from pyro_nfvi._train.sharded_steps import ShardedSteps
from pyro_nfvi._train.step import EagerRunner, EagerStep
from pyro_nfvi.errors import NFVIError
from pyro_nfvi.infer._rows_log_joint import rows_log_joint
from pyro_nfvi.objectives import PathELBO

PARTICLES, STEPS = 7, 6


@pytest.fixture(autouse=True)
def double():
    """Double precision, in which sums in another order differ by no more than can be told."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Threads:
    """What threads that stand for processes have in common."""

    def __init__(self, size):
        self.size, self.held = size, [None] * size
        self.barrier = threading.Barrier(size, timeout=60)


class ThreadExchange(Exchange):
    """The exchange of processes, between threads."""

    def __init__(self, rank, threads):
        super().__init__(rank, threads.size)
        self._threads = threads

    def all(self, mine):
        self._threads.held[self.rank] = copy.deepcopy(mine)
        self._threads.barrier.wait()
        found = list(self._threads.held)
        self._threads.barrier.wait()
        return found

    def from_first(self, told):
        return self.all(told)[0]

    def to_each(self, told):
        return self.all(told)[0][self.rank]

    def to_first(self, mine):
        found = self.all(mine)
        return found if self.leads else None

    def sum(self, values):
        return values.copy_(sum(self.all(values)))


class Service:
    """The service by which the first process tells the others what to do."""

    def __init__(self, exchange):
        self.exchange = exchange

    def call(self, told):
        self.exchange.from_first(told)


def table(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    with pyro.plate("groups", len(y), subsample_size=5) as rows:
        place = pyro.sample("place", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(place, 1.0).expand([len(rows)]), obs=y[rows, 0])


def nested(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    items = pyro.plate("items", 3, dim=-1)
    with items:
        item = pyro.sample("item", dist.Normal(mean, 1.0))
    with pyro.plate("groups", len(y), subsample_size=4, dim=-2) as rows:
        place = pyro.sample("place", dist.Normal(mean, 1.0))
        with items:
            z = pyro.sample("z", dist.Normal(place + item, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])


def encoder():
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))


CASES = {
    "table": (table, {}),
    "nested": (nested, {}),
    "amortised": (table, {"encoder": True}),
    "semi-amortised": (table, {"encoder": True, "semi_amortised": True}),
    "no flow": (table, {"flow": "affine", "local": None}),
}


def made(case, *, rowwise=True):
    """Return a step of a case, off its start, and a function that copies it."""
    model, options = CASES[case]
    noise = torch.Generator().manual_seed(3)
    y = torch.randn(23, 3, dtype=torch.float64, generator=noise)
    if options.get("encoder"):
        options = {**options, "encoder": {"groups": encoder()}}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        guide = AutoPlateFlow(model, **options).setup(y)
    with torch.no_grad():
        for param in guide.parameters():
            param.add_(0.1 * torch.randn(param.shape, generator=noise, dtype=torch.float64))
    log_joint = rows_log_joint(model, (y,), {}, guide)

    def copied():
        own = copy.deepcopy(guide)
        own.sparse_gradients = rowwise
        tables = {id(p) for p in own.tables.tables()}
        params = list(own.parameters())
        groups = [
            {"params": [p for p in params if id(p) not in tables], "lr": 0.01},
            {"params": [p for p in params if id(p) in tables], "lr": 0.03},
        ]
        make = RowwiseAdam if rowwise else torch.optim.RMSprop
        optimizer = make([group for group in groups if group["params"]])
        return EagerStep(own, copy.copy(log_joint), PathELBO(), params, 0, optimizer)

    return copied


def inputs(step, num=STEPS):
    noise = torch.Generator().manual_seed(1)
    rows = step.log_joint.draw_subsamples(num, noise)
    dim = step.log_joint.latent.dim
    eps = torch.randn(num, PARTICLES, dim, dtype=torch.float64, generator=noise)
    groups = [group["lr"] for group in step.optimizer.param_groups]
    return eps, rows, torch.tensor([groups] * num, dtype=torch.float64)


def together(size, copied, lead, spoil=lambda rank, step: step, **options):
    """Run a function of the first process's runner, while the others follow."""
    threads, given = Threads(size), {"engine": "eager", "max_steps": 1000, **options}

    def process(rank):
        exchange, step = ThreadExchange(rank, threads), spoil(rank, copied())

        def make(state):
            if not exchange.leads:
                step.guide.load_state_dict(state)
            return ShardedSteps(step, PARTICLES, exchange, **given)

        try:
            if rank:
                follow = ShardedFollower(make, exchange)
                while (order := exchange.from_first(None)) is not None:
                    follow(order)
                return None
            live = live_tensors(step.params, step.optimizer)
            runner = ShardedRunner(make, step.guide.state_dict(), Service(exchange), live)
            try:
                return lead(runner, step)
            finally:
                runner.end()
                exchange.from_first(None)
        except BaseException:
            threads.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(process, range(size)))[0]


class Faulty:
    """A log joint without a number at some points."""

    def __init__(self, log_joint, above):
        self.inner, self.above = log_joint, above

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, z, rows):
        log_p = self.inner(z, rows)
        return torch.where(z[..., 0] > self.above, torch.nan, log_p)


def states(step):
    found = []
    for param in step.params:
        state = step.optimizer.state.get(param, {})
        found += [param.detach(), *(state[name] for name in sorted(state))]
    return [one.double().clone() for one in found]


def assert_same(mine, theirs, tolerance=1e-11):
    assert len(mine) == len(theirs)
    for one, other in zip(mine, theirs):
        assert one.shape == other.shape
        assert float((one - other).abs().max() if one.numel() else 0) < tolerance


@pytest.mark.parametrize(
    ("case", "size", "engine"),
    [
        ("table", 1, "eager"),
        ("table", 3, "eager"),
        ("table", 9, "eager"),  # more processes than particles
        ("table", 2, "compiled"),
        ("nested", 2, "eager"),
        ("amortised", 2, "eager"),
        ("amortised", 2, "compiled"),
        ("semi-amortised", 3, "eager"),
        ("no flow", 2, "eager"),
    ],
)
def test_steps_of_several_processes_are_those_of_one(case, size, engine):
    copied = made(case)
    alone = copied()
    given = inputs(alone)
    expected = EagerRunner(alone).run(*given)

    def lead(runner, step):
        runner.push()
        result = runner.run(*given)
        assert runner.steps.captured == (engine == "compiled"), runner.steps.reason
        runner.pull()
        return result, states(step)

    result, found = together(size, copied, lead, engine=engine)
    assert result.ok.all()
    torch.testing.assert_close(result.bounds, expected.bounds, rtol=1e-12, atol=0)
    assert_same(found, states(alone))


def test_an_optimiser_of_another_kind_moves_whole_tables_everywhere():
    copied = made("table", rowwise=False)
    alone = copied()
    given = inputs(alone)
    EagerRunner(alone).run(*given)

    def lead(runner, step):
        runner.push()
        runner.run(*given)
        runner.pull()
        return states(step)

    assert_same(together(2, copied, lead), states(alone))


def test_states_are_kept_and_put_back_in_all_processes():
    copied = made("table")
    alone = copied()
    eps, rows, rates = inputs(alone)
    first = (eps[:3], {n: x[:3] for n, x in rows.items()}, rates[:3])
    rest = (eps[3:], {n: x[3:] for n, x in rows.items()}, rates[3:])
    EagerRunner(alone).run(*first)
    middle = states(alone)
    EagerRunner(alone).run(*rest)

    def lead(runner, step):
        runner.push()
        runner.run(*first)
        kept = runner.snapshot()
        forgotten = runner.snapshot()
        runner.run(*rest)
        runner.restore(kept)
        del forgotten
        runner.pull()
        held = [one.clone() for one in states(step)]
        runner.push()  # nothing changed: nobody is told
        runner.run(*rest)
        runner.pull()
        assert len(runner._own._kept) == 1
        # What a user's callback writes is taken by all.
        with torch.no_grad():
            for param in step.params:
                param.zero_()
        runner.push()
        runner.pull()
        assert all(not bool(param.any()) for param in step.params)
        return held, None

    held, _ = together(3, copied, lead)
    assert_same(held, middle)


def test_particles_without_a_number_count_as_in_one_process():
    copied = made("table")
    eps, rows, rates = inputs(copied())
    eps[0, :3, 0], eps[1, :3, 0] = 100.0, 0.0  # all particles of the first process, once
    eps[3, :4, 0] = 100.0

    def faulty():
        step = copied()
        step.log_joint = Faulty(step.log_joint, 8.0)
        return step

    alone = faulty()
    expected = EagerRunner(alone).run(eps, rows, rates)

    def lead(runner, step):
        runner.push()
        result = runner.run(eps, rows, rates)
        runner.pull()
        return result, states(step)

    result, found = together(3, faulty, lead)
    assert result.ok.tolist() == expected.ok.tolist() == [True, True, True, False]
    assert result.num_bad.tolist() == expected.num_bad.tolist() == [3, 0, 0, 4]
    torch.testing.assert_close(result.bounds, expected.bounds, rtol=1e-12, atol=0)
    assert_same(found, states(alone))


def test_an_error_in_one_process_is_told_by_the_first():
    copied = made("table")
    given = inputs(copied())

    def broken(*_):
        raise ArithmeticError("no such number")

    def lead(runner, step):
        runner.push()
        with pytest.raises(NFVIError, match="Process 1 failed in a step of training: .*no such"):
            runner.run(*given)
        runner.steps._gradient = broken
        with pytest.raises(ArithmeticError, match="no such number"):
            runner.run(*given)

    class Broken(Faulty):
        __call__ = broken

    def spoil(rank, step):
        if rank == 1:
            step.log_joint = Broken(step.log_joint, 0.0)
        return step

    together(2, copied, lead, spoil)


def test_ctrl_c_ends_a_block_after_a_step():
    step = made("table")()
    exchange = ThreadExchange(0, Threads(1))

    def make(_):
        return ShardedSteps(step, PARTICLES, exchange, engine="eager", max_steps=9)

    runner = ShardedRunner(make, None, Service(exchange), live_tensors(step.params, step.optimizer))
    runner.push()
    gradient, calls = runner.steps._gradient, []

    def pressed(*given):
        calls.append(0)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return gradient(*given)

    runner.steps._gradient = pressed
    result = runner.run(*inputs(step))
    assert result.interrupted
    assert 2 <= len(result.bounds) <= 3
    assert len(calls) == len(result.bounds)
