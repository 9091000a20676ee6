"""Names of objectives."""

from __future__ import annotations

from pyro_nfvi.errors import OptionError
from pyro_nfvi.objectives.base import Objective
from pyro_nfvi.objectives.elbo import PathELBO, TotalELBO

__all__ = ["make_objective"]

_KNOWN: dict[str, type[Objective]] = {"path": PathELBO, "total": TotalELBO}


def make_objective(objective: str | Objective) -> Objective:
    """Return the objective of a name: ``"path"`` or ``"total"``.

    Raises:
        OptionError: An unknown name, or something that is no objective.

    Example:
        >>> make_objective("path").name
        'path'
    """
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, str) and objective in _KNOWN:
        return _KNOWN[objective]()
    raise OptionError(
        f"objective is one of {', '.join(map(repr, _KNOWN))} or an Objective; got {objective!r}."
    )
