"""Evaluation of a trained VAE: ELBO, NLL, bits per dimension, active units, collapse in words."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_nfvi._eval_mode import evaluation
from pyro_nfvi._option_names import knows_options
from pyro_nfvi._random import seeded, stream
from pyro_nfvi.vae._active_units import active_units, collapse_warning
from pyro_nfvi.vae._importance_nll import NLL
from pyro_nfvi.vae._model import FlowVAE
from pyro_nfvi.vae._nll_summary import NLLSummary
from pyro_nfvi.vae._recipe import EVALUATION

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
        nll: NLL of the images in ``nll_index``; None if not asked for.
        nll_index: Which images these are; None for no NLL.
        active: Coordinates of z that carry something, out of ``latent_dim``.
        latent_dim: D.
        images: Number of images.
        bits: Bits per dimension from the NLL, of its images (from the ELBO without one).
        elbo_bits: Bits per dimension from the ELBO of all images, as papers give it.
        nll_elbo_bits: Bits per dimension from the ELBO of the images of the NLL; None without one.
        warning: Every reason for doubt, in words; empty if there is none.
    """

    elbo: float
    elbo_se: float | None
    reconstruction: float
    kl: float
    kl_se: float | None
    log_det: float
    nll: NLL | None
    nll_index: Tensor | None
    active: int
    latent_dim: int
    images: int
    bits: float
    elbo_bits: float
    nll_elbo_bits: float | None
    warning: str

    @property
    def summary(self) -> NLLSummary | None:
        """The NLL in short, with effective draws and k-hat; None without one."""
        if self.nll is None:
            return None
        return self.nll.summary("all" if len(self.nll.value) == self.images else "a seeded subset")

    def __str__(self) -> str:
        count = f"{self.images} image{'s' * (self.images != 1)}"
        lines = [
            f"negative ELBO  {-self.elbo:8.2f}{_pm(self.elbo_se)} nats, {count}",
            f"  reconstruction {-self.reconstruction:.2f}, KL {self.kl:.2f}{_pm(self.kl_se)} "
            f"(the flow's log-determinants: {self.log_det:.2f})",
        ]
        told = self.summary
        of_nll = ""
        if told is not None:
            lines.append(told.sentence())
            of_nll = f"; {told.label} {self.bits:.3f}, -ELBO of its images {self.nll_elbo_bits:.3f}"
        lines.append(
            f"bits per dimension: -ELBO {self.elbo_bits:.3f}{of_nll}; active units {self.active} "
            f"of {self.latent_dim}"
        )
        if self.warning:
            lines.append(f"WARNING: {self.warning}")
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """Return the numbers as JSON can hold them."""
        apart = ("nll", "nll_index", "nll_elbo_bits", "warning")
        found: dict[str, Any] = {
            key: value for key, value in vars(self).items() if key not in apart
        }
        found["warning"] = self.warning
        told = self.summary
        if told is not None:
            found |= {**told.record(), "nll_elbo_bits": self.nll_elbo_bits}
        return found

    def with_warning(self, *more: str) -> Evaluation:
        """Return the evaluation with further reasons for doubt."""
        return replace(self, warning=_joined(self.warning, *more))


def _joined(*warnings: str) -> str:
    return " Also: ".join(filter(None, warnings))


def _errors(values: Tensor) -> list[float] | list[None]:
    """Standard errors over images; a single image has no spread to take one from."""
    count = values.shape[1]
    if count < 2:
        return [None] * len(values)
    found: list[float] = (values.std(1) / math.sqrt(count)).tolist()
    return found


def _pm(error: float | None) -> str:
    return "" if error is None else f" ± {error:.2f}"


def subset_of(count: int, wanted: int | None, seed: int = 0) -> Tensor:
    """Choose images at random, the same ones for every VAE: indices in order.

    Example:
        >>> subset_of(5, None).tolist(), len(subset_of(100, 10)), bool(
        ...     (subset_of(100, 10) == subset_of(100, 10)).all()
        ... )
        ([0, 1, 2, 3, 4], 10, True)
    """
    if not wanted or wanted >= count:
        return torch.arange(count)
    return (
        torch.randperm(count, generator=stream(seed, EVALUATION.subset_stream))[:wanted]
        .sort()
        .values
    )


