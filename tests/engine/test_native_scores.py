"""Path scores of autoregressive layers in native code: one loop, in two layouts."""

from __future__ import annotations

import pytest
import torch
from engine.native_function import NativeFunction
from torch.fx import GraphModule

from pyro_nfvi._engine.recorder import Recorder
from pyro_nfvi.flows import make_flow


# 5 particles lie row by row, 8 and 24 side by side, the last in chunks.
@pytest.mark.parametrize("particles", [5, 8, 24])
@pytest.mark.parametrize("name", ["iaf*2", pytest.param("nsf-ar*2", marks=pytest.mark.slow)])
def test_scores_equal_torch(name, particles):
    flow = make_flow(name, 7, hidden_dim=11).double()
    with torch.no_grad():
        for param in flow.parameters():
            param.add_(0.3 * torch.randn_like(param))
    x = torch.randn(particles, 7, dtype=torch.float64)
    recorder = Recorder({"x": x})
    with recorder, torch.no_grad():
        outputs = list(flow.forward_with_score(x, -x))
    recorder.output(outputs)
    graph = GraphModule(torch.nn.Module(), recorder.graph)
    assert sum("solve_masked" in str(node.target) for node in graph.graph.nodes) == 2
    native = NativeFunction(graph, recorder.consts, rows=particles)
    with torch.no_grad():
        expected = flow.forward_with_score(x, -x)
    for one, other in zip(native(x), expected):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
