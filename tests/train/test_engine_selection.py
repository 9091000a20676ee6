"""Which engine a fit gets, and that the fit states the reason."""

import dataclasses
import functools
import threading

import pyro
import pyro.distributions as dist
import pytest
import torch
from engine.test_laws import needs_compiler
from engine.zoo import ZOO, on

from pyro_nfvi import NFVI
from pyro_nfvi._engine.graph_runner import GraphRunner
from pyro_nfvi._train import engine_selection as engines
from pyro_nfvi.errors import EngineWarning, OptionError


def fit(name, **options):
    model, args = ZOO[name]() if isinstance(name, str) else name
    chosen = {
        "guide": "affine", "seed": 0, "progress": False, "num_particles": 8, "stop": False,
        "max_steps": 60, "precondition": False, "explore": "off",
    } | options  # fmt: skip
    engine = chosen.pop("engine", "auto")
    return on(NFVI(model, **chosen), engine).run(*args)


def conjugate(y):
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 5.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


Y = torch.tensor([1.0, 2.0, 3.0])


def test_a_short_fit_is_not_worth_a_capture():
    found = fit("schools", engine="auto", max_steps=50)
    assert found.engine == "eager"
    assert "fewer than 300 steps" in found.engine_reason
    assert found.timing.capture == found.timing.compile == 0.0


@functools.cache
def eager_fit(name):
    torch.manual_seed(1)
    return fit(name, engine="eager")


@pytest.mark.parametrize("engine", ["graph", pytest.param("native", marks=needs_compiler)])
@pytest.mark.parametrize("name", ["schools", "minibatch", "params"])
def test_every_engine_gives_the_eager_fit(name, engine):
    expected = eager_fit(name)
    torch.manual_seed(1)
    found = fit(name, engine=engine)
    assert found.engine == "compiled"
    assert found.engine_reason == f"asked for ({engine})"
    assert found.timing.capture > 0
    assert found.timing.step > 0
    # float32 over 60 steps, each from its own states; the largest seen is 2e-5.
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-3, atol=1e-3)
    for key, value in expected.params.items():
        torch.testing.assert_close(found.params[key], value, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("engine", ["graph", pytest.param("native", marks=needs_compiler)])
def test_same_seed_same_result(engine):
    one, other = (fit("schools", engine=engine) for _ in range(2))
    assert torch.equal(one.losses, other.losses)
    assert torch.equal(one.draws.z, other.draws.z)


@pytest.mark.parametrize("engine", ["graph", pytest.param("native", marks=needs_compiler)])
def test_data_in_float64_and_latents_in_float32_are_captured(engine):
    # Data made of NumPy arrays are float64, and so is the log joint then.
    model = (conjugate, (Y.double(),))
    expected, found = fit(model, engine="eager"), fit(model, engine=engine)
    assert found.engine == "compiled"
    assert found.sample(2)["mu"].dtype == torch.float32
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-3, atol=1e-3)
    for key, value in expected.params.items():
        torch.testing.assert_close(found.params[key], value, rtol=1e-3, atol=1e-3)


@needs_compiler
def test_auto_compiles_a_long_fit():
    found = fit("schools", engine="auto", max_steps=1000)
    assert found.engine == "compiled"
    assert found.engine_reason == "the step is captured and compiled (native)"
    assert "engine compiled" in found.report


def test_no_compiler_means_graph_or_svi_with_the_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    found = fit("schools", engine="auto", max_steps=520, guide="iaf*2")
    assert "(native)" not in found.engine_reason
    assert "compiler" in found.engine_reason
    with pytest.raises(OptionError, match="engine='compiled' cannot run this fit: .*compiler"):
        fit("schools", engine="compiled")


def test_what_cannot_be_captured_runs_as_it_is_and_says_why():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 5.0))
        scale = 1.0 if bool((mu > -100).all()) else 2.0
        pyro.sample("y", dist.Normal(mu, scale).expand([3]).to_event(1), obs=y)

    found = fit((model, (Y,)), engine="auto", max_steps=300)
    assert found.engine == "eager"
    assert "Python reads a value that depends on latents" in found.engine_reason
    assert found.engine_reason.count("Python reads") == 1
    assert "\n" not in found.engine_reason
    with pytest.raises(OptionError, match="engine='graph' cannot run this fit: Python reads"):
        fit((model, (Y,)), engine="graph")
    if needs_compiler.args[0] is False:
        # The flow is compiled all the same, and calls the model.
        found = fit((model, (Y,)), engine="compiled")
        assert found.engine == "compiled"
        assert "Python reads a value that depends on latents" in found.engine_reason


def test_an_optimiser_that_is_not_known_falls_back():
    class Mine(torch.optim.Adam):
        pass

    found = fit("schools", engine="auto", max_steps=520, optim=lambda leaves: Mine(leaves, lr=0.01))
    assert "(native)" not in found.engine_reason
    assert "not compiled" in found.engine_reason


def test_an_optimiser_of_a_part_of_the_parameters_falls_back():
    found = fit(
        "schools", engine="auto", max_steps=300, optim=lambda leaves: torch.optim.Adam(leaves[1:])
    )
    assert found.engine == "eager"
    assert "does not hold every parameter" in found.engine_reason


WRONGS = {
    "noise": lambda run, eps, *rest: run(1.01 * eps, *rest),
    "rate": lambda run, eps, streams, rates: run(eps, streams, 1.1 * rates),
    "bound": lambda run, *rest: dataclasses.replace(done := run(*rest), bounds=1.01 * done.bounds),
    "bound NaN": lambda run, *rest: dataclasses.replace(
        done := run(*rest), bounds=torch.nan * done.bounds
    ),
    "skips": lambda run, *rest: dataclasses.replace(done := run(*rest), ok=~done.ok),
    "leaves out": lambda run, *rest: dataclasses.replace(
        done := run(*rest), num_bad=done.num_bad + 1
    ),
}