@knows_options
@torch.no_grad()
def evaluate(
    vae: FlowVAE,
    x: Tensor,
    y: Tensor | None = None,
    *,
    nll_samples: int | None = None,
    nll_method: str = "importance",
    temperatures: int | None = None,
    nll_images: int | None = None,
    subset_seed: int = 0,
    seed: int = 0,
    log_volume: float = 0.0,
    progress: bool = False,
) -> Evaluation:
    """Measure a VAE on images, in eval mode.

    Args:
        vae: The VAE.
        x: Images, prepared for its likelihood ``(N, *shape)``; of a single one there are no
            standard errors, and no coordinate counts as active.
        y: Labels of a conditional VAE.
        nll_samples: Draws per image, 5000 by default, or chains of ``"ais"``, 128; 0 for no NLL.
        nll_method: ``"importance"``, or ``"ais"``: annealed, see ``FlowVAE.nll``.
        temperatures: Steps of the annealing, 100 by default.
        nll_images: Number of images for the NLL, drawn at random; None for all.
        subset_seed: Of that draw: the same images for every VAE, so that they can be compared
            image by image, whatever ``seed`` is.
        seed: Of the noise.
        log_volume: Nats from a density of pixels to a probability of integers, for the bits.
        progress: Show a bar.

    Raises:
        DataError: No images, or images that the likelihood does not describe.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import evaluate
        >>> from pyro_nfvi.vae._architecture import Architecture
        >>> vae = Architecture((4, 4), latent_dim=2, flow="planar*2", hidden=(8,)).build(seed=0)
        >>> x = torch.bernoulli(torch.full((20, 4, 4), 0.5))
        >>> result = evaluate(vae, x, nll_samples=50)
        >>> result.images, result.nll.label
        (20, 'NLL(50)')
    """
    vae.check(x)
    with evaluation(vae), seeded(seed, "vae nets"):
        values = _terms(vae, x, y, seed)
        nll, index = None, None
        if nll_samples != 0:
            index = subset_of(len(x), nll_images, subset_seed)
            rows = index.to(x.device)
            nll = vae.nll(
                x[rows], None if y is None else y[rows.to(y.device)], num_samples=nll_samples,
                method=nll_method, temperatures=temperatures, seed=seed, first=index.tolist(),
                progress=progress,
            )  # fmt: skip
        active = int(active_units(vae, x, y, seed=seed).sum())
    means, errors = values.mean(1).tolist(), _errors(values)

    def in_bits(nats: float) -> float:
        return (nats - log_volume) / (math.prod(x.shape[1:]) * math.log(2))

    found = Evaluation(
        elbo=means[0],
        elbo_se=errors[0],
        reconstruction=means[1],
        kl=means[2],
        kl_se=errors[2],
        log_det=means[3],
        nll=nll,
        nll_index=index,
        active=active,
        latent_dim=vae.latent_dim,
        images=len(x),
        bits=in_bits(nll.mean if nll is not None else -means[0]),
        elbo_bits=in_bits(-means[0]),
        nll_elbo_bits=None if nll is None else in_bits(float(nll.bound.mean())),
        warning=collapse_warning(means[2], active, vae.latent_dim) if len(x) > 1 else _SINGLE,
    )
    told = found.summary
    return found if told is None else found.with_warning(told.warning)


def _terms(vae: FlowVAE, x: Tensor, y: Tensor | None, seed: int) -> Tensor:
    """Bound, reconstruction, KL divergence and log-determinants of each image ``(4, N)``."""
    parts = []
    for number, start in enumerate(range(0, len(x), EVALUATION.rows)):
        rows = slice(start, start + EVALUATION.rows)
        generator = stream(seed, EVALUATION.elbo_stream, number, device=x.device)
        terms = vae.elbo(x[rows], None if y is None else y[rows], generator=generator)
        parts.append(torch.stack([terms.bound, terms.reconstruction, terms.kl, terms.log_det]))
    return torch.cat(parts, 1).double()
