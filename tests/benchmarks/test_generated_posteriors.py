"""Posteriors with exact moments: they are those of the models, and their split is fixed."""

from __future__ import annotations

import pyro
import pytest
import torch

from benchmarks.generated_posteriors import FAMILIES, NAMES, PARTS, load, part
from pyro_nfvi import NFVI


def test_the_split_is_by_name_alone():
    assert len(set(NAMES)) == len(NAMES) >= 300
    halves = [part(name) for name in NAMES]
    assert [halves.count(half) for half in PARTS] == [184, 176]
    assert [part(name) for name in ("regression-00", "rates-00", "normals-00", "hierarchy-00")] == [
        part(name) for name in NAMES[:4]
    ]


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "hierarchy"])
def test_moments_are_those_of_exact_chains(family):
    known = load(f"{family}-01")
    with_double = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        fit = NFVI(known.model, max_steps=500, seed=0, progress=False).run()
        run = fit.mcmc(num_samples=150, warmup_steps=150, seed=0, progress=False)
    finally:
        torch.set_default_dtype(with_double)
    for name, mean in known.mean.items():
        draws = run.samples[name]  # (chains, draws, *shape): means of chains tell the error
        centre, error = draws.mean((0, 1)), draws.mean(1).std(0) / len(draws) ** 0.5
        assert bool(((centre - mean).abs() < 5 * error + 1e-3 * known.sd[name]).all()), name
        assert bool((draws.flatten(0, 1).std(0) / known.sd[name] - 1).abs().max() < 0.1), name


def test_moments_of_a_hierarchy_are_those_of_weighted_draws_of_its_prior():
    # Chains are slow in its funnel. Mean and spread come from the prior, groups are given these.
    known = load("hierarchy-01")
    trace = pyro.poutine.trace(known.model).get_trace()
    y, error = trace.nodes["y"]["value"], trace.nodes["y"]["fn"].scale
    count, noise = 400_000, torch.Generator().manual_seed(0)
    mu = 3 * torch.randn(count, 1, generator=noise, dtype=torch.float64)
    tau = 2 * torch.randn(count, 1, generator=noise, dtype=torch.float64).abs()
    total = tau**2 + error**2
    log_w = (-0.5 * total.log() - 0.5 * (y - mu) ** 2 / total).sum(-1)
    weight = log_w.softmax(0).unsqueeze(-1)
    shrink = tau**2 / total
    theta = torch.randn(count, len(y), generator=noise, dtype=torch.float64)
    theta = shrink * y + (1 - shrink) * mu + (shrink * error**2).sqrt() * theta
    for name, value in {"mu": mu, "tau": tau, "theta": theta}.items():
        mean = (weight * value).sum(0)
        sd = (weight * (value - mean) ** 2).sum(0).sqrt()
        # More than 10,000 effective draws: 5 standard errors are 0.05 sds, and 3.5 % of an sd.
        assert 1 / float(weight.square().sum()) > 10_000
        assert bool(((mean - known.mean[name]).abs() < 0.05 * known.sd[name]).all()), name
        assert bool(((sd / known.sd[name] - 1).abs() < 0.035).all()), name
