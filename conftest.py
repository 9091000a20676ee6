"""What every test and doctest starts from: one seed, one thread, an empty param store.

It stands at the root, not in tests/, because the doctests of the package need it as well.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")

#: A plugin of the run that checks shapes (make test-shapes), which it changes imports for.
collect_ignore = ["tests/shapes.py"]

#: CPU seconds of its own process that one test outside of the slow set may take: four times the
#: longest of today on a busy machine.
CPU_LIMIT = 25.0
#: Members of catalogues that are in the slow set; of these, ids that no test has, and tests of
#: which no member is left in the fast set.
SLOW_MEMBERS = Path(__file__).with_name("tests") / "slow_members.txt"
STALE_MEMBERS = pytest.StashKey[list[str]]()
EMPTIED = pytest.StashKey[list[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what ``tests/slow_members.txt`` lists as slow, before marks are selected by."""
    lines = SLOW_MEMBERS.read_text("utf-8").splitlines()
    listed = {line for line in lines if line and not line.startswith("#")}
    seen, fast = set(), set()
    for item in items:
        test = item.nodeid.split("[")[0]
        if item.nodeid in listed:
            item.add_marker(pytest.mark.slow)
            seen |= {item.nodeid, test, test.split("::")[0]}
        elif item.get_closest_marker("slow") is None:
            fast.add(test)
            seen.add(test.split("::")[0])
    # Only a file that was collected as a whole shows all members.
    if any("::" in arg for arg in config.args):
        listed = set()
    listed = {one for one in listed if one.split("::")[0] in seen}
    config.stash[STALE_MEMBERS] = sorted(listed - seen)
    config.stash[EMPTIED] = sorted({one.split("[")[0] for one in listed & seen} - fast)


def pytest_collection_finish() -> None:
    """Leave what collection made, which lives until the end, out of every garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def slow_members(request: pytest.FixtureRequest) -> tuple[list[str], list[str]]:
    """Wrong lines of ``tests/slow_members.txt`` among the collected files: stale, and emptied."""
    return request.config.stash[STALE_MEMBERS], request.config.stash[EMPTIED]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test outside of the slow set that takes more than its share of the fast suite."""
    start = time.process_time()
    result = yield
    taken = time.process_time() - start
    if taken > CPU_LIMIT and item.get_closest_marker("slow") is None:
        pytest.fail(
            f"Took {taken:.0f} CPU seconds, and a test of the fast suite has {CPU_LIMIT:.0f}. "
            "Make it cheaper, or mark it slow."
        )
    return result


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
