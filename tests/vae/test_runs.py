"""Runs: one in a folder, workers that end with their launcher, warm-up, subsets, statistics."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from vae.cases import linear_gaussian, make
from vae.test_training import ROOT, command, grey, options, silent  # noqa: F401

from benchmarks.vae.sweep.plots import draw_curve, draw_points
from benchmarks.vae.sweep.table import main as sweep_main
from benchmarks.vae.sweep.table import sweep, table, write_tables
from pyro_nfvi._files.fit_files import read_file, write_file
from pyro_nfvi._processes.launcher import ParentWatch, Place, launched, place_among_processes
from pyro_nfvi._processes.process_group import ProcessGroup
from pyro_nfvi.errors import FileError, OptionError
from pyro_nfvi.objectives import Linear, Tempered
from pyro_nfvi.plots._style import pyplot
from pyro_nfvi.vae import ELBOLoss, IWAELoss, evaluate
from pyro_nfvi.vae._evaluation import subset_of
from pyro_nfvi.vae._losses import loss_from_spec
from pyro_nfvi.vae._nll_summary import NLLSummary, doubt_of
from pyro_nfvi.vae._pictures import plot_curves
from pyro_nfvi.vae.train._command import loss_of, train
from pyro_nfvi.vae.train._command import main as train_main
from pyro_nfvi.vae.train._options import Options, migrated, parse
from pyro_nfvi.vae.train._rates import Rates
from pyro_nfvi.vae.train._run_folder import RunFolder
from pyro_nfvi.vae.train._run_lock import RunLock

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def python(code, *arguments, **more):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, **more,
    )  # fmt: skip


HOLD = """
import sys, time
from pyro_nfvi.vae.train._run_lock import RunLock
lock = RunLock(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def end(process):
    """Kill a process at once, and close our ends of its pipes."""
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    process.stderr.close()


def gone(pid, seconds=15):
    """Wait until a process is no more (or a zombie that nobody collects)."""
    for _ in range(int(seconds / 0.05)):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


# ------------------------------------------------------------------------------------ the lock


def test_a_second_run_is_told_who_holds_the_folder(grey, tmp_path):  # noqa: F811
    out = tmp_path / "run"
    train(options(grey, out, epochs=1), say=silent)
    held = {path.name: path.read_bytes() for path in out.iterdir()}
    with RunLock(out):
        for more in ({"overwrite": True}, {"resume": True, "epochs": 2}):
            with pytest.raises(FileError, match=f"process {os.getpid()} on this host, since"):
                train(options(grey, out, **{"epochs": 1, **more}), say=silent)
        assert {p.name: p.read_bytes() for p in out.iterdir() if p.name != ".lock"} == held
    assert train(options(grey, out, epochs=2, resume=True), say=silent).progress.epoch == 2
    assert not (out / ".lock").exists()


def test_a_lock_goes_with_its_process(tmp_path):
    holder = python(HOLD, tmp_path)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(FileError, match=rf"process {holder.pid} .*kill {holder.pid}"):
        RunLock(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert (tmp_path / ".lock").exists()  # left behind
    RunLock(tmp_path).release()
    assert not (tmp_path / ".lock").exists()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of Python 3.12 on
def test_a_forked_child_does_not_hold_the_lock_of_its_parent(tmp_path):
    lock = RunLock(tmp_path)
    child = os.fork()
    if child == 0:
        time.sleep(1)
        os._exit(0)
    lock.release()
    RunLock(tmp_path).release()
    os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("owner", "taken"),
    [
        ({"pid": 2**22 + 1, "host": "here", "began": "1"}, False),  # no such process
        ({"pid": os.getpid(), "host": "here", "began": "1"}, False),  # its number, used again
        ({"pid": os.getpid(), "host": "here"}, True),
        ({"pid": 1, "host": "elsewhere"}, True),
        ({}, False),
        (None, False),
    ],
)
def test_without_locks_of_the_kernel_the_contents_count(tmp_path, monkeypatch, owner, taken):
    import fcntl
    import socket

    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(socket, "gethostname", lambda: "here")
    (tmp_path / ".lock").write_text("garbage" if owner is None else json.dumps(owner))
    if taken:
        with pytest.raises(FileError, match="is in use by process") as caught:
            RunLock(tmp_path)
        if owner["host"] == "elsewhere":
            assert "process 1 on elsewhere" in str(caught.value)
            assert "end it there, or take another --out. If no such process" in str(caught.value)
            assert str(tmp_path / ".lock") in str(caught.value)
    else:
        RunLock(tmp_path).release()


@pytest.mark.slow
def test_many_processes_at_once_hold_a_lock_one_at_a_time(tmp_path):
    code = """
    import sys, time
    from pathlib import Path
    from pyro_nfvi.errors import FileError
    from pyro_nfvi.vae.train._run_lock import RunLock
    folder, count = Path(sys.argv[1]), 0
    while count < 30:
        try:
            lock = RunLock(folder)
        except FileError:
            time.sleep(0.001)
            continue
        (folder / "mine").mkdir()
        (folder / "mine").rmdir()
        lock.release()
        count += 1
    """
    running = [python(code, tmp_path) for _ in range(3)]
    for process in running:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error


# --------------------------------------------------------------------------------- the launcher

LAUNCH = """
import subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(worker.pid, worker.stdout.readline().strip(), flush=True)
worker.wait()
"""
WORKER = """
import sys, time
from pyro_nfvi._processes.launcher import ParentWatch
with ParentWatch(launched=LAUNCHED, grace=0.5) as watch:
    print("works", flush=True)
    began = time.monotonic()
    while time.monotonic() - began < 30 and not (STOPS and watch.lost()):
        time.sleep(0.02)
"""


@pytest.mark.parametrize(
    "stops", [pytest.param(True, marks=pytest.mark.slow), False], ids=["stops", "hangs"]
)
def test_a_worker_ends_with_its_launcher(stops):
    code = WORKER.replace("LAUNCHED", "True").replace("STOPS", str(stops))
    launcher = python(LAUNCH, code)
    pid, word = launcher.stdout.readline().split()
    assert word == "works"
    end(launcher)
    assert gone(int(pid))


IMPORTING = """
import sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":  # the seconds that importing it takes
            sys.meta_path.remove(self)
            print("works", flush=True)
            time.sleep(1)
sys.meta_path.insert(0, Slow())
"""


@pytest.mark.slow
def test_a_worker_ends_with_a_launcher_that_was_killed_while_it_imported():
    code = IMPORTING + WORKER.replace("LAUNCHED", "True").replace("STOPS", "True")
    launcher = python(LAUNCH, code)
    pid, word = launcher.stdout.readline().split()
    assert word == "works"
    end(launcher)
    assert gone(int(pid))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is a whole number; got 'two'.*torchrun.*unset"),
        ({"WORLD_SIZE": "2.0"}, "WORLD_SIZE is a whole number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is at least 1; got 0"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is at least 1"),
        ({"RANK": "one"}, "RANK is a whole number; got 'one'"),
        ({"RANK": "1"}, "RANK is from 0 to WORLD_SIZE - 1, which is 0; got 1"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK is from 0"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK is a whole number"),
        ({"WORLD_SIZE": "2"}, "the processes cannot meet: .*torchrun --nproc-per-node 2"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "the processes cannot meet"),
    ],
)
def test_garbage_in_the_environment_is_told(grey, tmp_path, monkeypatch, values, words):  # noqa: F811
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match=words):
        train(options(grey, tmp_path / "run", epochs=1), say=silent)
    assert not (tmp_path / "run" / "last.pt").exists()


