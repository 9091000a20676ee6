"""Latents that may change places: found from the density, counted once, stated in the verdict."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nfvi import NFVI
from pyro_nfvi._gaussian_vi.mode_assignment import assign
from pyro_nfvi._pyro_model.initial_values import prior_trace
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi.infer._checks.label_switching import UpToLabels, count_images, find_relabelling
from pyro_nfvi.infer._findings import Level, NarrowModes, Relabelled, find, from_json, to_json

X = torch.linspace(-2, 2, 12)
Y = torch.sin(2 * X)


def network():
    """Five hidden units, whose order and signs mean nothing."""
    w1 = pyro.sample("w1", dist.Normal(torch.zeros(5), 2.0).to_event(1))
    b1 = pyro.sample("b1", dist.Normal(torch.zeros(5), 1.0).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(torch.zeros(5), 1.0).to_event(1))
    hidden = torch.tanh(X[:, None] * w1[..., None, :] + b1[..., None, :])
    with pyro.plate("rows", len(X)):
        pyro.sample("y", dist.Normal((hidden * w2[..., None, :]).sum(-1), 0.3), obs=Y)


def mixture(size=4, spread=0.6):
    """Components with weights on a simplex, whose order means nothing."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(size)))
    with pyro.plate("components", size):
        loc = pyro.sample("loc", dist.Normal(0.0, 6.0))
    y = torch.linspace(-7.5, 7.5, size).repeat_interleave(10) + 0.5 * torch.sin(
        torch.arange(size * 10.0)
    )
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(loc[..., z], spread), obs=y)


@pytest.mark.parametrize(("size", "spread"), [(2, 0.1), (2, 0.6), (3, 0.1)])
def test_components_of_equal_size_do_not_exchange_weights_alone(size, spread):
    """Whatever the points, which lie among the data."""

    def model():
        mixture(size, spread)

    latent = LatentSpace.from_trace(prior_trace(model, (), {}))
    log_joint = LogJoint(model, (), {}, latent)
    for seed in range(3):
        noise = torch.Generator().manual_seed(seed)
        group = find_relabelling(log_joint, torch.randn(8, latent.dim, generator=noise))
        assert [family.axes for family in group.families] == [(("weights", 0), ("loc", 0))]


def chain():
    """States of a Markov chain: rows and columns of the matrix change places together."""
    with pyro.plate("states", 3):
        rows = pyro.sample("rows", dist.Dirichlet(torch.ones(3)))
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    apart = (loc[..., None] - loc[..., None, :]).square()
    pyro.factor("f", 0.01 * (rows * apart).sum((-1, -2)))


def schools():
    with pyro.plate("schools", 6):
        theta = pyro.sample("theta", dist.Normal(0.0, 5.0))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=torch.arange(6.0))


def sticks():
    """Weights by broken sticks have an order: components do not change places."""
    with pyro.plate("sticks", 3):
        beta = pyro.sample("beta", dist.Beta(1.0, 2.0))
    with pyro.plate("components", 4):
        loc = pyro.sample("loc", dist.Normal(0.0, 4.0))
    one, left = torch.ones_like(beta[..., :1]), (1 - beta).cumprod(-1)
    weights = torch.cat([beta, one], -1) * torch.cat([one, left], -1)
    pyro.factor("f", -(weights * loc.square()).sum(-1))


def ordered():
    base = dist.Normal(torch.zeros(3), 3.0).to_event(1)
    pyro.sample("loc", dist.TransformedDistribution(base, dist.transforms.OrderedTransform()))
    pyro.sample("other", dist.Normal(0.0, 1.0))
    pyro.factor("no_data", torch.zeros(()))


