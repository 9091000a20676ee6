"""Evidence from draws of the posterior beside draws of an approximation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_nfvi.diagnostics._convergence import bulk_ess
from pyro_nfvi.diagnostics._recipe import EVIDENCE
from pyro_nfvi.diagnostics._weights import checked
from pyro_nfvi.errors import ShapeError, WeightError


def bridge_evidence(log_w: Tensor, posterior_log_w: Tensor) -> tuple[float, float]:
    r"""Estimate the log evidence by bridge sampling: ``(value, standard error)``, in nats.

    With weights :math:`w = p(x, z) / q(z)`, :math:`n_1` draws of q and :math:`n_2` of the
    posterior, and shares :math:`s_i = n_i / (n_1 + n_2)`, the value solves

    .. math:: Z = \frac{\frac1{n_1}\sum_{z \sim q} w / (s_1 Z + s_2 w)}
        {\frac1{n_2}\sum_{z \sim p} 1 / (s_1 Z + s_2 w)},

    the bridge of least variance. Neither kind of draw can have a weight that counts for much, so
    unlike importance sampling it needs no approximation with heavier tails than the posterior's;
    unlike the harmonic mean none with lighter ones. Both have to overlap.

    Args:
        log_w: Log weights ``log_p - log_q`` of draws of q, ``(n_1,)``, in nats.
        posterior_log_w: Those of draws of the posterior, which q was not fitted to: ``(n_2,)`` of
            independent draws or ``(chains, n)``, of which the effective number counts.

    Raises:
        ShapeError: Something else than that.
        WeightError: A weight is NaN or infinite; a draw of the posterior that q has no density
            for is one.

    Cost:
        Some ten passes over the weights.

    Source: Meng & Wong 1996, Statistica Sinica 6, 831, eq. 4.1; Frühwirth-Schnatter 2004,
    Econometrics Journal 7, 143, for the standard error.

    Example:
        >>> import torch
        >>> from torch.distributions import Normal
        >>> normal, wide = Normal(0.0, 1.0), Normal(0.0, 2.0)
        >>> noise = torch.Generator()
        >>> z, x = 2 * torch.randn(2000, generator=noise), torch.randn(2000, generator=noise)
        >>> def log_w(z): return 5.0 + normal.log_prob(z) - wide.log_prob(z)
        >>> value, error = bridge_evidence(log_w(z), log_w(x))
        >>> abs(value - 5.0) < 0.06, 0.005 < error < 0.03
        (True, True)
    """
    log_w, after = checked(log_w), _of_posterior(posterior_log_w)
    effective = _effective(after)
    after = after.flatten()
    first, second = len(log_w) / (len(log_w) + effective), effective / (len(log_w) + effective)
    log_first, log_second = math.log(first), math.log(second)

    def terms(value: float) -> tuple[Tensor, Tensor]:
        """Log of w / (s1 Z + s2 w) under q, and of Z / (s1 Z + s2 w) under the posterior."""
        of_q = log_w - torch.logaddexp(
            torch.full_like(log_w, log_first + value), log_second + log_w
        )
        of_p = -torch.logaddexp(torch.full_like(after, log_first), log_second + after - value)
        return of_q, of_p

    value = float(after.median())
    for _ in range(EVIDENCE.bridge_steps):
        of_q, of_p = terms(value)
        change = _log_mean(of_q) - _log_mean(of_p)
        value += change
        if abs(change) < EVIDENCE.bridge_change:
            break
    of_q, of_p = terms(value)
    error = _relative_variance(of_q) / len(log_w) + _relative_variance(of_p) / effective
    return value, math.sqrt(error)


def harmonic_evidence(log_ratio: Tensor) -> tuple[float, float]:
    r"""Estimate the log evidence from draws of the posterior: ``(value, standard error)``, in nats.

    .. math:: \frac1Z = E_{p(z \mid x)}\!\left[\frac{\varphi(z)}{p(x, z)}\right]

    for any normalised density :math:`\varphi` that has lighter tails than the posterior: a flow
    that was fitted to it, with narrower base noise. With the prior as :math:`\varphi` it would be
    the harmonic mean of the likelihood, whose variance is infinite.

    Args:
        log_ratio: :math:`\log\varphi - \log p(x, z)` at draws of the posterior, in nats: ``(n,)``
            of independent draws or ``(chains, n)``.

    Raises:
        ShapeError: Something else than that.
        WeightError: A value is NaN or inf, or all are -inf.

    Source: Gelfand & Dey 1994, J. R. Statist. Soc. B 56, 501; McEwen et al. 2021,
    arXiv:2111.12720, and Polanska et al. 2024, arXiv:2405.05969, for flows.

    Example:
        >>> import torch
        >>> from torch.distributions import Normal
        >>> normal, narrow = Normal(0.0, 1.0), Normal(0.0, 0.8)
        >>> z = torch.randn(4000, generator=torch.Generator())
        >>> value, error = harmonic_evidence(narrow.log_prob(z) - normal.log_prob(z) - 5.0)
        >>> abs(value - 5.0) < 0.04, error < 0.02
        (True, True)
    """
    held = _shaped(log_ratio)
    terms = checked(held.flatten()).reshape(held.shape)
    error = math.sqrt(_relative_variance(terms.flatten()) / _effective(terms))
    return -_log_mean(terms.flatten()), error


def disagree(one: float, error: float, other: float, other_error: float) -> bool:
    """Tell whether two estimates of the log evidence differ beyond their errors.

    Example:
        >>> disagree(-3.0, 0.01, -3.5, 0.02), disagree(-3.0, 0.01, -3.05, 0.02)
        (True, False)
    """
    most = max(EVIDENCE.nats, EVIDENCE.errors * math.hypot(error, other_error))
    return not abs(one - other) <= most


def _shaped(values: Tensor) -> Tensor:
    if values.dim() not in (1, 2) or values.numel() < 2:
        raise ShapeError(
            "Draws of the posterior come as (n,) or (chains, n), two at least; got values of shape "
            f"{tuple(values.shape)}."
        )
    return values


def _of_posterior(log_w: Tensor) -> Tensor:
    """Check weights at draws of the posterior, each of which is possible."""
    held = _shaped(log_w)
    found = checked(held.flatten()).reshape(held.shape)
    if bool((found == -torch.inf).any()):
        raise WeightError(
            "A draw of the posterior has weight 0, so it is none: the model gives it density 0. "
            "Give draws of the same model."
        )
    return found


def _effective(values: Tensor) -> float:
    """Number of independent draws that chains of values ``(chains, n)`` are worth."""
    if values.dim() == 1 or values.shape[1] < EVIDENCE.fewest_of_chain:
        return float(values.numel())
    found = float(bulk_ess(values.unsqueeze(-1))[0])
    return min(found, float(values.numel())) if found > 1 else float(values.numel())


def _log_mean(values: Tensor) -> float:
    return float(torch.logsumexp(values, 0)) - math.log(len(values))


def _relative_variance(log_terms: Tensor) -> float:
    """Variance of terms over the square of their mean."""
    terms = (log_terms - log_terms.max()).exp()
    return float(terms.var() / terms.mean().square())
