"""Adam, Adamax and L-BFGS of PyTorch, without the import of PyTorch's compiler."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

_Base = torch.optim.Optimizer


class _WithoutCompiler(torch.optim.Optimizer):
    """Bookkeeping of an optimiser as it is below the wrappers that concern ``torch.compile``.

    The first call of a wrapper imports ``torch._dynamo``, and sympy with it: more than a second of
    processor time in each process, and longer than all steps of a small fit.
    """

    add_param_group = inspect.unwrap(_Base.add_param_group)
    state_dict = inspect.unwrap(_Base.state_dict)
    load_state_dict = inspect.unwrap(_Base.load_state_dict)
    zero_grad = inspect.unwrap(_Base.zero_grad)


class Adam(_WithoutCompiler, torch.optim.Adam):
    """PyTorch's Adam: same options, same state, same numbers.

    Cost:
        The first one of a process saves about a second.

    Source: Kingma and Ba 2015, Adam: a method for stochastic optimization, ICLR.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> adam = Adam([x], lr=0.1)
        >>> x.sum().backward()
        >>> adam.step()
        >>> round(float(x[0].detach()), 4)
        0.9
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step, without a graph of autograd's."""
        with torch.no_grad():
            return _ADAM_STEP(self, closure)


class Adamax(_WithoutCompiler, torch.optim.Adamax):
    """PyTorch's Adamax: same options, same state, same numbers."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step, without a graph of autograd's."""
        with torch.no_grad():
            return _ADAMAX_STEP(self, closure)


_ADAM_STEP: Callable[..., Any] = inspect.unwrap(torch.optim.Adam.step)
_ADAMAX_STEP: Callable[..., Any] = inspect.unwrap(torch.optim.Adamax.step)


class LBFGS(_WithoutCompiler, torch.optim.LBFGS):
    """PyTorch's L-BFGS: same options, same state, same numbers."""
