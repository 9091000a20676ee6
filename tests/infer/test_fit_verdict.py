"""``fit.verdict`` on models whose posterior is known, and on broken ones."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from infer.models import Y, conjugate, eight_schools

from pyro_nfvi import NFVI, load
from pyro_nfvi._gaussian_vi.gaussians import Normals
from pyro_nfvi._gaussian_vi.modes_of_starts import other_modes
from pyro_nfvi._gaussian_vi.multistart import fit_gaussian
from pyro_nfvi._gaussian_vi.target import Target
from pyro_nfvi.infer._checks.missed_mass import mass_outside
from pyro_nfvi.infer._findings import HeavyTails, Level, MassOutside, find

ZERO = torch.tensor(0.0)


def auto(model, *args, **options):
    return NFVI(model, **({"seed": 0, "progress": False} | options)).run(*args)


def two_modes():
    m = pyro.sample("m", dist.Normal(ZERO, 10.0))
    pyro.sample("o", dist.Normal(m.abs(), 0.3), obs=torch.tensor(6.0))


def cauchy():
    pyro.sample("x", dist.Cauchy(ZERO, 1.0))
    pyro.factor("o", ZERO)  # no data: the density is meant as it stands


def test_a_right_fit_is_good_and_says_so(tmp_path):
    fit = auto(conjugate, Y)
    assert fit.verdict == "good"
    assert "verdict: good" in fit.report
    fit.save(tmp_path / "fit.pt")
    assert load(tmp_path / "fit.pt").verdict.reasons == fit.verdict.reasons


def test_a_poor_fit_is_not_good():
    fit = auto(eight_schools, guide="affine", max_steps=20, precondition=False)
    assert fit.verdict != "good"


@pytest.mark.slow
def test_what_could_not_be_looked_at_is_said():
    fit = auto(conjugate, Y, guide="affine", max_steps=30)
    assert not any("would not have been seen" in reason for reason in fit.verdict.reasons)
    alone = auto(conjugate, Y, guide="affine", max_steps=200, precondition=False)
    assert any("would not have been seen" in reason for reason in alone.verdict.reasons)

    def wide():
        pyro.sample("z", dist.Normal(torch.zeros(40), 1.0).to_event(1))
        pyro.factor("o", ZERO)  # no data: the density is meant as it stands

    # In many latents wide draws say nothing, but what the starts ended in does.
    fit = auto(wide, guide="affine", max_steps=30)
    assert fit.verdict == "good"
    outside = find(fit.training.findings, MassOutside)
    assert outside.share < 0.001
    assert outside.places > 3


def test_a_mode_that_a_start_found_and_the_fit_lost_is_told():
    # Every draw of the fit lies in one mode: its weights are perfect.
    fit = auto(two_modes, guide="affine")
    assert fit.ess > 1900
    assert fit.verdict == "do not trust"
    assert any("1 other mode was found" in reason for reason in fit.verdict.reasons)
    assert any("about 50 % of the posterior lies where" in reason for reason in fit.verdict.reasons)
    assert "another mode was found" in fit.report


def test_tails_beyond_the_draws_are_seen():
    light = auto(cauchy, guide="affine", max_steps=60)
    outside = mass_outside(light.guide.density(), light.log_joint, light.draws, 0)
    assert outside.share > 0.05
    assert light.verdict != "good"
    right = auto(conjugate, Y)
    outside = mass_outside(right.guide.density(), right.log_joint, right.draws, 0)
    # No draw lies outside, and a share of 2 % would show in 100 effective draws.
    assert outside.share < 0.001
    assert outside.error < 0.01
    assert outside.name == ""


@pytest.mark.parametrize(
    "prior", [dist.Cauchy(3.0, 2.0), dist.HalfCauchy(1.0), dist.InverseGamma(0.5, 0.5)]
)
def test_a_posterior_without_a_variance_is_not_good(prior):
    def model():
        pyro.sample("x", prior)
        pyro.factor("nothing", torch.zeros(()))

    fit = auto(model, guide="affine", max_steps=30)
    assert fit.verdict != "good"
    found = find(fit.training.findings, HeavyTails)
    assert found.names == ("x",)
    assert (
        abs(found.indices[0] - {"Cauchy": 1.0, "HalfCauchy": 1.0}.get(type(prior).__name__, 0.5))
        < 0.05
    )


def test_an_angle_has_one_turn():
    y = torch.tensor([0.1, -0.3, 0.4, 0.2, -0.1])

    def model():
        mu = pyro.sample("mu", dist.VonMises(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.VonMises(mu, 4.0), obs=y)

    grid = torch.linspace(-torch.pi, torch.pi, 20001, dtype=torch.float64)
    log_p = dist.VonMises(0.0, 1.0).log_prob(grid)
    log_p = log_p + dist.VonMises(grid[:, None], 4.0).log_prob(y.double()).sum(-1)
    exact = log_p.logsumexp(0) + torch.log(grid[1] - grid[0])
    fit = auto(model)
    found, error = fit.log_evidence()
    assert fit.verdict == "good"
    assert abs(found - exact) < 5 * error + 1e-3
    assert fit.sample(1000)["mu"].abs().max() < torch.pi


def test_starts_that_found_nothing_else_are_counted():
    reasons = auto(conjugate, Y).verdict.reasons
    assert any("starts led to another mode; a mode that no start reaches" in r for r in reasons)


def test_a_fit_cut_short_says_that_its_bound_still_rose():
    fit = auto(eight_schools, guide="iaf*2", max_steps=600, precondition=False, optim=1e-3)
    assert fit.why_stopped == "max_steps"
    (told,) = (reason for reason in fit.verdict.reasons if "cut short" in reason)
    assert "the bound was still rising" in told


def test_a_gaussian_stage_cut_short_says_so():
    fit = auto(conjugate, Y, max_steps=10)
    assert fit.why_stopped == "max_steps"
    assert "max_steps=10" in fit.why_stopped.detail


def test_ctrl_c_while_modes_are_looked_for_is_an_interruption(monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("pyro_nfvi.infer._stages.mode_search_stage.search_model_modes", interrupt)
    fit = auto(conjugate, Y)
    assert fit.why_stopped == "interrupted"
    assert "modes were looked for" in fit.why_stopped.detail


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))]
)
def test_a_mode_in_a_corner_of_the_prior_is_found(seed):
    # 4 % of the prior's draws are nearer to it than to the one at 0: all miss it once in 50 times.
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(5), 5.0).to_event(1))
        near = dist.Normal(0.0, 0.1).log_prob(x).sum(-1)
        far = dist.Normal(8.0, 0.1).log_prob(x).sum(-1) + 2.5 * (8 / 5) ** 2
        pyro.factor("two", torch.logaddexp(near, far))

    fit = auto(model, seed=seed)
    assert [round(mode["weight"], 1) for mode in fit.modes] == [0.5, 0.5]


def test_subsampled_fits_cannot_be_judged():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(ZERO, 5.0))
        for name in "ab":
            with pyro.plate(name, len(y), subsample_size=2) as index:
                pyro.sample(f"y_{name}", dist.Normal(mu, 2.0), obs=y[index])

    verdict = auto(model, Y, guide="affine", max_steps=100).verdict
    assert verdict == "do not trust"
    assert "subsample" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("centres", "count"), [([-9.0, 9.0], 1), ([-9.0, 0.0, 9.0], 2), ([0.0], 0), ([-1.0, 1.0], 0)]
)
def test_other_modes(centres, count):
    places = torch.tensor(centres, dtype=torch.float64)
    target = Target(lambda z: torch.logsumexp(-0.5 * (z - places) ** 2, -1), places)
    starts = Normals.around(torch.linspace(-10, 10, 8).unsqueeze(-1), 0.5)
    generator = torch.Generator().manual_seed(0)
    found = fit_gaussian(target, starts, generator=generator)
    assert len(other_modes(target, found)) == count


@pytest.mark.slow
def test_a_mode_that_a_model_run_row_by_row_has_elsewhere_is_told():
    """No modes are looked for there, but a few ascents end in places that draws come from."""

    def model():
        m = pyro.sample("m", dist.Normal(ZERO, 10.0))
        if bool(m > 1e9):  # neither a plate of particles nor vmap can run this
            raise RuntimeError("too far")
        pyro.sample("o", dist.Normal(m.abs(), 0.3), obs=torch.tensor(6.0))

    fit = auto(model)
    assert fit.log_joint.how == "loop"
    assert fit.verdict == "do not trust"
    outside = find(fit.training.findings, MassOutside)
    assert outside.share == pytest.approx(0.5, abs=0.1)


@pytest.mark.slow
def test_a_spike_in_a_slab_is_held_with_both():
    """Half of N(0, 1) and half of N(1, 0.02): sds within 5 %, 3 errors of the learnt weights."""
    loc, sd = torch.tensor([[0.0] * 5, [1.0] * 5]), torch.tensor([[1.0] * 5, [0.02] * 5])

    def model():
        parts = dist.Normal(loc, sd).to_event(1)
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(torch.ones(2) / 2), parts))
        pyro.factor("nothing", torch.zeros(()))

    fit = auto(model)
    assert fit.verdict == "good"
    assert len(fit.modes) == 2
    x = fit.sample(4000, seed=1)["x"]
    assert x.std(0).tolist() == pytest.approx([0.866] * 5, rel=0.05)
    assert x.mean(0).tolist() == pytest.approx([0.5] * 5, abs=0.06)


def test_a_fit_of_which_nothing_could_be_looked_at_is_not_good():
    doubt = MassOutside(unseen=True)
    assert doubt.level is Level.DOUBT
    assert MassOutside().level is Level.REMARK
    assert MassOutside(0.01, 0.001, name="x", shift=0.3).level is Level.DOUBT
    assert MassOutside(0.1, 0.01).level is Level.FAULT
