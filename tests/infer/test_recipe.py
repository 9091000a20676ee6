"""Numbers of the method stand once, in frozen dataclasses, each with its reason."""

import ast
import dataclasses
import importlib
import re
from datetime import timedelta
from pathlib import Path

import pytest

import pyro_nfvi

ROOT = Path(pyro_nfvi.__file__).parent
PAGE = ROOT.parent / "docs" / "method.md"
#: Modules whose numbers the page of the method prints.
PRINTED = re.findall(r"^\.\. recipes:: (\S+)$", PAGE.read_text("utf-8"), flags=re.MULTILINE)
MODULES = {name: importlib.import_module(name) for name in PRINTED}
RECIPES = [
    pytest.param(module, name, id=f"{home.removeprefix('pyro_nfvi.')}.{name}")
    for home, module in MODULES.items()
    for name, value in vars(module).items()
    if dataclasses.is_dataclass(value) and isinstance(value, type) and value.__module__ == home
]


def test_every_recipe_is_on_the_page_of_the_method():
    missing = []
    for path in ROOT.rglob("*.py"):
        home = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        for node in ast.parse(path.read_text("utf-8")).body:
            recipe = isinstance(node, ast.ClassDef) and re.search(r"\wRecipe$", node.name)
            if recipe and home not in PRINTED:
                missing.append(f"{home}.{node.name}")
    assert len(PRINTED) > 10
    assert not missing, "print them on docs/method.md"


def is_number(node):
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


@pytest.mark.parametrize(("module", "name"), RECIPES)
def test_a_recipe_is_frozen_and_says_why(module, name):
    kind = getattr(module, name)
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    lines = Path(module.__file__).read_text().splitlines()
    (body,) = (
        node.body
        for node in ast.parse("\n".join(lines)).body
        if isinstance(node, ast.ClassDef) and node.name == name
    )
    fields = [node for node in body if isinstance(node, ast.AnnAssign)]
    assert fields
    for node in fields:
        assert lines[node.lineno - 2].strip().startswith("#"), ast.unparse(node)
    # A table without rows is an error of the page.
    printed = (int, float, str, tuple, timedelta)
    assert any(isinstance(field.default, printed) for field in dataclasses.fields(kind))


@pytest.mark.parametrize("folder", ["infer", "_gaussian_vi", "_mcmc"])
def test_no_number_stands_alone(folder):
    loose = []
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                parts = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
                loose += [f"{path.name}: {ast.unparse(node)}" for part in parts if is_number(part)]
    assert not loose
