"""Optimisers of a fit: Pyro's ClippedAdam and the decay of its rate."""

import shutil

import pyro
import pyro.distributions as dist
import pytest
import torch
from engine.zoo import on

from pyro_nfvi import NFVI
from pyro_nfvi._optim.iterate_averaging import averaged

Y = torch.tensor([1.0, 2.0, 3.0, 2.5])


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def fit(engine, **options):
    optim = pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.98, "clip_norm": 0.5})
    recipe = NFVI(
        model, "affine", optim=optim, seed=0, max_steps=200, stop=False, precondition=False,
        progress=False, **options,
    )  # fmt: skip
    return on(recipe, engine).run(Y)


@pytest.mark.slow
def test_the_rate_of_clipped_adam_decays_at_every_step():
    # Between the warm-up (50 steps) and the cosine (100 on), its own decay alone.
    rates = []
    fit("eager", callbacks=[lambda info: rates.append(info.lr)])
    assert rates[60] == pytest.approx(0.01 * 0.98**60)
    assert rates[90] / rates[89] == pytest.approx(0.98)


@pytest.mark.skipif(
    not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="no C++ compiler"
)
def test_clipped_adam_runs_natively():
    native, plain = fit("native"), fit("eager")
    assert "(native)" in native.engine_reason
    torch.testing.assert_close(native.losses, plain.losses, rtol=1e-4, atol=1e-4)


def test_the_average_counts_later_states_more():
    params = [torch.tensor([float(k)]) for k in range(1, 101)]
    mean = None
    for param in params:
        mean = averaged(mean, [param])
    assert mean.step == 100
    weights = torch.arange(1.0, 101.0).pow(3)  # up to terms of lower order
    wanted = float((weights * torch.arange(1.0, 101.0)).sum() / weights.sum())
    assert float(mean.values[0]) == pytest.approx(wanted, rel=0.02)


@pytest.mark.slow
def test_the_average_of_mini_batches_goes_on_from_a_checkpoint(tmp_path):
    def batches(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(y), subsample_size=2) as index:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])

    options = {"optim": 0.1, "seed": 0, "max_steps": 240, "stop": False, "engine": "eager",
               "precondition": False, "progress": False}  # fmt: skip
    whole = NFVI(batches, "affine", **options).run(Y)
    where = {"checkpoint": tmp_path / "fit", "checkpoint_every": 50}

    def stop(info):
        return info.step == 200

    NFVI(batches, "affine", callbacks=[stop], **options, **where).run(Y)
    again = NFVI(batches, "affine", resume=True, **options, **where).run(Y)
    assert again.elbo == pytest.approx(whole.elbo, abs=1e-5)
