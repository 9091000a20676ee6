"""The result of a fit: draws, densities, weights, tables and files."""

import contextlib
import json
import math
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from infer.models import Y, conjugate, eight_schools, posterior

from pyro_nfvi import NFVI, AutoFlow, load
from pyro_nfvi.errors import FileError, ModelError, NotSetUpError, OptionError, ShapeError
from pyro_nfvi.flows import make_flow
from pyro_nfvi.infer._summary import Summary

ROOT = Path(__file__).resolve().parents[2]


def quick(model=conjugate, **options):
    chosen = {"max_steps": 300, "seed": 0, "progress": False, "guide": "affine", "explore": "off"}
    return NFVI(model, **(chosen | options))


def constrained(y):
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    s = pyro.sample("s", dist.HalfNormal(torch.tensor(1.0)))
    with pyro.plate("groups", 2):
        a = pyro.sample("a", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    loc = (w * a.sum(-2)).sum(-1) if a.dim() == 2 else (w.squeeze(-2) * a.sum(-2)).sum(-1)
    pyro.sample("y", dist.Normal(loc, s.reshape(loc.shape)), obs=y)


@pytest.fixture(scope="module")
def fit():
    pyro.set_rng_seed(0)
    with pyro.get_param_store().scope():
        return quick(max_steps=1500).run(Y)


@pytest.fixture(scope="module")
def several():
    """A fit of three sites, each constrained in a way of its own."""
    pyro.set_rng_seed(0)
    with pyro.get_param_store().scope():
        return quick(constrained, max_steps=30, guide="iaf*2").run(torch.tensor(0.5))


# ------------------------------------------------------------------------------- drawing


def test_sample(fit):
    assert sorted(fit.sample(3)) == ["mu"]
    draws = fit.sample(2000, seed=0, deterministic=True)
    assert sorted(draws) == ["mu", "twice"]
    assert draws["mu"].shape == (2000,)
    torch.testing.assert_close(draws["twice"], 2 * draws["mu"])
    mean, sd = posterior(Y)
    assert abs(float(draws["mu"].mean()) - mean) < 0.15 * sd
    assert torch.equal(fit.sample(3, seed=4)["mu"], fit.sample(3, seed=4)["mu"])
    assert not torch.equal(fit.sample(3)["mu"], fit.sample(3)["mu"])
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(OptionError, match="num_samples"):
            fit.sample(wrong)


def test_log_prob_is_the_density_of_the_constrained_values(several):
    fit, draws = several, several.sample(6, seed=1)
    found = fit.log_prob(draws)
    z, ladj = fit.latent.unconstrain(draws)
    with torch.no_grad():
        expected = fit.guide.density().log_prob(z) + ladj
    torch.testing.assert_close(found, expected)
    assert found.shape == (6,)
    assert fit.log_prob({name: value[0] for name, value in draws.items()}).shape == ()
    with pytest.raises(ShapeError, match="'w' is missing"):
        fit.log_prob({"s": torch.tensor(1.0), "a": torch.zeros(2, 3)})


def test_importance_weights_are_the_models_own_density_less_the_guides(several):
    fit = several
    values, _ = fit.latent.constrain(fit.draws.z[:5])
    for row in range(5):
        point = {name: value[row] for name, value in values.items()}
        trace = pyro.poutine.trace(pyro.condition(constrained, point)).get_trace(torch.tensor(0.5))
        log_w = trace.log_prob_sum() - fit.log_prob(point)
        torch.testing.assert_close(log_w, fit.draws.log_w[row], rtol=1e-4, atol=1e-3)


def test_reweighting_mends_a_poor_fit():
    # Stopped long before it has converged, but wide enough to be reweighted.
    def wide(model):
        return AutoFlow(model, None, init_scale=3.0)

    poor = quick(guide=wide, max_steps=1, precondition=False).run(Y)
    mean, sd = posterior(Y)
    raw, mended = poor.summary()["mu"], poor.summary(reweighted=True)["mu"]
    assert abs(raw.sd / sd - 1) > 1
    # ESS of some hundred draws: standard errors of 0.05 sd; the margins are four times that.
    assert abs(mended.mean - mean) < 0.25 * sd
    assert abs(mended.sd / sd - 1) < 0.2
    draws = poor.resample(1000, seed=0, deterministic=True)
    assert abs(float(draws["mu"].mean()) - mean) < 0.3 * sd
    torch.testing.assert_close(draws["twice"], 2 * draws["mu"])
    assert torch.equal(draws["mu"], poor.resample(1000, seed=0)["mu"])


# ------------------------------------------------------------------------------- telling


def test_summary_is_a_table(fit):
    table = fit.summary()
    draws = fit.draws.z[:, 0].double()
    row = table["mu"]
    assert math.isclose(row.mean, float(draws.mean()), rel_tol=1e-5)
    assert math.isclose(row.sd, float(draws.std()), rel_tol=1e-5)
    assert math.isclose(row.q5, float(draws.quantile(0.05)), abs_tol=0.01)
    assert list(table) == ["mu", "twice"]
    assert len(table) == 2
    text = str(table)
    assert "mean" in text
    assert "95%" in text
    assert "k-hat" in text
    assert "<table>" in table._repr_html_()
    with pytest.raises(KeyError, match="there are mu, twice"):
        table["nu"]


def test_summary_names_elements(several):
    table = several.summary()
    assert list(table)[:4] == ["w[0]", "w[1]", "w[2]", "s"]
    assert "a[1, 2]" in table
    with pytest.raises(KeyError, match=r"'w' has 3 rows.*w\[0\], w\[1\], w\[2\]; take one"):
        table["w"]


def test_a_long_list_of_rows_is_shortened():
    table = Summary.of({"theta": torch.zeros(5, 300)}, torch.zeros(5))
    with pytest.raises(KeyError) as caught:
        table["theta"]
    assert "theta[0], " in str(caught.value)
    assert "..., theta[299]" in str(caught.value)
    assert len(str(caught.value)) < 250


def test_report_and_repr(fit):
    text = fit.report
    for word in ("1 latents (mu)", "converged", "path", "64 particles", "seed 0", "k-hat", "plate"):
        assert word in text
    assert "k-hat" in repr(fit)
    assert fit.engine in ("compiled", "eager")
    assert fit.engine_reason
    assert str(fit.timing) in text
    assert f"{fit.timing.steps} steps of training" in text
    assert fit.elbo_se < 0.05


def test_impossible_draws_are_told_not_hidden():
    def model():
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.factor("wall", torch.where(mu < 2.0, 0.0, -math.inf))

    fit = quick(model, guide=lambda m: AutoFlow(m, None, init_scale=1.0), max_steps=2).run()
    assert fit.elbo == -math.inf
    assert fit.draws.num_bad > 0
    assert "have no finite density" in fit.report
    # The weights still work: log P(mu < 2) of a standard normal. Standard error about 0.01.
    assert abs(fit.log_evidence()[0] - math.log(0.97725)) < 0.05


# -------------------------------------------------------------------------------- files


def test_a_loaded_fit_is_the_same_without_the_model(fit, tmp_path):
    fit.save(tmp_path / "fit.pt")
    again = load(tmp_path / "fit.pt")
    assert again.elbo == fit.elbo
    assert again.khat == fit.khat
    assert again.log_evidence() == fit.log_evidence()
    assert torch.equal(again.losses, fit.losses)
    assert again.why_stopped == fit.why_stopped
    assert again.why_stopped.detail == fit.why_stopped.detail
    assert str(again.summary()) == str(fit.summary())  # deterministic sites included
    both = [one.resample(9, seed=1, deterministic=True)["twice"] for one in (again, fit)]
    assert torch.equal(*both)
    with pytest.raises(NotSetUpError, match="model=model"):
        again.sample(2, deterministic=True)
    draws = fit.sample(5, seed=1)
    assert torch.equal(again.sample(5, seed=1)["mu"], draws["mu"])
    assert torch.equal(again.log_prob(draws), fit.log_prob(draws))
    assert again.report.splitlines()[-1] == fit.report.splitlines()[-1]
    assert again.model is None
    with pytest.raises(NotSetUpError, match="model=model"):
        again.require_model()
    again.save(tmp_path / "again.pt")
    assert load(tmp_path / "again.pt").elbo == fit.elbo


def test_loading_with_the_model_gives_deterministic_sites(fit, tmp_path):
    fit.save(tmp_path / "fit.pt")
    again = load(tmp_path / "fit.pt", model=conjugate, args=(Y,))
    draws = again.sample(4, seed=2, deterministic=True)
    torch.testing.assert_close(draws["twice"], 2 * draws["mu"])
    assert again.args == (Y,)
    assert list(pyro.get_param_store()) == []


@pytest.mark.parametrize("guide", ["iaf*2", "planar*2|radial|affine", "tril", "auto"])
def test_every_named_flow_survives(guide, tmp_path):
    # With a Gaussian stage, which whitens, for one of them.
    options = {"guide": guide, "max_steps": 15, "precondition": guide == "auto"}
    fit = quick(constrained, **options).run(torch.tensor(0.5))
    fit.save(tmp_path / "fit.pt")
    again = load(tmp_path / "fit.pt")
    draws = fit.sample(5, seed=1)
    torch.testing.assert_close(again.log_prob(draws), fit.log_prob(draws))


def test_options_and_outer_survive(tmp_path):
    def guide(model):
        return AutoFlow(model, "iaf*2", outer="full", hidden_dim=(5, 4))

    options = {"guide": guide, "max_steps": 15, "precondition": False}
    fit = quick(constrained, **options).run(torch.tensor(0.5))
    fit.save(tmp_path / "fit.pt")
    draws = fit.sample(5, seed=1)
    torch.testing.assert_close(load(tmp_path / "fit.pt").log_prob(draws), fit.log_prob(draws))


def test_a_flow_without_a_name_is_asked_for(tmp_path):
    fit = quick(guide=make_flow("planar*2", 1), max_steps=15, precondition=False).run(Y)
    fit.save(tmp_path / "fit.pt")
    with pytest.raises(FileError, match="flow=..."):
        load(tmp_path / "fit.pt")
    again = load(tmp_path / "fit.pt", flow=make_flow("planar*2", 1))
    draws = fit.sample(5, seed=1)
    torch.testing.assert_close(again.log_prob(draws), fit.log_prob(draws))
    with pytest.raises(FileError, match="not shaped"):
        load(tmp_path / "fit.pt", flow=make_flow("planar*3", 1))


def test_models_parameters_survive(tmp_path):
    def model(y):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, scale), obs=y)
        pyro.deterministic("used", scale * torch.ones(()))

    fit = quick(model, max_steps=50).run(Y)
    fit.save(tmp_path / "fit.pt")
    again = load(tmp_path / "fit.pt", model=model, args=(Y,))
    torch.testing.assert_close(again.params["scale"], fit.params["scale"])
    torch.testing.assert_close(
        again.sample(2, deterministic=True)["used"], fit.params["scale"].expand(2)
    )
    assert "scale" not in pyro.get_param_store()
    with pytest.raises(ModelError, match="parameter 'scale' is in the file only"):
        load(tmp_path / "fit.pt", model=conjugate, args=(Y,))