@pytest.mark.parametrize("wrong", WRONGS)
def test_a_wrong_engine_is_not_used(monkeypatch, wrong):
    class Wrong(GraphRunner):
        def run(self, *inputs):
            return WRONGS[wrong](super().run, *inputs)

    monkeypatch.setitem(engines._BUILD, "graph", lambda program, spec, _: Wrong(program, spec))
    with pytest.warns(EngineWarning, match=r"The compiled step is not used \(graph\): "):
        found = fit("schools", engine="auto", max_steps=300, callbacks=[lambda info: True])
    assert found.engine == "eager"
    assert "not replayed: " in found.engine_reason


@pytest.mark.parametrize("engine", ["graph", pytest.param("native", marks=needs_compiler)])
def test_an_engine_leaves_no_trace_before_the_fit(engine):
    # Choosing takes steps to compare; the fit starts as if there had been none.
    expected = fit("schools", engine="eager", max_steps=1)
    found = fit("schools", engine=engine, max_steps=1)
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("engine", ["graph", pytest.param("native", marks=needs_compiler)])
def test_a_resumed_fit_gives_the_numbers_of_an_uninterrupted_one(tmp_path, engine):
    def stop(info):
        if info.step == 73:
            raise KeyboardInterrupt

    path = tmp_path / "fit.ckpt"
    options = {"engine": engine, "guide": "iaf*2", "max_steps": 160}
    whole = fit("minibatch_fixed", **options)
    cut = fit("minibatch_fixed", **options, checkpoint=path, callbacks=[stop])
    assert len(cut.losses) == 73
    resumed = fit("minibatch_fixed", **options, checkpoint=path, resume=True)
    assert torch.equal(whole.losses, resumed.losses)
    assert torch.equal(whole.draws.z, resumed.draws.z)


@pytest.mark.parametrize("engine", ["graph", pytest.param("native", marks=needs_compiler)])
def test_callbacks_see_every_step_and_true_parameters(engine):
    seen = []

    def look(info):
        seen.append((info.step, info.loss, float(info.guide.loc.detach().norm())))
        return info.step == 40

    found = fit("schools", engine=engine, callbacks=[look])
    assert found.why_stopped == "callback"
    assert [step for step, *_ in seen] == list(range(1, 41))
    assert [loss for _, loss, _ in seen] == found.losses.tolist()
    assert len({loc for *_, loc in seen}) == 40


@pytest.mark.parametrize("engine", ["graph", pytest.param("native", marks=needs_compiler)])
def test_what_a_callback_does_to_the_guide_counts(engine):
    def move(info):
        if info.step == 20:
            with torch.no_grad():
                info.guide.loc.add_(3.0)

    moved = fit("schools", engine=engine, callbacks=[move])
    expected = fit("schools", engine="eager", callbacks=[move])
    torch.testing.assert_close(moved.losses, expected.losses, rtol=1e-3, atol=1e-3)


class Annealed:
    """A model whose Python state changes while it is fitted, which no capture can see."""

    def __init__(self):
        self.beta = 1.0

    def __call__(self, y):
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 5.0))
        with pyro.poutine.scale(scale=self.beta), pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@pytest.mark.parametrize("engine", ["graph", pytest.param("native", marks=needs_compiler)])
def test_a_model_that_changes_during_the_fit_is_noticed(engine):
    model = Annealed()

    def change(info):
        model.beta = 1.0 if info.step < 60 else 3.0

    with (
        pytest.warns(EngineWarning, match="the model changed after it was captured"),
        pytest.warns(EngineWarning, match="the model changed after it was compiled"),
    ):
        found = fit((model, (Y,)), engine=engine, max_steps=200, callbacks=[change])
    assert found.engine == "eager"
    assert "changed after it was captured" in found.engine_reason
    model.beta = 1.0
    expected = fit((model, (Y,)), engine="eager", max_steps=200, callbacks=[change])
    # Both end at the posterior of the changed model.
    assert abs(found.summary()["mu"].mean - expected.summary()["mu"].mean) < 0.1


@pytest.mark.slow
def test_fits_in_two_threads_are_the_fits_of_one():
    # Data first: they are drawn from the random state that a running fit has borrowed.
    cases = {name: ZOO[name]() for name in ("schools", "in_place")}
    expected = {name: fit(case, engine="eager", max_steps=60) for name, case in cases.items()}
    found, errors = {}, []

    def run(name):
        try:
            found[name] = fit(cases[name], engine="graph", max_steps=60)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for name, one in expected.items():
        torch.testing.assert_close(found[name].losses, one.losses, rtol=1e-4, atol=1e-4)


def _fixed(name):
    """A model of the zoo with the same data each time."""

    def make():
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(5)
            return ZOO[name]()

    return make


ZOO_FIXED = {f"{name}_fixed": _fixed(name) for name in ("minibatch",)}


@pytest.fixture(autouse=True)
def _more(monkeypatch):
    for name, make in ZOO_FIXED.items():
        monkeypatch.setitem(ZOO, name, make)


@needs_compiler
def test_compiled_by_name_compiles_a_fit_of_any_length():
    found = fit("schools", engine="compiled", max_steps=20)
    assert found.engine == "compiled"
    assert found.engine_reason == "the step is captured and compiled (native)"


@pytest.mark.parametrize("name", ["native", "hybrid", "graph", "inductor", "svi", ""])
def test_back_ends_are_no_engines(name):
    with pytest.raises(OptionError, match="engine is one of auto, compiled, eager"):
        NFVI(conjugate, engine=name)
