"""A density pulled back through compiled flows equals the one by autograd."""

import pytest
import torch

from pyro_nfvi._engine.compiled_pull_back import CompiledPullBack
from pyro_nfvi._engine.program import Unsupported
from pyro_nfvi._mcmc.autograd_density import AutogradDensity
from pyro_nfvi._mcmc.neutra import PulledBack
from pyro_nfvi.flows import Flow, make_flow


def bowl(z):
    return -(z.square() + 1).sqrt().sum(-1)


def moved_flow(formula, dim, dtype):
    flow = make_flow(formula, dim=dim).to(dtype)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=noise).to(dtype)
    return flow.requires_grad_(False)


@pytest.mark.parametrize("rows", [1, 16, 21])
@pytest.mark.parametrize(
    ("formula", "dtype", "close"),
    [("iaf*2", torch.float64, 1e-10), ("realnvp*2|affine", torch.float32, 1e-4)],
)
def test_compiled_is_autograd(formula, dtype, close, rows):
    flow = moved_flow(formula, 3, dtype)
    density = AutogradDensity(bowl)
    eps = torch.randn(rows, 3, dtype=dtype, generator=torch.Generator().manual_seed(1))
    ours = CompiledPullBack(density, flow).value_and_grad(eps)
    theirs = PulledBack(density, flow).value_and_grad(eps)
    for one, two in zip(ours, theirs):
        torch.testing.assert_close(one, two, atol=close, rtol=close)


def test_values_of_parameters_are_those_of_the_flow_at_hand():
    density, eps = AutogradDensity(bowl), torch.ones(4, 3, dtype=torch.float64)
    flow = moved_flow("iaf*2", 3, torch.float64)
    compiled = CompiledPullBack(density, flow)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter *= 0.5
    expected = PulledBack(density, flow).value_and_grad(eps)
    torch.testing.assert_close(compiled.value_and_grad(eps), expected)


class Branching(Flow):
    """A flow that does otherwise where its rows are large, which a capture cannot see."""

    def forward(self, x, context=None):
        factor = 2.0 if float(x.detach().abs().max()) > 1 else 1.0
        return factor * x, x.new_full(x.shape[:-1], self.dim * torch.tensor(factor).log().item())

    def inverse(self, y, context=None):
        return y, y.new_zeros(y.shape[:-1])


def test_a_flow_that_cannot_be_captured_is_refused():
    with pytest.raises(Unsupported):
        CompiledPullBack(AutogradDensity(bowl), Branching(2))
