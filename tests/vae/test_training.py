"""Training: exact resume, signals, several processes, refusal of what cannot be gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from vae.cases import make, spread

from benchmarks.vae.sweep.table import sweep
from pyro_nfvi._processes.process_group import ProcessGroup
from pyro_nfvi.errors import DataError, DivergedError, FileError, NFVIError, OptionError
from pyro_nfvi.objectives import Linear
from pyro_nfvi.vae import ELBOLoss, load_vae
from pyro_nfvi.vae._pixels import Preparation
from pyro_nfvi.vae.train._command import main, train
from pyro_nfvi.vae.train._feeds import tensor_feed
from pyro_nfvi.vae.train._options import Options, parse
from pyro_nfvi.vae.train._rates import Rates
from pyro_nfvi.vae.train._run_folder import RunFolder
from pyro_nfvi.vae.train._trainer import Plan, Trainer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def grey(tmp_path):
    """A small data set of grey images whose pixels depend on one another."""
    rng = np.random.RandomState(0)
    z = rng.randn(90, 2)
    x = 255 / (1 + np.exp(-3 * z @ rng.randn(2, 16)))
    path = tmp_path / "grey.npz"
    np.savez_compressed(path, x=x.reshape(90, 4, 4).astype(np.uint8), y=(z[:, 0] > 0).astype(int))
    return path


def options(data, out, **more):
    given = {
        "flow": "planar*2", "latent_dim": 2, "hidden": "8", "epochs": 3, "batch_size": 20,
        "warmup_epochs": 1.0, "quiet": True, "nll_samples": 20, "pictures": False, "threads": 1,
        "device": "cpu", "lr": 5e-3,
    }  # fmt: skip
    return Options(data=str(data), out=str(out), **{**given, **more})


def silent(*_):
    pass


def parameters(path):
    return load_vae(path).state_dict()


def equal(one, two):
    assert one.keys() == two.keys()
    return all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_leaves_everything_behind(grey, tmp_path):
    run = train(options(grey, tmp_path / "run", pictures=True), say=silent)
    names = {path.name for path in run.folder.path.iterdir()}
    assert names == {
        "last.pt", "best.pt", "log.jsonl", "log.csv", "config.json", "results.json",
        "per_image.npz", "curves.png",
        "interpolation.png", "posteriors.png", "reconstructions.png", "samples.png",
    }  # fmt: skip
    lines = run.folder.lines()
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[-1]["valid"]["elbo"] > lines[0]["valid"]["elbo"]
    for part in ("train", "valid"):
        terms = lines[0][part]
        assert terms["elbo"] == pytest.approx(terms["reconstruction"] - terms["kl"], abs=1e-5)
    found = json.loads((run.folder.path / "results.json").read_text())
    assert found["nll_samples"] == 20
    assert equal(parameters(run.folder.path), run.vae.state_dict())


def test_the_same_seed_gives_the_same_run_and_another_seed_another(grey, tmp_path):
    runs = [
        train(options(grey, tmp_path / str(i), seed=seed), say=silent)
        for i, seed in enumerate((1, 1, 2))
    ]
    states = [parameters(run.folder.last) for run in runs]
    assert equal(states[0], states[1])
    assert not equal(states[0], states[2])


@pytest.mark.parametrize("optimizer", ["adam", "adamax"])
@pytest.mark.parametrize("at", [1, 5, 7])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(at, optimizer):
    x = torch.randint(0, 3, (33, 3, 2), generator=torch.Generator().manual_seed(0))
    feed = tensor_feed(x.to(torch.uint8), (x[:9] > 0).float(), Preparation("dynamic", 3))
    plan = Plan(ELBOLoss(beta=Linear(9)), 3, 10, seed=3)

    def build(folder, stop=lambda: False):
        vae = make("iaf*1", seed=4)
        kind = torch.optim.Adam if optimizer == "adam" else torch.optim.Adamax
        step = kind(vae.parameters(), lr=1e-2)
        spec = {"architecture": {}, "options": {}, "data": "x"}
        decay = LambdaLR(step, lambda number: 1 / (1 + number))
        rates = Rates(step, decay, "step")
        return Trainer(vae, feed, plan, rates, folder=folder, spec=spec, stop=stop)

    import tempfile

    with tempfile.TemporaryDirectory() as place:
        whole = build(RunFolder(f"{place}/a"))
        whole.run()
        steps = iter(range(1, 100))
        first = build(RunFolder(f"{place}/b"), stop=lambda: next(steps) == at)
        assert first.run().done == "interrupted"
        torch.rand(17)  # whatever else happens in the process
        second = build(RunFolder(f"{place}/b"))
        second.resume()
        assert second.progress.step == at
        second.run()
        assert equal(whole.vae.state_dict(), second.vae.state_dict())
        ours, theirs = whole.optimizer.state_dict(), second.optimizer.state_dict()
        assert str(ours) == str(theirs)
        logs = [RunFolder(f"{place}/{name}").lines() for name in "ab"]
        for one, two in zip(*logs, strict=True):
            one.pop("time"), two.pop("time")
            assert one == two


class Moody(torch.nn.Module):
    """A decoder whose gradient is not finite on some calls."""

    def __init__(self, net, bad):
        super().__init__()
        self.net, self.bad, self.calls = net, bad, 0

    def forward(self, *inputs):
        found = self.net(*inputs)
        if torch.is_grad_enabled():
            self.calls += 1
            found = found * (torch.nan if self.bad(self.calls) else 1.0)
        return found


def moody(bad, folder=None, stop=lambda: False, epochs=4):
    x = torch.bernoulli(torch.full((40, 3, 2), 0.5, dtype=torch.float32).cumsum(0) / 41)
    vae = make("planar*2", seed=4)
    vae.decoder = Moody(vae.decoder, bad)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
    feed, spec = (
        tensor_feed(x, x, Preparation("as-is", 2)),
        {"architecture": {}, "options": {}, "data": ""},
    )
    plan = Plan(ELBOLoss(), epochs, 10, save_steps=3, seed=3)
    return Trainer(vae, feed, plan, Rates(optimizer), folder=folder, spec=spec, stop=stop)


def test_five_bad_steps_bring_the_last_good_state_back_at_half_the_rate():
    torch.manual_seed(0)
    run = moody(lambda call: 7 <= call < 12)
    at = run.run()
    assert (at.skipped, at.restores, at.rate) == (5, [11], 0.5)
    assert run.rates.now(at.rate)[0] == pytest.approx(5e-3)
    assert all(bool(p.isfinite().all()) for p in run.vae.parameters())


def test_a_run_that_gives_up_says_so_and_leaves_the_last_good_state():
    torch.manual_seed(0)
    run = moody(lambda call: call > 6, epochs=20)
    with pytest.raises(DivergedError, match="gave up at step 36: the gradient of .*5 times"):
        run.run()
    assert run.progress.skipped == 30
    assert all(bool(p.isfinite().all()) for p in run.vae.parameters())


@pytest.mark.parametrize("at", [6, 8, 10])
def test_a_run_that_was_stopped_among_bad_steps_ends_as_if_it_had_not_been(tmp_path, at):
    def bad(call):
        return 8 <= call < 13

    torch.manual_seed(0)
    whole = moody(bad, RunFolder(tmp_path / "a"))
    whole.run()
    steps = iter(range(1, 100))
    torch.manual_seed(0)
    first = moody(bad, RunFolder(tmp_path / "b"), stop=lambda: next(steps) == at)
    assert first.run().done == "interrupted"
    torch.manual_seed(0)
    second = moody(lambda call: bad(call + at), RunFolder(tmp_path / "b"))
    second.resume()
    assert second.run().restores == whole.progress.restores == [12]
    assert equal(whole.vae.state_dict(), second.vae.state_dict())


def test_resume_without_a_checkpoint_starts_fresh_and_says_so(grey, tmp_path):
    said = []
    run = train(
        options(grey, tmp_path / "new", resume=True), say=lambda text: said.append(str(text))
    )
    assert run.progress.epoch == 3
    assert any("Nothing to resume" in text for text in said)


def test_resume_goes_on_with_more_epochs(grey, tmp_path):
    train(options(grey, tmp_path / "a", epochs=4), say=silent)
    train(options(grey, tmp_path / "b", epochs=2), say=silent)
    run = train(options(grey, tmp_path / "b", epochs=4, resume=True), say=silent)
    assert run.progress.epoch == 4
    assert equal(parameters(tmp_path / "a/last.pt"), parameters(tmp_path / "b/last.pt"))


def test_what_cannot_be_gone_on_with_is_refused_and_left_alone(grey, tmp_path):
    out = tmp_path / "run"
    train(options(grey, out), say=silent)
    with pytest.raises(FileError, match="--resume"):
        train(options(grey, out), say=silent)
    good = (out / "last.pt").read_bytes()
    for change, hint in (
        ({"flow": "planar*3"}, "its flow is 'planar\\*2'"),
        ({"seed": 5}, "its seed is 0, not 5"),
        ({"lr": 1.0}, "lr"),
        ({"conditional": True}, "condition_dim"),
    ):
        with pytest.raises(FileError, match=hint):
            train(options(grey, out, resume=True, **change), say=silent)
    assert (out / "last.pt").read_bytes() == good
    best = (out / "best.pt").read_bytes()
    for harm in (good[: len(good) // 2], b"", b"hello", good[:1000] + bytes(500) + good[1500:]):
        (out / "last.pt").write_bytes(harm)
        with pytest.raises(FileError, match="best.pt is still there"):
            train(options(grey, out, resume=True), say=silent)
        assert (out / "best.pt").read_bytes() == best
    train(options(grey, out, overwrite=True), say=silent)
    assert equal(parameters(out / "last.pt"), parameters(out / "last.pt"))


def test_a_disk_that_is_full_leaves_the_last_checkpoint(grey, tmp_path, monkeypatch):
    out = tmp_path / "run"
    train(options(grey, out, epochs=2), say=silent)
    good = (out / "last.pt").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="No space left"):
        train(options(grey, out, epochs=3, resume=True), say=silent)
    assert (out / "last.pt").read_bytes() == good
    monkeypatch.undo()
    assert train(options(grey, out, epochs=3, resume=True), say=silent).progress.epoch == 3


def test_early_stopping_waits_for_the_warm_up(grey, tmp_path):
    run = train(
        options(grey, tmp_path / "a", epochs=40, lr=1e-9, warmup_epochs=6.0, patience=3), say=silent
    )
    assert "no improvement" in run.progress.done
    # Warm over after epoch 6; a rate of 1e-9 changes nothing that could count as better for long.
    assert run.progress.epoch >= 8
    again = train(
        options(
            grey, tmp_path / "a", epochs=40, lr=1e-9, warmup_epochs=6.0, patience=3, resume=True
        ),
        say=silent,
    )
    assert again.progress.epoch == run.progress.epoch


@pytest.mark.parametrize(
    ("part", "hint"),
    [
        ("encoder.head.gaussian.bias", "encoder.head.gaussian.bias is not finite"),
        ("flow.params.linear.bias", "flow.params.linear.bias is not finite"),
    ],
)
def test_numbers_that_are_not_finite_are_traced_to_their_source(part, hint):
    x = torch.bernoulli(torch.full((20, 3, 2), 0.5))
    vae = make("planar*2")
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    with torch.no_grad():
        dict(vae.named_parameters())[part][0] = torch.nan
    feed = tensor_feed(x, x, Preparation("as-is", 2))
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    trainer = Trainer(vae, feed, Plan(ELBOLoss(), 9, 10), Rates(optimizer))
    with pytest.raises(DivergedError, match=hint):
        trainer.run()
    after = vae.state_dict()  # no step was taken with such a gradient
    assert all(torch.equal(after[n], before[n]) for n in before if n != part)


def test_a_layer_that_overflows_is_named():
    x = torch.bernoulli(torch.full((20, 3, 2), 0.5))
    vae = make("radial*1|affine")
    with torch.no_grad():
        vae.flow.flows[1].params.linear.bias.fill_(1e38)
    feed = tensor_feed(x, x, Preparation("as-is", 2))
    rates = Rates(torch.optim.Adam(vae.parameters()))
    trainer = Trainer(vae, feed, Plan(ELBOLoss(), 9, 10), rates)
    with pytest.raises(DivergedError, match=r"layer 1 \(DiagonalAffine\)|log density|decoder"):
        trainer.run()


@pytest.mark.parametrize(
    "change",
    [
        {"likelihood": "categorical"},
        {"likelihood": "gaussian"},
        {"likelihood": "logit-normal", "flow": "none"},
        {"binarize": "static", "flow": "sylvester*2", "kind": "householder"},
        {"conditional": True, "prior": "maf*1", "flow": "iaf*1", "gate": "sigmoid"},
        {"objective": "iwae", "estimator": "dreg", "num_samples": 3},
        {"estimator": "path", "free_bits": 0.5, "cycles": 2, "decay": "cosine"},
        {"tempered": 10, "nets": "conv", "context_dim": 0},
        {"nets": "mlp", "amortize": "mlp", "context_dim": 5, "optimizer": "adam"},
    ],
    ids=str,
)
def test_every_option_trains(grey, tmp_path, change):
    run = train(options(grey, tmp_path / "run", epochs=2, **change), say=silent)
    assert run.evaluation is not None
    assert np.isfinite(run.evaluation.elbo)
    assert equal(parameters(tmp_path / "run"), run.vae.state_dict())


@pytest.mark.parametrize(
    "change",
    [
        {"likelihood": "bernoulli", "binarize": "as-is"},
        {"data": "nowhere.npz"},
        {"flow": "planr"},
        {"hidden": "8,x"},
        {"device": "nonsense"},
    ],
)
def test_wrong_options_are_refused(grey, tmp_path, change):
    with pytest.raises(NFVIError):
        train(options(change.pop("data", grey), tmp_path / "run", **change), say=silent)
    for bad in (
        {"epochs": 0}, {"lr": 0.0}, {"estimator": "dreg"}, {"likelihood": "normal"},
        {"epochs": 1.5}, {"objective": "iwae", "beta": 2.0}, {"seed": -1},
    ):  # fmt: skip
        with pytest.raises(OptionError):
            Options(**bad)
    with pytest.raises(DataError):
        tensor_feed(torch.zeros(0, 2), torch.zeros(1, 2), Preparation("as-is", 2))


def test_command_line_and_configuration(tmp_path, capsys):
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"flow": "radial*2", "epochs": 7}))
    found = parse(["--config", str(config), "--epochs", "9", "--no-pictures"])
    assert (found.flow, found.epochs, found.pictures) == ("radial*2", 9, False)
    config.write_text('{"flw": 1}')
    with pytest.raises(OptionError, match="flw"):
        parse(["--config", str(config)])
    config.write_text("{")
    with pytest.raises(FileError, match="not JSON"):
        parse(["--config", str(config)])
    assert main(["--data", str(tmp_path / "no.npz"), "--out", str(tmp_path / "o")]) == 1
    assert "error: There is no file" in capsys.readouterr().err


def test_parts_of_a_batch_add_up_to_its_gradient():
    x = torch.bernoulli(torch.full((7, 3, 2), 0.5))
    eps = torch.randn(2, 7, 3)
    whole, parts = (spread(make("iaf*2"), 0.3) for _ in range(2))
    (ELBOLoss()(whole, x, eps=eps).surrogate.sum() / 7).backward()
    covered = []
    for rank in range(3):
        mine = ProcessGroup(rank, 3, torch.device("cpu")).part(7)
        covered += range(*mine.indices(7))
        loss = ELBOLoss()(parts, x[mine], eps=eps[:, mine])
        (loss.surrogate.sum() / 7).backward()
    assert covered == list(range(7))
    for one, two in zip(whole.parameters(), parts.parameters()):
        torch.testing.assert_close(one.grad, two.grad, atol=1e-6, rtol=1e-5)


def command(data, out, *more, processes=0):
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [
        sys.executable, *(torchrun if processes else []), "-m", "pyro_nfvi.vae.train",
        "--data", str(data), "--out", str(out), "--flow", "planar*2", "--latent-dim", "2",
        "--hidden", "16", "--batch-size", "10", "--warmup-epochs", "1", "--quiet", "--no-pictures",
        "--threads", "1", "--nll-samples", "20", "--device", "cpu", *more,
    ]  # fmt: skip


def run(*arguments, **more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command(*arguments, **more), capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_at_any_time_and_resumed_it_ends_bit_identical(grey, tmp_path, number):
    more = ("--epochs", "60", "--save-steps", "3")
    whole = run(grey, tmp_path / "a", *more)
    assert whole.returncode == 0, whole.stderr
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    kills = 0
    for attempt in range(20):
        process = subprocess.Popen(
            command(grey, tmp_path / "b", *more, "--resume"),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        log = tmp_path / "b" / "log.jsonl"
        before = log.stat().st_size if log.exists() else 0
        while process.poll() is None and kills < 3:
            # Not at once: three kills, each after some progress, at different moments.
            if log.exists() and log.stat().st_size > before + 200 * (attempt + 1):
                time.sleep(0.013 * attempt)
                process.send_signal(number)
                break
            time.sleep(0.005)
        process.communicate()
        if process.returncode == 0:
            break
        kills += 1
        assert process.returncode in (-number, 143)
    assert kills >= 2
    assert equal(parameters(tmp_path / "a/last.pt"), parameters(tmp_path / "b/last.pt"))
    results = [(tmp_path / name / "results.json").read_text() for name in "ab"]
    assert results[0] == results[1]


@pytest.mark.slow
def test_two_processes_end_where_one_does(grey, tmp_path):
    more = ("--epochs", "4", "--free-bits", "0.1", "--clip-norm", "5")
    one = run(grey, tmp_path / "one", *more)
    two = run(grey, tmp_path / "two", *more, processes=2)
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    assert "2 processes" in two.stdout
    ours, theirs = (parameters(tmp_path / name / "last.pt") for name in ("one", "two"))
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, atol=1e-6, rtol=0)
    assert two.stdout.count("Trained 4 epochs") == 1  # one process talks


def test_a_refused_resume_changes_nothing(grey, tmp_path):
    train(options(grey, tmp_path / "run", epochs=1), say=silent)
    held = (tmp_path / "run" / "config.json").read_text("utf-8")
    with pytest.raises(FileError, match="is of another run: its latent_dim"):
        train(options(grey, tmp_path / "run", latent_dim=3, resume=True), say=silent)
    assert (tmp_path / "run" / "config.json").read_text("utf-8") == held
    # The same name and sizes, other pixels.
    with np.load(grey) as file:
        np.savez_compressed(grey, x=255 - file["x"], y=file["y"])
    with pytest.raises(FileError, match="its data is"):
        train(options(grey, tmp_path / "run", resume=True), say=silent)


def test_files_of_two_runs_of_one_seed_hold_the_same(grey, tmp_path):
    torch.manual_seed(1)
    train(options(grey, tmp_path / "one", epochs=1), say=silent)
    torch.manual_seed(2)
    train(options(grey, tmp_path / "two", epochs=1), say=silent)
    one, two = (tmp_path / name / "last.pt" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    stray = tmp_path / "one" / ".last.pt.0123abcd.draft"
    stray.mkdir()
    (stray / "last.pt").write_bytes(b"half a checkpoint")
    train(options(grey, tmp_path / "one", resume=True), say=silent)
    assert not stray.exists()


def test_every_process_needs_an_image_of_every_batch():
    data = torch.rand(21, 3)
    feed = tensor_feed(data, data, Preparation("as-is", 2))
    plan = Plan(ELBOLoss(), 1, 10)
    vae = make(None)
    optimizer = torch.optim.Adam(vae.parameters())
    with pytest.raises(OptionError, match=r"Each of 2 processes.*21 images.* leave one of 1"):
        Trainer(vae, feed, plan, Rates(optimizer), team=ProcessGroup(0, 2, torch.device("cpu")))
    assert Trainer(vae, feed, plan, Rates(optimizer)).steps_per_epoch == 3


def test_a_sweep_repeats_what_was_done_with_other_options(grey, tmp_path):
    said = []

    def numbers(**more):
        said.clear()
        asked = options(grey, tmp_path / "sweep", epochs=1, **more)
        return sweep(asked, ["none"], [0], say=said.append)[0].results[0]

    first = numbers()
    assert numbers() == first
    assert not said
    assert numbers(nll_samples=30)["nll_samples"] == 30
    with pytest.raises(FileError, match="its lr is"):
        numbers(lr=1e-2)
    assert numbers(lr=1e-2, overwrite=True) != first
    with np.load(grey) as file:
        np.savez_compressed(grey, x=255 - file["x"], y=file["y"])
    with pytest.raises(FileError, match="its data is"):
        numbers(lr=1e-2)
    with pytest.raises(OptionError, match="rank is a whole number"):
        sweep(options(grey, tmp_path / "other"), ["none", "sylvester*2:rank=x"], [0], say=silent)
    assert not (tmp_path / "other").exists()


# ------------------------------------------------------------------- nets and data of a user's own

OWN = """
import numpy as np
from torch import nn