def test_empty_words_in_the_environment_are_one_process(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
    assert place_among_processes() == Place(1, 0, 0)
    assert not launched()


@pytest.mark.slow
def test_a_run_of_its_own_outlives_its_shell():
    code = WORKER.replace("LAUNCHED", "False").replace("STOPS", "True")
    launcher = python(LAUNCH, code)
    pid = int(launcher.stdout.readline().split()[0])
    end(launcher)
    time.sleep(1.5)
    os.kill(pid, 0)  # still there
    os.kill(pid, signal.SIGKILL)


def test_a_watch_is_over_when_its_run_is():
    ended = []
    with ParentWatch(launched=True, grace=0.0, end=ended.append) as watch:
        assert not watch.lost()
    time.sleep(0.6)
    assert not ended


@pytest.mark.slow
def test_workers_of_a_killed_launcher_end_and_the_run_goes_on(grey, tmp_path):  # noqa: F811
    out = tmp_path / "run"
    more = ("--epochs", "4000", "--save-steps", "3")
    launcher = subprocess.Popen(
        command(grey, out, *more, "--resume", processes=2),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    while not (out / "log.jsonl").exists():
        assert launcher.poll() is None
        time.sleep(0.1)
    owner = json.loads((out / ".lock").read_text())["pid"]
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(launcher.pid)], capture_output=True, text=True,
        check=False,
    ).stdout.split()  # fmt: skip
    assert str(owner) in children
    again = subprocess.run(
        command(grey, out, *more, "--resume"), capture_output=True, text=True, env=ENVIRONMENT,
        check=False,
    )  # fmt: skip
    assert again.returncode == 1
    assert f"in use by process {owner}" in again.stderr
    end(launcher)
    assert all(gone(int(pid), 60) for pid in children)
    lines = len(RunFolder(out).lines())
    run = train(
        options(grey, out, hidden="16", batch_size=10, epochs=lines + 1, save_steps=3, lr=1e-3,
                resume=True),
        say=silent,
    )  # fmt: skip
    assert run.progress.epoch == lines + 1


