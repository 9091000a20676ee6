"""The work of one evaluation of a density: counted, not timed, so that it is the same twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_nfvi._compat import DispatchMode
from pyro_nfvi._pyro_model.external_density import EXTERNAL, external_work
from pyro_nfvi._pyro_model.recipe import WORK

#: Parts of the names of factorisations, whose work grows with the last dimension of their input.
_CUBIC = ("linalg", "cholesky", "solve")


def work_of_rows(density: Callable[[Tensor], Tensor], z: Tensor) -> float:
    """Count the work of one call of a density: numbers that its operations read or write.

    An operation counts 5000 besides for being called; of a matrix product a sixteenth of its
    floating-point operations count, and factorisations take the last dimension of their input as a
    factor. A log density of NumPy arrays (:class:`ExternalDensity`) counts by its rows; other work
    that is not done by PyTorch is not seen.

    Args:
        density: ``(N, D) -> (N,)``.
        z: Rows ``(N, D)``.

    Cost:
        One call.

    Example:
        >>> import torch
        >>> work_of_rows(lambda z: z.square().sum(-1), torch.zeros(1000, 10))
        30000.0
    """
    counter = _Counter()
    with torch.no_grad(), counter:
        density(z)
    return float(counter.work)


class _Counter(DispatchMode):
    """Adds up the work of all that runs within it."""

    def __init__(self) -> None:
        # Not imported with the package: its own imports take milliseconds.
        from torch.utils.flop_counter import flop_registry

        super().__init__()
        self.work, self.flops = 0, flop_registry

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first use imports torch's compiler, for most of a second

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is EXTERNAL:
            self.work += external_work(*args)
            return out
        if getattr(func, "is_view", False):
            return out
        given = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)]
        tensors = [*given, *(x for x in tree_leaves(out) if isinstance(x, Tensor))]
        work = max((x.numel() for x in tensors), default=0)
        packet = func.overloadpacket
        if packet in self.flops:
            work += self.flops[packet](*args, **(kwargs or {}), out_val=out) // WORK.product
        elif any(part in func.__name__ for part in _CUBIC):
            work *= max((x.shape[-1] for x in given if x.dim()), default=1)
        self.work += work + WORK.call
        return out
