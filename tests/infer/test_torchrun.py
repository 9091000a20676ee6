"""Fits under torchrun: the numbers of one process, and an end with a word where one is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from pyro_nfvi._processes.exchange import Exchange, ProcessLost, span
from pyro_nfvi._processes.process_group import join_processes, writes_files
from pyro_nfvi._processes.row_service import RowService
from pyro_nfvi.infer._distributed_fit import DistributedFit, distributed_fit

ROOT = Path(__file__).resolve().parents[2]


# --------------------------------------------------------------- rows over several processes


def function(rows, indices):
    """A function of rows that fails at numbers above 100 where it is not alone."""
    if rows.dtype == torch.float32 and bool((rows > 100).any()) and len(rows) < 5:
        raise ArithmeticError("in a part")
    values = rows.square().sum(-1) + indices["i"].sum()
    return values, 2 * rows


def serve(rank, size, path, answers):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=size)
    service = RowService(function, ("i",), 3, Exchange(rank, size))
    if rank:
        service.serve()
        dist.destroy_process_group()
        return
    found = {}
    for count in (1, size, 7, 500):
        for dtype in (torch.float32, torch.float64):
            rows = torch.arange(3.0 * count, dtype=dtype).reshape(count, 3) / 100
            index = {"i": torch.arange(count % 5)}
            own, shared = function(rows, index), service.evaluate(rows, index)
            found[count, dtype] = all(map(torch.equal, own, shared))
    # Where a part fails, the first process evaluates all rows.
    rows = torch.full((6, 3), 200.0)
    one = service.evaluate(rows, {"i": torch.arange(2)})
    found["fails"] = torch.equal(one[1], 2 * rows)
    service.end()
    dist.destroy_process_group()
    torch.save(found, answers)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_rows_over_processes_are_those_of_one(size, tmp_path):
    answers = tmp_path / "answers"
    multiprocessing.spawn(serve, (size, str(tmp_path / "meet"), str(answers)), size)
    found = torch.load(answers)
    assert len(found) == 9
    assert all(found.values()), found


def hang(rank, size, path, answers):
    from datetime import timedelta

    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=size)
    exchange = Exchange(rank, size, patience=timedelta(seconds=3))
    exchange.sum(torch.ones(3))
    if rank:
        time.sleep(20)
        os._exit(0)
    begin = time.monotonic()
    try:
        exchange.sum(torch.ones(3))
    except ProcessLost as error:
        Path(answers).write_text(f"{time.monotonic() - begin} {error}")
    os._exit(0)


@pytest.mark.slow
def test_a_process_that_hangs_is_given_up(tmp_path):
    answers = tmp_path / "answers"
    multiprocessing.spawn(hang, (2, str(tmp_path / "meet"), str(answers)), 2)
    seconds, words = answers.read_text().split(maxsplit=1)
    assert 3 <= float(seconds) < 15
    assert words == "it gave no answer within 3 s"


@pytest.mark.parametrize(("count", "size"), [(0, 2), (1, 4), (7, 3), (64, 4)])
def test_parts_cover_all_rows_once(count, size):
    spans = [span(count, rank, size) for rank in range(size)]
    assert [row for start, stop in spans for row in range(start, stop)] == list(range(count))
    assert max(stop - start for start, stop in spans) <= -(-count // size)


def test_one_process_is_no_team(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert distributed_fit() is None
    assert writes_files()
    monkeypatch.setenv("WORLD_SIZE", "4")  # of a launcher that says no more
    assert distributed_fit() is None
    for name, value in {"RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert distributed_fit() is None
    from pyro_nfvi._processes.tasks import TaskRun

    monkeypatch.setenv("WORLD_SIZE", "2")
    ((_, outcome),) = TaskRun(lambda _: distributed_fit() is None).run([0])
    assert outcome.value is True


def test_processes_with_other_data_or_seeds_are_refused(monkeypatch):
    from pyro_nfvi.errors import NFVIError, OptionError
    from pyro_nfvi.infer import _distributed_fit as module

    monkeypatch.setattr(module.dist, "monitored_barrier", lambda *_, **__: None)
    y = torch.ones(3)
    mine = module.fingerprint((y,), {})["arguments"]
    for other, says in (((0, "other"), "data other"), ((1, mine), "another seed other")):
        monkeypatch.setattr(Exchange, "all", lambda *_, other=other: [(0, mine), other])
        with pytest.raises(OptionError, match=f"Process 1 fits with {says}"):
            DistributedFit(Exchange(0, 2)).agree(0, (y,), {})
    monkeypatch.setattr(Exchange, "all", lambda *_: [(0, mine)] * 2)
    DistributedFit(Exchange(0, 2)).agree(0, (y,), {})

    def missing(*_, **__):
        raise RuntimeError("Ranks 1 failed to pass monitoredBarrier in 600000 ms")

    monkeypatch.setattr(module.dist, "monitored_barrier", missing)
    with pytest.raises(OptionError, match=r"Not all of the 2 processes called run\(\): Ranks 1"):
        DistributedFit(Exchange(0, 2)).agree(0, (y,), {})
    with pytest.raises(NFVIError, match=r"process of the fit is gone \(closed\)"):
        with module.explaining_lost_processes():
            raise ProcessLost("closed")


def test_processes_with_other_arrays_or_loaders_are_refused(monkeypatch):
    import numpy as np

    from pyro_nfvi._files.fingerprint import fingerprint
    from pyro_nfvi._pyro_model.batch_model import BatchModel
    from pyro_nfvi._pyro_model.stored_rows import StoredRows
    from pyro_nfvi.errors import OptionError

    known = [fingerprint((np.arange(3.0) + i, "x"), {}) for i in (0, 0, 1)]
    assert known[0] == known[1] != known[2]

    def loader(order):
        rows = torch.arange(2_000.0)[order]
        return BatchModel(print, StoredRows.read(rows.split(50), len(rows)), "rows")

    told = []
    team = DistributedFit(Exchange(1, 2))
    monkeypatch.setattr(Exchange, "all", lambda _, mine: told.append(mine) or [mine])
    team.agree_on_rows(loader(torch.arange(2_000)))
    monkeypatch.setattr(Exchange, "all", lambda _, mine: [told[0], mine])
    team.agree_on_rows(loader(torch.arange(2_000)))
    swapped = torch.arange(2_000).view(20, 100)[torch.arange(20).roll(1)].reshape(-1)
    with pytest.raises(OptionError, match="loader of process 0 has other rows than that of pro"):
        team.agree_on_rows(loader(swapped))


def test_an_error_in_one_process_ends_the_set_up_of_all(monkeypatch):
    from pyro_nfvi.errors import ModelError

    monkeypatch.setattr(Exchange, "all", lambda self, mine: [mine, "ValueError: no"])
    with pytest.raises(ModelError, match="Process 1 could not set up the fit: ValueError: no"):
        with DistributedFit(Exchange(0, 2)).together():
            pass
    with pytest.raises(ArithmeticError, match="mine"), DistributedFit(Exchange(0, 2)).together():
        raise ArithmeticError("mine")


# --------------------------------------------------------------------------------- torchrun

SCRIPT = """
import os, sys, time
import pyro, pyro.distributions as dist, torch
import pyro_nfvi as nfvi

