"""What every test and doctest starts from: one seed, one thread, an empty param store.

It stands at the root, not in tests/, because the doctests of the package need it as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")

#: A plugin of the run that checks shapes (make test-shapes), which it changes imports for.
collect_ignore = ["tests/shapes.py"]


@pytest.fixture(autouse=True)
def _clean_slate() -> Iterator[None]:
    """Seed, scope the param store, and put the global switches back afterwards."""
    import pyro
    import torch

    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    validation = torch.distributions.Distribution._validate_args
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    with pyro.get_param_store().scope():
        yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    torch.distributions.Distribution.set_default_validate_args(validation)
