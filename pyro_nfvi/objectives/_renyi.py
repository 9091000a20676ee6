"""Rényi's bound of several draws at once, with two gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_nfvi._typing import Noise, PerParticle
from pyro_nfvi._validation import number, whole
from pyro_nfvi.errors import OptionError
from pyro_nfvi.objectives._importance_weights import (
    doubly_reparametrised,
    normalised_weights,
    renyi_bound,
)
from pyro_nfvi.objectives._objective import Approximation, Estimate, LogDensity, Objective
from pyro_nfvi.objectives._surrogate import rows_that_count, surrogate_of

_ESTIMATORS = ("dreg", "total")


class RenyiELBO(Objective):
    r"""Rényi's bound of order :math:`\alpha`, estimated from K draws at a time.

    .. math::
        \mathcal{L}_{\alpha,K} = \frac{1}{1-\alpha}\,\mathbb{E}\Bigl[\log
        \frac1K\sum_{k=1}^K w_k^{1-\alpha}\Bigr], \qquad w_k = \frac{p(z_k)}{q(z_k)}

    In between :math:`\alpha = 1`, the ELBO, and :math:`\alpha = 0`, the importance-weighted bound
    (:class:`ImportanceELBO`). From 0 to 1 it is a lower bound of the log evidence for every K, and
    rises with K to :math:`\log p(x) - D_\alpha(q\,\|\,p)`. Below 0 it becomes an upper bound as
    K grows, without being one for any K; above 1 it is a lower bound that seeks modes.

    **When it helps.** With small :math:`\alpha` the approximation covers mass where the ELBO
    would lose it: wider sds of a family that is too small, and importance weights with lighter
    tails. With a flow that fits, there is nothing to gain over the ELBO. In many dimensions the
    largest weight decides alone, and the gradient is noise: up to about ten latents.

    **What it costs.** As much as the path gradient, per draw; K draws give one term, so the noise
    is that of ``num_particles / K`` terms.

    **Gradients.** ``"total"`` differentiates the bound as it stands; its signal fades against its
    noise as K grows. ``"dreg"`` reparametrises once more the part that comes from scoring,

    .. math::
        \sum_k \bigl(\alpha\,\bar w_k + (1-\alpha)\,\bar w_k^2\bigr)
        \Bigl(\frac{\partial z_k}{\partial\theta}\Bigr)^{\!\top}
        \bigl(\nabla\log p(z_k) - \nabla\log q(z_k)\bigr), \qquad
        \bar w_k \propto w_k^{1-\alpha},

    and is zero for every draw where q equals p. Both are unbiased for
    :math:`\mathcal{L}_{\alpha,K}` with its own K, not for
    :math:`\log p - D_\alpha`. Parameters of the model get the usual gradient.

    A particle whose density or gradient is not finite has weight zero; a term without any other is
    left out.

    Args:
        alpha: Order, a finite number; 1 is the ELBO with its path gradient.
        num_samples: K; it divides ``num_particles``.
        estimator: ``"dreg"`` or ``"total"``.

    Raises:
        OptionError: An option that cannot be used.

    Source: Li and Turner 2016, arXiv:1602.02311, equation 8; Daudel et al. 2023,
    arXiv:2210.06226, for the bound with K draws and its doubly reparametrised gradient.

    Example:
        >>> import torch
        >>> from pyro_nfvi import FlowDensity
        >>> from pyro_nfvi.flows import DiagonalAffine
        >>> from pyro_nfvi.objectives import RenyiELBO
        >>> density = FlowDensity(DiagonalAffine(2))
        >>> target = lambda z: -0.5 * z.square().sum(-1)
        >>> estimate = RenyiELBO(0.5, num_samples=4)(density, target, density.sample_base(16))
        >>> estimate.surrogate.backward()
        >>> all(bool((p.grad == 0).all()) for p in density.parameters())  # q is p
        True
    """

    def __init__(self, alpha: float = 0.5, num_samples: int = 8, estimator: str = "dreg") -> None:
        kind = type(self).__name__
        number(f"{kind}: alpha", alpha)
        num_samples = whole(f"{kind}: num_samples", num_samples)
        if estimator not in _ESTIMATORS:
            raise OptionError(
                f"{kind}'s estimator is {' or '.join(map(repr, _ESTIMATORS))}; got {estimator!r}."
            )
        self.alpha, self.num_samples, self.estimator = float(alpha), num_samples, estimator
        self.group = num_samples
        self.name = f"renyi(alpha={self.alpha:g}, num_samples={num_samples}, {estimator})"

    def terms(self, log_w: PerParticle) -> Tensor:
        """Return the bound of each K draws, in nats; draws that fill no term are left out."""
        size = min(self.num_samples, len(log_w))
        rows = log_w[: len(log_w) // size * size].reshape(-1, size)
        return renyi_bound(rows, torch.isfinite(rows), self.alpha)

    def estimate(
        self,
        density: Approximation,
        log_density: LogDensity,
        eps: Noise,
        params: Sequence[Tensor] = (),
    ) -> Estimate:
        self.check(len(eps))
        double = self.estimator == "dreg"
        if double:
            z, log_q, score_q = density.push_with_score(eps)
        else:
            z, log_q = density.push(eps)
            score_q = torch.zeros_like(z)
        held = log_q.detach()
        share = torch.zeros_like(held)

        def weigh(log_p: Tensor) -> Tensor:
            nonlocal share
            rows = (log_p - held).reshape(-1, self.num_samples)
            share = normalised_weights(rows, torch.isfinite(rows), self.alpha).reshape(-1)
            return share

        log_p, pulled, param_grads = self.score(log_density, z, params, weigh)
        log_w = log_p - held
        good = rows_that_count(log_w, pulled, score_q)
        pull = share.unsqueeze(-1) * score_q - pulled
        if double:
            pull = doubly_reparametrised(share, self.alpha).unsqueeze(-1) * pull
        kept = torch.where(good, log_w, torch.full_like(log_w, torch.nan))
        rows = kept.reshape(-1, self.num_samples)
        count = good.reshape(rows.shape).any(-1).sum().clamp(min=1)
        extra = None if double else share * log_q
        surrogate = surrogate_of(z, pull, good, count, params, param_grads, extra)
        bound = renyi_bound(rows, good.reshape(rows.shape), self.alpha).nanmean()
        return Estimate(surrogate, bound, kept)
