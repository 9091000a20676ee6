"""NFVI end to end: right answers, options, errors, and hands off the user's process."""

import math
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from infer.models import NOISE_SD, PRIOR_SD, Y, conjugate, evidence, posterior
from pyro.infer.autoguide import init_to_mean
from torch import nn

from pyro_nfvi import NFVI, AutoFlow, AutoPlanar, Fit, load
from pyro_nfvi.distributions import StudentT
from pyro_nfvi.errors import ModelError, ModelWarning, OptionError
from pyro_nfvi.flows import make_flow
from pyro_nfvi.objectives import TotalELBO


def quick(model=conjugate, guide="affine", **options):
    chosen = {"max_steps": 300, "seed": 0, "progress": False, "explore": "off"} | options
    return NFVI(model, guide, **chosen)


def test_conjugate_posterior_and_evidence():
    # The family holds the posterior, so the bound is the evidence: only float32 and the end of
    # the optimisation remain.
    fit = quick(max_steps=1500).run(Y)
    mean, sd = posterior(Y)
    row = fit.summary()["mu"]
    assert abs(row.mean - mean) < 0.1 * sd  # 2000 draws: standard error 0.022 sd
    assert abs(row.sd / sd - 1) < 0.08  # standard error 0.016
    assert abs(fit.elbo - evidence(Y)) < 0.005
    value, se = fit.log_evidence()
    assert abs(value - evidence(Y)) < 0.005
    assert se < 0.005
    assert fit.khat < 0.7
    assert fit.ess > 1900
    assert fit.why_stopped == "converged"
    assert "step" in fit.why_stopped.detail


@pytest.mark.parametrize("objective", ["path", "total", TotalELBO()])
def test_objectives(objective):
    fit = quick(objective=objective, max_steps=150, stop=False).run(Y)
    assert abs(fit.elbo - evidence(Y)) < 0.02


def test_losses_are_negative_bounds_in_nats_one_per_step():
    fit = quick(stop=False, max_steps=200, precondition=False).run(Y)
    assert fit.losses.shape == (200,)
    assert fit.losses[0] > fit.losses[-20:].mean() + 1
    assert abs(fit.losses[-20:].mean() + fit.elbo) < 0.5
    assert fit.why_stopped == "max_steps"


# ------------------------------------------------------------------------------- guides


@pytest.mark.parametrize(
    "guide",
    [
        "auto",
        "planar*4",
        AutoPlanar,
        lambda model: AutoFlow(model, "radial*2", init_scale=0.2),
        AutoFlow(conjugate, "affine"),
        make_flow("affine", 1),
    ],
    ids=["auto", "formula", "class", "callable", "instance", "flow"],
)
def test_guides(guide):
    fit = quick(guide=guide, max_steps=60).run(Y)
    assert isinstance(fit, Fit)
    assert isinstance(fit.guide, AutoFlow)
    assert abs(fit.summary()["mu"].mean - posterior(Y)[0]) < 0.5


def test_a_guide_instance_is_trained_in_place_and_goes_on():
    guide = AutoFlow(conjugate, "affine")
    nfvi = quick(guide=guide, max_steps=60, stop=False)
    first = nfvi.run(Y)
    assert first.guide is guide
    with torch.no_grad():
        guide.loc.add_(1.0)
    second = nfvi.run(Y)
    # It starts where it was left, not at a Gaussian fit.
    assert second.losses[0] > first.losses[-1] + 0.1


def test_a_flow_is_copied_so_that_each_run_starts_alike():
    nfvi = quick(guide=make_flow("affine", 1), max_steps=30)
    assert torch.equal(nfvi.run(Y).losses, nfvi.run(Y).losses)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guide": "ifa*2"}, "Did you mean 'iaf'"),
        ({"guide": 3}, "got int"),
        ({"guide": pyro.infer.autoguide.AutoDelta(conjugate)}, "AutoDelta is a point"),
        ({"num_particles": 0}, "num_particles needs to be a whole number of at least 1; got 0"),
        ({"num_particles": 2.5}, "num_particles"),
        ({"max_steps": 0}, "max_steps is at least 1; got 0"),
        ({"max_steps": 10.0}, "max_steps is a whole number"),
        ({"max_seconds": -1}, "max_seconds is a positive time"),
        ({"objective": "elbo"}, "'path', 'total'"),
        ({"engine": "jit"}, "engine is one of auto, compiled, eager"),
        ({"seed": "a"}, "seed needs to be a whole number"),
        ({"callbacks": print}, "callbacks is a sequence"),
        ({"optim": -1.0}, "positive learning rate"),
        ({"optim": "adam"}, "positive learning rate"),
        ({"resume": True}, "checkpoint=path"),
    ],
)
def test_wrong_options_are_refused_at_once(options, message):
    with pytest.raises(OptionError, match=message.replace("*", r"\*")):
        quick(**options)


