"""Simulation-based calibration: right fits pass, wrong ones are caught, nothing is dropped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_nfvi as nfvi
from pyro_nfvi import AutoFlow
from pyro_nfvi._map_fits import run_jobs
from pyro_nfvi._processes.tasks import TaskRun
from pyro_nfvi._random import fold_in
from pyro_nfvi.calibration._simulation import Simulator
from pyro_nfvi.errors import ModelError, OptionError

ROOT = Path(__file__).resolve().parents[2]
MODULE = sys.modules["pyro_nfvi.calibration._simulated_fits"]
FAST = {
    "guide": "affine", "max_steps": 10, "engine": "eager", "stop": False, "explore": "off",
}  # fmt: skip
QUIET = {"progress": False, "num_workers": 1, "seed": 0}
Y = torch.zeros(5)


def conjugate(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    pyro.deterministic("twice", 2 * mu)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def correlated(y):
    """Posterior correlation -0.996: the mean field is too narrow by a factor of ten."""
    both = pyro.sample("both", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(both.sum(-1), 0.05), obs=y)


def mean_field(model):
    return AutoFlow(model, None)


def run(model=conjugate, args=(Y,), **options):
    return nfvi.vsbc(model, args, **{**QUIET, **FAST, **options})


# ------------------------------------------------------------------------------ the verdict


@pytest.fixture(scope="module")
def right():
    return run(num_simulations=20, sites=["mu", "twice"], max_steps=50)


@pytest.mark.slow
def test_right_fits_are_calibrated(right):
    # A Gaussian is the posterior here: not calibrated in 1 % of seeds at most.
    found = right
    assert found.verdict == "calibrated", found.summary()
    assert found.failed == ()
    assert found.p["mu"].shape == found.truth["mu"].shape == (20,)
    # A deterministic site of the same order has the same p, up to the place within a rank.
    torch.testing.assert_close(found.p["mu"], found.p["twice"], atol=1 / 2001, rtol=0)
    assert "20 fits" in str(found.summary())
    assert found.summary()["mu"].word == ""


def test_p_is_where_the_exact_posterior_has_it(right):
    found = right
    simulator = Simulator(conjugate, (Y,), {}, None)
    precision = 1 / 4 + 5
    for fit, p in zip(found.fits, found.p["mu"]):
        drawn = simulator.draw(fit.seed)
        mean = drawn.data["y"].sum() / precision
        exact = dist.Normal(mean, precision**-0.5).cdf(drawn.truth["mu"])
        # 2000 draws: standard error of at most 0.011; further off than 0.07 in 1e-9.
        assert abs(float(p) - float(exact)) < 0.07


def test_fits_with_too_few_steps_are_caught():
    # They stay near 0 with a width of 0.1, the prior's sd being 2. The chance that right fits
    # were caught: 1 %; of these the p-value is below 1e-6.
    found = run(num_simulations=20, precondition=False, max_steps=3)
    assert found.verdict == "not calibrated"
    assert found.summary()["mu"].word == "too narrow"
    assert found.summary()["mu"].width < 1e-6
    assert "too narrow" in found.verdict.reasons[0]


@pytest.mark.slow
def test_a_biased_guide_is_caught():
    class Low(AutoFlow):
        def density(self):
            density = super().density()
            push = density.push

            def lower(eps, context=None):
                z, log_q = push(eps, context)
                return z - 0.35, log_q  # 0.8 posterior sds

            density.push = lower
            return density

    found = run(num_simulations=30, guide=lambda m: Low(m, None))
    # A shift of the draws may look like a spread that is too small as well, by chance.
    assert "too low" in found.summary()["mu"].word


@pytest.mark.slow
def test_a_mean_field_guide_is_too_narrow():
    found = run(correlated, (torch.tensor(0.0),), num_simulations=24, guide=mean_field)
    assert found.verdict == "not calibrated"
    assert {row.word for row in found.rows} == {"too narrow"}
    assert [row.name for row in found.rows] == ["both[0]", "both[1]"]


def test_few_fits_are_no_verdict():
    found = run(num_simulations=3)
    assert found.verdict == "not known"
    assert "fewer than 20" in found.verdict.reasons[0]


# ------------------------------------------------------------------- seeds, workers, Ctrl-C


def test_a_simulation_depends_on_seed_and_number_alone(right):
    before, draws = torch.get_rng_state(), torch.get_num_threads()
    pyro.get_param_store()["mine"] = torch.ones(())
    few = run(num_simulations=2, max_steps=50)
    assert torch.equal(few.p["mu"], right.p["mu"][:2])
    assert not torch.equal(few.p["mu"], run(num_simulations=2, max_steps=50, seed=1).p["mu"])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == draws
    assert set(pyro.get_param_store().keys()) == {"mine"}


def test_a_model_that_cannot_be_sent_runs_here_and_says_so():
    lock = threading.Lock()

    def locked(y):
        with lock:
            conjugate(y)

    found = nfvi.vsbc(
        locked, (Y,), num_simulations=2, num_workers=2, seed=0, progress=False, **FAST
    )
    assert found.num_workers == 1
    assert "cannot be sent to other processes" in found.note
    assert found.note in str(found.summary())


def test_ctrl_c_returns_what_is_done(monkeypatch):
    do_job, jobs = run_jobs.do_job, []

    def until_the_third(job):
        jobs.append(job)
        if len(jobs) == 3:
            raise KeyboardInterrupt
        return do_job(job)

    # Without a copy, which would count for itself.
    monkeypatch.setattr(TaskRun, "_payload", lambda *_: None)
    monkeypatch.setattr(run_jobs, "do_job", until_the_third)
    found = run(num_simulations=5)
    assert found.interrupted
    assert len(found.fits) == len(found.p["mu"]) == 2
    assert "2 fits of 5, interrupted" in repr(found)


def test_ctrl_c_inside_of_a_fit_drops_that_one(monkeypatch):
    # The fit itself answers Ctrl-C with the best until then, which is not a whole fit.
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pyro_nfvi.infer._stages.warm_start.gaussian_stage", interrupt)
    found = run(num_simulations=3)
    assert found.interrupted
    assert found.fits == ()
    assert found.verdict == "not known"
    assert str(found.summary())


@pytest.mark.slow
def test_workers_give_the_same_numbers():
    one, two = (run(num_simulations=4, num_workers=workers) for workers in (1, 2))
    assert (one.num_workers, two.num_workers) == (1, 2)
    assert torch.equal(one.p["mu"], two.p["mu"])
    assert [fit.index for fit in two.fits] == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_folder_keeps_what_is_done(tmp_path):
    first = run(num_simulations=2, folder=tmp_path)
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(kept) == 2
    more = run(num_simulations=3, folder=tmp_path)
    assert torch.equal(more.p["mu"][:2], first.p["mu"])
    now = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(now) == 3
    assert kept.items() <= now.items()


def test_a_model_that_calls_vsbc_itself_is_refused():
    ((_, outcome),) = TaskRun(lambda _: run()).run([0])
    assert "vsbc was called by a model that is being fitted" in outcome.error
    assert "Call it outside of the model" in outcome.error


SCRIPT = """
import os, time
import pyro, pyro.distributions as dist, torch
import pyro_nfvi as nfvi

