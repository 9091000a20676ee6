"""The command line, called as a function, and once as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pyro_nfvi._command.main import main
from pyro_nfvi._command.options import HintingParser, add_options, read_options
from pyro_nfvi._engine import cache
from pyro_nfvi._version import __version__

ROOT = Path(__file__).resolve().parents[2]

MODEL = """
import pyro, pyro.distributions as dist, torch

def line(x, y, scale=1.0):
    slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(slope * x, scale), obs=y)

def two_columns(x, y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)

def banana():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(2 * a**2, 0.2))
    pyro.factor("no_data", torch.zeros(()))

number = 3
"""
CSV = "x,y,group\n0,0.1,0\n1,2.1,1\n2,3.9,1\n3,6.1,0\n"
QUICK = ("--guide", "laplace", "--explore", "off")


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "own_model.py").write_text(MODEL)
    (tmp_path / "data.csv").write_text(CSV)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("own_model", None)


def test_a_fit_prints_its_report_and_ends_by_its_verdict(place, capsys):
    assert main(["fit", "own_model.py:line", "--data", "data.csv", *QUICK]) == 0
    out, err = capsys.readouterr()
    assert "verdict: good" in out
    assert err == "Not used: group (the model has no such parameters).\n"  # and no bar in files
    assert main(["fit", "own_model.py:banana", "--quiet", *QUICK]) in (3, 4)


@pytest.mark.slow
def test_files_of_a_fit_and_its_report(place, capsys):
    pytest.importorskip("arviz")
    words = ["fit", "own_model.py:line", "--data", "data.csv", "--out", "found", *QUICK]
    assert main([*words, "--draws", "100", "--no-pictures"]) == 0
    held = {path.name for path in (place / "found").iterdir()}
    assert held == {"report.txt", "fit.nfvi", "draws.nc", "options.json"}
    assert json.loads((place / "found" / "options.json").read_text())["guide"] == "laplace"
    capsys.readouterr()
    assert main(["report", "found", "--summary"]) == 0
    out = capsys.readouterr().out
    assert "verdict: good" in out
    assert "slope" in out
    # An earlier fit is not replaced unless that is said.
    assert main(words) == 1
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.slow
def test_pictures(place):
    words = ["fit", "own_model.py:line", "--data", "data.csv", "--guide", "affine", "--max-steps"]
    assert main([*words, "60", "--out", "found", "--explore", "off"]) in (0, 3, 4)
    assert {"marginals.png", "loss.png"} <= {path.name for path in (place / "found").iterdir()}


@pytest.mark.slow
def test_arrays_of_an_npz_file_and_columns_side_by_side(place, capsys):
    np.savez("data.npz", x=np.random.RandomState(0).randn(6, 2), y=np.arange(6.0))
    words = ["fit", "own_model.py:two_columns", "--data", "data.npz", *QUICK]
    assert main([*words, "--dtype", "float64"]) == 0
    words = ["fit", "own_model.py:two_columns", "--data", "data.csv", *QUICK, "--quiet"]
    assert main([*words, "--columns", "x=x,group"]) == 0
    capsys.readouterr()


def test_options_of_a_toml_file(place, capsys):
    pytest.importorskip("tomllib")
    (place / "fit.toml").write_text('data = "data.csv"\nguide = "laplace"\nexplore = "off"\n'
                                    "quiet = true\nmax-seconds = 60\n")  # fmt: skip
    assert main(["fit", "own_model.py:line", "--config", "fit.toml"]) == 0
    assert capsys.readouterr().out == "verdict: good\n"
    for text, message in {
        "giude = 'auto'": "Did you mean guide?",
        "seed = 'a'": "is to be of type int",
        "explore = 'on'": "is one of starts, off",
        "= 3": "is not TOML",
    }.items():
        (place / "fit.toml").write_text(text)
        assert main(["fit", "own_model.py:line", "--config", "fit.toml"]) in (1, 2)
        assert message in capsys.readouterr().err
    assert main(["fit", "own_model.py:line", "--config", "missing.toml"]) == 1


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 2, "required: COMMAND"),
        (["fitt", "m:m"], 2, "Did you mean fit?"),
        (["fit", "own_model.py:line", "--gide", "auto"], 2, "Did you mean --guide?"),
        (["fit", "own_model.py:line", "--explore", "start"], 2, "Did you mean starts?"),
        (["fit", "own_model.py:line", "--seed", "x"], 2, "--seed"),
        (["fit", "line"], 2, "module:name"),
        (["fit", "own_model.py:lines"], 2, "Did you mean line?"),
        (["fit", "own_model.py:number"], 2, "is a int, and no model"),
        (["fit", "nowhere.py:line"], 2, "There is no file nowhere.py"),
        (["fit", "no_such_module_:line"], 2, "cannot be imported"),
        (["fit", "own_model.py:line"], 2, "'x' has no data"),
        (["fit", "own_model.py:line", "--data", "data.csv", "--columns", "z=x"], 2, "'z'"),
        (["fit", "own_model.py:line", "--data", "data.csv", "--columns", "x=ex"], 2, "'ex'"),
        (["fit", "own_model.py:line", "--data", "data.csv", "--integers", "q"], 2, "'q'"),
        (["fit", "own_model.py:line", "--data", "data.csv", "--guide", "laplce"], 2, "laplace"),
        (["fit", "own_model.py:line", "--data", "missing.csv"], 1, "cannot be read"),
        (["fit", "own_model.py:line", "--data", "own_model.py"], 1, "neither .csv nor .npz"),
        (["report", "missing.nfvi"], 1, "missing.nfvi"),
        (["vae", "evaluate", "missing"], 1, "missing"),
        (["vae", "generate", "missing", "--out", "x.txt"], 2, ".png or an .npz"),
        (["vae", "compare", "missing"], 1, "holds no finished run"),
        (["vae", "train", "--flwo", "iaf"], 2, "Did you mean --flow?"),
        (["cache", "empty"], 2, "invalid choice"),
    ],
)
def test_what_cannot_be_done_is_said(place, capsys, words, status, message):
    assert main(words) == status
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y\n1,a\n", "line 2, column 'y': 'a' is no number"),
        ("x,y\n1\n", "line 2: 1 cells for 2 names"),
        ("x,x\n1,2\n", "each of them once"),
        ("", "a line of names"),
        ("x,y\n1,\n2,3\n", "NaN"),
    ],
)
def test_data_that_is_none(place, capsys, text, message):
    (place / "bad.csv").write_text(text)
    assert main(["fit", "own_model.py:line", "--data", "bad.csv", *QUICK]) == 1
    assert message.lower() in capsys.readouterr().err.lower()


def test_the_cache_is_shown_and_cleared_of_what_is_ours(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "cache"
    monkeypatch.setattr(cache, "default_folder", lambda: folder)
    assert main(["cache", "size"]) == 0
    assert capsys.readouterr().out == "0\n"
    assert not folder.exists()
    assert cache.Cache().put(cache.Cache.key("a"), b"object")
    assert main(["cache", "size"]) == 0
    assert capsys.readouterr().out == "6\n"
    assert main(["cache", "show"]) == 0
    assert "1 compiled steps" in capsys.readouterr().out
    (folder / "mine.txt").write_text("precious")
    assert main(["cache", "clear"]) == 1
    assert "mine.txt" in capsys.readouterr().err
    (folder / "mine.txt").unlink()
    assert main(["cache", "clear"]) == 0
    assert "Removed 1" in capsys.readouterr().out


def test_versions_and_help(capsys):
    assert main(["versions"]) == 0
    assert __version__ in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert main(["fit", "--help"]) == 0
    out = capsys.readouterr().out
    for heading in ("data:", "fit:", "files:", "status of the shell:"):
        assert heading in out
    assert main(["vae", "train", "--help"]) == 0


@pytest.mark.slow
def test_a_vae_from_training_to_pictures(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    train = ["vae", "train", "--epochs", "1", "--latent-dim", "2", "--flow", "planar*2",
             "--nll-samples", "20", "--hidden", "16", "--quiet", "--out"]  # fmt: skip
    assert main([*train, "run"]) == 0
    assert main(["vae", "evaluate", "run", "--nll-samples", "0", "--out", "numbers.json"]) == 0
    assert json.loads(Path("numbers.json").read_text())["latent_dim"] == 2
    assert main(["vae", "encode", "run", "--part", "valid", "--out", "z.npz"]) == 0
    with np.load("z.npz") as held:
        assert held["z"].shape == held["loc"].shape
    assert main(["vae", "generate", "run", "--num", "5", "--out", "x.npz"]) == 0
    with np.load("x.npz") as held:
        assert len(held["x"]) == 5
    assert main(["vae", "generate", "run", "--num", "5", "--out", "x.png"]) == 0
    capsys.readouterr()
    assert main(["vae", "compare", "run", "run"]) == 0
    assert capsys.readouterr().out.count("planar*2") == 2


@pytest.mark.slow
def test_the_demo(capsys):
    assert main(["demo", "--smoke"]) == 0
    assert "long runs of MCMC" in capsys.readouterr().out


def test_a_real_process(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "pyro_nfvi", "cache", "siz"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert run.returncode == 2
    assert "Did you mean size?" in run.stderr


def test_help_does_not_wait_for_torch():
    code = "import sys; from pyro_nfvi._command.main import main; main(['fit', '--help']); " \
           "print('torch' in sys.modules, file=sys.stderr)"  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert run.stderr.strip() == "False"


def test_command_line_over_file_over_default(tmp_path):
    pytest.importorskip("tomllib")
    from pyro_nfvi._command.fit import FitOptions

    path = tmp_path / "fit.toml"
    path.write_text("seed = 3\nnum_particles = 5\n")
    parser = HintingParser()
    add_options(parser, FitOptions)
    given = vars(parser.parse_args(["--config", str(path), "--seed", "4"]))
    found = read_options(FitOptions, given)
    assert (found.seed, found.num_particles, found.engine) == (4, 5, "auto")
