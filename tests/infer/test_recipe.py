"""Numbers of the method stand once, in frozen dataclasses, each with its reason."""

import ast
import dataclasses
from pathlib import Path

import pytest

import pyro_nfvi
from pyro_nfvi._gaussian_vi import recipe as gaussian
from pyro_nfvi.infer import _recipe as fit

ROOT = Path(pyro_nfvi.__file__).parent
RECIPES = [
    pytest.param(module, name, id=name)
    for module in (gaussian, fit)
    for name, value in vars(module).items()
    if isinstance(value, type) and value.__module__ == module.__name__
]


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


@pytest.mark.parametrize("folder", ["infer", "_gaussian_vi"])
def test_no_number_stands_alone(folder):
    loose = []
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                parts = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
                loose += [f"{path.name}: {ast.unparse(node)}" for part in parts if is_number(part)]
    assert not loose