# ------------------------------------------------------------------------------------- warm-up


@pytest.mark.parametrize("epochs", [1, 2, 10, 50])
def test_warm_up_is_a_share_of_the_run(epochs):
    for share in (0.0, 0.2, 1.0):
        loss = loss_of(Options(epochs=epochs, warmup=share), steps_per_epoch=30)
        assert loss.settled == round(share * epochs * 30)
        assert loss.unfinished(epochs * 30) == ""
    absolute = loss_of(Options(epochs=epochs, warmup_epochs=10.0), 30)
    assert absolute.settled == 300
    assert bool(absolute.unfinished(30 * epochs)) == (epochs < 10)


def test_a_warm_up_that_does_not_end_is_announced_and_kept(grey, tmp_path):  # noqa: F811
    said = []
    given = options(grey, tmp_path / "run", epochs=2, warmup_epochs=10.0)
    run = train(given, say=lambda text: said.append(str(text)))
    warning = [text for text in said if text.startswith("WARNING: the warm-up needs 40 steps")]
    assert len(warning) == 1
    assert "KL divergence ends at 0.175 instead of 1" in warning[0]
    held = json.loads((run.folder.path / "results.json").read_text())
    assert "the warm-up needs 40 steps" in held["warning"]
    lines = run.folder.lines()
    assert [line["kl_weight"] for line in lines] == pytest.approx([3 / 40, 7 / 40])
    figure = plot_curves(lines)
    assert list(figure.axes[2].lines[0].get_ydata()) == [line["kl_weight"] for line in lines]
    done = train(options(grey, tmp_path / "done", epochs=2, warmup_epochs=-1.0), say=silent)
    assert "warm-up" not in done.evaluation.warning
    assert done.folder.lines()[-1]["kl_weight"] == 1.0


def test_schedules_of_every_loss_say_whether_they_end():
    for loss in (ELBOLoss(beta=Linear(10)), ELBOLoss(joint=Tempered(10))):
        assert loss.unfinished(loss.settled) == ""
        assert f"needs {loss.settled} steps" in loss.unfinished(loss.settled - 1)
    for loss in (ELBOLoss(), IWAELoss(3, "dreg"), ELBOLoss(2, "path", Linear(4), Tempered(9), 0.5)):
        assert loss_from_spec(json.loads(json.dumps(loss.spec()))) == loss
    with pytest.raises(OptionError):
        loss_from_spec({"kind": "ELBOLoss", "beta": 3})


def test_epochs_in_place_of_a_share_are_told_the_other_option():
    with pytest.raises(OptionError, match="--warmup-epochs 10"):
        parse(["--warmup", "10"])


