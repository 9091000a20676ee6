"""Pyro's own trace agrees with the log joint, or says where it does not."""

from __future__ import annotations

import copy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from engine.test_laws import needs_compiler
from pyro import poutine
from pyro.distributions import constraints, transforms

from pyro_nfvi import NFVI
from pyro_nfvi._budget import Budget
from pyro_nfvi._engine.compiled_density import CompiledDensity
from pyro_nfvi._pyro_model.initial_values import prior_trace
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.model_run import ModelRun
from pyro_nfvi._pyro_model.second_opinion import Opinion, second_opinion
from pyro_nfvi.errors import ModelError
from pyro_nfvi.infer._checks.pyro_density import check_by_pyro
from pyro_nfvi.infer._findings import Level, SecondOpinion, find


def of(model):
    torch.manual_seed(0)
    return LogJoint(model, (), {}, LatentSpace.from_trace(prior_trace(model, (), {})))


def wide(*, validate=None):
    """An affine map of an exponential, which torch declares to have all reals as its support."""
    base = dist.Exponential(torch.tensor(1.0), validate_args=validate)
    shift = transforms.AffineTransform(torch.tensor(1.0), torch.tensor(-2.0))
    x = pyro.sample("x", dist.TransformedDistribution(base, [shift], validate_args=validate))
    pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.5))


class Narrow(dist.Normal):
    """Declares the positive numbers, and is used where it may be negative."""

    support = constraints.real

    def log_prob(self, value):
        if self._validate_args and bool((value < 0).any()):
            raise ValueError("negative")
        return super().log_prob(value)


def rate():
    """Raises at some points under validation alone: those are points that failed."""
    x = pyro.sample("x", dist.Normal(0.3, 0.5))
    pyro.sample("n", dist.Poisson(x), obs=torch.tensor(0.0))


def mixture():
    loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("data", 6, subsample_size=3):
        k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(loc + k, 1.0), obs=torch.zeros(3))


