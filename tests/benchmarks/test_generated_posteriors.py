"""Posteriors with exact moments: they are those of the models, and their split is fixed."""

from __future__ import annotations

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
@pytest.mark.parametrize("family", FAMILIES)
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
