"""Intervals whose coverage is that of simulations: conformal quantiles of a fit's own errors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import IndependentTransform, Transform

from pyro_nfvi._pyro_model.constraints import bijection
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.diagnostics._importance import weighted_quantile
from pyro_nfvi.errors import ModelError, OptionError
from pyro_nfvi.infer._fit import Fit

#: Quantiles of a normal distribution at its mean less one sd, at its mean, and one sd above.
_LEVELS = (0.15865525393145707, 0.5, 0.8413447460685429)


def scores_of(
    truth: Tensor, draws: Tensor, log_weights: Tensor, support: Constraint | None
) -> Tensor:
    r"""Return distances of the truth from the median of draws, in half widths.

    With the quantiles m, l and h of a fit at 50, 15.9 and 84.1 %,

    .. math:: s = \frac{\theta - m}{h - m} \ (\theta > m), \qquad
        s = \frac{\theta - m}{m - l} \ (\theta \le m),

    which is a number of sds for a normal. It is taken on the real line: the logarithm of a
    positive number, the logit of one between 0 and 1.

    Args:
        truth: The truth ``(*shape)``.
        draws: Draws of the fit ``(S, *shape)``.
        log_weights: Their log weights ``(S,)``.
        support: Support of the site; None for one that has none, as deterministic sites.

    Example:
        >>> import torch
        >>> draws = torch.randn(20_000, generator=torch.Generator())
        >>> s = scores_of(torch.tensor(2.0), draws, torch.zeros(20_000), None)
        >>> 1.9 < s < 2.1
        tensor(True)
    """
    real = _real_line(support)
    low, middle, high = weighted_quantile(real(draws), log_weights, _LEVELS)
    apart = real(truth) - middle
    return apart / torch.where(apart > 0, high - middle, middle - low)


def intervals_of(
    scores: Tensor, draws: Tensor, log_weights: Tensor, support: Constraint | None, level: float
) -> Tensor:
    r"""Return intervals whose ends are as many half widths off as the truths of simulations were.

    Of N scores the ends are those of rank :math:`\lfloor (N + 1) \alpha / 2 \rfloor` from below and
    from above, :math:`\alpha = 1 - \text{level}`. For a truth that is exchangeable with those of
    the simulations the interval covers it with a probability of ``level`` or more, whatever the fit
    is like.

    Args:
        scores: Scores of the simulations ``(N, *shape)``.
        draws: Draws of the fit ``(S, *shape)``.
        log_weights: Their log weights ``(S,)``.
        support: Support of the site; None for one that has none.
        level: Coverage.

    Returns:
        Lower and upper ends ``(2, *shape)``.

    Raises:
        OptionError: There are fewer than 2 / (1 - level) - 1 simulations.

    Source: Vovk, Gammerman & Shafer 2005, Algorithmic Learning in a Random World, section 2.2;
    Romano, Patterson & Candes 2019, arXiv:1905.03222, for scores by quantiles.
    """
    count = len(scores)
    # Rounding up of (N + 1) alpha / 2 by a last bit would shorten the interval.
    rank = math.floor((count + 1) * (1 - level) / 2 + 1e-9)
    if rank < 1:
        need = math.ceil(2 / (1 - level) - 1 - 1e-9)
        raise OptionError(
            f"Intervals of {100 * level:g} % need {need} simulations, and {count} were done. Ask "
            "for more (num_simulations=), or for shorter intervals (level=)."
        )
    real = _real_line(support)
    low, middle, high = weighted_quantile(real(draws), log_weights, _LEVELS)
    ordered = scores.sort(0).values
    ends = torch.stack([ordered[rank - 1], ordered[count - rank]])
    ends = middle + ends * torch.where(ends > 0, high - middle, middle - low)
    back: Tensor = real.inv(ends)
    return back


def recalibrated(
    fit: Fit, scores: TensorDict, off: Collection[str], level: float, *, reweighted: bool
) -> TensorDict:
    """Return central intervals of a fit by site, ``(2, *shape)``.

    Args:
        fit: The fit.
        scores: Scores of simulations by site, ``(N, *shape)``.
        off: Labels of the numbers whose intervals are made from the scores; others get those
            between the fit's quantiles.
        level: Coverage.
        reweighted: Weigh draws by their smoothed importance weights.

    Raises:
        OptionError: The fit has other sites, or there are too few scores.
    """
    sites = fit._sites(fit.draws.z, fit.draws.deterministic)
    log_weights = log_weights_of(fit, reweighted=reweighted)
    found = {}
    for name, score in scores.items():
        if name not in sites or sites[name].shape[1:] != score.shape[1:]:
            raise OptionError(
                f"The fit has no site {name!r} of shape {tuple(score.shape[1:])}, which was "
                "simulated. Give a fit of the same model, to data of the same size."
            )
        value = sites[name].detach().cpu().double()
        tail = (1 - level) / 2
        plain = weighted_quantile(value, log_weights, (tail, 1 - tail))
        places = list(itertools.product(*map(range, score.shape[1:])))
        at = torch.tensor([label(name, place) in off for place in places])
        if bool(at.any()):
            made = intervals_of(score, value, log_weights, support_of_site(fit, name), level)
            plain = torch.where(at.reshape(score.shape[1:]), made, plain)
        found[name] = plain
    return found


def log_weights_of(fit: Fit, *, reweighted: bool) -> Tensor:
    """Log weights of a fit's draws in double precision, equal ones if not ``reweighted``.

    Raises:
        ModelError: No weight is finite.
    """
    if not reweighted:
        return torch.zeros(len(fit.draws.z), dtype=torch.float64)
    smoothed = fit.draws.smoothed()
    if smoothed is None:
        raise ModelError("no weight of the draws is finite, so they cannot be reweighted")
    return smoothed.log_weights.cpu().double()


def support_of_site(fit: Fit, name: str) -> Constraint | None:
    """Return the support of a latent site; None for a deterministic one."""
    site = fit.latent.sites.get(name)
    return None if site is None else site.support


def label(name: str, index: tuple[int, ...]) -> str:
    """Name a number of a site.

    Example:
        >>> label("theta", (3,)), label("mu", ())
        ('theta[3]', 'mu')
    """
    return f"{name}[{', '.join(map(str, index))}]" if index else name


def _real_line(support: Constraint | None) -> Transform:
    """Return the map from a support to the real line, number by number; else the identity."""
    identity = torch.distributions.transforms.identity_transform
    if support is None:
        return identity
    transform: Transform = bijection(support)
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    if transform.domain.event_dim or transform.codomain.event_dim:
        return identity  # a simplex, say, of which one number alone has no such map
    inverse: Transform = transform.inv
    return inverse
