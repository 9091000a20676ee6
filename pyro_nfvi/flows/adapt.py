"""Flows of other libraries, as ours."""

from __future__ import annotations

import itertools
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from pyro_nfvi._typing import TensorPair
from pyro_nfvi.errors import ContextError, OptionError, ShapeError
from pyro_nfvi.flows.base import Flow, check_dim

__all__ = ["Adapted", "adapt"]

#: Transforms known to be wrong or without inverse, and what to take instead.
_REFUSED = {
    "Sylvester": "its log-determinant is wrong away from its initial parameters; use 'sylvester'",
    "Planar": "it has no inverse, is NaN at w = 0 and is not the identity at u = 0; use 'planar'",
    "ConditionedPlanar": "it has no inverse and is NaN at w = 0; use 'planar' with context_dim",
    "Radial": "it has no inverse; use 'radial'",
    "ConditionedRadial": "it has no inverse; use 'radial' with context_dim",
    "BlockAutoregressive": "it has no inverse and its tanh bounds the codomain, which cuts tails",
    "Polynomial": "it has no inverse",
    "NeuralAutoregressive": "it has no inverse; use 'naf'",
    "ConditionedNeuralAutoregressive": "it has no inverse; use 'naf' with context_dim",
    "BatchNorm": "a call changes its statistics, and rows depend on each other; use "
    "flows.BatchNorm",
    "MatrixExponential": "its exponential is a series cut after few terms: with weights of order 1 "
    "map, inverse and log-determinant disagree; use flows.LULinear",
    "ConditionedMatrixExponential": "its exponential is a series cut after few terms: with weights "
    "of order 1 map, inverse and log-determinant disagree; use flows.LULinear with context_dim",
}
#: Zuko's, by the names of their classes.
_REFUSED_ZUKO = {
    "CircularShiftTransform": "it lives on circles, not on all reals",
    "NCSF": "it lives on circles, not on all reals",
    **dict.fromkeys(
        ("GF", "NAF", "SOSPF", "UNAF"),
        "its inverse is searched for between -10 and 10 alone, and draws are cut there; use 'naf'",
    ),
}


