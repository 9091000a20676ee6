"""Many fits: files keyed by content, failures in rows, held-out densities in closed form."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_nfvi as nfvi
from pyro_nfvi._map_fits import run_jobs
from pyro_nfvi._map_fits.held_out_score import score_held_out
from pyro_nfvi._map_fits.job import FitRecord, JobResult
from pyro_nfvi.errors import FileError, ModelError, OptionError

ROOT = Path(__file__).resolve().parents[2]
FAST = {
    "guide": "affine", "max_steps": 60, "engine": "eager", "stop": False, "explore": "off",
}  # fmt: skip
Y = torch.tensor([0.3, -1.2, 0.8, 1.9, 0.1, -0.4, 1.1, 0.6])


def conjugate(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def noisy(y):
    """A latent for each row, which sums out to a variance of 2."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(y)):
        own = pyro.sample("own", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(own, 1.0), obs=y)


def failing(y):
    raise ArithmeticError("no luck")


def spec(model=conjugate, y=Y, **options):
    return nfvi.FitSpec(model, (y,), options={**FAST, **options})


def run(specs, **options):
    return nfvi.map_fits(specs, **{"num_workers": 1, "progress": False, **options})


def test_a_second_call_computes_nothing(tmp_path, monkeypatch):
    specs = [*spec().seeds(2), *spec().seeds(1)]  # the last is the first again
    table = run(specs, folder=tmp_path)
    assert table.failed == ()
    assert [row.attempts for row in table] == [1, 1, 1]
    assert len(list(tmp_path.glob("*.nfvi"))) == len(list(tmp_path.glob("*.record"))) == 2
    assert table[0].path == table[2].path
    assert float(table[:2].rhat()["mu"]) < 1.02

    def never(job):
        raise AssertionError("computed again")

    monkeypatch.setattr(run_jobs, "do_job", never)
    again = run(specs, folder=tmp_path)
    assert [row.attempts for row in again] == [0, 0, 0]
    assert [row.record for row in again] == [row.record for row in table]
    fit = again[0].load()
    assert fit.elbo == table[0].record.elbo
    assert fit.model is conjugate
    assert "R-hat between 3 seeds" in again.summary()
    # A damaged result is none.
    again[1].path.write_bytes(b"")
    assert "AssertionError: computed again" in run(specs, folder=tmp_path)[1].error
    # Other data, other options: not the same.
    assert run([spec(y=Y + 1)], folder=tmp_path)[0].error
    assert run([spec(max_steps=61)], folder=tmp_path)[0].error


def test_a_failed_fit_is_a_row_and_is_tried_again(tmp_path):
    table = run([spec(failing), spec(), spec(conjugate, "no tensor")], folder=tmp_path)
    assert [bool(row.error) for row in table] == [True, False, True]
    assert "no luck" in table[0].error
    assert "failed: ModelError" in table.summary()
    assert repr(table) == "FitTable(1 of 3 fits done)"
    with pytest.raises(ModelError, match="no fit to read, since it failed: .*no luck"):
        table[0].load()
    again = run([spec(failing), spec()], folder=tmp_path)
    assert [row.attempts for row in again] == [1, 0]


def test_held_out_rows_have_the_density_of_the_exact_posterior_predictive():
    specs = spec().k_fold(2)
    found = run(specs).elpd()
    exact = torch.zeros(8)
    for one in specs:
        train = one.args[0]
        precision = 1 / 4 + len(train)
        normal = dist.Normal(train.sum() / precision, math.sqrt(1 + 1 / precision))
        exact[one.held_out.index] = normal.log_prob(Y[one.held_out.index])
    # 2000 draws: a standard error of at most 0.015 each.
    torch.testing.assert_close(found.pointwise, exact.double(), atol=0.07, rtol=0)
    assert found.draws_se < 0.05
    assert abs(found.elpd - float(exact.sum())) < 5 * found.draws_se + 0.05
    assert found.minus(found)[0] == 0.0
    assert "over 8 rows" in str(found)


