"""How good a trained VAE is: ELBO, NLL, bits per dimension, active units, collapse in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi.vae.importance import NLL
from pyro_nfvi.vae.model import FlowVAE
from pyro_nfvi.vae.streams import stream

__all__ = ["Evaluation", "active_units", "collapse_warning", "evaluate"]

#: Variance over images of a coordinate's posterior mean above which it counts as active.
_ACTIVE = 0.01
#: Share of active coordinates, and nats of KL divergence, below which a posterior has collapsed.
_FEW, _NO_KL = 0.1, 0.1
#: Images at a time.
_ROWS = 500
_ELBO, _UNITS = 101, 102
#: Said instead of a verdict on active units, which are a variance over images.
_SINGLE = (
    "there is a single image: no standard errors over images, and active units cannot be counted "
    "(0 says nothing here). Evaluate more images."
)


@dataclass(frozen=True)
class Evaluation:
    """Numbers of a VAE on images, in nats per image unless said otherwise.

    Attributes:
        elbo: Mean ELBO, one draw per image.
        elbo_se: Its standard error over images; None for a single one.
        reconstruction: Mean of ``log p(x | z)``.
        kl: Mean of the Monte Carlo KL divergence.
        kl_se: Its standard error; None for a single image.
        log_det: Mean of the flow's summed log-determinants.
        nll: Importance-sampled NLL of the first images; None if not asked for.
        active: Coordinates of z that carry something, out of ``latent_dim``.
        latent_dim: D.
        images: Number of images.
        bits: Bits per dimension from the NLL (from the ELBO without one).
        elbo_bits: Bits per dimension from the ELBO of all images, as papers give it.
        warning: What is wrong, in words; empty if nothing is.
    """

    elbo: float
    elbo_se: float | None
    reconstruction: float
    kl: float
    kl_se: float | None
    log_det: float
    nll: NLL | None
    active: int
    latent_dim: int
    images: int
    bits: float
    elbo_bits: float
    warning: str

    def __str__(self) -> str:
        lines = [
            f"negative ELBO  {-self.elbo:8.2f}{_pm(self.elbo_se)} nats, {_images(self.images)}",
            f"  reconstruction {-self.reconstruction:.2f}, KL {self.kl:.2f}{_pm(self.kl_se)} "
            f"(the flow's log-determinants: {self.log_det:.2f})",
        ]
        if self.nll is not None:
            lines.append(
                f"{self.nll.label:13s}  {self.nll.mean:8.2f}{_pm(_nll_se(self.nll))} nats, the "
                f"first {_images(len(self.nll.value))} (negative ELBO of these: "
                f"{float(self.nll.bound.mean()):.2f})"
            )
        of_nll = "" if self.nll is None else f"{self.bits:.3f} ({self.nll.label}), "
        lines.append(
            f"bits per dimension {of_nll}{self.elbo_bits:.3f} (-ELBO); active units {self.active} "
            f"of {self.latent_dim}"
        )
        if self.warning:
            lines.append(f"WARNING: {self.warning}")
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """Return the numbers as JSON can hold them."""
        found: dict[str, Any] = {
            key: value for key, value in vars(self).items() if key not in ("nll", "warning")
        }
        found["warning"] = self.warning
        if self.nll is not None:
            found |= {
                "nll": self.nll.mean,
                "nll_se": _nll_se(self.nll),
                "nll_negative_elbo": float(self.nll.bound.mean()),  # of the same images
                "nll_samples": self.nll.num_samples,
                "nll_images": len(self.nll.value),
                "khat_above_0.7": float((self.nll.khat > 0.7).double().mean()),
                "ess_median": float(self.nll.ess.median()),
            }
        return found


def _errors(values: Tensor) -> list[float] | list[None]:
    """Standard errors over images; a single image has no spread to take one from."""
    count = values.shape[1]
    if count < 2:
        return [None] * len(values)
    found: list[float] = (values.std(1) / math.sqrt(count)).tolist()
    return found


def _nll_se(nll: NLL) -> float | None:
    """Standard error of the mean over images; that of a single one would be over draws."""
    return nll.mean_se if len(nll.value) > 1 else None


def _pm(error: float | None) -> str:
    return "" if error is None else f" ± {error:.2f}"


def _images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"


@torch.no_grad()
def evaluate(
    vae: FlowVAE,
    x: Tensor,
    y: Tensor | None = None,
    *,
    nll_samples: int = 5000,
    nll_images: int | None = None,
    seed: int = 0,
    log_volume: float = 0.0,
    progress: bool = False,
) -> Evaluation:
    """Measure a VAE on images.

    Args:
        vae: The VAE.
        x: Images, prepared for its likelihood ``(N, *shape)``; of a single one there are no
            standard errors, and no coordinate counts as active.
        y: Labels of a conditional VAE.
        nll_samples: Importance samples per image; 0 for no NLL.
        nll_images: Images for the NLL, the first ones; None for all.
        seed: Of the noise.
        log_volume: Nats from a density of pixels to a probability of integers, for the bits.
        progress: Show a bar.

    Raises:
        DataError: No images, or images that the likelihood does not describe.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import Architecture, evaluate
        >>> vae = Architecture((4, 4), latent_dim=2, flow="planar*2", hidden=(8,)).build(seed=0)
        >>> x = torch.bernoulli(torch.full((20, 4, 4), 0.5))
        >>> result = evaluate(vae, x, nll_samples=50)
        >>> result.images, result.nll.label
        (20, 'NLL(50)')
    """
    vae.check(x)
    parts = []
    for number, start in enumerate(range(0, len(x), _ROWS)):
        rows = slice(start, start + _ROWS)
        labels = None if y is None else y[rows]
        generator = stream(seed, _ELBO, number, device=x.device)
        terms = vae.elbo(x[rows], labels, generator=generator)
        parts.append(torch.stack([terms.bound, terms.reconstruction, terms.kl, terms.log_det]))
    values = torch.cat(parts, 1).double()
    means, errors = values.mean(1).tolist(), _errors(values)
    nll = None
    if nll_samples:
        count = len(x) if not nll_images else min(nll_images, len(x))
        labels = None if y is None else y[:count]
        nll = vae.nll(x[:count], labels, num_samples=nll_samples, seed=seed, progress=progress)
    active = int(active_units(vae, x, y, seed=seed).sum())
    dim = math.prod(x.shape[1:])
    per_bit = dim * math.log(2)
    return Evaluation(
        elbo=means[0],
        elbo_se=errors[0],
        reconstruction=means[1],
        kl=means[2],
        kl_se=errors[2],
        log_det=means[3],
        nll=nll,
        active=active,
        latent_dim=vae.latent_dim,
        images=len(x),
        bits=((nll.mean if nll is not None else -means[0]) - log_volume) / per_bit,
        elbo_bits=(-means[0] - log_volume) / per_bit,
        warning=collapse_warning(means[2], active, vae.latent_dim) if len(x) > 1 else _SINGLE,
    )


@torch.no_grad()
def active_units(
    vae: FlowVAE,
    x: Tensor,
    y: Tensor | None = None,
    *,
    num_samples: int = 32,
    threshold: float = _ACTIVE,
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
        >>> from pyro_nfvi.vae import Architecture, active_units
        >>> vae = Architecture((4, 4), latent_dim=2, flow="none", hidden=(8,)).build(seed=0)
        >>> active_units(vae, torch.bernoulli(torch.full((20, 4, 4), 0.5))).shape
        torch.Size([2])
    """
    halves = []
    for number, start in enumerate(range(0, len(x), _ROWS)):
        rows = slice(start, start + _ROWS)
        generator = stream(seed, _UNITS, number, device=x.device)
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
    if kl >= _NO_KL and active >= max(1, _FEW * latent_dim):
        return ""
    return (
        f"posterior collapse: {active} of {latent_dim} latent coordinates carry anything (KL "
        f"{kl:.2f} nats), so the decoder hardly uses z. Warm the KL up for longer (--warmup), give "
        "it free bits (--free-bits), take a smaller --latent-dim or a weaker decoder, or train on."
    )
