"""Guides over a base of their own: exact densities, gradients, files."""

from __future__ import annotations

import copy
import io
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_nfvi import NFVI, AutoFlow, load
from pyro_nfvi.distributions import (
    Base,
    DiagonalNormal,
    FullRankNormal,
    GaussianMixture,
    Logistic,
    StudentT,
)
from pyro_nfvi.errors import FileError, OptionError
from pyro_nfvi.objectives import PathELBO, TotalELBO
from pyro_nfvi.testing._case import perturb

BASES = {
    "normal": DiagonalNormal,
    "full": FullRankNormal,
    "logistic": Logistic,
    "student": lambda dim: StudentT(dim, df=4.0),
    "mixture": lambda dim: GaussianMixture(dim, 3, spread=2.0),
}


def model():
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x.sum(-1), 0.5), obs=torch.tensor(1.0))


def guide_with(base, flow="planar*2", **options):
    torch.manual_seed(0)
    return AutoFlow(model, flow, base=base, **options).setup()


@pytest.mark.parametrize("outer", ["diagonal", "full"])
@pytest.mark.parametrize("name", BASES)
def test_density_of_draws_is_that_of_points(name, outer):
    guide = guide_with(perturb(BASES[name](2), 0.4), outer=outer)
    density = perturb(guide, 0.3).density()
    z, log_q = density.rsample_and_log_prob((50,))
    torch.testing.assert_close(density.log_prob(z), log_q, rtol=1e-3, atol=1e-3)
    values = guide.sample_posterior(7)
    assert guide.log_prob(values).isfinite().all()


@pytest.mark.parametrize("name", BASES)
def test_guide_starts_as_the_base_it_is_given(name):
    base = perturb(BASES[name](2), 0.4)
    guide = guide_with(base, None, init_scale=1.0)
    # Without layers and with a unit outer map at 0, the guide is the base.
    eps = torch.randn(9, 2)
    with torch.no_grad():
        torch.testing.assert_close(
            guide.density().log_prob(eps), base.log_prob(eps - guide.latent.init_loc)
        )


@pytest.mark.stat
@pytest.mark.parametrize("name", BASES)
def test_path_and_total_gradients_agree(name):
    guide = perturb(guide_with(perturb(BASES[name](2), 0.3)).double(), 0.2)
    params = [p for p in guide.parameters() if p.requires_grad]

    def target(z):
        return -0.5 * (z - 1).square().sum(-1)

    eps = guide.density().sample_base(20_000, generator=torch.Generator().manual_seed(0))
    found = []
    for objective in (PathELBO(), TotalELBO()):
        parts = [
            torch.autograd.grad(
                objective(guide.density(), target, part).surrogate, params, allow_unused=True
            )
            for part in eps.split(1000)
        ]
        found.append([torch.stack(column) for column in zip(*parts) if column[0] is not None])
    for one, other in zip(*found, strict=True):
        difference = one - other
        error = difference.std(0) / math.sqrt(len(difference)) + 1e-12
        # Six standard errors of 20 groups, over some 40 numbers: false-alarm rate below 1e-3, and
        # the seed is fixed.
        assert (difference.mean(0).abs() < 6 * error + 1e-9).all()


@pytest.mark.parametrize("name", BASES)
def test_what_trains_is_what_the_base_promises(name):
    guide = guide_with(BASES[name](2))
    assert (guide.place is None) == (name == "mixture")
    assert (guide.noise is None) == (name in ("normal", "full"))
    assert guide.noise is None or not list(guide.noise.parameters())
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    before = copy.deepcopy(guide.state_dict())
    for _ in range(3):
        assert math.isfinite(svi.step())
    moved = {k for k, v in guide.state_dict().items() if not torch.equal(v, before[k])}
    assert any(key.startswith("place.") for key in moved) == (name != "mixture")
    assert not any(key.startswith("noise.") for key in moved)


