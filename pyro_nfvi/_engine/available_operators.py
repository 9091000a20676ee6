"""Operations of PyTorch that a recording needs."""

from __future__ import annotations

from typing import Any

import torch

from pyro_nfvi._engine.program import Unsupported
from pyro_nfvi._operators import Missing


def present(operation: Any) -> Any:
    """Return an operation, which has to be there.

    Raises:
        Unsupported: This PyTorch lacks it.
    """
    if isinstance(operation, Missing):
        raise Unsupported(f"PyTorch {torch.__version__} has no operation {operation.name}")
    return operation
