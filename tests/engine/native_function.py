"""Any graph as a compiled function: tests of the generator without a fit around it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyro_nfvi._engine.native.compiled_objects import compile_text
from pyro_nfvi._engine.native.cpp_source import generate
from pyro_nfvi._engine.native.eager_calls import EagerCalls
from pyro_nfvi._engine.native.known_values import known_values
from pyro_nfvi._engine.native.shared_library import Context, blas, load, pointers


class NativeFunction:
    """A graph of ATen operations, compiled.

    Args:
        graph: A functional graph of static shapes whose nodes have tensors in ``meta["val"]``.
        constants: Values of its last inputs, which are not passed then.
        rows: Number of particles: length of the first axis of most values, for which memory is
            laid out.
        eager: Leave to PyTorch what has no rule.

    Raises:
        Unsupported: An operation has no rule, or nothing can be compiled here.
    """

    def __init__(
        self,
        graph: GraphModule,
        constants: Sequence[Tensor] = (),
        rows: int | None = None,
        *,
        eager: bool = False,
    ) -> None:
        nodes = list(graph.graph.nodes)
        holders = [node for node in nodes if node.op == "placeholder"]
        self._inputs = holders[: len(holders) - len(constants)]
        known = known_values(graph, dict(zip(holders[len(self._inputs) :], constants)))
        self._source = generate(graph, known, rows, eager=eager)
        self._eager = EagerCalls(self._source.eager)
        self._results = [node.meta["val"] for node in nodes[-1].args[0]]
        text = (
            f"{self._source.text}\n"
            "NFVI_API int64_t nfvi_work(){return NFVI_WORK;}\n"
            "NFVI_API void nfvi_call(Ctx* cx){step(cx);}\n"
        )
        symbols = ("nfvi_work", "nfvi_call")
        data, self.cached = compile_text(text, symbols)
        self._library = load(data, symbols)
        self._library.nfvi_work.restype = ctypes.c_int64

    @property
    def loops(self) -> int:
        """Loops and calls in the code."""
        return self._source.loops

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Compute the graph's outputs."""
        held = [x.detach().contiguous() for x in inputs]
        for x, node in zip(held, self._inputs, strict=True):
            if x.shape != node.meta["val"].shape or x.dtype != node.meta["val"].dtype:
                raise ValueError(f"{node} is {tuple(node.meta['val'].shape)}, not {x.shape}")
        outputs = [torch.empty(val.shape, dtype=val.dtype) for val in self._results]
        work = torch.empty(int(self._library.nfvi_work()) + 64, dtype=torch.uint8)
        arrays = [
            pointers([x.data_ptr() for x in tensors])
            for tensors in (held, outputs, self._source.data)
        ]
        context = Context(
            *(ctypes.cast(array, ctypes.c_void_p) for array in arrays),
            work.data_ptr() + -work.data_ptr() % 64,
            *blas(),
            self._eager.address,
        )
        self._library.nfvi_call(ctypes.byref(context))
        self._eager.check()
        return outputs
