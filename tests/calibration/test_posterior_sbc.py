"""Posterior simulation-based calibration: the augmented density, the rates, the intervals."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_nfvi as nfvi
from pyro_nfvi import AutoFlow
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi.calibration._replication import Replicator
from pyro_nfvi.calibration._result import PosteriorSBC, SimulatedFit
from pyro_nfvi.errors import ModelError, NotSetUpError, OptionError

FAST = {
    "guide": "affine", "max_steps": 10, "engine": "eager", "stop": False, "explore": "off",
}  # fmt: skip
QUIET = {"progress": False, "num_workers": 1, "seed": 0}
SUM = {"enumerate": "parallel"}
Y = torch.tensor([0.3, -1.0, 2.0])


def conjugate(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    pyro.deterministic("twice", 2 * mu)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def log_normal(x, loc, scale):
    return dist.Normal(loc, scale).log_prob(x)


# ------------------------------------------------------------------- the augmented density


def rows(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def enumerated(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Bernoulli(0.3), infer=SUM)
        pyro.sample("y", dist.Normal(mu + 3 * k, 1.0), obs=y)


def one_component(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    k = pyro.sample("k", dist.Bernoulli(0.3), infer=SUM)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu + 3 * k, 1.0), obs=y)


def lagged(y):
    mu, last = pyro.sample("mu", dist.Normal(0.0, 2.0)), torch.zeros(())
    for t in range(len(y)):
        last = pyro.sample(f"y{t}", dist.Normal(mu * last, 1.0), obs=y[t])


def with_factor(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    pyro.factor("more", -mu.square())
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def flat(y):
    mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def mixed(mu, y):
    both = torch.stack(
        [math.log(0.7) + log_normal(y, mu, 1.0), math.log(0.3) + log_normal(y, mu + 3, 1.0)]
    )
    return both.logsumexp(0).sum()


def of_one(mu, y):
    both = torch.stack(
        [
            math.log(0.7) + log_normal(y, mu, 1.0).sum(),
            math.log(0.3) + log_normal(y, mu + 3, 1.0).sum(),
        ]
    )
    return both.logsumexp(0)


def in_turn(mu, y):
    return log_normal(y, mu * torch.cat([torch.zeros(1), y[:-1]]), 1.0).sum()


def together(mu, y):
    return log_normal(y, mu, 1.0).sum()


PRIOR = dist.Normal(0.0, 2.0).log_prob
#: Model, its likelihood, and its prior.
MODELS = {
    "rows": (rows, together, PRIOR),
    "a discrete site a row": (enumerated, mixed, PRIOR),
    "a discrete site for all": (one_component, of_one, PRIOR),
    "data that follow from data": (lagged, in_turn, PRIOR),
    "a factor": (with_factor, together, lambda mu: PRIOR(mu) - mu.square()),
    "no prior": (flat, together, lambda mu: 0 * mu),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_replicate_adds_its_likelihood(name):
    model, likelihood, prior = MODELS[name]
    mu = torch.tensor([0.4, -0.3])
    replicator = Replicator(model, (Y,), {}, None, {"mu": mu[0]})
    data = replicator.draw({"mu": mu[0]}, seed=1).data
    other = next(iter(data.values())) if len(data) == 1 else torch.stack(list(data.values()))
    augmented = replicator.augment(data)
    guide = AutoFlow(augmented, None)
    guide(Y)
    found = LogJoint(augmented, (Y,), {}, guide.latent)(mu.unsqueeze(-1)).detach()
    wanted = [prior(m) + likelihood(m, Y) + likelihood(m, other) for m in mu]
    torch.testing.assert_close(found, torch.stack(wanted))


def test_replicates_are_draws_of_the_likelihood():
    replicator = Replicator(rows, (torch.zeros(4000),), {}, None, {"mu": torch.tensor(3.0)})
    one, two = (replicator.draw({"mu": torch.tensor(3.0)}, seed).data["y"] for seed in (0, 1))
    # Means and sds of 4000: 0.06 is more than 3.7 standard errors of either.
    assert abs(float(one.mean()) - 3) < 0.06
    assert abs(float(one.std()) - 1) < 0.06
    assert not torch.equal(one, two)


# -------------------------------------------------------------------------- rates and power


def found_of(p, scores=None):
    fits = tuple(SimulatedFit(i, i, "good") for i in range(len(p)))
    truth = {name: torch.zeros_like(value) for name, value in {"mu": p}.items()}
    return PosteriorSBC(
        {"mu": p}, truth, fits, len(p), 0.01, False, False, 1, 0, 0.0, "",
        {} if scores is None else {"mu": scores},
    )  # fmt: skip


def scores_of_fits(count, narrow, seed):
    """Errors of fits in their own sds: a flat prior, and sds that are too small by a factor.

    The first posterior is N(0, 1), a replicate as informative as its data.
    """
    noise = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, count, generator=noise, dtype=torch.float64)
    truth = narrow * first
    mean = (truth + second) / 2
    return (truth - mean) / (narrow * math.sqrt(0.5))


NORMAL = torch.distributions.Normal(0.0, 1.0)


def test_exact_fits_pass_at_their_rate():
    # 200 runs of 100 simulations: 2 alarms are expected at 1 %, more than 9 come in 1 of 10,000.
    p = [NORMAL.cdf(scores_of_fits(100, 1.0, seed)) for seed in range(200)]
    assert sum(found_of(one).verdict != "calibrated" for one in p) <= 9


def test_sds_half_too_small_are_caught():
    # The docstring promises 95 %: were it that, fewer than 180 of 200 came in 1 of 500 runs.
    p = [NORMAL.cdf(scores_of_fits(100, 0.5, seed)) for seed in range(200)]
    words = [found_of(one).rows[0].word for one in p]
    assert sum("too narrow" in word for word in words) >= 180


@pytest.fixture(scope="module")
def fit():
    return nfvi.NFVI(conjugate, seed=0, progress=False, **FAST).run(Y)


@pytest.mark.parametrize("narrow", [1.0, 0.5])
def test_recalibrated_intervals_cover(fit, narrow):
    # An interval of ranks r and N + 1 - r covers a new truth in 1 - 2 r / (N + 1) of runs, 90.9 %
    # here; over 100 runs with 400 new ones each the standard error is about 0.4 %.
    hits = []
    draws = fit.draws.z[:, 0].double()
    low, middle, high = draws.quantile(torch.tensor([0.158655, 0.5, 0.841345]).double())
    for seed in range(100):
        scores = scores_of_fits(498, narrow, seed)
        ends = found_of(NORMAL.cdf(scores[:98]), scores[:98]).intervals(
            fit, level=0.9, everywhere=True
        )["mu"]
        new = scores[98:]
        truth = middle + new * torch.where(new > 0, high - middle, middle - low)
        hits.append(((truth >= ends[0]) & (truth <= ends[1])).double().mean())
    share = float(torch.stack(hits).mean())
    assert 0.9 <= share < 0.925


def test_intervals_of_fits_that_pass_are_their_own(fit):
    scores = scores_of_fits(50, 1.0, 0)
    found = found_of(NORMAL.cdf(scores), scores)
    assert found.verdict == "calibrated"
    ends = found.intervals(fit, level=0.5)["mu"]
    own = fit.draws.z[:, 0].double().quantile(torch.tensor([0.25, 0.75]).double())
    torch.testing.assert_close(ends, own, atol=1e-2, rtol=0)
    with pytest.raises(OptionError, match="99 % need 199 simulations, and 50 were done"):
        found.intervals(fit, level=0.99, everywhere=True)
    with pytest.raises(OptionError, match="level"):
        found.intervals(fit, level=90)
    other = nfvi.NFVI(positive, seed=0, progress=False, **FAST).run(Y)
    with pytest.raises(OptionError, match="no site 'mu'"):
        found.intervals(other, everywhere=True)


def positive(y):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(0.0, scale), obs=y)


def test_intervals_stay_in_the_support():
    fit = nfvi.NFVI(positive, seed=0, progress=False, **FAST).run(Y)
    scores = 3 * scores_of_fits(50, 1.0, 0)
    found = PosteriorSBC(
        {"scale": NORMAL.cdf(scores)}, {}, (), 50, 0.01, False, False, 1, 0, 0.0, "",
        {"scale": scores},
    )  # fmt: skip
    low, high = found.intervals(fit, level=0.9, everywhere=True)["scale"]
    assert 0 < low < high


# ------------------------------------------------------------------------------- real fits


def correlated(y):
    """One observation of a sum, of which a mean field's sds are too small by a factor of 5."""
    both = pyro.sample("both", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(both.sum(-1), 0.15), obs=y)


