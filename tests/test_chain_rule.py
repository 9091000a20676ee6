"""Gradients where zero meets infinity: a catalogue of functions and points, in every engine."""

import shutil
import sys

import pyro.distributions as dist
import pytest
import torch
from torch.fx import GraphModule
from torch.nn import functional as F

from pyro_nfvi._chain_rule import find_singularity, score, scored
from pyro_nfvi._engine.recorder import Recorder

X = torch.tensor([0.0, 0.0, 1.0, 2.0], dtype=torch.float64)
ZERO = torch.zeros_like(X)
#: Points of a density of two numbers, both positive.
Z = torch.tensor([[1.3, 0.6], [0.7, 0.4], [2.1, 0.3]], dtype=torch.float64)


def u(z):
    """Data times the first number: exactly 0 where the data is."""
    return X * z[:, :1]


def v(z):
    return X * z[:, 1:]


#: Finite densities whose chain rule has a zero times an infinity, or a NaN behind a branch that is
#: not taken: first the function of u, then a factor that keeps the whole from being constant.
CATALOGUE = {
    "pow": lambda z: ((X / z[:, :1]) ** z[:, 1:]).sum(-1),
    "pow number": lambda z: (u(z) ** 0.3).sum(-1) * z[:, 1],
    "pow of pow": lambda z: ((u(z) ** 0.5) ** z[:, 1:]).sum(-1),
    "sqrt": lambda z: u(z).sqrt().sum(-1) * z[:, 1],
    "sqrt of integers": lambda z: (X.long() * z[:, :1]).sqrt().sum(-1) * z[:, 1],
    "sqrt of booleans": lambda z: ((X > 0) * z[:, :1]).sqrt().sum(-1) * z[:, 1],
    "sqrt of a number": lambda z: (0 * z[:, 0]).sqrt() + (0.0 * z[:, 1]).sqrt() + z[:, 1],
    "quotient of integers": lambda z: ((X.long() / z[:, :1]) ** z[:, 1:]).sum(-1),
    "sqrt of abs": lambda z: (u(z) - 2 * v(z)).abs().sqrt().sum(-1),
    "sqrt of square": lambda z: (u(z).square() + v(z).square()).sqrt().sum(-1),
    "sqrt of matmul": lambda z: (z @ torch.stack([X, X])).sqrt().sum(-1),
    "sqrt of einsum": lambda z: torch.einsum("sd,di->si", z, torch.stack([X, X])).sqrt().sum(-1),
    "sqrt of relu": lambda z: F.relu(z[:, :1] - X).sqrt().sum(-1) + z[:, 1],
    "sqrt of saturated": lambda z: (1 - torch.tanh(100 * z[:, 0])).sqrt() + z[:, 1],
    "sqrt of sigmoid": lambda z: torch.sigmoid(-2000 * z[:, 0]).sqrt() + z[:, 1],
    "exp of log": lambda z: (z[:, 1:] * (X / z[:, :1]).log()).exp().sum(-1),
    "norm": lambda z: torch.stack([u(z), v(z)], -1).norm(dim=-1).sum(-1),
    "norm 1.5": lambda z: torch.stack([u(z), v(z)], -1).norm(p=1.5, dim=-1).sum(-1),
    "hypot": lambda z: torch.hypot(u(z), v(z)).sum(-1),
    "atan2": lambda z: torch.atan2(u(z), v(z)).sum(-1) + z[:, 0],
    "acos": lambda z: torch.acos(1 - u(z) / 10).sum(-1) * z[:, 1],
    "asin": lambda z: torch.asin(1 - u(z) / 10).sum(-1) * z[:, 1],
    "acosh": lambda z: torch.acosh(1 + u(z)).sum(-1) * z[:, 1],
    "xlogy": lambda z: torch.xlogy(u(z), u(z)).sum(-1) * z[:, 1],
    "xlogy of two": lambda z: torch.xlogy(u(z), v(z)).sum(-1),
    "xlog1py": lambda z: torch.special.xlog1py(u(z), u(z) - 1 + (X > 0)).sum(-1) * z[:, 1],
    "entr": lambda z: torch.special.entr(u(z)).sum(-1) * z[:, 1],
    "where log": lambda z: torch.where(X > 0, u(z).log(), ZERO).sum(-1) * z[:, 1],
    "where x log x": lambda z: torch.where(X > 0, u(z) * u(z).log(), ZERO).sum(-1) * z[:, 1],
    "where division": lambda z: torch.where(X > 0, z[:, 1:] / u(z), ZERO).sum(-1),
    "where sqrt": lambda z: torch.where(z[:, 0] > 9, (z[:, 0] - 9).sqrt(), z[:, 1]) * z[:, 0],
    "where lgamma": lambda z: torch.where(X > 0, torch.lgamma(u(z)), ZERO).sum(-1) * z[:, 1],
    "masked fill": lambda z: u(z).log().masked_fill(X == 0, -3.0).sum(-1) * z[:, 1],
    "index": lambda z: u(z).log()[:, 2:].sum(-1) * z[:, 1],
    "clamp": lambda z: u(z).log().clamp(min=-5.0).sum(-1) * z[:, 1],
    "softplus inverse": lambda z: F.softplus(u(z).expm1().log()).sum(-1) * z[:, 1],
    "sigmoid of log": lambda z: torch.sigmoid(u(z).log()).sum(-1) * z[:, 1],
    "tanh of log": lambda z: torch.tanh(u(z).log()).sum(-1) * z[:, 1],
    "reciprocal": lambda z: (1 / (1 + 1 / u(z))).sum(-1) * z[:, 1],
    "logaddexp": lambda z: torch.logaddexp(u(z).log(), z[:, 1:]).sum(-1),
    "logsumexp": lambda z: torch.logsumexp(u(z).log(), -1) * z[:, 1],
    "softmax": lambda z: (torch.softmax(u(z).log(), -1) * X).sum(-1) * z[:, 1],
    "sqrt of softmax": lambda z: torch.softmax(u(z).log(), -1).sqrt().sum(-1) * z[:, 1],
    "sqrt of cumsum": lambda z: u(z).cumsum(-1).sqrt().sum(-1) * z[:, 1],
    "std": lambda z: torch.stack([u(z), v(z)], -1).std(-1).sum(-1),
    "Poisson": lambda z: dist.Poisson(u(z), validate_args=False).log_prob(2 * X).sum(-1) * z[:, 1],
    "Binomial": lambda z: dist.Binomial(
        probs=u(z) / 5, total_count=5 * (X > 0).double(), validate_args=False
    ).log_prob(X).sum(-1) * z[:, 1],
    "masked Gamma": lambda z: dist.Gamma(z[:, 1:], 1.0, validate_args=False).mask(X > 0)
    .log_prob(u(z)).sum(-1),
    "masked Weibull": lambda z: dist.Weibull(u(z), z[:, 1:], validate_args=False).mask(X > 0)
    .log_prob(1 + X).sum(-1),
    "Student t": lambda z: dist.StudentT(3.0, (X / z[:, :1]) ** z[:, 1:], 1.0, validate_args=False)
    .log_prob(X).sum(-1),
    "Negative binomial": lambda z: dist.NegativeBinomial(
        2.0, (u(z) / 5), validate_args=False).log_prob(X).sum(-1) * z[:, 1],
}  # fmt: skip

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="no C++ compiler"
)


