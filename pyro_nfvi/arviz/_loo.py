"""Leave-one-out that takes the approximation into account, on both lines of ArviZ."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from pyro_nfvi.diagnostics._psis import khat_threshold, psis
from pyro_nfvi.errors import OptionError


class LOO(NamedTuple):
    """Expected log predictive density of new observations, in nats."""

    #: The sum over the observations.
    elpd: float
    #: Its standard error.
    se: float
    #: Effective number of parameters: log density of the observations less ``elpd``.
    p_loo: float
    #: The terms of the sum, one per observation (N,).
    pointwise: np.ndarray
    #: Shape of the tail of each observation's weights (N,), to be read against
    #: ``khat_threshold``.
    pareto_k: np.ndarray
    #: Number of draws.
    num_draws: int = 10_000

    def to_arviz(self) -> Any:
        """Return the same as ArviZ's own ``ELPDData``, which ``az.compare`` takes.

        Raises:
            MissingPackageError: ArviZ is not installed.
        """
        from pyro_nfvi.arviz._tree import elpd_data

        return elpd_data(
            self.elpd, self.se, self.p_loo, self.pointwise, self.pareto_k, self.num_draws
        )

    def __str__(self) -> str:
        limit = khat_threshold(self.num_draws)
        bad = int((self.pareto_k >= limit).sum())
        return (
            f"elpd {self.elpd:.2f} ± {self.se:.2f} nats, p_loo {self.p_loo:.2f}; "
            f"{bad} of {len(self.pareto_k)} observations with k-hat above {limit:.2g}"
        )


def loo_approximate(data: Any, *, var_name: str | None = None) -> LOO:
    r"""Leave-one-out predictive density from approximate draws, by importance sampling.

    .. math::
        \mathrm{elpd} = \sum_i \log \frac{\sum_s w_{is}\, p(y_i \mid \theta_s)}{\sum_s w_{is}},
        \qquad w_{is} \propto \frac{p(\theta_s, y)}{q(\theta_s)\, p(y_i \mid \theta_s)},

    with Pareto-smoothed weights; for a site under ``poutine.scale`` the density in the weights is
    taken to the power of the scale, as in ``log_p``. ``az.loo`` takes the draws for those of the
    posterior; here their weights count too. ArviZ 1 has the same as
    ``az.loo_approximate_posterior``.

    Args:
        data: What :func:`pyro_nfvi.to_arviz` returned, with ``log_likelihood``, ``log_p`` and
            ``log_q``.
        var_name: The observed site, if there are several.

    Units:
        Nats.

    Cost:
        One smoothing of S weights per observation.

    Raises:
        OptionError: A group or variable is missing, there are several observed sites, or the data
            are one mini-batch of all.

    Source: Magnusson, Andersen, Jonasson & Vehtari 2019, PMLR 97, section 2.2.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_nfvi import NFVI
        >>> from pyro_nfvi.arviz import loo_approximate
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> y = torch.tensor([1.0, 2.0, 3.0, 2.5])
        >>> fit = NFVI(model, "affine", max_steps=100, seed=0, progress=False).run(y)
        >>> loo = loo_approximate(fit.to_arviz(num_samples=500))
        >>> loo.pareto_k.shape, bool(loo.elpd < 0)
        ((4,), True)
    """
    likelihood, stats = _group(data, "log_likelihood"), _group(data, "sample_stats")
    names = list(likelihood.data_vars)
    if var_name is None and len(names) > 1:
        raise OptionError(f"Name the observed site: var_name is one of {', '.join(names)}.")
    name = names[0] if var_name is None else var_name
    if name not in names:
        raise OptionError(f"There is no log likelihood of {name!r}; there are {', '.join(names)}.")
    missing = [one for one in ("log_p", "log_q") if one not in stats.data_vars]
    if missing:
        raise OptionError(
            f"sample_stats has no {missing[0]}: these draws are not from an approximation with a "
            "known density. Use az.loo."
        )
    if "mini_batch" in likelihood.attrs:
        raise OptionError(
            f"The log likelihood is of one mini-batch ({likelihood.attrs['mini_batch']}), whose "
            "weights are noise. Convert with the whole plate: to_arviz(fit, model=whole_model)."
        )
    draws = likelihood[name].values
    count = draws.shape[0] * draws.shape[1]
    each = torch.as_tensor(draws.reshape(count, -1), dtype=torch.float64)
    log_w = torch.as_tensor((stats["log_p"] - stats["log_q"]).values.reshape(count))
    log_w = log_w.double()
    log_w = torch.where(log_w < math.inf, log_w, -math.inf)
    scale = float(likelihood.attrs.get(f"scale_of_{name}", 1.0))
    terms, khats = [], []
    for row in each.T:
        smoothed = psis(log_w - scale * row)
        terms.append(float(torch.logsumexp(smoothed.log_weights + row, 0)))
        khats.append(smoothed.khat)
    pointwise = np.array(terms)
    whole = psis(log_w).log_weights
    density = float(torch.logsumexp(whole[:, None] + each, 0).sum())
    elpd = float(pointwise.sum())
    se = math.sqrt(len(terms)) * float(pointwise.std(ddof=1)) if len(terms) > 1 else math.nan
    return LOO(elpd, se, density - elpd, pointwise, np.array(khats), count)


def _group(data: Any, name: str) -> Any:
    try:
        return data[name]
    except KeyError:
        raise OptionError(
            f"The data have no group {name}; convert a fit with to_arviz(fit), and see "
            f"posterior.attrs for why it may be missing."
        ) from None
