"""Names of other packages that pyro_nfvi uses, checked against what is installed.

``python names.py PACKAGE`` looks them up in the packages of this interpreter; with ``--sources
FOLDER`` it reads the sources of PyTorch there instead, for a build that cannot be imported. Ends
with 1 where a name is missing. Operations of ATen that are missing are listed and no error: their
rules are left out (``_operators.py``).
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

#: Packages whose releases differ in what they have.
PACKAGES = ("torch", "pyro", "numpy", "arviz", "xarray")
#: Where what may be missing is looked for on purpose.
GUARDED = {"arviz.stats.stats_utils.ELPDData"}  # behind a look at ArviZ's version
LOOKED_FOR = ("_compat.py", "_operators.py", "_engine/available_operators.py")


def used(package: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the dotted names and the operations that a package uses, each with a place."""
    names: dict[str, str] = {}
    operations: dict[str, str] = {}
    for path in sorted(package.rglob("*.py")):
        where = path.relative_to(package).as_posix()
        if where in LOOKED_FOR:
            continue
        tree = ast.parse(path.read_text("utf-8"))
        known = {alias: name for alias, name in _imports(tree)}
        for alias, name in known.items():
            if name.split(".")[0] in PACKAGES:
                names.setdefault(name, f"{where} (import {alias})")
        for node in ast.walk(tree):
            chain = _chain(node)
            if chain is None:
                continue
            root, rest = chain
            place = f"{where}:{getattr(node, 'lineno', 0)}"
            if root in ("aten", "prims") and "operators." in known.get(root, ""):
                operations.setdefault(".".join([root, *rest]), place)
            elif known.get(root) == "torch" and rest[:2] == ["ops", "pyro_nfvi"]:
                continue  # our own
            elif known.get(root, "").split(".")[0] in PACKAGES:
                names.setdefault(".".join([known[root], *rest]), place)
    return _longest(names), _longest(operations)


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                if one.asname:
                    yield one.asname, one.name
                else:
                    yield one.name.split(".")[0], one.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module:
            for one in node.names:
                yield one.asname or one.name, f"{node.module}.{one.name}"


def _chain(node: ast.AST) -> tuple[str, list[str]] | None:
    """Return ``a.b.c`` as ``("a", ["b", "c"])``."""
    rest: list[str] = []
    while isinstance(node, ast.Attribute):
        rest.insert(0, node.attr)
        node = node.value
    return (node.id, rest) if isinstance(node, ast.Name) and rest else None


def _longest(names: dict[str, str]) -> dict[str, str]:
    """Leave out what is the beginning of another name."""
    return {n: w for n, w in names.items() if not any(m.startswith(f"{n}.") for m in names)}


def installed(name: str) -> bool | None:
    """Tell whether a name is there; None where its package is not installed."""
    parts = name.split(".")
    try:
        found = importlib.import_module(parts[0])
    except ImportError:
        return None
    for k, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            try:
                importlib.import_module(".".join(parts[:k]))
            except ModuleNotFoundError as error:
                # A module that is there and needs a package that is not (torch.utils.tensorboard).
                missing = str(error.name)
                return False if missing.split(".")[0] == parts[0] else None
            except ImportError:
                return False
        found = getattr(found, part)
    return True


def installed_operation(name: str) -> bool:
    """Tell whether an operation is there, or an overload of it."""
    import torch

    found = torch.ops
    for part in name.split("."):
        if part == "overloads":
            return True
        found = getattr(found, part, None)
        if found is None:
            return False
    return True


def in_sources(folder: Path) -> tuple[Callable[[str], bool | None], Callable[[str], bool]]:
    """Return the same two checks for the sources of a PyTorch that cannot be imported."""
    listed = folder / "torchgen/packaged/ATen/native/native_functions.yaml"
    functions = set(re.findall(r"^- func: ([\w.]+)", listed.read_text("utf-8"), re.MULTILINE))
    torch = folder / "torch"
    texts: dict[Path, str] = {}

    def defines(paths: list[Path], part: str) -> bool:
        text = ""
        for path in paths:
            if path not in texts:
                texts[path] = path.read_text("utf-8", errors="replace")
            text += texts[path]
        ways = (
            rf"(def|class)\s+{part}\b", rf"^\s*{part}\s*[:=]", rf"import\b.*\b{part}\b",
            rf"\bas {part}\b", rf"[\"']{part}[\"']", rf"^\s*{part},?$",
        )  # fmt: skip
        return re.search("|".join(ways), text, re.MULTILINE) is not None

    def name_in(name: str) -> bool | None:
        first, *rest = name.split(".")
        if first != "torch":
            return None
        place = torch
        for part in rest:
            if part.startswith("__"):
                return True  # every module and class has these
            if (place / part).is_dir() or (place / f"{part}.py").exists():
                place = place / part
                continue
            if place in (torch, torch / "_C"):
                places = [torch / "__init__.py", torch / "functional.py", torch / "_tensor.py"]
                places += sorted((torch / "_C").glob("*.pyi"))
            elif place.is_dir():
                places = sorted(place.rglob("*.py"))
            else:
                places = [place.with_suffix(".py")]
            return defines(places, part)  # what hangs on a class or a value is not followed
        return True

    def operation_in(name: str) -> bool:
        space, operation, *overload = name.split(".")
        if space == "prims":
            return defines([torch / "_prims/__init__.py"], operation)
        if overload in (["default"], ["overloads"], []):
            return any(f.split(".")[0] == operation for f in functions)
        return f"{operation}.{overload[0]}" in functions

    return name_in, operation_in


def main() -> int:
    """Check, and print what is missing."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("package", type=Path, help="folder of pyro_nfvi")
    parser.add_argument("--sources", type=Path, help="site-packages of a PyTorch to read")
    options = parser.parse_args()
    names, operations = used(options.package)
    has, has_operation = installed, installed_operation
    if options.sources:
        has, has_operation = in_sources(options.sources)
    answers = {name: has(name) for name in sorted(names)}
    missing = [name for name, there in answers.items() if there is False and name not in GUARDED]
    left_out = [name for name in sorted(operations) if not has_operation(name)]
    checked = sum(there is not None for there in answers.values())
    print(f"{checked} names checked, {len(missing)} missing")
    for name in missing:
        print(f"  {name}: {names[name]}")
    print(f"{len(operations)} operations of ATen looked for, {len(left_out)} not there")
    for name in left_out:
        print(f"  {name}: {operations[name]}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