def test_a_resumed_run_keeps_its_schedule(grey, tmp_path):  # noqa: F811
    share = {"warmup_epochs": -1.0, "warmup": 0.5}
    train(options(grey, tmp_path / "a", epochs=4, **share), say=silent)
    said = []
    run = train(
        options(grey, tmp_path / "a", epochs=8, resume=True, **share),
        say=lambda text: said.append(str(text)),
    )
    assert any("it ends at step 8" in text for text in said)
    weights = [line["kl_weight"] for line in run.folder.lines()]
    assert weights == sorted(weights)
    assert weights[2:] == [1.0] * 6


@pytest.mark.parametrize(
    "other",
    [{"warmup": 0.25}, {"warmup_epochs": 1.0}, {"cycles": 2}, {"tempered": 4}, {"beta": 2.0}],
)
def test_a_run_does_not_go_on_under_another_schedule(grey, tmp_path, other):  # noqa: F811
    out, first = tmp_path / "run", {"warmup_epochs": -1.0, "warmup": 0.5, "epochs": 1}
    train(options(grey, out, **first), say=silent)
    held = {path.name: path.read_bytes() for path in out.iterdir()}
    name = next(iter(other))
    with pytest.raises(FileError, match=f"its {name} is .*, not {next(iter(other.values()))}"):
        train(options(grey, out, resume=True, **{**first, "epochs": 2, **other}), say=silent)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == held


# ---------------------------------------------------------------------------- the command lines


@pytest.mark.parametrize("run", [train_main, sweep_main])
def test_help_names_every_option_and_says_what_it_is(run, capsys):
    with pytest.raises(SystemExit) as ended:
        run(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    shown = {one.name for one in fields(Options)}
    if run is sweep_main:
        shown = shown - {"flow", "seed"} | {"flows", "seeds"}
    for name in shown:
        line = re.search(rf"^  --{name.replace('_', '-')}[ ,].*\n?.*", text, re.MULTILINE)
        assert line, name
        assert re.search(r"[a-z]{3}", line[0].split("  ", 2)[-1]), name
    assert "default: )" not in text
    assert "default: None" not in text


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (train_main, ["--epoch", "3"]),
        (train_main, ["--flows", "none"]),
        (sweep_main, ["--flow", "none"]),
        (sweep_main, ["--seed", "3"]),
        (sweep_main, ["--nll-image", "3"]),
    ],
)
def test_no_option_is_known_by_its_beginning(run, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run(words)
    assert ended.value.code == 2
    assert f"unrecognized arguments: {words[0]}" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["pyro_nfvi.vae.train", "benchmarks.vae.sweep"])
def test_an_error_is_told_to_the_shell(module, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "--data", str(tmp_path / "no.npz"), "--out", "o"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 1
    assert "no.npz" in capsys.readouterr().err


def test_a_sweep_takes_the_configuration_of_a_run(grey, tmp_path):  # noqa: F811
    made = train(options(grey, tmp_path / "run", epochs=1, seed=4), say=silent)
    config = str(made.folder.path / "config.json")
    more = ["--out", str(tmp_path / "s"), "--flows", "none", "--seeds", "5"]
    assert sweep_main(["--config", config, *more]) == 0
    held = json.loads((tmp_path / "s" / "none-seed5" / "config.json").read_text())
    assert (held["seed"], held["flow"], held["hidden"]) == (5, "none", made_with(made, "hidden"))


def made_with(run, name):
    return json.loads((run.folder.path / "config.json").read_text())[name]


def test_a_run_of_the_earlier_version_goes_on_or_says_why_not(grey, tmp_path):  # noqa: F811
    out = tmp_path / "run"
    train(options(grey, out, epochs=1), say=silent)
    spec, tensors = read_file(out / "last.pt", "VAE")
    newer = ("warmup_epochs", "split_seed", "shape", "levels", "accumulate", "ema", "precision")
    for name in newer:
        spec["options"].pop(name)
    tensors.pop("scheduler"), spec.pop("rates")
    spec["options"]["warmup"] = 1.0  # epochs, as it was
    spec["progress"].pop("kl_weight")
    write_file(out / "last.pt", "VAE", spec, tensors)
    with pytest.raises(FileError, match=r"its warmup_epochs is 1\.0, not -1\.0"):
        train(options(grey, out, epochs=2, resume=True, warmup_epochs=-1.0), say=silent)
    assert train(options(grey, out, epochs=2, resume=True), say=silent).progress.epoch == 2
    assert migrated({"warmup": 10.0, "seed": 3}) == {
        "warmup": 0.2, "warmup_epochs": 10.0, "seed": 3, "split_seed": 3, "shape": "", "levels": -1,
        "accumulate": 1, "ema": 0.0, "precision": "fp32",
    }  # fmt: skip


def test_a_decay_of_the_earlier_version_goes_on_where_it_was():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.8)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    rates = Rates(optimizer, decay, "step")
    optimizer.param_groups[0]["lr"] = 0.1  # as the earlier version left it
    rates.catch_up(3)
    assert rates.now() == pytest.approx([0.2])


