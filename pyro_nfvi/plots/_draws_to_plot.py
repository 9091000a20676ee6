"""Numbers by name: which draws a label such as ``log theta[0]`` means."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch.distributions import constraints

from pyro_nfvi.errors import OptionError
from pyro_nfvi.plots._recipe import RECIPE
from pyro_nfvi.plots._style import array

_LABEL = re.compile(r"(log\s+)?(.+?)(?:\[([\d,\s]+)\])?$")


def draws_of(source: Any) -> Mapping[str, Any]:
    """Return draws by site: those of a dict, or drawn from a fit."""
    if isinstance(source, Mapping):
        return source
    if hasattr(source, "sample") and hasattr(source, "guide"):
        drawn: Mapping[str, Any] = source.sample(RECIPE.draws, seed=0)
        return drawn
    raise OptionError(
        "Pictures take a fit or draws as a dict {site: (draws, *shape)}; got "
        f"{type(source).__name__}."
    )


def column(draws: Mapping[str, Any], label: str) -> np.ndarray:
    """The draws of one number, named ``site``, ``site[i, j]`` or ``log site[i]``."""
    found = _LABEL.match(label)
    logged, site, index = found.groups() if found else (None, label, None)
    if label in draws:
        logged, site, index = None, label, None
    if site not in draws:
        raise OptionError(f"There are no draws of {site!r}; the sites are {sorted(draws)}.")
    values = array(draws[site])
    if index is not None:
        place, shape = tuple(int(part) for part in index.split(",")), values.shape[1:]
        if len(place) != len(shape) or any(p >= size for p, size in zip(place, shape)):
            raise OptionError(f"{label!r} does not fit {site!r}, which has the shape {shape}.")
        values = values.reshape(len(values), -1)[:, int(np.ravel_multi_index(place, shape))]
    if values.ndim != 1:
        raise OptionError(
            f"{site!r} has the shape {values.shape[1:]}; name one element, as in {site + '[0]'!r}."
        )
    values = values.astype(float)
    return np.log(values) if logged else values


def bounds_of(source: Any, label: str) -> tuple[float, float]:
    """Ends of the support of the number that a label names; infinite where none is known.

    Args:
        source: A fit, which knows the supports of its sites, or draws, which do not.
        label: The number, as for :func:`column`.
    """
    sites = getattr(getattr(source, "latent", None), "sites", {})
    found = _LABEL.match(label)
    logged, name = (None, label) if label in sites else found.groups()[:2] if found else (None, "")
    if logged or name not in sites:
        return -math.inf, math.inf
    support = sites[name].support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support is constraints.simplex:
        return 0.0, 1.0
    if support is constraints.corr_cholesky:
        return -1.0, 1.0
    low, high = (getattr(support, end, None) for end in ("lower_bound", "upper_bound"))
    return (
        -math.inf if low is None else float(array(low).min()),
        math.inf if high is None else float(array(high).max()),
    )


def elements(draws: Mapping[str, Any], name: str) -> list[str]:
    """All elements of a site, or the one that is named."""
    shape = array(draws[name]).shape[1:] if name in draws else ()
    if not shape:
        column(draws, name)
        return [name]
    return [f"{name}[{', '.join(map(str, place))}]" for place in np.ndindex(*shape)]


def has(draws: Mapping[str, Any] | None, label: str) -> bool:
    """Tell whether the draws hold the site that a label names."""
    if draws is None:
        return False
    found = _LABEL.match(label)
    return label in draws or (found is not None and found.group(2) in draws)
