"""Blocks of compiled steps: optimisers, clipping, refusals, threads."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.fx import GraphModule

from pyro_nfvi._engine.native.runner import build_native
from pyro_nfvi._engine.program import OptimizerSpec, Program, Unsupported
from pyro_nfvi._engine.recorder import Recorder

P = 4  # particles


def program_of(params, dtype=torch.float64, rows=10):
    """A step whose gradients vary in size, with a stream of indices and a constant."""
    eps = torch.zeros(P, 3, dtype=dtype)
    streams = {"rows": torch.arange(2)}
    data = torch.linspace(-1, 1, rows * 3, dtype=dtype).view(rows, 3)
    names = {f"param_{i}": p for i, p in enumerate(params)}
    recorder = Recorder({**names, "eps": eps, "rows": streams["rows"]})
    with recorder, torch.enable_grad():
        leaves = [p.detach().requires_grad_() for p in params]
        there = torch.isfinite(eps).all(-1)
        z = leaves[0] + torch.where(there.unsqueeze(-1), eps, 0.0) * leaves[1].exp()
        error = data[streams["rows"]].unsqueeze(1) - z
        log_w = -error.square().sum((0, -1)) * leaves[2].square().sum()
        log_w = torch.where(there, log_w, torch.nan)
        good = torch.isfinite(log_w.detach())
        loss = -torch.where(good, log_w, 0.0).sum() / good.sum().clamp(min=1)
        grads = torch.autograd.grad(loss, leaves)
        bound = torch.where(good, log_w.detach(), torch.nan).nanmean()
        bad = (~good).sum()
    recorder.output([*grads, bound, bad])
    graph = GraphModule(torch.nn.Module(), recorder.graph)
    return Program(graph, tuple(params), eps, streams, tuple(recorder.consts))


def params_of(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    shapes = [(3,), (3,), (2, 9)]
    return [
        (0.3 * torch.randn(s, generator=generator, dtype=dtype)).requires_grad_() for s in shapes
    ]


def inputs_of(n, dtype=torch.float64, seed=2):
    generator = torch.Generator().manual_seed(seed)
    eps = torch.randn(n, P, 3, generator=generator, dtype=dtype)
    rows = torch.stack([torch.randperm(10, generator=generator)[:2] for _ in range(n)])
    rates = torch.stack([torch.linspace(0.02, 0.01, n), torch.full((n,), 0.05)], 1).double()
    return eps, {"rows": rows}, rates


def eager(program, optimizer, eps, streams, rates):
    """The same steps by PyTorch."""
    bounds = []
    for i in range(len(eps)):
        grads, bound, bad = program(eps[i], {"rows": streams["rows"][i]})
        for group, rate in zip(optimizer.param_groups, rates[i]):
            group["lr"] = float(rate)
        for param, grad in zip(program.params, grads):
            param.grad = grad.clone()
        bounds.append(float(bound))
        norm = torch.nn.utils.clip_grad_norm_(program.params, 1.0)
        assert torch.isfinite(norm)
        assert 2 * int(bad) <= P
        optimizer.step()
    return torch.tensor(bounds, dtype=torch.float64)


def grouped(params, make, **options):
    return make([{"params": params[:1]}, {"params": params[1:]}], lr=0.01, **options)


def build(params, optimizer, dtype=torch.float64):
    program = program_of(params, dtype)
    return program, build_native(program, OptimizerSpec.of(optimizer, params, 1.0))


OPTIMIZERS = {
    "Adam": (torch.optim.Adam, {}),
    "Adam fused": (torch.optim.Adam, {"fused": True, "betas": (0.8, 0.99), "eps": 1e-6}),
    "Adam decay": (torch.optim.Adam, {"weight_decay": 0.1, "maximize": True}),
    "Adam amsgrad": (torch.optim.Adam, {"amsgrad": True}),
    "AdamW": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "RMSprop": (torch.optim.RMSprop, {"alpha": 0.9}),
    "RMSprop all": (
        torch.optim.RMSprop,
        {"centered": True, "momentum": 0.5, "weight_decay": 0.1},
    ),
    "SGD": (torch.optim.SGD, {}),
    "SGD momentum": (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    "SGD nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "Adagrad": (torch.optim.Adagrad, {"lr_decay": 0.1, "weight_decay": 0.1}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_equal_torch(name):
    make, options = OPTIMIZERS[name]
    mine, theirs = params_of(), params_of()
    program, runner = build(mine, grouped(mine, make, **options))
    block = runner.run(*inputs_of(30))
    runner.pull()
    expected = eager(program_of(theirs), grouped(theirs, make, **options), *inputs_of(30))
    torch.testing.assert_close(block.bounds, expected, rtol=1e-10, atol=1e-10)
    assert bool(block.ok.all())
    for one, other in zip(mine, theirs):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_torch_and_native_code_take_turns(name):
    make, options = OPTIMIZERS[name]
    mine, theirs = params_of(), params_of()
    one, other = grouped(mine, make, **options), grouped(theirs, make, **options)
    program, runner = build(mine, one)
    eps, streams, rates = inputs_of(30)
    turn = [slice(0, 10), slice(10, 20), slice(20, 30)]
    for k, part in enumerate(turn):
        rest = eps[part], {"rows": streams["rows"][part]}, rates[part]
        if k == 1:
            runner.pull()
            eager(program, one, *rest)
            runner.push()
        else:
            runner.run(*rest)
    runner.pull()
    eager(program_of(theirs), other, eps, streams, rates)
    for mine_, theirs_ in zip(mine, theirs):
        torch.testing.assert_close(mine_, theirs_, rtol=1e-10, atol=1e-12)
        for key, value in other.state[theirs_].items():
            torch.testing.assert_close(one.state[mine_][key], value, rtol=1e-10, atol=1e-12)


def test_float32_steps_stay_near_torch():
    mine, theirs = params_of(torch.float32), params_of(torch.float32)
    program, runner = build(mine, grouped(mine, torch.optim.Adam), torch.float32)
    eps, streams, rates = inputs_of(30, torch.float32)
    block = runner.run(eps, streams, rates)
    expected = eager(
        program_of(theirs, torch.float32), grouped(theirs, torch.optim.Adam), eps, streams, rates
    )
    torch.testing.assert_close(block.bounds, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("what", [torch.nan, torch.inf, 1e200])
def test_a_bad_step_ends_the_block_and_leaves_no_trace(what):
    params = params_of()
    program, runner = build(params, grouped(params, torch.optim.Adam))
    eps, streams, rates = inputs_of(9)
    eps[5, : 3 if what == 1e200 else 4] = what
    block = runner.run(eps, streams, rates)
    assert block.ok.tolist() == [True] * 5 + [False]
    runner.pull()
    others = params_of()
    optimizer = grouped(others, torch.optim.Adam)
    eager(program_of(others), optimizer, eps[:5], {"rows": streams["rows"][:5]}, rates[:5])
    for one, other in zip(params, others):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_half_of_the_particles_may_be_bad():
    params = params_of()
    _, runner = build(params, grouped(params, torch.optim.Adam))
    eps, streams, rates = inputs_of(2)
    eps[0, :2], eps[1, :3] = torch.nan, torch.nan
    block = runner.run(eps, streams, rates)
    assert block.ok.tolist() == [True, False]
    assert block.num_bad.tolist() == [2, 3]
    assert bool(torch.isfinite(block.bounds).all())


def test_two_runners_in_two_threads_share_nothing():
    def finish(runner, seed, results):
        for k in range(20):
            block = runner.run(*inputs_of(50, seed=seed + k))
        results[seed] = block.bounds

    def start():
        params = params_of()
        return build(params, grouped(params, torch.optim.Adam))[1]

    alone: dict[int, torch.Tensor] = {}
    together: dict[int, torch.Tensor] = {}
    for seed in (0, 100):
        finish(start(), seed, alone)
    threads = [threading.Thread(target=finish, args=(start(), seed, together)) for seed in (0, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(alone[seed], together[seed]) for seed in alone)
    assert not torch.equal(alone[0], alone[100])


def test_constants_of_other_values_use_the_same_object():
    params = params_of()
    optimizer = grouped(params, torch.optim.Adam)
    spec = OptimizerSpec.of(optimizer, params, 1.0)
    first = program_of(params)
    second = Program(
        first.graph, first.params, first.eps, first.streams, tuple(2 * c for c in first.consts)
    )
    one, other = build_native(first, spec), build_native(second, spec)
    assert other.info.cached
    assert not torch.equal(one.run(*inputs_of(3)).bounds, other.run(*inputs_of(3)).bounds)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda p: torch.optim.LBFGS(p), "LBFGS"),
        (lambda p: torch.optim.Adam(p, capturable=True), "capturable"),
        (lambda p: torch.optim.Adam(p, weight_decay=torch.tensor(0.1)), "weight_decay"),
    ],
)
def test_what_native_code_does_not_do_is_refused(make, word):
    params = params_of()
    with pytest.raises(Unsupported, match=word):
        build(params, make(params))


def test_inputs_of_another_shape_are_refused():
    params = params_of()
    _, runner = build(params, grouped(params, torch.optim.Adam))
    eps, streams, rates = inputs_of(3)
    with pytest.raises(Unsupported, match="built for"):
        runner.run(eps[:, :2], streams, rates)


def test_what_is_kept_can_be_put_back():
    params = params_of()
    _, runner = build(params, grouped(params, torch.optim.Adam))
    runner.run(*inputs_of(5))
    kept = runner.snapshot()
    first = runner.run(*inputs_of(5, seed=7)).bounds
    runner.restore(kept)
    assert torch.equal(runner.run(*inputs_of(5, seed=7)).bounds, first)
