"""Location and scale of a site's prior in the unconstrained space."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, TransformedDistribution
from torch.distributions.constraints import Constraint, real
from torch.distributions.transforms import ComposeTransform, Transform

from pyro_nfvi._pyro_model.constraints import bijection
from pyro_nfvi._typing import TensorPair


def prior_moments(fn: Any, support: Constraint) -> TensorPair | None:
    r"""Return location and log-scale of a distribution's unconstrained coordinates.

    Of a location-scale family (normal, Student's t, Cauchy, Laplace, ...) its own; of one that is
    pushed onto the support by the support's own bijection (a log-normal) those of its base; of
    others mean m and standard deviation s by the delta method, :math:`T^{-1}(m)` and
    :math:`\log s - \log |T'|`. Where one of them is not finite both are 0.

    Args:
        fn: The distribution.
        support: Its support.

    Returns:
        Both in the shape of the distribution's values; None on supports whose coordinates are not
        those of the values, such as a simplex, and where a distribution knows neither.

    Example:
        >>> import torch
        >>> import pyro.distributions as dist
        >>> normal = dist.LogNormal(torch.tensor([0.5]), 2.0)
        >>> loc, log_scale = prior_moments(normal, normal.support)
        >>> loc, log_scale.exp()
        (tensor([0.5000]), tensor([2.]))
    """
    plain: Any = support
    while hasattr(plain, "base_constraint"):
        plain = plain.base_constraint
    transform = bijection(plain)
    if transform.domain.event_dim or transform.codomain.event_dim:
        return None
    shape, inner = fn.batch_shape + fn.event_shape, fn
    while isinstance(inner, Independent):
        inner = inner.base_dist
    if plain is real or type(plain) is type(real):
        found = _own(inner) or _mean_and_sd(inner)
        return None if found is None else _finite(found[0], found[1].log(), shape)
    if isinstance(inner, TransformedDistribution) and _same(inner.transforms, transform):
        base: Any = inner.base_dist
        while isinstance(base, Independent):
            base = base.base_dist
        if (found := _own(base)) is not None:
            return _finite(found[0], found[1].log(), shape)
    if (found := _mean_and_sd(inner)) is None:
        return None
    mean, sd = found
    good = mean.isfinite() & sd.isfinite() & (sd > 0) & plain.check(mean)
    safe = torch.where(good, mean, transform(torch.zeros_like(mean)))
    loc = transform.inv(safe)
    # Masked by a factor that is safe, so that no gradient of what is left out is NaN.
    log_scale = torch.where(good, sd, torch.ones_like(sd)).log()
    log_scale = log_scale - transform.log_abs_det_jacobian(loc, safe)
    zero = torch.zeros_like(loc)
    return _finite(torch.where(good, loc, zero), torch.where(good, log_scale, zero), shape)


def _own(fn: Any) -> TensorPair | None:
    """Return location and scale of a location-scale family."""
    loc, scale = getattr(fn, "loc", None), getattr(fn, "scale", None)
    if isinstance(loc, Tensor) and isinstance(scale, Tensor) and not fn.event_shape:
        return loc, scale
    return None


def _mean_and_sd(fn: Any) -> TensorPair | None:
    """Return mean and standard deviation, where a distribution knows them."""
    try:
        mean, variance = fn.mean, fn.variance
    except (NotImplementedError, AttributeError):
        return None
    return (mean, variance.sqrt()) if mean.shape == variance.shape else None


def _same(parts: list[Transform], transform: Transform) -> bool:
    """Tell whether transforms are one function."""
    points = torch.tensor([-1.3, 0.2, 2.1])
    try:
        found, expected = ComposeTransform(list(parts))(points), transform(points)
    except Exception:  # of other shapes or dtypes
        return False
    return found.shape == expected.shape and bool(torch.allclose(found, expected))


def _finite(loc: Tensor, log_scale: Tensor, shape: torch.Size) -> TensorPair:
    """Replace what is not finite by 0, and broadcast."""
    good = loc.isfinite() & log_scale.isfinite()
    zero = loc.new_zeros(())
    found = torch.where(good, loc, zero), torch.where(good, log_scale, zero)
    return found[0].expand(shape), found[1].expand(shape)
