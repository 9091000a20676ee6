"""The central promise: planar*16 and iaf*2 hold both modes of a posterior in the plane.

Protocol and posteriors are those of ``benchmarks/two_modes.py``, whose page shows the pictures.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, for benchmarks/

from benchmarks import two_modes  # noqa: E402

PROMISED = [name for name, target in two_modes.TARGETS.items() if target.promised]


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)


@pytest.mark.parametrize("name", PROMISED)
def test_the_posteriors_have_two_modes(name):
    target = two_modes.TARGETS[name]
    log_evidence, mass = two_modes.truth(target)
    assert 0.2 < mass < 0.8
    points = torch.cartesian_prod(two_modes.GRID, two_modes.GRID)
    log_p = two_modes.log_joint(target, points) - log_evidence
    side = target.side(points)
    top, other = points[side][log_p[side].argmax()], points[~side][log_p[~side].argmax()]
    path = torch.lerp(top, other, torch.linspace(0, 1, 101).unsqueeze(-1))
    log_p = two_modes.log_joint(target, path) - log_evidence
    # On the straight way between the tops the density falls to less than a half of the lower one.
    assert log_p.min() < min(log_p[0], log_p[-1]) - 0.7


def test_evidence_of_the_grid_is_exact():
    # y | sign is N(0, (16 + 0.49) I) whatever the sign, so the evidence is in closed form.
    y = torch.tensor([1.6, 0.8])
    exact = torch.distributions.Normal(0.0, (16 + 0.49) ** 0.5).log_prob(y).sum()
    # The grid ends at 6, more than six sds (0.69) from both modes: nothing is left out.
    log_evidence, mass = two_modes.truth(two_modes.TARGETS["sign_flip"])
    assert log_evidence == pytest.approx(float(exact), abs=1e-5)
    # 0.3 by symmetry, but for the little that reaches over the line between the modes.
    assert mass == pytest.approx(0.3, abs=0.01)


# Seeds are fixed, so the outcome is one of the machine's arithmetic only. Nine fits of iaf*2 were
# tried: at worst KL 0.18 against 0.64 promised (absolute value), 0.09 against 0.17 (lost sign), and
# a mass 0.06 off.
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", PROMISED)
def test_flows_hold_both_modes(name, seed):
    target = two_modes.TARGETS[name]
    exact = two_modes.truth(target)
    found = {guide: two_modes.run(target, guide, seed, exact)[1] for guide in two_modes.GUIDES}
    gaussian = found.pop("AutoDiagonalNormal")["kl"]
    for guide, numbers in found.items():
        assert numbers["mass_error"] <= 0.1, guide
        assert numbers["kl"] <= gaussian / 2, guide
        # A divergence is not negative: the grid and the densities agree.
        assert numbers["kl"] > -5 * numbers["kl_se"], guide


@pytest.mark.slow
def test_a_short_planar_fit_already_beats_the_gaussian():
    # 400 steps: a smoke version of the promise that fits into the fast tests. The Gaussian reaches
    # 1.28 nats; three seeds of the flow were tried: KL 0.032 to 0.036, mass at most 0.06 off.
    target = two_modes.TARGETS["absolute_value"]
    exact = two_modes.truth(target)
    _, found = two_modes.run(target, "planar*16", 0, exact, steps=400)
    assert found["kl"] < 0.64
    assert found["mass_error"] < 0.1
