"""Imports of other packages in the midst of a call, which leave the process as it was."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

#: Beginnings of the environment variables that PyTorch's compiler sets on import.
_COMPILER = ("TORCHINDUCTOR_", "TRITON_")


@contextmanager
def process_kept() -> Iterator[None]:
    """Undo what imports inside of the block do to the process.

    scipy and sympy add warning filters of their own; ``torch._dynamo``, which operations on the
    meta device import too, sets variables of the environment, and ``torch.compile`` turns the
    validation of distributions off.

    Example:
        >>> import warnings
        >>> before = list(warnings.filters)
        >>> with process_kept():
        ...     warnings.simplefilter("ignore")
        >>> warnings.filters == before
        True
    """
    before = set(os.environ)
    # The conversion to ArviZ also runs where PyTorch is not installed.
    torch = sys.modules.get("torch.distributions")
    validation = torch.Distribution._validate_args if torch else None
    with warnings.catch_warnings():
        try:
            yield
        finally:
            if torch:
                torch.Distribution.set_default_validate_args(validation)
            for name in set(os.environ) - before:
                if name.startswith(_COMPILER):
                    del os.environ[name]
