"""The negative log-likelihood of images by importance sampling, in tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._progress_bar import progress_bar
from pyro_nfvi._random import stream
from pyro_nfvi.diagnostics._psis import psis
from pyro_nfvi.errors import WeightError
from pyro_nfvi.vae._elbo_terms import joint_terms
from pyro_nfvi.vae._generative_model import GenerativeModel
from pyro_nfvi.vae._memory_tiles import rows_at_once
from pyro_nfvi.vae._nll_summary import NLLSummary, label_of
from pyro_nfvi.vae._posterior import Posterior
from pyro_nfvi.vae._recipe import EVALUATION


@dataclass(frozen=True)
class NLL:
    r"""Negative log-likelihood of each image from weighted draws, in nats.

    .. math:: -\log \hat p(x) = -\log \frac1S \sum_{s} w_s, \qquad \mathbb{E}\,w_s = p(x)

    By importance sampling :math:`w_s = p(x, z_s) / q(z_s \mid x)`; by annealing (``"ais"``) the
    product of T such ratios, each to a power, along a chain from the posterior to the model. Either
    is on average an upper bound of :math:`-\log p(x)` that falls towards it as S grows; that of
    importance sampling is never above the negative ELBO of the same draws.

    Attributes:
        value: ``(B,)``, float64.
        se: Standard error of each value over the draws, delta method ``(B,)``.
        ess: Effective number of draws of each image ``(B,)``.
        khat: Shape of the tail of each image's weights ``(B,)``: above the ``khat_threshold`` of as
            many draws value and error are not to be trusted (the value is then too large).
        bound: Negative ELBO of the same draws ``(B,)``.
        num_samples: S, draws or chains.
        method: ``"importance"`` or ``"ais"``.
        temperatures: T; 0 for importance sampling.
        acceptance: Mean rate of acceptance of each image's transitions ``(B,)``; None for
            importance sampling. Far below 0.7 the chains lag behind, and the value is too large.

    Source: Burda et al. 2016, arXiv:1509.00519, equation 8; Vehtari et al. 2024 for ``khat``.
    """

    value: Tensor
    se: Tensor
    ess: Tensor
    khat: Tensor
    bound: Tensor
    num_samples: int
    method: str = "importance"
    temperatures: int = 0
    acceptance: Tensor | None = None

    @property
    def mean(self) -> float:
        """Mean over the images."""
        return float(self.value.mean())

    @property
    def mean_se(self) -> float:
        """Standard error of the mean over images: spread of the images, draws included."""
        count = len(self.value)
        return float(self.value.std()) / math.sqrt(count) if count > 1 else float(self.se[0])

    @property
    def label(self) -> str:
        """The name of the number in tables: ``NLL(S)``, ``NLL(AIS, S x T)``."""
        return label_of(self.num_samples, self.temperatures)

    def summary(self, of: str = "all") -> NLLSummary:
        """Means over the images, with effective draws, k-hat and what follows from them.

        Args:
            of: How the images were chosen, in words.
        """
        return NLLSummary.of_nll(self, of)

    def __str__(self) -> str:
        return self.summary().sentence()


@torch.no_grad()
def importance_nll(
    vae: GenerativeModel,
    x: Tensor,
    y: Tensor | None,
    *,
    num_samples: int,
    seed: int,
    tile: int,
    numbers: Sequence[int],
    show: bool,
) -> NLL:
    """Estimate ``-log p(x)``; see ``FlowVAE.nll``.

    Images are encoded once; a tile of images runs through all its samples before the next. The
    log weights of one tile are kept (eight bytes each), since k-hat needs their tail. A tile has
    at most ``tile`` rows, and fewer where a row of the decoder holds many numbers.
    """
    vae.check(x)
    tile = rows_at_once(vae, x, vae.condition(None if y is None else y[:1], x[:1]), most=tile)
    samples = min(
        num_samples,
        max(EVALUATION.noise_block, tile // EVALUATION.noise_block * EVALUATION.noise_block),
    )
    width = max(1, min(len(x), tile // samples))
    rows: list[Tensor] = []
    with progress_bar("NLL", len(x), unit="image", show=show) as bar:
        for start in range(0, len(x), width):
            stop = min(start + width, len(x))
            labels = None if y is None else y[start:stop]
            part = x[start:stop]
            posterior = vae.encode(part, labels)
            c = vae.condition(labels, part)
            ours = numbers[start:stop]
            log_w = _weights(vae, part, c, posterior, ours, num_samples, samples, tile, seed)
            rows.append(nll_of_weights(log_w, log_w))
            bar.update(stop - start)
    value, se, ess, khat, bound = torch.cat(rows).unbind(-1)
    return NLL(value, se, ess, khat, bound, num_samples)


def _weights(
    vae: GenerativeModel,
    x: Tensor,
    c: Tensor | None,
    posterior: Posterior,
    images: Sequence[int],
    num_samples: int,
    chunk: int,
    tile: int,
    seed: int,
) -> Tensor:
    """Log weights ``(S, b)`` of a tile, in float64 on the CPU."""
    device = posterior.loc.device
    # A stream of noise per image: its value does not depend on its neighbours.
    streams = [stream(seed, image, device=device) for image in images]
    found: list[Tensor] = []
    for start in range(0, num_samples, chunk):
        count = min(chunk, num_samples - start)
        eps = torch.stack([_noise(count, posterior.loc, g) for g in streams], 1)
        # Blocks of noise are drawn whole; the decoder may have to take them in pieces.
        for piece in eps.split(max(1, tile // len(x))):
            found.append(joint_terms(vae, x, c, posterior.push(piece)).log_w.double().cpu())
    return torch.cat(found)


def _noise(count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Rows of one image's noise ``(count, D)``, the last block cut."""
    blocks = [
        torch.randn(
            EVALUATION.noise_block,
            like.shape[-1],
            dtype=like.dtype,
            device=like.device,
            generator=generator,
        )
        for _ in range(-(-count // EVALUATION.noise_block))
    ]
    return torch.cat(blocks)[:count] if len(blocks) > 1 else blocks[0][:count]


def nll_of_weights(log_w: Tensor, log_importance: Tensor) -> Tensor:
    """Return value, standard error, ESS, k-hat and -ELBO of each image ``(b, 5)``.

    Args:
        log_w: Log weights ``(S, b)``.
        log_importance: Log importance weights of the same draws ``(S, b)``.

    Raises:
        WeightError: Some are NaN or infinite.
    """
    log_w, first = log_w.double().cpu(), log_importance.double().cpu()
    return torch.stack([_row(log_w[:, i], first[:, i]) for i in range(log_w.shape[1])])


def _row(log_w: Tensor, first: Tensor) -> Tensor:
    """``(value, se, ess, khat, bound)`` of one image's weights."""
    count = len(log_w)
    if bool(log_w.isnan().any()) or bool((log_w == torch.inf).any()):
        raise WeightError(
            "Importance weights of an image are not finite: the VAE's parameters, or the image, "
            "hold NaN or infinite numbers. Look at vae.elbo(x) for that image."
        )
    total = torch.logsumexp(log_w, 0)
    relative = torch.softmax(log_w, 0)
    ess = 1 / relative.square().sum()
    # Variance of the mean weight, divided by its square: delta method for the logarithm.
    spread = (count / max(count - 1, 1) * (1 / ess - 1 / count)).clamp_min(0)
    se = spread.sqrt() if count > 1 else spread.new_full((), math.inf)
    khat = psis(log_w).khat
    return torch.stack([math.log(count) - total, se, ess, log_w.new_tensor(khat), -first.mean()])
