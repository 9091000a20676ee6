"""A plugin of pytest that checks the shapes in annotations: ``make test-shapes``.

``pytest -p shapes tests/flows/test_laws.py`` (with ``tests`` on the path) loads the names of shapes
as a type checker sees them, and lets jaxtyping and beartype check the calls of flows and densities.
"""

from __future__ import annotations

import importlib.util
import sys
import typing
from pathlib import Path

from jaxtyping import install_import_hook

CHECKED = [
    "pyro_nfvi.flows",
    "pyro_nfvi.distributions._flow_density",
    "pyro_nfvi.distributions._mixture",
    "pyro_nfvi.objectives._objective",
    "pyro_nfvi.objectives._surrogate",
    "pyro_nfvi.objectives._elbo",
    "pyro_nfvi.objectives._importance_weighted",
    "pyro_nfvi.objectives._renyi",
    "pyro_nfvi.objectives._tempered",
    "pyro_nfvi.guides._auto_flow",
    "pyro_nfvi.guides._flow_posterior",
    "pyro_nfvi.guides._mixture_posterior",
]


def _load_shapes() -> None:
    path = Path(__file__).resolve().parent.parent / "pyro_nfvi" / "_typing.py"
    spec = importlib.util.spec_from_file_location("pyro_nfvi._typing", path)
    module = importlib.util.module_from_spec(spec)
    typing.TYPE_CHECKING = True
    try:
        spec.loader.exec_module(module)
    finally:
        typing.TYPE_CHECKING = False
    sys.modules["pyro_nfvi._typing"] = module


assert "pyro_nfvi" not in sys.modules, "load this plugin by -p, before anything of the package"
_load_shapes()
install_import_hook(CHECKED, "beartype.beartype")