def test_latents_of_rows_come_from_their_prior_where_parts_are_of_one_size():
    # Four rows in each part: held at the fitted rows' latents, the shapes would fit.
    one = spec(noisy).k_fold(2)[0]
    row = run([one])[0]
    precision = 1 / 4 + 4 / 2
    normal = dist.Normal(one.args[0].sum() / 2 / precision, math.sqrt(2 + 1 / precision))
    exact = normal.log_prob(one.held_out.rows.args[0]).double()
    # One draw of each row's latent for each of 2000 draws: a standard error of at most 0.03.
    torch.testing.assert_close(row.lpd, exact, atol=0.12, rtol=0)
    assert float(row.lpd_error.max()) < 0.04
    # In the joint density rows share mu.
    assert row.joint_lpd != pytest.approx(float(row.lpd.sum()), abs=1e-3)


@pytest.mark.slow
def test_rows_of_a_plate_that_subsamples(tmp_path):
    y = torch.linspace(-3.0, 4.0, 21)

    def subsampled(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("rows", len(y), subsample_size=4) as index:
            own = pyro.sample("own", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(own, 1.0), obs=y[index])

    options = {"max_steps": 30, "num_particles": 4, "stop": False}
    one = nfvi.FitSpec(subsampled, (y,), options=options).k_fold(2)[0]
    row = run([one], folder=tmp_path)[0]
    assert row.error == ""
    # Against the density with the rows' latents integrated out, at the fit's own draws of mu.
    fit = row.load()
    mu = fit.sample(2000, rows={}, seed=fit.seed)["mu"]
    exact = dist.Normal(mu[:, None], 2**0.5).log_prob(one.held_out.rows.args[0])
    exact = exact.double().logsumexp(0) - math.log(2000)
    assert row.lpd.shape == (11,)  # in pieces of four, of which the last two overlap
    assert bool(((row.lpd - exact).abs() < 5 * row.lpd_error).all())
    assert float(row.lpd_error.mean()) < 0.15
    assert run([one, *one.seeds(1)], folder=tmp_path)[:2].rhat().keys() == {"mu"}


@pytest.fixture(scope="module")
def process_fit():
    def process(x, y):
        f = pyro.sample("f", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(f, 1.0), obs=y)

    specs = nfvi.FitSpec(process, (Y, Y), options=FAST).k_fold(2)
    return nfvi.NFVI(process, seed=0, progress=False, **FAST).run(*specs[0].args), specs[0]


def test_latents_of_rows_outside_of_plates_are_asked_about(process_fit):
    fit, one = process_fit
    with pytest.raises(ModelError, match=r"'f' depends on the number of rows.*from_prior=\['f'\]"):
        score_held_out(fit, one.held_out, 0)
    stated = nfvi.FitSpec(fit.model, (Y, Y), options=FAST).k_fold(2, from_prior=["f"])[0]
    assert score_held_out(fit, stated.held_out, 0)["lpd"].shape == (4,)
    wrong = nfvi.FitSpec(fit.model, (Y, Y), options=FAST).k_fold(2, from_prior=["g"])[0]
    with pytest.raises(OptionError, match="'g', which is no latent"):
        score_held_out(fit, wrong.held_out, 0)


# --------------------------------------------------- the table, without any fit being made


@pytest.fixture
def no_fits(monkeypatch):
    def results(job):
        held = job.spec.held_out
        measured = {}
        if held is not None:
            lpd = held.index.double()
            measured = {"lpd": lpd, "error": 0 * lpd, "joint": lpd.sum()}
        return JobResult(FitRecord("good", 0.1, -1.0, 0.1, 7, "converged"), measured, b"bytes")

    monkeypatch.setattr(run_jobs, "do_job", results)


def test_rows_come_back_in_the_order_of_the_data(no_fits):
    table = run([fold for one in spec().sweep(max_steps=[7, 8]) for fold in one.k_fold(3)])
    with pytest.raises(OptionError, match=r"differ by fold or group alone.*select"):
        table.elpd()
    found = table.select(max_steps=7).elpd()
    assert found.pointwise.tolist() == list(range(8))
    assert found.joint == 28.0
    assert table.summary().count("elpd 28.00") == 2
    with pytest.raises(OptionError, match="No row has the labels"):
        table.select(max_steps=9)
    with pytest.raises(OptionError, match="hold out no rows"):
        run([spec()]).elpd()


def test_ctrl_c_keeps_what_is_done(no_fits, monkeypatch, tmp_path):
    do_job = run_jobs.do_job

    def until_the_third(job):
        if job.spec.seed == 2:
            raise KeyboardInterrupt
        return do_job(job)

    monkeypatch.setattr(run_jobs, "do_job", until_the_third)
    table = run(spec().seeds(4), folder=tmp_path)
    assert table.interrupted
    assert [row.error for row in table] == ["", "", *["not run: interrupted"] * 2]
    assert len(list(tmp_path.glob("*.record"))) == 2
    with pytest.raises(ModelError, match="parts are not done"):
        run([nfvi.FitSpec(conjugate, (Y,), seed=2).k_fold(2)[0]]).elpd()


def test_a_result_that_cannot_be_written_is_one_failed_row(no_fits, monkeypatch, tmp_path):
    whole_file = run_jobs.ResultsFolder.write.__globals__["whole_file"]

    def full(path, kind):
        if full.left == 0:
            raise FileError("No space left on device")
        full.left -= 1
        return whole_file(path, kind)

    full.left = 2
    monkeypatch.setitem(run_jobs.ResultsFolder.write.__globals__, "whole_file", full)
    table = run(spec().seeds(3), folder=tmp_path)
    assert [bool(row.error) for row in table] == [False, True, True]
    assert "No space left" in table[1].error


def test_files_of_a_table_without_a_folder_go_with_it(no_fits):
    table = run(spec().seeds(2))
    folder = table[0].path.parent
    row = table[1]
    del table
    assert folder.is_dir()
    del row
    assert not folder.exists()


def test_a_folder_that_cannot_be_used(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(FileError, match="cannot be made"):
        run([spec()], folder=path)


def test_what_cannot_be_told_apart_needs_no_folder(no_fits, tmp_path):
    import threading

    lock = threading.Lock()

    def locked(y):
        with lock:
            conjugate(y)

    with pytest.raises(OptionError, match=r"fit 1 .* holds a lock .* or give no folder"):
        run([spec(), spec(locked)], folder=tmp_path)
    assert run([spec(locked)]).failed == ()


@pytest.mark.parametrize(
    ("specs", "options", "says"),
    [
        ([], {}, "specs is empty"),
        (spec(), {}, "specs is several FitSpec"),
        (3, {}, "specs is several FitSpec"),
        ([spec(), 3], {}, "entry 1 is a int"),
        ([spec()], {"executor": 3}, "submit"),
        ([spec()], {"num_workers": 0}, "num_workers"),
    ],
)
def test_bad_input(specs, options, says):
    with pytest.raises(OptionError, match=says):
        run(specs, **options)


# ------------------------------------------------------------------------- other processes


@pytest.mark.slow
def test_processes_give_the_same_numbers(tmp_path):
    specs = [*spec().seeds(1), *spec().k_fold(2)]
    one, two = (run(specs, num_workers=n, folder=tmp_path / str(n)) for n in (1, 2))
    assert two.note == ""
    assert two.num_workers == 2
    for here, there in zip(one, two):
        assert here.record.elbo == there.record.elbo
        assert here.path.name == there.path.name
    assert torch.equal(one[1].lpd, two[1].lpd)


SCRIPT = """
import os, sys, time
import pyro, pyro.distributions as dist, torch
import pyro_nfvi as nfvi

def model(y):
    if len(y) == 3:
        open(sys.argv[2], "w").close()
        time.sleep(60)
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

quick = {"guide": "affine", "max_steps": 20, "engine": "eager", "explore": "off"}
specs = [nfvi.FitSpec(model, (torch.zeros(n),), options=quick) for n in (4, 3)]
table = nfvi.map_fits(specs, folder=sys.argv[1], num_workers=2, progress=False)
print(table.interrupted, [row.error for row in table])
"""


@pytest.mark.slow
def test_ctrl_c_ends_the_processes_and_keeps_the_files(tmp_path):
    script, folder, started = tmp_path / "script.py", tmp_path / "fits", tmp_path / "started"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder), str(started)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        # A shell's background job ignores Ctrl-C, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    end = time.monotonic() + 120
    while not (started.exists() and list(folder.glob("*.record"))):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert output.strip() == "True ['', 'not run: interrupted']"
