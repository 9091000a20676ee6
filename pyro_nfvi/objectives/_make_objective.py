"""Names of objectives."""

from __future__ import annotations

from collections.abc import Callable

from pyro_nfvi.errors import OptionError
from pyro_nfvi.objectives._elbo import PathELBO, TotalELBO
from pyro_nfvi.objectives._importance_weighted import ImportanceELBO, RenyiELBO
from pyro_nfvi.objectives._objective import Objective
from pyro_nfvi.objectives._schedules import Tempered
from pyro_nfvi.objectives._tempered import TemperedELBO

_KNOWN: dict[str, Callable[[], Objective]] = {
    "path": PathELBO,
    "total": TotalELBO,
    "iw": lambda: ImportanceELBO(estimator="total"),
    "dreg": ImportanceELBO,
    "renyi": RenyiELBO,
    # A tenth of the paper's steps, since a fit takes a few thousand.
    "tempered": lambda: TemperedELBO(Tempered(steps=1000)),
}


def make_objective(objective: str | Objective) -> Objective:
    """Return the objective of a name.

    ``"path"`` and ``"total"`` are the ELBO with two gradients; ``"iw"`` and ``"dreg"`` the
    importance-weighted bound of 8 draws with two gradients; ``"renyi"`` Rényi's bound of order 0.5
    with 8 draws; ``"tempered"`` the ELBO of a target that is cold after 990 steps.

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
