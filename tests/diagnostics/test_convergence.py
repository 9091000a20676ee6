"""R-hat and effective sizes of many numbers against ArviZ, and nested R-hat against its formula."""

import numpy as np
import pytest
import torch

from pyro_nfvi.diagnostics._convergence import bulk_ess, nested_rhat, rank_rhat, tail_ess
from pyro_nfvi.errors import ShapeError


def autoregressive(chains, draws, rho, *, ties=0.0, shift=0.0, seed=0):
    noise = np.random.default_rng(seed)
    x = noise.standard_normal((chains, draws))
    for i in range(1, draws):
        x[:, i] = rho * x[:, i - 1] + (1 - rho**2) ** 0.5 * x[:, i]
    x[0] += shift
    for i in range(1, draws):  # rejected proposals
        x[:, i] = np.where(noise.random(chains) < ties, x[:, i - 1], x[:, i])
    return torch.as_tensor(x)


CASES = {
    "independent": (4, 500, 0.0),
    "slow": (4, 500, 0.98),
    "antithetic": (4, 500, -0.7),
    "many short": (64, 25, 0.8),
    "odd": (3, 57, 0.5),
    "shortest": (2, 4, 0.3),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ties", [0.0, 0.4])
def test_numbers_are_those_of_arviz(case, ties):
    az = pytest.importorskip("arviz")
    chains, draws, rho = CASES[case]
    shifts = (0.0, 0.5)
    x = torch.stack([autoregressive(chains, draws, rho, ties=ties, shift=s) for s in shifts], -1)
    for index in range(len(shifts)):
        one = x[..., index].numpy()
        found = [float(f(x)[index]) for f in (rank_rhat, bulk_ess, tail_ess)]
        theirs = [az.rhat(one), az.ess(one, method="bulk"), az.ess(one, method="tail")]
        np.testing.assert_allclose(found, [float(value) for value in theirs], rtol=1e-6)


def test_nested_rhat_is_its_formula():
    x = torch.randn(12, 7, 3, generator=torch.Generator().manual_seed(0)).double().numpy()
    x[:3] += 1.0
    groups = x.reshape(4, 3, 7, 3)
    means = groups.mean(2)
    within = groups.var(2, ddof=1).mean(1) + means.var(1, ddof=1)
    expected = np.sqrt(1 + means.mean(1).var(0, ddof=1) / within.mean(0))
    np.testing.assert_allclose(nested_rhat(torch.as_tensor(x), 4).numpy(), expected)
    # One draw of each chain is enough, and one chain for each place.
    assert torch.isfinite(nested_rhat(torch.as_tensor(x[:, :1]), 4)).all()
    assert torch.isfinite(nested_rhat(torch.as_tensor(x), 12)).all()


def test_what_cannot_be_told_is_nan():
    x = torch.randn(4, 20, 3)
    x[..., 1] = 2.0  # never moves
    x[1, 3, 2] = torch.inf
    for function in (rank_rhat, bulk_ess, tail_ess, lambda x: nested_rhat(x, 2)):
        assert function(x).isnan().tolist() == [False, True, True]
    for function in (rank_rhat, bulk_ess, tail_ess):
        assert function(x[:, :3]).isnan().all()
    assert nested_rhat(x, 1).isnan().all()
    with pytest.raises(ShapeError, match="superchains"):
        nested_rhat(x, 3)
    with pytest.raises(ShapeError, match=r"\(chains, draws, D\)"):
        rank_rhat(x[0])
