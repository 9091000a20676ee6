"""Vector-Jacobian products of a function of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pyro_nfvi._compat import is_transformed

Tensors: TypeAlias = tuple[Tensor, ...]


def vjp(function: Callable[..., Any], *points: Tensor) -> Callable[..., Tensors]:
    """Evaluate ``function`` and return the map from cotangents of its outputs to its inputs'.

    ``torch.func.vjp`` without the imports of ``torch._dynamo`` and of sympy that its first product
    makes, more than a second of processor time in every process: autograd itself, unless a
    transform or a compiler of torch is at work. What ``function`` uses beside its inputs is held
    fixed.

    Args:
        function: Returns a tensor or a tuple of them.
        points: Its inputs.

    Cost:
        One forward pass; one backward pass for each call of the result.

    Example:
        >>> import torch
        >>> pull = vjp(lambda x: (x**2, x.sum()), torch.tensor([1.0, 2.0]))
        >>> pull((torch.ones(2), torch.tensor(0.0)))
        (tensor([2., 4.]),)
    """
    if torch.compiler.is_compiling() or is_transformed(unknown=True):
        with torch.no_grad():
            pull: Callable[..., Tensors] = torch.func.vjp(function, *points)[1]
        return pull
    with torch.enable_grad():
        inputs = [point.detach().requires_grad_() for point in points]
        outputs = _as_tuple(function(*inputs))

    def product(cotangents: Tensor | Sequence[Tensor]) -> Tensors:
        pairs = [pair for pair in zip(outputs, _as_tuple(cotangents)) if pair[0].requires_grad]
        if not pairs:
            return tuple(torch.zeros_like(point) for point in inputs)
        # A sum, since autograd.grad imports sympy to look at cotangents.
        with torch.enable_grad():
            total = sum((output * weight.detach()).sum() for output, weight in pairs)
        grads = torch.autograd.grad(total, inputs, retain_graph=True, allow_unused=True)
        return tuple(
            torch.zeros_like(point) if grad is None else grad for point, grad in zip(inputs, grads)
        )

    return product


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, Tensor) else tuple(value)
