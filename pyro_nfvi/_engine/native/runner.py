"""Runs a captured step as compiled code, in blocks of steps with no Python in them."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nfvi._engine.broadcast_sinking import sink_broadcasts
from pyro_nfvi._engine.cache import Cache
from pyro_nfvi._engine.native.aligned_memory import aligned
from pyro_nfvi._engine.native.compiled_objects import BuildInfo, begin_compile, compile_text
from pyro_nfvi._engine.native.cpp_source import Source, generate, header
from pyro_nfvi._engine.native.eager_calls import EagerCalls
from pyro_nfvi._engine.native.expressions import ctype
from pyro_nfvi._engine.native.known_values import known_values
from pyro_nfvi._engine.native.optimizer_step import (
    KINDS,
    group_options,
    kind_of,
    read_state,
    state_names,
    write_state,
)
from pyro_nfvi._engine.native.shared_library import (
    Context,
    FitStruct,
    GroupStruct,
    OuterStruct,
    TableStruct,
    blas,
    load,
    pointers,
)
from pyro_nfvi._engine.native.sparse_weights import Masked, find_masked, full_blocks, ranges, table
from pyro_nfvi._engine.program import BlockResult, OptimizerSpec, Program, Unsupported
from pyro_nfvi._engine.target_call import TargetCall
from pyro_nfvi._optim.rowwise_adam import ROW_STATE, row_state

#: Functions of a compiled step, and of the loop over steps.
_STEP_SYMBOLS, _LOOP_SYMBOLS = ("nfvi_work", "nfvi_step"), ("nfvi_run",)
#: Numbers to a multiple of which parameters are padded in the flat vectors: each then starts at a
#: line of the cache (64 bytes of floats).
_ALIGNMENT = 16
#: Types that a bound may have: data in float64 make it one, whatever the parameters are.
_BOUNDS = {"float": torch.float32, "double": torch.float64}


def build_native(
    program: Program,
    optimizer_spec: OptimizerSpec,
    *,
    eager: bool = False,
    timeout: float = math.inf,
) -> NativeRunner:
    """Build a runner that takes the program's steps in compiled code.

    Args:
        program: The captured step; its parameters and constants are float32 or float64.
        optimizer_spec: The optimiser.
        eager: Leave to PyTorch the operations without a rule, each at some ten microseconds.
        timeout: Seconds that a compile may take; what is compiled already takes none.

    Returns:
        The runner, with the present parameters and optimiser state already in it.

    Raises:
        Unsupported: An operation without a rule (unless ``eager``), an unknown optimiser, no
            compiler, or a compile that would take too long; the message is the reason.

    Cost:
        A compile of one to a few seconds the first time; afterwards the object is found.
    """
    begin = time.perf_counter()
    code = step_code(program, optimizer_spec, eager=eager)
    middle = time.perf_counter()
    data, cached = compile_text(code.text, _STEP_SYMBOLS, timeout)
    stepping, _ = compile_text(code.loop, _LOOP_SYMBOLS, timeout)
    end = time.perf_counter()
    source, left = code.source, tuple(one.name for one in code.source.eager)
    info = BuildInfo(middle - begin, end - middle, cached, source.loops, left)
    units = (data, stepping)
    return NativeRunner(program, optimizer_spec, code.kind, source, units, info, code.masked)


def begin_native(program: Program, optimizer_spec: OptimizerSpec, mark: str) -> None:
    """Begin to compile a step in the background; :func:`build_native` waits for it.

    Args:
        program: A step of the same source.
        optimizer_spec: Its optimiser.
        mark: Key of a note that it is compiled.
    """
    code = step_code(program, optimizer_spec)
    begin_compile(code.loop, _LOOP_SYMBOLS, Cache.key(mark, "loop"))
    begin_compile(code.text, _STEP_SYMBOLS, mark)


@dataclass(frozen=True)
class StepCode:
    """The sources of a step.

    Attributes:
        text: The step.
        loop: The loop over steps.
        source: What the step has to be given.
        kind: The optimiser.
        masked: Parameters that the code takes for zero where their masks are.
    """

    text: str
    loop: str
    source: Source
    kind: str
    masked: Sequence[Masked]


def step_code(program: Program, optimizer_spec: OptimizerSpec, *, eager: bool = False) -> StepCode:
    """Write the sources of a step; arguments and errors are those of :func:`build_native`."""
    kinds = {param.dtype for param in program.params}
    if len(kinds) != 1 or not kinds <= {torch.float32, torch.float64}:
        names = ", ".join(sorted(str(kind) for kind in kinds)) or "no type: there are none"
        raise Unsupported(f"parameters of {names}; native code takes float32 or float64")
    if any(tensor.device.type != "cpu" for tensor in (*program.params, *program.consts)):
        raise Unsupported("tensors that are not on the CPU")
    kind = kind_of(optimizer_spec)
    graph = sink_broadcasts(program.graph, program.consts)
    holders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    consts = holders[len(holders) - len(program.consts) :] if program.consts else []
    known = known_values(graph, dict(zip(consts, program.consts)))
    # Where weights decay, what a mask hides moves too.
    still = not any(o.get("weight_decay") or not o.get("eps", 1) for o in optimizer_spec.options)
    amsgrad = any(options.get("amsgrad") for options in optimizer_spec.options)
    # A column and a row cannot be summed over blocks.
    outer = kind in ("Adam", "AdamW") and not amsgrad and program.blocks == 1
    masked = find_masked(graph, known, len(program.params), outer=outer) if still else []
    source = generate(graph, known, program.eps.shape[0], masked, eager=eager)
    real = ctype(program.params[0].dtype)
    bound, bad = source.outputs[-2:]
    if bound[0] not in _BOUNDS or bad[0] != "int64_t":
        raise Unsupported(f"a bound of type {bound[0]} or a count of type {bad[0]}")
    text = "\n".join(
        [
            source.text,
            "NFVI_API int64_t nfvi_work(){return NFVI_WORK;}",
            "NFVI_API void nfvi_step(Ctx* cx){step(cx);}",
        ]
    )
    loop = _loop_source(real, kind, outer=any(one.outer for one in masked))
    return StepCode(text, loop, source, kind, masked)


def _target_address(program: Program) -> int:
    """Return the address of the log density that a step calls, or 0."""
    targets = [node.target for node in program.graph.graph.nodes]
    return next((one.address for one in targets if isinstance(one, TargetCall)), 0)


def _loop_source(real: str, kind: str, *, outer: bool) -> str:
    """Write the loop over steps, which all models share.

    Args:
        real: Type of the parameters.
        kind: The optimiser.
        outer: Whether some gradient is left as a column and a row.
    """
    names = ("elementary.h", "base.h", "gemm.h", "gemv.h", "holes.h", "runtime.h")
    entry = (
        "NFVI_API void nfvi_run(Fit* f,const void* const* from,const double* rates,"
        "int64_t n,double* bounds,int64_t* bad,uint8_t* ok)"
        f"{{run<{real},{KINDS[kind]},{int(outer)}>(f,from,rates,n,bounds,bad,ok);}}"
    )
    return "\n".join([*(header(name) for name in names), entry])


class NativeRunner:
    """A :class:`pyro_nfvi._engine.program.Runner` over compiled code.

    Holds its own copy of the parameters, their gradients and the optimiser's state as flat
    vectors. Two runners share nothing, and a run lets other Python threads go on.

    Attributes:
        info: How it was built.
    """

    def __init__(
        self,
        program: Program,
        spec: OptimizerSpec,
        kind: str,
        source: Source,
        compiled: tuple[bytes, bytes],
        info: BuildInfo,
        masked: Sequence[Masked] = (),
    ) -> None:
        self.info = info
        self._masked = {one.index: one for one in masked}
        self._shown = {k: one.mask.reshape(-1) != 0 for k, one in self._masked.items()}
        self._program, self._spec, self._kind = program, spec, kind
        self._library = load(compiled[0], _STEP_SYMBOLS)
        self._library.nfvi_work.restype = ctypes.c_int64
        self._run = load(compiled[1], _LOOP_SYMBOLS).nfvi_run
        self._run.restype = None
        # Rows of the flat vectors that steps change: values and the state that is in use.
        used = [state_names(kind, options) for options in spec.options]
        self._changing = [0, *(2 + k for k in range(3) if any(names[k] for names in used))]
        self._lay_out()
        self._connect(source)
        self.push()

    # --------------------------------------------------------------------------- memory

    def _lay_out(self) -> None:
        """Give each parameter its place in the flat vectors, group after group."""
        program, spec = self._program, self._spec
        dtype = program.params[0].dtype
        self._offsets = [0] * len(program.params)
        self._groups = (GroupStruct * max(1, len(spec.options)))()
        place = 0
        self._outer: list[OuterStruct] = []
        self._held: list[Tensor] = []
        stretches: list[tuple[int, int]] = []
        for number, options in enumerate(spec.options):
            group = self._groups[number]
            for name, value in group_options(self._kind, options).items():
                setattr(group, name, value)
            group.begin = len(stretches)
            for k, param in enumerate(program.dense):
                if spec.groups[k] == number:
                    self._offsets[k] = place
                    size = -(-param.numel() // _ALIGNMENT) * _ALIGNMENT
                    used = self._used(k, number, size)
                    for begin, end in used:
                        if len(stretches) > group.begin and stretches[-1][1] == place + begin:
                            begin = stretches.pop()[0] - place
                        stretches.append((place + begin, place + end))
                    place += size
            group.end = len(stretches)
        for k in range(len(program.dense), len(program.params)):  # in no group's own stretches
            self._offsets[k] = place
            size = -(-program.params[k].numel() // _ALIGNMENT) * _ALIGNMENT
            stretches.append((place, place + size))
            place += size
        self._tables = (TableStruct * max(1, len(program.tables)))()
        self._outer_array = (OuterStruct * max(1, len(self._outer)))(*self._outer)
        flat = [end for stretch in stretches for end in stretch]
        self._stretches = (ctypes.c_int64 * len(flat))(*flat)
        rows = 5 if program.blocks == 1 else 6
        self._flat = aligned(rows * place, dtype).view(rows, place)
        self._flat.zero_()

    def _used(self, k: int, group: int, size: int) -> list[tuple[int, int]]:
        """Return the stretches of a parameter's gradient that the code writes."""
        one = self._masked.get(k)
        if one is None:
            return [(0, size)]
        if not one.outer:
            return ranges(one.mask, _ALIGNMENT)
        runs = table(one.mask)
        assert runs is not None  # it is what makes it an outer one
        held = (one.mask, runs, full_blocks(one.mask))
        self._held += held  # the code reads them: they must live
        places = [x.data_ptr() for x in held]
        self._outer.append(OuterStruct(self._offsets[k], *one.mask.shape, group, *places))
        return []

    def _part(self, row: int, k: int) -> Tensor:
        """Parameter k's piece of a flat vector: values, gradient, three of optimiser state."""
        begin = self._offsets[k]
        return self._flat[row, begin : begin + self._program.params[k].numel()]

    def _connect(self, source: Source) -> None:
        """Tell the code where everything lies."""
        program, count = self._program, len(self._program.params)
        self._bound = torch.zeros(1, dtype=_BOUNDS[source.outputs[-2][0]])
        self._bad = torch.zeros(1, dtype=torch.int64)
        self._work = aligned(int(self._library.nfvi_work()) // 8 + 8, torch.float64)
        self._data = source.data  # the code reads them: they must live
        self._eager = EagerCalls(source.eager)
        inputs = [self._part(0, k).data_ptr() for k in range(count)]
        # The streams' places are filled in by each step, constants are read through ``data``.
        inputs += [0] * (1 + len(program.streams) + len(program.consts))
        outputs = [self._part(1, k).data_ptr() for k in range(count)]
        outputs += [self._bound.data_ptr(), self._bad.data_ptr()]
        examples = [program.eps, *program.streams.values()]
        strides = [x.numel() * x.element_size() for x in examples]
        self._arrays = (
            pointers(inputs),
            pointers(outputs),
            pointers([tensor.data_ptr() for tensor in source.data]),
            (ctypes.c_int64 * len(strides))(*strides),
        )
        first, second = blas()
        self._context = Context(
            *(ctypes.cast(array, ctypes.c_void_p) for array in self._arrays[:3]),
            self._work.data_ptr(),
            first,
            second,
            self._eager.address,
            _target_address(program),
        )
        rows = [self._flat[row].data_ptr() for row in range(5)]
        self._fit = FitStruct(
            *rows,
            len(self._stretches) // 2,
            len(self._spec.options),
            program.blocks * program.eps.shape[0],
            ctypes.addressof(self._stretches),
            self._spec.clip,
            ctypes.addressof(self._groups),
            ctypes.addressof(self._context),
            len(examples),
            count,
            ctypes.addressof(self._arrays[3]),
            self._bound.data_ptr(),
            self._bad.data_ptr(),
            0,
            len(self._outer),
            ctypes.addressof(self._outer_array),
            ctypes.cast(self._library.nfvi_step, ctypes.c_void_p),
            int(self._bound.dtype == torch.float64),
            program.blocks,
            self._flat[-1].data_ptr(),
            len(program.tables),
            ctypes.addressof(self._tables),
        )

    # --------------------------------------------------------------------------- the runner

    def run(self, eps: Tensor, streams: Mapping[str, Tensor], rates: Tensor) -> BlockResult:
        """Take up to n steps; see :class:`pyro_nfvi._engine.program.Runner`."""
        program, n = self._program, len(eps)
        streams, numbers = program.inputs(streams)
        rows = [numbers[one.block] for one in program.tables]  # the code reads them: they must live
        for struct, index in zip(self._tables, rows):
            struct.rows = index.data_ptr()
        given = [eps, *(streams[name] for name in program.streams)]
        particles, *rest = program.eps.shape
        shapes = [(program.blocks * particles, *rest)]
        shapes += [tuple(x.shape) for x in program.streams.values()]
        kinds = [x.dtype for x in (program.eps, *program.streams.values())]
        held = []
        for tensor, shape, kind in zip(given, shapes, kinds):
            if tensor.shape != (n, *shape) or tensor.dtype != kind:
                raise Unsupported(
                    f"an input of shape {tuple(tensor.shape)} and {tensor.dtype} where the step "
                    f"was built for {shape} of {kind}"
                )
            held.append(tensor.detach().contiguous())
        rates = rates.to(torch.float64).reshape(n, len(self._spec.options)).contiguous()
        bounds = torch.empty(n, dtype=torch.float64)
        bad = torch.empty(n, dtype=torch.int64)
        ok = torch.empty(n, dtype=torch.bool)
        interrupted = self._eager.interrupted = False
        self._fit.done = 0
        try:
            self._run(
                ctypes.byref(self._fit),
                pointers([tensor.data_ptr() for tensor in held]),
                *(ctypes.c_void_p(rates.data_ptr()), ctypes.c_int64(n)),
                *(ctypes.c_void_p(x.data_ptr()) for x in (bounds, bad, ok)),
            )
        except KeyboardInterrupt:  # it came while the block ran, which took its course
            if not self._fit.done:
                raise
            interrupted = True
        self._eager.check()
        interrupted = interrupted or self._eager.interrupted
        done = self._fit.done
        return BlockResult(bounds[:done], bad[:done], ok[:done], interrupted)

    def snapshot(self) -> tuple[Tensor, list[float], list[Tensor]]:
        """Copy everything that steps change, for :meth:`restore`."""
        steps = [group.steps for group in self._groups]
        with torch.no_grad():
            return self._flat[self._changing], steps, [x.clone() for x in self._table_tensors()]

    def restore(self, saved: tuple[Tensor, list[float], list[Tensor]]) -> None:
        """Go back to a snapshot, leaving the live tensors alone but for tables of rows."""
        values, steps, tables = saved
        self._flat[self._changing] = values
        for group, taken in zip(self._groups, steps):
            group.steps = taken
        with torch.no_grad():
            for live, value in zip(self._table_tensors(), tables, strict=True):
                live.copy_(value)

    def _table_tensors(self) -> list[Tensor]:
        """Return tables and their moments and counts, which steps change where they stand."""
        found = list[Tensor]()
        for one in self._program.tables:
            state = self._spec.optimizer.state[one.table]
            found += [one.table, *(state[name] for name in ROW_STATE)]
        return found

    def _push_tables(self) -> None:
        """Tell the code where tables lie: in the live tensors, and in those of the optimiser.

        Raises:
            Unsupported: The memory of one is not that of rows one after the other.
        """
        first = len(self._program.dense)
        for one in self._program.tables:
            row_state(self._spec.optimizer.state[one.table], one.table)
        tensors = self._table_tensors()
        if not all(tensor.is_contiguous() for tensor in tensors):
            raise Unsupported("a table whose rows do not lie one after the other")
        for j, struct in enumerate(self._tables[: len(self._program.tables)]):
            values, *state = tensors[4 * j : 4 * j + 4]
            count, width = self._program.params[first + j].shape
            steps, mean, square = (tensor.data_ptr() for tensor in state)
            struct.values, struct.steps = values.data_ptr(), steps
            struct.mean, struct.square = mean, square
            struct.at, struct.count, struct.width = self._offsets[first + j], count, width
            struct.group = self._spec.groups[first + j]
            struct.wide = int(state[0].dtype == torch.float64)

    def push(self) -> None:
        """Take parameters and optimiser state from the live tensors.

        Raises:
            Unsupported: Parameters of one group have taken different numbers of steps, or what a
                mask hides is not finite or is on the move.
        """
        steps: dict[int, set[float]] = {}
        self._push_tables()
        with torch.no_grad():
            for k, param in enumerate(self._program.dense):
                number = self._spec.groups[k]
                names = state_names(self._kind, self._spec.options[number])
                self._part(0, k).copy_(param.detach().reshape(-1))
                parts = [self._part(row, k) for row in (2, 3, 4)]
                taken = read_state(self._spec.optimizer, param, names, parts)
                self._empty_holes(k, parts)
                steps.setdefault(number, set()).add(0.0 if taken is None else taken)
        for number, taken_by in steps.items():
            if len(taken_by) > 1:
                raise Unsupported("parameters of one group have taken different numbers of steps")
            self._groups[number].steps = taken_by.pop()

    def _empty_holes(self, k: int, state: Sequence[Tensor]) -> None:
        """Put zeros where a mask hides a weight: the code skips these places or adds them."""
        if k not in self._shown:
            return
        shown, values = self._shown[k], self._part(0, k)
        values *= shown  # zero times what is not finite is NaN
        if not bool((shown | (values == 0)).all()):
            raise Unsupported("weights behind a mask that are not finite")
        if any(bool((part != part * shown).any()) for part in state):
            raise Unsupported("weights behind a mask that an optimiser has moved")

    def pull(self) -> None:
        """Write parameters and optimiser state to the live tensors; those of tables are live."""
        with torch.no_grad():
            for k, param in enumerate(self._program.dense):
                number = self._spec.groups[k]
                names = state_names(self._kind, self._spec.options[number])
                values = self._part(0, k)
                if k in self._shown:  # what stands behind the mask stays
                    values = torch.where(self._shown[k], values, param.detach().reshape(-1))
                param.copy_(values.reshape(param.shape))
                parts = [self._part(row, k) for row in (2, 3, 4)]
                taken = self._groups[number].steps
                write_state(self._spec.optimizer, param, self._kind, names, parts, taken)