def test_wrong_models_and_guides():
    with pytest.raises(OptionError, match="Pyro model to call"):
        NFVI(3)
    with pytest.raises(OptionError, match="guide returned int"):
        quick(guide=lambda model: 3).run(Y)
    ready = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    with pytest.raises(OptionError, match="pass a callable"):
        quick(optim=ready)


@pytest.mark.parametrize(
    "optim",
    [
        0.02,
        lambda params: torch.optim.RMSprop(params, lr=0.01),
        pyro.optim.Adam({"lr": 0.02}),
        pyro.optim.ClippedAdam({"lr": 0.02}),
    ],
    ids=["rate", "callable", "pyro", "pyro-clipped"],
)
def test_optimisers(optim):
    assert abs(quick(optim=optim, max_steps=100).run(Y).elbo - evidence(Y)) < 0.1


# ----------------------------------------------------------------------------- bad input


def test_bad_models_are_named():
    with pytest.raises(ModelError, match="no continuous latent sites"):
        quick(lambda: pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))).run()
    with pytest.raises(ModelError, match=r"'y' has 1 NaN of 5"):
        quick().run(torch.where(Y > 3.5, torch.nan, Y))
    with pytest.warns(ModelWarning, match="prior of mu"):
        quick(lambda: pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0)), max_steps=5).run()

    def forgetful(x, y=None):
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(ModelError, match="argument 'y' is None"):
        quick(forgetful).run(Y)
    with pytest.raises(ModelError, match="argument 'y' is None"):
        quick(forgetful).run(Y, y=None)
    with pytest.warns(ModelWarning, match="prior of mu, y"):
        quick(lambda: forgetful(Y), max_steps=5).run()

    def poisson():
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("k", dist.Poisson(rate))

    with pytest.raises(ModelError, match="'k' is discrete"):
        quick(poisson).run()


def test_numbers_of_two_types_are_told_apart():
    def model(x):
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal((x @ b).sum(), 1.0), obs=torch.tensor(1.0))

    with pytest.raises(
        ModelError, match=r"(?:dtype|scalar type)[^\n]*NumPy arrays are float64: give them"
    ):
        quick(model, max_steps=5).run(torch.ones(3, 2, dtype=torch.float64))


def test_infinite_initial_loss_is_an_error():
    def model():
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.factor("wall", torch.where(mu > 100, 0.0, -math.inf))

    with pytest.raises(ModelError, match=r"any of 100 initial points .*'wall' \(100 of 100\)"):
        quick(model).run()


@pytest.mark.slow
def test_another_structure_on_the_second_run():
    def model(y):
        with pyro.plate("groups", len(y)):
            a = pyro.sample("a", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("y", dist.Normal(a, 1.0), obs=y)

    nfvi = quick(model, guide=AutoFlow(model, "affine"), max_steps=20)
    nfvi.run(Y)
    with pytest.raises(ModelError, match="'a'"):
        nfvi.run(Y[:3])
    # A guide named by a formula is built for each run's own arguments.
    named = quick(model, max_steps=20)
    named.run(Y)
    assert named.run(Y[:3]).latent.dim == 3


# ----------------------------------------------------------------- discrete, subsampling


def test_discrete_sites_are_enumerated():
    y = torch.tensor([-3.0, -2.5, 2.0, 3.0, 2.5])

    def mixture(y, infer):
        loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]), 3.0).to_event(1))
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2) / 2), infer=infer)
            pyro.sample("y", dist.Normal(loc[..., k], 1.0), obs=y)

    def by_hand(y):
        loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]), 3.0).to_event(1))
        parts = dist.Normal(loc.unsqueeze(-1), 1.0).log_prob(y) - math.log(2)
        pyro.factor("y", parts.logsumexp(-2).sum(-1))

    def guide(model):
        return AutoFlow(model, "affine", init_loc_fn=init_to_mean)

    other = quick(by_hand, guide, max_steps=40, stop=False).run(y)
    for infer in ({"enumerate": "parallel"}, {}):
        fit = quick(mixture, guide, max_steps=40, stop=False).run(y, infer)
        assert fit.log_joint.how == "vmap"
        # Same noise and same gradients: the same fit up to rounding.
        torch.testing.assert_close(fit.losses, other.losses, rtol=1e-3, atol=1e-3)


