"""The evidence lower bound, with the path gradient and with the total gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor

from pyro_nfvi._typing import Noise
from pyro_nfvi.objectives._objective import Approximation, Estimate, LogDensity, Objective
from pyro_nfvi.objectives._surrogate import estimate_of, rows_that_count


@final
class PathELBO(Objective):
    r"""The ELBO with its path gradient ("sticking the landing").

    .. math::
        \nabla_\theta = \mathbb{E}\Bigl[\bigl(\tfrac{\partial z}{\partial\theta}\bigr)^{\!\top}
        \bigl(\nabla_z \log p(z) - \nabla_z \log q(z)\bigr)\Bigr]

    Unbiased, and exactly zero for every draw where q equals p, so that its noise vanishes as the
    fit gets good. The score of q comes with the sample (``push_with_score``); the flow is not
    inverted, and its log-determinant needs no gradient.

    Source: Roeder et al. 2017, arXiv:1703.09194; the forward recursion is Vaitl et al. 2024,
    arXiv:2403.15881, algorithm 1.

    Example:
        >>> import torch
        >>> from pyro_nfvi import FlowDensity
        >>> from pyro_nfvi.flows import DiagonalAffine
        >>> density = FlowDensity(DiagonalAffine(2))
        >>> target = lambda z: -0.5 * z.square().sum(-1)
        >>> estimate = PathELBO()(density, target, density.sample_base(16))
        >>> estimate.surrogate.backward()
        >>> all(bool((p.grad == 0).all()) for p in density.parameters())  # q is p
        True
    """

    name = "path"
    group = 1

    def estimate(
        self,
        density: Approximation,
        log_density: LogDensity,
        eps: Noise,
        params: Sequence[Tensor] = (),
    ) -> Estimate:
        z, log_q, score_q = density.push_with_score(eps)
        log_p, score_p, param_grads = self.score(log_density, z, params)
        log_w = log_p - log_q.detach()
        pull = score_q - score_p
        good = rows_that_count(log_w, pull)
        return estimate_of(z, pull, log_w, good, params, param_grads)


@final
class TotalELBO(Objective):
    r"""The ELBO with its total reparametrisation gradient, as Pyro's ``Trace_ELBO`` takes it.

    .. math:: \nabla_\theta\, \mathbb{E}\bigl[\log p(z_\theta) - \log q_\theta(z_\theta)\bigr]

    Unbiased; its noise does not vanish at q = p.

    Source: Kucukelbir et al. 2017, arXiv:1603.00788.

    Example:
        >>> import torch
        >>> from pyro_nfvi import FlowDensity
        >>> from pyro_nfvi.flows import DiagonalAffine
        >>> density = FlowDensity(DiagonalAffine(2))
        >>> target = lambda z: -0.5 * z.square().sum(-1)
        >>> estimate = TotalELBO()(density, target, density.sample_base(16))
        >>> estimate.log_w.shape
        torch.Size([16])
    """

    name = "total"
    group = 1

    def estimate(
        self,
        density: Approximation,
        log_density: LogDensity,
        eps: Noise,
        params: Sequence[Tensor] = (),
    ) -> Estimate:
        z, log_q = density.push(eps)
        log_p, score_p, param_grads = self.score(log_density, z, params)
        log_w = log_p - log_q.detach()
        good = rows_that_count(log_w, score_p)
        return estimate_of(z, -score_p, log_w, good, params, param_grads, extra=log_q)