@final
class Adapted(Flow):
    """A ``torch.distributions`` transform over vectors, as a :class:`Flow`.

    Made by :func:`adapt`. The transform's own cache is emptied around every call, so that it
    cannot answer with stale values.

    Example:
        >>> import pyro.distributions.transforms as T
        >>> from pyro_nfvi.flows import adapt
        >>> adapt(T.affine_autoregressive(3), dim=3).dim
        3
    """

    def __init__(self, source: Any, dim: int, context_dim: int) -> None:
        super().__init__(dim, context_dim)
        # Where the source is a module, its parameters become ours.
        self.source = source
        self.inverse_kind = "sequential"

    def _bind(self, context: Tensor | None) -> Transform:
        if context is None:
            transform = self.source() if _is_lazy(self.source) else self.source
        elif hasattr(self.source, "condition"):
            transform = self.source.condition(context)
        else:
            transform = self.source(context)
        if hasattr(transform, "clear_cache"):
            transform.clear_cache()
        return transform

    def forward(self, x: Tensor, context: Tensor | None = None) -> TensorPair:
        x, context = self.enter(x, context)
        transform = self._bind(context)
        y = transform(x)
        ladj = transform.log_abs_det_jacobian(x, y)
        _forget(transform)
        return y, _sum_event(ladj, x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> TensorPair:
        y, context = self.enter(y, context)
        transform = self._bind(context)
        try:
            x = transform.inv(y)
        except RuntimeError as error:
            if y.dtype == torch.get_default_dtype() or "dtype" not in str(error):
                raise
            raise ShapeError(
                f"{type(self.source).__name__} computes its inverse in torch's default dtype, "
                f"{torch.get_default_dtype()}; got a point of {y.dtype}. Take the flow and the "
                "point in that dtype, or a flow of this library."
            ) from error
        # Scored at a fresh point: a cache filled by the inversion is not trusted.
        _forget(transform)
        again = transform(x)
        ladj = -_sum_event(transform.log_abs_det_jacobian(x, again), y)
        _forget(transform)
        return x, ladj


def adapt(source: Any, dim: int, context_dim: int = 0) -> Flow:
    """Take a transform of Pyro, torch or Zuko as a flow.

    Args:
        source: A ``torch.distributions`` transform over vectors (Pyro's ``TransformModule``
            too), a Pyro ``ConditionalTransform``, a Zuko lazy transform (a module whose call
            returns a transform), or a whole Zuko flow. A Zuko flow's transform runs from data to
            base; it is turned round, and its base is left out.
        dim: Event size D.
        context_dim: Size of the context that a conditional transform takes.

    Raises:
        OptionError: Not a transform, not a bijection of all reals, of another size, or one that
            is known to be wrong or does not come back from two points that are tried; the reason
            is named.
        ContextError: A conditional transform without ``context_dim``.

    Example:
        >>> import pyro.distributions.transforms as T
        >>> from pyro_nfvi.flows import adapt
        >>> adapt(T.spline(3), dim=3).inverse_kind
        'sequential'
    """
    check_dim("adapt", dim)
    if isinstance(source, Flow):
        if (source.dim, source.context_dim) != (dim, context_dim):
            raise OptionError(
                f"adapt got a flow of dim={source.dim}, context_dim={source.context_dim} for "
                f"dim={dim}, context_dim={context_dim}."
            )
        return source
    if _is_zuko(source) and type(source).__name__ in _REFUSED_ZUKO:
        raise _refusal(source, _REFUSED_ZUKO[type(source).__name__])
    if _is_zuko(source) and isinstance(getattr(source, "transform", None), nn.Module):
        return adapt(source.transform, dim, context_dim).inv
    for part in _parts(source):
        name = type(part).__name__.removeprefix("Conditional")
        reason = _REFUSED.get(name)
        if reason and type(part).__module__.startswith("pyro."):
            raise _refusal(part, reason)
        if _is_zuko(part) and type(part).__name__ in _REFUSED_ZUKO:
            raise _refusal(part, _REFUSED_ZUKO[type(part).__name__])
    is_transform = isinstance(source, Transform)
    conditional = hasattr(source, "condition")
    if not (is_transform or conditional or _is_lazy(source)):
        raise OptionError(
            "adapt takes a torch.distributions transform, a Pyro ConditionalTransform or a Zuko "
            f"lazy transform; got {type(source).__name__}."
        )
    if conditional and not is_transform and context_dim == 0:
        raise ContextError(
            f"{type(source).__name__} is conditional: pass adapt(..., context_dim=C)."
        )
    if is_transform:
        _check_reals(source)
    flow = Adapted(source, dim, context_dim)
    _try(flow)
    return flow


def _refusal(part: Any, reason: str) -> OptionError:
    return OptionError(f"adapt refuses {type(part).__module__}.{type(part).__name__}: {reason}.")


def _is_zuko(source: Any) -> bool:
    return type(source).__module__.split(".")[0] == "zuko"


def _check_reals(transform: Transform) -> None:
    """Refuse what is no bijection of all reals, as far as the transform tells."""
    if not transform.bijective:
        raise _refusal(transform, "it is no bijection")
    for name in ("domain", "codomain"):
        constraint: Any = getattr(transform, name, None)
        while hasattr(constraint, "base_constraint"):
            constraint = constraint.base_constraint
        bounded = isinstance(constraint, constraints.Constraint)
        if bounded and constraint not in (constraints.real, constraints.real_vector):
            raise _refusal(transform, f"its {name} is {constraint}, not all reals")


@torch.no_grad()
def _try(flow: Adapted) -> None:
    """Refuse what fails at two points, one near 0 and one far out."""
    source = flow.source
    numbers = (
        tensor
        for tensor in itertools.chain(flow.parameters(), flow.buffers())
        if tensor.is_floating_point()
    )
    like = next(numbers, torch.empty(()))
    x = torch.linspace(-0.5, 0.5, flow.dim).to(like) * like.new_tensor([[1.0], [60.0]]) + 0.1
    context = like.new_zeros(2, flow.context_dim) if flow.context_dim else None
    sizes = f"dim={flow.dim}, context_dim={flow.context_dim}"
    try:
        bound = flow._bind(context)
        if not isinstance(bound, Transform):
            raise _refusal(source, f"its call returns a {type(bound).__name__}, not a transform")
        y, ladj = flow(x, context)
        if y.shape != x.shape or ladj.shape != x.shape[:-1]:
            raise _refusal(
                source,
                f"at points {tuple(x.shape)} it returns {tuple(y.shape)}, with log-determinants "
                f"{tuple(ladj.shape)}: is it built for {sizes}?",
            )
        back, _ = flow.inverse(y, context)
        again, _ = flow(back, context)
    except (OptionError, ShapeError):
        raise
    except Exception as error:
        raise OptionError(
            f"adapt tried {type(source).__name__} at points {tuple(x.shape)} with {sizes}, and it "
            f"failed. Is it built for these sizes? It says: {type(error).__name__}: {error}"
        ) from error
    # Where the map is steep or flat, rounding may move the point; then its image stays.
    for point, found, image, found_image in zip(x, back, y, again):
        lost = min(_apart(found, point), _apart(found_image, image))
        if lost > 0.05:
            raise _refusal(
                source,
                f"its inverse does not come back: from {point[0].item():.3g} it goes to "
                f"{found[0].item():.3g} in the first coordinate (one that is searched for in an "
                "interval cuts draws there)",
            )


def _apart(found: Tensor, expected: Tensor) -> float:
    """Largest relative difference; 0 where a number is not finite, which tells nothing."""
    gap = ((found - expected).abs() / (1 + expected.abs())).max().item()
    return gap if gap < float("inf") else 0.0


def _is_lazy(source: Any) -> bool:
    return isinstance(source, nn.Module) and not isinstance(source, (Transform, Flow))


def _parts(source: Any, seen: set[int] | None = None) -> list[Any]:
    """Return a transform and all that it holds, each once (an inverse holds its original)."""
    seen = set() if seen is None else seen
    if id(source) in seen:
        return []
    seen.add(id(source))
    inner = [*getattr(source, "parts", []), *(source if isinstance(source, nn.ModuleList) else [])]
    inner += [getattr(source, name, None) for name in ("_inv", "_transform", "base_transform")]
    held = [part for part in inner if isinstance(part, (Transform, nn.Module))]
    return [source, *(leaf for part in held for leaf in _parts(part, seen))]


def _forget(transform: Any) -> None:
    """Empty the hidden caches that Pyro's transforms keep."""
    for part in _parts(transform):
        if hasattr(part, "clear_cache"):
            part.clear_cache()
        for name in [key for key in vars(part) if key.startswith("_cached_")]:
            setattr(part, name, (None, None) if name == "_cached_x_y" else None)


def _sum_event(ladj: Tensor, x: Tensor) -> Tensor:
    """Sum what an elementwise transform returns per coordinate; expand what it returns once."""
    return (ladj.sum(-1) if ladj.shape == x.shape else ladj).expand(x.shape[:-1])
