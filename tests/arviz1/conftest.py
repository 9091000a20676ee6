"""Makes the torch-free part of the package importable where torch is not installed."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

try:
    import torch  # noqa: F401
except ImportError:
    # Packages without their __init__, which would import torch and Pyro.
    for name in ("pyro_nfvi", "pyro_nfvi.arviz"):
        package = types.ModuleType(name)
        package.__path__ = [str(ROOT.joinpath(*name.split(".")))]
        sys.modules[name] = package


@pytest.fixture(autouse=True)
def _clean_slate():
    """Stands in for the fixture of the root, which needs torch and Pyro."""
