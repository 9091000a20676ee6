"""Leave-one-out that takes the approximation into account, on both lines of ArviZ."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_nfvi._option_names import knows_options
from pyro_nfvi.arviz._elpd import Observations, elpd_data
from pyro_nfvi.diagnostics._psis import psis
from pyro_nfvi.errors import OptionError


@knows_options
def loo_approximate(data: Any, *, var_name: str | None = None) -> Any:
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

    Returns:
        ArviZ's ``ELPDData``, which ``az.compare`` and ``az.plot_khat`` take, with ``elpd``, ``se``,
        ``p`` (the effective number of parameters), and in the dimensions of the observations
        ``elpd_i`` and ``pareto_k``. Under ArviZ 0.2x, whose names are ``elpd_loo``, ``p_loo`` and
        ``loo_i``, it has both.

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
        >>> loo.pareto_k.dims, loo.pareto_k.shape, bool(loo.elpd < 0)
        (('data',), (4,), True)
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
    draws = likelihood[name]
    count = draws.shape[0] * draws.shape[1]
    each = torch.as_tensor(draws.values.reshape(count, -1), dtype=torch.float64)
    log_w = torch.as_tensor((stats["log_p"] - stats["log_q"]).values.reshape(count))
    log_w = log_w.double()
    log_w = torch.where(log_w < math.inf, log_w, -math.inf)
    scale = float(likelihood.attrs.get(f"scale_of_{name}", 1.0))
    terms, khats = leave_each_out(log_w, each, scale)
    whole = psis(log_w).log_weights
    density = torch.logsumexp(whole[:, None] + each, 0).numpy()
    shape, dims = draws.shape[2:], [str(dim) for dim in draws.dims[2:]]
    found = Observations(
        terms.reshape(shape),
        density.reshape(shape),
        khats.reshape(shape),
        dims,
        {dim: draws.coords[dim].values for dim in dims if dim in draws.coords},
    )
    return elpd_data(found, count)


def leave_each_out(
    log_w: Tensor, log_likelihood: Tensor, scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the predictive density of each observation given the others, and its k-hat.

    Args:
        log_w: Log importance weights of the draws for the posterior of all data ``(S,)``.
        log_likelihood: Log density of each observation ``(S, N)``.
        scale: Power with which an observation counts in the posterior.

    Returns:
        Log predictive densities ``(N,)`` and shapes of the tails ``(N,)``.
    """
    terms, khats = [], []
    for row in log_likelihood.T:
        smoothed = psis(log_w - scale * row)
        terms.append(float(torch.logsumexp(smoothed.log_weights + row, 0)))
        khats.append(smoothed.khat)
    return np.array(terms), np.array(khats)


def _group(data: Any, name: str) -> Any:
    try:
        return data[name]
    except KeyError:
        raise OptionError(
            f"The data have no group {name}; convert a fit with to_arviz(fit), and see "
            f"posterior.attrs for why it may be missing."
        ) from None
