"""Writes in place through views of every stride, recorded and compiled."""

import shutil

import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import pytest
import torch
from engine.zoo import Case
from pyro.nn import PyroSample
from torch.fx import GraphModule

from pyro_nfvi import NFVI, AutoFlow
from pyro_nfvi._engine.recorder import Recorder
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._pyro_model.log_joint import LogJoint

N = 4
Z = torch.tensor([[0.3, 0.7], [0.5, 1.1]], dtype=torch.float64)


def matrix(z):
    numbers = torch.arange(float(N * N), dtype=z.dtype).reshape(N, N)
    return (z[0, 0] * torch.ones_like(numbers) + z[0, 1] * numbers).clone()


def vector(z):
    return z[0, 0] * torch.arange(9.0, dtype=z.dtype)


def flat_diagonal(z):
    k = matrix(z)
    k.view(-1)[:: N + 1] += z[0, 1]
    return k.sin().sum()


def steps(z):
    v = vector(z)
    v[1::3] *= z[0, 1]
    v[::2] = v[::2].clone() ** 2
    return v.sum()


def diagonals(z):
    k = matrix(z)
    k.diagonal().add_(z[0, 1])
    k.diagonal(1).mul_(2)
    return k.square().sum()


def transposed(z):
    k = matrix(z)
    k.T[1] += z[0, 0]
    k.t()[::2, 1:3].mul_(z[0, 1])
    return k.square().sum()


def any_stride(z):
    k = matrix(z)
    k.as_strided((2, 2), (5, 2), 1).mul_(z[0, 1])
    return k.square().sum()


def rows_by_vmap(z):
    def one(row):
        k = (row[0] * torch.ones(N, N, dtype=z.dtype) + 2 * torch.eye(N, dtype=z.dtype)).clone()
        k.view(-1)[:: N + 1] += row[1]
        return torch.linalg.cholesky(k).diagonal().log().sum()

    return torch.vmap(one)(z).sum()


def columns(z):
    k = matrix(z)
    k.fill_diagonal_(2.0)
    k[:, ::2] -= z[0, 1]
    return k.square().sum()


def moved(z):
    v = vector(z)
    v.view(3, 3)[:, 1].add_(z[0, 1])
    v.view(3, 3).movedim(0, 1)[2].pow_(2)
    return v.square().sum()


def triangle(z):
    k = matrix(z)
    i, j = torch.tril_indices(N, N)
    k[i, j] = z[0, 1]
    k.view(2, 2, N)[1].sub_(1.0)
    return k.square().sum()


WRITES = (
    flat_diagonal, steps, diagonals, transposed, any_stride, rows_by_vmap, columns, moved, triangle,
)  # fmt: skip


def recorded(function):
    z = (2 * Z).requires_grad_()
    recorder = Recorder({"z": z})
    with recorder:
        (gradient,) = torch.autograd.grad(function(z), z)
    recorder.output([gradient])
    return GraphModule(torch.nn.Module(), recorder.graph), recorder.consts


def eager(function):
    z = Z.clone().requires_grad_()
    return torch.autograd.grad(function(z), z)[0]


@pytest.mark.parametrize("function", WRITES)
def test_recorded(function):
    graph, consts = recorded(function)
    torch.testing.assert_close(graph(Z, *consts)[0], eager(function), rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(
    not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="no C++ compiler"
)
@pytest.mark.parametrize("function", WRITES)
def test_compiled(function):
    from engine.native_function import NativeFunction

    graph, consts = recorded(function)
    found = NativeFunction(graph, consts, eager=True)(Z)[0]
    torch.testing.assert_close(found, eager(function), rtol=1e-9, atol=1e-9)


X = torch.linspace(0.0, 5.0, 20)
Y = torch.sin(X) + 0.2 * torch.cos(17 * X)


def kernel():
    found = gp.kernels.RBF(input_dim=1)
    found.variance = PyroSample(dist.LogNormal(0.0, 1.0))
    found.lengthscale = PyroSample(dist.LogNormal(0.0, 1.0))
    return found


def exact():
    found = gp.models.GPRegression(X, Y, kernel(), noise=torch.tensor(0.1))
    found.noise = PyroSample(dist.LogNormal(-2.0, 1.0))
    return found.model


def sparse(approx):
    inducing = torch.linspace(0.0, 5.0, 7)
    found = gp.models.SparseGPRegression(
        X, Y, kernel(), Xu=inducing, noise=torch.tensor(0.1), approx=approx
    )
    found.noise = PyroSample(dist.LogNormal(-2.0, 1.0))
    return found.model


def closed():
    """The same density by hand, without a write in place."""
    v = pyro.sample("kernel.variance", dist.LogNormal(0.0, 1.0))
    scale = pyro.sample("kernel.lengthscale", dist.LogNormal(0.0, 1.0))
    noise = pyro.sample("noise", dist.LogNormal(-2.0, 1.0))
    k = v * torch.exp(-0.5 * (X[:, None] - X) ** 2 / scale**2)
    k = k + (noise + 1e-6) * torch.eye(len(X))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(X)), k), obs=Y)


