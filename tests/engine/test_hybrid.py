"""The hybrid engine: what has no rule is computed by PyTorch in the middle of compiled code."""

import threading

import pyro
import pyro.distributions as dist
import pytest
import torch
from engine.native_function import NativeFunction
from engine.test_laws import needs_compiler
from engine.zoo import on
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_nfvi import NFVI
from pyro_nfvi._engine.native import eager_calls as eager
from pyro_nfvi._engine.program import NoRule
from pyro_nfvi.errors import OptionError

pytestmark = needs_compiler

T = torch.linspace(0, 1, 32)


def curve(y):
    """A curve by its Fourier coefficients: complex numbers have no name in the code."""
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    c = pyro.sample("c", dist.Normal(torch.zeros(8), 1.0).to_event(1))
    seen = 8 * torch.fft.irfft(torch.complex(c[..., :4], c[..., 4:]), n=32)
    scale = pyro.sample("scale", dist.LogNormal(-1.0, 1.0))
    with pyro.plate("n", 32):
        pyro.sample("y", dist.Normal(seen + level, scale), obs=y)


def flow_of_heat(y):
    """A system of linear differential equations."""
    w = pyro.sample("w", dist.Normal(torch.zeros(6), 1.0).to_event(1))
    rates = torch.stack([w[..., :3], w[..., 3:], w[..., 1:4]], -2)
    with pyro.plate("n", 3):
        pyro.sample("y", dist.Normal(torch.linalg.matrix_exp(0.3 * rates).sum(-1), 0.3), obs=y[:3])


MODELS = {"curve": curve, "flow_of_heat": flow_of_heat}


def data():
    return torch.sin(6 * T) + 0.1 * torch.randn(32, generator=torch.Generator().manual_seed(1))


def fit(model, engine, **options):
    chosen = {
        "guide": "iaf*2", "seed": 0, "progress": False, "num_particles": 8, "stop": False,
        "max_steps": 60, "precondition": False, "explore": "off",
    } | options  # fmt: skip
    return on(NFVI(model, **chosen), engine).run(data())


def complex_chain(x):
    z = torch.fft.rfft(x.exp())
    return (torch.fft.irfft(z * z.abs().clamp(min=0.5), n=x.shape[-1]) + x, z.real * 2, z.imag)


def view_that_outlives_its_memory(x):
    z = torch.view_as_complex(x[:4, :6].exp().reshape(4, 3, 2))
    y = torch.linalg.matrix_exp(x[:4, :4] / 4)  # may take the place of the exponentials
    for _ in range(3):
        y = torch.linalg.matrix_exp((y @ y).tanh() / 4)
    return (y, torch.fft.fft(z).abs())


def several_results(x):
    values, vectors = torch.linalg.eigh(x @ x.mT + torch.eye(x.shape[-2], dtype=x.dtype))
    return (values.log().sum(-1), (vectors.abs() * values.unsqueeze(-2)).sum(-1))


def turned(x):
    return (torch.linalg.matrix_exp(x[..., :4, :4].mT / 3).mT.exp(), torch.matrix_exp(x[:4, :4]))


def integers(x):
    place, near = torch.bucketize(x, x[0].sort().values), torch.cdist(x, x[:2])
    return (place + 1, near * 2, x[:, :0].flip(0))


def whole(x):
    return (torch.fft.ifft(torch.fft.fft(x)).real,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "f", [complex_chain, view_that_outlives_its_memory, several_results, turned, integers, whole]
)
def test_an_operation_without_a_rule_is_computed_by_pytorch(f, dtype):
    x = torch.randn(5, 7, dtype=dtype, generator=torch.Generator().manual_seed(2))
    mine = NativeFunction(make_fx(f, tracing_mode="fake")(x), eager=True)
    for scale in (1.0, 0.5):  # the second call finds other numbers in the same memory
        found = mine(scale * x)
        for one, other in zip(found, f(scale * x), strict=True):
            rtol = 1e-4 if dtype is torch.float32 else 1e-10
            torch.testing.assert_close(one, other, rtol=rtol, atol=rtol)


