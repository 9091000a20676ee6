"""Names of a package that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any


def lazy(
    package: str, names: Mapping[str, str], folders: Collection[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make ``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: Its ``__name__``.
        names: The module of each name, relative to the package.
        folders: Packages inside it that are names of it as well.
    """

    def find(name: str) -> Any:
        if name in folders:
            return import_module(f"{package}.{name}")
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{names[name]}"), name)
        setattr(sys.modules[package], name, value)  # found without this function from now on
        return value

    def listed() -> list[str]:
        # Public names alone: this is what completion offers.
        version = {"__version__"} & set(vars(sys.modules[package]))
        return sorted({*names, *folders, *version})

    return find, listed
