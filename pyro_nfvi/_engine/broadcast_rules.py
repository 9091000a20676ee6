"""Rules of broadcast sinking: which axes of its operands an operation takes one by one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import Node

import pyro_nfvi._chain_rule  # noqa: F401 - defines the operations of its rule
from pyro_nfvi._engine.repeated_values import (
    Gathered,
    NoNarrowForm,
    Repeated,
    Several,
    Shape,
    Sinking,
    Value,
    broadcast,
    with_axis,
)
from pyro_nfvi._operators import Missing, aten, prims

Rule: TypeAlias = Callable[[Sinking, Node], Any]
_RULES: dict[Any, Rule] = {}


def rule_of(target: Any) -> Rule | None:
    """Return the rule of an operation; None if it needs its operands whole."""
    found = _RULES.get(target)
    if found is None and torch.Tag.pointwise in getattr(target, "tags", ()):
        return _pointwise
    return found


def _sinks(*targets: Any) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        for target in targets:
            if not isinstance(target, Missing):
                _RULES[target] = rule
        return rule

    return register


def _shape(node: Node) -> Shape:
    return tuple(node.meta["val"].shape)


# ----------------------------------------------------------------------------- element by element

#: Functions that cost tens of operations: it pays to compute them before a gather.
_SPECIAL = {
    target
    for packet in (
        aten.lgamma, aten.digamma, aten.special_psi, aten.polygamma, aten.mvlgamma, aten.erfinv,
        aten.special_ndtri, aten.special_log_ndtr, aten.special_i0, aten.special_i1, aten.i0,
        aten.special_i0e, aten.special_i1e,
    )
    for target in (getattr(packet, name) for name in packet.overloads())
}  # fmt: skip


@_sinks(
    aten._to_copy.default, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar,
    aten.masked_fill.Tensor, aten.rsub.Tensor, aten.floor_divide.default, aten.special_psi.default,
    aten.special_i0.default, prims.convert_element_type.default,
    torch.ops.pyro_nfvi.product.default, torch.ops.pyro_nfvi.quotient.default,
)  # fmt: skip
def _pointwise(sinking: Sinking, node: Node) -> Value:
    if not isinstance(node.meta["val"], Tensor):
        raise NoNarrowForm(str(node.target))
    values = {one: sinking.value(one) for one in node.all_input_nodes}
    if not all(isinstance(value, (Repeated, Gathered)) for value in values.values()):
        raise NoNarrowForm(str(node.target))
    return _apply(sinking, node, values, _shape(node))


def _apply(sinking: Sinking, node: Node, values: dict[Node, Value], shape: Shape) -> Value:
    """Compute an element-wise operation of a graph on values of a common shape."""
    gathered = [value for value in values.values() if isinstance(value, Gathered)]
    if gathered:
        index, axis = gathered[0].key
        alike = all(
            value.key == (index, axis) if isinstance(value, Gathered) else value.along(axis)
            for value in values.values()
        )
        if alike:
            return _before_gather(sinking, node, values, shape, gathered)
    plain = {one: sinking.without_gather(value) for one, value in values.items()}
    distinct = broadcast([value.distinct for value in plain.values()], len(shape))

    def fitted(one: Node) -> Node:
        return sinking.fit(plain[one], distinct)

    args = torch.fx.node.map_arg(node.args, fitted)
    kwargs = torch.fx.node.map_arg(dict(node.kwargs), fitted)
    same = distinct == shape == _shape(node)
    made = sinking.emit(node.target, args, kwargs, node.meta["val"] if same else None)
    return Repeated(made, shape)


def _before_gather(
    sinking: Sinking, node: Node, values: dict[Node, Value], shape: Shape, gathered: list[Gathered]
) -> Gathered:
    """Compute an element-wise operation on what its operands are picked from."""
    index, axis = gathered[0].key
    size = gathered[0].base.shape[axis]
    bases: dict[Node, Value] = {
        one: value.base if isinstance(value, Gathered) else with_axis(value, axis, size)
        for one, value in values.items()
    }
    place = axis + len(shape)
    base = _apply(sinking, node, bases, (*shape[:place], size, *shape[place + 1 :]))
    assert isinstance(base, Repeated)  # for none of its operands is picked

    def directly() -> Repeated:
        plain: dict[Node, Value] = {n: sinking.without_gather(v) for n, v in values.items()}
        return sinking.without_gather(_apply(sinking, node, plain, shape))

    special = node.target in _SPECIAL or any(value.special for value in gathered)
    return Gathered(base, index, axis, shape, special, directly)


@_sinks(aten.softplus_backward.default, aten.log_sigmoid_backward.default)
def _slope(sinking: Sinking, node: Node) -> Value:
    """Take a gradient times a slope: the slope once for each distinct point."""
    gradient, *points = (sinking.repeated(one) for one in node.all_input_nodes)
    point = points[0]
    distinct = broadcast([gradient.distinct, point.distinct], len(point.shape))
    if distinct == point.distinct or any(one.distinct != point.distinct for one in points):
        raise NoNarrowForm("the point is as wide as the gradient")
    given = point.node.meta["val"]
    options = {"dtype": given.dtype, "device": torch.device("cpu")}
    one = sinking.emit(aten.full.default, ([1] * given.dim(), 1.0), options)
    ones = sinking.emit(aten.expand.default, (one, list(point.distinct)))
    rest = [x for x in node.args[1:] if not isinstance(x, Node)]
    slope = sinking.emit(node.target, (ones, *(one.node for one in points), *rest))
    factors = [sinking.fit(x, distinct) for x in (gradient, Repeated(slope, point.shape))]
    return Repeated(sinking.emit(aten.mul.Tensor, tuple(factors)), _shape(node))


@_sinks(aten.xlogy.Tensor, aten.special_xlog1py.default)
def _times_logarithm(sinking: Sinking, node: Node) -> Value:
    """Take the logarithm once for each distinct number; 0 log y is 0 unless y is NaN."""
    x, y = (sinking.repeated(one) for one in node.args)  # type: ignore[arg-type]
    shape = _shape(node)
    distinct = broadcast([x.distinct, y.distinct], len(shape))
    if broadcast([y.distinct], len(shape)) == distinct:
        return _pointwise(sinking, node)
    wide = node.meta["val"].dtype
    if any(one.node.meta["val"].dtype != wide for one in (x, y)):
        raise NoNarrowForm("operands of several types")
    of = aten.log.default if node.target is aten.xlogy.Tensor else aten.log1p.default
    logarithm = Repeated(sinking.emit(of, (y.node,)), y.shape)
    is_nan = sinking.emit(aten.ne.Tensor, (y.node, y.node))
    nothing = sinking.emit(aten.where.ScalarOther, (is_nan, y.node, 0.0))
    product = [sinking.fit(one, distinct) for one in (x, logarithm)]
    is_zero = sinking.emit(aten.eq.Scalar, (product[0], 0))
    instead = sinking.fit(Repeated(nothing, y.shape), distinct)
    found = sinking.emit(aten.mul.Tensor, tuple(product))
    return Repeated(sinking.emit(aten.where.self, (is_zero, instead, found)), shape)


@_sinks(aten.binary_cross_entropy_with_logits.default)
def _bernoulli(sinking: Sinking, node: Node) -> Value:
    """Compute (1 - target) logit - log sigmoid(logit), the logarithm once for each logit."""
    logit, target, *rest = node.args
    reduction = rest[2] if len(rest) > 2 else node.kwargs.get("reduction", 1)
    if any(isinstance(one, Node) for one in rest) or node.kwargs or reduction != 0:
        raise NoNarrowForm("weights, or a reduction")
    x, t = (sinking.repeated(one) for one in (logit, target))  # type: ignore[arg-type]
    distinct = broadcast([x.distinct, t.distinct], len(x.shape))
    if x.is_whole or x.node.meta["val"].dtype != t.node.meta["val"].dtype:
        raise NoNarrowForm("every logit is another")
    meta = x.node.meta["val"]
    forward = sinking.emit(aten.log_sigmoid_forward.default, (x.node,), None, [meta, meta])
    logarithm = sinking.emit(operator.getitem, (forward, 0))
    others = sinking.emit(aten.rsub.Scalar, (t.node, 1))
    factors = (sinking.fit(Repeated(others, t.shape), distinct), sinking.fit(x, distinct))
    first = sinking.emit(aten.mul.Tensor, factors)
    last = sinking.fit(Repeated(logarithm, x.shape), distinct)
    return Repeated(sinking.emit(aten.sub.Tensor, (first, last)), _shape(node))


@_sinks(aten.log_sigmoid_forward.default)
def _log_sigmoid(sinking: Sinking, node: Node) -> Any:
    value = _operand(sinking, node)
    meta = value.node.meta["val"]
    # Its second result is as large on the CPU, and empty elsewhere.
    return sinking.repeating(sinking.emit(node.target, (value.node,), None, [meta, meta]), node)


@_sinks(aten.full.default)
def _full(sinking: Sinking, node: Node) -> Repeated:
    shape = _shape(node)
    if not any(size > 1 for size in shape):
        raise NoNarrowForm("one number already")
    sizes = [min(size, 1) for size in shape]
    return Repeated(sinking.emit(node.target, (sizes, *node.args[1:]), dict(node.kwargs)), shape)


# -------------------------------------------------------------------------------------- views


@_sinks(aten.detach.default, aten.alias.default, aten.clone.default, aten.lift_fresh_copy.default)
def _same(sinking: Sinking, node: Node) -> Any:
    return sinking.value(node.args[0])  # type: ignore[arg-type]


def _operand(sinking: Sinking, node: Node) -> Repeated:
    """Return the first operand; refuse one of which nothing is repeated."""
    found = sinking.repeated(node.args[0])  # type: ignore[arg-type]
    if found.is_whole:
        raise NoNarrowForm("nothing is repeated")
    return found


@_sinks(aten.expand.default)
def _expand(sinking: Sinking, node: Node) -> Value:
    value, shape = sinking.value(node.args[0]), _shape(node)  # type: ignore[arg-type]
    if isinstance(value, Gathered) and value.shape == shape:
        return value
    value = sinking.without_gather(value)
    made = value.node
    for _ in range(len(shape) - len(value.shape)):
        made = sinking.emit(aten.unsqueeze.default, (made, 0))
    return Repeated(made, shape)


@_sinks(aten.view.default, aten.reshape.default, aten._unsafe_view.default)
def _reshape(sinking: Sinking, node: Node) -> Value:
    value, shape = sinking.value(node.args[0]), _shape(node)  # type: ignore[arg-type]
    if isinstance(value, Gathered) and value.shape == shape:
        return value
    value = _operand(sinking, node)
    if 0 in shape:
        raise NoNarrowForm("nothing is there")
    mixed: list[int] = []
    sizes = list(shape)
    for old, new in _groups(value.shape, shape):
        if all(value.along(axis) for axis in old):
            for axis in new:
                sizes[axis] = 1
        else:
            mixed += old
    made = sinking.spread(value, mixed)
    return Repeated(sinking.emit(aten.reshape.default, (made, sizes)), shape)


def _groups(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """Split axes of a shape and of another of the same elements into the smallest groups."""
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        mine, other = [i] if i < len(old) else [], [j] if j < len(new) else []
        i, j = i + len(mine), j + len(other)
        a, b = prod(old[k] for k in mine), prod(new[k] for k in other)
        while a != b:
            if a < b:
                mine.append(i)
                a, i = a * old[i], i + 1
            else:
                other.append(j)
                b, j = b * new[j], j + 1
        found.append((mine, other))
    return found


@_sinks(aten.permute.default, aten.t.default, aten.transpose.int, aten.unsqueeze.default)
def _rearranged(sinking: Sinking, node: Node) -> Repeated:
    value = _operand(sinking, node)
    return Repeated(sinking.emit(node.target, (value.node, *node.args[1:])), _shape(node))


@_sinks(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
def _squeeze(sinking: Sinking, node: Node) -> Repeated:
    value = _operand(sinking, node)
    named = _axes(node.args[1] if len(node.args) > 1 else None, len(value.shape))
    gone = [axis for axis in named if value.shape[axis] == 1]
    return Repeated(sinking.emit(aten.squeeze.dims, (value.node, gone)), _shape(node))


@_sinks(aten.select.int)
def _select(sinking: Sinking, node: Node) -> Repeated:
    value = _operand(sinking, node)
    axis, place = int(node.args[1]), node.args[2]  # type: ignore[arg-type]
    place = 0 if value.along(axis) else place
    return Repeated(sinking.emit(node.target, (value.node, axis, place)), _shape(node))


@_sinks(aten.slice.Tensor, aten.narrow.default)
def _slice(sinking: Sinking, node: Node) -> Repeated:
    value = _operand(sinking, node)
    axis = int(node.args[1]) if len(node.args) > 1 else 0  # type: ignore[arg-type]
    if value.along(axis) and 0 not in _shape(node):
        return Repeated(value.node, _shape(node))
    made = sinking.spread(value, [axis])
    return Repeated(sinking.emit(node.target, (made, *node.args[1:])), _shape(node))


@_sinks(aten.split_with_sizes.default, aten.split.Tensor, aten.unbind.int)
def _parts(sinking: Sinking, node: Node) -> Several:
    value = _operand(sinking, node)
    place = 1 if node.target is aten.unbind.int else 2
    axis = int(node.args[place]) if len(node.args) > place else 0  # type: ignore[arg-type]
    made = sinking.spread(value, [axis])
    found = sinking.repeating(sinking.emit(node.target, (made, *node.args[1:])), node)
    assert isinstance(found, Several)
    return found


@_sinks(operator.getitem)
def _item(sinking: Sinking, node: Node) -> Repeated:
    found = sinking.value(node.args[0])  # type: ignore[arg-type]
    if not isinstance(found, Several):
        raise NoNarrowForm("not one of several")
    return found.item(int(node.args[1]))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------ reductions


def _axes(dims: Any, rank: int) -> list[int]:
    """Return axes counted from the start; None or an empty list means all."""
    if dims is None or (isinstance(dims, Sequence) and not dims):
        return list(range(rank))
    listed = [dims] if isinstance(dims, int) else dims
    return [axis % rank for axis in listed] if rank else []


@_sinks(
    aten.sum.default, aten.sum.dim_IntList, aten.nansum.default, aten.mean.default, aten.mean.dim,
    aten.amax.default, aten.amin.default, aten.max.default, aten.min.default,
    aten.all.default, aten.all.dim, aten.all.dims, aten.any.default, aten.any.dim, aten.any.dims,
)  # fmt: skip
def _reduction(sinking: Sinking, node: Node) -> Repeated:
    """Reduce what is repeated: n times the number, or the number itself."""
    value = _operand(sinking, node)
    if 0 in value.shape or not value.shape:
        raise NoNarrowForm("nothing is there")
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    made = sinking.emit(node.target, (value.node, *node.args[1:]), dict(node.kwargs))
    count = prod(
        value.shape[axis] for axis in _axes(dims, len(value.shape)) if value.distinct[axis] == 1
    )
    sums = (aten.sum.default, aten.sum.dim_IntList, aten.nansum.default)
    if count > 1 and node.target in sums:
        number = float(count) if made.meta["val"].is_floating_point() else count
        made = sinking.emit(aten.mul.Tensor, (made, number))
    return Repeated(made, _shape(node))


# --------------------------------------------------------------------- operations along some axes

#: Place of the argument that names the axes, and how many operands come first.
_ALONG: dict[Any, tuple[int, int]] = {
    aten.cumsum.default: (1, 1),
    aten.cumprod.default: (1, 1),
    aten.logcumsumexp.default: (1, 1),
    aten.cummax.default: (1, 1),
    aten.cummin.default: (1, 1),
    aten.logsumexp.default: (1, 1),
    aten._softmax.default: (1, 1),
    aten._log_softmax.default: (1, 1),
    aten._softmax_backward_data.default: (2, 2),
    aten._log_softmax_backward_data.default: (2, 2),
    aten.prod.dim_int: (1, 1),
    aten.max.dim: (1, 1),
    aten.min.dim: (1, 1),
    aten.var.correction: (1, 1),
    aten.std.correction: (1, 1),
    aten.var_mean.correction: (1, 1),
    aten.linalg_vector_norm.default: (2, 1),
    aten.flip.default: (1, 1),
}
#: Operations on matrices: how many operands come first; all axes before the last two are a batch.
_MATRICES: dict[Any, int] = {
    aten.linalg_cholesky_ex.default: 1,
    aten.cholesky.default: 1,
    aten.linalg_cholesky.default: 1,
    aten.linalg_inv_ex.default: 1,
    aten.linalg_lu_factor_ex.default: 1,
    aten._linalg_det.default: 1,
    aten._linalg_slogdet.default: 1,
    aten._linalg_eigh.default: 1,
    aten.linalg_qr.default: 1,
    aten.cholesky_inverse.default: 1,
    aten.tril.default: 1,
    aten.triu.default: 1,
    aten.triangular_solve.default: 2,
    aten.cholesky_solve.default: 2,
    aten._cholesky_solve_helper.default: 2,
}


def _batched(
    sinking: Sinking, node: Node, count: int, axes: Callable[[Repeated], Sequence[int]]
) -> Any:
    """Take an operation with nothing repeated along ``axes``, and the rest as a batch."""
    values = [sinking.repeated(one) for one in node.args[:count]]  # type: ignore[arg-type]
    if all(value.is_whole for value in values):
        raise NoNarrowForm("nothing is repeated")
    rank = max(len(value.shape) for value in values)
    batch = list(broadcast([value.distinct for value in values], rank))
    operands = []
    for value in values:
        own = batch[rank - len(value.shape) :]
        for axis in axes(value):
            own[axis] = value.shape[axis]
        operands.append(sinking.fit(value, own))
    made = sinking.emit(node.target, (*operands, *node.args[count:]), dict(node.kwargs))
    return sinking.repeating(made, node)


@_sinks(*_ALONG)
def _along(sinking: Sinking, node: Node) -> Any:
    place, count = _ALONG[node.target]
    dims = node.args[place] if len(node.args) > place else node.kwargs.get("dim")
    return _batched(sinking, node, count, lambda value: _axes(dims, len(value.shape)))


@_sinks(aten.diagonal.default)
def _diagonal(sinking: Sinking, node: Node) -> Any:
    planes = (*node.args[2:], *(0, 1)[len(node.args) - 2 :]) if len(node.args) > 1 else (0, 1)
    return _batched(sinking, node, 1, lambda _: planes)  # type: ignore[arg-type, return-value]


@_sinks(*_MATRICES)
def _matrices(sinking: Sinking, node: Node) -> Any:
    return _batched(sinking, node, _MATRICES[node.target], lambda _: (-2, -1))


@_sinks(aten.linalg_solve_triangular.default)
def _solve(sinking: Sinking, node: Node) -> Any:
    """Solve for all right sides that share a matrix at once, as columns."""
    a, b = (sinking.repeated(one) for one in node.args)  # type: ignore[arg-type]
    lead = len(b.shape) - 2
    shared = [
        axis
        for axis in range(lead)
        if len(a.shape) == lead + 2 and a.distinct[axis] == 1 != b.distinct[axis]
    ]
    if not shared or not node.kwargs.get("left", True):
        return _batched(sinking, node, 2, lambda _: (-2, -1))
    own = [axis for axis in range(lead) if axis not in shared]
    turned = [*own, lead, *shared, lead + 1]
    right = sinking.emit(aten.permute.default, (sinking.spread(b, (-2, -1)), turned))
    sizes = list(right.meta["val"].shape)
    flat = [*sizes[: len(own) + 1], prod(sizes[len(own) + 1 :])]
    columns = sinking.emit(aten.reshape.default, (right, flat))
    matrix = sinking.emit(aten.squeeze.dims, (sinking.spread(a, (-2, -1)), shared))
    found = sinking.emit(node.target, (matrix, columns), dict(node.kwargs))
    found = sinking.emit(
        aten.reshape.default, (found, [*found.meta["val"].shape[:-1], *sizes[len(own) + 1 :]])
    )
    back = [turned.index(axis) for axis in range(lead + 2)]
    return Repeated(sinking.emit(aten.permute.default, (found, back)), _shape(node))


@_sinks(aten.mm.default, aten.bmm.default, aten.mv.default)
def _product(sinking: Sinking, node: Node) -> Repeated:
    """Multiply matrices: rows of the left and columns of the right may be repeated."""
    left, right = (sinking.repeated(one) for one in node.args)  # type: ignore[arg-type]
    if left.is_whole and right.is_whole:
        raise NoNarrowForm("nothing is repeated")
    lead = [max(pair) for pair in zip(left.distinct[:-2], right.distinct[:-2])]
    inner = left.shape[-1]
    a = sinking.fit(left, [*lead, left.distinct[-2], inner])
    tail = [] if node.target is aten.mv.default else [right.distinct[-1]]
    b = sinking.fit(right, [*lead, inner, *tail])
    return Repeated(sinking.emit(node.target, (a, b)), _shape(node))


# ------------------------------------------------------------------------- gathers, joined pieces


@_sinks(aten.index.Tensor, aten._unsafe_index.Tensor)
def _index(sinking: Sinking, node: Node) -> Value:
    places = list(node.args[1])  # type: ignore[arg-type]
    axes = [axis for axis, place in enumerate(places) if place is not None]
    if len(axes) != 1:
        raise NoNarrowForm("several axes are indexed")
    return _picked(sinking, node, axes[0], places[axes[0]])


@_sinks(aten.index_select.default)
def _index_select(sinking: Sinking, node: Node) -> Value:
    _, axis, place = node.args
    rank = len(_shape(node))
    if not rank:
        raise NoNarrowForm("no axis to pick along")
    return _picked(sinking, node, int(axis) % rank, place)  # type: ignore[arg-type]


def _picked(sinking: Sinking, node: Node, axis: int, place: Node) -> Value:
    """Pick by position along one axis."""
    value, index, shape = sinking.repeated(node.args[0]), sinking.whole(place), _shape(node)  # type: ignore[arg-type]
    positions = _shape(place)
    if place.meta["val"].dtype not in (torch.int64, torch.int32) or 0 in shape:
        raise NoNarrowForm("positions that are a mask, or none")
    if value.along(axis) and value.shape[axis] > 1:
        made = sinking.emit(aten.select.int, (value.node, axis, 0))
        for _ in positions:
            made = sinking.emit(aten.unsqueeze.default, (made, axis))
        return Repeated(made, shape)
    if len(positions) != 1:
        if value.is_whole:
            raise NoNarrowForm("nothing is repeated")
        given = [*[None] * axis, index]
        return Repeated(sinking.emit(aten.index.Tensor, (value.node, given)), shape)

    def directly() -> Repeated:
        given = [*[None] * axis, index]
        return Repeated(sinking.emit(aten.index.Tensor, (value.node, given)), shape)

    # Where there is more to pick from than is picked, nothing is gained before the gather.
    if value.shape[axis] >= positions[0] or not value.node.meta["val"].is_floating_point():
        return directly()
    return Gathered(value, index, axis - len(value.shape), shape, False, directly)


@_sinks(aten.cat.default)
def _cat(sinking: Sinking, node: Node) -> Repeated:
    values = [sinking.repeated(one) for one in node.args[0]]  # type: ignore[union-attr, arg-type]
    axis = int(node.args[1]) if len(node.args) > 1 else 0  # type: ignore[arg-type]
    rank = len(_shape(node))
    if any(len(value.shape) != rank for value in values):  # empty ones of one axis
        raise NoNarrowForm("parts of another rank")
    parts = _common(sinking, values, [axis % rank])
    return Repeated(sinking.emit(node.target, (parts, *node.args[1:])), _shape(node))


@_sinks(aten.stack.default)
def _stack(sinking: Sinking, node: Node) -> Repeated:
    values = [sinking.repeated(one) for one in node.args[0]]  # type: ignore[union-attr, arg-type]
    parts = _common(sinking, values, [])
    return Repeated(sinking.emit(node.target, (parts, *node.args[1:])), _shape(node))


def _common(sinking: Sinking, values: Sequence[Repeated], whole: Sequence[int]) -> list[Node]:
    """Return values of one rank with no axis repeated in some only, or among ``whole``."""
    if all(value.is_whole for value in values):
        raise NoNarrowForm("nothing is repeated")
    batch = list(broadcast([value.distinct for value in values], len(values[0].shape)))
    parts = []
    for value in values:
        own = list(batch)
        for axis in whole:
            own[axis] = value.shape[axis]
        parts.append(sinking.fit(value, own))
    return parts


@_sinks(aten.slice_backward.default, aten.select_backward.default)
def _padded(sinking: Sinking, node: Node) -> Repeated:
    """Put a gradient among zeros along one axis."""
    value, shape = _operand(sinking, node), _shape(node)
    axis = int(node.args[2]) % len(shape)  # type: ignore[arg-type]
    sizes = list(value.distinct)
    if node.target is aten.select_backward.default:
        made = value.node
        sizes.insert(axis, shape[axis])
    else:
        made = sinking.spread(value, [axis])
        sizes[axis] = shape[axis]
    return Repeated(sinking.emit(node.target, (made, sizes, *node.args[2:])), shape)


@_sinks(aten.diagonal_backward.default)
def _diagonal_backward(sinking: Sinking, node: Node) -> Repeated:
    """Put a gradient on the diagonal of zeros; it is its last axis, the others stay in order."""
    value, shape = _operand(sinking, node), _shape(node)
    planes = [int(axis) % len(shape) for axis in node.args[3:5]]  # type: ignore[arg-type]
    made = sinking.spread(value, [-1])
    batch = iter(made.meta["val"].shape)
    sizes = [size if axis in planes else next(batch) for axis, size in enumerate(shape)]
    return Repeated(sinking.emit(node.target, (made, sizes, *node.args[2:])), shape)
