"""Householder products, beyond the laws."""

from __future__ import annotations

import torch

from pyro_nfvi.flows import Householder
from pyro_nfvi.testing._case import perturb


def far(flow):
    return perturb(flow, 1.0, torch.Generator().manual_seed(0)).double()


def matrix(flow, dim):
    eye, zero = torch.eye(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    return (flow(eye)[0] - flow(zero)[0]).mT


def test_householder_product_is_orthogonal():
    m = matrix(far(Householder(5)), 5)
    torch.testing.assert_close(m @ m.mT, torch.eye(5, dtype=torch.float64))
    assert (m - torch.eye(5)).abs().max() > 0.1  # it does turn
    torch.testing.assert_close(torch.linalg.det(m), torch.tensor(1.0, dtype=torch.float64))


def test_a_reflection_at_nothing_is_the_identity():
    flow = Householder(3, num_pairs=1)
    with torch.no_grad():
        flow.params()["v"].zero_()
    x = torch.randn(4, 3)
    y, _ = flow(x)
    assert torch.equal(y, x)
    (gradient,) = torch.autograd.grad(y.sum(), list(flow.parameters()))
    assert gradient.isfinite().all()