folder, bits, engine, how = sys.argv[1:5]
slow = how == "slow"
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64 if bits == "64" else torch.float32)
y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
s = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])
rank = os.environ.get("RANK", "0")

def model(y, s):
    if slow:
        place = os.path.join(folder, "pid" + rank)
        if not os.path.exists(place):  # whole at once: it is read from outside at any time
            with open(place + ".part", "w") as file:
                file.write(str(os.getpid()))
            os.rename(place + ".part", place)
        time.sleep(0.01)
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, s), obs=y)

more = {}
if how in ("dies", "resumes"):
    kept = os.path.join(folder, "..", "kept")
    more = {"checkpoint": kept, "checkpoint_every": 50, "resume": True}
if how == "dies":
    more["callbacks"] = [lambda info: os._exit(9) if info.step == 120 else None]
fit = nfvi.NFVI(model, guide="iaf", max_steps=200, stop=False, seed=0, engine=engine, explore="off",
                progress=False, **more).run(y, s)
fit.save(os.path.join(folder, "fit.nfvi"))
params = [p.detach() for p in fit.guide.parameters()]
held = {"losses": fit.losses, "params": params, "z": fit.draws.z, "elbo": fit.elbo,
        "engine": fit.engine, "report": fit.report, "y": fit.predict(num_samples=2, seed=0)["y"]}