@pytest.mark.parametrize("approx", ["exact", "VFE", "DTC"])
def test_a_gaussian_process_is_captured(approx):
    pyro.set_rng_seed(0)
    case = Case((exact() if approx == "exact" else sparse(approx), ()))
    program = case.program()
    eps, streams = case.inputs()
    grads, bound, num_bad = program(eps[0], streams)
    result = case.step.gradient(eps[0], streams)
    assert int(num_bad) == result.num_bad
    assert float(bound) == pytest.approx(result.bound, rel=1e-4)
    for param, grad in zip(program.params, grads, strict=True):
        size = float(param.grad.abs().max())
        torch.testing.assert_close(grad, param.grad, rtol=2e-2, atol=2e-3 * max(1.0, size))


def test_rows_without_a_factor_are_left_out_alone():
    def model():
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        factor = torch.linalg.cholesky((x + 1) * torch.eye(2))
        pyro.deterministic("top", factor[..., 0, 0])
        pyro.factor("f", factor.diagonal(dim1=-2, dim2=-1).log().sum(-1))

    guide = AutoFlow(model, "affine").setup()
    log_joint = LogJoint(model, (), {}, guide.latent)
    z = torch.tensor([[0.5], [-2.0], [0.0], [1.0], [-3.0]])
    log_p, score, ok = Target(log_joint, z)(z)
    assert ok.tolist() == [True, False, True, True, False]
    assert torch.isnan(log_joint(z)).tolist() == [False, True, False, False, True]
    found = log_joint.evaluate(z)
    assert found.deterministic["top"].isnan().tolist() == [False, True, False, False, True]
    expected = (z + 1).log() - 0.5 * z.square() - 0.5 * torch.log(torch.tensor(2 * torch.pi))
    torch.testing.assert_close(found.log_p[[0, 2, 3]], expected[[0, 2, 3], 0])


@pytest.mark.slow
@pytest.mark.parametrize("make", [exact, closed], ids=["gp", "closed"])
def test_a_gaussian_process_has_the_posterior_of_its_closed_form(make):
    # Means of 4000 draws, of which both fits are "good": within 0.1 sds of each other's constants.
    model = closed if make is closed else make()
    fit = NFVI(model, seed=0, progress=False).run()
    assert fit.verdict == "good"
    assert fit.training.engine != "eager"
    other = NFVI(closed, seed=1, progress=False).run()
    for name, value in fit.sample(4000).items():
        reference = other.sample(4000)[name].log()
        apart = float(value.log().mean() - reference.mean())
        assert abs(apart) < 0.15 * float(reference.std())


@pytest.mark.parametrize("factor", [torch.linalg.cholesky, torch.linalg.inv])
def test_a_captured_step_makes_nan_of_matrices_without_a_factor(factor):
    numbers = torch.tensor([[0.5], [1.0]], dtype=torch.float64).requires_grad_()
    recorder = Recorder({"x": numbers})
    with recorder:
        matrices = numbers[:, :, None] * torch.eye(2, dtype=torch.float64)
        out = factor(matrices).sum((-2, -1))
    recorder.output([out])
    graph = GraphModule(torch.nn.Module(), recorder.graph)
    bad = 0.0 if factor is torch.linalg.inv else -1.0
    found = graph(torch.tensor([[2.0], [bad]], dtype=torch.float64), *recorder.consts)[0]
    expected = factor(2 * torch.eye(2, dtype=torch.float64)).sum()
    assert found[1].isnan()
    torch.testing.assert_close(found[0], expected)


@pytest.mark.skipif(
    not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="no C++ compiler"
)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_of_a_matrix_for_each_particle_are_compiled(dtype, turned):
    from engine.native_function import NativeFunction

    a = torch.linspace(-1, 1, 16 * 20 * 20, dtype=dtype).reshape(16, 20, 20).sin()
    recorder = Recorder({"a": a})
    with recorder:
        b = a.exp()  # a value of the code's own, laid out with particles innermost
        out = torch.bmm(b.mT if turned else b, b).cos()
    recorder.output([out])
    graph = GraphModule(torch.nn.Module(), recorder.graph)
    found = NativeFunction(graph, recorder.consts, 16)(a)[0]
    torch.testing.assert_close(found, graph(a, *recorder.consts)[0], rtol=2e-3, atol=2e-4)
