"""``fit.mcmc``: exact draws of posteriors that are known, and the faults that it tells."""

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from infer.models import Y, conjugate, eight_schools, posterior
from scipy.stats import kstest

from pyro_nfvi import NFVI
from pyro_nfvi._mcmc import hmc
from pyro_nfvi._mcmc.chains import Ending
from pyro_nfvi.diagnostics._verdict import Cause
from pyro_nfvi.errors import ModelError, OptionError
from pyro_nfvi.infer._chain_findings import (
    ChainsDisagree,
    CutShort,
    Divergent,
    ReachedOutside,
    StuckChains,
)
from pyro_nfvi.infer._findings import (
    Improper,
    Level,
    MassOutside,
    MissedModes,
    MovedMoments,
    NarrowModes,
    ShortTails,
    find,
)
from pyro_nfvi.infer._fit import add_finding

ZERO = torch.tensor(0.0)


def fitted(model, *args, guide="affine", **options):
    chosen = {"max_steps": 30, "seed": 0, "progress": False, "explore": "off"} | options
    return NFVI(model, guide, **chosen).run(*args)


@pytest.fixture(scope="module")
def run():
    fit = fitted(conjugate, Y)
    return fit, fit.mcmc(num_samples=100, warmup_steps=60, seed=0, progress=False)


def test_a_good_run_says_so(run):
    """The laws of its draws are those of all samplers (``test_exact_draws.py``)."""
    fit, found = run
    assert found.ess > 2000
    assert found.nested_rhat < 1.01
    assert found.verdict == "good"
    assert fit.model is found.kernel.model