torch.save(held, os.path.join(folder, "rank" + rank))
"""


def launch(folder, *options, processes, script=SCRIPT):
    folder.mkdir()
    path = folder / "script.py"
    path.write_text(script)
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        start += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return subprocess.Popen(
        [*start, str(path), str(folder), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def run(folder, *options, processes, how="quick"):
    process = launch(folder, *options, how, processes=processes)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return [torch.load(folder / f"rank{rank}") for rank in range(processes)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "engine", "others", "tolerance"),
    [("64", "eager", (2, 4), 1e-9), ("32", "auto", (2,), 1e-4), ("64", "compiled", (2,), 1e-9)],
)
def test_the_numbers_are_those_of_one_process(tmp_path, bits, engine, others, tolerance):
    (one,) = run(tmp_path / "one", bits, engine, processes=1)
    for count in others:
        found = run(tmp_path / f"many{count}", bits, engine, processes=count)
        assert len(list((tmp_path / f"many{count}").glob("*.nfvi"))) == 1
        for each in found:
            assert "particles were split" in each["report"]
            off = [each["losses"] - one["losses"], each["z"] - one["z"], each["y"] - one["y"]]
            off += [mine - theirs for mine, theirs in zip(each["params"], one["params"])]
            scale = 1 + max(float(value.abs().max()) for value in (one["losses"], one["z"]))
            assert max(float(value.abs().max()) for value in off) < tolerance * scale


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_all_with_a_word(tmp_path, victim):
    folder = tmp_path / "fit"
    process = launch(folder, "64", "eager", "slow", processes=2)
    said = []
    reader = threading.Thread(target=lambda: said.append(process.stdout.read()))
    reader.start()
    end = time.monotonic() + 120
    pids = [folder / f"pid{rank}" for rank in (0, 1)]
    while not all(file.exists() for file in pids):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(5)  # the fit is on its way
    os.kill(int(pids[victim].read_text()), signal.SIGKILL)
    assert process.wait(timeout=90) != 0
    reader.join(timeout=30)
    process.stdout.close()
    assert "SIGKILL" in said[0]  # the launcher's word
    # The launcher ends the others, unless they see it first and say so themselves.
    assert "A process of the fit is gone" in said[0] or "SIGTERM" in said[0]
    assert not (folder / "fit.nfvi").exists()


@pytest.mark.slow
def test_another_number_of_processes_resumes_a_fit(tmp_path):
    died = launch(tmp_path / "died", "64", "eager", "dies", processes=2)
    output, _ = died.communicate(timeout=400)
    assert died.returncode != 0
    assert "A process of the fit is gone" in output
    assert (tmp_path / "kept").exists()
    (one,) = run(tmp_path / "one", "64", "eager", processes=1)
    (resumed,) = run(tmp_path / "resumed", "64", "eager", processes=1, how="resumes")
    assert float((resumed["losses"] - one["losses"]).abs().max()) < 1e-9
    for mine, theirs in zip(resumed["params"], one["params"]):
        assert float((mine - theirs).abs().max()) < 1e-9


def test_the_variables_of_torchrun_are_all_needed(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    from datetime import timedelta

    assert join_processes(timedelta(seconds=1)) is None


# ---------------------------------------------------------------------------- rows of plates

ROWS = """
import os, sys
import pyro, pyro.distributions as dist, torch
import pyro_nfvi as nfvi

folder, bits, what, how = sys.argv[1:5]
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64 if bits == "64" else torch.float32)
y = 2 + 1.5 * torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
rank = os.environ.get("RANK", "0")

