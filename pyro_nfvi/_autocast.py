"""Full precision under autocast: log densities do not survive eight bits of mantissa."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: Device types on which autocast may be active.
_KINDS = ("cpu", "cuda", "xpu")
_HALF = (torch.float16, torch.bfloat16)


def lift(value: Any) -> Any:
    """Return a half-precision tensor as float32, anything else as it is.

    Example:
        >>> import torch
        >>> lift(torch.ones(2, dtype=torch.bfloat16)).dtype, lift("text")
        (torch.float32, 'text')
    """
    return value.float() if isinstance(value, Tensor) and value.dtype in _HALF else value


def full_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for a half-precision type, any other as it is.

    Example:
        >>> full_dtype(torch.bfloat16), full_dtype(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.float32 if dtype in _HALF else dtype


def _active() -> list[str]:
    return [kind for kind in _KINDS if torch.is_autocast_enabled(kind)]


def full_precision(method: Callable[_P, _T]) -> Callable[_P, _T]:
    """Run a function outside of autocast, its half-precision arguments there lifted to float32.

    Sums of many terms, log-determinants and inverses need 24 bits: a sum over 784 pixels in
    bfloat16 is off by a nat. Without autocast the function is called as it is.

    Example:
        >>> import torch
        >>> product = full_precision(torch.matmul)
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     product(torch.ones(2, 2), torch.ones(2, 2)).dtype
        torch.float32
    """

    @functools.wraps(method)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        kinds = _active()
        if not kinds:
            return method(*args, **kwargs)
        # One device type at a time: they nest, and two at once do not occur.
        with torch.autocast(kinds[0], enabled=False):
            lifted = {name: lift(value) for name, value in kwargs.items()}
            return run(*map(lift, args), **lifted)

    return run


def _lifted(method: Callable[..., _T]) -> Callable[..., _T]:
    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> _T:
        return method(*map(lift, args), **{name: lift(value) for name, value in kwargs.items()})

    return run


def in_full_precision(cls: type, names: tuple[str, ...], *, always: bool = False) -> None:
    """Let those of a class's own methods that have these names run in full precision.

    Called from ``__init_subclass__``, so that subclasses of users are on the island too.

    Args:
        cls: The class.
        names: Names of methods.
        always: Lift half-precision arguments without autocast too.
    """
    for name in names:
        own = cls.__dict__.get(name)
        if callable(own) and not getattr(own, "__isabstractmethod__", False):
            setattr(cls, name, full_precision(_lifted(own) if always else own))
