"""Objects in notebooks and terminals: short texts, HTML that is well formed and escaped."""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ET

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_nfvi as nfvi
from pyro_nfvi import NFVI
from pyro_nfvi.diagnostics._verdict import VERDICTS, Verdict
from pyro_nfvi.vae.train._run import Run
from pyro_nfvi.vae.train._run_folder import Progress

#: A name that HTML would take for markup.
NAME = 'a<b>&"c'


def model(y):
    with pyro.plate("rows", 3):
        x = pyro.sample(NAME, dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x.sum(), 1.0), obs=y)


@pytest.fixture(scope="module")
def fit():
    y = torch.tensor([0.5, 1.0, -0.3])
    return NFVI(model, "affine", max_steps=20, explore="off", seed=0, progress=False).run(y)


def views(fit):
    run = fit.mcmc(num_samples=10, warmup_steps=10, num_chains=4, seed=0, progress=False)
    return {
        "Fit": fit,
        "MCMCRun": run,
        "NFVI": NFVI(model, "iaf*2", max_steps=500),
        "guide": fit.guide,
        "guide of nothing": nfvi.AutoIAF(model),
        "flow": nfvi.flows.make_flow("iaf*2|planar*16", 3),
        "density": nfvi.FlowDensity(nfvi.flows.make_flow("nsf*2", 3)),
        "VAE run": Run(None, Progress(epoch=2, step=40, best=81.5, best_epoch=1)),
    }


def test_views_are_short_well_formed_and_escaped(fit):
    for name, one in views(fit).items():
        text, html = repr(one), one._repr_html_()
        assert "\n" not in text, name
        assert 5 < len(text) < 300, (name, text)
        assert "object at 0x" not in text, name
        ET.fromstring(f"<x>{html}</x>")
        assert "<b>&" not in html, name
    for one in (fit.summary(), fit.verdict):
        ET.fromstring(f"<x>{one._repr_html_()}</x>")
    assert "a&lt;b&gt;&amp;" in fit.summary()._repr_html_()


def test_a_fit_shows_its_verdict_and_its_marginals(fit):
    html = fit._repr_html_()
    assert f">{fit.verdict}</span>" in html
    assert html.count("<svg") == 3
    assert f"{fit.elbo:.3f}" in html


def test_each_verdict_has_a_colour_of_its_own_and_its_reasons():
    found = {word: Verdict(word, ["k-hat < 1"], "Go on.")._repr_html_() for word in VERDICTS}
    assert len({html.split("background:")[1][:7] for html in found.values()}) == len(VERDICTS)
    for word, html in found.items():
        assert f">{word}</span>" in html
        assert "k-hat &lt; 1" in html
        assert "Go on." in html


def test_a_long_flow_says_how_many_layers_of_a_kind_it_has():
    assert repr(nfvi.flows.make_flow("affine|iaf*3", 2)) == (
        "Chain(dim=2, DiagonalAffine, 3 x Autoregressive)"
    )


def test_an_estimator_shows_what_is_not_the_default():
    assert repr(NFVI(model)) == "NFVI(model)"
    assert repr(NFVI(model, "iaf*2", seed=3)) == "NFVI(model, guide='iaf*2', seed=3)"


def test_the_package_lists_its_public_names_alone():
    folders = {name for name in dir(nfvi) if name not in nfvi.__all__}
    assert set(nfvi.__all__) <= set(dir(nfvi))
    assert "vae" in folders
    assert [name for name in folders if name.startswith("_")] == ["__version__"]
    for name in dir(nfvi):
        getattr(nfvi, name)


@pytest.mark.parametrize(
    ("call", "wrong", "right"),
    [
        (NFVI, "lr", "optim"),
        (NFVI, "learning_rate", "optim"),
        (NFVI, "num_steps", "max_steps"),
        (NFVI, "max_step", "max_steps"),
        (NFVI, "rng_seed", "seed"),
        (NFVI, "loss", "objective"),
        (NFVI, "progress_bar", "progress"),
        (NFVI, "timeout", "max_seconds"),
        (NFVI, "hidden_dims", "guide=lambda model"),
        (nfvi.to_arviz, "num_draws", "num_samples"),
        (lambda _, **o: nfvi.FitSpec(model, options=o), "num_steps", "max_steps"),
        (lambda _, **o: nfvi.flows.make_flow("iaf", 2, **o), "hidden_dims", "hidden_dim"),
    ],
)
def test_options_by_other_names_are_answered_with_ours(call, wrong, right):
    with pytest.raises(nfvi.errors.OptionError, match=wrong) as caught:
        call(model, **{wrong: 1})
    assert right in str(caught.value).split("It has")[0].split("It takes")[0]


@pytest.mark.parametrize(("wrong", "right"), [("num_warmup", "warmup_steps"), ("chains", "num_c")])
def test_options_of_chains_too(fit, wrong, right):
    for run in (fit.mcmc, fit.to_nuts):
        with pytest.raises(TypeError, match=f"Did you mean {right}"):
            run(**{wrong: 1})


def test_stages_are_logged_by_one_logger_and_silent_by_default(fit, caplog, capsys):
    y = fit.args[0]
    options = {"max_steps": 5, "explore": "off", "seed": 0, "progress": False}
    NFVI(model, "affine", **options).run(y)
    assert capsys.readouterr() == ("", "")
    with caplog.at_level(logging.INFO, logger="pyro_nfvi"):
        NFVI(model, "affine", **options).run(y)
    lines = [one.getMessage() for one in caplog.records if one.name == "pyro_nfvi"]
    assert any(line.startswith("NFVI: training affine: 5 steps") for line in lines)
