"""Masked weights: blocks of zeros are left out, and nothing else changes."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from engine.test_laws import OPTIMISERS, build, check_free, check_restarted, needs_compiler
from engine.zoo import Case

from pyro_nfvi._engine.native import sparse_weights as holes
from pyro_nfvi._engine.native.sparse_weights import full_blocks, ranges, table

WIDE = {"hidden_dim": (140, 75)}


@pytest.fixture(autouse=True)
def _double(monkeypatch):
    torch.set_default_dtype(torch.float64)
    # Weights so small are left whole, since that is quicker; what is left out would be the same.
    monkeypatch.setattr(holes, "_SPARSE_FROM", 4096)


def wide():
    def model(y):
        x = pyro.sample("x", dist.Normal(torch.zeros(71), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x.cumsum(-1) if x.dim() == 1 else x, 2.0).to_event(1), obs=y)

    return model, (torch.linspace(-1.0, 1.0, 71),)


def case(particles=1, optim="adam", objective="total", **options):
    given = {**WIDE, **options}
    return Case(wide(), "iaf*2", objective, OPTIMISERS[optim], particles=particles, **given)


def runs_of(found, strips):
    flat = found.tolist()
    bounds = flat[strips + 1 :]
    pairs = list(zip(bounds[::2], bounds[1::2]))
    return [pairs[a:b] for a, b in zip(flat[:strips], flat[1 : strips + 1])]


def test_tables_hold_what_the_mask_holds():
    mask = torch.tril(torch.ones(90, 83))
    mask[40, 80] = 1
    for found, test in ((table(mask), "any"), (full_blocks(mask), "all")):
        for strip, runs in enumerate(runs_of(found, 12)):
            rows = mask[8 * strip : 8 * strip + 8].bool()
            columns = rows.any(0) if test == "any" else rows.all(0)
            inside = torch.zeros(83, dtype=torch.bool)
            for begin, end in runs:
                inside[begin:end] = True
            if test == "any":
                assert bool(inside[columns].all())
                assert int(inside.sum()) < int(columns.sum()) + 32
            else:
                assert bool(columns[inside].all())
    flat = torch.zeros(90 * 83 + 16, dtype=torch.bool)
    for begin, end in ranges(mask, 16):
        assert begin % 16 == end % 16 == 0
        flat[begin:end] = True
    assert bool(flat[: 90 * 83][mask.reshape(-1) != 0].all())
    assert float(flat.float().mean()) < 0.8


def test_small_or_full_masks_have_no_table():
    assert table(torch.tril(torch.ones(20, 20))) is None
    full = torch.ones(100, 100)
    full[0, :3] = 0
    assert table(full) is None
    assert ranges(full, 16) == [(0, 10000)]


@needs_compiler
@pytest.mark.parametrize("particles", [1, 6, 32])
def test_a_step_with_left_out_blocks_is_the_eager_step(particles):
    check_restarted("native", case(particles), steps=2)


@needs_compiler
@pytest.mark.parametrize("objective", ["total", "path"])
def test_a_net_without_the_skip_is_the_eager_one(objective):
    options = {"skip_connections": False, "hidden_dim": 75}
    check_restarted("native", case(4, objective=objective, **options), steps=2)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("objective", ["total", "path"])
@pytest.mark.parametrize("optim", OPTIMISERS)
def test_every_optimiser_leaves_what_is_masked_alone(optim, objective):
    for particles in (1, 16):
        check_restarted("native", case(particles, optim, objective, activation="relu"), steps=3)
    check_free("native", case(1, optim, objective), steps=200)


@needs_compiler
def test_live_weights_keep_what_stands_behind_the_mask():
    made = case()
    before = [param.detach().clone() for param in made.params]
    runner = build("native", made)
    eps, streams = made.inputs(3)
    assert bool(runner.run(eps, streams, torch.full((3, 1), 0.01)).ok.all())
    runner.pull()
    nets = [flow.net for flow in made.guide.flow.modules() if hasattr(flow, "net")]
    assert len(nets) == 2
    for net in nets:
        for weight, name in zip(net.weights, net._masks):
            (start,) = (b for b, p in zip(before, made.params) if p is weight)
            hidden = getattr(net, name) == 0
            assert torch.equal(weight[hidden], start[hidden])
            assert bool((weight[~hidden] != start[~hidden]).float().mean() > 0.5)


@needs_compiler
@pytest.mark.parametrize("particles", [1, 16])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_seen_past_left_out_blocks(particles, value):
    made = case(particles)
    runner = build("native", made)
    eps, streams = made.inputs(1)
    for place in (0, 70):  # the first input of one layer's order and the last
        bad = eps.clone()
        bad[0, :, place] = value
        assert not bool(runner.run(bad, streams, torch.full((1, 1), 0.01)).ok[0])
    assert bool(runner.run(eps, streams, torch.full((1, 1), 0.01)).ok[0])


@needs_compiler
def test_a_weight_that_is_not_finite_behind_a_mask_is_refused():
    made = case()
    net = next(flow.net for flow in made.guide.flow.modules() if hasattr(flow, "net"))
    with torch.no_grad():
        net.weights[0][net.mask0 == 0] = float("nan")
    from pyro_nfvi._engine.program import Unsupported

    with pytest.raises(Unsupported, match="mask"):
        build("native", made)
