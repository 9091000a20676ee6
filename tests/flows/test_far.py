"""Every flow five times as far from initialisation as the laws look, at points up to 1e6."""

from __future__ import annotations

import pytest
import torch
from catalog import FLOWS

from pyro_nfvi.testing._case import FlowCase

#: Maps of several layers that stretch one way and shrink another by e^20: a round trip loses as
#: many digits as the logarithm of that, whatever computes it.
STRETCHES = {"iaf*2", "maf*2", "iaf*2|planar*4", "glow*2", "relu*3"}
#: Their fields are too steep there for so few steps.
CONTINUOUS = {"continuous", "ffjord*1"}


# A reversible chain that does not come back in full computes with activations, and says so.
@pytest.mark.filterwarnings("ignore:A reversible chain did not come back")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * FLOWS[n].slow) for n in FLOWS]
)
def test_it_stays_finite_and_comes_back(name, dtype):
    case = FLOWS[name]
    dim = max(case.dims)
    for context_dim in (0, 3) if case.context else (0,):
        examined = FlowCase(case.make, dim, context_dim, dtype)
        flow, context = examined.build(far=5.0), examined.contexts(6)
        for size in (1.0, 1e3, 1e6):
            x = examined.points(6, scale=size).requires_grad_()
            y, ladj = flow(x, context)
            inputs = [x, *flow.parameters()]
            gradients = torch.autograd.grad(y.sum() + ladj.sum(), inputs, materialize_grads=True)
            with torch.no_grad():
                back, back_ladj = flow.inverse(y, context)
                again, _ = flow(back, context)
            for value in (y, ladj, back, back_ladj, *gradients):
                assert value.isfinite().all()
            if name in STRETCHES | CONTINUOUS:
                continue
            scale = 1 + y.abs().amax(-1) + x.abs().amax(-1)
            lost = ((again - y).abs().amax(-1) / scale).max()
            assert lost < (1e-9 if dtype == torch.float64 else 2e-3)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] * FLOWS[n].slow)
        for n in FLOWS
        if FLOWS[n].context and n not in CONTINUOUS
    ],
)
def test_a_net_of_large_weights_and_contexts_keeps_the_inverse(name):
    # Standard normal noise on every weight: nets give numbers of ten and more, which a map has to
    # bound where it takes an exponential or divides. Contexts up to ten times as large as usual.
    case = FLOWS[name]
    dim = 2 if 2 in case.dims else max(case.dims)
    for seed in range(3):
        flow = FlowCase(case.make, dim, 2, torch.float64, seed=seed).build()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in flow.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(noise)
            x = torch.randn(64, dim, generator=generator, dtype=torch.float64)
            size = 10 ** torch.rand(64, 1, generator=generator, dtype=torch.float64)
            context = size * torch.randn(64, 2, generator=generator, dtype=torch.float64)
            y, ladj = flow(x, context)
            back, back_ladj = flow.inverse(y, context)
        lost = (back - x).abs().amax(-1) / (1 + x.abs().amax(-1))
        assert y.isfinite().all()
        assert ladj.isfinite().all()
        assert lost.median() < 1e-8
        assert lost.quantile(0.9) < 1e-4
        assert ((ladj + back_ladj).abs() / (1 + ladj.abs())).median() < 1e-6
