"""Laws of draws of the exact posterior, over ``fit.mcmc`` and ``fit.to_nuts``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from infer.models import Y, conjugate, posterior

from pyro_nfvi import NFVI, load, to_arviz
from pyro_nfvi.errors import ModelError, NotSetUpError, OptionError


def fitted(model, *args, **options):
    chosen = {"max_steps": 30, "seed": 0, "progress": False, "explore": "off"} | options
    return NFVI(model, "affine", **chosen).run(*args)


@dataclass(frozen=True)
class Sampler:
    """A sampler, and a run of it that is long enough for laws.

    Attributes:
        name: Its method of a fit.
        chains: Number of chains.
        draws: Draws of each.
        warmup: Steps before them.
        source: Its name in ArviZ.
        stats: Statistics of its own there.
        wrong: Options that are refused, each on its own.
    """

    name: str
    chains: int
    draws: int
    warmup: int
    source: str
    stats: frozenset[str]
    wrong: tuple[dict[str, Any], ...]

    def run(self, fit, **options):
        options = {"num_chains": self.chains, "seed": 0, "progress": False} | options
        return getattr(fit, self.name)(**options)


MCMC = Sampler(
    "mcmc",
    64,
    100,
    60,
    "HMC",
    frozenset({"diverging", "acceptance_rate", "n_steps"}),
    ({"num_samples": 0}, {"num_chains": 1}, {"warmup_steps": -1}, {"max_seconds": 0}),
)
NUTS = Sampler("to_nuts", 2, 200, 80, "NUTS", frozenset(), ({"num_samples": 0},))


@pytest.fixture(scope="module")
def fit():
    return fitted(conjugate, Y)


@pytest.fixture(scope="module", params=[MCMC, NUTS], ids=lambda one: one.name)
def sampler(request):
    return request.param


@pytest.fixture(scope="module")
def found(fit, sampler):
    return sampler.run(fit, num_samples=sampler.draws, warmup_steps=sampler.warmup)


def test_draws_are_those_of_the_posterior(sampler, found):
    mean, sd = posterior(Y)
    draws, shape = found.get_samples()["mu"], (sampler.chains, sampler.draws)
    assert draws.shape == (shape[0] * shape[1],)
    assert found.get_samples(group_by_chain=True, deterministic=True)["twice"].shape == shape
    torch.testing.assert_close(found.get_samples(deterministic=True)["twice"], 2 * draws)
    # Five standard errors of mean and sd (a false alarm in 1 of a million runs).
    assert found.ess > 100
    assert abs(draws.mean() - mean) < 5 * sd / found.ess**0.5
    assert abs(draws.std() / sd - 1) < 5 / found.ess_tail**0.5
    assert found.rhat < 1.05
    assert found.khat < 0.7
    assert f"{shape[0]} chains of {shape[1]} draws" in repr(found)
    assert abs(found.summary()["mu"].mean - float(draws.mean())) < 1e-4


def test_log_p_predictions_and_arviz(fit, sampler, found):
    pytest.importorskip("arviz")
    shape = (sampler.chains, sampler.draws)
    idata = to_arviz(found)
    assert idata["posterior"]["mu"].shape == shape
    assert idata["log_likelihood"]["y"].shape == (*shape, len(Y))
    log_p = torch.as_tensor(idata["sample_stats"]["log_p"].values)
    torch.testing.assert_close(log_p, found.log_p, atol=1e-3, rtol=1e-4)
    assert idata["posterior"].attrs["source"] == sampler.source
    assert sampler.stats <= set(idata["sample_stats"].data_vars)
    assert found.predict(seed=0)["y"].shape == (shape[0] * shape[1], len(Y))
    both = to_arviz([fit, {"mu": found.get_samples()["mu"][:400]}], num_samples=400)
    assert both["posterior"]["mu"].shape == (2, 400)


def test_same_seed_same_draws_and_nothing_of_the_process_changes(fit, sampler):
    before = torch.get_rng_state()
    chains = 8 if sampler is MCMC else 1
    one, two, other = (
        sampler.run(fit, num_samples=10, warmup_steps=10, num_chains=chains, seed=seed)
        for seed in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.get_samples()["mu"], two.get_samples()["mu"])
    assert not torch.equal(one.get_samples()["mu"], other.get_samples()["mu"])
    assert all(p.requires_grad for p in fit.guide.parameters())
    assert len(pyro.poutine.runtime._PYRO_STACK) == 0


def test_bad_requests(tmp_path, fit, sampler):
    for wrong in sampler.wrong:
        with pytest.raises(OptionError, match=next(iter(wrong))):
            sampler.run(fit, **wrong)
    fit.save(tmp_path / "fit")
    with pytest.raises(NotSetUpError, match="without its model"):
        sampler.run(load(tmp_path / "fit"))


def test_a_mini_batch_has_no_exact_draws():
    def subsampled():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 5, subsample_size=2) as index:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=Y[index])

    fit = fitted(subsampled, max_steps=5)
    for sampler in (MCMC, NUTS):
        with pytest.raises(ModelError, match="'data' subsamples"):
            sampler.run(fit)
