"""Flows of other libraries, as ours."""

from __future__ import annotations

import itertools
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from pyro_nfvi._typing import Contexts, Image, Points
from pyro_nfvi.errors import OptionError, ShapeError
from pyro_nfvi.flows._base import Flow, check_dim
from pyro_nfvi.flows._pair_flow import check_pair, is_pair, pair_flow

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
        # Where the source is a module, its parameters become ours; a torch transform that holds
        # modules, such as an inverse, does not register them itself.
        self.source = source
        held = [part for part in _parts(source)[1:] if isinstance(part, nn.Module)]
        self.held = nn.ModuleList([] if isinstance(source, nn.Module) else held)
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

    def forward(self, x: Points, context: Contexts | None = None) -> Image:
        x, context = self.enter(x, context)
        transform = self._bind(context)
        y = transform(x)
        ladj = transform.log_abs_det_jacobian(x, y)
        _forget(transform)
        return y, _sum_event(ladj, x)

    def inverse(self, y: Points, context: Contexts | None = None) -> Image:
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
    """Take a transform of Pyro, torch, Zuko, nflows or normflows as a flow.

    Args:
        source: A ``torch.distributions`` transform over vectors (Pyro's ``TransformModule``
            too), a Pyro ``ConditionalTransform``, a Zuko lazy transform (a module whose call
            returns a transform), a transform of nflows, a layer of normflows, or a whole flow of
            Zuko, nflows or normflows. Those of Zuko and nflows run from data to base and are turned
            round; bases are left out.
        dim: Event size D.
        context_dim: Size of the context that a conditional transform takes.

    Raises:
        OptionError: Not a transform, not a bijection of all reals, of another size, or one that
            is known to be wrong or does not come back from two points that are tried; the reason
            is named.
        ShapeError: A conditional transform without ``context_dim``.

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
    if _is_zuko(source):
        for kind in type(source).__mro__:
            if kind.__name__ in _REFUSED_ZUKO:
                raise _refusal(source, _REFUSED_ZUKO[kind.__name__])
    if _is_zuko(source) and isinstance(getattr(source, "transform", None), nn.Module):
        return adapt(source.transform, dim, context_dim).inv
    if is_pair(source):
        made = pair_flow(source, dim, context_dim)
        check_pair(made)
        return made
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
            "adapt takes a torch.distributions transform, a Pyro ConditionalTransform, a Zuko lazy "
            f"transform, or a flow of nflows or normflows; got {type(source).__name__}."
        )
    if conditional and not is_transform and context_dim == 0:
        raise ShapeError(f"{type(source).__name__} is conditional: pass adapt(..., context_dim=C).")
    if is_transform:
        _check_reals(source)
    flow = Adapted(source, dim, context_dim)
    _try(flow)
    return flow


def _refusal(part: Any, reason: str) -> OptionError:
    return OptionError(f"adapt refuses {type(part).__module__}.{type(part).__name__}: {reason}.")


def _is_zuko(source: Any) -> bool:
    return any(kind.__module__.split(".")[0] == "zuko" for kind in type(source).__mro__)


def _check_reals(transform: Transform) -> None:
    """Refuse what is no bijection of all reals, as far as the transform declares."""
    if not transform.bijective:
        raise _refusal(transform, "it is no bijection")
    for name in ("domain", "codomain"):
        for constraint in _plain(getattr(transform, name, None)):
            bounded = isinstance(constraint, constraints.Constraint)
            if bounded and constraint not in (constraints.real, constraints.real_vector):
                raise _refusal(transform, f"its {name} is {constraint}, not all reals")


def _plain(constraint: Any) -> list[Any]:
    """Constraints without what is wrapped around them."""
    if hasattr(constraint, "cseq"):  # of StackTransform and CatTransform
        return [plain for part in constraint.cseq for plain in _plain(part)]
    if hasattr(constraint, "base_constraint"):
        return _plain(constraint.base_constraint)
    return [constraint]


@torch.no_grad()
def _try(flow: Adapted) -> None:
    """Refuse what fails at two points, one near 0 and one far out."""
    source = flow.source
    numbers = itertools.chain(flow.parameters(), flow.buffers(), *map(_tensors, _parts(source)))
    like = next((one for one in numbers if one.is_floating_point()), torch.empty(()))
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
        if y.dtype != x.dtype:
            raise _refusal(source, f"it returns {y.dtype} for points of {x.dtype}")
        back, _ = flow.inverse(y, context)
        # What rounding may do to the point, where the map is steep or flat.
        moved, _ = flow.inverse(y * (1 + torch.finfo(y.dtype).eps), context)
    except (OptionError, ShapeError):
        raise
    except Exception as error:
        raise OptionError(
            f"adapt tried {type(source).__name__} at points {tuple(x.shape)} with {sizes}, and it "
            f"failed. Is it built for these sizes? It says: {type(error).__name__}: {error}"
        ) from error
    for point, found, other in zip(x, back, moved):
        # Each coordinate by itself: one that is cut does not move where another one shakes.
        lost = _apart(found, point)
        wrong = (lost > 0.05 + 1e5 * _apart(found, other)) & lost.isfinite()
        if bool(wrong.any()):
            i = int(wrong.nonzero()[0])
            raise _refusal(
                source,
                f"its inverse does not come back: from {point[i].item():.3g} it goes to "
                f"{found[i].item():.3g} in coordinate {i} (one that is searched for in an "
                "interval cuts draws there)",
            )


def _apart(found: Tensor, expected: Tensor) -> Tensor:
    """Relative differences; not finite where a number is not, which tells nothing."""
    return (found - expected).abs() / (1 + expected.abs())


def _tensors(part: Any) -> list[Tensor]:
    """Tensors that a transform holds as attributes."""
    return [value for value in vars(part).values() if isinstance(value, Tensor)]


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
