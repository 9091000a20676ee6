"""The references that the examples compare with are themselves right."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pyro
import pytest
import torch

from pyro_nfvi._pyro_model.initial_values import prior_trace
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)  # as the examples do; the root's fixture takes it back


def example(name, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_an_example_that_fits_by_nfvi_tells_its_verdict(path):
    text = path.read_text("utf-8")
    if "NFVI(" in text:
        assert "tell(" in text or ".verdict" in text or ".report" in text


def test_a_model_of_pymc_is_left_out_where_pymc_is_missing(monkeypatch, tmp_path, capsys):
    target = example("pymc_target", monkeypatch)
    monkeypatch.setitem(sys.modules, "pymc", None)
    monkeypatch.setattr(sys, "argv", ["pymc_target.py", "--smoke", "--out", str(tmp_path)])
    target.main()
    assert "PyMC is not installed here: pip install pymc" in capsys.readouterr().out


def log_joint(model, *args):
    model = pyro.infer.config_enumerate(model)
    return LogJoint(model, args, {}, LatentSpace.from_trace(prior_trace(model, args, {})))


def points(dim, rows=3):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(0))


def test_forward_algorithm_is_the_sum_over_states(monkeypatch):
    markov = example("hidden_markov", monkeypatch)
    _, y = markov.make_data(6)
    summed, by_hand = log_joint(markov.model, y), log_joint(markov.by_hand, y)
    z = points(summed.latent.dim)
    torch.testing.assert_close(summed(z), by_hand(z))


def test_a_network_is_the_same_function_with_units_exchanged_or_flipped(monkeypatch):
    net = example("neural_network", monkeypatch)
    inner, shift, outer = torch.randn(3, 4, net.UNITS, generator=torch.Generator().manual_seed(0))
    bias, x = torch.randn(4), torch.linspace(-2, 2, 7)
    found = net.network(x, inner, shift, outer, bias)
    assert found.shape == (4, 7)
    by_hand = [
        sum(float(v) * torch.tanh(w * x + s) for w, s, v in zip(inner[i], shift[i], outer[i]))
        / net.UNITS**0.5
        + bias[i]
        for i in range(4)
    ]
    torch.testing.assert_close(found, torch.stack(by_hand))
    order = torch.randperm(net.UNITS, generator=torch.Generator().manual_seed(1))
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0])
    other = net.network(x, *((sign * part)[:, order] for part in (inner, shift, outer)), bias)
    torch.testing.assert_close(other, found)


def test_change_points_table_is_the_sum_over_places(monkeypatch):
    change = example("change_point", monkeypatch)
    y = change.make_data()[10:20]
    joint = log_joint(change.model, y)
    assert joint.latent.dim == 3
    # Importance weights of exact draws, from a normal fitted to them, are even: their logarithm
    # varies no more than the normal does from the posterior.
    draws = change.exact_draws(y, 4000)
    z, _ = joint.latent.unconstrain({name: draws[name] for name in change.NAMES})
    grid = torch.cartesian_prod(*(torch.linspace(-9, 9, 61),) * 2, torch.linspace(-2.2, 2.2, 41))
    with torch.no_grad():
        mass = torch.cat([joint(part) for part in grid.split(20000)]).softmax(0)
    mean = (mass[:, None] * grid).sum(0)
    sd = (mass[:, None] * (grid - mean).square()).sum(0).sqrt()
    # 4000 draws: standard error 0.016 sds; 0.1 sds by chance in less than 1e-8.
    assert float(((z.mean(0) - mean).abs() / sd).max()) < 0.1
    assert float((z.std(0) / sd - 1).abs().max()) < 0.1


def test_grid_of_the_gaussian_process_is_fine_enough(monkeypatch):
    process = example("gaussian_process", monkeypatch)
    x, y = process.make_data()
    coarse, fine = (process.grid_draws(x[:8], y[:8], 20000, points) for points in (20, 32))
    for name in process.NAMES:
        one, two = coarse[name].log(), fine[name].log()
        # The coarse grid's cell is 0.3; standard error of each mean 0.007 sds.
        assert abs(float((one.mean() - two.mean()) / two.std())) < 0.06


def test_hospitals_have_the_moments_of_weighted_draws_of_the_prior(monkeypatch):
    hospitals = example("hospitals", monkeypatch)
    deaths, patients = torch.tensor([0.0, 4.0, 4.0]), torch.tensor([10.0, 20.0, 20.0])
    found = hospitals.exact(deaths, patients, (-7.0, 3.0), (1e-3, 5.0), 100)
    generator, draws = torch.Generator().manual_seed(0), 200_000
    mean = -2 + torch.randn(draws, generator=generator)
    spread = torch.randn(draws, generator=generator).abs()
    level = mean[:, None] + spread[:, None] * torch.randn(draws, 3, generator=generator)
    risk = pyro.distributions.Binomial(total_count=patients, logits=level)
    weights = risk.log_prob(deaths).sum(-1).softmax(0)
    for name, value in (("mean", mean), ("spread", spread), ("level", level)):
        middle = weights @ value
        sd = (weights @ value.square() - middle.square()).sqrt()
        # Some 60,000 effective draws: 0.02 sds are five standard errors.
        assert ((found[name][0] - middle) / sd).abs().max() < 0.02
        assert (found[name][1] / sd - 1).abs().max() < 0.02