def squares():
    """Signs mean nothing, and neither does the order of two independent pairs."""
    a = pyro.sample("a", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    pyro.factor("f", -(a.square() - 4).square().sum(-1) - (b - 1).pow(4).sum(-1))


#: Model, families as (length, sites, sites that change their sign).
CATALOGUE = [
    (network, {(5, ("w1", "b1", "w2"), ("w1", "b1", "w2"))}),
    (mixture, {(4, ("weights", "loc"), ())}),
    (chain, {(3, ("rows", "loc"), ())}),
    (schools, set()),
    (sticks, set()),
    (ordered, set()),
    (squares, {(2, ("a",), ("a",)), (2, ("b",), ())}),
]


def joint(model):
    model = pyro.infer.config_enumerate(model)
    space = LatentSpace.from_trace(prior_trace(model, (), {}))
    return LogJoint(model, (), {}, space)


def group_of(log_joint):
    generator = torch.Generator().manual_seed(0)
    return find_relabelling(log_joint, torch.randn(6, log_joint.latent.dim, generator=generator))


@pytest.mark.parametrize(
    ("model", "families"), CATALOGUE, ids=lambda one: getattr(one, "__name__", "")
)
def test_what_may_change_places_is_found_and_nothing_else(model, families):
    group = group_of(joint(model))
    found = set() if group is None else {(f.length, f.names, f.flipped) for f in group.families}
    assert found == families


@pytest.mark.parametrize("model", [network, mixture, chain, squares])
def test_every_image_has_the_same_density_and_comes_back(model):
    torch.manual_seed(1)
    log_joint = joint(model)
    group = group_of(log_joint)
    z = torch.randn(4, log_joint.latent.dim).double()
    moved = z
    for family in group.families:
        order = torch.stack([torch.randperm(family.length) for _ in z])
        sign = torch.rand(len(z), family.length) < 0.5 if family.flipped else None
        moved = group._moved(moved, family, order, sign)

    def height(points):
        points = points.float()
        return log_joint(points, {}) - log_joint.latent.constrain(points)[1]

    torch.testing.assert_close(height(moved), height(z), rtol=1e-4, atol=1e-3)
    back = torch.cat([group.align(one, image[None]) for one, image in zip(z, moved)])
    torch.testing.assert_close(back, z)


def test_a_density_up_to_labels_is_the_same_for_all_images():
    torch.manual_seed(2)
    log_joint = joint(mixture)
    group, latent = group_of(log_joint), log_joint.latent
    anchor = torch.randn(latent.dim).double()

    class Normal:
        def log_prob(self, z):
            return -0.5 * (z - anchor).square().sum(-1)

    scored = UpToLabels(Normal(), group, anchor)
    here = anchor + 0.1 * torch.randn(latent.dim).double()
    images = group.generators(here)
    found = scored.log_prob(images) - latent.constrain(images)[1]
    expected = Normal().log_prob(here[None]) - latent.constrain(here[None])[1]
    torch.testing.assert_close(found, expected.expand_as(found))


def test_an_assignment_is_the_cheapest_of_all():
    cost = torch.rand(50, 4, 4, generator=torch.Generator().manual_seed(0))
    orders = [list(order) for order in itertools.permutations(range(4))]
    best = torch.stack([cost[:, range(4), order].sum(-1) for order in orders]).amin(0)
    found = cost.gather(2, assign(cost).unsqueeze(-1)).squeeze(-1).sum(-1)
    torch.testing.assert_close(found, best)


def test_modes_that_are_images_of_each_other_count_once():
    fit = NFVI(mixture, seed=0, max_steps=100, progress=False).run()
    found = find(fit.training.findings, Relabelled)
    assert (found.names, found.order, found.modes) == (("weights", "loc"), 24, 1)
    assert found.level is Level.DOUBT
    assert fit.modes == ()
    assert fit.verdict == "usable with reweighting"
    assert find(fit.training.findings, NarrowModes).count == 0  # no image counts as one
    assert any("24 relabellings of weights, loc" in reason for reason in fit.verdict.reasons)
    assert find(from_json(to_json(fit.training.findings)), Relabelled) == found
    # One image is right: sorted locations are those of the data, which are far apart.
    places = fit.sample(1000, seed=0)["loc"].sort(-1).values.mean(0)
    assert float((places - torch.linspace(-7.5, 7.5, 4)).abs().max()) < 0.4


@pytest.mark.slow
def test_where_all_images_fit_in_a_mixture_they_are_in_it():
    fit = NFVI(lambda: mixture(2), seed=0, max_steps=1000, progress=False).run()
    found = find(fit.training.findings, Relabelled)
    assert (found.order, found.modes, found.images) == (2, 1, True)
    assert len(fit.modes) == 2
    assert fit.verdict == "good"
    assert abs(float((fit.sample(4000, seed=0)["loc"][:, 0] > 0).double().mean()) - 0.5) < 0.05


def two_modes_each(size):
    """Each coordinate is about 3 or -3: 2^K images of K! 2^K relabellings."""

    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(size), 6.0).to_event(1))
        each = torch.logaddexp(-8 * (x - 3).square(), -8 * (x + 3).square())
        pyro.factor("f", each.sum(-1))

    return model


