"""The tempered ELBO: its schedule, its gradient at any temperature, the plain ELBO as bound."""

import pytest
import torch
from objectives.test_importance_weighted import DIM, draw, gaussian, gradient, normal

from pyro_nfvi import FlowDensity
from pyro_nfvi.errors import OptionError
from pyro_nfvi.objectives import Linear, PathELBO, Tempered, TemperedELBO
from pyro_nfvi.objectives._make_objective import make_objective

NAME = "objective.weight"


def at(beta):
    return TemperedELBO().at({NAME: torch.tensor(beta, dtype=torch.float64)})


def test_the_schedule_of_the_paper():
    objective = TemperedELBO()
    assert objective.settled == 9900
    found = objective.stream(0, 10_001)[NAME]
    wanted = (0.01 + torch.arange(10_001, dtype=torch.float64) / 10_000).clamp(max=1.0)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(objective.stream(500, 3)[NAME], wanted[500:503])
    assert make_objective("tempered").settled == 990


def test_cold_it_is_the_elbo():
    flow, eps = gaussian(), draw(16, DIM)
    for cold in (at(1.0), TemperedELBO()):
        assert torch.equal(gradient(cold, flow, eps), gradient(PathELBO(), flow, eps))


@pytest.mark.parametrize("beta", [0.01, 0.3])
def test_gradient_is_that_of_the_elbo_of_the_tempered_target(beta):
    flow, eps = gaussian(), draw(16, DIM)
    wanted = gradient(PathELBO(), flow, eps, lambda z: beta * normal(z))
    torch.testing.assert_close(gradient(at(beta), flow, eps), wanted)


def test_the_bound_is_the_plain_elbo_whatever_the_temperature():
    flow, eps = gaussian(), draw(16, DIM)
    plain = PathELBO()(FlowDensity(flow), normal, eps)
    for beta in (0.01, 0.5):
        estimate = at(beta)(FlowDensity(flow), normal, eps)
        assert torch.equal(estimate.bound, plain.bound)
        assert torch.equal(estimate.log_w, plain.log_w)


def test_gradient_vanishes_where_q_is_the_tempered_target():
    # p^beta of a standard normal is a normal of sd 1 / sqrt(beta).
    flow = gaussian(scale=2.0, loc=0.0)
    assert gradient(at(0.25), flow, draw(16, DIM)).abs().max() < 1e-12


def test_a_beta_above_one_or_another_schedule():
    objective = TemperedELBO(Linear(steps=10, start=2.0, end=0.5))
    assert objective.stream(0, 2)[NAME].tolist() == pytest.approx([2.0, 1.85])
    assert TemperedELBO(Tempered(steps=100)).settled == 99
    with pytest.raises(OptionError, match="needs a schedule"):
        TemperedELBO(0.5)