class Net(nn.Module):
    def __init__(self, latent_dim, context_dim):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh())
        self.head, self.context = nn.Linear(8, 2 * latent_dim), nn.Linear(8, context_dim)

    def forward(self, x):
        h = self.body(x)
        loc, raw = self.head(h).chunk(2, -1)
        return loc, raw.exp(), self.context(h)

def make_nets(latent_dim, context_dim, shape):
    return Net(latent_dim, context_dim), nn.Sequential(nn.Linear(2, 16), nn.Unflatten(1, shape))

def make_data():
    x = np.random.default_rng(0).integers(0, 2, (60, 4, 4))
    return {"x_train": x[:40], "x_val": x[40:50], "x_test": x[50:], "y_train": x[:40, 0, 0]}

def wrong():
    return 3
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "mine_24.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("mine_24")
    sys.modules.pop("mine_24")


def test_nets_and_data_by_the_name_of_a_function(own_module, tmp_path):
    def go(folder, epochs, **more):
        asked = options("mine_24:make_data", folder, nets="mine_24:make_nets", epochs=epochs,
                        context_dim=3, **more)  # fmt: skip
        return train(asked, say=silent)

    whole, half = go(tmp_path / "a", 3), go(tmp_path / "b", 1)
    assert isinstance(whole.vae.encoder, own_module.Net)
    assert whole.evaluation.images == 10
    assert half.progress.epoch == 1
    again = go(tmp_path / "b", 3, resume=True)
    assert equal(whole.vae.state_dict(), again.vae.state_dict())
    with pytest.raises(FileError, match=r"pass decoder=.*mine_24:make_nets"):
        load_vae(tmp_path / "a")
    nets = own_module.make_nets(2, 3, (4, 4))
    found = load_vae(tmp_path / "a", encoder=nets[0], decoder=nets[1])
    assert equal(found.state_dict(), whole.vae.state_dict())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nets": "mine_24:nothing"}, "names 'mine_24:nothing', which cannot be imported"),
        ({"nets": "no_module_24:f"}, "cannot be imported: No module"),
        ({"nets": "mine_24:np"}, "is no function"),
        ({"nets": "mine_24:wrong"}, "needs to return a pair of modules"),
        ({"nets": "dense"}, "nets is one of gated, mlp, conv, resnet, or module:function"),
        ({"data": "mine_24:nothing"}, "--data names"),
        ({"data": "mine_24:Net"}, "latent_dim"),
        ({"new_rate": True}, "--new-rate belongs to --resume"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:20],
)
def test_functions_that_cannot_be_used_are_told(own_module, tmp_path, change, words):
    with pytest.raises((NFVIError, TypeError), match=words):
        train(options(change.pop("data", "mine_24:make_data"), tmp_path / "run", **change),
              say=silent)  # fmt: skip


def test_a_rate_of_the_command_changes_where_it_is_asked_for(grey, tmp_path):
    train(options(grey, tmp_path, epochs=1), say=silent)
    run = train(options(grey, tmp_path, epochs=2, resume=True, lr=0.5, new_rate=True), say=silent)
    assert [line["rate"] for line in run.history] == [5e-3, 0.5]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python reads TOML from 3.11 on")
def test_options_from_a_table(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text('flow = "radial*2"\nepochs = 7\nlatent-dim = 3\n')
    found = parse(["--config", str(config), "--epochs", "9"])
    assert (found.flow, found.epochs, found.latent_dim) == ("radial*2", 9, 3)
    config.write_text("flw = 1")
    with pytest.raises(OptionError, match="flw. Did you mean flow?"):
        parse(["--config", str(config)])
    config.write_text("= 1")
    with pytest.raises(FileError, match="not TOML"):
        parse(["--config", str(config)])


def test_a_misspelt_option_is_answered_with_the_one_that_was_meant(capsys):
    for words, meant in ((["--flwo", "iaf"], "--flow"), (["--batchsize=3"], "--batch-size")):
        with pytest.raises(SystemExit):
            parse(words)
        assert f"Did you mean {meant}?" in capsys.readouterr().err