def test_subsampled_data():
    data = torch.linspace(-1, 3, 40)

    def model():
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 5.0))
        with pyro.plate("data", 40, subsample_size=10) as index:
            pyro.sample("y", dist.Normal(mu, 2.0), obs=data[index])

    fit = quick(model, max_steps=800).run()
    # Judged on all data: precision 1 / 25 + 40 / 4, and the exact evidence.
    assert fit.why_stopped == "max_steps"
    assert abs(fit.summary()["mu"].mean - 1.0) < 0.1
    whole = dist.MultivariateNormal(torch.zeros(40), 4 * torch.eye(40) + 25).log_prob(data)
    found, error = fit.log_evidence()
    assert abs(found - float(whole)) < 5 * error + 1e-3
    assert fit.verdict != "do not trust"


def test_draws_of_two_subsampled_plates_are_scored_when_all_data_is_given(tmp_path):
    data = torch.linspace(-1, 3, 40)

    def model(count=10):
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 5.0))
        for name in ("data", "more"):
            with pyro.plate(name, 40, subsample_size=count) as index:
                pyro.sample(f"y_{name}", dist.Normal(mu, 2.0), obs=data[index])

    fit = quick(model, max_steps=400).run()
    assert math.isnan(fit.khat)
    assert "subsample_size=None" in fit.verdict.reasons[0]
    fit.save(tmp_path / "fit.pt")
    again = load(tmp_path / "fit.pt", model=model, kwargs={"count": None})
    assert again.khat < 1
    both = torch.cat([data, data])
    whole = dist.MultivariateNormal(torch.zeros(80), 4 * torch.eye(80) + 25).log_prob(both)
    found, error = again.log_evidence()
    assert abs(found - float(whole)) < 5 * error + 1e-3
    with pytest.raises(ModelError, match="subsamples"):
        fit.log_evidence()
    with pytest.raises(ModelError, match="subsamples"):
        fit.resample(10)
    assert "subsamples" in fit.report


# ------------------------------------------------------------------- the model's parameters


def test_models_parameters_are_trained_and_returned():
    def model(y):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), PRIOR_SD))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, scale), obs=y)
        pyro.deterministic("scale_used", scale * torch.ones(()))

    y = 3 * torch.randn(200)
    fit = quick(model, max_steps=1500, optim=0.02).run(y)
    # The maximum of the marginal likelihood: the sample sd, up to 1 part in 200.
    assert abs(fit.params["scale"] / y.std() - 1) < 0.02
    assert "scale" not in pyro.get_param_store()
    # Draws see the trained value, also after the user's store has changed.
    assert torch.allclose(fit.sample(3, deterministic=True)["scale_used"], fit.params["scale"])
    pyro.param("scale", torch.tensor(77.0))
    assert torch.allclose(fit.sample(3, deterministic=True)["scale_used"], fit.params["scale"])


