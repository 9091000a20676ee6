"""A log density with its gradient by autograd."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pyro_nfvi._chain_rule import score
from pyro_nfvi._typing import TensorPair


class AutogradDensity:
    """A differentiable log density with the gradient of autograd.

    Args:
        log_density: ``(N, D) -> (N,)``, in nats, rows independent.

    Example:
        >>> import torch
        >>> density = AutogradDensity(lambda z: -0.5 * z.square().sum(-1))
        >>> density.value_and_grad(torch.tensor([[3.0, 4.0]]))
        (tensor([-12.5000]), tensor([[-3., -4.]]))
    """

    def __init__(self, log_density: Callable[[Tensor], Tensor]) -> None:
        self._log_density = log_density

    def value_and_grad(self, z: Tensor) -> TensorPair:
        """Return log density and gradient; see :func:`pyro_nfvi._chain_rule.score`."""
        log_p, gradient, _ = score(self._log_density, z)
        return log_p, gradient
