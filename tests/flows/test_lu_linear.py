"""LU maps, beyond the laws."""

from __future__ import annotations

import pytest
import torch

from pyro_nfvi.flows import LULinear
from pyro_nfvi.testing._case import perturb


def far(flow):
    return perturb(flow, 1.0, torch.Generator().manual_seed(0)).double()


def matrix(flow, dim):
    eye, zero = torch.eye(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    return (flow(eye)[0] - flow(zero)[0]).mT


def test_lu_is_the_matrix_of_its_factors():
    flow = far(LULinear(4))
    m = matrix(flow, 4)
    x = torch.randn(3, 4, dtype=torch.float64)
    y, ladj = flow(x)
    torch.testing.assert_close(y, x @ m.mT + flow(torch.zeros(4, dtype=torch.float64))[0])
    torch.testing.assert_close(ladj, torch.linalg.slogdet(m)[1].expand(3))


@pytest.mark.parametrize("context_dim", [0, 2])
def test_chance_factors_of_many_dimensions_keep_the_inverse(context_dim):
    torch.manual_seed(0)
    flow = LULinear(64, context_dim, spread=1.0).double()
    x = torch.randn(20, 64, dtype=torch.float64)
    context = torch.randn(20, 2, dtype=torch.float64) if context_dim else None
    assert (flow(x, context)[0] - x).abs().max() > 1
    torch.testing.assert_close(
        flow.inverse(flow(x, context)[0], context)[0], x, rtol=1e-8, atol=1e-8
    )
