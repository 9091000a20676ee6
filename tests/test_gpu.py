"""Fits, guides, VAEs and captured steps on a GPU: ``pytest -m gpu`` where there is one.

Each result is compared with what is known in closed form or with the same step on the CPU.
"""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from engine.zoo import Case
from pyro.infer import SVI, Trace_ELBO

import pyro_nfvi as nfvi
from pyro_nfvi import NFVI, AutoFlow
from pyro_nfvi._engine.graph_runner import GraphRunner
from pyro_nfvi._optim.torch_optimizers import Adam
from pyro_nfvi._random import stream
from pyro_nfvi._train.step import EagerRunner
from pyro_nfvi.vae import load_vae
from pyro_nfvi.vae.train._command import train
from pyro_nfvi.vae.train._options import Options

#: What the tests run on.
DEVICE = "cuda"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]


def on(device, *tensors):
    return tuple(x.to(device) for x in tensors)


def regression(x, y):
    zero = x.new_zeros(())
    w = pyro.sample("w", dist.Normal(zero.expand(2), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(w @ x.T if w.dim() == 1 else w.squeeze(-2) @ x.T, 0.5), obs=y)


def data():
    """Data of a regression, mean and covariance of its posterior."""
    generator = stream(0, "gpu")
    x = torch.randn(40, 2, generator=generator)
    y = x @ torch.tensor([1.0, -0.5]) + 0.5 * torch.randn(40, generator=generator)
    covariance = torch.linalg.inv(torch.eye(2) + x.T @ x / 0.25)
    return x, y, covariance @ x.T @ y / 0.25, covariance


def agrees(draws, mean, covariance):
    """Compare 2,000 draws: their mean is off by five standard errors once in a million.

    Two more are for what the fit itself may be off by, a twentieth of a standard deviation.
    """
    draws = draws.detach().cpu()
    error = (draws.mean(0) - mean) / (covariance.diagonal() / len(draws)).sqrt()
    assert error.abs().max() < 7
    assert torch.allclose(draws.T.cov(), covariance, rtol=0.25, atol=1e-4)


@pytest.mark.parametrize("engine", ["auto", "eager"])
@pytest.mark.parametrize("guide", ["auto", "iaf*1"])
def test_a_fit_has_the_posterior_and_stays_on_the_device(guide, engine):
    x, y, mean, covariance = data()
    made = NFVI(regression, guide, engine=engine, max_steps=400, seed=0, progress=False)
    fit = made.run(*on(DEVICE, x, y))
    draws = fit.sample(2000)["w"]
    assert draws.device.type == DEVICE
    assert all(p.device.type == DEVICE for p in fit.guide.parameters())
    agrees(draws.reshape(-1, 2), mean, covariance)


def test_the_same_seed_gives_the_same_fit():
    x, y, *_ = data()
    ends = [
        NFVI(regression, "affine", max_steps=100, seed=3, progress=False).run(*on(DEVICE, x, y))
        for _ in range(2)
    ]
    assert torch.equal(ends[0].losses, ends[1].losses)


def test_a_fit_is_saved_there_and_loaded_again(tmp_path):
    x, y, *_ = data()
    given = on(DEVICE, x, y)
    fit = NFVI(regression, "affine", max_steps=100, seed=0, progress=False).run(*given)
    fit.save(tmp_path / "fit.nfvi")
    again = nfvi.load(tmp_path / "fit.nfvi", model=regression, args=given, map_location=DEVICE)
    assert again.draws.z.device.type == DEVICE
    assert torch.equal(again.draws.z, fit.draws.z)
    there = nfvi.load(tmp_path / "fit.nfvi", model=regression, args=(x, y))
    assert torch.equal(there.draws.z, fit.draws.z.cpu())


@pytest.mark.parametrize("formula", ["affine", "iaf*1", "nsf*1", "planar*4", "realnvp*2", "tail"])
def test_a_guide_trains_under_svi(formula):
    x, y, *_ = data()
    given = on(DEVICE, x, y)
    guide = AutoFlow(regression, formula)
    loss = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(regression, guide, pyro.optim.Adam({"lr": 0.02}), loss)
    losses = [svi.step(*given) for _ in range(60)]
    assert all(np.isfinite(losses))
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    assert guide()["w"].device.type == DEVICE


@pytest.mark.parametrize("formula", ["iaf*1", "nsf*1", "planar*4", "realnvp*2", "tail"])
def test_a_flow_gives_the_numbers_of_the_cpu_and_goes_back(formula):
    flow = nfvi.flows.make_flow(formula, 4).double()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1 * torch.randn(p.shape, dtype=p.dtype, generator=stream(0, "flow")))
    x = torch.randn(8, 4, dtype=torch.float64, generator=stream(1, "flow"))
    y, ladj = (part.detach() for part in flow(x))
    found = flow.to(DEVICE)(x.to(DEVICE))
    assert torch.allclose(found[0].cpu(), y, atol=1e-8)
    assert torch.allclose(found[1].cpu(), ladj, atol=1e-8)
    assert torch.allclose(flow.inverse(found[0])[0].cpu(), x, atol=1e-6)


