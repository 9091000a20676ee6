"""The ELBO of each image, in parts that add up."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi.vae._generative_model import GenerativeModel
from pyro_nfvi.vae._posterior import Draws, Posterior


@dataclass(frozen=True)
class ELBO:
    r"""The evidence lower bound of each image, in nats.

    .. math:: \text{bound} = \text{reconstruction} - \text{kl}, \qquad
        \text{kl} = \overline{\log q_0(z_0) - \log|\det J| - \log p(z)}

    The KL divergence is a Monte Carlo mean, also where a closed form exists for the base: that
    form says nothing about what the flow made of it.

    Attributes:
        bound: ``(B,)``.
        reconstruction: Mean of ``log p(x | z)`` ``(B,)``.
        kl: Mean of ``log q(z | x) - log p(z)`` ``(B,)``; includes ``-log_det``.
        log_det: Mean of the flow's summed log-determinants ``(B,)``.
        kl_se: Standard error of ``kl`` over the draws ``(B,)``, without a graph; infinite for one.
        log_w: Log importance weights ``(S, B)``; the bound is their mean.
    """

    bound: Tensor
    reconstruction: Tensor
    kl: Tensor
    log_det: Tensor
    kl_se: Tensor
    log_w: Tensor

    def summary(self) -> dict[str, float]:
        """Means over the batch, and the standard errors of bound and KL over images."""
        count = len(self.bound)

        def se(values: Tensor) -> float:
            return float(values.detach().std() / math.sqrt(count)) if count > 1 else math.inf

        return {
            "bound": float(self.bound.detach().mean()),
            "bound_se": se(self.bound),
            "reconstruction": float(self.reconstruction.detach().mean()),
            "kl": float(self.kl.detach().mean()),
            "kl_se": se(self.kl),
            "log_det": float(self.log_det.detach().mean()),
        }


@dataclass(frozen=True)
class Joint:
    """Draws and the three log densities of each ``(S, B)``, in nats."""

    draws: Draws
    log_likelihood: Tensor
    log_prior: Tensor
    log_q: Tensor

    @property
    def log_w(self) -> Tensor:
        """Log importance weights ``(S, B)``."""
        return self.log_likelihood + self.log_prior - self.log_q


def joint_terms(vae: GenerativeModel, x: Tensor, c: Tensor | None, draws: Draws) -> Joint:
    """Score draws under model and posterior."""
    point = draws.z
    params = vae.decode(point, c)
    vae.likelihood.check_params(params.reshape(-1, *params.shape[point.dim() - 1 :]), x)
    log_likelihood = vae.likelihood.log_prob(params, x)
    return Joint(draws, log_likelihood, vae.prior_log_prob(point, c), draws.log_q)


def elbo_terms(
    vae: GenerativeModel, x: Tensor, c: Tensor | None, posterior: Posterior, eps: Tensor
) -> ELBO:
    """Return the ELBO in parts from noise ``(S, B, D)`` or ``(B, D)``."""
    noise = eps if eps.dim() == 3 else eps.unsqueeze(0)
    return terms_of(joint_terms(vae, x, c, posterior.push(noise)))


def terms_of(joint: Joint) -> ELBO:
    """Average the log densities of draws ``(S, B)`` into the terms of each image."""
    divergence = joint.log_q - joint.log_prior
    reconstruction, kl = joint.log_likelihood.mean(0), divergence.mean(0)
    count = len(divergence)
    if count > 1:
        kl_se = divergence.detach().std(0) / math.sqrt(count)
    else:
        kl_se = torch.full_like(kl.detach(), math.inf)
    return ELBO(
        bound=reconstruction - kl,
        reconstruction=reconstruction,
        kl=kl,
        log_det=joint.draws.log_det.mean(0),
        kl_se=kl_se,
        log_w=joint.log_w,
    )