def test_a_mismatched_model_is_refused_with_the_difference(fit, tmp_path):
    fit.save(tmp_path / "fit.pt")
    with pytest.raises(ModelError, match=r"site 'mu' has|site 'theta' is new"):
        load(tmp_path / "fit.pt", model=eight_schools)


def test_loading_in_another_process_without_the_model(fit, tmp_path):
    path = tmp_path / "fit.pt"
    fit.save(path)
    code = f"""
    import torch, pyro_nfvi
    torch.set_num_threads(1)
    fit = pyro_nfvi.load({str(path)!r})
    print(float(fit.sample(5, seed=3)["mu"].sum()), fit.elbo)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    total, elbo = map(float, run.stdout.split())
    assert math.isclose(total, float(fit.sample(5, seed=3)["mu"].sum()), rel_tol=1e-5)
    assert elbo == fit.elbo


def test_the_file_needs_no_unpickling_of_code(fit, tmp_path):
    fit.save(tmp_path / "fit.pt")
    held = torch.load(tmp_path / "fit.pt", weights_only=True)
    header = json.loads(held["pyro_nfvi"])
    assert header["kind"] == "fit"
    assert header["versions"]["torch"] == torch.__version__


# ------------------------------------------------------------------------------ bad files


def test_truncated_foreign_and_missing_files(fit, tmp_path):
    path = tmp_path / "fit.pt"
    fit.save(path)
    whole = path.read_bytes()
    for cut in (0, 3, 100, *range(4000, len(whole), len(whole) // 16), len(whole) - 10):
        path.write_bytes(whole[:cut])
        with pytest.raises(FileError, match=r"truncated|damaged"):
            load(path)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(FileError, match="no fit of pyro_nfvi"):
        load(tmp_path / "text")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(FileError, match="torch file, but no fit"):
        load(tmp_path / "other.pt")
    torch.save(conjugate, tmp_path / "code.pt")  # would need unpickling
    with pytest.raises(FileError, match="no fit of pyro_nfvi"):
        load(tmp_path / "code.pt")
    path.write_bytes(whole)
    with pytest.raises(FileError, match=r"no file .*nothing.*Files of this kind in .*fit\.pt"):
        load(tmp_path / "nothing")
    with pytest.raises(FileError, match=r"is a folder.*fit\.pt"):
        load(tmp_path)
    with pytest.raises(FileError, match="There is no folder"):
        load(tmp_path / "no" / "fit.pt")


def test_a_changed_byte_is_noticed(fit, tmp_path):
    """Numbers that were harmed on the way would load as other numbers."""
    path = tmp_path / "fit.pt"
    fit.save(path)
    whole = bytearray(path.read_bytes())
    rng, harmless = random.Random(0), 0
    for _ in range(60):
        harmed = bytearray(whole)
        # Away from the directory at the end, in which some fields mean nothing.
        harmed[rng.randrange(100, len(whole) - 4000)] ^= 0xFF
        path.write_bytes(harmed)
        with contextlib.suppress(FileError):
            again = load(path)
            # Read after all: the byte was padding between the parts.
            assert torch.equal(again.draws.z, fit.draws.z)
            assert torch.equal(again.losses, fit.losses)
            harmless += 1
    assert harmless < 30


def test_a_checkpoint_is_no_fit_and_newer_files_say_so(tmp_path):
    quick(checkpoint=tmp_path / "c", max_steps=5).run(Y)
    with pytest.raises(FileError, match="holds a checkpoint of pyro_nfvi, not a fit"):
        load(tmp_path / "c")
    header = {"layout": 99, "kind": "fit", "versions": {"pyro_nfvi": "9.0"}, "spec": {}}
    torch.save({"pyro_nfvi": json.dumps(header), "tensors": {}}, tmp_path / "new")
    with pytest.raises(FileError, match=r"9\.0, which is newer"):
        load(tmp_path / "new")
    header = {"layout": 1, "kind": "fit", "versions": {}, "spec": {}}
    torch.save({"pyro_nfvi": json.dumps(header), "tensors": {}}, tmp_path / "hollow")
    with pytest.raises(FileError, match="damaged"):
        load(tmp_path / "hollow")


def test_a_failed_save_loses_nothing(fit, tmp_path, monkeypatch):
    path = tmp_path / "fit.pt"
    fit.save(path)
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(FileError, match=r"No space left.*as it was.*another folder"):
            fit.save(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(FileError, match="No space left"):
            fit.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["fit.pt"]
    with pytest.raises(FileError, match="Make the folder"):
        fit.save(tmp_path / "missing" / "fit.pt")
    with pytest.raises(FileError, match="That is a folder"):
        fit.save(tmp_path)


# ------------------------------------------------------------------------------- upstairs


def test_arviz_and_pictures_are_one_call_away(fit):
    pytest.importorskip("arviz")
    pytest.importorskip("matplotlib")
    from matplotlib import pyplot

    idata = fit.to_arviz(num_samples=100)
    assert idata.posterior["mu"].shape == (1, 100)
    assert "twice" in idata.posterior
    for figure in (
        fit.plot_loss(),
        fit.plot_marginals(),
        fit.plot_marginals({"mu": torch.randn(50)}),
    ):
        assert figure.axes
        pyplot.close(figure)


@pytest.mark.slow
def test_arviz_of_a_model_with_parameters_sees_the_trained_ones_and_leaks_nothing():
    pytest.importorskip("arviz")

    def model(y):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, scale), obs=y)

    fit = quick(model, max_steps=100).run(Y)
    idata = fit.to_arviz(num_samples=50)
    mu = torch.tensor(idata.posterior["mu"].values[0])[:, None]
    expected = dist.Normal(mu, fit.params["scale"]).log_prob(Y)
    found = torch.tensor(idata.log_likelihood["y"].values[0])
    torch.testing.assert_close(found.to(expected), expected, rtol=1e-4, atol=1e-4)
    assert list(pyro.get_param_store()) == []


@pytest.mark.slow
def test_a_fit_with_discrete_sites_loads_with_its_model(tmp_path):
    """The model does not mark its site; NFVI did, and load has to."""

    def mixture(y):
        loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]), 3.0).to_event(1))
        with pyro.plate("data", len(y)):
            which = pyro.sample("which", dist.Categorical(torch.ones(2) / 2))
            pyro.deterministic("own", loc[which], event_dim=0)
            pyro.sample("y", dist.Normal(loc[which], 1.0), obs=y)

    y = torch.tensor([-2.0, 2.0, 2.5])
    fit = quick(mixture, max_steps=100).run(y)
    draws = fit.sample(6, seed=0, deterministic=True)
    assert draws["own"].shape == (6, 3)
    assert bool((draws["own"].unsqueeze(-1) == draws["loc"].unsqueeze(-2)).any(-1).all())
    assert torch.equal(draws["own"], fit.sample(6, seed=0, deterministic=True)["own"])
    fit.save(tmp_path / "fit")
    again = load(tmp_path / "fit", model=mixture, args=(y,))
    assert torch.equal(again.sample(6, seed=0)["loc"], draws["loc"])
    assert again.sample(6, deterministic=True)["own"].shape == (6, 3)
