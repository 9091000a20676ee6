"""Pareto-smoothed importance sampling: tame the largest weights, and say whether that is enough."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_nfvi.diagnostics._recipe import PSIS_RECIPE as RECIPE
from pyro_nfvi.diagnostics._weights import checked
from pyro_nfvi.errors import OptionError


class PSIS(NamedTuple):
    """Pareto-smoothed weights, and the shape of their tail."""

    #: Normalised, smoothed log weights (S,): ``log_weights.exp().sum() == 1``. In nats.
    log_weights: Tensor
    #: Shape of the generalised Pareto tail: moments of order below 1/khat exist.
    khat: float


def psis(log_w: Tensor) -> PSIS:
    r"""Smooth the largest importance weights and estimate the shape of their tail.

    A generalised Pareto distribution is fitted to the :math:`M = \lceil\min(S/5, 3\sqrt S)\rceil`
    largest weights, which are replaced by its quantiles at :math:`(i - 1/2)/M` and cut at the
    largest raw weight. Read ``khat`` against :func:`khat_threshold`: below it the reweighted
    draws are reliable; below 0.5 the approximation itself is close; above 1 the weights have no
    mean, and reweighting cannot help.

    What ``khat`` cannot see is a mode that no draw reached.

    Args:
        log_w: Log importance weights ``log_p - log_q`` of S draws, in nats, up to a constant. A
            draw of density 0 under the model has -inf: it counts as a draw and gets weight 0.

    Shape:
        ``log_w (S,)`` -> ``log_weights (S,)`` in the dtype and on the device of ``log_w``.

    Special values of ``khat``:
        ``inf`` where too few draws stand in the tail for a fit: fewer than 21 draws in all, or
        fewer than five above the rest because of ties or zero weights. Nothing is known then,
        and ``khat < 0.7`` is false, as it should be. The weights are only normalised.
        ``0`` where the largest weights are all equal up to rounding, as when q is p: there is
        no tail at all. Where rounding itself is above half a nat (log densities beyond 5e5 in
        float32), that is ``inf`` again.

    Cost:
        One sort of S numbers.

    Raises:
        ShapeError: Not one vector.
        WeightError: NaN or +inf among the weights, or all of them -inf.

    Source:
        Vehtari, Simpson, Gelman, Yao & Gabry 2024, JMLR 25(72), algorithm 1 and appendix C;
        Zhang & Stephens 2009, Technometrics 51(3), for the fit.

    Example:
        >>> import torch
        >>> log_weights, khat = psis(torch.zeros(1000))
        >>> bool(log_weights.exp().sum().isclose(torch.tensor(1.0))), khat
        (True, 0.0)
    """
    double = checked(log_w)
    # Differences that a computation in the given precision cannot tell from zero, in nats; the
    # size of the numbers among which the tail is, whatever a bad draw far below may be.
    finite = double[double > -torch.inf]
    size = float(finite.topk(min(len(finite), _num_tail(len(double)) + 1)).values.abs().max())
    rounding = max(RECIPE.rounding, 8 * torch.finfo(log_w.dtype).eps * size)
    smoothed, khat = _smooth_tail(double - double.max(), rounding)
    smoothed = smoothed - torch.logsumexp(smoothed, 0)
    return PSIS(smoothed.to(log_w), khat)


def khat_threshold(num_draws: int) -> float:
    r"""Largest ``khat`` at which S draws can be trusted: :math:`\min(1 - 1/\log_{10} S,\ 0.7)`.

    Source: Vehtari et al. 2024, JMLR 25(72), section 3.2.4.

    Example:
        >>> khat_threshold(100), khat_threshold(4000)
        (0.5, 0.7)
    """
    if num_draws < 2:
        raise OptionError(f"khat needs at least 2 draws; got {num_draws}.")
    return min(1 - 1 / math.log10(num_draws), 0.7)


def _num_tail(num_draws: int) -> int:
    return math.ceil(min(num_draws / 5, 3 * math.sqrt(num_draws)))


def _smooth_tail(log_w: Tensor, rounding: float) -> tuple[Tensor, float]:
    """Smooth log weights whose largest is 0; return them and khat."""
    num_tail = _num_tail(len(log_w))
    if num_tail < RECIPE.least_tail:
        return log_w, math.inf
    ordered, order = torch.sort(log_w)
    # Weights below the smallest normal number are 0 beside the largest, which is 1.
    cutoff = ordered[-num_tail - 1].clamp(min=math.log(torch.finfo(log_w.dtype).tiny))
    if float(-cutoff) <= rounding:
        # Differences too large to pass for rounding drown in it: nothing is known.
        return log_w, 0.0 if rounding <= RECIPE.largest_rounding else math.inf
    above = ordered > cutoff  # ties with the cutoff are not exceedances
    tail, where = ordered[above], order[above]
    if len(tail) < RECIPE.least_tail:
        return log_w, math.inf
    count = len(tail)
    excess = cutoff.exp() * torch.expm1(tail - cutoff)
    shape, scale = _fit_generalised_pareto(excess)
    khat = (count * shape + RECIPE.prior_draws * RECIPE.prior_shape) / (count + RECIPE.prior_draws)
    level = (torch.arange(count, dtype=log_w.dtype) + 0.5) / count
    quantiles = _generalised_pareto_quantile(level, khat, scale)
    smoothed = torch.log(quantiles + cutoff.exp()).clamp(max=0.0)
    return log_w.index_put((where,), smoothed), khat


def _fit_generalised_pareto(excess: Tensor) -> tuple[float, float]:
    r"""Fit ``(shape, scale)`` to sorted positive exceedances (M,).

    With :math:`\theta = -k/\sigma` the profile likelihood gives
    :math:`k(\theta) = \overline{\log(1 - \theta x)}`; the estimate of :math:`\theta` is the
    posterior mean over a grid of prior quantiles, which needs no optimiser and always exists.
    """
    count = len(excess)
    grid_size = 30 + int(math.sqrt(count))
    points = torch.arange(1, grid_size + 1, dtype=torch.float64) - 0.5
    quartile = excess[int(count / 4 + 0.5) - 1]
    theta = 1 / excess[-1] + (1 - (grid_size / points).sqrt()) / (RECIPE.prior_spread * quartile)
    shapes = torch.log1p(-theta[:, None] * excess).mean(1)
    log_likelihood = count * (torch.log(-theta / shapes) - shapes - 1)
    weights = torch.softmax(log_likelihood.nan_to_num(nan=-math.inf), 0)
    best = (weights * theta).sum()
    shape = torch.log1p(-best * excess).mean()
    return float(shape), float(-shape / best)


def _generalised_pareto_quantile(level: Tensor, shape: float, scale: float) -> Tensor:
    if abs(shape) < 1e-12:
        return -scale * torch.log1p(-level)
    return scale * torch.expm1(-shape * torch.log1p(-level)) / shape
