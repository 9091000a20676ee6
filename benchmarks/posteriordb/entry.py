"""What one benchmark posterior consists of, and how its files are read.

Every posterior NAME of ``models.py`` has two files in ``data/``:

* ``NAME.json``: the data as posteriordb publishes them;
* ``NAME.npz``: what is known of the true posterior (see :class:`Reference`).

The models expect double precision throughout, so call
``torch.set_default_dtype(torch.float64)`` before running them.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

_REFERENCE_NAME = re.compile(r"(\w+)(?:\[(\d+)\])?")


@dataclass(frozen=True)
class Entry:
    """A model, the way to feed it, and what makes its posterior interesting."""

    model: Callable[..., None]
    #: Turns the parsed data file into the keyword arguments of ``model``.
    prepare: Callable[[dict], dict]
    #: Named sites, sampled or deterministic, that the reference draws describe.
    sites: tuple[str, ...]
    #: One line on the shape of the posterior.
    geometry: str
    #: "posteriordb" for published gold-standard draws, "stan" for a run of
    #: posteriordb's Stan program where it publishes no draws.
    reference: str = "posteriordb"

    def load(self, path: str | Path) -> dict:
        """Return the keyword arguments of ``model`` for the data file ``path``."""
        return self.prepare(json.loads(Path(path).read_text()))


@dataclass(frozen=True)
class Reference:
    """Summary of the 10,000 reference draws of one posterior.

    ``names`` are those of the scalar quantities in Stan's notation, such as
    ``theta[1]``, and index the last axis of everything else. ``draws`` is a
    thinned subset of 2,000; mean, sd and quantiles come from all 10,000.
    """

    names: tuple[str, ...]
    mean: np.ndarray
    sd: np.ndarray
    quantiles: np.ndarray  # rows: 5%, 50%, 95%
    draws: np.ndarray
    floor: dict[str, float]  # scores of ``draws`` against the other 8,000

    @classmethod
    def load(cls, path: str | Path) -> "Reference":
        with np.load(path) as file:
            return cls(
                names=tuple(file["names"].tolist()),
                mean=file["mean"],
                sd=file["sd"],
                quantiles=file["quantiles"],
                draws=file["draws"],
                floor={
                    key.removeprefix("floor_"): float(file[key])
                    for key in file.files
                    if key.startswith("floor_")
                },
            )

    def draws_by_site(self) -> dict[str, np.ndarray]:
        """The draws as ``{site: (2000, *shape)}``, with vectors for indexed names."""
        return {
            site: self.draws[:, places] if len(places) > 1 else self.draws[:, places[0]]
            for site, places in self.places().items()
        }

    def places(self) -> dict[str, list[int]]:
        """Where each site's elements stand among ``names``."""
        found: dict[str, list[int]] = {}
        for index, name in enumerate(self.names):
            found.setdefault(locate(name)[0], []).append(index)
        return found


def locate(name: str) -> tuple[str, int]:
    """Split a reference name into a site and an index into its flattened value.

    >>> locate("theta[3]")
    ('theta', 2)
    >>> locate("mu")
    ('mu', 0)
    """
    match = _REFERENCE_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"not a scalar or vector element: {name!r}")
    site, index = match.groups()
    return site, int(index or 1) - 1


def columns(draws: dict[str, np.ndarray], names: Iterable[str]) -> np.ndarray:
    """Arrange draws, given as ``{site: (num_draws, *shape)}``, in columns ``names``."""
    flat = {site: np.asarray(a).reshape(len(a), -1) for site, a in draws.items()}
    return np.stack([flat[site][:, i] for site, i in map(locate, names)], axis=1)


def tensors(*names: str) -> Callable[[dict], dict]:
    """Make a ``prepare`` function that converts the named fields and drops the rest."""

    def prepare(data: dict) -> dict:
        return {name: as_tensor(data[name]) for name in names}

    return prepare


def as_tensor(values) -> torch.Tensor:
    """Convert a (nested) list of numbers to a float64 tensor."""
    return torch.as_tensor(values, dtype=torch.float64)


def as_index(values) -> torch.Tensor:
    """Convert Stan's 1-based indices to Python's."""
    return torch.as_tensor(values) - 1
