"""A flow that is registered from outside works by its name wherever a flow is named."""

from __future__ import annotations

import sys

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_nfvi as nfvi
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows import Flow, ParamFlow, make_flow, register_flow
from pyro_nfvi.flows._registry import _FAMILIES

SOURCE = """
import torch
from pyro_nfvi.flows import ParamFlow, register_flow


class Shift(ParamFlow):
    def init_params(self):
        return {"loc": torch.zeros(self.dim)}

    def _forward(self, x, theta):
        return x + theta["loc"], torch.zeros_like(x).sum(-1)

    def _inverse(self, y, theta):
        return y - theta["loc"], torch.zeros_like(y).sum(-1)


register_flow("shift-of-mine", Shift, num_layers=2, options=("hidden_dim",))
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of a user's own that registers a flow when it is imported."""
    (tmp_path / "flows_of_mine.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "flows_of_mine"
    sys.modules.pop("flows_of_mine", None)
    _FAMILIES.pop("shift-of-mine", None)


@pytest.fixture
def name(module):
    __import__(module)
    return "shift-of-mine"


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def test_in_formulas(name):
    assert len(make_flow(name, 3).layers()) == 2
    flow = make_flow(f"{name}*3|affine", 3, 2, hidden_dim=5)
    assert [type(layer.flow).__name__ for layer in flow.layers()] == 3 * ["Shift"] + [
        "DiagonalAffine"
    ]
    assert flow.layers()[0].flow.params.hidden.out_features == 5
    with pytest.raises(OptionError, match="no option gate"):
        make_flow(name, 3, gate="affine")


def test_in_guides(name):
    guide = nfvi.AutoFlow(model, f"{name}*2").setup(torch.tensor(1.0))
    assert guide.sample_posterior(4)["mu"].shape == (4,)


def test_in_fits_and_their_files(name, tmp_path):
    y = torch.tensor(1.0)
    fit = nfvi.NFVI(model, name, max_steps=5, seed=0, progress=False).run(y)
    fit.save(tmp_path / "mine.nfvi")
    again = nfvi.load(tmp_path / "mine.nfvi", model=model, args=(y,))
    z = torch.zeros(2, 1)
    assert torch.equal(again.guide.density().log_prob(z), fit.guide.density().log_prob(z))


def test_in_the_command_of_the_vae(module, tmp_path):
    from pyro_nfvi.vae.train._command import main

    out = tmp_path / "run"
    short = ["--data", "digits", "--epochs", "1", "--batch-size", "1000", "--latent-dim", "2"]
    more = ["--hidden", "4", "--nll-samples", "0", "--no-pictures", "--quiet", "--out", str(out)]
    flow = ["--flow", "shift-of-mine*2", "--modules", module]
    assert main([*short, *more, *flow]) == 0
    layers = nfvi.vae.load_vae(out).flow.layers()
    assert [type(layer.flow).__name__ for layer in layers] == 2 * ["Shift"]


def test_a_module_that_is_not_there_is_told(capsys, tmp_path):
    from pyro_nfvi.vae.train._command import main

    assert main(["--modules", "no_such_module", "--out", str(tmp_path)]) == 1
    assert "--modules names 'no_such_module'" in capsys.readouterr().err


def test_a_name_is_registered_once(name):
    shift = sys.modules["flows_of_mine"].Shift

    class Other(ParamFlow):
        pass

    register_flow(name, shift)  # the same again, as by importlib.reload
    for taken in (name, "iaf"):
        with pytest.raises(OptionError, match="taken"):
            register_flow(taken, Other)


@pytest.mark.parametrize("bad", ["", "Upper", "a b", "a*2", "a|b", "2a", 3])
def test_names_that_cannot_stand_in_a_formula(bad):
    with pytest.raises(OptionError, match="small letters"):
        register_flow(bad, Flow)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda dim, context_dim: torch.nn.Identity(), "build a Flow"),
        (lambda dim, context_dim: make_flow("affine", dim + 1), "asked for dim=3"),
    ],
)
def test_a_callable_that_builds_something_else(make, message):
    register_flow("not-a-flow", make)
    try:
        with pytest.raises(OptionError, match=message):
            make_flow("not-a-flow", 3)
    finally:
        del _FAMILIES["not-a-flow"]