def difference(function, z, step=1e-5):
    """The derivative by central differences of fourth order: it knows nothing of a chain rule."""
    columns = []
    for e in step * torch.eye(z.shape[1], dtype=z.dtype):
        near, far = function(z + e) - function(z - e), function(z + 2 * e) - function(z - 2 * e)
        columns.append((8 * near - far) / (12 * step))
    return torch.stack(columns, -1)


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_gradient_is_the_limit(name):
    log_p, gradient, _ = score(CATALOGUE[name], Z)
    assert torch.isfinite(log_p).all()
    torch.testing.assert_close(gradient, difference(CATALOGUE[name], Z), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_gradient_is_the_limit_of_rows_run_by_vmap(name):
    def rows(z):
        return torch.vmap(lambda row: CATALOGUE[name](row[None])[0])(z)

    gradient = score(rows, Z)[1]
    torch.testing.assert_close(gradient, difference(CATALOGUE[name], Z), rtol=1e-8, atol=1e-8)


def recorded(names, z):
    recorder = Recorder({"z": z})
    with recorder:
        found = [score(CATALOGUE[name], z)[1] for name in names]
    recorder.output(found)
    return GraphModule(torch.nn.Module(), recorder.graph), recorder.consts


def test_a_recorded_graph_has_the_same_gradient():
    # Recorded where all is well, and run where zero meets infinity: as a fit's steps do.
    graph, consts = recorded(CATALOGUE, 5 * torch.ones_like(Z))
    for name, found in zip(CATALOGUE, graph(Z, *consts), strict=True):
        expected = score(CATALOGUE[name], Z)[1]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, msg=name)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float64])
