"""The captured graph through torch's own compiler."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_nfvi._engine.program import Program, Unsupported


def compiled(program: Program) -> Callable[..., tuple[Tensor, ...]]:
    """Compile the graph of a program with ``torch.compile``.

    Takes from seconds to a minute; the graph is then run by Python, one call for each step.

    Raises:
        Unsupported: The compiler fails; the message is its own.
    """
    run = torch.compile(program.graph, fullgraph=True, dynamic=False)
    inputs = [
        *(param.detach() for param in program.params),
        program.eps,
        *program.streams.values(),
        *program.consts,
    ]
    try:
        with torch.no_grad():
            run(*inputs)
    except Exception as error:  # a compiler may fail in any way
        lines = str(error).strip().splitlines() or [""]
        raise Unsupported(
            f"torch.compile failed: {type(error).__name__}: {lines[0][:200]}"
        ) from error
    return run
