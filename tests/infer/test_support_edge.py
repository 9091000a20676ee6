"""Edges of the support inside R^n: told where they hold mass, and nowhere else."""

import pytest
import torch

from pyro_nfvi import NFVI, Target
from pyro_nfvi._random import stream
from pyro_nfvi.infer._checks.support_edge import support_edge
from pyro_nfvi.infer._findings import SupportEdge, find
from pyro_nfvi.infer._weighted_draws import WeighedDraws


def normal(z):
    return -0.5 * z.square().sum(-1)


def cut(inside):
    return lambda z: torch.where(inside(z), normal(z), -torch.inf)


EDGES = {
    "half space": cut(lambda z: z[:, 0] > 0),
    "oblique half space": cut(lambda z: z[:, 0] + 2 * z[:, 1] > -1),
    "disc": cut(lambda z: z.square().sum(-1) < 1.5),
    "box": cut(lambda z: (z.abs() < 1).all(-1)),
    "at three sds": cut(lambda z: z[:, 1] < 3),
}
NO_EDGES = {
    "normal": normal,
    "edge at ten sds": cut(lambda z: z[:, 0] < 10),
    "overflow in the tail": lambda z: normal(z) - (20 * z[:, 0]).exp(),
    "heavy": lambda z: -2 * torch.log1p(z.square()).sum(-1),
}


class Density:
    """As much of a log joint as the check calls."""

    in_parts = False

    def __init__(self, log_density):
        self.log_density = log_density

    def __call__(self, z):
        return self.log_density(z)


def looked_at(log_density):
    """The check, on exact draws within the support."""
    z = torch.randn(4000, 2, generator=stream(0, "edge"))
    z = z[torch.isfinite(log_density(z))][:1000]
    log_p = log_density(z)
    return support_edge(Density(log_density), WeighedDraws(z, log_p, log_p), 0)


@pytest.mark.parametrize("name", EDGES)
def test_an_edge_that_holds_mass_is_found(name):
    found = looked_at(EDGES[name])
    assert found is not None
    assert found.share > 0
    assert "falls to zero at once" in SupportEdge(found.share, found.reach, found.drop).sentence()


@pytest.mark.parametrize("name", NO_EDGES)
def test_a_tail_is_no_edge(name):
    assert looked_at(NO_EDGES[name]) is None


@pytest.mark.slow
def test_a_fit_of_a_half_space_is_never_good_and_says_why():
    fit = NFVI(Target(EDGES["half space"], 2), seed=0, progress=False).run()
    assert find(fit.training.findings, SupportEdge) is not None
    assert fit.verdict != "good"
    assert "falls to zero at once" in "; ".join(fit.verdict.reasons)
