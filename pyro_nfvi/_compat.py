"""Attributes that some releases of PyTorch lack, and private ones: the one place to look them up.

Private names are no promise: a release may take any of them away. What stands on one then does
without, and says so: the import of the package never depends on them. Operations of ATen are looked
up in ``_operators.py`` instead.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MixtureSameFamily, constraints

#: The support of a mixture of one family, where it has a class of its own (PyTorch 2.13 does);
#: earlier, a mixture gave the support of its components. For ``isinstance``.
MIXTURE_SUPPORTS: tuple[type, ...] = tuple(
    cls
    for cls in [getattr(constraints, "MixtureSameFamilyConstraint", None)]
    if isinstance(cls, type)
)


def started(fn: Distribution, value: Tensor) -> Tensor:
    """Return the first value of a site in the dtype that it has on every release.

    Where the support of a mixture has a class of its own, Pyro finds no start for a mixture over
    vectors, and ours is of the default dtype at least; earlier, Pyro's has the dtype of draws.
    """
    while isinstance(fn, Independent):
        fn = fn.base_dist
    if MIXTURE_SUPPORTS or not (isinstance(fn, MixtureSameFamily) and fn.event_shape):
        return value
    return value.to(torch.promote_types(value.dtype, torch.get_default_dtype()))


def writes_checksums() -> bool:
    """Tell whether ``torch.save`` writes the checksum of each tensor.

    PyTorch 2.6 brought an option that leaves them out; before, they were always written.
    """
    option = getattr(torch.serialization, "get_crc32_options", None)
    return True if option is None else bool(option())


# ------------------------------------------------------------------------------ private names


def _private(module: str, *attributes: str) -> Any:
    """Return a private attribute of PyTorch, or None where this release lacks it."""
    try:
        found: Any = importlib.import_module(module)
    except ImportError:
        return None
    for attribute in attributes:
        found = getattr(found, attribute, None)
    return found


_PRIVATE = {
    "TorchDispatchMode": _private("torch.utils._python_dispatch", "TorchDispatchMode"),
    "_disable_current_modes": _private("torch.utils._python_dispatch", "_disable_current_modes"),
    "_len_torch_dispatch_stack": _private("torch._C", "_len_torch_dispatch_stack"),
    "_current_autograd_node": _private("torch._C", "_current_autograd_node"),
    "maybe_current_level": _private("torch._C", "_functorch", "maybe_current_level"),
}


def lacking(*names: str) -> str | None:
    """Say which of some private names this PyTorch lacks, or None.

    Args:
        names: Without their modules.

    Example:
        >>> lacking("TorchDispatchMode") is None
        True
    """
    gone = [name for name in names if _PRIVATE[name] is None]
    return f"PyTorch {torch.__version__} has no {', '.join(gone)}" if gone else None


def _needed(name: str) -> Any:
    reason = lacking(name)
    if reason is not None:
        raise NotImplementedError(reason)
    return _PRIVATE[name]


if TYPE_CHECKING:
    from torch.utils._python_dispatch import TorchDispatchMode as DispatchMode
else:

    class _NoMode:
        """Stands for the class of modes that look at operations, where there is none."""

        def __enter__(self) -> None:
            _needed("TorchDispatchMode")

        def __exit__(self, *_: object) -> None:
            """Do nothing: nothing was entered."""

    #: The base class of modes that look at the operations run within them. Where PyTorch has none,
    #: to enter one raises NotImplementedError, with that as the reason.
    DispatchMode = _PRIVATE["TorchDispatchMode"] or _NoMode


def without_modes() -> AbstractContextManager[Any]:
    """Return a context within which no mode sees the operations.

    Raises:
        NotImplementedError: This PyTorch has none.
    """
    found: AbstractContextManager[Any] = _needed("_disable_current_modes")()
    return found


def is_watched(*, unknown: bool = False) -> bool:
    """Tell whether a mode sees the operations that run now.

    Args:
        unknown: The answer where this PyTorch does not say.
    """
    count = _PRIVATE["_len_torch_dispatch_stack"]
    return unknown if count is None else count() > 0


def is_transformed(*, unknown: bool = False) -> bool:
    """Tell whether a transform such as ``torch.func.vmap`` is at work.

    Args:
        unknown: The answer where this PyTorch does not say.
    """
    level = _PRIVATE["maybe_current_level"]
    return unknown if level is None else level() is not None


def autograd_node() -> Any:
    """Return the node of autograd's graph whose backward pass runs now, or None.

    Raises:
        NotImplementedError: This PyTorch does not say.
    """
    return _needed("_current_autograd_node")()
