"""Supports of latent sites: their bijection from the reals, staying inside, and a JSON form."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints as pyro_constraints
from torch import Tensor
from torch.distributions import Distribution, biject_to, constraints
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import Transform

from pyro_nfvi._compat import MIXTURE_SUPPORTS
from pyro_nfvi._pyro_model.structured_matrices import CorrTransform, TrilTransform
from pyro_nfvi.errors import ModelError, OptionError

# Constraints by name. Singletons of torch and Pyro are found by their class.
_PLAIN: dict[str, Constraint] = {
    name: getattr(pyro_constraints, name)
    for name in (
        "real",
        "simplex",
        "lower_cholesky",
        "corr_cholesky",
        "positive_definite",
        "ordered_vector",
        "positive_ordered_vector",
        "corr_matrix",
        "softplus_positive",
        "softplus_lower_cholesky",
        "unit_lower_cholesky",
    )
}
_BOUNDED: dict[str, tuple[type[Constraint], tuple[str, ...]]] = {
    "greater_than": (constraints.greater_than, ("lower_bound",)),
    "greater_than_eq": (constraints.greater_than_eq, ("lower_bound",)),
    "less_than": (constraints.less_than, ("upper_bound",)),
    "interval": (constraints.interval, ("lower_bound", "upper_bound")),
    "half_open_interval": (constraints.half_open_interval, ("lower_bound", "upper_bound")),
}
#: Distributions of angles, whose densities repeat themselves.
_ANGLES = (dist.VonMises, dist.SineSkewed, dist.SineBivariateVonMises)
_TRIL = {
    "lower_cholesky": "exp",
    "softplus_lower_cholesky": "softplus",
    "unit_lower_cholesky": "unit",
    "positive_definite": "exp",
}


def _kind(support: Constraint) -> str | None:
    """Name of a support that this module knows, else None."""
    for name, (cls, _) in _BOUNDED.items():
        if type(support) is cls:
            return name
    for name, plain in _PLAIN.items():
        if type(support) is type(plain):
            return name
    return "independent" if isinstance(support, constraints.independent) else None


def bijection(support: Constraint) -> Transform:
    """Return the bijection from the reals onto a support.

    That is Pyro's ``biject_to``, and :mod:`pyro_nfvi._pyro_model.structured_matrices` for lower
    triangular, positive definite and correlation matrices, for which torch and Pyro have none,
    or one whose log-determinant is infinite where it saturates.

    Raises:
        ModelError: There is no bijection, as for discrete supports and the sphere.
    """
    name = _kind(support)
    if name in _TRIL:
        return TrilTransform(_TRIL[name], square=name == "positive_definite")
    if name in ("corr_cholesky", "corr_matrix"):
        return CorrTransform(square=name == "corr_matrix")
    if name == "independent":
        base = bijection(support.base_constraint)
        return torch.distributions.IndependentTransform(base, support.reinterpreted_batch_ndims)
    try:
        return biject_to(support)
    except NotImplementedError as error:
        kind = type(support).__name__.lstrip("_")
        raise ModelError(
            f"There is no bijection from the reals onto the support of class {kind}. Register one: "
            f"torch.distributions.biject_to.register({kind}, lambda support: transform); or "
            "reparametrise the site (for a direction: pyro.infer.reparam.ProjectedNormalReparam)."
        ) from error


@lru_cache(maxsize=256)
def _next(bound: float, dtype: torch.dtype, *, up: bool) -> float:
    """The floating number after a bound; for 0 the smallest normal one, as logs need it."""
    if bound == 0.0:
        return torch.finfo(dtype).tiny if up else -torch.finfo(dtype).tiny
    point = torch.tensor(bound, dtype=dtype)
    return float(torch.nextafter(point, torch.full_like(point, math.inf if up else -math.inf)))


def _edge(bound: float | Tensor, value: Tensor, *, up: bool) -> float | Tensor:
    if not isinstance(bound, Tensor):
        return _next(float(bound), value.dtype, up=up)
    bound = bound.to(value)
    tiny = torch.finfo(value.dtype).tiny
    after = torch.nextafter(bound, torch.full_like(bound, math.inf if up else -math.inf))
    return torch.where(bound == 0, torch.full_like(bound, tiny if up else -tiny), after)


def _at_least(value: Tensor, low: float | Tensor) -> Tensor:
    return torch.maximum(value, low) if isinstance(low, Tensor) else value.clamp(min=low)


def _at_most(value: Tensor, high: float | Tensor) -> Tensor:
    return torch.minimum(value, high) if isinstance(high, Tensor) else value.clamp(max=high)


def _increasing(value: Tensor) -> Tensor:
    """Push entries that rounding made equal apart, by a few units in the last place."""
    if value.shape[-1] < 2:
        return value
    info = torch.finfo(value.dtype)
    room = (4 * info.eps * value.detach().abs() + info.tiny).cumsum(-1)
    apart = (value - room).cummax(-1).values + room
    tied = (value[..., 1:] <= value[..., :-1]).any(-1, keepdim=True)
    return torch.where(tied, apart, value)


def inside(support: Constraint, value: Tensor) -> Tensor:
    """Move a value that rounding put on the edge of its support just inside it.

    Saturation (``sigmoid(30) == 1`` in float32, ``exp(-110) == 0``) would otherwise give values
    that the model's own density rejects or scores as infinite. Values inside stay as they are;
    a value moved gets no gradient. Unions of supports (``cat``, ``stack``) and constraint
    classes of your own are left alone.

    Example:
        >>> import torch
        >>> from torch.distributions import constraints
        >>> bool(inside(constraints.unit_interval, torch.sigmoid(torch.tensor(30.0))) < 1)
        True
    """
    name = _kind(support)
    info = torch.finfo(value.dtype)
    if name == "independent":
        return inside(support.base_constraint, value)
    if name in ("greater_than", "greater_than_eq"):
        low = _edge(support.lower_bound, value, up=True)
        return _at_least(value, low).clamp(max=info.max)
    if name == "less_than":
        high = _edge(support.upper_bound, value, up=False)
        return _at_most(value, high).clamp(min=info.min)
    if name in ("interval", "half_open_interval"):
        low = _edge(support.lower_bound, value, up=True)
        return _at_most(_at_least(value, low), _edge(support.upper_bound, value, up=False))
    if name == "softplus_positive":
        return value.clamp(min=info.tiny)
    if name == "simplex":
        value = value.clamp(min=info.tiny)
        return value / value.sum(-1, keepdim=True)
    if name == "ordered_vector":
        return _increasing(value)
    if name == "positive_ordered_vector":
        top = info.max * (1 - 8 * info.eps * value.shape[-1])  # room to push ties apart
        return _increasing(value.clamp(min=info.tiny, max=top))
    if name in ("lower_cholesky", "softplus_lower_cholesky", "corr_cholesky"):
        eye = torch.eye(value.shape[-1], dtype=torch.bool, device=value.device)
        return torch.where(eye, value.clamp(min=info.tiny), value)
    if name in ("positive_definite", "corr_matrix"):
        # Relative to each variance: a product of rounded factors is then positive definite
        # however different the scales are.
        n = value.shape[-1]
        eye = torch.eye(n, dtype=torch.bool, device=value.device)
        margin = 8 * n * info.eps
        if name == "corr_matrix":
            return torch.where(eye, torch.ones_like(value), value * (1 - margin))
        return torch.where(eye, value.clamp(min=info.tiny) * (1 + margin), value)
    return value


def support_of(fn: Any) -> Constraint:
    """Return the support of a distribution, frozen; that of an angle is one turn.

    The density of an angle repeats itself on the real line, which torch gives as its support: there
    it has no integral, and a guide would fit several of its copies.

    Raises:
        ModelError: Its class has none.

    Example:
        >>> import pyro.distributions as dist
        >>> support_of(dist.VonMises(0.0, 1.0))
        Interval(lower_bound=-3.141592653589793, upper_bound=3.141592653589793)
    """
    try:
        support, inner = frozen(fn.support), fn
    except NotImplementedError as error:
        raise ModelError(
            f"The distribution {type(fn).__name__} does not say what its support is. Give the "
            "class one, such as support = torch.distributions.constraints.real."
        ) from error
    while isinstance(getattr(inner, "base_dist", None), Distribution):
        inner = inner.base_dist
    of_angles = isinstance(inner, _ANGLES) or getattr(inner, "periodic", False) is True
    return _one_turn(support) if of_angles else support


def _one_turn(support: Constraint) -> Constraint:
    if isinstance(support, constraints.independent):
        base = _one_turn(support.base_constraint)
        return constraints.independent(base, support.reinterpreted_batch_ndims)
    return constraints.interval(-math.pi, math.pi)


def _frozen_bound(bound: Any) -> Any:
    return bound.detach().clone() if isinstance(bound, Tensor) else bound


def frozen(support: Constraint) -> Constraint:
    """Copy a support so that its bounds carry no graph and no live tensor of the model."""
    name = _kind(support)
    if name in _BOUNDED:
        cls, bounds = _BOUNDED[name]
        return cls(*(_frozen_bound(getattr(support, bound)) for bound in bounds))
    if name == "independent":
        base = frozen(support.base_constraint)
        return constraints.independent(base, support.reinterpreted_batch_ndims)
    if isinstance(support, MIXTURE_SUPPORTS):
        # A mixture lives where its components do; torch registers no bijection for its wrapper.
        return frozen(support.base_constraint)
    return support


def support_spec(support: Constraint) -> dict[str, Any]:
    """Describe a support by what JSON can hold; ``{"kind": "other", ...}`` if it is unknown."""
    name = _kind(support)
    if name in _BOUNDED:
        spec: dict[str, Any] = {"kind": name}
        for bound in _BOUNDED[name][1]:
            value = getattr(support, bound)
            spec[bound] = value.tolist() if isinstance(value, Tensor) else float(value)
        return spec
    if name == "independent":
        return {
            "kind": name,
            "base": support_spec(support.base_constraint),
            "ndims": support.reinterpreted_batch_ndims,
        }
    return {"kind": name} if name else {"kind": "other", "name": str(support)}


def support_from_spec(
    spec: dict[str, Any], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Constraint:
    """Rebuild a support from :func:`support_spec`.

    Raises:
        OptionError: The support is one that has no description (a class of your own).
    """
    kind = spec.get("kind")
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind in _BOUNDED:
        cls, names = _BOUNDED[kind]
        return cls(
            *(
                torch.tensor(spec[name], dtype=dtype, device=device)
                if isinstance(spec[name], list)
                else spec[name]
                for name in names
            )
        )
    if kind == "independent":
        return constraints.independent(
            support_from_spec(spec["base"], dtype, device), spec["ndims"]
        )
    raise OptionError(
        f"The support {spec.get('name', kind)!r} is of a class of your own, which no file holds. "
        "Load with the model: load(path, model=model, args=...)."
    )
