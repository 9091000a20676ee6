"""``show_versions``: the facts that a report of a problem needs."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

from pyro_nfvi._engine.cache import default_folder
from pyro_nfvi._engine.program import Unsupported
from pyro_nfvi._version import __version__

#: Packages by the name of their distribution, required ones first.
_PACKAGES = (
    "torch", "pyro-ppl", "numpy", "tqdm", "cloudpickle", "loky", "platformdirs",
    "arviz", "h5netcdf", "matplotlib", "scikit-learn", "torchdiffeq", "zuko",
)  # fmt: skip


def show_versions() -> str:
    """Print, and return, the versions that a report of a problem needs.

    The home folder is written as ``~``; no other name of the machine or of its user is shown. What
    is not installed is shown as such.

    Returns:
        The printed text, a line for each fact.

    Cost:
        Some tens of milliseconds; up to seconds at the first call with a new compiler, which is
        tried out.

    Example:
        >>> import pyro_nfvi as nfvi
        >>> text = nfvi.show_versions()
        pyro_nfvi     ...
        platform      ...
        >>> text.split()[:2] == ["pyro_nfvi", nfvi.__version__]
        True
    """
    rows = [("pyro_nfvi", __version__), ("python", platform.python_version())]
    rows += [(name, _version_of(name)) for name in _PACKAGES]
    rows += [
        ("compiler", _compiler()),
        ("cache folder", str(default_folder())),
        ("CPUs", str(os.cpu_count())),
        ("threads", str(torch.get_num_threads())),
        ("GPU", _gpu()),
        ("platform", platform.platform()),
    ]
    width = max(len(name) for name, _ in rows)
    text = _without_home("\n".join(f"{name:<{width}}  {value}" for name, value in rows))
    print(text)
    return text


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _compiler() -> str:
    from pyro_nfvi._engine.native.compiler import find_compiler

    try:
        found = find_compiler()
    except Unsupported as error:
        return f"none ({error})"
    return f"{' '.join(found.command)}: {found.version}"


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none"
    return f"{torch.cuda.get_device_name()}, {torch.cuda.device_count()} in all"


def _without_home(text: str) -> str:
    home = str(Path.home())
    return text if home == os.sep else text.replace(home, "~")
