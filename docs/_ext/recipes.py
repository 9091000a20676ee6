"""Tables of the numbers of the method, written from its dataclasses so that they stay true."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import textwrap
from datetime import timedelta
from typing import TYPE_CHECKING

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def comments(recipe: type) -> dict[str, str]:
    """Return the comment above each field of a dataclass (``#:`` lines), by the field's name."""
    source = textwrap.dedent(inspect.getsource(recipe))
    lines = source.split("\n")
    found = {}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above: list[str] = []
            at = node.lineno - 2
            while at >= 0 and lines[at].lstrip().startswith("#"):
                above.insert(0, lines[at].lstrip().lstrip("#:").strip())
                at -= 1
            found[node.target.id] = " ".join(above)
    return found


def recipes_of(module: str) -> list[type]:
    """Return the dataclasses that a module defines, in the order of its text."""
    home = importlib.import_module(module)
    found = [one for one in vars(home).values() if dataclasses.is_dataclass(one)]
    return [one for one in found if isinstance(one, type) and one.__module__ == module]


def numbers_of(recipe: type) -> dict[str, object]:
    """Return the defaults of a recipe that can be printed, by name."""
    kinds = (int, float, str, tuple, timedelta)
    fields = dataclasses.fields(recipe)
    return {field.name: field.default for field in fields if isinstance(field.default, kinds)}


class RecipeTable(Directive):
    """``.. recipes:: module``, in ``{eval-rst}``, lists every number of the module's recipes."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        lines: list[str] = []
        for recipe in recipes_of(self.arguments[0]):
            summary = (inspect.getdoc(recipe) or recipe.__name__).split("\n")[0]
            lines += [f"**{recipe.__name__}.** {summary}", ""]
            lines += [".. list-table::", "   :header-rows: 1", "   :widths: 25 15 60", ""]
            lines += ["   * - number", "     - value", "     - meaning"]
            said = comments(recipe)
            for name, value in numbers_of(recipe).items():
                lines += [f"   * - ``{name}``", f"     - {value}"]
                # Bars stand for absolute values here, not for substitutions.
                meaning = said.get(name, "").replace("|", "\\|")
                lines += [f"     - {meaning}"]
            lines.append("")
        holder = nodes.container()
        self.state.nested_parse(StringList(lines, source="recipes"), self.content_offset, holder)
        return list(holder.children)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("recipes", RecipeTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