def test_known_arguments_are_handed_over_as_they_are():
    x, z = torch.randn(6), torch.complex(torch.randn(4), torch.randn(4))

    def filtered(x, z):
        return (torch.fft.irfft(torch.fft.rfft(x) * z, n=6),)

    graph = make_fx(filtered, tracing_mode="fake")(x, z)
    found = NativeFunction(graph, (z,), eager=True)(x)
    torch.testing.assert_close(found, list(filtered(x, z)))


def test_without_leave_it_is_refused_by_name():
    graph = make_fx(lambda x: (torch.linalg.matrix_exp(x),), tracing_mode="fake")(torch.eye(3))
    with pytest.raises(NoRule, match=r"no rule for the operation aten.linalg_matrix_exp"):
        NativeFunction(graph)


@pytest.mark.parametrize("name", MODELS)
def test_a_hybrid_fit_is_the_eager_fit(name):
    expected, found = (fit(MODELS[name], engine) for engine in ("eager", "hybrid"))
    assert "(hybrid)" in found.engine_reason
    # float32 over 60 steps, each from its own states; the largest seen is 2e-5.
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-3, atol=1e-3)


def test_auto_takes_it_and_says_what_stays():
    found = fit(flow_of_heat, "auto", max_steps=600)
    assert "(hybrid)" in found.engine_reason
    assert (
        "not compiled as a whole: no rule for the operation aten.linalg_matrix_exp"
        in found.engine_reason
    )
    assert "operations stay with PyTorch (aten.linalg_matrix_exp.default)" in found.engine_reason
    with pytest.raises(OptionError, match="engine='native' cannot run this fit: no rule for"):
        fit(flow_of_heat, "native")


def test_a_model_that_is_covered_needs_no_hybrid():
    def model(y):
        pyro.sample("y", dist.Normal(pyro.sample("mu", dist.Normal(0.0, 1.0)), 1.0), obs=y[0])

    found = fit(model, "hybrid")
    assert "(hybrid)" in found.engine_reason
    assert "no operation had to stay with PyTorch" in found.engine_reason


def failing(monkeypatch, error, after):
    """Let the operations that stay with PyTorch raise, from some call on."""
    compute, calls = eager.EagerCalls._compute, []

    def spoiled(self, which, places):
        calls.append(which)
        if len(calls) == after:
            raise error
        return compute(self, which, places)

    monkeypatch.setattr(eager.EagerCalls, "_compute", spoiled)
    return calls


def test_an_error_of_an_operation_ends_the_fit(monkeypatch):
    failing(monkeypatch, RuntimeError("out of paper"), 100)
    with pytest.raises(RuntimeError, match="out of paper"):
        fit(flow_of_heat, "hybrid")


def test_a_factor_that_does_not_exist_is_a_step_not_taken(monkeypatch):
    failing(monkeypatch, torch.linalg.LinAlgError("not positive definite"), 100)
    found = fit(flow_of_heat, "hybrid")
    assert len(found.losses) == 60
    assert "1 step was skipped" in found.report


def test_ctrl_c_keeps_the_steps_that_were_taken(monkeypatch):
    calls = failing(monkeypatch, KeyboardInterrupt(), 100)
    found = fit(flow_of_heat, "hybrid", max_steps=1000)
    assert found.why_stopped == "interrupted"
    assert 0 < len(found.losses) <= 200
    assert torch.isfinite(found.losses).all()
    assert len(calls) > 100


@pytest.mark.slow
def test_two_fits_in_two_threads_are_right():
    expected = {name: fit(model, "hybrid").losses for name, model in MODELS.items()}
    found = {}

    def run(name):
        found[name] = fit(MODELS[name], "hybrid").losses

    threads = [threading.Thread(target=run, args=(name,)) for name in MODELS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, losses in expected.items():
        assert torch.equal(found[name], losses)
