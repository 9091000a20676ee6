"""Optimisers of a fit: Pyro's ClippedAdam and the decay of its rate."""

import shutil

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nfvi import NFVI

Y = torch.tensor([1.0, 2.0, 3.0, 2.5])


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def fit(engine, **options):
    optim = pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.98, "clip_norm": 0.5})
    return NFVI(
        model, "affine", optim=optim, seed=0, max_steps=200, stop=False, engine=engine,
        precondition=False, progress=False, **options,
    ).run(Y)  # fmt: skip


def test_the_rate_of_clipped_adam_decays_at_every_step():
    # Between the warm-up (50 steps) and the cosine (100 on), its own decay alone.
    rates = []
    fit("svi", callbacks=[lambda info: rates.append(info.lr)])
    assert rates[60] == pytest.approx(0.01 * 0.98**60)
    assert rates[90] / rates[89] == pytest.approx(0.98)


@pytest.mark.skipif(
    not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="no C++ compiler"
)
def test_clipped_adam_runs_natively():
    native, plain = fit("native"), fit("svi")
    assert native.engine == "native"
    torch.testing.assert_close(native.losses, plain.losses, rtol=1e-4, atol=1e-4)
