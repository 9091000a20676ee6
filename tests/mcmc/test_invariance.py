"""The law of a sampler: exact draws, some transitions, the same law; and what breaks it.

KS tests of every coordinate, of the log density and of a product, each at 1e-6: 60 of them, so a
false alarm in 1 of 16,000 runs if the seed were not fixed.
"""

import math

import pytest
import torch
from scipy.stats import ks_2samp
from torch.distributions import Dirichlet, Independent, Normal, StudentT
from torch.distributions.transforms import StickBreakingTransform

from pyro_nfvi._mcmc.adaptation import Tuning
from pyro_nfvi._mcmc.autograd_density import AutogradDensity
from pyro_nfvi._mcmc.hmc import Proposal, State, accept, trajectory
from pyro_nfvi._mcmc.neutra import PulledBack
from pyro_nfvi.flows import Flow, make_flow
from pyro_nfvi.flows._affine import Affine

ROWS, ALARM = 12_000, 1e-6


class Target:
    """A density with exact draws."""

    def __init__(self, log_prob, sample):
        self.log_prob, self.sample = log_prob, sample


def gaussian():
    law = torch.distributions.MultivariateNormal(
        torch.zeros(2).double(), torch.tensor([[1.0, 0.8], [0.8, 1.0]]).double()
    )
    return Target(law.log_prob, lambda n: law.sample((n,)))


def banana():
    one = Normal(torch.tensor(0.0).double(), 1.0)

    def log_prob(z):
        return one.log_prob(z[:, 0]) + one.log_prob(2 * (z[:, 1] - z[:, 0].square()))

    def sample(n):
        x, e = torch.randn(2, n).double()
        return torch.stack([x, x.square() + e / 2], -1)

    return Target(log_prob, sample)


def student():
    law = Independent(StudentT(torch.full((2,), 4.0).double()), 1)
    return Target(law.log_prob, lambda n: law.sample((n,)))


def simplex():
    law, onto = Dirichlet(torch.tensor([0.7, 2.0, 4.0]).double()), StickBreakingTransform()

    def log_prob(z):
        y = onto(z)
        return law.log_prob(y) + onto.log_abs_det_jacobian(z, y)

    return Target(log_prob, lambda n: onto.inv(law.sample((n,))))


def half_normal():
    """Nothing below 0: the log density is -inf there."""

    def log_prob(z):
        inside = (z > 0).all(-1)
        return torch.where(inside, -0.5 * z.square().sum(-1), -math.inf)

    return Target(log_prob, lambda n: torch.randn(n, 2).double().abs())


def with_hole():
    """A model that gives NaN where the first coordinate is above 1."""

    def log_prob(z):
        log_p = -0.5 * z.square().sum(-1)
        return torch.where(z[:, 0] > 1, math.nan, log_p)

    def sample(n):
        z = torch.randn(4 * n, 2).double()
        return z[z[:, 0] <= 1][:n]

    return Target(log_prob, sample)


TARGETS = [gaussian, banana, student, simplex, half_normal, with_hole]
TUNING = Tuning(0.9, 1.2, torch.tensor([1.0, 0.7]).double())


def moved(density, start, step=accept, transitions=5, tuning=TUNING):
    noise = torch.Generator().manual_seed(1)
    state = State.at(density, start)
    for index in range(transitions):
        momentum = torch.randn(start.shape, dtype=start.dtype, generator=noise)
        proposal = trajectory(density, state, momentum, tuning.step, tuning.steps(index))
        state, _ = step(state, proposal, noise)
    return state.position


def p_value(target, found, exact):
    """Smallest p-value of the comparison of two sets of draws."""

    def numbers(z):
        return [z[:, 0], z[:, 1], target.log_prob(z), z[:, 0] * z[:, 1]]

    pairs = zip(numbers(found), numbers(exact))
    return min(ks_2samp(a.numpy(), b.numpy()).pvalue for a, b in pairs)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("make", TARGETS)
def test_transitions_keep_the_law(make):
    target = make()
    start, exact = target.sample(ROWS), target.sample(ROWS)
    found = moved(AutogradDensity(target.log_prob), start)
    assert p_value(target, found, exact) > ALARM
    assert (found != start).any(-1).double().mean() > 0.4


@pytest.mark.parametrize("formula", ["iaf*2", "nsf*2"])
def test_transitions_through_a_flow_keep_the_law(formula):
    target = banana()
    flow = make_flow(formula, dim=2).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    flow.requires_grad_(False)
    start = flow.inverse(target.sample(ROWS))[0]
    eps = moved(PulledBack(AutogradDensity(target.log_prob), flow), start)
    assert p_value(target, flow(eps)[0], target.sample(ROWS)) > ALARM


def test_a_wrong_gradient_costs_moves_and_not_the_law():
    target = banana()

    class Bent(AutogradDensity):
        def value_and_grad(self, z):
            log_p, gradient = super().value_and_grad(z)
            return log_p, 0.5 * gradient + torch.tensor([0.3, -0.2]).double()

    found = moved(Bent(target.log_prob), target.sample(ROWS))
    assert p_value(target, found, target.sample(ROWS)) > ALARM


def always(begin, proposal, noise):
    return proposal.state, proposal.acceptance > 0


def without_momentum(begin, proposal, noise):
    error = proposal.state.log_p - begin.log_p
    return accept(begin, Proposal(proposal.state, proposal.momentum, error), noise)