# -------------------------------------------------------------------------- the NLL and its subset


def test_the_subset_is_the_same_for_every_model_and_not_the_first_images():
    vae, x, _ = linear_gaussian(stretch=1.3)
    results = [
        evaluate(one, x, nll_samples=200, nll_images=8, seed=seed)
        for one in (vae, make(None, likelihood=vae.likelihood, dtype=torch.float64))
        for seed in range(2)
        if one is vae
    ]
    index = results[0].nll_index
    assert all(torch.equal(index, one.nll_index) for one in results)
    assert index.tolist() == sorted(set(index.tolist()))
    assert index.tolist() != list(range(8))
    assert torch.equal(index, subset_of(20, 8))
    assert not torch.equal(index, subset_of(20, 8, seed=1))
    # Its numbers are those of these images in the whole.
    whole = vae.nll(x, num_samples=200)
    torch.testing.assert_close(results[0].nll.value, whole.value[index], atol=1e-9, rtol=1e-9)
    told = results[0].summary
    gains = (whole.bound - whole.value)[index]
    assert told.gain == pytest.approx(float(gains.mean()))
    assert told.gain_se == pytest.approx(float(gains.std()) / 8**0.5)
    assert told.negative_elbo >= told.mean


@pytest.mark.parametrize(("stretch", "good"), [(1.2, True), (0.25, False)])
def test_every_place_of_an_nll_shows_its_weights(stretch, good, grey, tmp_path):  # noqa: F811
    vae, x, _ = linear_gaussian(stretch=stretch)
    result = evaluate(vae, x, nll_samples=500, nll_images=10)
    record = json.loads(json.dumps(result.record()))
    again = NLLSummary.from_record(record)
    assert again == result.summary
    texts = [str(result), str(result.nll), result.summary.sentence()]
    assert all("ESS" in text and "k-hat above 0.63 on" in text for text in texts)
    assert again.trusted == good
    assert ("not to be relied on" in record["warning"]) != good
    assert ("not reliable" in doubt_of([again])) != good
    assert all(("too large" in text) != good for text in texts)


def test_records_of_earlier_versions_are_doubted_by_what_they_hold():
    old = {
        "nll": 104.0, "nll_se": 1.0, "nll_negative_elbo": 110.0, "nll_samples": 5000,
        "nll_images": 300, "images": 10_000, "khat_above_0.7": 0.98, "ess_median": 12.0,
    }  # fmt: skip
    told = NLLSummary.from_record(old)
    assert not told.trusted
    assert told.which == "the first 300 images"
    assert told.gain == 6.0
    del old["khat_above_0.7"]
    unknown = NLLSummary.from_record(old)
    assert not unknown.trusted
    assert "unknown" in unknown.sentence()
    assert NLLSummary.from_record({"elbo": 1.0}) is None


