"""Every stage of a call ends within its slice of time, whatever the model costs."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nfvi import NFVI
from pyro_nfvi._budget import UNLIMITED, Budget
from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.mode_proposals import Proposals
from pyro_nfvi._gaussian_vi.mode_search import search_modes
from pyro_nfvi._gaussian_vi.multistart import fit_gaussian
from pyro_nfvi._gaussian_vi.nested_mass import add_nested
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi._pyro_model.initial_values import prior_trace
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi.infer._checks.improper import find_improper_direction
from pyro_nfvi.infer._checks.label_switching import count_images, count_once, find_relabelling
from pyro_nfvi.infer._checks.missed_mass import mass_outside
from pyro_nfvi.infer._checks.missed_modes import missed_modes
from pyro_nfvi.infer._checks.reaching_draws import reaching_draws
from pyro_nfvi.infer._weighted_draws import score

Y = torch.linspace(-7.5, 7.5, 6)


class Clock:
    """Seconds that pass with each call of the model, and with each row of it."""

    def __init__(self):
        self.now, self.call, self.row = 0.0, 0.0, 0.0

    def __call__(self):
        return self.now

    def tick(self, rows):
        self.now += self.call + rows * self.row


def mixture(clock):
    def model():
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(6)))
        clock.tick(max(1, weights.numel() // 6))
        with pyro.plate("components", 6):
            loc = pyro.sample("loc", dist.Normal(0.0, 6.0))
            scale = pyro.sample("scale", dist.LogNormal(-1.0, 0.3))
        each = dist.Normal(loc[..., None, :], scale[..., None, :]).log_prob(Y[:, None])
        pyro.factor("y", torch.logsumexp(weights[..., None, :].log() + each, -1).sum(-1))

    return model


def log_joint(clock):
    model = mixture(clock)
    return LogJoint(model, (), {}, LatentSpace.from_trace(prior_trace(model, (), {})))


def wells(clock):
    """Sixteen modes of four numbers."""

    def log_density(z):
        clock.tick(len(z))
        return -(0.1 * z.pow(4) - 2.0 * z.square()).sum(-1)

    return log_density


def noise():
    return torch.Generator().manual_seed(0)


def gaussian(clock):
    target = Target(wells(clock), torch.zeros(4))
    return target, fit_gaussian(target, Normals.around(torch.zeros(1, 4) + 3.0, 0.3))


def the_search_for_modes(clock):
    target, found = gaussian(clock)
    points = 6 * torch.randn(64, 4, generator=noise())
    return lambda b: search_modes(target.within(b), found, points, generator=noise()).finished


def the_search_inside_modes(clock):
    target, found = gaussian(clock)
    points = 6 * torch.randn(4, 4, generator=noise())
    modes = search_modes(target, found, points, generator=noise())
    wide = Normals(torch.zeros(1, 4).double(), 3 * torch.eye(4).double()[None])
    where = Proposals.of(wide) + Proposals.of(Normals(wide.loc + 4, wide.factor))
    return lambda b: add_nested(target.within(b), modes, where, generator=noise())[0].finished


def the_look_for_exchangeable_latents(clock):
    joint = log_joint(clock)
    points = torch.randn(8, joint.latent.dim, generator=noise())

    def look(budget):
        group = find_relabelling(joint, points, budget)
        if group is not None:
            count_images(joint, group, points[0].double(), 16, budget)
            count_once(joint, group, points.double(), budget)
        return not budget.over()

    return look


@pytest.fixture(scope="module")
def fitted():
    clock = Clock()
    fit = NFVI(
        mixture(clock), "affine", seed=0, max_steps=20, precondition=False, progress=False
    ).run()
    return clock, fit


def the_look_for_mass_outside(clock, fit):
    density = fit.guide.density()

    def look(budget):
        mass_outside(density, fit.log_joint, fit.draws, 0, None, budget)
        return not budget.over()

    return look


def the_look_at_missed_modes(clock, fit):
    density, loc = fit.guide.density(), fit.draws.z[:12].double()
    modes = Normals.around(loc, 0.1)

    def look(budget):
        missed_modes(density, fit.log_joint, modes, fit.draws, 0, budget)
        return not budget.over()

    return look


def the_look_at_moments(clock, fit):
    density = fit.guide.density()

    def look(budget):
        reaching_draws(density, fit.log_joint, fit.draws, 0, budget)
        return not budget.over()

    return look


def the_look_for_a_posterior(clock, fit):
    def look(budget):
        find_improper_direction(fit.latent, fit.log_joint, fit.draws.z, {}, 0, budget)
        return not budget.over()

    return look


def scoring(clock, fit):
    return lambda b: len(score(fit.log_joint, fit.draws.z, None, b)[0].log_p) == len(fit.draws.z)


#: Seconds of a call of the model, of one row, and of the slice.
COSTS = [(0.01, 0.0, 0.05), (0.01, 0.0, 0.4), (0.0, 1e-3, 0.1), (0.0, 1e-3, 2.0), (0.01, 1e-4, 1.0)]


def hold(clock, stage):
    """Run a stage within slices: it ends soon after, and says whether it came to its end."""
    assert stage(UNLIMITED)
    for call, row, limit in COSTS:
        clock.call, clock.row, begin = call, row, clock.now
        finished = stage(Budget.start(limit, clock))
        took = clock.now - begin
        clock.call = clock.row = 0.0
        # A tenth more, some calls of the model, and pieces of two hundred rows.
        assert took <= 1.1 * limit + 10 * call + 600 * row
        assert finished or took >= 0.4 * limit


@pytest.mark.parametrize(
    "make", [the_search_for_modes, the_search_inside_modes, the_look_for_exchangeable_latents]
)
def test_a_search_ends_in_its_slice(make):
    clock = Clock()
    hold(clock, make(clock))


@pytest.mark.parametrize(
    "make",
    [
        the_look_for_mass_outside,
        the_look_at_missed_modes,
        the_look_at_moments,
        the_look_for_a_posterior,
        scoring,
    ],
)
def test_a_look_at_a_fit_ends_in_its_slice(fitted, make):
    clock, fit = fitted
    hold(clock, make(clock, fit))


@pytest.mark.parametrize("seconds", [0.5, 50.0])
def test_data_in_mini_batches_are_scored_whole_or_not_at_all(seconds):
    clock = Clock()
    y = torch.arange(60.0) / 20

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        clock.tick(1)
        with pyro.plate("rows", len(y), subsample_size=2) as rows:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])

    joint = LogJoint(model, (), {}, LatentSpace.from_trace(prior_trace(model, (), {})))
    clock.call = 0.1
    begin = clock.now
    z = torch.zeros(4, 1)
    found, exact = score(joint, z, None, Budget.start(seconds, clock))
    assert len(found.log_p) == 4
    assert exact == (seconds > 10)
    assert clock.now - begin < 1.1 * seconds + 0.5
