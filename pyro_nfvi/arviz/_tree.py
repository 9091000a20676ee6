"""The last step of the conversion: named arrays to ``InferenceData`` or ``DataTree``.

Imports neither torch nor Pyro, so that it can be tested where only ArviZ 1 is installed.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyro_nfvi._optional_import import process_kept
from pyro_nfvi.errors import MissingPackageError

#: Groups whose variables begin with the dimensions chain and draw.
SAMPLED = (
    "posterior",
    "unconstrained_posterior",
    "posterior_predictive",
    "log_likelihood",
    "log_prior",
    "sample_stats",
    "prior",
    "prior_predictive",
    "predictions",
)
#: All groups, in the order in which they are shown.
ORDER = (*SAMPLED, "observed_data", "constant_data", "predictions_constant_data")

#: ``(names of the dimensions after chain and draw, array)``.
Variable = tuple[tuple[str, ...], np.ndarray]


@dataclass
class Groups:
    """Contents of the result: arrays with named dimensions, by group and variable.

    Attributes:
        variables: ``group -> name -> (dims, array)``; arrays of sampled groups have the shape
            ``(chain, draw, *dims)``, those of the others ``(*dims)``.
        coords: ``dim -> labels``; dimensions that are not named count from 0.
        attrs: ``group -> attributes``; numbers, strings, and arrays of them.
    """

    variables: dict[str, dict[str, Variable]] = field(default_factory=dict)
    coords: dict[str, np.ndarray] = field(default_factory=dict)
    attrs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, group: str, name: str, dims: tuple[str, ...], array: np.ndarray) -> None:
        """Put one variable into a group."""
        self.variables.setdefault(group, {})[name] = (dims, np.asarray(array))

    def note(self, group: str, **attrs: Any) -> None:
        """Add attributes to a group."""
        self.attrs.setdefault(group, {}).update(attrs)


def require_arviz() -> tuple[Any, Any]:
    """Import ArviZ and xarray.

    Raises:
        MissingPackageError: ArviZ is not installed.
    """
    try:
        with process_kept():
            import arviz
            import xarray
    except ImportError as error:
        raise MissingPackageError(
            "to_arviz needs ArviZ, which is not installed: pip install 'pyro-nfvi[arviz]'"
        ) from error
    return arviz, xarray


def build_tree(groups: Groups) -> Any:
    """Make an ``InferenceData`` (ArviZ 0.2x) or an ``xarray.DataTree`` (ArviZ 1 and later)."""
    arviz, xarray = require_arviz()
    datasets = {
        group: _dataset(xarray, group, variables, groups)
        for group, variables in sorted(
            groups.variables.items(), key=lambda item: ORDER.index(item[0])
        )
        if variables
    }
    if int(arviz.__version__.split(".")[0]) < 1:
        return arviz.InferenceData(**datasets)
    return xarray.DataTree.from_dict(datasets)


def _plain(name: str) -> str:
    """Name without the slash, which DataTree and netCDF keep for groups."""
    return name.replace("/", "|")


def _dataset(xarray: Any, group: str, variables: Mapping[str, Variable], groups: Groups) -> Any:
    sampled = ("chain", "draw") if group in SAMPLED else ()
    data, coords, renamed = {}, {}, {}
    labels_of = {_plain(dim): labels for dim, labels in groups.coords.items()}
    taken = {*sampled, *(_plain(dim) for dims, _ in variables.values() for dim in dims)}
    for name, (dims, array) in variables.items():
        own = _plain(name)
        if own in taken:  # xarray would take a variable of a dimension's name for its labels
            own = f"{own}_site"
        while own in data:
            own = f"{own}_"
        if own != name:
            renamed[own] = name
        full = (*sampled, *map(_plain, dims))
        data[own] = (full, array)
        for dim, size in zip(full, array.shape):
            labels = labels_of.get(dim)
            coords[dim] = labels if labels is not None and len(labels) == size else np.arange(size)
    attrs = {
        "created_at": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "inference_library": "pyro_nfvi",
        "sample_dims": list(sampled),
        **groups.attrs.get(group, {}),
        **{f"site_of_{own}": name for own, name in renamed.items()},
    }
    return xarray.Dataset(data, coords=coords, attrs=attrs)
