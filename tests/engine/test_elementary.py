"""exp, log, tanh and what is made of them in generated code: to the last place, at the edges."""

from __future__ import annotations

import math

import pytest
import torch
from engine.native_function import NativeFunction
from engine.test_native_ops import recorded
from torch.nn.functional import logsigmoid, softplus

import pyro_nfvi._chain_rule  # noqa: F401 - defines the operations of its rule
from pyro_nfvi._engine.native.compiler import find_compiler
from pyro_nfvi._engine.program import Unsupported

#: Functions, and units in the last place by which they may be off beside PyTorch's own in double
#: precision, which are off by one or two; subnormal results apart.
FUNCTIONS = {
    "exp": (torch.exp, 2),
    "log": (torch.log, 2),
    "log1p": (torch.log1p, 2),
    "tanh": (torch.tanh, 3),
    "sigmoid": (torch.sigmoid, 4),
    "softplus": (softplus, 4),
    "logsigmoid": (logsigmoid, 4),
    "logaddexp": (lambda x: torch.logaddexp(x, torch.zeros_like(x)), 4),
}


@pytest.fixture(autouse=True)
def _compiler():
    try:
        find_compiler()
    except Unsupported as error:
        pytest.skip(str(error))


def points(dtype):
    """Numbers of all sizes and signs, and those at which a function has its limits."""
    generator = torch.Generator().manual_seed(0)
    info = torch.finfo(dtype)
    noise = torch.randn(2000, generator=generator, dtype=torch.float64)
    sizes = torch.linspace(math.log(info.smallest_normal), math.log(info.max), 2000).double().exp()
    largest = math.log(info.max)
    edges = [
        0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, info.max, -info.max,
        info.smallest_normal, info.smallest_normal / 8, largest + 0.1, -largest - 10, 1e4, -1e4,
    ]  # fmt: skip
    parts = [noise, 1e-3 * noise, 1 + 0.1 * noise, largest * noise / 4, sizes, -sizes]
    return torch.cat([*parts, torch.tensor(edges, dtype=torch.float64)]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_elementary_functions_equal_torch_to_the_last_place(dtype):
    x = points(dtype)
    found = NativeFunction(*recorded(lambda x: [f(x) for f, _ in FUNCTIONS.values()], [x]))(x)
    for (name, (function, units)), mine in zip(FUNCTIONS.items(), found):
        theirs = function(x.double()).to(dtype)
        assert torch.equal(mine.isnan(), theirs.isnan()), name
        finite = theirs.isfinite()
        assert torch.equal(mine[~finite & ~theirs.isnan()], theirs[~finite & ~theirs.isnan()])
        normal = finite & (theirs.abs() > 8 * torch.finfo(dtype).smallest_normal)
        mine, theirs = mine[normal], theirs[normal]
        unit = torch.nextafter(theirs.abs(), theirs.new_tensor(math.inf)) - theirs.abs()
        off = ((mine - theirs).abs() / unit).max()
        assert off <= units, f"{name}: {off} units in the last place"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_divisor_that_is_shared_gives_the_limits_of_division(dtype):
    x = points(dtype)[-60:, None].expand(-1, 64).contiguous()
    edges = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 3.0, -7.0, 1e30, 1e-30])
    y = torch.cat([edges, torch.linspace(-2, 2, 55)]).to(dtype)

    def divided(x, y):
        return [x / y, torch.ops.pyro_nfvi.quotient(x, y.expand_as(x)), x / 3.0]

    found = NativeFunction(*recorded(divided, [x, y]))(x, y)
    tolerance = 4 * torch.finfo(dtype).eps
    for mine, theirs in zip(found, divided(x, y)):
        torch.testing.assert_close(
            mine, theirs, rtol=tolerance, atol=torch.finfo(dtype).smallest_normal, equal_nan=True
        )
