"""Active units: coordinates of the latent vector that carry something, and posterior collapse."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_nfvi._eval_mode import evaluation
from pyro_nfvi._random import seeded, stream
from pyro_nfvi.vae._model import FlowVAE
from pyro_nfvi.vae._recipe import EVALUATION


@torch.no_grad()
def active_units(
    vae: FlowVAE,
    x: Tensor,
    y: Tensor | None = None,
    *,
    num_samples: int = EVALUATION.active_draws,
    threshold: float = EVALUATION.active_variance,
    seed: int = 0,
) -> Tensor:
    r"""Tell which coordinates of z carry something: :math:`\mathrm{Var}_x(E[z_d \mid x]) > 0.01`.

    Behind a flow the posterior's mean has no closed form, so it is a mean of draws. The variance is
    taken as the covariance of two such means of independent draws, which their noise does not
    inflate.

    Shape:
        -> bool ``(D,)``.

    Source: Burda et al. 2016, arXiv:1509.00519, section 5.2.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae._architecture import Architecture
        >>> from pyro_nfvi.vae._active_units import active_units
        >>> vae = Architecture((4, 4), latent_dim=2, flow="none", hidden=(8,)).build(seed=0)
        >>> active_units(vae, torch.bernoulli(torch.full((20, 4, 4), 0.5))).shape
        torch.Size([2])
    """
    halves = []
    with evaluation(vae), seeded(seed, "vae nets"):
        for number, start in enumerate(range(0, len(x), EVALUATION.rows)):
            rows = slice(start, start + EVALUATION.rows)
            generator = stream(seed, EVALUATION.units_stream, number, device=x.device)
            posterior = vae.encode(x[rows], None if y is None else y[rows])
            z = posterior.draw(2 * num_samples, generator=generator).z
            halves.append(torch.stack([z[:num_samples].mean(0), z[num_samples:].mean(0)]))
    one, two = torch.cat(halves, 1).double().unbind(0)
    covariance = ((one - one.mean(0)) * (two - two.mean(0))).sum(0) / max(len(one) - 1, 1)
    return covariance > threshold


def collapse_warning(kl: float, active: int, latent_dim: int) -> str:
    """Say in words that the posterior ignores the image, and what to do; empty if it does not.

    Example:
        >>> collapse_warning(kl=20.0, active=15, latent_dim=40)
        ''
    """
    if kl >= EVALUATION.collapsed_kl and active >= max(1, EVALUATION.collapsed_share * latent_dim):
        return ""
    return (
        f"posterior collapse: {active} of {latent_dim} latent coordinates carry anything (KL "
        f"{kl:.2f} nats), so the decoder hardly uses z. Warm the KL up for longer (--warmup), give "
        "it free bits (--free-bits), take a smaller --latent-dim or a weaker decoder, or train on."
    )
