"""A PyTorch that lacks operations, and an engine that fails, cost speed and never the fit."""

from __future__ import annotations

import ast
import dataclasses
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from engine.test_laws import needs_compiler
from train.test_engine_selection import fit

import pyro_nfvi
from pyro_nfvi import _operators
from pyro_nfvi._engine.available_operators import present
from pyro_nfvi._engine.program import Unsupported
from pyro_nfvi._operators import Missing, Namespace, aten
from pyro_nfvi._train import engine_selection as engines
from pyro_nfvi.errors import OptionError

PACKAGE = Path(pyro_nfvi.__file__).parent


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    """Let a capture pay in a short fit: it is no matter here how many steps it saves."""
    soon = dataclasses.replace(engines.ENGINE, capture_steps=20, compile_steps=40)
    monkeypatch.setattr(engines, "ENGINE", soon)


def test_an_operation_that_is_there_is_torchs_own():
    assert aten.mm.default is torch.ops.aten.mm.default
    assert present(aten.mm.default) is torch.ops.aten.mm.default
    assert set(aten.add.overloads()) == set(torch.ops.aten.add.overloads())


def test_one_that_is_not_there_equals_nothing_and_says_its_name():
    lacking = Namespace("aten", SimpleNamespace(mm=torch.ops.aten.mm))
    assert lacking.mm.default is torch.ops.aten.mm.default
    for one in (lacking.mm.of_tomorrow, lacking.cholesky.default):
        assert isinstance(one, Missing)
        assert one not in {torch.ops.aten.mm.default}
        with pytest.raises(Unsupported, match=r"PyTorch .* has no operation aten\.(mm|cholesky)\."):
            present(one)
        with pytest.raises(NotImplementedError, match="has no operation"):
            one(torch.ones(1))
    assert lacking.cholesky.overloads() == []


def test_operations_are_looked_up_in_one_place():
    # An operation that is named otherwise would end an import where a release lacks it.
    allowed = {Path(_operators.__file__)}
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            named = isinstance(node, ast.Attribute) and node.attr in ("aten", "prims")
            if named and path not in allowed:
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert not found


class Without:
    """Operations without those of some names; None leaves nothing."""

    def __init__(self, operations, gone):
        self._operations, self._gone = operations, gone

    def __getattr__(self, name):
        if self._gone is None or name in self._gone:
            raise AttributeError(name)
        return getattr(self._operations, name)


def forget(monkeypatch, *names):
    """Let modules of the engine be imported anew, for one test."""
    for name in names:
        for known in [n for n in sys.modules if n == name or n.startswith(f"{name}.")]:
            monkeypatch.delitem(sys.modules, known)
        parent, _, child = name.rpartition(".")
        if hasattr(sys.modules[parent], child):  # put back afterwards
            monkeypatch.setattr(sys.modules[parent], child, getattr(sys.modules[parent], child))


@needs_compiler
@pytest.mark.parametrize(
    ("gone", "backend", "reason"),
    [
        ({"cholesky"}, "native", "captured and compiled"),
        ({"softplus"}, "hybrid", "no rule for the operation aten.softplus"),
        (None, "", "not compiled as a whole: "),
    ],
    ids=["one that is not used", "one that is used", "all"],
)
def test_a_torch_without_operations_fits(monkeypatch, gone, backend, reason):
    for name, space in (("aten", torch.ops.aten), ("prims", torch.ops.prims)):
        monkeypatch.setattr(_operators, name, Namespace(name, Without(space, gone)))
    base = "pyro_nfvi._engine"
    forget(monkeypatch, f"{base}.native", f"{base}.recorder", f"{base}.in_place_writes")
    found = fit("schools", engine="auto", max_steps=80)
    import_module(f"{base}.native.runner")
    rules = sys.modules[f"{base}.native.lowering"].RULES
    assert not any(isinstance(target, Missing) for target in rules)
    assert (torch.ops.aten.cholesky_inverse.default in rules) == (gone is not None)
    assert f"({backend})" in found.engine_reason or not backend
    assert reason in found.engine_reason
    assert len(found.losses) == 80
    assert bool(found.losses.isfinite().all())


class Broken(Exception):
    """What no code of ours raises."""


def broken(*_, **__):
    raise Broken("out of paper")


def break_stage(monkeypatch, stage):
    """Let one stage of the native engine and of the captured graph raise."""
    if stage == "import":
        forget(monkeypatch, "pyro_nfvi._engine.native")
        # A module that is None in sys.modules cannot be imported.
        monkeypatch.setitem(sys.modules, "pyro_nfvi._engine.native", None)
        return
    from pyro_nfvi._engine.native import runner

    owner, name = {
        "generate": (runner, "generate"),
        "compile": (runner, "compile_text"),
        "load": (runner, "load"),
        "symbols": (runner, "load"),
        "first run": (runner.NativeRunner, "run"),
        "push": (runner.NativeRunner, "push"),
        "pull": (runner.NativeRunner, "pull"),
    }[stage]
    monkeypatch.setattr(owner, name, broken if stage != "symbols" else lambda *_: object())


STAGES = ["import", "generate", "compile", "load", "symbols", "first run", "push", "pull"]


@needs_compiler
@pytest.mark.parametrize("stage", STAGES)
def test_an_engine_that_fails_costs_speed_and_never_the_fit(monkeypatch, stage):
    break_stage(monkeypatch, stage)
    found = fit("schools", engine="auto", max_steps=80)
    assert "(native)" not in found.engine_reason
    assert len(found.losses) == 80
    assert "not compiled as a whole: it failed while it was " in found.engine_reason
    said = {"import": "ModuleNotFoundError", "symbols": "AttributeError"}
    assert said.get(stage, "Broken: out of paper") in found.engine_reason
    assert "\n" not in found.engine_reason


@needs_compiler
@pytest.mark.parametrize("stage", STAGES)
def test_an_engine_that_fails_and_was_asked_for_is_refused_in_words(monkeypatch, stage):
    break_stage(monkeypatch, stage)
    with pytest.raises(OptionError, match=r"engine='native' cannot run this fit: it failed while"):
        fit("schools", engine="native")


def test_a_recorder_that_cannot_be_imported_leaves_the_eager_step(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyro_nfvi._engine.recorder", None)
    found = fit("schools", engine="auto", max_steps=80)
    assert found.engine == "eager"
    assert "it failed while it was capturing the step: ModuleNotFoundError" in found.engine_reason
    assert len(found.losses) == 80


@needs_compiler
@pytest.mark.parametrize("after", [3, 5])
def test_an_engine_that_fails_in_a_later_block_is_left_for_the_eager_step(monkeypatch, after):
    from pyro_nfvi._engine.native.runner import NativeRunner

    run, calls = NativeRunner.run, []

    def spoiled(self, *args):
        calls.append(args)
        if len(calls) >= after:
            broken()
        return run(self, *args)

    monkeypatch.setattr(NativeRunner, "run", spoiled)
    found = fit("schools", engine="auto", max_steps=80)
    assert found.engine == "eager"
    assert len(found.losses) == 80
    assert bool(found.losses.isfinite().all())
    assert found.engine_reason.startswith("native until step ")
    assert "it failed while it was run: Broken: out of paper" in found.engine_reason
    assert any("went on with engine 'eager'" in note for note in found.training.notes)


def test_engines_have_one_table():
    assert set(engines._BUILD) == {"native", "hybrid", "graph"}
    assert engines.ENGINES == ("auto", "compiled", "eager")