@pytest.mark.parametrize("name", BASES)
def test_nfvi_trains_saves_and_loads_it(name, tmp_path):
    torch.manual_seed(1)
    fit = NFVI(
        model,
        lambda m: AutoFlow(m, "planar*2", base=BASES[name]),
        max_steps=60,
        seed=0,
        progress=False,
    ).run()
    assert math.isfinite(fit.elbo)
    fit.save(tmp_path / "fit.pt")
    again = load(tmp_path / "fit.pt")
    z = torch.randn(5, 2)
    with torch.no_grad():
        torch.testing.assert_close(
            again.guide.density().log_prob(z), fit.guide.density().log_prob(z)
        )
    assert again.sample(3)["x"].shape == (3, 2)


def test_student_noise_gives_the_guide_its_tails():
    far, found = torch.tensor([[1e3, 0.0]]), []
    for base in (StudentT, None):
        with pyro.get_param_store().scope():
            found.append(guide_with(base, "affine").density().log_prob(far))
    assert found[0] > found[1] + 1000


def test_summaries_follow_the_base():
    guide = guide_with(Logistic, None, init_scale=1.0)
    low, median, high = guide.quantiles([0.25, 0.5, 0.75])["x"]
    torch.testing.assert_close(median, guide.latent.init_loc, atol=1e-5, rtol=0)
    # The quartile of the logistic is log 3.
    torch.testing.assert_close((high - low) / 2, torch.full((2,), math.log(3.0)), atol=0.1, rtol=0)
    assert guide.mean()["x"].isfinite().all()


def test_pickle_and_copy():
    guide = guide_with(lambda dim: StudentT(dim, df=3.0))
    stream = io.BytesIO()
    torch.save(guide, stream)
    stream.seek(0)
    again = torch.load(stream, weights_only=False)
    z = torch.randn(4, 2)
    for other in (again, copy.deepcopy(guide)):
        assert torch.equal(other.density().log_prob(z), guide.density().log_prob(z))


def test_a_base_of_ones_own_is_held_and_asked_for_by_load(tmp_path):
    class Wide(Base):
        def __init__(self, dim):
            super().__init__(dim)
            self.scale = torch.nn.Parameter(torch.tensor(3.0))

        def rsample(self, shape=(), *, generator=None):
            size = (shape,) if isinstance(shape, int) else tuple(shape)
            return self.scale * torch.randn(*size, self.dim, generator=generator)

        def log_prob(self, value):
            return dist.Normal(0.0, self.scale).log_prob(value).sum(-1)

    fit = NFVI(
        model, lambda m: AutoFlow(m, "affine", base=Wide), max_steps=20, seed=0, progress=False
    ).run()
    fit.save(tmp_path / "fit.pt")
    with pytest.raises(FileError, match="base"):
        load(tmp_path / "fit.pt")
    again = load(tmp_path / "fit.pt", base=Wide)
    z = torch.randn(5, 2)
    with torch.no_grad():
        torch.testing.assert_close(
            again.guide.density().log_prob(z), fit.guide.density().log_prob(z)
        )


def test_the_users_base_is_left_alone():
    base = DiagonalNormal(2)
    kept = copy.deepcopy(base.state_dict())
    guide = guide_with(base)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    svi.step()
    assert all(torch.equal(value, kept[key]) for key, value in base.state_dict().items())


@pytest.mark.parametrize(
    ("base", "words"),
    [
        (DiagonalNormal(3), "size 2"),
        (3.0, "pyro_nfvi.distributions"),
        (lambda dim: None, "returned"),
    ],
)
def test_mistakes_are_named(base, words):
    with pytest.raises(OptionError, match=words):
        guide_with(base)


def test_a_second_guide_continues_from_the_store():
    first = perturb(guide_with(Logistic), 0.3)
    again = guide_with(Logistic)
    assert torch.equal(again.place.params.loc, first.place.params.loc)
