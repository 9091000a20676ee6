"""Observed sites as one vector, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_nfvi._option_names import meant
from pyro_nfvi._pyro_model.latent_space import is_discrete
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.errors import DataError, OptionError, ShapeError


@dataclass(frozen=True)
class ObservedLayout:
    """Observed sites with their shapes, in the order of the model.

    Attributes:
        shapes: Shape of each site.
        whole: Sites whose values are whole numbers.
    """

    shapes: Mapping[str, tuple[int, ...]]
    whole: tuple[str, ...] = ()

    @classmethod
    def of(cls, trace: Trace, names: tuple[str, ...]) -> ObservedLayout:
        """Read the layout from a run of the model with these sites drawn."""
        sites = {name: site for name, site in trace.nodes.items() if name in names}
        shapes = {name: tuple(site["value"].shape) for name, site in sites.items()}
        counts = (
            name
            for name, site in sites.items()
            if is_discrete(site["fn"]) or not site["value"].is_floating_point()
        )
        return cls(shapes, tuple(counts))

    @property
    def dim(self) -> int:
        """Numbers of one data set."""
        return sum(map(math.prod, self.shapes.values()))

    def flatten(self, values: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """Make rows ``(n, X)`` of values ``(n, *shape)`` by site."""
        parts = [values[name].flatten(1) if shape else values[name].reshape(-1, 1)
                 for name, shape in self.shapes.items()]  # fmt: skip
        return torch.cat([part.to(like) for part in parts], 1)

    def read(self, data: Any, like: Tensor) -> TensorDict:
        """Read the data of a user: values by site, or of the one site there is.

        Raises:
            OptionError: A name is not among the sites, or one is missing.
            ShapeError: A value has another shape than the simulations.
            DataError: A number is NaN or infinite.
        """
        given = self._by_site(data)
        found = {}
        for name, shape in self.shapes.items():
            value = _as_tensor(name, given[name])
            if tuple(value.shape) != shape:
                raise ShapeError(
                    f"The data of {name!r} have shape {tuple(value.shape)}, and those that were "
                    f"simulated {shape}. Give data of that shape, or amortise the model with "
                    "arguments at which it simulates such data."
                )
            bad = int((~torch.isfinite(value.double())).sum())
            if bad:
                raise DataError(
                    f"{bad} of {value.numel()} numbers of {name!r} are NaN or infinite, which no "
                    "simulation is. Fill them in, or write the model so that it simulates what "
                    "is missing too (a site that says which are)."
                )
            found[name] = value.to(like.device) if name in self.whole else value.to(like)
        return found

    def at(self, index: int) -> str:
        """Name a number of the vector in words, such as ``"y[3]"``."""
        for name, shape in self.shapes.items():
            size = math.prod(shape)
            if index < size:
                place = ", ".join(map(str, np.unravel_index(index, shape))) if shape else ""
                return f"{name}[{place}]" if place else name
            index -= size
        raise IndexError(index)

    def _by_site(self, data: Any) -> Mapping[str, Any]:
        if not isinstance(data, Mapping):
            if len(self.shapes) == 1:
                return {next(iter(self.shapes)): data}
            raise OptionError(
                f"The data are those of {len(self.shapes)} sites: pass a dict "
                f"{{{', '.join(f'{name!r}: ...' for name in self.shapes)}}}; got "
                f"{type(data).__name__}."
            )
        for name in data:
            if name not in self.shapes:
                raise OptionError(
                    f"The data name {name!r}, which was not simulated.{meant(name, self.shapes)} "
                    f"Observed are {', '.join(map(repr, self.shapes))}."
                )
        missing = [name for name in self.shapes if name not in data]
        if missing:
            raise OptionError(f"The data of {', '.join(map(repr, missing))} are missing.")
        return data


def _as_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    try:
        array = np.asarray(value)
        return torch.as_tensor(array.astype(np.float64) if array.dtype == object else array)
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"The data of {name!r} are no numbers: {type(value).__name__}. Pass a tensor or an "
            "array."
        ) from error