def test_users_store_gives_starting_values_and_is_not_changed():
    def model(y):
        shift = pyro.param("shift", torch.tensor(0.0))
        mu = pyro.sample("mu", dist.Normal(shift, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    pyro.param("shift", torch.tensor(10.0))
    pyro.param("bystander", torch.tensor(1.0))
    fit = quick(model, max_steps=3, stop=False, precondition=False).run(Y)
    assert abs(fit.params["shift"] - 10.0) < 0.1
    assert float(fit.params["shift"]) != 10.0
    assert sorted(pyro.get_param_store()) == ["bystander", "shift"]
    assert pyro.param("shift").item() == 10.0


def test_modules_of_the_user_are_trained_in_place():
    net = nn.Linear(2, 1)
    before = net.weight.detach().clone()
    x = torch.randn(30, 2)
    y = x @ torch.tensor([1.0, -1.0])

    def model(x, y):
        pyro.module("net", net)
        noise = pyro.sample("noise", dist.LogNormal(torch.tensor(0.0), 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(net(x).squeeze(-1), noise), obs=y)

    fit = quick(model, max_steps=600, optim=0.02).run(x, y)
    assert not torch.equal(net.weight, before)
    torch.testing.assert_close(fit.params["net$$$weight"], net.weight.detach())
    assert (net.weight.detach() - torch.tensor([1.0, -1.0])).abs().max() < 0.2


# ------------------------------------------------------------------------ the user's process


def test_same_seed_same_result_whatever_the_global_state():
    torch.manual_seed(1)
    one = quick(guide="iaf*2", max_steps=20).run(Y)
    torch.manual_seed(2)
    torch.randn(100)
    two = quick(guide="iaf*2", max_steps=20).run(Y)
    assert torch.equal(one.losses, two.losses)
    assert torch.equal(one.draws.z, two.draws.z)
    other = quick(guide="iaf*2", max_steps=20, seed=1).run(Y)
    assert not torch.equal(one.losses, other.losses)


def test_no_seed_is_a_new_seed_each_time_and_is_told():
    torch.manual_seed(0)
    one = quick(seed=None, max_steps=20).run(Y)
    torch.manual_seed(0)
    two = quick(seed=None, max_steps=20).run(Y)
    assert not torch.equal(one.losses, two.losses)
    again = quick(seed=one.training.settings.seed, max_steps=20).run(Y)
    assert torch.equal(one.losses, again.losses)


def test_nothing_of_the_process_changes():
    torch.manual_seed(3)
    numpy_state = np.random.get_state  # noqa: NPY002
    states = (torch.get_rng_state(), numpy_state()[1].tolist(), random.getstate())
    pyro.enable_validation(True)
    dtype, threads, grad = (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
    )
    quick(guide="iaf*2", max_steps=30).run(Y)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == numpy_state()[1].tolist()
    assert states[2] == random.getstate()
    assert torch.distributions.Distribution._validate_args
    assert pyro.poutine.util.is_validation_enabled()
    assert (dtype, threads, grad) == (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
    )
    assert list(pyro.get_param_store()) == []
    assert pyro.poutine.runtime._PYRO_STACK == []


@pytest.mark.slow
def test_a_second_fit_in_the_process_does_not_touch_the_first():
    first = quick(max_steps=30).run(Y)
    before = first.sample(5, seed=0)["mu"]
    second = quick(max_steps=30).run(Y + 100)
    assert torch.equal(first.sample(5, seed=0)["mu"], before)
    assert not torch.equal(second.sample(5, seed=0)["mu"], before)
    # And a guide of the same name in the user's own SVI is left alone.
    guide = AutoFlow(conjugate, "affine")
    svi = pyro.infer.SVI(conjugate, guide, pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO())
    for _ in range(5):
        svi.step(Y)
    loc = guide.loc.detach().clone()
    quick(max_steps=20).run(Y + 50)
    assert torch.equal(guide.loc.detach(), loc)


def test_float64_follows_the_model():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=torch.float64), PRIOR_SD))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, NOISE_SD), obs=y)

    fit = quick(model, guide="iaf*2", max_steps=30).run(Y.double())
    assert fit.sample(3)["mu"].dtype == torch.float64
    assert fit.draws.log_p.dtype == torch.float64


def test_progress_bar_goes_to_stderr_with_the_bound(capsys):
    quick(progress=True, max_steps=60).run(Y)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "bound" in shown.err
    assert "nats" in shown.err
    quick(progress=False, max_steps=20).run(Y)
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""


@pytest.mark.parametrize("args", [(), (3,), (torch.zeros(0),)], ids=["none", "number", "empty"])
def test_arguments_that_the_model_does_not_take(args):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(ModelError, match=r"arguments of run\(\).*Pass the model's own arguments"):
        NFVI(model, "affine", max_steps=5, progress=False).run(*args)


def test_a_prior_from_which_nothing_can_be_drawn():
    """Flat priors with enough data have a posterior: y ~ N(mu, 2), mu flat on the line."""

    def model(y):
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, NOISE_SD), obs=y)

    fit = quick(model, max_steps=400).run(Y)
    row = fit.summary()["mu"]
    sd = NOISE_SD / len(Y) ** 0.5
    assert abs(row.mean - float(Y.mean())) < 0.1 * sd
    assert abs(row.sd / sd - 1) < 0.1


def test_a_base_of_our_own_has_streams_of_its_own():
    # What others draw from torch's global state, before and meanwhile, is of no consequence.
    def draw(info):
        torch.rand(info.step + 3)

    def fitted(callbacks):
        guide = AutoFlow(conjugate, "planar", base=StudentT(1))
        return NFVI(
            conjugate, guide=guide, max_steps=30, num_particles=8, seed=0, engine="eager",
            progress=False, callbacks=callbacks,
        ).run(Y)  # fmt: skip

    one = fitted([])
    torch.rand(7)
    other = fitted([draw])
    assert torch.equal(one.losses, other.losses)
    assert torch.equal(one.draws.z, other.draws.z)
