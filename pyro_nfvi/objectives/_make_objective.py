"""Names of objectives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, final

from torch import Tensor

from pyro_nfvi._typing import Noise
from pyro_nfvi.errors import OptionError
from pyro_nfvi.objectives._elbo import PathELBO, TotalELBO
from pyro_nfvi.objectives._importance_weighted import ImportanceELBO
from pyro_nfvi.objectives._objective import Approximation, Estimate, LogDensity, Objective
from pyro_nfvi.objectives._renyi import RenyiELBO
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


#: An objective, its name, or a function with the arguments of ``Objective.estimate``.
ObjectiveLike: TypeAlias = str | Objective | Callable[..., Estimate]


@final
class _Function(Objective):
    """A plain function as an objective."""

    def __init__(self, function: Callable[..., Estimate]) -> None:
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)

    def estimate(
        self,
        density: Approximation,
        log_density: LogDensity,
        eps: Noise,
        params: Sequence[Tensor] = (),
    ) -> Estimate:
        return self.function(density, log_density, eps, params)


def make_objective(objective: ObjectiveLike) -> Objective:
    """Return the objective of a name, or a function as an objective.

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
    if callable(objective) and not isinstance(objective, type):
        return _Function(objective)
    raise OptionError(
        f"objective is one of {', '.join(map(repr, _KNOWN))}, an Objective or a function; got "
        f"{objective!r}."
    )
