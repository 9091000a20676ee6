"""The converter that is proposed for ArviZ 1, with a stand-in for Pyro's ``MCMC``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

az = pytest.importorskip("arviz")
if int(az.__version__.split(".")[0]) < 1:
    pytest.skip("this is the leg of ArviZ 1", allow_module_level=True)

PATH = Path(__file__).resolve().parents[2] / "docs" / "upstream" / "io_pyro.py"
if not PATH.is_file():
    pytest.skip("the proposal is in the repository alone", allow_module_level=True)


class Run:
    """What the converter reads of a run without a model."""

    def get_samples(self, *, group_by_chain):
        draws = np.arange(40.0).reshape(2, 10, 2)
        return {"theta": draws if group_by_chain else draws.reshape(20, 2)}

    def diagnostics(self):
        return {"divergences": {"chain 0": [3], "chain 1": []}}


def test_a_run_and_predictions():
    spec = importlib.util.spec_from_file_location("io_pyro", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tree = module.from_pyro(
        Run(),
        prior={"theta": np.zeros((5, 2)), "y": np.ones((5, 3))},
        posterior_predictive={"y": np.zeros((20, 3))},
        constant_data={"x": np.arange(3.0)},
        dims={"theta": ["school"]},
        coords={"school": ["a", "b"]},
    )
    assert tree["posterior"]["theta"].dims == ("chain", "draw", "school")
    assert tree["posterior_predictive"]["y"].shape == (2, 10, 3)
    assert set(tree["prior"].data_vars) == {"theta"}
    assert set(tree["prior_predictive"].data_vars) == {"y"}
    assert tree["constant_data"]["x"].shape == (3,)
    assert int(tree["sample_stats"]["diverging"].sum()) == 1
    assert len(az.summary(tree)) == 2