def table(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    sd = pyro.sample("sd", dist.HalfNormal(2.0))
    with pyro.plate("groups", len(y), subsample_size=10) as rows:
        place = pyro.sample("place", dist.Normal(mean, sd))
        pyro.sample("y", dist.Normal(place, 1.0), obs=y[rows, 0])

def nested(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    with pyro.plate("groups", len(y), subsample_size=10, dim=-2) as rows:
        place = pyro.sample("place", dist.Normal(mean, 1.0))
        with pyro.plate("items", 2, dim=-1):
            z = pyro.sample("z", dist.Normal(place, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])

if how == "lost" and rank == "1":
    calls = []
    plain = table

    def table(y):
        calls.append(0)
        if len(calls) > 200:
            os._exit(9)
        plain(y)

more = {}
if what in ("amortised", "semi-amortised"):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    more = {"encoder": {"groups": net}, "semi_amortised": what != "amortised"}
guide = nfvi.AutoPlateFlow(nested if what == "nested" else table, **more)
kept = {}
if how.startswith(("dies", "resumes")):
    kept = {"checkpoint": os.path.join(folder, "..", how.partition("=")[2]), "resume": True,
            "checkpoint_every": 50}
if how.startswith("dies"):
    kept["callbacks"] = [lambda info: os._exit(9) if info.step == 120 else None]
fit = nfvi.NFVI(guide.model, guide=guide, max_steps=200, stop=False, seed=0, engine="eager",
                progress=False, **kept).run(y)
params = [p.detach() for p in fit.guide.parameters()]
held = {"losses": fit.losses, "params": params, "elbo": torch.tensor(fit.elbo),
        "report": fit.report, "place": fit.sample(3, rows={"groups": [0, 59]}, seed=0)["place"]}
torch.save(held, os.path.join(folder, "rank" + rank))
"""


def assert_alike(found, one, tolerance, steps=200):
    """Results of 200 steps are alike; of fewer, their losses."""
    if steps < 200:
        scale = 1 + float(one["losses"].abs().max())
        for each in found:
            off = each["losses"][:steps] - one["losses"][:steps]
            assert float(off.abs().max()) < tolerance * scale
        return
    for each in found:
        off = [each[name] - one[name] for name in ("losses", "elbo", "place")]
        off += [mine - theirs for mine, theirs in zip(each["params"], one["params"])]
        scale = 1 + float(one["losses"].abs().max())
        assert max(float(value.abs().max()) for value in off) < tolerance * scale


def run_rows(folder, bits, what, how="quick", *, processes):
    process = launch(folder, bits, what, how, processes=processes, script=ROWS)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return [torch.load(folder / f"rank{rank}") for rank in range(processes)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "bits", "others"),
    [
        ("table", "64", (2, 4)),
        ("table", "32", (2,)),
        ("nested", "64", (3,)),  # parts of unequal size
        ("amortised", "64", (2,)),
        ("semi-amortised", "64", (2,)),
    ],
)
def test_rows_of_plates_have_the_numbers_of_one_process(tmp_path, what, bits, others):
    (one,) = run_rows(tmp_path / "one", bits, what, processes=1)
    for count in others:
        found = run_rows(tmp_path / f"many{count}", bits, what, processes=count)
        assert f"{count} processes take each step together" in found[0]["report"]
        # Training amplifies rounding a million times in 200 steps, of one process as of several:
        # in single precision the first ones are alike.
        assert_alike(found, one, *((1e-9, 200) if bits == "64" else (1e-4, 60)))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 2), (2, 4)])
def test_another_number_of_processes_resumes_a_fit_of_rows(tmp_path, before, after):
    died = launch(tmp_path / "died", "64", "table", "dies=kept", processes=before, script=ROWS)
    output, _ = died.communicate(timeout=900)
    assert died.returncode != 0
    assert before == 1 or "A process of the fit is gone" in output
    assert (tmp_path / "kept").exists()
    (one,) = run_rows(tmp_path / "one", "64", "table", processes=1)
    resumed = run_rows(tmp_path / "resumed", "64", "table", "resumes=kept", processes=after)
    assert_alike(resumed, one, 1e-9)


@pytest.mark.slow
def test_a_process_that_dies_in_a_fit_of_rows_ends_all(tmp_path):
    lost = launch(tmp_path / "lost", "64", "table", "lost", processes=2, script=ROWS)
    output, _ = lost.communicate(timeout=300)
    assert lost.returncode != 0
    assert "A process of the fit is gone" in output or "SIGTERM" in output
    assert not list((tmp_path / "lost").glob("rank*"))