class Bend(Flow):
    """The map x + x^3 / 3 of each coordinate."""

    def forward(self, x, context=None):
        return x + x**3 / 3, (1 + x.square()).log().sum(-1)

    def inverse(self, y, context=None):
        u = 2 * (torch.asinh(1.5 * y) / 3).sinh()
        return u, -(1 + u.square()).log().sum(-1)


class Unadjusted(PulledBack):
    """The pulled back density without the log-determinant."""

    def value_and_grad(self, eps):
        z, ladj = self._flow(eps)
        log_p, gradient = super().value_and_grad(eps)
        return log_p - ladj, gradient


@pytest.mark.parametrize("step", [always, without_momentum])
def test_a_wrong_acceptance_is_seen(step):
    target = banana()
    found = moved(AutogradDensity(target.log_prob), target.sample(ROWS), step)
    assert p_value(target, found, target.sample(ROWS)) < ALARM


def test_a_wrong_log_determinant_is_seen():
    target, flow = gaussian(), Bend(2).double()
    start = flow.inverse(target.sample(ROWS))[0]
    wrong = Unadjusted(AutogradDensity(target.log_prob), flow)
    assert p_value(target, flow(moved(wrong, start))[0], target.sample(ROWS)) < ALARM
    right = PulledBack(AutogradDensity(target.log_prob), flow)
    assert p_value(target, flow(moved(right, start))[0], target.sample(ROWS)) > ALARM


def test_a_step_size_that_depends_on_the_place_is_seen():
    target = student()
    density = AutogradDensity(target.log_prob)
    noise, start = torch.Generator().manual_seed(1), target.sample(ROWS)
    state = State.at(density, start)
    for _ in range(5):
        momentum = torch.randn(start.shape, dtype=start.dtype, generator=noise)
        size = 0.3 + state.position.norm(dim=-1, keepdim=True)
        state, _ = accept(state, trajectory(density, state, momentum, size, 2), noise)
    assert p_value(target, state.position, target.sample(ROWS)) < ALARM


def test_geweke_joint_distribution():
    r"""mu ~ N(0, 1), log s ~ N(0, 0.5^2), y_i ~ N(mu, s): data and chains in turn.

    The parameters stay draws of the prior, if the transitions keep each posterior. Geweke 2004.
    """
    noise = torch.Generator().manual_seed(0)
    prior = Normal(torch.zeros(2).double(), torch.tensor([1.0, 0.5]).double(), validate_args=False)

    def draws(n):
        return torch.randn(n, 2, generator=noise).double() * prior.scale

    def log_joint(y):
        def log_prob(z):
            likelihood = Normal(z[:, :1], z[:, 1:].exp(), validate_args=False).log_prob(y).sum(-1)
            return prior.log_prob(z).sum(-1) + likelihood

        return log_prob

    def sweep(z, wrong):
        y = z[:, :1] + z[:, 1:].exp() * torch.randn(len(z), 4, generator=noise).double()
        density = AutogradDensity(log_joint(y))
        state = State.at(density, z)
        for index in range(2):
            momentum = torch.randn(z.shape, generator=noise).double()
            proposal = trajectory(density, state, momentum, TUNING.step, TUNING.steps(index))
            state, _ = (always if wrong else accept)(state, proposal, noise)
        return state.position

    whole = Target(lambda z: prior.log_prob(z).sum(-1), draws)
    for wrong in (False, True):
        z = draws(ROWS)
        for _ in range(6):
            z = sweep(z, wrong)
        assert bool(p_value(whole, z, draws(ROWS)) < ALARM) == wrong


def test_a_trajectory_runs_back_and_keeps_volume():
    target, step = banana(), 0.2 * TUNING.scale
    density = AutogradDensity(target.log_prob)
    start = State.at(density, target.sample(5))
    momentum = torch.randn(5, 2).double()
    there = trajectory(density, start, momentum, step, 3)
    back = trajectory(density, there.state, -there.momentum, step, 3)
    torch.testing.assert_close(back.state.position, start.position)
    torch.testing.assert_close(back.energy_error, -there.energy_error)

    def end(both):
        begin = State.at(density, both[None, :2])
        found = trajectory(density, begin, both[None, 2:], step, 3)
        return torch.cat([found.state.position[0], found.momentum[0]])

    both, size = torch.cat([start.position[0], momentum[0]]), 1e-5
    columns = [(end(both + e) - end(both - e)) / (2 * size) for e in size * torch.eye(4).double()]
    determinant = torch.linalg.det(torch.stack(columns, -1))
    torch.testing.assert_close(determinant, torch.tensor(1.0).double(), atol=1e-5, rtol=0)


def test_an_affine_map_changes_nothing_but_the_coordinates():
    target = gaussian()
    flow = Affine(torch.tensor([3.0, -1.0]).double(), torch.tensor([2.0, 0.5]).double())
    start = target.sample(10)
    plain = moved(AutogradDensity(target.log_prob), start, tuning=TUNING)
    pulled = PulledBack(AutogradDensity(target.log_prob), flow)
    inner = Tuning(0.9, 1.2, TUNING.scale / torch.tensor([2.0, 0.5]).double())
    eps = moved(pulled, flow.inverse(start)[0], tuning=inner)
    torch.testing.assert_close(flow(eps)[0], plain)
