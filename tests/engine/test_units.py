"""Units of compilation: what is compiled apart, and what a cold process need not import."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nfvi import NFVI
from pyro_nfvi._engine.native import background as tasks
from pyro_nfvi._engine.native import compiled_objects, compiler, runner
from pyro_nfvi._engine.native.background import background
from pyro_nfvi._engine.native.compiled_objects import begin_compile, compile_text
from pyro_nfvi._engine.native.compiler import CompilerFault, find_compiler
from pyro_nfvi._engine.program import Unsupported
from pyro_nfvi._optim.torch_optimizers import LBFGS, Adam
from pyro_nfvi._random import stream
from pyro_nfvi._train.engine_selection import unit_particles
from pyro_nfvi.objectives._make_objective import make_objective


def _has_compiler() -> bool:
    try:
        find_compiler()
    except Unsupported:
        return False
    return True


needs_compiler = pytest.mark.skipif(not _has_compiler(), reason="no C++ compiler")


def normal(dim):
    def model():
        x = pyro.sample("x", dist.Normal(torch.ones(dim), 2.0).to_event(1))
        pyro.sample("y", dist.Normal(x.sum(-1), 1.0), obs=torch.tensor(0.0))

    return model


@needs_compiler
def test_the_loop_over_steps_is_compiled_once_for_all_models(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = []
    real = runner.compile_text

    def counted(text, symbols, *rest):
        data, cached = real(text, symbols, *rest)
        built.append((symbols, cached))
        return data, cached

    monkeypatch.setattr(runner, "compile_text", counted)
    for dim in (2, 3):
        NFVI(
            normal(dim), "affine", max_steps=20, stop=False, precondition=False,
            engine="compiled", seed=0, progress=False, explore="off",
        ).run()  # fmt: skip
    loops = [cached for symbols, cached in built if "nfvi_run" in symbols]
    steps = [cached for symbols, cached in built if "nfvi_step" in symbols]
    assert loops == [False, True]
    assert steps == [False, False]


@needs_compiler
def test_a_fit_imports_neither_the_compiler_of_torch_nor_sympy():
    # More than a second of processor time, in every process.
    code = """
    import sys
    import pyro, torch
    import pyro.distributions as dist
    from pyro_nfvi import NFVI

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", 4):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, 10.0), obs=y)

    fit = NFVI(model, "iaf*2", max_steps=600, seed=0, progress=False).run(torch.arange(4.0))
    print(fit.engine, *(name for name in ("torch._dynamo", "sympy") if name in sys.modules))
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["compiled"], done.stdout + done.stderr


@pytest.mark.parametrize("fused", [False, True])
def test_our_adam_takes_the_steps_of_torch(fused):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, generator=generator)
    ends = []
    for kind in (Adam, torch.optim.Adam):
        x = start.clone().requires_grad_()
        optimizer = kind([{"params": [x], "lr": 0.1}], weight_decay=0.01, fused=fused)
        for _ in range(5):
            optimizer.zero_grad()
            (x**4).sum().backward()
            optimizer.step()
        saved = optimizer.state_dict()
        optimizer.load_state_dict(saved)
        ends.append((x.detach(), saved["state"][0]["exp_avg_sq"]))
    assert all(torch.equal(one, other) for one, other in zip(*ends))