def test_native_code_has_the_same_gradient(dtype):
    from engine.native_function import NativeFunction

    graph, consts = recorded(CATALOGUE, 5 * torch.ones_like(Z))
    native = NativeFunction(graph, consts, eager=True)
    for name, found in zip(CATALOGUE, native(Z), strict=True):
        expected = score(CATALOGUE[name], Z)[1]
        torch.testing.assert_close(
            found, expected, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_gradient_without_a_limit_stays_as_it_is():
    z = torch.tensor([[0.0, 1.0], [2.0, 1.0]], dtype=torch.float64)
    gradient = score(lambda z: z[:, 0].sqrt() * z[:, 1], z)[1]
    assert gradient[0, 0] == torch.inf
    assert torch.isfinite(gradient[1]).all()
    # Two infinite terms that cancel have none either.
    gradient = score(lambda z: z[:, 0].sqrt() - (2 * z[:, 0]).sqrt(), z)[1]
    assert torch.isnan(gradient[0, 0])


def test_parameters_of_the_density_get_the_limit_too():
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    log_p, _, (gradient,) = score(lambda z: (u(z) / scale).sqrt().sum(-1), Z, [scale])
    expected = -log_p.sum() / (2 * scale)
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-10, atol=0)


def test_rows_of_density_zero_do_not_cost_a_second_pass():
    calls = []

    def log_density(z):
        calls.append(len(z))
        return (z[:, 0] - 1).log() + z[:, 1]

    _, gradient, _ = score(log_density, torch.tensor([[1.0, 1.0], [2.0, 1.0]]))
    assert calls == [2]
    assert gradient[0, 0] == torch.inf


def test_the_rule_ends_with_the_call():
    score(CATALOGUE["sqrt"], Z)
    z = Z.clone().requires_grad_()
    (plain,) = torch.autograd.grad(CATALOGUE["sqrt"](z).sum(), z)
    assert torch.isnan(plain).any()


def test_scored_is_differentiated_through_a_map():
    eps = Z.log().requires_grad_()
    (found,) = torch.autograd.grad(scored(CATALOGUE["pow"], eps.exp()).sum(), eps)
    torch.testing.assert_close(found, Z * score(CATALOGUE["pow"], Z)[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "cause"),
    [("pow", "pow at 0"), ("sqrt", "sqrt at 0"), ("where log", "log at 0"), ("acos", "acos")],
)
def test_the_operation_at_fault_is_named(name, cause):
    z = Z.clone().requires_grad_()
    assert str(find_singularity(CATALOGUE[name](z).sum(), [z])) == cause


def test_a_finite_gradient_has_no_singularity():
    z = Z.clone().requires_grad_()
    assert find_singularity(z.square().sum(), [z]) is None


def test_a_second_import_finds_the_operations_of_the_first():
    import importlib.util

    from pyro_nfvi import _chain_rule as chain_rule

    spec = importlib.util.spec_from_file_location("a_second_chain_rule", chain_rule.__file__)
    again = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = again
    try:
        spec.loader.exec_module(again)
        found = again.score(CATALOGUE["pow"], Z)[1]
    finally:
        del sys.modules[spec.name]
    torch.testing.assert_close(found, score(CATALOGUE["pow"], Z)[1], rtol=0, atol=0)