@pytest.mark.slow
def test_real_exact_fits_pass():
    how = {**FAST, "max_steps": 50}
    fit = nfvi.NFVI(conjugate, seed=0, progress=False, **how).run(Y)
    found = nfvi.posterior_sbc(fit, num_simulations=24, sites=["mu", "twice"], **QUIET, **how)
    # A Gaussian is the posterior here: not calibrated in 1 % of seeds at most.
    assert found.verdict == "calibrated", found.summary()
    assert found.failed == ()
    torch.testing.assert_close(found.p["mu"], found.p["twice"], atol=1 / 2001, rtol=0)


@pytest.mark.slow
def test_real_fits_that_are_too_narrow_fail_and_are_recalibrated():
    how = {**FAST, "guide": mean_field, "max_steps": 200}
    fit = nfvi.NFVI(correlated, seed=0, progress=False, **how).run(torch.tensor(0.5))
    # The exact posterior: what the fit gets wrong the data do not show, so that its own draws fail
    # to tell.
    precision = torch.eye(2) + 1 / 0.15**2
    mean = torch.linalg.solve(precision, torch.full((2,), 0.5 / 0.15**2))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exact = dist.MultivariateNormal(mean, precision_matrix=precision).sample((50,))
    found = nfvi.posterior_sbc(fit, num_simulations=30, draws={"both": exact}, **QUIET, **how)
    assert found.verdict == "not calibrated", found.summary()
    assert {row.word for row in found.rows} == {"too narrow"}
    low, high = found.intervals(fit)["both"]
    own = [2 * 1.645 * fit.summary()[f"both[{i}]"].sd for i in range(2)]  # 90 %, of a normal
    assert all(float(high[i] - low[i]) > 1.5 * own[i] for i in range(2))


