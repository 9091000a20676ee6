"""Many fits on a cluster of Dask, with workers that are processes and may die."""

from __future__ import annotations

import os

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_nfvi as nfvi

pytestmark = [
    pytest.mark.slow,
    # Of the cluster's own threads and sockets, when it closes.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
FAST = {
    "guide": "affine", "max_steps": 30, "engine": "eager", "stop": False, "explore": "off",
}  # fmt: skip
Y = torch.tensor([0.3, -1.2, 0.8, 1.9])


def conjugate(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def spec(model=conjugate, **options):
    return nfvi.FitSpec(model, (Y,), options={**FAST, **options})


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):  # fmt: skip
        yield client


def test_fits_are_those_of_this_process(client, tmp_path):
    specs = [*spec().seeds(2), *spec().k_fold(2)]
    here = nfvi.map_fits(specs, num_workers=1, progress=False)
    there = nfvi.map_fits(specs, client, folder=tmp_path, progress=False)
    assert there.failed == ()
    assert [row.record.elbo for row in there] == [row.record.elbo for row in here]
    assert torch.equal(there[2].lpd, here[2].lpd)
    assert there[0].load().sample(3)["mu"].shape == (3,)
    again = nfvi.map_fits(specs, client, folder=tmp_path, progress=False)
    assert [row.attempts for row in again] == [0, 0, 0, 0]


def test_a_failing_fit_and_a_dying_worker_lose_no_other(client, tmp_path):
    main, once = os.getpid(), str(tmp_path / "died")

    def failing(y):
        raise ArithmeticError("no luck")

    def dying_once(y):
        if os.getpid() != main and not os.path.exists(once):
            open(once, "w").close()
            os._exit(1)
        conjugate(y)

    table = nfvi.map_fits([spec(failing), spec(dying_once), spec()], client, progress=False)
    assert [bool(row.error) for row in table] == [True, False, False]
    assert "no luck" in table[0].error


def test_a_fit_that_kills_every_worker_is_one_failed_row(client):
    main = os.getpid()

    def deadly(y):
        if os.getpid() != main:
            os._exit(1)

    table = nfvi.map_fits([spec(deadly), *spec().seeds(2)], client, progress=False)
    assert "KilledWorker" in table[0].error
    assert table[0].attempts == 2
    assert [row.error for row in table[1:]] == ["", ""]


def test_calibration_runs_there_too(client):
    options = {"num_simulations": 3, "seed": 0, "progress": False, **FAST}
    here = nfvi.vsbc(conjugate, (Y,), num_workers=1, **options)
    there = nfvi.vsbc(conjugate, (Y,), executor=client, **options)
    assert torch.equal(here.p["mu"], there.p["mu"])
    assert "over an executor" in str(there.summary())
