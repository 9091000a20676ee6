"""The run that checks shapes in annotations (``make test-shapes``) finds a wrong one."""

from __future__ import annotations

import sys

import pytest
import torch

from pyro_nfvi import FlowDensity
from pyro_nfvi.flows import ParamFlow
from pyro_nfvi.flows._transformers import AffineTransformer
from pyro_nfvi.objectives import Estimate

checked = pytest.mark.skipif("shapes" not in sys.modules, reason="for make test-shapes")


class Wrong(ParamFlow):
    """A flow whose log-determinant keeps the axis of the coordinates."""

    def init_params(self):
        return {"loc": torch.zeros(self.dim)}

    def _forward(self, x, theta):
        return x + theta["loc"], torch.zeros_like(x)

    def _inverse(self, y, theta):
        return y - theta["loc"], torch.zeros_like(y)


@checked
def test_a_wrong_shape_is_found():
    from jaxtyping import TypeCheckError

    with pytest.raises(TypeCheckError, match="ParamFlow.forward"):
        FlowDensity(Wrong(3)).push(torch.zeros(5, 3))


@checked
def test_a_wrong_shape_of_an_estimate_is_found():
    from jaxtyping import TypeCheckError

    log_w = torch.zeros(5)
    assert int(Estimate(log_w.mean(), log_w.mean(), log_w).num_bad) == 0
    with pytest.raises(TypeCheckError, match="Estimate"):
        Estimate(log_w.mean(), log_w.mean(), log_w.unsqueeze(-1))


@checked
def test_a_wrong_shape_of_a_transformer_is_found():
    from jaxtyping import TypeCheckError

    x = torch.zeros(5, 3)
    assert AffineTransformer().forward(x, torch.zeros(5, 3, 2))[0].shape == x.shape
    with pytest.raises(TypeCheckError, match="AffineTransformer.forward"):
        AffineTransformer().forward(x, torch.zeros(5, 2, 2))