def test_the_evidence_is_that_of_closed_form():
    y = torch.tensor([0.5, 1.5, 2.5])

    def model():
        mu = pyro.sample("mu", dist.Normal(ZERO, 5.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    exact = dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 25 * torch.ones(3, 3))
    wanted = float(exact.log_prob(y))
    fit = fitted(model, max_steps=40, precondition=False)
    found = fit.mcmc(num_samples=100, warmup_steps=100, seed=0, progress=False)
    for method in ("bridge", "harmonic"):
        value, error = found.log_evidence(method=method)
        assert abs(value - wanted) < 5 * error + 0.005, method
        assert error < 0.05
    assert found.log_evidence(method="importance") == fit.log_evidence()
    with pytest.raises(OptionError, match="method"):
        found.log_evidence(method="laplace")


def test_the_fit_may_be_wrong():
    """Draws of a guide that was hardly trained are far off, and those of its chains are not."""
    fit = fitted(conjugate, Y, max_steps=3, precondition=False, seed=1)
    mean, sd = posterior(Y)
    law = torch.distributions.Normal(mean, sd)

    def p(draws):
        return kstest(draws.double().numpy(), lambda x: law.cdf(torch.as_tensor(x)).numpy()).pvalue

    assert p(fit.sample(500, seed=0)["mu"]) < 1e-6
    found = fit.mcmc(num_samples=4, num_chains=500, warmup_steps=100, seed=0, progress=False)
    # The last draws of chains are independent: a false alarm at 1e-6.
    assert p(found.samples["mu"][:, -1]) > 1e-6


@pytest.mark.parametrize("guide", ["gaussian", "iaf*1"])
def test_constrained_sites_are_exact(guide):
    def model():
        pyro.sample("p", dist.Dirichlet(torch.tensor([2.0, 3.0, 5.0])))
        pyro.sample("s", dist.Gamma(torch.tensor(3.0), 2.0))
        pyro.factor("o", ZERO)

    fit = fitted(model, guide=guide, max_steps=30)
    found = fit.mcmc(num_samples=4, num_chains=800, warmup_steps=80, seed=0, progress=False)
    laws = {
        "p": (found.samples["p"][:, -1, 0], "beta", (2.0, 8.0)),
        "s": (found.samples["s"][:, -1], "gamma", (3.0, 0.0, 0.5)),
    }
    for draws, law, numbers in laws.values():
        assert kstest(draws.double().numpy(), law, numbers).pvalue > 1e-6


def test_parameters_of_the_model_stay_at_their_fitted_values():
    def model(y):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        mu = pyro.sample("mu", dist.Normal(ZERO, 5.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, scale), obs=y)

    fit = fitted(model, Y, max_steps=60)
    scale = float(fit.params["scale"])
    found = fit.mcmc(num_samples=50, num_chains=64, warmup_steps=50, seed=0, progress=False)
    precision = 1 / 25 + len(Y) / scale**2
    mean = float(Y.sum()) / scale**2 / precision
    assert abs(float(found.samples["mu"].mean()) - mean) < 5 * (precision * found.ess) ** -0.5
    assert float(fit.params["scale"]) == scale


# ------------------------------------------------------------------------- what is told


CURED = (ShortTails(("x",), (1.5,)), MovedMoments(("x",), (0.5,), (1.0,)))
NOT_CURED = (MissedModes(1), Improper(("x",)), MassOutside(0.5, 0.01), NarrowModes(1, 10, 0.1))


def test_chains_are_offered_for_shape_and_never_for_unseen_mass(run):
    good, _ = run
    assert good.verdict == "good"
    assert "mcmc" not in good.verdict.next_step
    # Noise of 3 nats on the weights: the shape is wrong.
    noise = 3 * torch.randn(len(good.draws.z), generator=torch.Generator().manual_seed(0))
    rough = replace(good, draws=replace(good.draws, log_p=good.draws.log_p + noise))
    assert rough.verdict.cause is Cause.WEIGHTS
    for fit in (rough, *(add_finding(good, found) for found in CURED)):
        assert fit.verdict != "good"
        assert "fit.mcmc()" in fit.verdict.next_step
        for found in NOT_CURED:
            assert found.level > Level.REMARK
            assert "mcmc" not in add_finding(fit, found).verdict.next_step
        assert "mcmc" not in replace(fit, log_joint=None).verdict.next_step


def test_places_that_disagree_are_told():
    def two():
        x = pyro.sample("x", dist.Normal(ZERO, 10.0))
        far = dist.Normal(torch.tensor([0.0, 9.0]), torch.tensor([1.0, 0.3]))
        pyro.factor("o", far.log_prob(x.unsqueeze(-1)).logsumexp(-1))

    fit = fitted(two, max_steps=60)
    # A law that is wide enough to reach the mode that the fit has not seen.
    wide = fit.mcmc(num_samples=100, num_chains=256, warmup_steps=50, seed=0, progress=False)
    if wide.samples["x"].max() > 6:
        assert find(wide.findings, ChainsDisagree) is not None
        assert wide.verdict != "good"
    assert fit.verdict != "good" or wide.samples["x"].max() < 6


def test_what_the_fit_has_not_seen_stays_in_the_verdict(run):
    fit, _ = run
    missed = add_finding(fit, MissedModes(1))
    found = missed.mcmc(num_samples=100, warmup_steps=50, seed=0, progress=False)
    assert found.findings == ()
    assert found.verdict == "do not trust"
    assert any("not reached" in reason for reason in found.verdict.reasons)


@pytest.mark.slow
def test_a_tail_that_chains_reach_is_no_fault_of_theirs():
    def cauchy():
        pyro.sample("x", dist.Cauchy(ZERO, 1.0))
        pyro.factor("o", ZERO)  # no data: the density is meant as it stands

    fit = fitted(cauchy, guide="gaussian")
    outside = find(fit.training.findings, MassOutside)
    assert outside.level is Level.FAULT
    found = fit.mcmc(num_samples=100, seed=0, progress=False)
    reached = find(found.findings, ReachedOutside)
    # The share by the closed form: where the Cauchy is e^3 times the fit.
    assert abs(reached.visited - outside.share) < 0.05
    assert found.verdict != "do not trust"
    # Far mass that no chain visits stays a fault.
    missed = add_finding(fit, replace(outside, share=0.6))
    assert missed.mcmc(num_samples=100, seed=0, progress=False).verdict == "do not trust"


@pytest.mark.slow
def test_divergent_chains_are_told():
    fit = fitted(eight_schools, max_steps=100)
    found = fit.mcmc(num_samples=30, num_chains=32, warmup_steps=40, seed=0, progress=False)
    assert find(found.findings, Divergent) is not None or find(found.findings, ChainsDisagree)
    assert found.verdict != "good"
    assert found.verdict.next_step


class Switch:
    """A model that is broken once it is told so."""

    def __init__(self, broken):
        self.broken, self.on = broken, False

    def __call__(self):
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("o", self.broken(x) if self.on else 0.0 * x.sum(-1))


@pytest.mark.slow
def test_regions_without_a_density_are_left_out_and_told():
    model = Switch(lambda x: torch.where(x[..., 0] > 0.5, -math.inf, 0.0))
    fit = fitted(model)
    model.on = True
    found = fit.mcmc(num_samples=60, warmup_steps=60, seed=0, progress=False)
    assert (found.samples["x"][..., 0] <= 0.5).all()
    assert find(found.findings, Divergent) is not None
    model.broken = lambda x: x.sum(-1) * math.nan
    with pytest.raises(ModelError, match="found no start"):
        fit.mcmc(num_samples=10, seed=0, progress=False)


def test_chains_that_never_move_are_told(monkeypatch):
    # This model remembers where it was first run, which no captured graph does.
    monkeypatch.setattr("pyro_nfvi.infer._mcmc.compiled", lambda log_joint, budget: log_joint)
    starts = []

    def broken(x):
        if not starts:
            starts.append(x.detach().clone())
        return torch.where((x.unsqueeze(-2) == starts[0]).all(-1).any(-1), 0.0, -math.inf)

    model = Switch(broken)
    fit = fitted(model)
    model.on = True
    found = fit.mcmc(num_samples=10, num_chains=8, warmup_steps=20, seed=0, progress=False)
    assert find(found.findings, StuckChains) == StuckChains(8, 8)
    assert found.verdict == "do not trust"
    assert "another parametrisation" in found.verdict.next_step


def test_time_is_bounded(run):
    fit, _ = run
    short = fit.mcmc(num_samples=10**5, num_chains=8, max_seconds=0.5, seed=0, progress=False)
    told = find(short.findings, CutShort)
    assert told is not None
    assert told.ending is Ending.TIME
    assert told.level is Level.DOUBT
    assert 4 <= short.log_p.shape[1] < 10**5
    assert short.verdict != "good"


def test_ctrl_c_leaves_the_draws_until_then(run, monkeypatch):
    fit, _ = run
    count = iter(range(60))

    def accept(*args):
        if next(count, None) is None:
            raise KeyboardInterrupt
        return hmc.accept(*args)

    monkeypatch.setattr("pyro_nfvi._mcmc.chains.accept", accept)
    short = fit.mcmc(num_samples=100, num_chains=8, warmup_steps=20, seed=0, progress=False)
    assert short.log_p.shape == (8, 40)
    assert find(short.findings, CutShort).ending is Ending.INTERRUPTED
    assert any("Ctrl-C came: 40 of 100 draws" in reason for reason in short.verdict.reasons)
    assert all(p.requires_grad for p in fit.guide.parameters())
    with pytest.raises(KeyboardInterrupt):
        fit.mcmc(num_samples=100, num_chains=8, warmup_steps=20, seed=0, progress=False)


def test_progress_is_a_line_where_there_is_no_terminal(run, capsys):
    fit, _ = run
    fit.mcmc(num_samples=5, num_chains=8, warmup_steps=5, seed=0)
    assert "NFVI: 8 chains: 10 draws" in capsys.readouterr().err


def test_more_draws_than_memory_are_refused(run):
    with pytest.raises(OptionError, match="take fewer draws"):
        run[0].mcmc(num_samples=10**7)
