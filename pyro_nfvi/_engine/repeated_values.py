"""Values of a graph by what they repeat, and the walk that writes a graph of what is distinct."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from pyro_nfvi._compat import without_modes
from pyro_nfvi._engine.graph_tensors import frozen
from pyro_nfvi._operators import aten

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Repeated:
    """A value that repeats ``node`` along the axes where the node has length 1.

    Attributes:
        node: A node of the new graph, with as many axes as the value.
        shape: Shape of the value.
    """

    node: Node
    shape: Shape

    @property
    def distinct(self) -> Shape:
        """Shape of what is repeated."""
        return tuple(self.node.meta["val"].shape)

    @property
    def is_whole(self) -> bool:
        """Tell whether nothing is repeated."""
        return self.distinct == self.shape

    def along(self, axis: int) -> bool:
        """Tell whether it is one number along an axis, which may have length 1."""
        axis += len(self.shape) if axis < 0 else 0
        return axis < 0 or self.distinct[axis] == 1 or self.shape[axis] == 1


@dataclass(frozen=True, eq=False)
class Gathered:
    """A value that picks from ``base`` along an axis.

    Attributes:
        base: What is picked from.
        index: A node of positions, of one axis.
        axis: The axis, counted from the end (negative).
        shape: Shape of the value.
        special: Whether a special function was computed on the base.
        directly: Gives the value as the original graph computes it.
    """

    base: Repeated
    index: Node
    axis: int
    shape: Shape
    special: bool
    directly: Callable[[], Repeated]

    @property
    def key(self) -> tuple[Node, int]:
        """Values of one key can be picked together."""
        return self.index, self.axis


@dataclass(frozen=True, eq=False)
class Several:
    """The results of an operation that has several.

    Attributes:
        node: The operation in the new graph.
        item: Gives one of them by its place.
    """

    node: Node
    item: Callable[[int], Repeated]


Value: TypeAlias = Repeated | Gathered


class NoNarrowForm(Exception):
    """An operation is left as it is."""


class Sinking:
    """Walks through a graph and writes the new one.

    Args:
        old: The graph.
        rule_of: Gives the rule of an operation: a function of this object and the old node that
            returns the value, or None where the operation is left alone.
        consts: Values of the last inputs.

    Attributes:
        graph: The new graph.
    """

    def __init__(
        self,
        old: GraphModule,
        rule_of: Callable[[Any], Any],
        consts: Sequence[Tensor] = (),
    ) -> None:
        self.graph = Graph()
        inputs = [node for node in old.graph.nodes if node.op == "placeholder"]
        self._consts = dict(zip(inputs[len(inputs) - len(consts) :], consts))
        self._values: dict[Node, Any] = {}
        self._known: dict[Any, Node] = {}
        self._expanded: dict[tuple[Node, Shape], Node] = {}
        self._picked: dict[int, Repeated] = {}
        self._held: list[Gathered] = []
        for node in old.graph.nodes:
            if node.op == "call_function":
                self._values[node] = self._call(node, rule_of(node.target))
            elif node.op == "output":
                self.graph.output(torch.fx.node.map_arg(node.args[0], self.whole))
            else:
                self._values[node] = self._input(node)
        self.graph.eliminate_dead_code()

    def _call(self, node: Node, rule: Any) -> Any:
        if rule is not None:
            try:
                return rule(self, node)
            except NoNarrowForm:
                pass
        return self.unchanged(node)

    def _input(self, node: Node) -> Repeated:
        made = self.graph.node_copy(node)
        meta = node.meta["val"]
        shape = tuple(meta.shape)
        for axis, (size, stride) in enumerate(zip(shape, meta.stride())):
            # A constant that was expanded before, or computed from one that was.
            if size > 1 and (stride == 0 or (axis == 0 and self._is_same(node))):
                made = self.emit(aten.slice.Tensor, (made, axis, 0, 1))
        return Repeated(made, shape)

    def _is_same(self, node: Node) -> bool:
        """Tell whether a constant of several axes is the same all along the first."""
        value = self._consts.get(node)
        if value is None or value.dim() < 2 or not torch.equal(value[0], value[1]):
            return False
        with torch.no_grad():
            return torch.equal(value, value[:1].expand_as(value))

    # --------------------------------------------------------------------------- operations

    def unchanged(self, node: Node) -> Any:
        """Write an operation as it was, on whole operands."""
        args = torch.fx.node.map_arg(node.args, self.whole)
        kwargs = torch.fx.node.map_arg(dict(node.kwargs), self.whole)
        made = self._write(node.target, args, kwargs, lambda: node.meta["val"])
        return self.repeating(made, node)

    def repeating(self, made: Node, old: Node) -> Any:
        """Return the value of an old node as repetitions of what a new one computes."""
        meta = old.meta["val"]
        if isinstance(meta, Tensor):
            return Repeated(made, tuple(meta.shape))
        if not isinstance(meta, (tuple, list)):
            return made

        def item(place: int) -> Repeated:
            one = self.emit(operator.getitem, (made, place))
            return Repeated(one, tuple(meta[place].shape))

        return Several(made, item)

    def emit(self, func: Any, args: tuple[Any, ...], kwargs: Any = None, meta: Any = None) -> Node:
        """Write an operation on nodes of the new graph; equal ones are written once.

        Args:
            func: The operation.
            args: Its arguments.
            kwargs: Those with a name.
            meta: The result's meta tensor, or a list of them, where it is known.

        Raises:
            NoNarrowForm: It cannot be taken on such operands.
        """
        kwargs = kwargs or {}

        def run() -> Any:
            if meta is not None:
                return meta
            with without_modes(), torch.no_grad():
                try:
                    return _of_zeros(func, args, kwargs)
                except (RuntimeError, NotImplementedError, IndexError, TypeError) as error:
                    raise NoNarrowForm(str(error)) from error

        return self._write(func, args, kwargs, run)

    def _write(self, func: Any, args: Any, kwargs: Any, meta: Callable[[], Any]) -> Node:
        key = func, frozen(args), frozen(kwargs)
        found = self._known.get(key)
        if found is None:
            out = meta()
            found = self.graph.call_function(func, args, kwargs)
            found.meta["val"] = list(out) if isinstance(out, tuple) else out
            self._known[key] = found
        return found

    # ------------------------------------------------------------------------------- values

    def value(self, node: Node) -> Any:
        """Return what an old node became."""
        return self._values[node]

    def repeated(self, node: Node) -> Repeated:
        """Return an old node's value as one that is not picked from another."""
        return self.without_gather(self._values[node])

    def without_gather(self, value: Any) -> Repeated:
        """Return a value as one that is not picked from another."""
        if isinstance(value, Repeated):
            return value
        if not isinstance(value, Gathered):
            raise NoNarrowForm("an operation with several results")
        found = self._picked.get(id(value))
        if found is None:
            found = self._pick(value) if value.special else value.directly()
            self._picked[id(value)] = found
            self._held.append(value)  # so that its id stays its own
        return found

    def _pick(self, value: Gathered) -> Repeated:
        base, axis = value.base, value.axis + len(value.shape)
        if base.along(axis):
            return Repeated(base.node, value.shape)
        made = self.emit(aten.index_select.default, (base.node, axis, value.index))
        return Repeated(made, value.shape)

    def whole(self, node: Node) -> Node:
        """Return an old node's value with nothing repeated."""
        value = self._values[node]
        if isinstance(value, (Node, Several)):
            return value if isinstance(value, Node) else value.node
        value = self.without_gather(value)
        return self.fit(value, value.shape)

    def fit(self, value: Repeated, distinct: Sequence[int]) -> Node:
        """Return a value with no more repeated than what is repeated in ``distinct``.

        Args:
            value: The value.
            distinct: Shape, aligned to the value's last axes, of what is computed from it.
        """
        distinct = tuple(distinct)[max(0, len(distinct) - len(value.shape)) :]
        wanted = tuple(
            other if mine == 1 and size != 1 else mine
            for size, mine, other in zip(value.shape, value.distinct, distinct)
        )
        if wanted == value.distinct:
            return value.node
        key = value.node, wanted
        if key not in self._expanded:
            made = self.emit(aten.expand.default, (value.node, list(wanted)))
            self._expanded[key] = made
        return self._expanded[key]

    def spread(self, value: Repeated, axes: Iterable[int]) -> Node:
        """Return a value with nothing repeated along some axes."""
        rank = len(value.shape)
        whole = {axis % rank for axis in axes} if rank else set()
        pairs = enumerate(zip(value.shape, value.distinct))
        return self.fit(value, [size if d in whole else mine for d, (size, mine) in pairs])