def test_a_sweep_compares_image_by_image_and_shows_the_weights(grey, tmp_path):  # noqa: F811
    given = options(grey, tmp_path / "sweep", epochs=1, nll_images=6, split_seed=0)
    rows = sweep(given, ["none", "planar*1"], [0, 1], say=silent)
    folder = RunFolder(tmp_path / "sweep")
    index = [np.load(path)["index"] for path in sorted(folder.path.glob("*/per_image.npz"))]
    assert len(index) == 4
    assert all(np.array_equal(one, index[0]) for one in index)  # of every flow and seed
    values = {
        (flow, seed): np.load(folder.path / f"{flow}-seed{seed}" / "per_image.npz")
        for flow in ("none", "planar_1") for seed in (0, 1)
    }  # fmt: skip
    write_tables(folder, rows)
    text = (folder.path / "table.md").read_text()
    each = np.stack([values["none", s]["nll"] - values["planar_1", s]["nll"] for s in (0, 1)])
    error = each.mean(0).std(ddof=1) / len(each[0]) ** 0.5
    assert f"NLL of `none` minus `planar*1`: {each.mean():+.2f} ± {error:.2f} nats" in text
    assert "paired standard error over the same 6 images" in text
    assert all("ESS" in line["NLL weights"] for line in table(rows))
    for draw in (draw_points, draw_curve):
        figure = draw([*rows, replace(rows[1], flow="planar*2")])
        assert "ESS" in figure.get_suptitle()
        seen = [axes.get_title() for axes in figure.axes]
        seen += [label for axes in figure.axes for label in axes.get_legend_handles_labels()[1]]
        named = [text for text in seen if "images" in text]
        assert {text.split(",")[0] for text in named} == {"-ELBO", "NLL(20)"}
        assert all("a seeded subset of 6 images" in text for text in named)  # the same of both
        pyplot().close(figure)


# -------------------------------------------------------------------- statistics on all processes


def _member(rank, folder):
    import torch.distributed as dist
    from vae.test_modes import X
    from vae.test_modes import make as with_batch_norm

    from pyro_nfvi.vae._pixels import Preparation
    from pyro_nfvi.vae.train._feeds import tensor_feed
    from pyro_nfvi.vae.train._rates import Rates
    from pyro_nfvi.vae.train._trainer import Plan, Trainer

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    vae = with_batch_norm()
    fixed = torch.tensor([1 / 3, 0.1])
    vae.encoder.register_buffer("fixed", fixed.clone())
    team = ProcessGroup(rank, 2, torch.device("cpu"))
    x = X.repeat(3, 1, 1)
    feed = tensor_feed(x, X, Preparation("as-is", 2))
    plan = Plan(ELBOLoss(), 2, 7)
    rates = Rates(torch.optim.Adam(vae.parameters(), lr=1e-2))
    trainer = Trainer(vae, feed, plan, rates, team=team)
    trainer.run()
    assert torch.equal(vae.encoder.fixed, fixed)
    valid = trainer.validate()
    torch.save((vae.state_dict(), valid), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_statistics_are_the_same_on_all_processes(tmp_path):
    mp.spawn(_member, (str(tmp_path),), nprocs=2)
    (one, valid), (two, other) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert valid == other
    assert one["encoder.body.2.num_batches_tracked"] == 6


# ---------------------------------------------------------------------------- other wrong numbers


def test_the_log_has_plain_elbos_of_an_iwae_run_and_no_number_of_no_step(grey, tmp_path):  # noqa: F811
    run = train(
        options(grey, tmp_path / "run", objective="iwae", num_samples=4, epochs=1), say=silent
    )
    told = run.folder.lines()[0]["train"]
    assert told["elbo"] == pytest.approx(told["reconstruction"] - told["kl"])
    assert told["bound"] > told["elbo"]
    from pyro_nfvi.vae.train._trainer import _means

    assert all(value != value for value in _means(0.0, 0.0, 0.0, 0).values())


def test_test_images_do_not_change_with_the_seed_of_a_run(grey, tmp_path):  # noqa: F811
    from pyro_nfvi.vae.train._command import data_of

    one, two = (data_of(options(grey, tmp_path, seed=seed)) for seed in range(2))
    assert torch.equal(one.test, two.test)
    other = data_of(options(grey, tmp_path, split_seed=1))
    assert not torch.equal(one.test, other.test)


def test_a_decay_whose_end_moves_is_announced(grey, tmp_path):  # noqa: F811
    train(options(grey, tmp_path / "run", epochs=2, decay="cosine"), say=silent)
    said = []
    train(
        options(grey, tmp_path / "run", epochs=3, decay="cosine", resume=True),
        say=lambda text: said.append(str(text)),
    )
    assert any("over 3 epochs now, and the run began with 2" in text for text in said)
