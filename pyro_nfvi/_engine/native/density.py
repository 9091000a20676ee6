"""A captured log joint as compiled code that evaluates rows in blocks."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_nfvi._engine.broadcast_sinking import sink_broadcasts
from pyro_nfvi._engine.native.aligned_memory import aligned
from pyro_nfvi._engine.native.compiled_objects import BuildInfo, compile_text
from pyro_nfvi._engine.native.cpp_source import Source, generate, header
from pyro_nfvi._engine.native.eager_calls import EagerCalls
from pyro_nfvi._engine.native.expressions import ctype
from pyro_nfvi._engine.native.known_values import known_values
from pyro_nfvi._engine.native.shared_library import Context, TargetStruct, blas, load, pointers
from pyro_nfvi._engine.program import DensityProgram, Unsupported
from pyro_nfvi._typing import TensorPair

#: Functions of a compiled density.
_SYMBOLS = ("nfvi_work", "nfvi_evaluate")
#: Types that a log density may have: data in float64 make it one, whatever the latents are.
_TYPES = {"float": torch.float32, "double": torch.float64}


def build_density(
    program: DensityProgram, *, eager: bool = False, timeout: float = math.inf
) -> NativeDensity:
    """Build compiled code that evaluates a captured log joint.

    Args:
        program: The captured log joint; its rows are float32 or float64.
        eager: Leave to PyTorch the operations without a rule, each at some ten microseconds.
        timeout: Seconds that a compile may take; what is compiled already takes none.

    Raises:
        Unsupported: An operation without a rule (unless ``eager``), no compiler, or a compile that
            would take too long; the message is the reason.

    Cost:
        A compile of about a second the first time; afterwards the object is found.
    """
    given = (program.z, *program.params.values(), *program.consts)
    if program.z.dtype not in _TYPES.values():
        raise Unsupported(f"latents of {program.z.dtype}; native code takes float32 or float64")
    if any(tensor.device.type != "cpu" for tensor in given):
        raise Unsupported("tensors that are not on the CPU")
    begin = time.perf_counter()
    graph = sink_broadcasts(program.graph, program.consts)
    holders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    consts = holders[len(holders) - len(program.consts) :] if program.consts else []
    known = known_values(graph, dict(zip(consts, program.consts)))
    rows, dim = program.z.shape
    source = generate(graph, known, rows, eager=eager)
    real, (kind, _) = ctype(program.z.dtype), source.outputs[0]
    if kind not in _TYPES or source.outputs[1][0] != real:
        raise Unsupported(f"a log density of type {kind}, and a gradient of {source.outputs[1][0]}")
    text = "\n".join(
        [
            source.text,
            header("density.h"),
            "NFVI_API int64_t nfvi_work(){return NFVI_WORK;}",
            "NFVI_API void nfvi_evaluate(NfviTarget* self,const void* z,"
            "const void* const* streams,int64_t n,void* log_p,void* score)"
            f"{{evaluate<{real},{kind},{rows},{dim}>(self,z,streams,n,log_p,score);}}",
        ]
    )
    middle = time.perf_counter()
    data, cached = compile_text(text, _SYMBOLS, timeout)
    end = time.perf_counter()
    left = tuple(one.name for one in source.eager)
    info = BuildInfo(middle - begin, end - middle, cached, source.loops, left)
    return NativeDensity(program, source, data, info)


class NativeDensity:
    """A log density with its gradient, in compiled code; no two threads may call it at once.

    Attributes:
        info: How it was built.
        address: Address of its ``struct NfviTarget``, by which other compiled code calls it; 0
            where operations are left to PyTorch.
        rows: Rows of a block.
    """

    def __init__(
        self, program: DensityProgram, source: Source, compiled: bytes, info: BuildInfo
    ) -> None:
        self.info = info
        self._dim, self._dtype = program.z.shape[1], program.z.dtype
        self._log_p_dtype = _TYPES[source.outputs[0][0]]
        self._library = load(compiled, _SYMBOLS)
        self._library.nfvi_work.restype = ctypes.c_int64
        self._library.nfvi_evaluate.restype = None
        self.rows = rows = len(program.z)
        self._streams = tuple((x.shape, x.dtype) for x in program.streams.values())
        self._params = tuple((x.shape, x.dtype) for x in program.params.values())
        self._eager = EagerCalls(source.eager)
        # The code reads and writes all of these: they must live.
        self._data = source.data
        self._memory = (
            aligned(int(self._library.nfvi_work()) // 8 + 8, torch.float64),
            aligned(rows * self._dim, self._dtype),
            aligned(rows, self._log_p_dtype),
            aligned(rows * self._dim, self._dtype),
        )
        work, *block = (tensor.data_ptr() for tensor in self._memory)
        count = 1 + len(self._streams) + len(self._params) + len(program.consts)
        self._inputs = pointers([0] * count)
        self._outputs = pointers([0, 0])
        self._tensors = pointers([tensor.data_ptr() for tensor in self._data])
        arrays = (self._inputs, self._outputs, self._tensors)
        self._context = Context(
            *(ctypes.cast(array, ctypes.c_void_p) for array in arrays),
            work,
            *blas(),
            self._eager.address,
        )
        self._target = TargetStruct(
            ctypes.cast(self._library.nfvi_evaluate, ctypes.c_void_p),
            ctypes.addressof(self._context),
            len(self._streams),
            *block,
        )
        self.address = 0 if source.eager else ctypes.addressof(self._target)

    def __call__(
        self, z: Tensor, streams: Mapping[str, Tensor], params: Mapping[str, Tensor]
    ) -> TensorPair:
        """Evaluate rows ``(N, D)``: log density ``(N,)`` and gradient ``(N, D)``.

        Args:
            z: The rows.
            streams: The streams, in the order of the program.
            params: The model's parameters as they are now, in the order of the program.

        Raises:
            Unsupported: Something has another shape or type than when the code was built.
        """
        z = z.detach().contiguous()
        held = [self._checked(x, one) for x, one in zip(streams.values(), self._streams)]
        self.put(params)
        log_p = torch.empty(len(z), dtype=self._log_p_dtype)
        score = torch.empty(z.shape, dtype=self._dtype)
        self._library.nfvi_evaluate(
            ctypes.byref(self._target),
            ctypes.c_void_p(z.data_ptr()),
            pointers([tensor.data_ptr() for tensor in held]),
            ctypes.c_int64(len(z)),
            ctypes.c_void_p(log_p.data_ptr()),
            ctypes.c_void_p(score.data_ptr()),
        )
        self._eager.check()
        return log_p, score

    def put(self, params: Mapping[str, Tensor]) -> None:
        """Let the code read the model's parameters from these tensors."""
        place = 1 + len(self._streams)
        self._read = [self._checked(x, one) for x, one in zip(params.values(), self._params)]
        for number, tensor in enumerate(self._read):
            self._inputs[place + number] = tensor.data_ptr()

    @staticmethod
    def _checked(tensor: Tensor, built: tuple[torch.Size, torch.dtype]) -> Tensor:
        if (tensor.shape, tensor.dtype) != built:
            raise Unsupported(
                f"an input of shape {tuple(tensor.shape)} and {tensor.dtype} where the density "
                f"was built for {tuple(built[0])} of {built[1]}"
            )
        return tensor.detach().contiguous()