def mean_field(model):
    return AutoFlow(model, None)


def test_few_fits_are_no_verdict(fit):
    before = torch.get_rng_state()
    found = nfvi.posterior_sbc(fit, num_simulations=1, sites="mu", **QUIET, **FAST)
    assert found.p["mu"].shape == found.truth["mu"].shape == found.scores["mu"].shape == (1,)
    assert found.verdict == "not known"
    assert torch.equal(torch.get_rng_state(), before)
    assert repr(found).startswith("PosteriorSBC(")


# ------------------------------------------------------------------------------- bad input


def by_factor(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    pyro.factor("y", -0.5 * (y - mu).square().sum(-1))


def unobserved(y):
    pyro.sample("mu", dist.Normal(0.0, 1.0))


def tempered(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.poutine.scale(scale=0.5):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y.sum())


def trained(y):
    loc = pyro.param("loc", torch.tensor(0.0))
    pyro.sample("y", dist.Normal(pyro.sample("mu", dist.Normal(loc, 1.0)), 1.0), obs=y.sum())


class Mislabelled(dist.Normal):
    """Draws what it has no density for."""

    def sample(self, *shape):
        return super().sample(*shape) + torch.inf

    def rsample(self, *shape):
        return self.sample(*shape)


def mislabelled(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", Mislabelled(mu, 1.0), obs=y.sum())


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (by_factor, r"its data enter by pyro.factor \(y\)"),
        (unobserved, "it observes nothing"),
        (tempered, "scaled by 0.5"),
        (trained, "trains parameters"),
        (mislabelled, "no finite density"),
    ],
)
def test_models_without_data_to_replicate(model, says):
    with pytest.raises(ModelError, match=says):
        Replicator(model, (Y,), {}, None, {"mu": torch.tensor(0.1)})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_simulations": 0}, "num_simulations"),
        ({"level": 2.0}, "level"),
        ({"observed": "z"}, r"observed names \['z'\]"),
        ({"observed": []}, "observed is a site's name"),
        ({"sites": ["z"]}, r"sites names \['z'\]"),
        ({"max_step": 3}, "no option 'max_step'"),
        ({"draws": {"mu": torch.zeros(3)}}, "draws holds 100 or more"),
        ({"draws": {"nu": torch.zeros(100)}}, "draws holds 100 or more"),
        ({"draws": {"mu": torch.zeros(100, 2)}}, "draws holds 100 or more"),
    ],
)
def test_bad_options(fit, options, says):
    with pytest.raises(OptionError, match=says):
        nfvi.posterior_sbc(fit, **{**QUIET, **FAST, **options})


def test_what_is_no_fit_with_a_model(fit, tmp_path):
    with pytest.raises(OptionError, match="fit is a Fit"):
        nfvi.posterior_sbc(conjugate)
    fit.save(tmp_path / "fit.pt")
    with pytest.raises(NotSetUpError):
        nfvi.posterior_sbc(nfvi.load(tmp_path / "fit.pt"), **QUIET)
