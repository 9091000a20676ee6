"""Draws of rows for ArviZ: along their plates, in memory or part by part into a file."""

import contextlib
import importlib.util
import os
import signal

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nfvi import AutoPlateFlow
from pyro_nfvi._optim.stop_reason import StopReason
from pyro_nfvi.errors import FileError, OptionError
from pyro_nfvi.infer._plate_fit import PlateFit
from pyro_nfvi.infer._settings import Settings
from pyro_nfvi.infer._training import Training
from pyro_nfvi.infer._weighted_draws import WeighedDraws

pytest.importorskip("arviz")
HAS_ZARR = importlib.util.find_spec("zarr") is not None
STORES = ["draws.nc", *["draws.zarr"] * HAS_ZARR]


def model():
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("cells", 11, subsample_size=4):
        shape = pyro.sample("shape", dist.Normal(mean, 1.0).to_event(1))
        size = pyro.sample("size", dist.LogNormal(shape.sum(-1), 1.0))
        pyro.sample("y", dist.Normal(size, 1.0), obs=torch.zeros(4))


@pytest.fixture(scope="module")
def fit():
    torch.manual_seed(0)
    guide = AutoPlateFlow(model).setup()
    empty = torch.zeros(0)
    training = Training(empty, StopReason("max_steps", ""), "eager", "", Settings())
    draws = WeighedDraws(torch.zeros(0, 2), empty, empty, exact=False)
    return PlateFit(guide, draws, (), 0.0, 0.0, 0.0, training)


def test_rows_stand_along_their_plate(fit):
    found = fit.to_arviz(num_samples=7, rows={"cells": [3, 8]}, seed=0)["posterior"]
    assert dict(found["size"].sizes) == {"chain": 1, "draw": 7, "cells": 2}
    assert dict(found["shape"].sizes) == {"chain": 1, "draw": 7, "cells": 2, "shape_dim_1": 2}
    assert found["cells"].values.tolist() == [3, 8]
    draws = fit.sample(7, rows={"cells": [3, 8]}, seed=0)
    assert np.array_equal(found["shape"].values[0], draws["shape"].numpy())


@pytest.mark.parametrize("store", STORES)
def test_a_store_is_written_part_by_part(fit, tmp_path, store):
    names = [f"cell {number}" for number in range(11)]
    path = tmp_path / store
    # Memory of three rows or so: four parts.
    found = fit.to_arviz(
        num_samples=5, seed=1, store=path, coords={"cells": names}, memory=5 * 5 * 3 * 500
    )["posterior"]
    assert found["cells"].values.tolist() == names
    assert dict(found["size"].sizes) == {"chain": 1, "draw": 5, "cells": 11}
    parts = list(fit.draw_parts(5, None, 1, 5 * 5 * 3))
    assert len(parts) > 2
    for name, axis in (("size", 1), ("shape", 1)):
        whole = torch.cat([draws[name] for _, _, draws in parts], axis)
        assert np.array_equal(found[name].values[0], whole.numpy())
    assert np.array_equal(found["mean"].values[0], parts[-1][2]["mean"].numpy())
    assert found.attrs["inference_library"] == "pyro_nfvi"
    assert [one.name for one in tmp_path.iterdir()] == [store]


@pytest.mark.parametrize("store", STORES)
def test_a_part_holds_no_more_than_the_stated_memory(fit, tmp_path, store, monkeypatch):
    asked = []
    drawn = PlateFit.draw_parts

    def parts(self, num_samples, rows, seed, numbers):
        for cut, index, draws in drawn(self, num_samples, rows, seed, numbers):
            asked.append((numbers, sum(value.numel() for value in draws.values())))
            yield cut, index, draws

    monkeypatch.setattr(PlateFit, "draw_parts", parts)
    fit.to_arviz(num_samples=40, seed=1, store=tmp_path / store, memory=40 * 8 * 500)
    assert len(asked) > 3
    assert all(held <= numbers == 40 * 8 for numbers, held in asked)


def test_what_cannot_be_written(fit, tmp_path):
    with pytest.raises(OptionError, match="labels for 'cells'"):
        fit.to_arviz(coords={"cells": ["a"]})
    with pytest.raises(OptionError, match="netCDF file.*Zarr folder"):
        fit.to_arviz(store=tmp_path / "draws.csv")
    for name in STORES:
        with pytest.raises(FileError, match="Make the folder"):
            fit.to_arviz(num_samples=2, store=tmp_path / "missing" / name)


def test_a_zarr_folder_is_not_replaced(fit, tmp_path):
    pytest.importorskip("zarr")
    path = tmp_path / "draws.zarr"
    path.mkdir()
    (path / "notes.txt").write_text("mine")
    with pytest.raises(FileError, match="already.*nothing was written"):
        fit.to_arviz(num_samples=2, store=path)
    assert [one.name for one in path.iterdir()] == ["notes.txt"]
    assert list(tmp_path.iterdir()) == [path]


@contextlib.contextmanager
def small_disk(size):
    """Let no file of this process grow beyond a size, an error of the system as a full disk is."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("store", STORES)
def test_a_disk_that_runs_full_leaves_what_was_there(fit, tmp_path, store):
    path = tmp_path / store
    if store.endswith(".nc"):
        path.write_bytes(b"before")
    before = list(tmp_path.iterdir())
    with (
        small_disk(20_000),
        pytest.raises(FileError, match="could not be written to .*: File too large.*Nothing is"),
    ):
        fit.to_arviz(num_samples=5000, store=path, memory=5000 * 10 * 500)
    assert list(tmp_path.iterdir()) == before
    assert not before or path.read_bytes() == b"before"
    fit.to_arviz(num_samples=2, store=tmp_path / f"other{path.suffix}")


@pytest.mark.parametrize("store", STORES)
def test_a_kill_leaves_no_half_store(fit, tmp_path, store):
    path = tmp_path / store
    if store.endswith(".nc"):
        path.write_bytes(b"before")
    child = os.fork()
    if not child:
        drawn = PlateFit.draw_parts

        def parts(self, *args):
            for number, part in enumerate(drawn(self, *args)):
                yield part
                if number == 1:
                    os.kill(os.getpid(), signal.SIGKILL)

        PlateFit.draw_parts = parts
        with contextlib.suppress(BaseException):
            fit.to_arviz(num_samples=5, store=path, memory=5 * 5 * 3 * 500)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert path.exists() == store.endswith(".nc")
    assert not path.exists() or path.read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1 + path.exists()  # the draft of the one that is gone
    found = fit.to_arviz(num_samples=2, store=path)["posterior"]
    assert dict(found["size"].sizes) == {"chain": 1, "draw": 2, "cells": 11}
    assert list(tmp_path.iterdir()) == [path]
