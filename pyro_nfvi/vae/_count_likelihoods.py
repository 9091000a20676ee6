"""Likelihoods of counts: Poisson, negative binomial, the latter with more zeros."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_nfvi._math import soft_clamp
from pyro_nfvi._typing import TensorPair
from pyro_nfvi.errors import DataError, OptionError
from pyro_nfvi.vae._likelihoods import Likelihood
from pyro_nfvi.vae._recipe import NETWORKS


@dataclass(frozen=True)
class _Counts(Likelihood):
    """Common parts of the likelihoods of counts: the mean, and its library size.

    Attributes:
        library: None: the decoder gives the logarithm of each mean. A number: the decoder's numbers
            are turned into shares by a softmax over an image (a cell), and the mean is the share
            times the sum of the image's own counts, or times ``library`` for images that are drawn
            from the model.
    """

    library: float | None = None

    def __post_init__(self) -> None:
        if self.library is not None and not 0 < self.library < math.inf:
            raise OptionError(
                f"{type(self).__name__}: library is a typical sum of an image's counts, or None; "
                f"got {self.library!r}."
            )

    def check(self, x: Tensor) -> None:
        if self.library is not None and x.dim() != 2:
            raise DataError(
                f"With a library size counts are rows (B, G); got shape {tuple(x.shape)}. Flatten "
                "them, or leave library out."
            )
        bad = ~(torch.isfinite(x) & (x >= 0) & (x == x.round()))
        if bool(bad.any()):
            raise DataError(
                f"The {self.name} likelihood needs counts, whole numbers from 0; "
                f"{int(bad.sum())} of {x.numel()} numbers are not, such as "
                f"{float(x[bad][0]):g}. Pass raw counts, not normalised or logarithmic ones."
            )

    def encoder_input(self, x: Tensor) -> Tensor:
        real = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        return real.log1p()

    def observe(self, params: Tensor, x: Tensor) -> tuple[Any, Tensor]:
        if self.library is None:
            return self._distribution(params, None), x.to(params)
        sums = x.to(params).sum(-1)
        # An image without counts has no shares; any size gives it a finite score.
        return self._distribution(params, sums.clamp_min(1.0).log().unsqueeze(-1)), x.to(params)

    def reconstruction(self, params: Tensor, x: Tensor) -> Tensor:
        counts, _ = self.observe(params, x)
        mean: Tensor = counts.mean
        return mean

    def distribution(self, params: Tensor) -> Any:
        return self._distribution(params, None)

    def _distribution(self, params: Tensor, log_size: Tensor | None) -> Any:
        raise NotImplementedError

    def _log_mean(self, raw: Tensor, log_size: Tensor | None) -> Tensor:
        """Return the logarithm of the means ``(*b, *shape)``."""
        if self.library is None:
            return soft_clamp(raw, NETWORKS.log_rate)
        size = math.log(self.library) if log_size is None else log_size
        return raw.log_softmax(-1) + size


@dataclass(frozen=True)
class Poisson(_Counts):
    r"""Counts: :math:`x_i \sim \mathrm{Poisson}(\mu_i)`; the decoder gives :math:`\log \mu_i`.

    Args:
        library: As in :class:`NegativeBinomial`.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import Poisson
        >>> x = torch.tensor([[0.0, 1.0]])
        >>> Poisson().log_prob(torch.zeros(1, 2), x)  # rates of 1
        tensor([-2.])
    """

    name: ClassVar[str] = "poisson"

    @property
    def num_params(self) -> int:
        return 1

    def _distribution(self, params: Tensor, log_size: Tensor | None) -> Any:
        return dist.Poisson(self._log_mean(params, log_size).exp(), validate_args=False)


@dataclass(frozen=True)
class NegativeBinomial(_Counts):
    r"""Counts with a variance above their mean.

    .. math:: \log p(x_i) = \log \frac{\Gamma(x_i + r_i)}{\Gamma(r_i)\, x_i!}
        + r_i \log \frac{r_i}{r_i + \mu_i} + x_i \log \frac{\mu_i}{r_i + \mu_i}, \qquad
        \mathrm{Var}\, x_i = \mu_i + \mu_i^2 / r_i

    The decoder gives :math:`\log \mu_i` and :math:`\log r_i` on the last axis (a parameter of its
    own may serve for the latter, where all cells share a gene's dispersion). Both are bounded
    smoothly. The encoder sees :math:`\log(1 + x)`.

    Args:
        library: None, or a typical sum of an image's counts (a cell's library size): means are
            then shares, by a softmax over the image, times the sum of the image's own counts, in
            reconstructions too; images that are drawn from the model take ``library`` for it.

    Source: Lopez et al. 2018, Nature Methods 15:1053 (scVI).

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import NegativeBinomial
        >>> x = torch.tensor([[3.0, 1.0, 0.0, 6.0]])
        >>> cells = NegativeBinomial(library=1000.0)
        >>> cells.distribution(torch.zeros(1, 4, 2)).mean.round().tolist()
        [[250.0, 250.0, 250.0, 250.0]]
        >>> cells.observe(torch.zeros(1, 4, 2), x)[0].mean.round(decimals=2).tolist()
        [[2.5, 2.5, 2.5, 2.5]]
    """

    name: ClassVar[str] = "negative-binomial"

    @property
    def num_params(self) -> int:
        return 2

    def _both(self, params: Tensor, log_size: Tensor | None) -> TensorPair:
        """Return ``(r, log mean - log r)``."""
        log_r = soft_clamp(params[..., 1], NETWORKS.log_rate)
        return log_r.exp(), self._log_mean(params[..., 0], log_size) - log_r

    def _distribution(self, params: Tensor, log_size: Tensor | None) -> Any:
        count, logits = self._both(params, log_size)
        return dist.NegativeBinomial(count, logits=logits, validate_args=False)


@dataclass(frozen=True)
class ZeroInflatedNegativeBinomial(NegativeBinomial):
    r"""Negative binomial counts, of which some are lost: zero with probability :math:`\pi_i`.

    .. math:: p(x_i) = \pi_i\, 1[x_i = 0] + (1 - \pi_i)\, \mathrm{NB}(x_i; \mu_i, r_i)

    The decoder gives :math:`\log \mu_i`, :math:`\log r_i` and the logit of :math:`\pi_i`.

    Args:
        library: As in :class:`NegativeBinomial`.

    Source: Lopez et al. 2018, Nature Methods 15:1053 (scVI).

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import ZeroInflatedNegativeBinomial
        >>> params = torch.tensor([[[0.0, 0.0, 0.0]]])  # mean 1, r 1, lost with probability 1/2
        >>> ZeroInflatedNegativeBinomial().log_prob(params, torch.zeros(1, 1)).exp()
        tensor([0.7500])
    """

    name: ClassVar[str] = "zero-inflated-negative-binomial"

    @property
    def num_params(self) -> int:
        return 3

    def _distribution(self, params: Tensor, log_size: Tensor | None) -> Any:
        count, logits = self._both(params, log_size)
        return dist.ZeroInflatedNegativeBinomial(
            count, logits=logits, gate_logits=params[..., 2], validate_args=False
        )