def apart(size):
    """K locations that are held at K places, in any order: K! images."""

    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(size), 9.0).to_event(1))
        places = 3 * torch.arange(float(size))
        each = -8 * (x.unsqueeze(-1) - places).square()
        pyro.factor("f", torch.logsumexp(each, -1).sum(-1) + torch.logsumexp(each, -2).sum(-1))

    return model


#: Model, a mode, relabellings, and distinct images of the mode.
IMAGES = [
    (two_modes_each(2), [3.0, 3.0], 8, 4),
    (two_modes_each(3), [3.0, -3.01, 3.02], 48, 8),
    (two_modes_each(4), [3.0, -3.01, 3.02, 2.99], 384, 16),
    (two_modes_each(5), [3.0, -3.01, 3.02, 2.99, 3.0], 3840, 17),
    (apart(3), [0.0, 3.0, 6.0], 6, 6),
    (apart(4), [0.0, 3.0, 6.0, 9.0], 24, 17),
    # A mode on which all relabellings agree.
    (two_modes_each(3), [0.0, 0.0, 0.0], 48, 1),
]


@pytest.mark.parametrize(("model", "mode", "order", "images"), IMAGES)
def test_distinct_images_of_a_mode_are_counted(model, mode, order, images):
    """As many as the relabellings make, and 17 where they are more than a mixture holds."""
    log_joint = joint(model)
    group = group_of(log_joint)
    assert group.order == order
    assert count_images(log_joint, group, torch.tensor(mode).double(), 16) == images


@pytest.mark.slow
def test_all_distinct_images_are_fitted_where_relabellings_are_many():
    """48 exchanges and flips of three coordinates make eight images, which one fit holds."""
    fit = NFVI(two_modes_each(3), seed=0, progress=False).run()
    assert len(fit.modes) == 8
    assert fit.verdict == "good"
    x = fit.sample(20_000, seed=0)["x"]
    # Octants of equal mass: seven standard deviations of the count, and errors of the weights.
    counts = ((x > 0).long() * torch.tensor([1, 2, 4])).sum(-1).bincount(minlength=8)
    assert float((counts / len(x) - 1 / 8).abs().max()) < 0.02


@pytest.mark.slow
def test_one_of_120_images_has_its_share_of_the_evidence():
    """Five clusters far apart: the evidence is that of one assignment of the data, times 5!."""
    count, size, sd = 5, 20, 0.5
    generator = torch.Generator().manual_seed(0)
    centres = 8.0 * torch.arange(count) - 16.0
    x = centres.repeat_interleave(size) + sd * torch.randn(count * size, generator=generator)

    def model():
        shares = pyro.sample("shares", dist.Dirichlet(torch.full((count,), 5.0)))
        loc = pyro.sample("loc", dist.Normal(torch.zeros(count), 10.0).to_event(1))
        with pyro.plate("data", len(x)):
            parts = dist.Normal(loc.unsqueeze(-2), torch.tensor(sd))
            mixture = dist.MixtureSameFamily(dist.Categorical(shares.unsqueeze(-2)), parts)
            pyro.sample("x", mixture, obs=x)

    fit = NFVI(model, seed=0, progress=False).run()
    found = find(fit.training.findings, Relabelled)
    assert (found.order, found.images) == (120, False)
    assert "120 relabellings" in " ".join(fit.verdict.reasons)
    assert fit.verdict != "good"
    cov = sd**2 * torch.eye(size) + 100.0
    cluster = dist.MultivariateNormal(torch.zeros(size), cov.double())
    evidence = float(cluster.log_prob(x.double().view(count, size)).sum())
    ones = torch.full((count,), 5.0, dtype=torch.float64)
    prior, after = (a.lgamma().sum() - a.sum().lgamma() for a in (ones, ones + size))
    evidence += float(after - prior)  # that of one assignment, and so of one image
    assert fit.log_evidence()[0] == pytest.approx(evidence, abs=0.02)
    loc = fit.sample(4000, seed=1)["loc"].sort(-1).values
    assert (
        loc.mean(0) - x.view(count, size).mean(-1) * (1 / (1 + sd**2 / size / 100))
    ).abs().max() < 0.01
