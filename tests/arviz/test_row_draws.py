"""Draws of rows for ArviZ: along their plates, in memory or part by part into a file."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nfvi import AutoPlateFlow
from pyro_nfvi._optim.stop_reason import StopReason
from pyro_nfvi.arviz import _row_draws
from pyro_nfvi.errors import FileError, OptionError
from pyro_nfvi.infer._plate_fit import PlateFit
from pyro_nfvi.infer._settings import Settings
from pyro_nfvi.infer._training import Training
from pyro_nfvi.infer._weighted_draws import WeighedDraws

pytest.importorskip("arviz")


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


def test_a_store_is_written_part_by_part(fit, tmp_path):
    names = [f"cell {number}" for number in range(11)]
    path = tmp_path / "draws.nc"
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


def test_what_cannot_be_written(fit, tmp_path):
    with pytest.raises(OptionError, match="labels for 'cells'"):
        fit.to_arviz(coords={"cells": ["a"]})
    with pytest.raises(OptionError, match="to_zarr"):
        fit.to_arviz(store=tmp_path / "draws.zarr")
    with pytest.raises(FileError):
        fit.to_arviz(num_samples=2, store=tmp_path / "missing" / "draws.nc")


def test_a_disk_that_runs_full_leaves_the_file_that_was_there(fit, tmp_path, monkeypatch):
    path = tmp_path / "draws.nc"
    path.write_bytes(b"before")

    def full(draft, *args):
        draft.write_bytes(b"some of it")
        raise RuntimeError("Can't write data (file write failed: errno = 28, error message = ...)")

    monkeypatch.setattr(_row_draws, "_write", full)
    with pytest.raises(FileError, match="could not be written.*No space left.*as it was"):
        fit.to_arviz(num_samples=2, store=path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
