"""Results of cross-validation as ArviZ's own ``ELPDData``, of whichever ArviZ is installed.

Imports neither torch nor Pyro, so that it can be tested where only ArviZ 1 is installed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyro_nfvi.arviz._tree import require_arviz
from pyro_nfvi.errors import OptionError


@dataclass(frozen=True)
class Observations:
    """Terms of a sum over observations, in the dimensions that the observations have.

    Attributes:
        elpd: Log predictive density of each ``(*shape)``, in nats.
        pareto_k: Shape of the tail of each one's weights; None where no weights were used.
        log_density: Log density of each under all data; the effective number of parameters is the
            difference to ``elpd``.
        dims: Names of the dimensions.
        coords: Their labels.
    """

    elpd: np.ndarray
    log_density: np.ndarray
    pareto_k: np.ndarray | None = None
    dims: Sequence[str] = ()
    coords: Mapping[str, Any] = field(default_factory=dict)

    def array(self, values: np.ndarray, name: str) -> Any:
        """Return values by observation as a ``DataArray``."""
        _, xarray = require_arviz()
        dims = list(self.dims) or [f"observation_dim_{axis}" for axis in range(values.ndim)]
        if values.ndim == 0:
            values, dims = values[None], ["observation"]
        coords = {dim: labels for dim, labels in self.coords.items() if dim in dims}
        return xarray.DataArray(values, dims=dims, coords=coords, name=name)

    @property
    def se(self) -> float:
        """Standard error of the sum over the observations."""
        count = self.elpd.size
        return math.sqrt(count) * float(self.elpd.std(ddof=1)) if count > 1 else math.nan


def elpd_data(
    found: Observations,
    num_draws: int,
    *,
    num_folds: int = 0,
    approximate: bool = True,
) -> Any:
    """Make an ``ELPDData``, which ``az.compare``, ``az.plot_khat`` and ``print`` take.

    Args:
        found: The terms.
        num_draws: Draws behind each.
        num_folds: Parts of the data that were held out, in k-fold cross-validation; 0 for
            leave-one-out.
        approximate: Whether weights correct the draws of an approximation.

    Under ArviZ 0.2x it has the names of that line (``elpd_loo``, ``p_loo``, ``loo_i``) and those
    of ArviZ 1 (``elpd``, ``p``, ``elpd_i``) too, so that code runs on both.
    """
    arviz, _ = require_arviz()
    elpd, parameters = float(found.elpd.sum()), float((found.log_density - found.elpd).sum())
    rows = found.array(found.elpd, "elpd_i")
    khats = None if found.pareto_k is None else found.array(found.pareto_k, "pareto_k")
    good_k = min(1 - 1 / np.log10(num_draws), 0.7) if num_draws > 1 else 0.7
    bad = found.pareto_k is not None and bool((found.pareto_k > good_k).any())
    if int(arviz.__version__.split(".")[0]) < 1:
        named = {
            "elpd_loo": elpd,
            "se": found.se,
            "p_loo": parameters,
            "n_samples": num_draws,
            "n_data_points": rows.size,
            "warning": bad,
            "loo_i": rows.rename("loo_i"),
            **({} if khats is None else {"pareto_k": khats}),
            "scale": "log",
            "good_k": good_k,
            **({"n_folds": num_folds} if num_folds else {}),
            **{"elpd": elpd, "p": parameters, "elpd_i": rows},  # as ArviZ 1 calls them
        }
        return arviz.stats.stats_utils.ELPDData(list(named.values()), index=list(named))
    from arviz_stats import utils

    made: dict[str, Any] = {
        "elpd": elpd,
        "se": found.se,
        "p": parameters,
        "n_samples": num_draws,
        "n_data_points": rows.size,
        "scale": "log",
        "warning": bad,
        "good_k": good_k,
        "elpd_i": rows,
        "pareto_k": khats,
    }
    differences = found.array(found.log_density - found.elpd, "p_i")
    if not hasattr(utils, "ELPDDataLOO"):  # before 1.1
        kind = {"kind": "loo_kfold" if num_folds else "loo"}
        own = {"n_folds": num_folds} if num_folds else {"approx_posterior": approximate}
        return utils.ELPDData(**kind, **made, **own)
    if num_folds:
        made |= {"good_k": None}
        return utils.ELPDDataLOOKFold(**made, n_folds=num_folds, p_kfold_i=differences)
    return utils.ELPDDataLOO(**made, approx_posterior=approximate, p_loo_i=differences)


def terms_of(loo: Any) -> tuple[Observations, int, float]:
    """Read the terms, the number of draws and the threshold of k-hat of an ``ELPDData``.

    Raises:
        OptionError: It is none, or has no terms by observation.
    """
    rows: Any = getattr(loo, "elpd_i", getattr(loo, "loo_i", None))
    if not hasattr(rows, "dims"):
        raise OptionError(
            f"loo is a result of loo_approximate, or of az.loo(..., pointwise=True); got "
            f"{type(loo).__name__}{'' if rows is None else ' without terms by observation'}."
        )
    elpd = np.array(rows.values, dtype=np.float64)
    total = float(getattr(loo, "p", getattr(loo, "p_loo", math.nan)))
    parameters = getattr(loo, "p_loo_i", None)  # ArviZ 1 alone has it by observation
    spread = np.full(elpd.shape, total / elpd.size) if parameters is None else parameters.values
    khats, dims = getattr(loo, "pareto_k", None), tuple(str(dim) for dim in rows.dims)
    terms = Observations(
        elpd,
        elpd + spread,
        None if khats is None else np.array(khats.values, dtype=np.float64),
        dims,
        {dim: rows.coords[dim].values for dim in dims if dim in rows.coords},
    )
    return terms, int(loo.n_samples), float(loo.good_k)
