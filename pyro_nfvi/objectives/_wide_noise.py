"""The ELBO's path gradient under noise that reaches beyond that of the base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from pyro_nfvi._typing import Noise
from pyro_nfvi.objectives._objective import Approximation, Estimate, LogDensity, Objective
from pyro_nfvi.objectives._surrogate import rows_that_count, surrogate_of


@final
class WideNoiseELBO(Objective):
    r"""The path gradient where half of the particles have noise wider than the base.

    .. math::
        \mathbb{E}_{\varepsilon \sim r}\Bigl[\bigl(\tfrac{\partial z}{\partial\theta}\bigr)^{\!\top}
        \bigl(\nabla_z \log q(z) - \nabla_z \log p(z)\bigr)\Bigr], \qquad
        r = \tfrac12 N(0, I) + \tfrac1{2K} \sum_k N(0, s_k^2 I),
        \quad s_k = 1 + c_k \sqrt{2 / D}

    Zero for every draw where q equals p, as the path gradient is; elsewhere the gradient of no
    bound. The ELBO's own noise hardly comes to where a flow that leaves a bent ridge too early goes
    astray, and that costs it next to nothing: an sd that is 16 % short may cost 0.04 nats. Here
    these draws pull the flow back onto the ridge, and each step a little further. For a flow that
    is near its optimum already: far from it, wide draws say little. The base is the standard
    normal.

    Args:
        excess: The numbers c.

    Units:
        The bound that is reported is the ELBO, in nats, of the particles whose noise is the base's.

    Cost:
        That of the path gradient.

    Source: gradients as in Roeder et al. 2017, arXiv:1703.09194, under another law of the noise.

    Example:
        >>> import torch
        >>> from pyro_nfvi import FlowDensity
        >>> from pyro_nfvi.flows import DiagonalAffine
        >>> density = FlowDensity(DiagonalAffine(2))
        >>> target = lambda z: -0.5 * z.square().sum(-1)
        >>> estimate = WideNoiseELBO((0.3, 1.0))(density, target, density.sample_base(16))
        >>> estimate.surrogate.backward()
        >>> all(bool((p.grad == 0).all()) for p in density.parameters())  # q is p
        True
    """

    name = "path, wide noise"

    def __init__(self, excess: Sequence[float]) -> None:
        self.excess = tuple(excess)

    def estimate(
        self,
        density: Approximation,
        log_density: LogDensity,
        eps: Noise,
        params: Sequence[Tensor] = (),
    ) -> Estimate:
        count, dim = eps.shape
        wide = count // 2
        scales = [1 + c * math.sqrt(2 / dim) for c in self.excess]
        scale = torch.ones(count, 1, dtype=eps.dtype, device=eps.device)
        for number, one in enumerate(scales):
            scale[number * wide // len(scales) : (number + 1) * wide // len(scales)] = one
        z, log_q, score_q = density.push_with_score(eps * scale)
        log_p, score_p, param_grads = self.score(log_density, z, params)
        log_w = log_p - log_q.detach()
        pull = score_q - score_p
        good = rows_that_count(log_w, pull)
        total = good.sum().clamp(min=1)
        surrogate = surrogate_of(z, pull, good, total, params, param_grads)
        kept = torch.where(good, log_w, torch.full_like(log_w, torch.nan)).detach()
        return Estimate(surrogate, kept[wide:].nanmean(), kept)