def _of_zeros(func: Any, args: Any, kwargs: Any) -> Any:
    """Return the meta tensors of an operation's results, from a run on zeros.

    On the meta device some operations are Python, which imports PyTorch's compiler; so it is the
    second choice, for an operation that refuses zeros.
    """

    def zeros(node: Node) -> Any:
        def one(x: Tensor) -> Tensor:
            count = 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride()))
            held = torch.zeros(count if x.numel() else 0, dtype=x.dtype)
            return held.as_strided(x.shape, x.stride())

        meta = node.meta["val"]
        return one(meta) if isinstance(meta, Tensor) else [one(x) for x in meta]

    def meta_of(x: Any) -> Any:
        if isinstance(x, Tensor):
            return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
        return [meta_of(one) for one in x] if isinstance(x, (tuple, list)) else x

    def run(given: Callable[[Node], Any], device: str) -> Any:
        options = torch.fx.node.map_arg(kwargs, given)
        if "device" in options:
            options = {**options, "device": device}
        return func(*torch.fx.node.map_arg(args, given), **options)

    try:
        return meta_of(run(zeros, "cpu"))
    except (RuntimeError, NotImplementedError, IndexError, TypeError):
        return run(lambda node: node.meta["val"], "meta")


def broadcast(shapes: Iterable[Sequence[int]], rank: int) -> Shape:
    """Return the largest length along each of ``rank`` axes, shapes aligned at the end."""
    found = [1] * rank
    for shape in shapes:
        for axis, size in enumerate(shape, rank - len(shape)):
            # A length of 0 wins over 1.
            found[axis] = size if found[axis] == 1 else found[axis]
    return tuple(found)


def with_axis(value: Repeated, axis: int, size: int) -> Repeated:
    """Return a value of one number along an axis, of another length there."""
    axis += len(value.shape)
    if axis < 0 or value.shape[axis] == 1:
        return value
    return replace(value, shape=(*value.shape[:axis], size, *value.shape[axis + 1 :]))