STARTED, PARENT = os.environ.get("STARTED"), os.getpid()

def model(y):
    if STARTED and os.getpid() != PARENT:
        open(STARTED, "w").close()
        time.sleep(60)
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

torch.set_default_dtype(torch.float64)
found = nfvi.vsbc(model, (torch.zeros(5),), num_simulations=3, num_workers=2, seed=0,
                  progress=False, guide="affine", max_steps=20, engine="eager")
dtype = found.truth["mu"].dtype if found.truth else None
print(found.num_workers, len(found.fits), dtype, found.interrupted, found.note)
"""
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["script", "prompt"])
def test_models_of_scripts_and_notebooks_run_in_workers(tmp_path, how):
    # No guard by __name__; the prompt, as a notebook, has no file that could be imported.
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    arguments = [str(script)] if how == "script" else ["-c", SCRIPT]
    ran = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=ENV)  # noqa: PLW1510
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    assert ran.stdout.split() == ["2", "3", "torch.float64", "False"]


@pytest.mark.slow
def test_ctrl_c_ends_the_workers(tmp_path):
    started = tmp_path / "started"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**ENV, "STARTED": str(started)}, start_new_session=True,
        # A shell's background job ignores Ctrl-C, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    wait_until(started.exists)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the group
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert output.split() == ["2", "0", "None", "True"]
    wait_until(lambda: not group_lives(process.pid))


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def group_lives(number):
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


# --------------------------------------------------------------------- how data come in


@pytest.mark.slow
def test_data_as_an_argument_that_may_be_none():
    def lagged(n, y=None):
        rho = pyro.sample("rho", dist.Uniform(-1.0, 1.0))
        past = torch.tensor(0.0)
        for t in pyro.markov(range(n)):
            past = pyro.sample(
                f"y{t}", dist.Normal(rho * past, 1.0), obs=None if y is None else y[t]
            )

    def scaled(y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        drawn = pyro.sample("y", dist.Normal(mu, 1.0).expand([4]).to_event(1), obs=y)
        pyro.deterministic("seen", drawn.mean())
        pyro.deterministic("given", torch.tensor(float("nan")) if y is None else y.mean())

    simulator = Simulator(scaled, (), {}, {"y": "y"})
    drawn = simulator.draw(3)
    trace = poutine.trace(simulator.condition(drawn.data)).get_trace()
    assert trace.nodes["y"]["is_observed"]
    assert trace.nodes["given"]["value"] == drawn.truth["seen"]
    # Named sites without values: condition.
    found = run(lagged, (3,), observed=["y0", "y1", "y2"], num_simulations=2)
    assert found.p["rho"].shape == (2,)


def test_data_used_elsewhere_are_told():
    def standardised(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu * y.std(), 1.0), obs=y)

    with pytest.raises(ModelError, match=r"'y' depends on the values of the data.*observed=\{"):
        run(standardised, (torch.randn(6),))

    def autoregressive(y):
        rho = pyro.sample("rho", dist.Normal(0.0, 1.0))
        for t in range(1, len(y)):
            pyro.sample(f"y{t}", dist.Normal(rho * y[t - 1], 1.0), obs=y[t])

    with pytest.raises(ModelError, match="depends on the values"):
        run(autoregressive, (torch.arange(4.0),))


@pytest.mark.slow
def test_missing_data_and_enumerated_sites():
    seen = torch.tensor([True, True, False, True, True])

    def missing(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=seen)

    def enumerated(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("y", dist.Normal(mu + 3 * k, 1.0), obs=y)

    for model in (missing, enumerated):
        found = run(model, (Y,), num_simulations=2, sites=["mu"])
        assert found.failed == ()
        assert found.p["mu"].shape == (2,)


# ---------------------------------------------------------------------------- bad input


def factored(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.factor("extra", -mu.square())
    pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def improper(y):
    mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def two(y, w=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    pyro.sample("w", dist.Normal(mu, 1.0), obs=y)


def subsampled(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 5, subsample_size=2) as index:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])


def tempered(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=0.5):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y.sum())


def trained(y):
    loc = pyro.param("loc", torch.tensor(0.0))
    pyro.sample("y", dist.Normal(pyro.sample("mu", dist.Normal(loc, 1.0)), 1.0), obs=y.sum())


def overflowing(y):
    scale = pyro.sample("scale", dist.Normal(0.0, 100.0))
    pyro.sample("y", dist.Normal(0.0, 1.0).mask(True), obs=y.sum())
    pyro.sample("n", dist.Delta((scale.exp() - scale.exp()) / scale), obs=torch.tensor(0.0))


def unobserved(y):
    pyro.sample("mu", dist.Normal(0.0, 1.0))


def discrete(y):
    k = pyro.sample("k", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(k, 1.0), obs=y.sum())


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        (factored, {}, "'extra' is a pyro.factor"),
        (factored, {"observed": ["y", "extra"]}, "'extra' is a pyro.factor"),
        (improper, {}, "improper"),
        (two, {"observed": "y"}, "'w' still has its obs fixed"),
        (subsampled, {}, "subsample_size=None"),
        (tempered, {}, "scaled by 0.5"),
        (trained, {}, "trains parameters"),
        (overflowing, {}, "not finite"),
        (unobserved, {}, "observes nothing"),
        (discrete, {}, "no continuous latent"),
        (conjugate, {"observed": {"y": "y"}}, "could not be simulated: TypeError"),
    ],
)
def test_models_that_cannot_be_simulated(model, options, says):
    with pytest.raises(ModelError, match=says):
        run(model, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_simulations": 0}, "num_simulations"),
        ({"num_workers": 0}, "num_workers"),
        ({"level": 2.0}, "level"),
        ({"seed": -1}, "seed"),
        ({"args": Y}, "args is a tuple"),
        ({"observed": "z"}, "does not have"),
        ({"observed": []}, "observed is a site's name"),
        ({"sites": ["z"]}, r"sites names \['z'\]"),
        ({"callbacks": []}, "belongs to a single fit"),
        ({"max_step": 3}, "no option 'max_step'"),
        ({"max_steps": 0}, "max_steps"),
        ({"guide": AutoFlow(conjugate, None)}, "one guide"),
    ],
)
def test_bad_options(options, says):
    with pytest.raises(OptionError, match=says):
        run(**options)


# ---------------------------------------------------------------------------- failed fits


def test_all_failed(monkeypatch):
    def wrong(*_, **__):
        raise ArithmeticError("no luck\nmore")

    monkeypatch.setattr(MODULE, "_places", wrong)
    with pytest.raises(ModelError, match="All 2 fits failed. The first: ArithmeticError: no luck$"):
        run(num_simulations=2)


def test_some_failed(monkeypatch):
    places, odd = MODULE._places, {fold_in(0, 1), fold_in(0, 3)}

    def sometimes(fit, seed, **options):
        if seed in odd:
            raise ArithmeticError("no luck")
        return places(fit, seed=seed, **options)

    monkeypatch.setattr(MODULE, "_places", sometimes)
    found = run(num_simulations=4)
    assert [bool(fit.error) for fit in found.fits] == [False, True, False, True]
    assert len(found.p["mu"]) == len(found.truth["mu"]) == 2
    assert found.verdict == "not known"
    assert "2 of 4 fits failed" in found.verdict.reasons[0]
    assert "2 failed: ArithmeticError: no luck" in str(found.summary())
