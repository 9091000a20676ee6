"""Gradient clipping: the norm of the whole gradient, bounded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def clip_gradient(params: Sequence[Tensor], most: float) -> bool:
    r"""Scale the gradient of all parameters together to a norm of at most ``most``, in place.

    .. math:: g \leftarrow g \min\left(1, \frac{c}{\|g\|}\right)

    Args:
        params: Leaves with gradients, dense or sparse; one without counts as zero.
        most: The bound c.

    Returns:
        True if the norm is finite. Where it is not, the gradient means nothing.

    Source: Pascanu, Mikolov and Bengio 2013, arXiv:1211.5063, algorithm 1.

    Example:
        >>> import torch
        >>> x = torch.zeros(2, requires_grad=True)
        >>> x.grad = torch.tensor([3.0, 4.0])
        >>> clip_gradient([x], 1.0), x.grad
        (True, tensor([0.6000, 0.8000]))
    """
    sparse = [param for param in params if param.grad is not None and param.grad.is_sparse]
    if not sparse:
        return bool(torch.isfinite(torch.nn.utils.clip_grad_norm_(params, most)))
    for param in sparse:
        assert param.grad is not None
        param.grad = param.grad.coalesce()  # a row that came twice is one row of the gradient
    parts = [_numbers(param.grad) for param in params if param.grad is not None]
    norm = torch.stack([torch.linalg.vector_norm(part) for part in parts]).norm()
    if not bool(torch.isfinite(norm)):
        return False
    factor = float(most / (norm + 1e-6))  # as torch has it
    if factor < 1:
        for part in parts:
            part.mul_(factor)
    return True


def _numbers(gradient: Tensor) -> Tensor:
    """Return the tensor that holds the numbers of a gradient, not a copy."""
    return gradient._values() if gradient.is_sparse else gradient.detach()
