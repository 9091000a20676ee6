"""What some supported releases of PyTorch lack: the one place that looks for it.

Operations of ATen are looked up in ``engine/operators.py`` instead.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MixtureSameFamily, constraints

__all__ = ["MIXTURE_SUPPORTS", "started", "writes_checksums"]

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
    """Whether ``torch.save`` writes the checksum of each tensor.

    PyTorch 2.6 brought an option that leaves them out; before, they were always written.
    """
    option = getattr(torch.serialization, "get_crc32_options", None)
    return True if option is None else bool(option())
