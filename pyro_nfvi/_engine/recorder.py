"""Records the ATen operations of a function as a pure graph, running them as they come.

The same kind of graph as ``make_fx`` with ``functionalize`` gives, in a tenth of the time, and
with what a training step needs beside it: whatever does not depend on an input is computed once
and becomes a constant of the graph, tensors from outside never become part of it, random numbers
and branches on values are refused in words.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from pyro_nfvi._compat import DispatchMode, without_modes
from pyro_nfvi._engine.available_operators import present
from pyro_nfvi._engine.code_location import place_in_code
from pyro_nfvi._engine.graph_tensors import frozen, meta, tensors, uniform
from pyro_nfvi._engine.in_place_writes import as_simple_views, out_of_place, undo_view
from pyro_nfvi._engine.operator_traits import Traits, traits_of
from pyro_nfvi._engine.program import Unsupported
from pyro_nfvi._operators import aten

#: Operations of a step at most: beyond, Python's share of its time is small, or building it takes
#: long.
_MAX_OPERATIONS = 60_000
#: Numbers up to which a constant is examined for being one number repeated (4 MB of floats).
_MAX_EXAMINED = 1_000_000
#: Operations that do nothing to a value.
_NOTHING = {aten.detach.default, aten.alias.default, aten.lift_fresh.default}
#: Operations that ask a tensor for its shape and type alone.
_LIKE = {
    "empty_like", "full_like", "new_empty", "new_empty_strided", "new_full", "new_ones",
    "new_zeros", "ones_like", "zeros_like",
}  # fmt: skip


@dataclass(frozen=True)
class _View:
    """One operation that looks at memory: how it was called, and which of its outputs it is."""

    func: Any
    args: tuple[Any, ...]  # after the first
    kwargs: dict[str, Any]
    place: int | None


@dataclass
class _Value:
    """Record of one tensor.

    Attributes:
        node: The node that computes it, or None while it is a constant.
        literal: Of a constant: whether it was made from numbers in the code alone.
        outside: Whether the tensor was there before.
        base: Of a view: the value that it looks at.
        views: Of a view: the operations that lead from the base to it.
        version: Of a base: how often it was written to; of a view: up to where its node is true.
        lifted: Of a constant: its place among the graph's constants, once used.
        tensor: Of a constant that has views: the tensor.
        family: Of a base: its views.
    """

    node: Node | None
    literal: bool = False
    outside: bool = False
    base: _Value | None = None
    views: tuple[_View, ...] = ()
    version: int = 0
    lifted: int | None = None
    tensor: Tensor | None = None
    family: list[_Value] = field(default_factory=list)

    @property
    def varies(self) -> bool:
        """Tell whether it depends on an input of the graph."""
        return (self.base or self).node is not None


class Recorder(DispatchMode):
    """Records what runs within it.

    Every node has a tensor of the ``meta`` device in ``node.meta["val"]`` (a list of them for an
    operation with several outputs): shape and type for those who generate code.

    Args:
        inputs: The graph's inputs, by name, in order. Everything computed from them is recorded.

    Raises:
        Unsupported: From within the recorded code, with the reason in words.
    """

    def __init__(self, inputs: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.graph = Graph()
        self.consts: list[Tensor] = []
        self._const_nodes: list[Node] = []
        # Tensors from outside, held so that their ids stay theirs. Others bear their value
        # themselves: autograd keeps Python's side of a tensor alive, attributes and all.
        self._outside: dict[int, tuple[Tensor, _Value]] = {}
        self._seen: dict[Any, Node] = {}
        # Results of operations that tell of matrices without a factor, and do not raise.
        self._factors: dict[Node, list[_Value]] = {}
        self._key = f"_nfvi_{id(self)}"
        for name, tensor in inputs.items():
            self._last = self.graph.placeholder(name)
            self._last.meta["val"] = meta(tensor)
            self._outside[id(tensor)] = tensor, _Value(self._last, outside=True)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else the first operation imports the whole compiler of torch, which takes a second.
        return False

    # ----------------------------------------------------------------------------- the record

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        traits = traits_of(func)
        values: list[_Value] = []
        if traits.name not in _LIKE:
            fresh = func is aten.lift_fresh.default
            values = [self._value(x, fresh=fresh) for x in tensors((args, kwargs))]
        varying = any(value.varies for value in values)
        self._refuse(func, traits, varying=varying)
        if func is aten._linalg_check_errors.default and varying:
            return self._spoil(*args, **kwargs)
        if traits.writes:
            return self._write(func, traits, args, kwargs, varying=varying)
        node = self._masked(func, args) if varying else None
        to_record = varying and node is None and func not in _NOTHING
        if to_record:
            args = self._plain_indices(func, args)
        out = func(*args, **kwargs)
        if to_record:
            node = self._node(func, self._as_nodes(args), self._as_nodes(kwargs), out)
        many = isinstance(out, (tuple, list))
        made: list[_Value] = []
        for index, tensor in enumerate(out if many else [out]):
            if not isinstance(tensor, Tensor):
                continue
            place = index if many else None
            mine = node if node is None or place is None else self._item(node, place)
            if traits.view_of is not None:
                views = self._views(func, args, kwargs, place)
                same = bool(views) and views[0].func is func
                self._look(tensor, args[traits.view_of], views, mine if same else None)
            else:
                literal = all(value.literal for value in values)
                made.append(_Value(mine, literal and mine is None))
                setattr(tensor, self._key, made[-1])
        if node is not None and traits.name.endswith("_ex"):
            self._factors[node] = made
        return out

    def call(self, func: Callable[..., Sequence[Tensor]], args: Sequence[Tensor]) -> list[Tensor]:
        """Run a function of tensors that is recorded as one operation, whatever it does."""
        with without_modes(), torch.no_grad():
            made = list(func(*(x.detach() for x in args)))
        node = self._node(func, self._as_nodes(tuple(args)), {}, made)
        for place, tensor in enumerate(made):
            setattr(tensor, self._key, _Value(self._item(node, place)))
        return made

    def output(self, tensors: Sequence[Tensor]) -> None:
        """End the graph with these outputs."""
        self.graph.output(tuple(self._node_of(tensor) for tensor in tensors))
        self.graph.eliminate_dead_code()
        used = [i for i, node in enumerate(self._const_nodes) if node.users]
        for node in self._const_nodes:
            if not node.users:
                self.graph.erase_node(node)
        self.consts = [self.consts[i] for i in used]
        self._outside.clear()

    def _node(self, func: Any, args: Any, kwargs: Any, out: Any) -> Node:
        """The node of an operation: an old one, if the same was computed before."""
        key = func, frozen(args), frozen(kwargs)
        node = self._seen.get(key)
        if node is None:
            if len(self._seen) >= _MAX_OPERATIONS:
                raise Unsupported(f"a step has more than {_MAX_OPERATIONS} operations")
            node = self.graph.call_function(present(func), args, kwargs)
            many = isinstance(out, (tuple, list))
            node.meta["val"] = [meta(x) for x in out] if many else meta(out)
            self._seen[key] = node
        return node

    def _item(self, node: Node, index: int) -> Node:
        return self._node(operator.getitem, (node, index), {}, node.meta["val"][index])

    # ------------------------------------------------------------------------ what is what

    def _value(self, tensor: Tensor, *, fresh: bool = False) -> _Value:
        """Return the record of a tensor; one that was never met came from outside."""
        found: _Value | None = getattr(tensor, self._key, None)
        if found is None:
            held = self._outside.get(id(tensor))
            found = None if held is None else held[1]
        if found is None:
            found = _Value(None, literal=fresh, outside=not fresh)
            self._outside[id(tensor)] = tensor, found
        return found

    @staticmethod
    def _views(func: Any, args: Any, kwargs: Any, place: int | None) -> tuple[_View, ...]:
        """An operation that looks at memory, as one view or several simpler ones."""
        if func in _NOTHING:
            return ()
        if func is aten.as_strided.default:
            with without_modes():
                steps = as_simple_views(*args, *[None][len(args) - 3 :])
            if steps is not None:
                return tuple(_View(op, rest, {}, None) for op, rest in steps)
        return (_View(func, args[1:], dict(kwargs), place),)

    def _look(
        self, out: Tensor, source: Tensor, views: tuple[_View, ...], node: Node | None
    ) -> None:
        """Note that ``out`` looks at the memory of ``source``."""
        value = self._value(source)
        base = value.base or value
        if value.base is None and base.node is None:
            base.tensor = source
        if node is None and value.varies:
            node = self._current(value)
            for view in views:
                node = self._repeat(view, node)
        views = (*value.views, *views)
        made = _Value(node, value.literal, value.outside, base, views, base.version)
        base.family.append(made)
        setattr(out, self._key, made)

    def _current(self, value: _Value) -> Node:
        """The node of a value now: a view follows what was written to its base."""
        base = value.base
        if base is not None and (value.version != base.version or value.node is None):
            assert base.node is not None
            node = base.node
            for view in value.views:
                node = self._repeat(view, node)
            value.node, value.version = node, base.version
        assert value.node is not None
        return value.node

    def _repeat(self, view: _View, node: Node) -> Node:
        """Take the same view of another value of the same shape."""
        func, args = view.func, view.args
        with without_modes():
            try:
                out = func(node.meta["val"], *args, **view.kwargs)
            except RuntimeError:  # the new value lies in memory otherwise than the old one
                func = aten.reshape.default
                out = func(node.meta["val"], *args)
        found = self._node(func, (node, *self._as_nodes(args)), self._as_nodes(view.kwargs), out)
        return found if view.place is None else self._item(found, view.place)

    def _node_of(self, tensor: Tensor) -> Node:
        value = self._value(tensor)
        return self._current(value) if value.varies else self._lift(tensor, value)

    def _lift(self, tensor: Tensor, value: _Value) -> Node:
        """Make a constant an input of the graph, or a number of it where it was one in the code."""
        if value.literal and tensor.numel() <= _MAX_EXAMINED:
            with without_modes():
                number = uniform(tensor)
            if number is not None:
                kwargs = {"dtype": tensor.dtype, "device": tensor.device}
                out = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
                return self._node(aten.full.default, (list(tensor.shape), number), kwargs, out)
        if value.lifted is None:
            value.lifted = len(self.consts)
            self.consts.append(tensor.detach())
            with self.graph.inserting_after([self._last, *self._const_nodes][-1]):
                node = self.graph.placeholder(f"const_{value.lifted}")
            node.meta["val"] = meta(tensor)
            self._const_nodes.append(node)
        return self._const_nodes[value.lifted]

    def _as_nodes(self, tree: Any) -> Any:
        if isinstance(tree, Tensor):
            return self._node_of(tree)
        if isinstance(tree, (tuple, list)):
            return type(tree)(self._as_nodes(x) for x in tree)
        if isinstance(tree, dict):
            return {name: self._as_nodes(x) for name, x in tree.items()}
        return tree

    # --------------------------------------------------------------------- writes in place

    def _write(
        self, func: Any, traits: Traits, args: tuple[Any, ...], kwargs: Any, *, varying: bool
    ) -> Any:
        """Give the tensor that is written to a new value, out of place."""
        if traits.writes != (0,):
            raise Unsupported(f"{func} writes into an argument given as out={place_in_code()}")
        target = args[0]
        value = self._value(target)
        root = value.base or value
        if root.outside:
            raise Unsupported(
                f"the model writes in place into a tensor from outside of it{place_in_code()}"
            )
        for member in (root, *root.family):
            if member.lifted is not None:  # what was lifted keeps the value it had
                with without_modes():
                    self.consts[member.lifted] = self.consts[member.lifted].clone()
                member.lifted = None
        if not varying:
            root.literal = root.literal and all(self._value(x).literal for x in tensors(args))
            for member in root.family:
                member.literal = root.literal
            return func(*args, **kwargs)
        if root.node is None:
            whole = target if root.tensor is None else root.tensor
            with without_modes():
                whole = whole.clone()  # as it was before the write
            root.node = self._lift(whole, root)
            root.lifted, root.tensor = None, None
        node = self._masked(func, args)
        if node is None:
            args = self._plain_indices(func, args)
            node = self._written(func, args, kwargs)
        out = func(*args, **kwargs)
        for place in range(len(value.views) - 1, -1, -1):
            inner = root.node
            for view in value.views[:place]:
                inner = self._repeat(view, inner)
            view = value.views[place]
            rest = self._as_nodes(view.args)
            node = undo_view(self.graph, view.func, inner, node, rest, view.place)
        root.node = node
        root.version += 1
        return out

    def _spoil(self, info: Tensor, name: str, *, is_matrix: bool) -> None:
        """Make NaN of what belongs to matrices without a factor, where torch would raise.

        The particles of these matrices are left out then, and the others train.
        """
        del name, is_matrix
        node = self._node_of(info)
        source: Any = node.args[0] if node.target is operator.getitem else None
        if source not in self._factors:
            raise Unsupported(f"a factorisation may fail, and its matrix is lost{place_in_code()}")
        with without_modes():
            failed = meta(info) != 0
            bad = self._node(aten.ne.Scalar, (node, 0), {}, failed)
            for value in self._factors[source]:
                assert value.node is not None
                out = value.node.meta["val"]
                if not (out.is_floating_point() or out.is_complex()):
                    continue
                shape = [*failed.shape, *(1,) * (out.dim() - failed.dim())]
                mask = self._node(aten.reshape.default, (bad, shape), {}, failed.reshape(shape))
                nan = self._node(
                    aten.full.default, ([], math.nan), {"dtype": out.dtype, "device": info.device},
                    out.new_empty(()),
                )  # fmt: skip
                value.node = self._node(aten.where.self, (mask, nan, value.node), {}, out)
                value.version += 1

    def _masked(self, func: Any, args: tuple[Any, ...]) -> Node | None:
        """One number written where a mask is true, as a choice between two values."""
        if func.__name__.split(".")[0] not in ("index_put", "index_put_", "_index_put_impl_"):
            return None
        target, indices, value, *rest = args
        mask = indices[0]
        if len(indices) > 1 or mask.dtype != torch.bool or value.numel() > 1 or any(rest[:1]):
            return None
        mask_node, out = self._node_of(mask), meta(mask)
        ones = target.dim() - mask.dim()
        if ones:
            shape = [*mask.shape, *(1,) * ones]
            mask_node = self._node(aten.reshape.default, (mask_node, shape), {}, out.reshape(shape))
        new = (mask_node, self._node_of(value), self._node_of(target))
        return self._node(aten.where.self, new, {}, target)

    def _written(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Node:
        """The node of what an operation in place writes."""
        target = args[0]
        if func is aten.copy_.default:
            source = args[1]
            node, out = self._node_of(source), meta(source)
            if source.dtype != target.dtype:
                out = torch.empty(source.shape, dtype=target.dtype, device="meta")
                node = self._node(aten._to_copy.default, (node,), {"dtype": target.dtype}, out)
            if source.shape != target.shape:
                shape = list(target.shape)
                node = self._node(aten.expand.default, (node, shape), {}, out.expand(shape))
            return node
        new, new_args, new_kwargs = out_of_place(func, args, kwargs)
        return self._node(new, self._as_nodes(new_args), self._as_nodes(new_kwargs), target)

    # ------------------------------------------------------------------------- refusals

    @staticmethod
    def _refuse(func: Any, traits: Traits, *, varying: bool) -> None:
        if traits.random:
            raise Unsupported(f"random numbers are drawn within the step ({func}){place_in_code()}")
        if varying and traits.reads:
            raise Unsupported(
                f"Python reads a value that depends on latents or parameters ({func}; if, "
                f"bool(), float() and .item() do){place_in_code()}"
            )

    def _plain_indices(self, func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Replace constant masks among indices by the positions at which they are true."""
        if func.__name__.split(".")[0] not in ("index", "index_put", "index_put_",
                                               "_index_put_impl_", "_unsafe_index"):  # fmt: skip
            return args
        indices: list[Any] = []
        for index in args[1]:
            if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
                if self._value(index).varies:
                    raise Unsupported(
                        "a mask that depends on latents or parameters selects elements, so that "
                        f"shapes change{place_in_code()}"
                    )
                places = index.nonzero().unbind(1)
                indices += places
            else:
                indices.append(index)
        return (args[0], indices, *args[2:])
