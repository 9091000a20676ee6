"""Several modes: found, weighed, mixed, reported, and kept in a file.

The posteriors are those of ``benchmarks/modes.py``; no draw of their priors lies in a mode.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from infer.models import Y, conjugate

from pyro_nfvi import NFVI, AutoFlow, AutoMixture, load, to_arviz
from pyro_nfvi.errors import ModelError, OptionError
from pyro_nfvi.infer._findings import ModeSearch, with_finding

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, for benchmarks/

from benchmarks.modes_targets import TARGETS  # noqa: E402

#: Draws from which masses are counted: a standard error of at most 0.0035.
DRAWS = 20_000


def auto(model, *args, **options):
    return NFVI(model, **({"seed": 0, "progress": False} | options)).run(*args)


def mass(target, fit):
    mode = target.mode(fit.sample(DRAWS, seed=1))
    return torch.bincount(mode, minlength=len(target.weights)) / DRAWS


def two_modes():
    m = pyro.sample("m", dist.Normal(torch.tensor(1.0), 5.0))
    pyro.deterministic("size", m.abs())
    pyro.sample("o", dist.Normal(m.abs(), 0.3), obs=torch.tensor(6.0))


#: exp(2 * 6 * 1 / 25) to 1, but for a hundredth.
RATIO = torch.sigmoid(torch.tensor(12.0 / 25)).item()


@pytest.fixture(scope="module")
def fitted():
    with pyro.get_param_store().scope():
        return auto(two_modes)


def test_both_modes_are_in_the_fit(fitted):
    assert isinstance(fitted.guide, AutoMixture)
    assert fitted.verdict == "good"
    assert any("2 modes were found from" in reason for reason in fitted.verdict.reasons)
    weights = [mode["weight"] for mode in fitted.modes]
    assert weights == pytest.approx([RATIO, 1 - RATIO], abs=0.01)
    assert [round(mode["at"]["m"]) for mode in fitted.modes] == [6, -6]
    assert all(mode["starts"] >= 2 for mode in fitted.modes)
    # Either mode alone would be short of the evidence by 0.5 nats or more.
    assert fitted.log_evidence()[0] - fitted.elbo < 0.02
    assert "mode 1: weight" in fitted.report
    assert "a mode that no start reached would go unseen" in fitted.report
    assert fitted.ess > 1800


def test_all_that_a_fit_gives_it_gives_for_a_mixture(fitted, tmp_path):
    draws = fitted.sample(2000, seed=0, deterministic=True)
    # Of 2000 draws: a standard error of 0.011, four of them.
    assert float((draws["m"] > 0).float().mean()) == pytest.approx(RATIO, abs=0.045)
    assert torch.equal(draws["m"], fitted.sample(2000, seed=0)["m"])
    torch.testing.assert_close(draws["size"], draws["m"].abs())
    assert fitted.resample(50)["m"].shape == (50,)
    assert fitted.log_prob(draws).shape == (2000,)
    assert fitted.summary()["size"].mean == pytest.approx(6.0, abs=0.05)
    idata = to_arviz(fitted, num_samples=100)
    assert idata["posterior"].sizes["draw"] == 100
    assert to_arviz(fitted.guide, num_samples=10)["posterior"].sizes["draw"] == 10
    for chains in (fitted.to_nuts, fitted.mcmc):
        with pytest.raises(ModelError, match="mixture over 2 modes"):
            chains()
    path = tmp_path / "fit.pt"
    fitted.save(path)
    again, with_model = load(path), load(path, model=two_modes)
    for other in (again, with_model):
        assert other.elbo == fitted.elbo
        assert other.modes == fitted.modes
        assert other.verdict.reasons == fitted.verdict.reasons
        torch.testing.assert_close(other.sample(100, seed=3)["m"], fitted.sample(100, seed=3)["m"])
    assert "size" in with_model.sample(5, deterministic=True)
    clone = copy.deepcopy(fitted.guide)
    torch.testing.assert_close(clone.log_prob(draws), fitted.guide.log_prob(draws))


def test_the_verdict_knows_of_modes_that_may_be_missing(fitted):
    def with_modes(search):
        findings = with_finding(fitted.training.findings, search)
        training = dataclasses.replace(fitted.training, findings=findings)
        return dataclasses.replace(fitted, training=training).verdict

    many = with_modes(ModeSearch(192, 16, full=True))
    assert many == "do not trust"
    assert "as many as are kept" in many.reasons[0]
    lonely = with_modes(ModeSearch(192, 2, alone=1))
    assert any("by one start alone" in reason for reason in lonely.reasons)


@pytest.mark.slow
def test_a_fit_repeats_with_its_seed(fitted):
    assert torch.equal(auto(two_modes).draws.z, fitted.draws.z)


@pytest.mark.slow
def test_explore_off_and_other_guides():
    lost = auto(two_modes, guide="affine", max_steps=300)
    assert lost.verdict == "do not trust"
    assert any("other mode" in reason for reason in lost.verdict.reasons)
    assert not lost.modes
    off = auto(two_modes, explore="off")
    assert isinstance(off.guide, AutoFlow)
    with pytest.raises(OptionError, match="explore"):
        NFVI(two_modes, explore="tempered")
    with pytest.raises(OptionError, match="by itself"):
        NFVI(two_modes, AutoMixture(two_modes))


def test_one_mode_stays_one():
    fit = auto(conjugate, Y)
    assert isinstance(fit.guide, AutoFlow)
    assert not fit.modes
    assert "starts ended in this one mode" in fit.report


@pytest.mark.slow
def test_double_precision_and_short_budgets():
    def model():
        m = pyro.sample("m", dist.Normal(torch.tensor(1.0).double(), 5.0))
        pyro.sample("o", dist.Normal(m.abs(), 0.3), obs=torch.tensor(6.0).double())

    fit = auto(model, max_steps=100)
    assert fit.sample(3)["m"].dtype == torch.float64
    assert [mode["weight"] for mode in fit.modes] == pytest.approx([RATIO, 1 - RATIO], abs=0.02)
    assert auto(two_modes, max_seconds=0.5).elbo > -torch.inf


@pytest.mark.slow
def test_flows_on_the_modes_that_need_them():
    target = TARGETS["regression"]()
    fit = auto(target.model)
    assert (mass(target, fit) - target.weights).abs().max() < 0.03
    tried = fit.training.settings.tried
    bounds = {one.flow: one.elbo for one in tried}
    assert bounds["2 Gaussians"] > bounds[""] + 0.2
    assert bounds["mixture of these"] > bounds["2 Gaussians"] + 0.03
    assert fit.training.settings.flow == "iaf*2 + iaf*2"
    assert fit.verdict == "good"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", TARGETS)
def test_all_modes_of_the_targets_are_found_and_weighed(name, seed):
    # Counting alone has a standard error below 0.0035: an error of 0.03 is one of the fit.
    target = TARGETS[name]()
    fit = auto(target.model, seed=seed)
    assert len(fit.modes) == len(target.weights)
    assert (mass(target, fit) - target.weights).abs().max() < 0.03
    assert fit.verdict in ("good", "usable with reweighting")


def test_a_light_mode_that_makes_most_of_the_sd_is_in_the_fit():
    """Half of one per cent of the mass, forty sds away: the sd is three times that of the rest."""

    def model():
        place = pyro.sample("place", dist.Normal(3.0, 2.6))
        pyro.sample("y", dist.Normal(place.abs(), 0.3), obs=torch.tensor(6.0))

    grid = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    log_p = dist.Normal(3.0, 2.6).log_prob(grid) + dist.Normal(grid.abs(), 0.3).log_prob(
        torch.tensor(6.0)
    )
    weight = log_p.softmax(0)
    mean = float((weight * grid).sum())
    sd = float((weight * (grid - mean).square()).sum().sqrt())
    assert 0.003 < float(weight[grid < 0].sum()) < 0.007
    fit = NFVI(model, seed=0, max_steps=1000, progress=False).run()
    assert len(fit.modes) == 2
    assert fit.verdict == "good"
    draws = fit.sample(100_000, seed=1)["place"]
    # Errors of the mean below 0.01 sd and of the sd below 3 %, by four standard errors and more.
    assert abs(float(draws.mean()) - mean) < 0.05 * sd
    assert float(draws.std()) == pytest.approx(sd, rel=0.15)