def test_our_lbfgs_takes_the_steps_of_torch():
    ends = []
    for kind in (LBFGS, torch.optim.LBFGS):
        x = torch.tensor([1.0, -2.0], requires_grad=True)
        optimizer = kind([x], max_iter=8, line_search_fn="strong_wolfe")

        def closure(x=x, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (x**4).sum() + (x[0] - x[1]) ** 2
            loss.backward()
            return loss

        optimizer.step(closure)
        ends.append(x.detach())
    assert torch.equal(*ends)


# ------------------------------------------------------------ the flow apart from the model


def regression(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(w.matmul(x.T), scale), obs=y)


def hierarchy(x, y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", 3):
        theta = pyro.sample("theta", dist.StudentT(4.0, mu, 1.0))
    pyro.sample("y", dist.Gamma(theta.exp().sum(-1), 1.0), obs=y.abs().sum())


def batches(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    with pyro.plate("rows", len(y), subsample_size=5) as rows:
        pyro.sample("y", dist.Normal(x[rows].sum(-1) * w[..., :1], 1.0), obs=y[rows])


def branching(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    scale = 1.0 if float(w.detach().sum()) > 0 else 1.5
    pyro.sample("y", dist.Normal(w.sum(-1), scale), obs=y[0])


def data():
    generator = stream(0, "units")
    return torch.randn(20, 3, generator=generator), torch.randn(20, generator=generator)


def compiled_units(monkeypatch):
    """List the functions of each unit that a step asks for, and whether it was found compiled."""
    asked = []
    real = runner.compile_text

    def counted(text, symbols, *rest):
        made = real(text, symbols, *rest)
        asked.append((symbols[-1], made[1]))
        return made

    monkeypatch.setattr(runner, "compile_text", counted)
    return asked


def fit(model, guide="iaf*2", engine="compiled", max_steps=30, **options):
    return NFVI(
        model, guide, engine=engine, max_steps=max_steps, stop=False, precondition=False,
        seed=0, progress=False, explore="off", **{"num_particles": 16, **options},
    ).run(*data())  # fmt: skip


@needs_compiler
def test_a_second_model_of_a_size_compiles_no_flow(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = compiled_units(monkeypatch)
    for model in (regression, hierarchy):
        assert "(native)" in fit(model).engine_reason
    units = ["nfvi_step", "nfvi_run"]
    assert asked == [(name, found) for found in (False, True) for name in units]


@needs_compiler
@pytest.mark.parametrize("model", [regression, hierarchy, batches])
@pytest.mark.parametrize("objective", ["path", "iw"])
def test_a_step_that_calls_the_compiled_model_is_the_eager_step(model, objective, monkeypatch):
    asked = compiled_units(monkeypatch)
    mine = fit(model, "affine", objective=objective)
    apart = [name for name, _ in asked]
    assert apart == ["nfvi_step", "nfvi_run"]
    eager = fit(model, "affine", engine="eager", objective=objective)
    assert torch.allclose(mine.losses, eager.losses, rtol=2e-3, atol=2e-3)


@needs_compiler
def test_blocks_that_are_not_full_are_part_of_the_step(monkeypatch):
    texts = []
    real = runner.generate

    def kept(*args, **kwargs):
        made = real(*args, **kwargs)
        texts.append(made.text)
        return made

    monkeypatch.setattr(runner, "generate", kept)
    fit(regression, "affine", num_particles=3)
    fit(regression, "affine", num_particles=16)
    assert ["(cx->target," in text for text in texts] == [False, True]


@needs_compiler
def test_a_model_that_cannot_be_captured_is_called_by_the_compiled_flow():
    found = fit(branching)
    assert found.engine == "compiled"
    assert "the flow is captured and compiled (hybrid)" in found.engine_reason
    assert "(the model)" in found.engine_reason
    eager = fit(branching, engine="eager")
    assert torch.allclose(found.losses, eager.losses, rtol=2e-3, atol=2e-3)


@needs_compiler
def test_same_bits_with_a_cold_and_with_a_warm_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cold, warm = fit(hierarchy, max_steps=200), fit(hierarchy, max_steps=200)
    assert torch.equal(cold.losses, warm.losses)
    assert torch.equal(cold.draws.z, warm.draws.z)


def scarred(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    pyro.factor("edge", (1.2 - w[..., 0]).sqrt())  # NaN for one in nine of the first draws


@needs_compiler
def test_a_second_number_of_particles_compiles_no_flow(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = compiled_units(monkeypatch)
    for count in (64, 192):
        assert "(native)" in fit(regression, num_particles=count).engine_reason
    units = ["nfvi_step", "nfvi_run"]
    assert asked == [(name, found) for found in (False, True) for name in units]


@needs_compiler
@pytest.mark.parametrize("objective", ["path", "total"])
@pytest.mark.parametrize("model", [batches, scarred])
def test_particles_in_blocks_are_those_of_one_step(model, objective, monkeypatch):
    asked = compiled_units(monkeypatch)
    options = {"num_particles": 128, "objective": objective}
    mine, eager = (fit(model, engine=engine, **options) for engine in ("compiled", "eager"))
    assert [name for name, _ in asked] == ["nfvi_step", "nfvi_run"]
    assert torch.allclose(mine.losses, eager.losses, rtol=2e-3, atol=2e-3)
    mine, eager = (
        torch.cat([p.flatten() for p in one.guide.parameters()]) for one in (mine, eager)
    )
    assert torch.allclose(mine, eager, rtol=2e-3, atol=2e-3)


@pytest.mark.slow
@needs_compiler
def test_splines_of_many_particles_lie_innermost_and_take_the_eager_step():
    # Running sums, gathers and scatters, whose particles are an axis in the middle.
    mine, eager = (
        fit(regression, "nsf*1", engine=engine, num_particles=64)
        for engine in ("compiled", "eager")
    )
    assert "(native)" in mine.engine_reason
    assert torch.allclose(mine.losses, eager.losses, rtol=2e-3, atol=2e-3)
    for one, other in zip(mine.guide.parameters(), eager.guide.parameters()):
        assert torch.allclose(one, other, rtol=2e-3, atol=2e-3)


def test_an_objective_of_all_particles_is_not_taken_in_blocks():
    assert unit_particles(make_objective("path"), 256) == 64
    assert unit_particles(make_objective("path"), 96) == 96
    assert unit_particles(make_objective("iw"), 256) == 256


# ------------------------------------------------------------------------- in the background

ANSWER = 'extern "C" __attribute__((visibility("default"))) int answer(){return 42;}'


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Give a cache and a place for temporary files of its own."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.fixture
def hanging(folders, tmp_path, monkeypatch):
    """Let the compiler hang over sources that say so."""
    real = find_compiler().command[0]
    path = tmp_path / "cc"
    path.write_text(
        '#!/bin/sh\nfor a; do case "$a" in *step.cpp)'
        f' grep -q hang "$a" && echo $$ > {tmp_path}/hangs && exec sleep 300;; esac; done\n'
        f'exec {shutil.which(real)} "$@"\n'
    )
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    find_compiler()
    return tmp_path / "hangs"


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def waiting():
    for one in threading.enumerate():
        if one.name == "nfvi-compile":
            one.join(1.0)
    return [one for one in threading.enumerate() if one.name == "nfvi-compile"]


def begun_hanging(mark):
    begin_compile(f"// hang\n{ANSWER}", ("answer",), "0" * 40)
    while not mark.exists() or not mark.read_text().strip():
        time.sleep(0.01)
    return int(mark.read_text())


def interrupted(doing, mark):
    # Jobs in the background of a shell ignore Ctrl-C, and the tests may be one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with background():
            begun_hanging(mark)
            doing()
    finally:
        signal.signal(signal.SIGINT, before)


@needs_compiler
def test_what_was_begun_is_waited_for_and_not_compiled_again(folders, monkeypatch):
    find_compiler()  # what it is tried out with does not count
    calls = []
    monkeypatch.setattr(compiler, "_compile", _counted(compiler._compile, calls))
    begin_compile(ANSWER, ("answer",), "1" * 40)
    data, _ = compile_text(ANSWER, ("answer",))
    assert len(calls) == 1
    assert data[:4] in (b"\x7fELF", b"\xcf\xfa\xed\xfe")
    assert compiled_objects.is_marked("1" * 40)
    assert not tasks._TASKS


@needs_compiler
def test_ctrl_c_ends_a_compile_in_the_background_and_leaves_nothing(hanging, folders):
    with pytest.raises(KeyboardInterrupt):
        interrupted(lambda: os.kill(os.getpid(), signal.SIGINT) or time.sleep(5), hanging)
    pid = int(hanging.read_text())
    assert not is_running(pid)
    assert not waiting()
    assert not tasks._TASKS
    assert not [name for name in os.listdir(folders) if name.startswith("nfvi-work")]


@needs_compiler
def test_ctrl_c_while_a_compile_is_waited_for(hanging, folders):
    def wait():
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        compile_text(f"// hang\n{ANSWER}", ("answer",))

    with pytest.raises(KeyboardInterrupt):
        interrupted(wait, hanging)
    pid = int(hanging.read_text())
    assert not is_running(pid)
    assert not waiting()


@needs_compiler
def test_a_compile_that_takes_longer_than_there_is_time_is_ended(hanging, folders):
    pid = begun_hanging(hanging)
    # By the pace of the machine, or by the clock.
    with pytest.raises(Unsupported, match="time left|took more than"):
        compile_text(f"// hang\n{ANSWER}", ("answer",), 0.2)
    assert not is_running(pid)
    # What was ended is no failure of the compiler's.
    assert compile_text(ANSWER, ("answer",))


@needs_compiler
def test_a_compiler_that_fails_in_the_background_says_why_when_it_is_asked(folders):
    begin_compile("nonsense of the background", ("answer",), "2" * 40)
    with pytest.raises(CompilerFault, match="the compiler failed .*nonsense"):
        compile_text("nonsense of the background", ("answer",))
    assert not compiled_objects.is_marked("2" * 40)


@needs_compiler
@pytest.mark.parametrize("guide", ["iaf*2", pytest.param("auto", marks=pytest.mark.slow)])
def test_the_flow_is_compiled_while_other_stages_run(guide, folders, monkeypatch):
    # One that is needed is the one that was begun, and a warm cache gives the same bits.
    found, sources = [], []
    real = compiler._compile

    def noted(command, source, *rest):
        sources.append(source)
        return real(command, source, *rest)

    monkeypatch.setattr(compiler, "_compile", noted)
    monkeypatch.setattr(compiled_objects, "begin", _counted(compiled_objects.begin, found))
    fits = [
        NFVI(hierarchy, guide, seed=0, max_steps=1500, progress=False, explore="off").run(*data())
        for _ in range(2)
    ]
    assert len(found) == 2  # loop and step, of the cold fit alone
    if guide == "iaf*2":
        assert sum("nfvi_step" in source for source in sources) == 1
    assert torch.equal(fits[0].draws.z, fits[1].draws.z)
    assert not tasks._TASKS
    assert not waiting()


def _counted(function, calls):
    def counted(*args):
        calls.append(args[0])
        return function(*args)

    return counted