def hidden():
    """NaN under a mask, which counts for neither."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    y = torch.tensor([0.5, float("nan")])
    with pyro.plate("data", 2), poutine.mask(mask=~y.isnan()):
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def matrices():
    """Does not take float64 latents."""
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    mean = torch.ones(5, 3) @ w
    pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=torch.zeros(5))


@pytest.mark.parametrize("model", [mixture, hidden, matrices, lambda: wide(validate=False)])
def test_both_agree(model):
    log_joint = of(model)
    found = second_opinion(log_joint, log_joint.points(8))
    assert (found.draws, found.objections, found.left_out) == (8, (), 0)


def test_a_value_outside_of_a_base_distribution_is_named():
    log_joint = of(wide)
    z = torch.tensor([[0.5], [1.5], [2.0]])
    found = second_opinion(log_joint, z)
    assert found.draws == 3
    assert [(one.site, one.kind) for one in found.objections] == [("x", "support")] * 2
    with pytest.raises(ModelError, match="'x' has values within its declared support"):
        check_by_pyro(log_joint)


def test_a_point_that_fails_is_no_reason_to_stop_and_all_are():
    log_joint = of(rate)
    found = second_opinion(log_joint, torch.tensor([[0.5], [-1.0]]))
    assert [(one.site, one.kind) for one in found.objections] == [("x", "raised")]
    check_by_pyro(log_joint)

    def never():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.validation_enabled(False):
            fn = Narrow(x, 1.0)
        fn._validate_args = torch.distributions.Distribution._validate_args
        pyro.sample("y", fn, obs=torch.tensor(-1.0))

    with pyro.validation_enabled(False):
        log_joint = of(never)
    with pytest.raises(ModelError, match="at any of 16 points.*'y': ValueError: negative"):
        check_by_pyro(log_joint)


def test_other_numbers_are_an_error(monkeypatch):
    log_joint = of(hidden)
    right = ModelRun._total
    monkeypatch.setattr(ModelRun, "_total", lambda *args: right(*args) + 0.01)
    found = second_opinion(log_joint, torch.zeros(2, 1))
    assert {(one.site, one.kind) for one in found.objections} == {("y", "differs")}
    with pytest.raises(ModelError, match="Pyro's own trace scores the model otherwise"):
        check_by_pyro(log_joint)


def test_time_is_bounded_and_what_was_left_out_is_counted():
    log_joint = of(hidden)
    found = second_opinion(log_joint, torch.zeros(5, 1), budget=Budget.start().at_most(0.0))
    assert (found.draws, found.left_out) == (1, 4)
    assert "4 more there was no time" in SecondOpinion(1, left_out=4).sentence()


def test_nothing_of_the_process_changes():
    log_joint = of(mixture)
    state, validation = torch.get_rng_state(), torch.distributions.Distribution._validate_args
    second_opinion(log_joint, torch.zeros(2, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.distributions.Distribution._validate_args == validation


def test_a_fit_is_not_trusted_where_pyro_refuses_its_draws(monkeypatch):
    options = {"guide": "affine", "max_steps": 30, "seed": 0, "explore": "off", "progress": False}
    with pytest.raises(ModelError, match="'x'.*support"):
        NFVI(wide, **options).run()
    # Passed over before training, it is found after it, and the fit is kept.
    monkeypatch.setattr(
        "pyro_nfvi.infer._stages.set_up.check_by_pyro", lambda *args: SecondOpinion(8)
    )
    fit = NFVI(wide, **options).run()
    found = find(fit.training.findings, SecondOpinion)
    assert found.wrong > 0
    assert found.site == "x"
    assert found.level is Level.FAULT
    assert str(fit.verdict) == "do not trust"
    assert any("'x'" in reason for reason in fit.verdict.reasons)


def test_a_right_fit_has_a_quiet_second_opinion():
    fit = NFVI(hidden, guide="affine", max_steps=30, seed=0, explore="off", progress=False).run()
    found = find(fit.training.findings, SecondOpinion)
    assert (found.draws, found.wrong, found.sentence()) == (32, 0, "")


def test_a_fit_of_which_no_draw_was_scored_was_not_looked_at(monkeypatch):
    def model():
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(1.0))

    log_joint = of(model)
    assert check_by_pyro(log_joint).draws == 16
    options = {"guide": "affine", "max_steps": 30, "seed": 0, "explore": "off", "progress": False}
    fit = NFVI(model, **options).run()
    assert find(fit.training.findings, SecondOpinion).level is Level.REMARK
    # The log joint is finite nowhere, when it is run for the comparison.
    monkeypatch.setattr("pyro_nfvi._pyro_model.second_opinion._compare", lambda *args: None)
    assert check_by_pyro(log_joint).draws == 0
    fit = NFVI(model, **options).run()
    found = find(fit.training.findings, SecondOpinion)
    assert (found.draws, found.level) == (0, Level.DOUBT)
    assert fit.verdict != "good"
    assert any("scored none of the draws" in reason for reason in fit.verdict.reasons)
    assert any("no point around the start" in note for note in fit.training.notes)


def process():
    """A Gaussian process whose covariance has a condition number of 1e11."""
    x = torch.linspace(0, 1, 40, dtype=torch.float64)
    rho = pyro.sample("rho", dist.LogNormal(torch.zeros((), dtype=x.dtype), 0.3))
    gap = (x.unsqueeze(-1) - x) / rho[..., None, None]
    cov = torch.exp(-0.5 * gap.square()) + 1e-9 * torch.eye(40, dtype=x.dtype)
    law = dist.MultivariateNormal(torch.zeros_like(x), covariance_matrix=cov)
    pyro.sample("y", law, obs=torch.sin(3 * x))


class Off:
    """Stands in for a log joint, with a relative error."""

    def __init__(self, log_joint, error):
        self.log_joint, self.error = copy.copy(log_joint), error
        self.log_joint.use(None)

    def takes(self, z, subsample):
        return True

    def value_and_grad(self, z, subsample):
        log_p = self.log_joint(z, subsample) * (1 + self.error)
        return log_p, torch.zeros_like(z)


@needs_compiler
def test_rounding_of_an_ill_conditioned_model_is_no_difference():
    log_joint = of(process)
    noise = torch.Generator().manual_seed(0)
    z = 0.3 * torch.randn(16, 1, generator=noise, dtype=torch.float64)
    compiled = CompiledDensity(log_joint)
    off = (compiled.value_and_grad(z, {})[0] / log_joint(z, {}) - 1).abs()
    assert float(off.max()) > 1e-8  # more than the tolerance of well-conditioned models
    log_joint.use(compiled)
    assert second_opinion(log_joint, z) == Opinion(16, ())
    log_joint.use(Off(log_joint, 0.01))
    found = second_opinion(log_joint, z)
    assert len(found.objections) > 8
    assert {one.kind for one in found.objections} == {"differs"}


def test_rounding_excuses_nothing_in_a_well_conditioned_model():
    def model():
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.5, dtype=torch.float64))

    log_joint = of(model)
    log_joint.use(Off(log_joint, 1e-5))
    assert len(second_opinion(log_joint, torch.ones(4, 1, dtype=torch.float64)).objections) == 4


class Raising(Off):
    """Stands in for a log joint, with an error of its own."""

    def __init__(self, log_joint, error):
        super().__init__(log_joint, 0.0)
        self.raised = error

    def value_and_grad(self, z, subsample):
        raise self.raised


def caused(by):
    error = ModelError("the model failed")
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.linalg.LinAlgError("not positive-definite"), False),
        (np.linalg.LinAlgError("singular matrix"), False),
        (ZeroDivisionError("division by zero"), False),
        (AssertionError("underflow in dt"), False),
        (caused(OverflowError("too large")), False),
        (RecursionError("maximum recursion depth exceeded"), True),
        (RuntimeError("shapes do not match"), True),
        (KeyError("x"), True),
        (ValueError("of another kind"), True),
        (caused(TypeError("no such argument")), True),
    ],
    ids=lambda one: type(one).__name__,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_error_of_the_log_joint_is_told_unless_numbers_may_have_led_to_it(error, told, dtype):
    def model():
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0, dtype=dtype), 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.5, dtype=dtype))

    log_joint = of(model)
    log_joint.use(Raising(log_joint, error))
    opinion = second_opinion(log_joint, torch.ones(2, 1, dtype=dtype))
    assert [one.kind for one in opinion.objections] == (["raised"] * 2 if told else [])
    assert opinion.draws == (2 if told else 0)
    inner = error.__cause__ or error
    assert all(type(inner).__name__ in one.reason for one in opinion.objections)
    assert all("by Pyro's trace" in one.reason for one in opinion.objections)


def test_what_the_model_raises_is_told_with_the_site_that_pyro_names():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if broken:
            raise TypeError("the model was changed")
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.5))

    broken = False
    log_joint = of(model)
    broken = True
    (found,) = second_opinion(log_joint, torch.ones(1, 1)).objections
    assert (found.site, found.kind) == ("x", "raised")
    assert "TypeError" in found.reason
