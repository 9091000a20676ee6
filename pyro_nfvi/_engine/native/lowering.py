"""From a graph of ATen operations to statements: each operation has a rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pyro_nfvi._engine.native.buffers import Buffer
from pyro_nfvi._engine.native.expressions import RECOMPUTE_COST, Expr, Ix, Pool, ctype
from pyro_nfvi._engine.native.loops import Call, Statement, order_of_loops
from pyro_nfvi._engine.native.masked_weights import MASKED_GRADIENT, MaskedWeights, transposed
from pyro_nfvi._engine.native.sparse_weights import Masked
from pyro_nfvi._engine.native.values import (
    BufVal,
    HeldVal,
    LazyVal,
    Shape,
    Val,
    contiguous,
    distinct_shape,
)
from pyro_nfvi._engine.program import NoRule, Unsupported
from pyro_nfvi._engine.target_call import TargetCall
from pyro_nfvi._operators import Missing, aten

#: A rule makes the values of one node; ``args`` hold values where the node has inputs.
Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}
#: Terms from which a sum of floats is accumulated in double: the bound on its error, n eps,
#: is 5e-4 there.
DOUBLE_SUM_FROM = 8192
#: Operations beyond which a formula is computed once into memory, even if it is used once, so that
#: the values of one loop stay in registers.
_MAX_FORMULA_COST = 48
#: Rows and columns from which the matrices of all particles lie one after the other in memory, as
#: factorisations and products want them; loops over so many numbers fill vectors either way.
_WHOLE_FROM = 32


def lowers(*targets: Any) -> Callable[[Rule], Rule]:
    """Register the rule of some operations, those that this PyTorch has."""

    def register(rule: Rule) -> Rule:
        for target in targets:
            if not isinstance(target, Missing):
                RULES[target] = rule
        return rule

    return register


class Lowering:
    """Walks through a graph and collects statements.

    Args:
        graph: A functional graph with the meta values of every node.
        constants: Values of the nodes that are known when the code is generated.
        rows: Length of the axis of what is computed for each particle, wherever it stands. Such
            values lie in memory with that axis innermost if it fills vectors: loops over it have
            no remainder and read nothing at a stride, and matrix products read weights as they are.
        masked: Parameters that hold zeros where a mask leaves them out.
        without_rule: Makes the value of a node for which there is no rule; None refuses it.

    Attributes:
        body: Statements in order.
        eager: What ``without_rule`` leaves to PyTorch, in order.
        held: How many values of these PyTorch holds.
        inputs, outputs: Buffers of the graph's inputs and outputs.
        data: Known tensors that the code reads, in the order of their buffers.
    """

    def __init__(
        self,
        graph: GraphModule,
        constants: Mapping[Node, Tensor],
        rows: int | None = None,
        masked: Sequence[Masked] = (),
        without_rule: Callable[[Lowering, Node], Any] | None = None,
    ) -> None:
        self.masked = MaskedWeights(masked, self.datum)
        self.eager: list[Any] = []
        self.held = 0
        self._without_rule = without_rule
        self._rows = rows
        self.pool = Pool()
        self.body: list[Statement | Call] = []
        self.inputs: list[Buffer] = []
        self.outputs: list[Buffer] = []
        self.data: list[Tensor] = []
        self.values: dict[Node, Any] = {}
        self.buffers: list[Buffer] = []
        self._packed: dict[Any, BufVal] = {}
        self._inverses: dict[tuple[Val, str], BufVal] = {}
        self.constants = constants
        self.node: Node | None = None
        self._dest: dict[Node, BufVal] = {}
        self._uses: dict[Node, int] = {}
        self._run(graph)

    # ------------------------------------------------------------------------------- the walk

    def _run(self, graph: GraphModule) -> None:
        nodes = list(graph.graph.nodes)
        output = nodes[-1]
        holders = [n for n in nodes if n.op == "placeholder"]
        for n in holders:
            buffer = Buffer(f"in{len(self.inputs)}", 0, "float", given=True)
            self.inputs.append(buffer)
            if n in self.constants:
                continue
            meta = n.meta["val"]
            buffer.size, buffer.ctype = meta.numel(), ctype(meta.dtype)
            shape = tuple(meta.shape)
            given = BufVal(buffer, shape, contiguous(shape), 0, self.pool)
            self.values[n] = given
            # What has the length of the particles elsewhere is a weight, as a rule.
            noise = shape and shape[0] == self._rows and n.users
            if noise and self._strides(shape, buffer.ctype) != given.strides:
                turned = self.realize(LazyVal(shape, buffer.ctype, given.load))
                key = turned.buffer, turned.shape, turned.strides, turned.offset
                self._packed[key] = given
                self.values[n] = turned
        results: list[Node] = list(output.args[0])
        for k, node in enumerate(results):
            meta = node.meta["val"]
            buffer = Buffer(f"out{k}", meta.numel(), ctype(meta.dtype), given=True)
            self.outputs.append(buffer)
            self._hint(node, buffer)
        for n in nodes:
            if n.op == "call_function" and n not in self.constants:
                if not self._lower_masked(n):
                    self._one(n)
        for node, buffer in zip(results, self.outputs):
            shape = tuple(node.meta["val"].shape)
            target = BufVal(buffer, shape, contiguous(shape), 0, self.pool)
            value = self.value(node)
            same = isinstance(value, BufVal) and value.buffer is buffer
            if not (same and value.offset == 0 and value.dense):
                self.store(target, value.load)

    def _lower_masked(self, node: Node) -> bool:
        """Lower a node that belongs to a masked parameter; return whether it is one."""
        masked = self.masked
        if node in masked.products:  # weight * mask, where the weight holds zeros already
            one = masked.products[node]
            self.values[node] = self.value(one.param)
            masked.note(self.values[node], one)
            return True
        if node in masked.left_out:  # until its product with the mask comes
            return True
        if node in masked.gradients:
            self.node = node
            one = masked.gradients[node]
            assert one.product is not None  # else there is no such node
            a, b = (self.value(x) for x in one.product.args)
            if one.turned:
                a, b = transposed(b), transposed(a)
            rule = RULES[MASKED_GRADIENT]
            self.values[node] = rule(self, a, b, one, self.outputs[one.index])
            return True
        return False

    def _hint(self, node: Node, buffer: Buffer) -> None:
        """Let the operation behind an output write there at once, through transpositions."""
        shape = tuple(node.meta["val"].shape)
        target = BufVal(buffer, shape, contiguous(shape), 0, self.pool)
        while len(node.users) == 1 and node.op == "call_function":
            if node.target in (aten.mm.default, aten.addmm.default, aten.cat.default):
                self._dest[node] = target
                return
            source = node.args[0] if node.args else None
            if not isinstance(source, Node):
                return
            if node.target in (aten.detach.default, aten.alias.default):
                pass
            elif node.target is aten.t.default and len(target.shape) == 2:
                target = target.window(target.shape[::-1], target.strides[::-1])
            else:
                return
            node = source

    def datum(self, tensor: Tensor) -> BufVal:
        """Return a known tensor as a value that the code reads."""
        kind = "int32_t" if tensor.dtype is torch.int32 else ctype(tensor.dtype)
        buffer = Buffer(f"k{len(self.data)}", tensor.numel(), kind, given=True)
        self.data.append(tensor)
        return BufVal(buffer, tuple(tensor.shape), tuple(tensor.stride()), 0, self.pool)

    def _one(self, node: Node) -> None:
        if self._without_rule is None:
            self.values[node] = self._by_rule(node)
            return
        length, packed = len(self.body), dict(self._packed)
        inverses = dict(self._inverses)
        try:
            if any(isinstance(self.values.get(x), HeldVal) for x in node.all_input_nodes):
                raise Unsupported("a value that PyTorch holds")
            self.values[node] = self._by_rule(node)
        except Unsupported:
            # What the rule has begun is undone.
            del self.body[length:]
            self._packed, self._inverses = packed, inverses
            self.values[node] = self._without_rule(self, node)

    def _by_rule(self, node: Node) -> Any:
        target: Any = TargetCall if isinstance(node.target, TargetCall) else node.target
        rule = RULES.get(target)
        if rule is None:
            raise NoRule(f"no rule for the operation {node.target}")
        self.node = node
        try:
            args = torch.fx.node.map_arg(node.args, self.value)
            kwargs = torch.fx.node.map_arg(dict(node.kwargs), self.value)
            made = rule(self, *args, **kwargs)
        except Unsupported as error:
            raise NoRule(f"{node.target}: {error}") from error
        except (TypeError, IndexError, KeyError, AttributeError, ValueError) as error:
            text = f"{node.target}: its rule does not know these arguments ({error})"
            raise NoRule(text) from error
        if isinstance(made, LazyVal) and self._keep(node, made):
            made = self.realize(made)
        return made

    def _keep(self, node: Node, value: LazyVal) -> bool:
        """Tell whether a formula is better computed once into memory."""
        if not prod(value.shape):
            return False
        cost = value.probe().cost
        if cost > _MAX_FORMULA_COST or (self.uses(node) > 1 and cost > RECOMPUTE_COST):
            return True
        # One copy for all products that it enters, however they turn it (thin ones are loops).
        thick = self._rows is None or self._rows > 2
        return cost > 0 and len(value.shape) > 1 and thick and self._is_factor(node)

    def _is_factor(self, node: Node) -> bool:
        """Tell whether a matrix product reads a node, perhaps through views."""
        for user in node.users:
            rule = RULES.get(user.target) if user.op == "call_function" else None
            if getattr(rule, "product", False):
                return True
            if getattr(rule, "view", False) and self._is_factor(user):
                return True
        return False

    def uses(self, node: Node) -> int:
        """Count the operations that read a node, through views."""
        if node not in self._uses:
            count = 0
            for user in node.users:
                view = user.op == "call_function" and getattr(RULES.get(user.target), "view", False)
                count += self.uses(user) if view else 1
            self._uses[node] = count
        return self._uses[node]

    # ------------------------------------------------------------------ what rules work with

    @property
    def out(self) -> Tensor:
        """The meta value of the node at hand (the first, if it has several)."""
        assert self.node is not None  # set before any rule runs
        meta = self.node.meta["val"]
        found: Tensor = meta if isinstance(meta, Tensor) else meta[0]
        return found

    @property
    def shape(self) -> Shape:
        """Shape of the node at hand."""
        return tuple(self.out.shape)

    @property
    def ctype(self) -> str:
        """Type of the node at hand."""
        return ctype(self.out.dtype)

    def value(self, node: Any) -> Any:
        """Return what a node became."""
        if not isinstance(node, Node):
            return node
        if node not in self.values:
            if node not in self.constants:
                raise Unsupported(f"the value {node} of the graph is not known")
            self.values[node] = self._constant(node)
        return self.values[node]

    def _constant(self, node: Node) -> Val:
        return self.datum(self.constants[node])

    def new(self, shape: Sequence[int], kind: str) -> BufVal:
        """Return fresh dense memory."""
        shape = tuple(shape)
        buffer = Buffer(f"b{len(self.buffers)}", max(1, prod(shape)), kind)
        self.buffers.append(buffer)
        return BufVal(buffer, shape, contiguous(shape), 0, self.pool)

    def fresh(self, shape: Sequence[int], kind: str) -> BufVal:
        """Return fresh memory, laid out as suits the loops over it."""
        made = self.new(shape, kind)
        return made.window(made.shape, self._strides(made.shape, kind))

    def _strides(self, shape: Shape, kind: str) -> Shape:
        rows, width = self._rows, {"float": 4, "double": 8}.get(kind, 4)
        if rows is None or len(shape) < 2 or rows not in shape or rows * width % 32 or rows < 8:
            return contiguous(shape)
        if len(shape) > 2 and shape[0] == rows and min(shape[-2:]) >= _WHOLE_FROM:
            return contiguous(shape)
        axis = shape.index(rows)
        rest = list(contiguous((*shape[:axis], *shape[axis + 1 :])))
        rest.insert(axis, 0)
        return tuple(1 if d == axis else rows * step for d, step in enumerate(rest))

    def result(self) -> BufVal:
        """Return memory for the node at hand: where an output goes, or fresh."""
        if self.node in self._dest:
            return self._dest[self.node]
        return self.fresh(self.shape, self.ctype)

    def realize(self, value: Val) -> BufVal:
        """Compute a formula into memory; what is there already stays."""
        if isinstance(value, BufVal):
            return value
        made = self.fresh(value.shape, value.ctype)
        self.store(made, value.load)
        return made

    def dense(self, value: Val) -> BufVal:
        """Return the value as a dense array."""
        value = self.realize(value)
        if value.dense:
            return value
        # A value never changes once it is complete: one copy serves all who want it.
        key = value.buffer, value.shape, value.strides, value.offset
        if key not in self._packed:
            self._packed[key] = self.new(value.shape, value.ctype)
            self.store(self._packed[key], value.load)
        return self._packed[key]

    def inverse(self, value: Val, kind: str) -> BufVal:
        """Return 1 / value in memory, computed once, as narrow as it is."""
        key = value, kind
        if key not in self._inverses:
            one, pool = self.pool.lit(1, kind), self.pool

            def load(index: tuple[Ix, ...]) -> Expr:
                return pool.div(one, pool.cast(value.load(index), kind))

            self._inverses[key] = self.realize(LazyVal(distinct_shape(value), kind, load))
        return self._inverses[key]

    def laid_out(self, value: Val) -> BufVal:
        """Return the value in the layout of :meth:`fresh`."""
        value = self.realize(value)
        strides = self._strides(value.shape, value.ctype)
        pairs = zip(value.shape, value.strides, strides)
        if all(n == 1 or mine == wanted for n, mine, wanted in pairs):
            return value
        key = value.buffer, value.shape, value.strides, value.offset, "laid out"
        if key not in self._packed:
            self._packed[key] = self.fresh(value.shape, value.ctype)
            self.store(self._packed[key], value.load)
        return self._packed[key]

    def store(
        self, target: BufVal, load: Callable[[tuple[Ix, ...]], Expr], *, partial: bool = False
    ) -> None:
        """Fill memory from a formula."""
        self.statement(target.shape, load, target, partial=partial)

    def statement(
        self,
        shape: Shape,
        load: Callable[[tuple[Ix, ...]], Expr],
        target: BufVal,
        *,
        reduced: frozenset[int] = frozenset(),
        how: str = "store",
        partial: bool = False,
    ) -> None:
        """Add loops over ``shape`` that store or reduce into ``target``.

        ``target`` has the axes of ``shape`` without those that are reduced.
        """
        if not prod(target.shape):
            return
        if not prod(shape):
            raise Unsupported("a reduction of nothing")
        long = prod(shape[d] for d in reduced) >= DOUBLE_SUM_FROM
        if how == "sum" and target.ctype == "float" and long:
            wide = self.fresh(target.shape, "double")
            self.statement(shape, load, wide, reduced=reduced, how=how)
            self.store(target, lambda index: self.pool.cast(wide.load(index), "float"))
            return
        axes = [d for d, n in enumerate(shape) if n != 1]
        axes = order_of_loops(axes, shape, load, target, reduced)
        names = {d: f"i{k}" for k, d in enumerate(axes)}
        index = tuple(Ix.var(names[d]) if d in names else Ix() for d in range(len(shape)))
        value = self.pool.cast(load(index), target.ctype)
        place = target.at([i for d, i in enumerate(index) if d not in reduced])
        over = frozenset(k for k, d in enumerate(axes) if d in reduced)
        sizes = tuple(shape[d] for d in axes)
        how = how if over or how == "store" else "store"
        self.body.append(Statement(sizes, target.buffer, place, value, over, how, partial))

    def call(self, text: str, reads: Sequence[BufVal], writes: Sequence[BufVal]) -> None:
        """Add a piece of C++."""
        self.body.append(
            Call(text, tuple(v.buffer for v in reads), tuple(v.buffer for v in writes))
        )

    def index(self, value: Val, index: tuple[Ix, ...]) -> tuple[Ix, ...]:
        """Broadcast an index of the result to an operand."""
        lead = len(index) - len(value.shape)
        return tuple(Ix() if n == 1 else i for n, i in zip(value.shape, index[lead:]))

    def scalar(self, x: Any, index: tuple[Ix, ...], kind: str) -> Expr:
        """Return an operand, a value or a number, at an index of the result, in some type."""
        if isinstance(x, BufVal | LazyVal):
            return self.pool.cast(x.load(self.index(x, index)), kind)
        return self.pool.lit(x, kind)
