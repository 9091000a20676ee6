"""Products of a matrix and a vector in compiled code, and the numbers that are too small for it."""

from __future__ import annotations

import pytest
import torch
from engine.native_function import NativeFunction
from engine.test_native_ops import recorded
from engine.test_native_runner import inputs_of, params_of, program_of

from pyro_nfvi._engine.native.runner import build_native
from pyro_nfvi._engine.program import OptimizerSpec

SHAPES = [(100, 25), (37, 16), (3, 131), (131, 3), (64, 8), (9, 33), (17, 300), (260, 2)]


def vectors(*matrices):
    """Each matrix times a vector from either side, as it lies, turned, in part, with a bias."""
    found = []
    for a in matrices:
        u, v = a.new_ones(a.shape[0]).cumsum(0).sin(), a.new_ones(a.shape[1]).cumsum(0).cos()
        u, v = u * a.sum() / a.sum(), v * a.sum() / a.sum()  # not known beforehand
        found += [
            a @ v,
            u[None] @ a,
            a.t() @ u,
            v[None] @ a.t(),
            a[:, None] @ v,
            a[1:, : a.shape[1] - 1].t(),
        ]
        found[-1] = found[-1] @ u[1:]
        found += [torch.addmm(u, v[None], a.t()), torch.addmm(u[:, None], a, v[:, None])]
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-5)])
def test_matrix_times_vector_equals_torch(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    inputs = [1 + torch.rand(shape, generator=generator, dtype=dtype) for shape in SHAPES]
    graph, consts = recorded(vectors, inputs)
    results = NativeFunction(graph, consts)(*inputs)
    for found, expected in zip(results, graph(*inputs, *consts), strict=True):
        assert found.shape == expected.shape
        scale = expected.abs().max().clamp(min=1)
        assert (found - expected).abs().max() <= tolerance * scale * 10


@pytest.mark.parametrize("place", [(0, 0), (40, 9), (99, 24)])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_reaches_its_row_and_no_other(place, value):
    a = torch.ones(100, 25)
    a[place] = value
    v, u = torch.ones(25), torch.ones(100)
    graph, _ = recorded(lambda a, v, u: [a @ v, a.t() @ u], [a, v, u])
    for found, expected in zip(NativeFunction(graph)(a, v, u), graph(a, v, u), strict=True):
        torch.testing.assert_close(found, expected, equal_nan=True)


def test_a_run_leaves_the_thread_able_to_hold_the_smallest_numbers():
    params = params_of()
    program = program_of(params)
    spec = OptimizerSpec.of(torch.optim.Adam(params, lr=0.01), program.params, 1.0)
    runner = build_native(program, spec)
    eps, streams, rates = inputs_of(3)
    assert runner.run(eps, streams, rates[:, :1]).ok.all()
    tiny = torch.tensor([1e-310], dtype=torch.float64)
    assert float(tiny * 0.5) > 0
