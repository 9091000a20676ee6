"""Draws of a distribution as a function of standard normal noise."""

from __future__ import annotations

import math
import zlib
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from pyro_nfvi._compat import is_watched
from pyro_nfvi._random import seeded
from pyro_nfvi.errors import OptionError

#: Wrappers that leave the draws of what they wrap as they are.
_WRAPPERS = (dist.MaskedDistribution, dist.ExpandedDistribution)


def noise_shape(fn: Any) -> torch.Size:
    """Return the shape of the noise of one draw, batch dimensions first.

    Args:
        fn: A distribution with reparametrised draws.
    """
    if isinstance(fn, dist.Delta):
        return torch.Size((*fn.batch_shape, 0))
    if isinstance(fn, Independent):
        return noise_shape(fn.base_dist)
    if isinstance(fn, _WRAPPERS):
        base: Any = fn.base_dist
        return torch.Size((*fn.batch_shape, *noise_shape(base)[len(base.batch_shape) :]))
    if isinstance(fn, TransformedDistribution):
        return noise_shape(fn.base_dist)
    if isinstance(fn, LowRankMultivariateNormal):
        size, rank = fn._unbroadcasted_cov_factor.shape[-2:]
        return torch.Size((*fn.batch_shape, size + rank))
    return fn.batch_shape + fn.event_shape


def draw(fn: Any, eps: Tensor) -> Tensor:
    r"""Map standard normal noise to a draw, differentiable in the distribution's parameters.

    Normal distributions and their transforms shift and scale the noise; others go through their
    quantile function, :math:`F^{-1}(\Phi(\varepsilon))`. What has no quantile function in PyTorch
    (Gamma, Beta, Dirichlet, Student t) draws by itself, from a seed that the noise decides.

    Args:
        fn: A distribution with reparametrised draws.
        eps: Noise of :func:`noise_shape`.

    Shape:
        ``(*batch_shape, *event_shape)`` of the distribution.

    Raises:
        OptionError: The distribution draws by itself while operations are recorded: such draws
            are no function of their inputs.

    Example:
        >>> import torch
        >>> import pyro.distributions as dist
        >>> draw(dist.Normal(torch.tensor(1.0), 2.0), torch.tensor(0.5))
        tensor(2.)
    """
    if isinstance(fn, dist.Delta):
        return fn.v
    if isinstance(fn, Independent):
        return draw(fn.base_dist, eps)
    if isinstance(fn, _WRAPPERS):
        base: Any = fn.base_dist
        return draw(base.expand(fn.batch_shape), eps)
    if isinstance(fn, TransformedDistribution):
        value = draw(fn.base_dist, eps)
        for transform in fn.transforms:
            value = transform(value)
        return value
    if isinstance(fn, Normal):
        return fn.loc + fn.scale * eps
    if isinstance(fn, MultivariateNormal):
        tril = fn._unbroadcasted_scale_tril
        return fn.loc + (tril @ eps.unsqueeze(-1)).squeeze(-1)
    if isinstance(fn, LowRankMultivariateNormal):
        factor = fn._unbroadcasted_cov_factor
        size = factor.shape[-2]
        along = (factor @ eps[..., size:].unsqueeze(-1)).squeeze(-1)
        return fn.loc + along + fn._unbroadcasted_cov_diag.sqrt() * eps[..., :size]
    if _has_quantiles(fn):
        info = torch.finfo(eps.dtype)
        return fn.icdf(torch.special.ndtr(eps).clamp(info.tiny, 1 - info.eps))
    if is_watched():
        raise OptionError(f"draws of a {type(fn).__name__} are no function of their noise")
    digest = zlib.crc32(eps.detach().cpu().contiguous().numpy().tobytes())
    with seeded(digest, "site of a guide"):
        return fn.rsample()


def _has_quantiles(fn: Distribution) -> bool:
    try:
        fn.icdf(torch.tensor(0.5))
    except (NotImplementedError, RuntimeError):
        return False
    return True


def is_reparametrised(fn: Any) -> bool:
    """Tell whether draws carry gradients to the distribution's parameters."""
    return bool(getattr(fn, "has_rsample", False))


def noise_numbers(fn: Any, rows: int) -> int:
    """Return how many numbers of noise each of ``rows`` draws takes."""
    return math.prod(noise_shape(fn)) // rows
