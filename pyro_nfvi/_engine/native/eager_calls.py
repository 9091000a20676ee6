"""Operations without a rule: PyTorch computes them in the middle of the compiled code."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from pyro_nfvi._engine.native.expressions import ctype
from pyro_nfvi._engine.native.lowering import Lowering
from pyro_nfvi._engine.native.values import BufVal, HeldVal, LazyVal
from pyro_nfvi._engine.program import Unsupported
from pyro_nfvi._operators import aten

_VOID = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.POINTER(ctypes.c_void_p))
#: What depends on how its argument lies in memory, which differs here.
_STRIDED = (aten.as_strided.default, aten.as_strided_scatter.default)


@dataclass(frozen=True, eq=False)
class _Memory:
    """A dense tensor in the code's memory: number of its address, shape and type."""

    number: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class EagerOperation:
    """One operation, and where its arguments and results are.

    Attributes:
        target: The operation.
        args, kwargs: Its arguments; tensors are a ``_Memory``, a :class:`HeldVal` or known.
        results: Where each result goes.
        many: Whether it returns several tensors.
    """

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[_Memory | HeldVal | None, ...]
    many: bool

    @property
    def name(self) -> str:
        """Its name in PyTorch."""
        return str(self.target)


def lower_eagerly(low: Lowering, node: Node) -> Any:
    """Add a call of PyTorch for a node, and return its value (a list, if it has several).

    Raises:
        Unsupported: It returns no tensors of static shape, or depends on strides.
    """
    target, meta = node.target, node.meta.get("val")
    many = isinstance(meta, list | tuple)
    metas = list(meta) if isinstance(meta, list | tuple) else [meta]
    if not callable(target) or not all(x is None or isinstance(x, Tensor) for x in metas):
        raise Unsupported(f"{target} returns what is no tensor")
    if target in _STRIDED:
        raise Unsupported(f"{target} depends on how its argument lies in memory")
    reads: list[BufVal] = []
    writes: list[BufVal] = []

    def given(one: Node) -> Any:
        if one in low.constants:
            return low.constants[one]
        value = low.value(one)
        if isinstance(value, HeldVal):
            return value
        like = one.meta["val"]
        if not isinstance(value, BufVal | LazyVal) or value.shape != tuple(like.shape):
            raise Unsupported(f"{target} takes {one}, which the code has in another form")
        reads.append(_own(low, value, ctype(like.dtype)))
        return _Memory(len(reads) - 1, value.shape, like.dtype)

    args = torch.fx.node.map_arg(node.args, given)
    kwargs = torch.fx.node.map_arg(dict(node.kwargs), given)
    values: list[Any] = []
    results: list[_Memory | HeldVal | None] = []
    for x in metas:
        if x is None:
            values.append(None)
            results.append(None)
            continue
        try:
            made = low.new(tuple(x.shape), ctype(x.dtype))
        except Unsupported:
            values.append(HeldVal(low.held))
            results.append(values[-1])
            low.held += 1
            continue
        values.append(made)
        results.append(_Memory(len(reads) + len(writes), made.shape, x.dtype))
        writes.append(made)
    places = ",".join(f"(void*){v.pointer}" for v in (*reads, *writes))
    low.call(f"void* p[]={{{places or '0'}}};cx->eager({len(low.eager)},p);", reads, writes)
    low.eager.append(EagerOperation(target, args, kwargs, tuple(results), many))
    return values if many else values[0]


def _own(low: Lowering, value: BufVal | LazyVal, kind: str) -> BufVal:
    """Return a dense copy in memory that stays where it is, of the type that PyTorch expects."""
    if value.ctype == kind:
        dense = low.dense(value)
        if not dense.buffer.given:
            return dense
    made = low.new(value.shape, kind)
    low.store(made, lambda index: low.pool.cast(value.load(index), kind))
    return made


class EagerCalls:
    """Runs the operations of one compiled step when its code calls for them.

    An operation that fails leaves NaN behind, so that the step is not taken; the error is kept
    for :meth:`check`. A matrix that has no factor or no inverse is no error but a bad step.

    Args:
        operations: In the order of their numbers.

    Attributes:
        address: What the code calls.
        interrupted: Whether Ctrl-C came meanwhile.
    """

    def __init__(self, operations: Sequence[EagerOperation]) -> None:
        self._operations = operations
        self._held: dict[int, Tensor] = {}
        self._tensors: dict[tuple[int, int], tuple[int, Tensor]] = {}
        self._function = _VOID(self._call)  # the code calls it: it must live
        self._problem: Exception | None = None
        self.interrupted = False
        self.address = ctypes.cast(self._function, ctypes.c_void_p).value if operations else 0

    def check(self) -> None:
        """Raise what an operation has raised since the last check."""
        problem, self._problem = self._problem, None
        self._held.clear()
        if problem is not None:
            raise problem

    def _call(self, which: int, places: Any) -> None:
        # Nothing may leave this function: ctypes would print it and go on.
        while True:
            try:
                self._compute(which, places)
            except KeyboardInterrupt:  # the block takes its course
                self.interrupted = True
                continue
            except torch.linalg.LinAlgError:
                self._spoil(which, places)
            except Exception as error:
                self._problem = self._problem or error
                self._spoil(which, places)
            return

    def _compute(self, which: int, places: Any) -> None:
        one = self._operations[which]

        def value(x: Any) -> Any:
            if isinstance(x, _Memory):
                return self._tensor(which, x, places)
            if isinstance(x, HeldVal):
                return self._held[x.place]
            if isinstance(x, list | tuple):
                return [value(part) for part in x]
            return x

        with torch.no_grad():
            args = [value(x) for x in one.args]
            kwargs = {name: value(x) for name, x in one.kwargs.items()}
            made = one.target(*args, **kwargs)
            for x, result in zip(one.results, made if one.many else (made,)):
                if isinstance(x, _Memory):
                    self._tensor(which, x, places).copy_(result)
                elif x is not None:
                    # What looks into the code's memory would change when that is used again.
                    inside = any(_same_memory(result, one) for one in (*args, *kwargs.values()))
                    self._held[x.place] = result.clone() if inside else result

    def _tensor(self, which: int, x: _Memory, places: Any) -> Tensor:
        """Return the code's memory as a tensor."""
        if not prod(x.shape):
            return torch.empty(x.shape, dtype=x.dtype)
        address = places[x.number]
        known = self._tensors.get((which, x.number))
        if known is not None and known[0] == address:
            return known[1]
        count = prod(x.shape)
        raw = (ctypes.c_char * (count * x.dtype.itemsize)).from_address(address)
        made = torch.frombuffer(raw, dtype=x.dtype, count=count).view(x.shape)
        self._tensors[which, x.number] = address, made
        return made

    def _spoil(self, which: int, places: Any) -> None:
        """Leave NaN where results were to go, and zero where there is none."""
        for x in self._operations[which].results:
            if isinstance(x, _Memory):
                real = x.dtype.is_floating_point
                self._tensor(which, x, places).fill_(float("nan") if real else 0)
            elif x is not None and x.place in self._held:
                self._held[x.place] = torch.full_like(self._held[x.place], float("nan"))


def _same_memory(result: Tensor, x: Any) -> bool:
    """Tell whether a result shares its storage with an argument, or with one in a list of them."""
    if isinstance(x, list | tuple):
        return any(_same_memory(result, one) for one in x)
    if not isinstance(x, Tensor):
        return False
    return result.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