def test_a_vae_trains_and_is_loaded_without_a_gpu(tmp_path):
    rng = np.random.RandomState(0)
    z = rng.randn(90, 2)
    x = 255 / (1 + np.exp(-3 * z @ rng.randn(2, 16)))
    path = tmp_path / "grey.npz"
    np.savez_compressed(path, x=x.reshape(90, 4, 4).astype(np.uint8), y=(z[:, 0] > 0).astype(int))
    given = Options(
        data=str(path), out=str(tmp_path / "run"), flow="planar*2", latent_dim=2, hidden="8",
        epochs=2, batch_size=20, warmup_epochs=1.0, quiet=True, nll_samples=20, pictures=False,
        threads=1, device=DEVICE, lr=5e-3,
    )  # fmt: skip
    run = train(given, say=lambda *_: None)
    model = load_vae(run.folder.path / "last.pt")
    assert all(p.device.type == "cpu" for p in model.parameters())
    assert all(torch.isfinite(p).all() for p in model.parameters())


# ------------------------------------------------------------------------- the captured step


def case():
    """A step whose model and guide are on the device."""
    return Case((regression, on(DEVICE, *data()[:2])), "iaf*1", particles=16)


def test_a_captured_step_is_the_eager_step():
    one = case()
    program = one.program()
    eps, streams = one.inputs(3)
    rates = torch.full((3, 1), 0.01, dtype=torch.float64)
    start = [p.detach().clone() for p in one.params]
    found = GraphRunner(program, one.spec(program)).run(eps, streams, rates)
    ends = [p.detach().clone() for p in one.params]
    with torch.no_grad():
        for param, before in zip(one.params, start):
            param.copy_(before)
    one.optimizer.state.clear()
    eager = EagerRunner(one.step).run(eps, streams, rates)
    assert torch.allclose(found.bounds, eager.bounds, rtol=1e-4, atol=1e-4)
    for end, param in zip(ends, one.params):
        assert torch.allclose(end, param.detach(), rtol=1e-3, atol=1e-4)


def test_a_captured_step_is_recorded_and_replayed_as_a_cuda_graph():
    one = case()
    program = one.program()
    eps, streams = one.inputs(2)
    first = {name: rows[0] for name, rows in streams.items()}
    noise = eps[0].clone()  # the graph reads this memory
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries make their handles before, not within
        for _ in range(3):
            program(noise, first)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grads, bound, bad = program(noise, first)
    for row in eps:
        noise.copy_(row)
        graph.replay()
        torch.cuda.synchronize()
        expected, value, count = program(row, first)
        assert torch.allclose(bound, value, rtol=1e-5)
        assert int(bad) == int(count)
        for one_grad, other in zip(grads, expected):
            assert torch.allclose(one_grad, other, rtol=1e-4, atol=1e-5)


def test_our_adam_runs_on_the_device():
    x = torch.randn(5, generator=stream(0, "adam")).to(DEVICE).requires_grad_()
    optimizer = Adam([x], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        x.square().sum().backward()
        optimizer.step()
    assert float(x.detach().abs().max()) < 0.05
