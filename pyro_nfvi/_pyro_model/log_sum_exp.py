"""Sum-product in log space as an opt_einsum backend that works under ``torch.vmap``.

Pyro's own backend exponentiates and takes a guarded logarithm, which ``vmap`` does not know. The
functions bear the names that opt_einsum looks for.
"""

from __future__ import annotations

import torch
from pyro.ops.einsum.util import Tensordot
from torch import Tensor


def transpose(a: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Reorder axes."""
    return a.permute(axes)


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Add operands along shared labels and take log-sum-exp over labels that are not in the output.

    Example:
        >>> import torch
        >>> float(einsum("a->", torch.zeros(4)).exp().round())
        4.0
    """
    inputs, output = equation.split("->")
    gone = sorted(set(inputs) - set(output) - {","})
    order = [*output, *gone]
    total: Tensor | None = None
    for labels, operand in zip(inputs.split(","), operands):
        here = [label for label in order if label in labels]
        aligned = operand.permute([labels.index(label) for label in here])
        for place, label in enumerate(order):
            if label not in labels:
                aligned = aligned.unsqueeze(place)
        total = aligned if total is None else total + aligned
    assert total is not None
    if not gone:
        return total
    return torch.logsumexp(total, dim=tuple(range(len(output), len(order))))


tensordot = Tensordot(einsum)
