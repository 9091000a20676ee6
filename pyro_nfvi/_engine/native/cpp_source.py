"""The whole source of a step: our headers, the buffers, the loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from torch import Tensor
from torch.fx import GraphModule, Node

from pyro_nfvi._engine.native import (
    concatenation as assemble,
)
from pyro_nfvi._engine.native import (
    creation as create,
)
from pyro_nfvi._engine.native import (
    formulas,
    indexing,
    linalg,
    matmul,
    pointwise,
    scans,
    target_rule,
    views,
)
from pyro_nfvi._engine.native import (
    masked_solve_rule as masked,
)
from pyro_nfvi._engine.native import (
    reductions as reduce,
)
from pyro_nfvi._engine.native.buffers import Buffer
from pyro_nfvi._engine.native.cpp_loops import emit_group
from pyro_nfvi._engine.native.eager_calls import EagerOperation, lower_eagerly
from pyro_nfvi._engine.native.loops import Group, fuse
from pyro_nfvi._engine.native.lowering import Lowering
from pyro_nfvi._engine.native.memory_plan import Slot, place, unread
from pyro_nfvi._engine.native.sparse_weights import Masked
from pyro_nfvi._engine.program import Unsupported

#: The rules register themselves.
_RULES = (
    assemble,
    create,
    formulas,
    indexing,
    linalg,
    masked,
    matmul,
    pointwise,
    reduce,
    scans,
    target_rule,
    views,
)
#: Loops of a step at most: a compiler takes some 6 ms for each, so that these take 72 s.
_MAX_LOOPS = 12_000
#: Characters of a function, about, at which the next one begins: compilers slow down on long ones.
_FUNCTION_LENGTH = 4_000


@dataclass(frozen=True)
class Source:
    """Generated code, and what it has to be given.

    Attributes:
        text: One translation unit, without the entry points.
        data: Known tensors it reads.
        outputs: Type and size of each output.
        loops: How many loops and calls it has.
        eager: Operations for which it calls PyTorch.
    """

    text: str
    data: tuple[Tensor, ...]
    outputs: tuple[tuple[str, int], ...]
    loops: int
    eager: tuple[EagerOperation, ...] = ()


@lru_cache(maxsize=8)
def header(name: str) -> str:
    """Return the text of one of our C++ headers."""
    return (files("pyro_nfvi._engine.native") / "cpp" / name).read_text("utf-8")


def generate(
    graph: GraphModule,
    constants: Mapping[Node, Tensor],
    rows: int | None = None,
    masked: Sequence[Masked] = (),
    *,
    eager: bool = False,
) -> Source:
    """Generate ``static void step(Ctx*)`` from a graph.

    Args:
        graph: A functional graph.
        constants: Values of the nodes that are known.
        rows: Number of particles, for which memory is laid out.
        masked: Parameters that are zero where their masks are, by the caller's promise.
        eager: Leave to PyTorch what has no rule.

    Raises:
        Unsupported: An operation, or a use of one, has no rule.
    """
    try:
        low = Lowering(graph, constants, rows, masked, lower_eagerly if eager else None)
    except RecursionError as error:
        raise Unsupported("a formula that is nested too deeply") from error
    groups = fuse(low.body)
    if len(groups) > _MAX_LOOPS:
        raise Unsupported(f"a step of {len(groups)} loops, which would take minutes to compile")
    without = unread(groups, low.outputs)
    where, slots = place(groups, without)
    names = {buffer: f"w.{slot.name}" for buffer, slot in where.items()}
    for k, buffer in enumerate(low.inputs):
        names[buffer] = f"(const {buffer.ctype}*)cx->in[{k}]"
    for k, buffer in enumerate(low.outputs):
        names[buffer] = f"({buffer.ctype}*)cx->out[{k}]"
    parts = _functions(groups, without, names, _data_names(low))
    calls = "".join(f"part{k}(cx,w);" for k in range(len(parts)))
    text = "\n".join(
        [
            header("elementary.h"),
            header("base.h"),
            header("special.h"),
            header("gemm.h"),
            header("gemv.h"),
            header("holes.h"),
            header("linalg.h"),
            header("masked.h"),
            _work(slots),
            *parts,
            f"static void step(Ctx* cx){{Work& w=*(Work*)cx->work;{calls}}}",
            "#define NFVI_WORK sizeof(Work)",
        ]
    )
    outputs = tuple((b.ctype, b.size) for b in low.outputs)
    return Source(text, tuple(low.data), outputs, len(groups), tuple(low.eager))


def _data_names(low: Lowering) -> dict[str, str]:
    return {f"k{k}": f"cx->data[{k}]" for k in range(len(low.data))}


def _work(slots: list[Slot]) -> str:
    fields = "".join(f"alignas(64) {s.ctype} {s.name}[{s.size}];" for s in slots)
    return f"struct Work{{{fields or 'char none;'}}};"


def _functions(
    groups: list[Group], without: set[Buffer], names: Mapping[Buffer, str], data: Mapping[str, str]
) -> list[str]:
    """Write the groups into functions of bounded length."""
    made: list[str] = []
    body: list[str] = []
    used: dict[str, Buffer] = {}
    length = 0

    def close() -> None:
        pointers = []
        for name, buffer in used.items():
            if name in data:
                pointers.append(
                    f"const {buffer.ctype}* {name}=(const {buffer.ctype}*){data[name]};"
                )
            elif buffer in names:
                const = "const " if name.startswith("in") else ""
                pointers.append(f"{const}{buffer.ctype}* {name}={names[buffer]};")
        made.append(
            f"static __attribute__((noinline)) void part{len(made)}(Ctx* cx,Work& w){{\n"
            + "\n".join([*pointers, *body])
            + "\n}"
        )

    for group in groups:
        call = group.call
        text = f"{{{call.text}}}" if call is not None else emit_group(group, without)
        touched = group.reads | group.writes
        if call is not None:
            touched = set(call.reads) | set(call.writes)
        if body and length + len(text) > _FUNCTION_LENGTH:
            close()
            body, used, length = [], {}, 0
        body.append(text)
        length += len(text)
        for buffer in sorted(touched, key=lambda b: b.name):
            if buffer not in without:
                used[buffer.name] = buffer
    if body:
        close()
    return made
